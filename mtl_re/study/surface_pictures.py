"""The map of a response surface over loss weights: fitted scores and their uncertainty, with the runs as points.

Enters: an `Optimum` with its surface, and the arms beside it. Leaves: a PNG. Three heads make a triangle, each side an
axis in percent; with more heads triangles are slices through the optimum, in which the other heads keep its weights;
two heads make a line. Hatched weights are shown to be worse than the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.figures import COLORS, drawable, picture
from mtl_re.scoring.metrics import Floats
from mtl_re.study.mixture import CORNERS, replicated, ternary
from mtl_re.study.optimum import Optimum, slices

STEPS = (1, 2, 5, 10, 20, 25)
"""Between the ticks of an axis, in percent."""
NamedPoint = tuple[str, Floats]
"""An arm beside the surface: its name and its (q,) mean proportions."""


@dataclass(frozen=True)
class Triangle:
    """A triangle of proportions: all of a region of three heads, or a slice of a larger one.

    Attributes:
        heads: Numbers of the top, left and right head.
        low: (3,) their proportions at the side opposite to their corner.
        span: Proportion from that side to the corner.
        fixed: (q,) proportions of the others; the three heads' are 0.
    """

    heads: tuple[int, int, int]
    low: Floats
    span: float
    fixed: Floats

    @classmethod
    def of(cls, optimum: Optimum, heads: tuple[int, int, int]) -> Triangle:
        """Return the triangle through the optimum on which these heads vary."""
        fixed = optimum.point.copy()
        fixed[list(heads)] = 0
        low = np.array([optimum.surface.region.low[head] for head in heads])
        return cls(heads, low, float(1 - fixed.sum() - low.sum()), fixed)

    def points(self) -> Floats:
        """Return (5151, q) proportions of a lattice over the triangle, in steps of one percent."""
        steps = [(i, j, 100 - i - j) for i in range(101) for j in range(101 - i)]
        points = np.tile(self.fixed, (len(steps), 1))
        points[:, list(self.heads)] = self.low + self.span * np.array(steps) / 100
        return points

    def places(self, points: Floats) -> Floats:
        """Return (N, 2) where proportions (N, q) lie in the picture."""
        return ternary(np.clip(points[:, list(self.heads)] - self.low, 0, None) / self.span)

    def holds(self, points: Floats) -> np.ndarray:
        """Return whether each of (N, q) points lies in the slice, within one percent."""
        others = [head for head in range(points.shape[1]) if head not in self.heads]
        return np.asarray((np.abs(points[:, others] - self.fixed[others]) < 0.01).all(axis=1))


def draw(optimum: Optimum, beside: Sequence[NamedPoint], what: str, path: Path) -> None:
    """Draw the surface around its optimum.

    Args:
        beside: Arms that are no points of the design.
        what: Name of the score.
    """
    size = len(optimum.point)
    if size == 2:
        _line(optimum, beside, what, path)
        return
    triples: list[tuple[int, int, int]] = [(0, 1, 2)] if size == 3 else slices(optimum.point)
    triangles = [Triangle.of(optimum, heads) for heads in triples]
    with picture(path, 12, 1.0 + 4.7 * len(triangles)) as figure:
        panels = figure.subplots(len(triangles), 2, squeeze=False)
        for row, triangle in zip(panels, triangles, strict=True):
            _map(row[0], optimum, triangle, what, beside, uncertainty=False)
            _map(row[1], optimum, triangle, what, beside, uncertainty=True)
        entries = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels.ravel())
        handles = {text: handle for pairs in entries for handle, text in pairs}
        handles |= _patches(optimum)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)


# ---- a triangle ------------------------------------------------------------------------------------------------------


def _map(
    axes: Any, optimum: Optimum, triangle: Triangle, what: str, beside: Sequence[NamedPoint], uncertainty: bool
) -> None:
    """Draw one map: the fitted scores, or the half-width of their 95 % band."""
    surface = optimum.surface
    points = triangle.points()
    points = points[surface.tried(points)]
    places = triangle.places(points)
    values = surface.band_factor * surface.standard_error(points) if uncertainty else surface.predict(points)
    drawn = axes.tricontourf(*places.T, values, levels=_levels(values), cmap="Purples" if uncertainty else "viridis")
    label = f"half-width of the 95 % band, ± points of {what}" if uncertainty else f"{what}, %"
    axes.figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, label=label, format="%.4g")
    if not uncertainty:
        _sets(axes, optimum, points, places)
    _frame(axes, optimum, triangle)
    _runs(axes, optimum, triangle)
    _stars(axes, optimum, triangle, beside)
    title = "How certain is that?" if uncertainty else f"{what.capitalize() if what.islower() else what}, fitted"
    rest = _fixed_text(optimum, triangle)
    axes.set_title(f"{title}{rest}", fontsize=11)


def _levels(values: Floats) -> Floats:
    """Return round numbers from the lowest to the highest value."""
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    return np.asarray(MaxNLocator(12).tick_values(low, max(high, low + 1e-6)))


def _sets(axes: Any, optimum: Optimum, points: Floats, places: Floats) -> None:
    """Outline the confidence region of the optimum, and hatch the weights that are shown to be worse."""
    inside, upper = optimum.region_margin(points), optimum.not_worse_margin(points)
    if upper.min() < 0:
        axes.tricontourf(*places.T, upper, levels=[upper.min() - 1, 0], colors="none", hatches=["///"])
    if inside.min() < 0 < inside.max():
        axes.tricontour(*places.T, _smoothed(places, inside), levels=[0], colors="black", linewidths=2.2)


def _smoothed(places: Floats, values: Floats) -> Floats:
    """Return (N,) the mean of each value and its nearest neighbours: the margin's small teeth come from the grid."""
    from scipy.spatial import cKDTree

    nearest = cKDTree(places).query(places, min(37, len(places)))[1]
    return np.asarray(values[nearest].mean(axis=1))


