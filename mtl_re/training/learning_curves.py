"""The picture of a run's metrics.jsonl: losses, their weights where these change, and validation scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtl_re.figures import COLORS, GREY, drawable, picture
from mtl_re.training.metrics_log import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED_FROM = 120
"""Number of points from which on a loss curve is drawn with a running mean."""


def draw_learning_curves(lines: Sequence[Line], path: Path) -> None:
    """Draw at least one line of metrics.jsonl: losses, weights if they change, validation scores."""
    train, valid = ([line for line in lines if line["kind"] == kind] for kind in ("train", "valid"))
    weights = {tuple(line["weights"].values()) for line in train}
    panels = [
        (draw, part)
        for draw, part in ((_losses, train), (_weights, train if len(weights) > 1 else []), (_scores, valid))
        if part
    ]
    with picture(path, 8.5, 0.6 + 3.1 * len(panels)) as figure:
        figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (draw, part) in zip(grid, panels, strict=True):
            draw(axes, part)
            axes.set_xlim(0, 1.02 * max(line["step"] for line in lines))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(True, axis="both")
            axes.tick_params(labelbottom=True)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        grid[-1].set_xlabel("optimizer step")


def _losses(axes: Axes, train: Sequence[Line]) -> None:
    heads = list(train[0]["loss"])
    for color, name, drawn in zip(_colors(len(heads)), heads, drawable(heads), strict=True):
        known = [
            line for line in train if line["labelled_rows"][name]
        ]  # an interval without such rows has no loss, rather than loss 0
        steps = np.array([line["step"] for line in known])
        values = np.array([line["loss"][name] for line in known])
        if len(values) < SMOOTHED_FROM:
            axes.plot(steps, values, color=color, marker="o", markersize=2.5, label=drawn)
            continue
        width = len(values) // 30
        kernel = np.ones(width) / width
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        means = (np.convolve(part, kernel, mode="valid") for part in (steps, values))
        axes.plot(*means, color=color, label=f"{drawn}\n(mean of {width})")
    axes.set_title("Training loss of each head, unweighted")
    axes.set_ylabel("loss per labelled row, nats")
    axes.set_ylim(bottom=0)


def _weights(axes: Axes, train: Sequence[Line]) -> None:
    heads = list(train[0]["weights"])
    for color, name, drawn in zip(_colors(len(heads)), heads, drawable(heads), strict=True):
        axes.plot([line["step"] for line in train], [line["weights"][name] for line in train], color=color, label=drawn)
    axes.set_title("Weight of each head's loss")
    axes.set_ylabel("weight")
    axes.set_ylim(bottom=0)


def _scores(axes: Axes, valid: Sequence[Line]) -> None:
    steps = [line["step"] for line in valid]
    curves = {key: [line[key] for line in valid] for key in ("micro_f1", "auprc", "selection")}
    names = {"micro_f1": "micro-F1", "auprc": "AUPRC", "selection": "selection"}
    selects = next(key for key, values in curves.items() if values == curves["selection"])
    for color, (key, values) in zip(COLORS, curves.items(), strict=False):
        if key != "selection" or selects == "selection":
            label = names[key] + ("\n(selects)" if key == selects != "selection" else "")
            axes.plot(steps, values, color=color, marker="o", markersize=4, label=label)
    if best := [line for line in valid if line["best"]]:
        step, score = best[-1]["step"], best[-1]["selection"]
        ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": COLORS[5], "markeredgewidth": 1.8}
        label = f"best: {score:.2f}\nat step {step:,}"
        axes.plot(step, score, "o", linestyle="", clip_on=False, label=label, **ring)  # type: ignore[arg-type]
        axes.axvline(step, color=GREY, linestyle="--", linewidth=1, zorder=1)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, 5)
    axes.set_ylim(max(0, middle - half), min(101, middle + half))
    axes.set_title(f"Validation scores (n = {valid[-1]['n']:,} rows)")
    axes.set_ylabel("score, %")


def _colors(count: int) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(count)]
