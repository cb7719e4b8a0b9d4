"""What every picture and table shares: one look, one way to save, and text that always renders.

Enters: numbers and names. Leaves: PNG files and markdown tables, the same bytes for the same input on one machine.
matplotlib is imported when a picture is drawn, through `Figure` alone: no pyplot, no state left behind. Names come
from data, so they may be long, Korean or hold markup: `drawable` never lets a missing glyph through as a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtl_re.files import whole_file, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F6BB3", "#8C6D31")
"""Okabe and Ito's, told apart by colour-blind readers; taken in turn."""
GREY = "#8A8A8A"
LONGEST = 48
"""Characters of a name that are drawn."""

SMOOTHED_FROM = 120
"""Points of a loss curve from which on a running mean is drawn over it."""

Line = Mapping[str, Any]
"""One object of metrics.jsonl."""

LATIN_FONT = "DejaVu Sans"  # comes with matplotlib
HANGUL_FONTS = (
    "Noto Sans KR",
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",  # the face by which matplotlib knows the collection of all five
    "NanumGothic",
    "NanumBarunGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Baekmuk Dotum",
)
FONT_PACKAGE = "koreanize_matplotlib"
"""Brings NanumGothic (SIL Open Font License) for machines without a Korean font; only its files are used."""
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "text.parse_math": False,
}


# ---- pictures ----------------------------------------------------------------------------------------------------


@contextmanager
def styled(width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) in the project's look, to be drawn and rendered inside the block."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE | {"font.family": list(_fonts()[0])}]):
        yield Figure(figsize=(width, height), dpi=130, layout="constrained")


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A `styled` figure, written to `path` when the block ends.

    Raises:
        MtlReError: the file cannot be written.
    """
    with styled(width, height) as figure:
        yield figure
        with whole_file(path) as partial:
            figure.savefig(partial, metadata={"Software": None})


def bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    texts: Mapping[str, Sequence[str]],
    colors: Sequence[str] | None = None,
) -> None:
    """Horizontal bars, the first name on top, each with its text at its end.

    Args:
        series: legend → values (N,); with several, a name's bars lie below one another and a legend is drawn.
        texts: legend → what stands at the bars' ends (N,).
        colors: (N,) one a name; None colours by series.
    """
    thickness = 0.82 / len(series)
    legends = drawable(list(series))
    for number, (key, values) in enumerate(series.items()):
        places = np.arange(len(names)) + (number + 0.5) * thickness - 0.41
        color: Any = COLORS[number % len(COLORS)] if colors is None else list(colors)
        legend = legends[number] if len(series) > 1 else None
        drawn = axes.barh(places, values, 0.9 * thickness, color=color, label=legend)
        axes.bar_label(drawn, texts[key], padding=3, fontsize=7.5, color="#333333")
    axes.set_yticks(range(len(names)), drawable(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * max((max(values) for values in series.values()), default=1) or 1)
    axes.tick_params(axis="y", length=0)
    if len(series) > 1:
        legend_below(axes)


def beside(axes: Axes, texts: Sequence[str]) -> None:
    """A column of texts to the right of horizontal bars, one a bar."""
    offset: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    for place, text in enumerate(texts):
        axes.annotate(text, (1.0, place), xycoords=("axes fraction", "data"), fontsize=8, color="#333333", **offset)


def legend_below(axes: Axes) -> None:
    """The legend under the plot of a figure that has one, where it covers nothing."""
    handles, texts = axes.get_legend_handles_labels()
    longest = max(map(len, texts))
    columns = 1 if longest > 60 else 2 if longest > 34 else 3
    axes.figure.legend(handles, texts, loc="outside lower center", ncols=columns)


def heat_map(
    axes: Axes,
    shares: npt.ArrayLike,
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    rotation: float = 0,
    size: float = 8,
) -> None:
    """Cells shaded by share (R, C), 0-100, with their texts in them; cells of share 0 stay white."""
    values = np.asarray(shares, dtype=np.float64)
    axes.imshow(np.ma.masked_equal(values, 0), cmap="Blues", vmin=-4, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), drawable(columns), rotation=rotation)
    axes.set_yticks(range(len(rows)), drawable(rows))
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(False)
    axes.grid(which="minor", axis="both")
    axes.spines[:].set_visible(False)
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            shade = "white" if values[row, column] > 52 else "#222222"
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=size)


FEW = 10
"""Classes up to which a confusion's cells are written out in full."""