def _patches(optimum: Optimum) -> dict[str, Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grid = optimum.surface.grid()
    handles: dict[str, Any] = {}
    if (share := optimum.region(grid).mean()) < 1:
        text = f"95 % confidence region of the optimum ({rounded(100 * share)} of the weights tried)"
        handles[text] = Line2D([], [], color="black", linewidth=2.2)
    if not optimum.not_worse(grid).all():
        handles["hatched: shown to be worse than the optimum"] = Patch(
            facecolor="white", edgecolor="black", hatch="///"
        )
    return handles


def rounded(share: float) -> str:
    """Return `12 %`, and `under 1 %` for what would round to 0."""
    return "under 1 %" if share < 0.5 else f"{share:.0f} %"


def _frame(axes: Any, optimum: Optimum, triangle: Triangle) -> None:
    """Draw the sides as axes: each head's share in percent grows towards its corner."""
    names = drawable([optimum.surface.region.names[head] for head in triangle.heads])
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_xlim(-0.2, 1.2)
    axes.set_ylim(-0.2, 1.03)
    corners = np.array(CORNERS)
    axes.plot(*np.concatenate([corners, corners[:1]]).T, color="#333333", linewidth=1)
    for head, turn in enumerate((-60, 60, 0)):
        _lines_of_equal_share(axes, triangle, head)
        middle = corners[[(head + 2) % 3, head]].mean(axis=0)
        outward = middle - corners.mean(axis=0)
        place = middle + 0.105 * outward / np.linalg.norm(outward)
        text = f"{names[head]}, % of the weights"
        text = f"{text} →" if turn == 0 else f"← {text}"
        axes.text(*place, text, rotation=turn, ha="center", va="center", fontsize=9.5)
        _corner(axes, names[head], head, triangle)


def _lines_of_equal_share(axes: Any, triangle: Triangle, head: int) -> None:
    """Draw a head's ticks, on the side that runs to its corner anticlockwise, and the line of each across the map."""
    shift = np.array([(0.021, 0.0), (-0.012, 0.018), (-0.009, -0.021)])[head]
    across, along = (("left", "center"), ("right", "bottom"), ("center", "top"))[head]
    for tick in _ticks(triangle.low[head], triangle.span):
        share = (tick / 100 - triangle.low[head]) / triangle.span
        ends = np.zeros((2, 3))
        ends[:, head] = share
        ends[0, (head + 2) % 3] = ends[1, (head + 1) % 3] = 1 - share  # the first end is on the head's own side
        line = ternary(ends)
        axes.plot(*line.T, color="white", linewidth=0.7, alpha=0.55)
        axes.text(*(line[0] + shift), f"{tick:g}", ha=across, va=along, fontsize=7.5, color="#444444")


def _corner(axes: Any, name: str, head: int, triangle: Triangle) -> None:
    way = ((0, 16), (-22, -22), (22, -22))[head]
    most = 100 * (triangle.low[head] + triangle.span)
    settings = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 10}
    axes.annotate(f"most {name}\n({most:.0f} %)", CORNERS[head], xytext=way, **settings)


