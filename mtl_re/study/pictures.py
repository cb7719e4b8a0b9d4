"""Pictures of a study: scores and differences with intervals, errors, weights, axes, the simplex, losses.

In: numbers by arm. Out: PNG files in the style of `mtl_re.figures`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.figures import COLORS, GREY, drawable, legend_below, picture
from mtl_re.scoring.metrics import Floats
from mtl_re.scoring.significance import seed_interval
from mtl_re.study.arm_statistics import UNSHOWN, Difference
from mtl_re.study.mixture import CORNERS, ternary

LINES = ("-", "--", ":", "-.")
Points = Sequence[tuple[int, float]]


def scores(arms: Sequence[tuple[str, Mapping[int, Mapping[str, float]]]], names: Mapping[str, str], path: Path) -> None:
    """Draw a panel for each score: every seed as a dot, the mean as a bar with its 95 % interval.

    Args:
        arms: Pairs of an arm's name and its metrics by seed.
        names: Titles of the panels, by metric.
    """
    with picture(path, 9, 1.3 + 0.32 * len(arms)) as figure:
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for axes, (key, name), color in zip(panels, names.items(), COLORS, strict=False):
            for line, (_, by_seed) in enumerate(arms):
                values = [metrics[key] for metrics in by_seed.values()]
                over = seed_interval(values)
                if over["ci"] is not None:
                    axes.plot(over["ci"], [line, line], color=color, linewidth=2, solid_capstyle="butt")
                axes.plot(over["mean"], line, "|", color=color, markersize=13, markeredgewidth=2.4)
                axes.plot(values, [line] * len(values), "o", color="#222222", markersize=3, alpha=0.7)
            axes.set_title(f"{name}, %")
            dots = [metrics[key] for _, by_seed in arms for metrics in by_seed.values()]
            room = max(0.3 * (max(dots) - min(dots)), 0.5)  # an interval from few seeds may leave the picture
            axes.set_xlim(min(dots) - room, max(dots) + room)
        panels[0].set_yticks(range(len(arms)), drawable([name for name, _ in arms]))
        panels[0].set_ylim(len(arms) - 0.5, -0.5)
        figure.supxlabel("dot: one seed; bar: mean and 95 % interval over seeds", fontsize=8, color="#555555")


def differences(compared: Sequence[Difference], names: Mapping[str, str], path: Path) -> None:
    """Draw a panel for each score: every difference from the baseline with both intervals, coloured where it is shown.

    Args:
        compared: Differences in the scores of `names`; one that lacks a score leaves its line in that panel empty.
        names: Titles of the panels, by score.
    """
    lines = list(dict.fromkeys((one.arm, one.reading, one.baseline) for one in compared))
    with picture(path, 9, 1.5 + 0.36 * len(lines)) as figure:
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for axes, (score, name), color in zip(panels, names.items(), COLORS, strict=False):
            axes.axvline(0, color="#555555", linewidth=1)
            ends = [0.0]
            for one in (one for one in compared if one.score == score):
                line = lines.index((one.arm, one.reading, one.baseline))
                shade = GREY if one.verdict == UNSHOWN else color
                axes.plot(one.rows_ci, [line - 0.13] * 2, color=shade, linewidth=1.4, solid_capstyle="butt")
                if one.seeds_ci is not None:
                    axes.plot(one.seeds_ci, [line + 0.13] * 2, color=shade, linewidth=3.2, solid_capstyle="butt")
                axes.plot(one.difference, line, "o", color=shade, markersize=5.5)
                ends += [*one.rows_ci, one.difference]
            room = max(0.5 * (max(ends) - min(ends)), 0.5)  # an interval from few seeds may leave the picture
            axes.set_xlim(min(ends) - room, max(ends) + room)
            axes.set_title(f"{name}, points")
        texts = [f"{arm}/{reading} \N{MINUS SIGN} {baseline}" for arm, reading, baseline in lines]
        panels[0].set_yticks(range(len(lines)), drawable(texts))
        panels[0].set_ylim(len(lines) - 0.5, -0.5)
        text = "95 % intervals, thin line: over rows, thick line: over seeds; grey: not shown once corrected (Holm)"
        figure.supxlabel(text, fontsize=8, color="#555555")


def errors(means: Mapping[str, Mapping[str, float]], kinds: Mapping[str, str], path: Path) -> None:
    """Draw stacked bars of the rows of each kind of error; `means` by arm and kind."""
    with picture(path, 9, 1.8 + 0.3 * len(means)) as figure:
        axes = figure.add_subplot()
        start = np.zeros(len(means))
        for (kind, name), color in zip(kinds.items(), COLORS, strict=False):
            values = np.array([row[kind] for row in means.values()])
            drawn = axes.barh(range(len(means)), values, 0.72, left=start, color=color, label=name)
            shown = [f"{value:,.0f}" if value > 0.04 * max(map(_total, means.values())) else "" for value in values]
            axes.bar_label(drawn, shown, label_type="center", fontsize=7.5, color="white")
            start += values
        axes.set_yticks(range(len(means)), drawable(list(means)))
        axes.set_ylim(len(means) - 0.4, -0.6)
        axes.set_title("Kinds of errors, rows (mean over seeds)")
        legend_below(axes)


def label_differences(arms: Mapping[str, Floats], labels: Sequence[str], path: Path) -> None:
    """Draw a panel for each arm: the F1 of every label minus the baseline's, with the range over seeds.

    Args:
        arms: (seeds, labels) differences by arm, in percentage points. labels: In the order drawn, from the top.
    """
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    with picture(path, 2.6 + 2.2 * columns, 0.6 + rows * (0.6 + 0.2 * len(labels))) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        lines = range(len(labels))
        for axes, name, values in zip(panels.flat, drawable(list(arms)), arms.values(), strict=False):
            axes.axvline(0, color="#555555", linewidth=1)
            axes.hlines(lines, values.min(axis=0), values.max(axis=0), color=COLORS[0], linewidth=1.5, alpha=0.4)
            axes.plot(values.mean(axis=0), lines, "o", color=COLORS[0], markersize=4)
            axes.set_title(name, fontsize=10)
            axes.grid(axis="both")
        for axes in panels.flat[len(arms) :]:
            axes.set_axis_off()
        panels[0, 0].set_ylim(len(labels) - 0.5, -0.5)
        for axes in panels[:, 0]:
            axes.set_yticks(lines, drawable(labels), fontsize=7.5)
        text = "F1 minus the baseline's, points; dot: mean over seeds, line: lowest to highest seed"
        figure.supxlabel(text, fontsize=8)


def _total(row: Mapping[str, float]) -> float:
    return sum(row.values())


def over_weights(shares: Mapping[str, Mapping[str, float]], values: Mapping[str, float], what: str, path: Path) -> None:
    """Draw a panel for each head: the score over the head's share of the loss weights."""
    heads = list(next(iter(shares.values())))
    with picture(path, 9, 3.4) as figure:
        panels = figure.subplots(1, len(heads), squeeze=False, sharey=True)[0]
        for axes, head, color in zip(panels, heads, itertools.cycle(COLORS)):
            points = [(part[head], values[arm], arm) for arm, part in shares.items()]
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=color, markersize=5)
            _name_points(axes, points)
            axes.set_xlabel(f"share of {drawable([head])[0]}")
            axes.grid(axis="both")
            axes.margins(x=0.18, y=0.12)
        panels[0].set_ylabel("mean over seeds, %")
        figure.suptitle(f"{what} over each loss weight", x=0.01, ha="left", fontsize=11)


