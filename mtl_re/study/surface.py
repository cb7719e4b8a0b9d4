"""Scheffé's response surface: fitted to the runs of a mixture design, tested, and drawn with its uncertainty.

Enters: proportions, a score and, where runs share seeds, the block of each run. Leaves: a `Surface`. The fit is
ordinary least squares by statsmodels. Since proportions sum to 1, the models hold the constant without a column of
ones: that weights do not matter is the constant (plus block effects) alone, and R² is measured from it. Blocks are
added with contrasts that sum to 0, so that the surface is the mean over the blocks. Sources: Scheffé 1958, J. R.
Statist. Soc. B 20; Scheffé 1963, ibid. 25; Cornell, Experiments with Mixtures, 3rd ed. 2002; for bands Scheffé 1959,
The Analysis of Variance, ch. 3, and Liu, Simultaneous Inference in Regression, 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.scoring.metrics import Floats
from mtl_re.study.design import block_contrasts
from mtl_re.study.mixture import GRID_POINTS, Model, Region, distinct, replicated, term_names, terms

CONFIDENCE = 0.95
BAND_GRID = 300
"""Points of the region over which the band's factor is taken."""
BAND_DRAWS = 20_000
HULL_ROOM = 1e-4
"""By how much a point may lie outside the runs: their proportions are rounded."""
FLAT = 1e-10
"""Share of a squared score below which a sum of squares is rounding."""


@dataclass(frozen=True)
class FTest:
    """An F test; `p` is None where there is no variation to test against."""

    f: float | None
    p: float | None
    degrees: tuple[int, int]


@dataclass(frozen=True)
class Coefficient:
    """A coefficient with its 95 % interval (Student's t)."""

    name: str
    value: float
    low: float
    high: float