def _ticks(low: float, span: float) -> list[float]:
    """Return about four to six round percentages between the side and the corner, without the ends."""
    step = next((step for step in STEPS if 100 * span / step <= 6), STEPS[-1])
    first = int(np.ceil((100 * low + 1e-6) / step))
    ticks = [step * number for number in range(first, first + 12)]
    return [tick for tick in ticks if 100 * low + 1e-6 < tick < 100 * (low + span) - 1e-6]


def _runs(axes: Any, optimum: Optimum, triangle: Triangle) -> None:
    points = optimum.surface.points[triangle.holds(optimum.surface.points)]
    if not len(points):
        return
    groups = replicated(points)
    first = np.unique(groups, return_index=True)[1]
    places, counts = triangle.places(points[first]), np.bincount(groups)
    label = "runs of the design, and how many there"
    axes.scatter(*places.T, s=85, color="white", edgecolor="#222222", zorder=3, label=label)
    for place, count in zip(places, counts, strict=True):
        axes.annotate(f"{count}", place, ha="center", va="center", fontsize=7, zorder=4)


def _stars(axes: Any, optimum: Optimum, triangle: Triangle, beside: Sequence[NamedPoint]) -> None:
    """Mark the optimum, unit weights and the arms beside the surface."""
    marks: dict[str, Any] = {"edgecolor": "black", "zorder": 5}
    place = triangle.places(optimum.point[None])
    axes.scatter(*place.T, marker="*", s=330, color=COLORS[5], label="optimum of the fitted surface", **marks)
    unit = np.full((1, len(optimum.point)), 1 / len(optimum.point))
    if triangle.holds(unit)[0] and optimum.surface.tried(unit)[0]:
        axes.scatter(*triangle.places(unit).T, marker="P", s=95, color=COLORS[4], label="unit weights", **marks)
    for number, (arm, proportions) in enumerate(beside):
        point = proportions[None]
        if triangle.holds(point)[0] and optimum.surface.tried(point)[0]:
            name = drawable([arm])[0]
            color = COLORS[(number + 1) % len(COLORS)]
            axes.scatter(
                *triangle.places(point).T, marker="D", s=55, color=color, label=f"{name}, mean weights", **marks
            )


def _fixed_text(optimum: Optimum, triangle: Triangle) -> str:
    names = optimum.surface.region.names
    others = [
        f"{names[head]} {100 * part:.0f} %" for head, part in enumerate(triangle.fixed) if head not in triangle.heads
    ]
    return f" (slice: {', '.join(others)})" if others else ""


# ---- a line ----------------------------------------------------------------------------------------------------------


def _line(optimum: Optimum, beside: Sequence[NamedPoint], what: str, path: Path) -> None:
    """Draw the surface of two heads over the share of the first."""
    surface = optimum.surface
    first, second = drawable(list(surface.region.names))
    points = surface.grid(201)
    points = points[np.argsort(points[:, 0])]
    fitted, half = surface.predict(points), surface.band_factor * surface.standard_error(points)
    shares, low = 100 * points[:, 0], float((fitted - half).min())
    inside = np.where(optimum.region(points), low, np.nan)
    with picture(path, 8, 4.6) as figure:
        axes = figure.add_subplot()
        band: dict[str, Any] = {"color": COLORS[0], "alpha": 0.18, "label": "95 % band of the fitted surface"}
        axes.fill_between(shares, fitted - half, fitted + half, **band)
        axes.plot(shares, fitted, color=COLORS[0], label="fitted surface")
        axes.plot(shares, inside, color="black", linewidth=4, label="95 % confidence region of the optimum")
        axes.scatter(100 * surface.points[:, 0], surface.values, color="#222222", s=16, label="runs of the design")
        star: dict[str, Any] = {"marker": "*", "color": COLORS[5], "s": 220, "label": "optimum of the fitted surface"}
        axes.scatter(100 * optimum.point[0], optimum.value, zorder=4, **star)
        for (arm, proportions), color in zip(beside, COLORS[1:] * 4, strict=False):
            name = f"{drawable([arm])[0]}, mean weights"
            axes.axvline(100 * proportions[0], color=color, linestyle=":", label=name)
        axes.set_xlabel(f"{first}, % of the weights (the rest: {second})")
        axes.set_ylabel(f"{what}, %")
        axes.grid(axis="both")
        figure.legend(loc="outside lower center", ncols=3)
