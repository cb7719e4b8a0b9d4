"""What a mixture design can show: the smallest difference and the smallest curvature, before anything is trained.

Enters: a design and the SD of a run's score. Leaves: percentage points. An F test of nested linear models has, under a
true surface f, the noncentral F distribution with noncentrality |M f|² / σ², where M takes away what the smaller model
can say (Scheffé 1959, The Analysis of Variance, ch. 2). Power depends on the form of f; two forms are asked about: a
slope towards one head (the worst head counts) and a dome over the middle of the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtl_re.scoring.metrics import Floats
from mtl_re.scoring.significance import LEVEL, POWER
from mtl_re.study.design import Design, block_contrasts
from mtl_re.study.mixture import Region, terms


@dataclass(frozen=True)
class Detectable:
    """The smallest true surface that a test shows with power 80 % at the level 5 %.

    Attributes:
        test: What is tested against what.
        form: Of the true surface.
        size: Difference between its highest and lowest weights, in units of the SD of a run.
        degrees: Degrees of freedom of the F test, of the numerator and the denominator.
    """

    test: str
    form: str
    size: float
    degrees: tuple[int, int]


def slope(region: Region, points: Floats, head: int) -> Floats:
    """Return (N,) a surface that rises with one head's proportion, by 1 over the region."""
    corners = region.corners()[:, head]
    return np.asarray((points[:, head] - corners.min()) / (corners.max() - corners.min()))


def dome(region: Region, points: Floats) -> Floats:
    """Return (N,) a surface with its peak over the middle of the region, 1 above the farthest corner."""
    corners = region.corners()
    middle = corners.mean(axis=0)
    reach = ((corners - middle) ** 2).sum(axis=1).max()
    return np.asarray(1 - ((points - middle) ** 2).sum(axis=1) / reach)


def detectable(design: Design) -> list[Detectable]:
    """Return the smallest slope and dome that the design shows; see `Detectable`."""
    region, points, model = design.region, design.points, design.options.model
    contrasts = block_contrasts(design.blocks, len(points))
    full = np.concatenate([terms(region.pseudo(points), model), contrasts], axis=1)
    constant = np.concatenate([np.ones((len(points), 1)), contrasts], axis=1)
    plane = np.concatenate([points, contrasts], axis=1)
    against_nothing, against_plane = "weights matter", "the surface is curved"
    worst = max(
        (_smallest(full, constant, slope(region, points, head)), name) for head, name in enumerate(region.names)
    )
    found = [Detectable(against_nothing, f"a slope towards {worst[1]}", worst[0], _degrees(full, constant))]
    if model != "linear":
        peak = dome(region, points)
        for test, small in ((against_nothing, constant), (against_plane, plane)):
            size = _smallest(full, small, peak)
            found.append(Detectable(test, "a dome over the middle", size, _degrees(full, small)))
    return found


def _smallest(full: Floats, small: Floats, form: Floats) -> float:
    """Return the factor by which a form of the surface must be raised to be shown, in units of the SD."""
    from scipy.optimize import brentq

    degrees, unit = _degrees(full, small), _noncentrality(small, form)
    needed = brentq(lambda value: _power(degrees, value) - POWER, 1e-6, 1e5)
    return float(np.sqrt(needed / unit)) if unit > 1e-12 else np.inf


def _degrees(full: Floats, small: Floats) -> tuple[int, int]:
    ranks = [int(np.linalg.matrix_rank(columns)) for columns in (full, small)]
    return ranks[0] - ranks[1], len(full) - ranks[0]


def _noncentrality(small: Floats, truth: Floats) -> float:
    rest = truth - small @ np.linalg.lstsq(small, truth, rcond=None)[0]
    return float(rest @ rest)


def _power(degrees: tuple[int, int], noncentrality: float) -> float:
    from scipy.stats import f, ncf

    return float(ncf.sf(f.ppf(1 - LEVEL, *degrees), *degrees, noncentrality))