class Surface:
    """A fitted surface.

    Attributes:
        region: In which the runs lie.
        model: Which Scheffé polynomial.
        points: (N, q) proportions of the runs.
        values: (N,) scores.
        blocks: (N,) labels of the runs' blocks; None for none.
        degrees: Of freedom of the residuals.
        sd: Residual SD: of a run around the surface.
    """

    def __init__(
        self, region: Region, model: Model, points: Floats, values: Floats, blocks: np.ndarray | None = None
    ) -> None:
        """Fit.

        Raises:
            MtlReError: A score is not finite, or the runs are too few or too alike for the model.
        """
        import statsmodels.api as sm

        self.region, self.model, self.blocks = region, model, blocks
        self.points, self.values = points, np.asarray(values, np.float64)
        if not np.isfinite(self.values).all():
            raise MtlReError("surface: a run has a score that is not finite")
        self._contrasts = block_contrasts(blocks, len(points))
        self._terms = terms(region.pseudo(points), model)
        columns = np.concatenate([self._terms, self._contrasts], axis=1)
        rank = int(np.linalg.matrix_rank(columns, tol=1e-8))
        if rank < columns.shape[1] or rank >= len(columns):
            raise MtlReError(
                f"surface: {len(columns)} runs at {replicated(points).max() + 1} different points tell no {model} "
                f"surface, which has {columns.shape[1]} coefficients with the blocks; more runs are needed"
            )
        self.fit: Any = sm.OLS(self.values, columns).fit()
        self.degrees = int(self.fit.df_resid)
        self.sd = float(np.sqrt(self.fit.mse_resid))

    # ---- where it holds ------------------------------------------------------------------------------------------

    def tried(self, points: Floats) -> np.ndarray:
        """Return whether each of (N, q) points lies in the region and between the runs, their convex hull included.

        Beyond it a polynomial says what nobody has measured.
        """
        sides = self._hull
        between = points[:, :-1] @ sides[:, :-1].T + sides[:, -1] <= HULL_ROOM
        return np.asarray(self.region.inside(points) & between.all(axis=1))

    @cached_property
    def _hull(self) -> Floats:
        """(sides, q) half-spaces a x + b <= 0 of the first q - 1 proportions that hold all runs."""
        from scipy.spatial import ConvexHull

        free = self.points[:, :-1]
        if free.shape[1] == 1:
            return np.array([[-1.0, free.min()], [1.0, -free.max()]])
        return np.asarray(ConvexHull(free).equations)

    def grid(self, most: int = GRID_POINTS) -> Floats:
        """Return a regular grid over the weights that were tried, and the runs themselves."""
        points = self.region.grid(most)
        return distinct(np.concatenate([points[self.tried(points)], self.points]))

    # ---- tests ---------------------------------------------------------------------------------------------------

    @cached_property
    def null(self) -> Any:
        """The fit of 'weights do not matter': a constant, plus the blocks."""
        import statsmodels.api as sm

        return sm.OLS(self.values, np.concatenate([np.ones((len(self.values), 1)), self._contrasts], axis=1)).fit()

    @property
    def weights_matter(self) -> FTest:
        """The test of this surface against 'weights do not matter'."""
        return self._against(self.null.ssr, int(self.null.df_resid))

    def beyond(self, simpler: Surface) -> FTest:
        """Return the test of this surface against a simpler one of the same runs."""
        return self._against(simpler.fit.ssr, simpler.degrees)

    def _against(self, squares: float, degrees: int) -> FTest:
        return self._f(squares - self.fit.ssr, degrees - self.degrees, self.fit.ssr, self.degrees)

    @property
    def lack_of_fit(self) -> FTest | None:
        """The test of what the surface leaves over against pure error.

        None where no point is replicated, or where the surface has a coefficient for every point.
        """
        pure, degrees = self._pure
        if degrees == 0 or degrees == self.degrees:
            return None
        return self._f(self.fit.ssr - pure, self.degrees - degrees, pure, degrees)

    @property
    def pure_error(self) -> float | None:
        """SD of runs at the same point around their mean (and block effect); None without replicates."""
        pure, degrees = self._pure
        return float(np.sqrt(pure / degrees)) if degrees else None

    @cached_property
    def _pure(self) -> tuple[float, int]:
        """Sum of squares and degrees of freedom that are left when every point has a mean of its own."""
        groups = replicated(self.points)
        columns = np.concatenate([np.eye(groups.max() + 1)[groups], self._contrasts], axis=1)
        rest = self.values - columns @ np.linalg.lstsq(columns, self.values, rcond=None)[0]
        return float(rest @ rest), len(columns) - int(np.linalg.matrix_rank(columns))

    def _f(self, squares: float, above: int, rest: float, below: int) -> FTest:
        from scipy.stats import f

        if rest <= FLAT * float(self.values @ self.values) or above == 0:
            return FTest(None, None, (above, below))
        ratio = float(max(squares, 0.0) / above / (rest / below))
        return FTest(ratio, float(f.sf(ratio, above, below)), (above, below))

    @property
    def r_squared(self) -> float | None:
        """Share of the variation (inside the blocks) that the surface explains."""
        return self._explained(self.fit.ssr)

    @property
    def prediction_r_squared(self) -> float | None:
        """1 - PRESS / PRESS of 'weights do not matter' (Allen 1974); below 0: the mean predicts better.

        Both predict the runs at each point from those at the other points, so that replicates tell nothing. None where
        a point alone decides a coefficient, so that leaving it out leaves no surface.
        """
        ours, mean = self._press(self.fit), self._press(self.null)
        if ours is None or mean is None or self._flat:
            return None
        return 1 - ours / mean

    def _press(self, fit: Any) -> float | None:
        """Sum of squares of the runs, each predicted by a fit without any run at its point."""
        basis, _ = np.linalg.qr(fit.model.exog)
        groups, squares = replicated(self.points), 0.0
        for group in range(groups.max() + 1):
            rows = np.flatnonzero(groups == group)
            left = np.eye(len(rows)) - basis[rows] @ basis[rows].T
            if np.linalg.eigvalsh(left)[0] < 1e-9:
                return None
            squares += float((np.linalg.solve(left, fit.resid[rows]) ** 2).sum())
        return squares

    def _explained(self, squares: float) -> float | None:
        return None if self._flat else float(1 - squares / self.null.ssr)

    @property
    def _flat(self) -> bool:
        return bool(self.null.ssr <= FLAT * float(self.values @ self.values))

    @cached_property
    def leverages(self) -> Floats:
        """(N,) diagonal of the hat matrix."""
        return np.asarray(self.fit.get_influence().hat_matrix_diag)

    # ---- estimates -----------------------------------------------------------------------------------------------

    @property
    def coefficients(self) -> list[Coefficient]:
        """The terms of the surface, without the blocks: of a head, the score at its corner of the pseudocomponents.

        That corner (`Region.actual`) may lie outside what was tried: where upper bounds cut it off, or no run is near.
        """
        names = term_names(self.region.names, self.model)
        intervals = self.fit.conf_int(1 - CONFIDENCE)
        return [Coefficient(n, float(self.fit.params[i]), *map(float, intervals[i])) for i, n in enumerate(names)]

    @property
    def betas(self) -> Floats:
        """(p,) coefficients of the surface."""
        return np.asarray(self.fit.params[: self._terms.shape[1]])

    @cached_property
    def covariance(self) -> Floats:
        """(p, p) of `betas`."""
        size = self._terms.shape[1]
        return np.asarray(self.fit.cov_params()[:size, :size])

    @cached_property
    def covariance_root(self) -> Floats:
        """(p, p) lower triangle L with L L' = `covariance`: |x' L| is the standard error at the columns x."""
        ridge = max(1e-14 * float(np.trace(self.covariance)), 1e-300)
        return np.asarray(np.linalg.cholesky(self.covariance + ridge * np.eye(len(self.covariance))), np.float64)

    def columns(self, points: Floats) -> Floats:
        """Return (N, p) columns of the model at proportions (N, q)."""
        return terms(self.region.pseudo(np.atleast_2d(points)), self.model)

    def run_columns(self, points: Floats, blocks: np.ndarray) -> Floats:
        """Return (N, all coefficients) columns of new runs; a block unknown to the fit counts as the mean one."""
        contrasts = np.zeros((len(points), self._contrasts.shape[1]))
        for place, label in enumerate(blocks if self.blocks is not None else ()):
            if (same := np.flatnonzero(self.blocks == label)).size:
                contrasts[place] = self._contrasts[same[0]]
        return np.concatenate([self.columns(points), contrasts], axis=1)

    def predict(self, points: Floats) -> Floats:
        """Return (N,) the fitted surface at proportions (N, q)."""
        return np.asarray(self.columns(points) @ self.betas)

    def standard_error(self, points: Floats) -> Floats:
        """Return (N,) standard errors of the fitted surface."""
        columns = self.columns(points)
        return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", columns, self.covariance, columns), 0))

    def difference(self, points: Floats, base: Floats) -> tuple[Floats, Floats]:
        """Return (N,) differences of the surface at points (N, q) from that at a point (q,), and standard errors."""
        columns = self.columns(points) - self.columns(base)
        variances = np.einsum("ij,jk,ik->i", columns, self.covariance, columns)
        return np.asarray(columns @ self.betas), np.sqrt(np.maximum(variances, 0))

    # ---- factors of standard errors ------------------------------------------------------------------------------

    @property
    def point_factor(self) -> float:
        """Student's t: the 95 % interval at one point that was named beforehand."""
        from scipy.stats import t

        return float(t.ppf((1 + CONFIDENCE) / 2, self.degrees))

    @cached_property
    def band_factor(self) -> float:
        """The 95 % band, which holds the whole true surface at once: the quantile of max |t| over what was tried.

        It is found by simulation with a fixed seed (Liu 2010, ch. 3), and lies between Student's t and Scheffé's bound
        sqrt(p F), which is for all contrasts and not for points of the region alone.
        """
        columns = self.columns(self.grid(BAND_GRID))
        directions = columns @ self.covariance_root
        directions = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)
        generator = np.random.default_rng(0)
        normal = generator.standard_normal((directions.shape[1], BAND_DRAWS))
        scale = np.sqrt(generator.chisquare(self.degrees, BAND_DRAWS) / self.degrees)
        return float(np.quantile(np.abs(directions @ normal).max(axis=0) / scale, CONFIDENCE))

    @property
    def contrast_factor(self) -> float:
        """Scheffé's S-method for all differences between weights at once, chosen after the fit or not.

        Differences are contrasts of the surface: the constant drops out, which leaves p - 1 dimensions.
        """
        from scipy.stats import f

        above = len(self.betas) - 1
        return float(np.sqrt(above * f.ppf(CONFIDENCE, above, self.degrees)))


def pooled_sd(values: Sequence[Floats]) -> float | None:
    """Return the SD inside groups of scores, pooled over those of two or more; None without any."""
    groups = [np.asarray(group, np.float64) for group in values if len(group) > 1]
    degrees = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return float(np.sqrt(squares / degrees)) if degrees else None
