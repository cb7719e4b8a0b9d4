"""Pictures: one style, one way to save, bars and heat maps, and names that every machine can draw.

Enters: numbers and names. Leaves: PNG files, the same bytes for the same input on one machine. matplotlib is imported
when a picture is drawn, and only its `Figure` is used: no pyplot and no global state. Names come from data and may be
long or Korean; `drawable` replaces a name if no installed font has all its characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtl_re.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F6BB3", "#8C6D31")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart; used in turn."""
GREY = "#8A8A8A"
LONGEST = 48
"""Largest number of characters of a name in a picture."""

LATIN_FONT = "DejaVu Sans"  # part of matplotlib
HANGUL_FONTS = (
    *("Noto Sans KR", "Noto Sans CJK KR", "Noto Sans CJK JP"),  # matplotlib finds the collection of five by the last
    *("NanumGothic", "NanumBarunGothic", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic"),
    *("UnDotum", "Baekmuk Dotum"),
)
FONT_PACKAGE = "koreanize_matplotlib"
"""Holds NanumGothic (SIL Open Font License) for machines without a Korean font; only its files are used."""
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
    """Yield a figure in the project's style, to be drawn and saved inside the block. Width and height are in inches."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE | {"font.family": list(_fonts()[0])}]):
        yield Figure(figsize=(width, height), dpi=130, layout="constrained")


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a `styled` figure, and write it to `path` when the block ends.

    Raises:
        MtlReError: the file cannot be written.
    """
    with styled(width, height) as figure:
        yield figure
        with whole_file(path) as partial:
            figure.savefig(partial, metadata={"Software": "mtl-re"})


def bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    texts: Mapping[str, Sequence[str]],
    colors: Sequence[str] | None = None,
) -> None:
    """Draw horizontal bars, the first name at the top, each with a text at its end.

    Args:
        names: (N,).
        series: legend → values (N,); several series are drawn below one another, with a legend.
        texts: legend → texts at the ends of the bars (N,).
        colors: (N,), a colour for each name; None takes a colour for each series.
    """
    thickness = 0.82 / len(series)
    legends = drawable(list(series))
    for number, (key, values) in enumerate(series.items()):
        heights = np.arange(len(names)) + (number + 0.5) * thickness - 0.41
        color: Any = COLORS[number % len(COLORS)] if colors is None else list(colors)
        legend = legends[number] if len(series) > 1 else None
        drawn = axes.barh(heights, values, 0.9 * thickness, color=color, label=legend)
        axes.bar_label(drawn, texts[key], padding=3, fontsize=7.5, color="#333333")
    axes.set_yticks(range(len(names)), drawable(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * max((max(values) for values in series.values()), default=1) or 1)
    axes.tick_params(axis="y", length=0)
    if len(series) > 1:
        legend_below(axes)


def beside(axes: Axes, texts: Sequence[str]) -> None:
    """Write a column of texts to the right of horizontal bars, one for each bar."""
    offset: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    for row, text in enumerate(texts):
        axes.annotate(text, (1.0, row), xycoords=("axes fraction", "data"), fontsize=8, color="#333333", **offset)


def legend_below(axes: Axes) -> None:
    """Draw the legend below the plot of a figure with a single plot, where it covers nothing."""
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
    """Draw cells that are shaded by a share and hold a text; cells with share 0 stay white.

    Shape: shares (R, C), from 0 to 100; texts (R, C); rows (R,) and columns (C,), the names.
    """
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


FEW_CLASSES = 10
"""Number of classes up to which a confusion matrix has room for counts and shares in its cells."""


def confusion_heat_map(axes: Axes, counts: npt.ArrayLike, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix, shaded by shares of the gold classes.

    Shape: counts (classes, classes), gold classes in rows and predicted classes in columns.
    """
    values = np.asarray(counts)
    shares = 100 * values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    few = len(names) <= FEW_CLASSES

    def text(count: int, share: float) -> str:
        if few:
            return f"{count:,}\n{share:.1f} %"
        return f"{count:,}" if count else ""

    texts = [[text(*cell) for cell in zip(*line, strict=True)] for line in zip(values, shares, strict=True)]
    rotation = 90 if not few else 60 if max(map(len, names)) > 14 else 0
    heat_map(axes, shares, texts, names, names, rotation=rotation, size=10 if few else 6)
    legend = "rows, and % of the gold class" if few else "rows, shaded by % of the gold class"
    axes.set_title(f"{title}: {legend} (n = {values.sum():,})", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")


# ---- text in pictures --------------------------------------------------------------------------------------------


def drawable(names: Sequence[str]) -> list[str]:
    """Return names as they can be drawn: shortened, or `#3` for the third if no font has all its characters."""
    known = _fonts()[1]
    return [
        (name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")
        if all(ord(character) in known for character in name)
        else f"#{number}"
        for number, name in enumerate(names, start=1)
    ]


@cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Return the font families in the order in which they are searched for a glyph, and all characters they have."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    if installed.isdisjoint(HANGUL_FONTS) and (bundled := _bundled_font()) is not None:
        font_manager.fontManager.addfont(bundled)
        installed = {font.name for font in font_manager.fontManager.ttflist}
    families = (LATIN_FONT, *[name for name in HANGUL_FONTS if name in installed][:1])
    paths = [font_manager.findfont(name) for name in families]
    return families, frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def _bundled_font() -> Path | None:
    """Return the font file of `FONT_PACKAGE` without importing it, which would change matplotlib's global state."""
    package = find_spec(FONT_PACKAGE)
    folders = [] if package is None else package.submodule_search_locations or []
    files = (Path(folder) / "fonts" / "NanumGothic.ttf" for folder in folders)
    return next((file for file in files if file.is_file()), None)