def confusion(axes: Axes, counts: npt.ArrayLike, names: Sequence[str], what: str) -> None:
    """Counts (classes, classes), rows by gold class, shaded by their share of it; written out in full for few classes.

    Args:
        what: the classes are called in the title.
    """
    values = np.asarray(counts)
    shares = 100 * values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    few = len(names) <= FEW

    def text(count: int, share: float) -> str:
        if few:
            return f"{count:,}\n{share:.1f} %"
        return f"{count:,}" if count else ""

    texts = [[text(*cell) for cell in zip(*line, strict=True)] for line in zip(values, shares, strict=True)]
    rotation = 90 if not few else 60 if max(map(len, names)) > 14 else 0
    heat_map(axes, shares, texts, names, names, rotation=rotation, size=10 if few else 6)
    said = "rows, and % of the gold class" if few else "rows, shaded by % of the gold class"
    axes.set_title(f"{what}: {said} (n = {values.sum():,})", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")


# ---- learning curves ---------------------------------------------------------------------------------------------


def learning_curves(lines: Sequence[Line], path: Path) -> None:
    """Draw the lines of metrics.jsonl: losses, weights where they change, validation scores. At least one line."""
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
        known = [line for line in train if line["labelled_rows"][name]]  # a window without rows has no loss, not zero
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
    axes.set_ylabel("loss a labelled row, nats")
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
    return [COLORS[place % len(COLORS)] for place in range(count)]


# ---- text in pictures --------------------------------------------------------------------------------------------


def drawable(names: Sequence[str]) -> list[str]:
    """Names as they can be drawn: shortened, or `#3` for the third one where no font has all its characters."""
    known = _fonts()[1]
    return [
        (name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")
        if all(ord(character) in known for character in name)
        else f"#{number}"
        for number, name in enumerate(names, start=1)
    ]


def undrawn(what: str, names: Sequence[str]) -> list[str]:
    """A line of markdown that says which names (`what` kind) are drawn as numbers; none if no name is."""
    pairs = zip(drawable(names), names, strict=True)
    numbered = [f"{drawn} = {escape(name)}" for drawn, name in pairs if drawn.startswith("#") and drawn != name]
    if not numbered:
        return []
    return [f"No installed font can draw these {what}, so pictures number them: {', '.join(numbered)}.", ""]


@cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Font families in the order they are asked for a glyph, and every character that one of them has."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    if installed.isdisjoint(HANGUL_FONTS) and (bundled := _bundled_font()) is not None:
        font_manager.fontManager.addfont(bundled)
        installed = {font.name for font in font_manager.fontManager.ttflist}
    families = (LATIN_FONT, *[name for name in HANGUL_FONTS if name in installed][:1])
    paths = [font_manager.findfont(name) for name in families]
    return families, frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def _bundled_font() -> Path | None:
    """The font file of `FONT_PACKAGE`, found without importing it: that would set matplotlib's global state."""
    package = find_spec(FONT_PACKAGE)
    folders = [] if package is None else package.submodule_search_locations or []
    files = (Path(folder) / "fonts" / "NanumGothic.ttf" for folder in folders)
    return next((file for file in files if file.is_file()), None)


# ---- markdown ----------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a markdown table, columns of numbers to the right and others to the left, a blank line last."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    numeric = (all(re.fullmatch(r"[\d.,–-]*", str(cell)) for cell in column) for column in columns)
    rule = "| " + " | ".join("--:" if right else ":--" for right in numeric) + " |"
    lines = ("| " + " | ".join(escape(str(cell)) for cell in row) + " |" for row in (header, *rows))
    head, *body = lines
    return [head, rule, *body, ""]


def escape(text: str) -> str:
    """Text on one line that cannot end a table's cell or start markup."""
    for character in "\\`*|<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def write_markdown(path: Path, lines: Sequence[str]) -> None:
    """Write lines as a file.

    Raises:
        MtlReError: the place cannot be written.
    """
    write_text(path, "\n".join(lines).rstrip("\n") + "\n")
