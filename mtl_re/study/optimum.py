"""Where the best weights lie: the optimum of a fitted surface, how well it is known, and what is not worse.

Enters: a `Surface`. Leaves: sets of points of the region's grid, both of confidence 95 %, because two questions differ.
*Where is the true optimum?* Wherever the test that it is there finds no weights that score higher; critical values come
from a bootstrap over runs. *Which weights are not shown to be worse than the best found?* Those whose distance from it
is within Scheffé's S-method for all differences, which pays for the choice of the best from the same runs. Sources:
Peterson, Cahya & del Castillo 2002 (Technometrics 44) for the inverted test; Hsu 1984 (Ann. Statist. 12), comparisons
with the best; Efron & Tibshirani 1993, ch. 9, and Davison & Hinkley 1997, §6.3, bootstrap of a regression; Scheffé
1953 (Biometrika 40).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from mtl_re.scoring.metrics import Floats
from mtl_re.study.surface import CONFIDENCE, Surface

RESAMPLES = 2_000
RIVALS = 800
"""Points of the region that are tried as better than each of its points."""
PLACES = 150
"""Points of the region at which critical values are taken; between them these hardly change."""


@dataclass(frozen=True)
class Optimum:
    """The optimum of a surface.

    Attributes:
        point: (q,) proportions.
        rivals: (R, q) points that are tried as better than others.
        places: (P, q) some points of the region.
        critical: (P,) critical values of the test 'the optimum is here' at these.
    """

    surface: Surface
    point: Floats
    rivals: Floats
    places: Floats
    critical: Floats

    @property
    def value(self) -> float:
        """The fitted score at the optimum."""
        return float(self.surface.predict(self.point)[0])

    def region(self, points: Floats) -> np.ndarray:
        """Return (N,) whether each of (N, q) points belongs to the 95 % confidence region of the true optimum."""
        return self.region_margin(points) >= -1e-9

    def region_margin(self, points: Floats) -> Floats:
        """Return (N,) by how many standard errors each of (N, q) points belongs to the region; below 0 outside.

        A point is outside when some rival lies above it by more standard errors than the critical value, which is taken
        from the nearest places.
        """
        surface = self.surface
        gaps = surface.predict(self.rivals)[None] - surface.predict(points)[:, None]  # (N, R)
        statistic = (gaps / distances(surface, points, self.rivals)).max(axis=1)
        squares = ((points[:, None] - self.places[None]) ** 2).sum(axis=2)
        nearness = 1 / (squares + 1e-12) ** 2
        return np.asarray(nearness @ self.critical / nearness.sum(axis=1) - statistic)

    def not_worse(self, points: Floats) -> np.ndarray:
        """Return (N,) whether each of (N, q) points is not shown to be worse than the optimum."""
        return self.not_worse_margin(points) >= -1e-9

    def not_worse_margin(self, points: Floats) -> Floats:
        """Return (N,) the upper limit of each point's difference from the optimum; below 0 it is shown to be worse."""
        below, error = self.surface.difference(points, self.point)
        return np.asarray(below + self.surface.contrast_factor * error)


def find_optimum(surface: Surface, resamples: int = RESAMPLES, grid: Floats | None = None) -> Optimum:
    """Find the optimum of a surface.

    Args:
        resamples: Of the bootstrap over runs.
        grid: (G, q) points among which it is looked for first (None: the fine grid of what was tried).
    """
    points = surface.grid() if grid is None else grid
    top = _polished(surface, points[int(np.round(surface.predict(points), 9).argmax())])
    rivals = np.concatenate([surface.grid(RIVALS), top[None]])
    places = surface.grid(PLACES)
    return Optimum(surface, top, rivals, places, _critical_values(surface, places, rivals, resamples))


def _polished(surface: Surface, start: Floats) -> Floats:
    """Go on from a point of the grid, which is coarse where there are more than three heads."""
    if len(start) <= 3:
        return start
    from scipy.optimize import minimize

    region = surface.region
    sums = {"type": "eq", "fun": lambda point: point.sum() - 1}
    bounds = list(zip(region.low, region.high, strict=True))
    found = minimize(lambda x: -surface.predict(x)[0], start, method="SLSQP", bounds=bounds, constraints=[sums]).x
    found = np.round(np.clip(found, region.low, region.high), 4)
    found = found / found.sum()
    better = surface.tried(found[None])[0] and surface.predict(found)[0] > surface.predict(start)[0]
    return found if better else start


def _critical_values(surface: Surface, places: Floats, rivals: Floats, resamples: int) -> Floats:
    """Return (P,) critical values, at each place, of the greatest difference to any rival in standard errors.

    They are the 95 % quantiles of the same maximum over the errors of resampled surfaces, as if all rivals were equal
    to the place in truth: the least favourable case, so that the region covers the optimum in at least 95 % of studies.
    """
    drawn = _resampled_errors(surface, resamples)  # (resamples, p), in residual SDs
    here, there = (drawn @ surface.columns(points).T for points in (places, rivals))
    scaled = distances(surface, places, rivals) / max(surface.sd, 1e-300)
    maxima = (((there - here[:, [place]]) / scaled[place]).max(axis=1) for place in range(len(places)))
    return np.array([np.quantile(values, CONFIDENCE) for values in maxima])


def distances(surface: Surface, points: Floats, others: Floats) -> Floats:
    """Return (N, M) standard errors of the differences between points, kept away from 0."""
    one, other = (surface.columns(part) @ surface.covariance_root for part in (points, others))
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * one @ other.T
    return np.sqrt(np.maximum(squares, 1e-12 * max(float(squares.max()), 1e-300)))


def _resampled_errors(surface: Surface, resamples: int) -> Floats:
    """Return (resamples, p) errors of the coefficients of refitted surfaces, each over its own residual SD.

    The runs' residuals, freed from their leverage, are drawn with replacement.
    """
    residuals = surface.fit.resid / np.sqrt(np.maximum(1 - surface.leverages, 1e-9))
    residuals = residuals - residuals.mean()
    draws = np.random.default_rng(0).choice(residuals, (resamples, len(residuals)))
    design = np.asarray(surface.fit.model.exog)
    refits = draws @ np.linalg.pinv(design).T  # (resamples, p + blocks)
    rest = draws - refits @ design.T
    sds = np.sqrt((rest**2).sum(axis=1) / surface.degrees)
    return np.asarray(refits[:, : len(surface.betas)] / np.maximum(sds, 1e-300)[:, None])


def slices(point: Floats) -> list[tuple[int, int, int]]:
    """Return at most four triples of components to draw slices by, where there are more than three.

    Those with the largest proportions at the optimum come first: their slices cover most of the region.
    """
    order = np.argsort(-point, kind="stable").tolist()
    return list(itertools.combinations(order, 3))[:4]