def _name_points(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    names = drawable([name for _, _, name in points])
    for (x, y, _), name in zip(points, names, strict=True):
        axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5, color="#444444")


def ternary_map(shares: Mapping[str, Mapping[str, float]], values: Mapping[str, float], what: str, path: Path) -> None:
    """Draw the score at points of the simplex of three loss weights; each corner is one head alone."""
    heads = drawable(list(next(iter(shares.values()))))
    places = ternary(np.array([list(part.values()) for part in shares.values()]))
    with picture(path, 7, 5.6) as figure:
        axes = figure.add_subplot()
        axes.set_aspect("equal")
        axes.axis("off")
        corners = np.array([*CORNERS, CORNERS[0]])
        axes.plot(corners[:, 0], corners[:, 1], color="#555555", linewidth=1)
        for level in (0.25, 0.5, 0.75):
            for turn in range(3):
                ends = np.roll([[level, 1 - level, 0], [level, 0, 1 - level]], turn, axis=1)
                line = ternary(ends)
                axes.plot(line[:, 0], line[:, 1], color="#DDDDDD", linewidth=0.8, zorder=0)
        for (x, y), name, way in zip(CORNERS, heads, ((0, 9), (-6, -16), (6, -16)), strict=True):
            axes.annotate(f"{name} alone", (x, y), xytext=way, textcoords="offset points", ha="center", fontsize=9)
        dots = axes.scatter(
            places[:, 0], places[:, 1], c=[values[arm] for arm in shares], cmap="viridis", s=120, edgecolor="white"
        )
        for (x, y), name, arm in zip(places, drawable(list(shares)), shares, strict=True):
            text = f"{name}\n{values[arm]:.2f}"
            axes.annotate(text, (x, y), xytext=(9, 0), textcoords="offset points", fontsize=6.5, va="center")
        figure.colorbar(dots, ax=axes, shrink=0.7, label=f"{what}, mean over seeds, %")
        axes.set_title("Loss weights on the simplex")


def over_axes(points: Mapping[str, Sequence[tuple[Any, float]]], what: str, path: Path) -> None:
    """Draw a panel for each axis: (value, score) of every arm, and the mean at each value that several arms share."""
    with picture(path, min(3.4 * len(points), 12) + 1, 3.4) as figure:
        panels = figure.subplots(1, len(points), squeeze=False, sharey=True)[0]
        for axes, (key, pairs), color in zip(panels, points.items(), COLORS * 4, strict=False):
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in pairs)
            values = sorted({value for value, _ in pairs}) if numbers else list(dict.fromkeys(v for v, _ in pairs))
            x = {value: value if numbers else index for index, value in enumerate(values)}
            axes.plot([x[value] for value, _ in pairs], [score for _, score in pairs], "o", color=color, alpha=0.7)
            if len(values) < len(pairs):
                means = [np.mean([score for value, score in pairs if value == one]) for one in values]
                mean = {"linestyle": "-"} if numbers else {"linestyle": "", "marker": "_", "markersize": 22}
                axes.plot([x[value] for value in values], means, color=color, **mean)
            if not numbers:
                axes.set_xticks(range(len(values)), drawable([str(value) for value in values]))
                axes.margins(x=0.25)
            elif min(values) > 0 and max(values) >= 30 * min(values):
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter("")
            axes.set_xlabel(drawable([key])[0])
            axes.grid(axis="both")
        panels[0].set_ylabel("mean over seeds, %")
        figure.suptitle(what, x=0.01, ha="left", fontsize=11)


def losses(curves: Mapping[str, Mapping[str, Sequence[Points]]], arms: Sequence[str], path: Path) -> None:
    """Draw a panel for each head: its unweighted loss, mean over seeds, a line for each arm."""
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    names = dict(zip(arms, drawable(list(arms)), strict=True))
    with picture(path, 9.5, 1.0 + 2.9 * rows + 0.2 * (len(arms) // 3)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        seen: dict[str, Any] = {}
        for axes, (head, by_arm) in zip(panels, curves.items(), strict=False):
            for arm, runs in by_arm.items():
                number = arms.index(arm)
                style = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number // len(COLORS) % len(LINES)]}
                steps, means = mean_curve(runs)
                (seen[arm],) = axes.plot(steps, means, linewidth=1.3, **style)
            axes.set_title(f"{drawable([head])[0]}: loss for a labelled row, nats", fontsize=10)
            axes.grid(axis="both")
            axes.set_xlabel("optimizer step")
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        shown = [arm for arm in arms if arm in seen]
        figure.legend([seen[arm] for arm in shown], [names[arm] for arm in shown], loc="outside lower center", ncols=4)


def mean_curve(runs: Sequence[Points]) -> tuple[list[int], list[float]]:
    """Return the mean over runs at every step that all of them logged, smoothed over a thirtieth of the curve."""
    common = sorted(set.intersection(*({step for step, _ in run} for run in runs)))
    values = np.mean([[dict(run)[step] for step in common] for run in runs], axis=0) if common else np.zeros(0)
    width = max(1, len(common) // 30)
    if width > 1:
        values = np.convolve(values, np.ones(width) / width, mode="valid")
        common = common[width // 2 : width // 2 + len(values)]
    return common, values.tolist()
