"""`mtl-re explore`: label frequencies, sentence lengths, and entity types by label.

Enters: one or several DATA, each read once as a stream. Leaves: a directory with pictures, and the same numbers as
tables in `explore.md`. Several files are drawn side by side as shares of their own labelled rows, so that a shift of
the prior is visible at once. Sentences are counted, never written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtl_re.config import ReadingConfig
from mtl_re.data.loading import cures, read_examples
from mtl_re.data.validation import AS_KLUE, BadRow
from mtl_re.errors import MtlReError
from mtl_re.figures import COLORS, bars, drawable, heat_map, legend_below, picture
from mtl_re.markdown import escape, table, undrawn, write_markdown
from mtl_re.taxonomy import Taxonomy

PAIRS_SHOWN = 20
"""Entity-type pairs that have a column each; if there are more, the rarest share the last column."""
OTHER = "other"
QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
EXTENSIONS = re.compile(r"(\.(json|jsonl|csv|parquet|gz))+$")

LISTED = 1_000
"""Bad rows that are kept, to see what they have in common."""


@dataclass
class Counts:
    """Counts of one DATA.

    Attributes:
        bad, first_bad: number of invalid rows, which are left out, and the first `LISTED` of them.
        labels: label → labelled rows. lengths: characters of a sentence → rows, labelled or not.
        pairs: (`subject type→object type`, label) → labelled rows.
    """

    rows: int = 0
    unlabelled: int = 0
    bad: int = 0
    first_bad: list[BadRow] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def labelled(self) -> int:
        """Number of rows with a label."""
        return self.rows - self.unlabelled

    @property
    def mean_length(self) -> float:
        """Mean number of characters of a sentence."""
        return sum(length * rows for length, rows in self.lengths.items()) / self.rows

    def length_at(self, quantile: float) -> int:
        """Return the smallest length that at least this share of the rows does not exceed."""
        lengths = sorted(self.lengths)
        running = np.cumsum([self.lengths[length] for length in lengths])
        return lengths[int(np.searchsorted(running, quantile * running[-1] - 1e-9))]


def explore(specs: Sequence[str], output: Path, taxonomy: Taxonomy, reading: ReadingConfig = AS_KLUE) -> Path:
    """Count the rows of each DATA, and write pictures and tables.

    Invalid rows are left out and counted (`mtl-re check` lists them).

    Args:
        specs: DATA, as for every command; several are compared.
        output: directory for the pictures and `explore.md`; it is made if it does not exist.
        reading: how rows are read that are not written as KLUE-RE's are.

    Returns:
        The path of `explore.md`.

    Raises:
        MtlReError: a DATA cannot be read or has no valid row, or the directory cannot be written.
    """
    files = {name: count(spec, taxonomy, reading) for name, spec in zip(short_names(specs), specs, strict=True)}
    sections = [_overview(files, specs), _lengths(files, output)]
    if any(counts.labelled for counts in files.values()):
        sections[1:1] = _label_sections(files, output, taxonomy)
        sections.append(_pairs(files, output, taxonomy))
    path = output / "explore.md"
    write_markdown(path, [line for section in sections for line in section])
    return path


def count(spec: str, taxonomy: Taxonomy, reading: ReadingConfig = AS_KLUE) -> Counts:
    """Count the rows of one DATA.

    Raises:
        MtlReError: it cannot be read, or none of its rows is valid.
    """
    counts = Counts()

    def reject(row: BadRow) -> None:
        counts.bad += 1
        if len(counts.first_bad) < LISTED:
            counts.first_bad.append(row)

    for example in read_examples(spec, taxonomy, reject, reading):
        counts.rows += 1
        counts.lengths[len(example.sentence)] += 1
        if example.label is None:
            counts.unlabelled += 1
            continue
        counts.labels[example.label] += 1
        counts.pairs[f"{example.subject.type}→{example.object.type}", example.label] += 1
    if counts.rows == 0:
        if not counts.bad:
            raise MtlReError(f"{spec}: no rows")
        cure = cures(counts.first_bad, len(counts.first_bad))
        raise MtlReError("; ".join([f"{counts.first_bad[0]}; no row can be used", *cure]))
    return counts


def short_names(specs: Sequence[str]) -> list[str]:
    """Return a name for each DATA in legends: the file name without extensions, numbered if two are equal.

    `sample:` and `hub:` sources keep their whole text.
    """
    names = [spec if spec.startswith(("sample:", "hub:")) else EXTENSIONS.sub("", Path(spec).name) for spec in specs]
    if len(set(names)) == len(names):
        return names
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]


# ---- sections: each draws its picture and returns its markdown ---------------------------------------------------


def _overview(files: Mapping[str, Counts], specs: Sequence[str]) -> list[str]:
    header = ["data", "rows", "labelled", "unlabelled", "bad rows left out", "labels that occur", "source"]
    rows, notes = [], []
    for (name, counts), spec in zip(files.items(), specs, strict=True):
        numbers = (counts.rows, counts.labelled, counts.unlabelled, counts.bad, len(counts.labels))
        rows.append([name, *(f"{number:,}" for number in numbers), spec])
        if counts.first_bad:
            bad = counts.first_bad[0]
            first = f"the first is row {bad.row} (its {escape(bad.field)})"
            notes += [f"{escape(name)}: {counts.bad:,} bad row(s) left out, {first}; `mtl-re check` shows them.", ""]
    shares = "Shares are of a file's labelled rows unless a heading says otherwise."
    return ["# The data", "", *table(header, rows), *undrawn("names", list(files)), shares, "", *notes]


def _label_sections(files: Mapping[str, Counts], output: Path, taxonomy: Taxonomy) -> Iterator[list[str]]:
    """Yield one section for all labels, one for the coarse classes, and one for the labels of each coarse class."""
    single = {label: (label,) for label in _ordered(taxonomy.labels, files)}
    yield _shares_section(f"All {len(single)} labels", single, files, output / "labels.png")
    groups = taxonomy.groups
    yield _shares_section(f"The {len(groups)} coarse classes", groups, files, output / "coarse.png")
    for number, (group, drawn) in enumerate(zip(groups, drawable(list(groups)), strict=True), start=1):
        if len(groups[group]) > 1:
            plain = re.fullmatch(r"\w+", group, re.ASCII)  # other names could become equal as names of files
            path = output / f"labels_{group if plain else f'class_{number}'}.png"
            own = {label: labels for label, labels in single.items() if label in groups[group]}
            title, drawn_title = (f"Labels of {name}, as shares of the {name} rows" for name in (group, drawn))
            yield _shares_section(title, own, files, path, drawn_title)


def _shares_section(
    title: str, classes: Mapping[str, Sequence[str]], files: Mapping[str, Counts], path: Path, drawn_title: str = ""
) -> list[str]:
    """Draw and tabulate how often each class occurs.

    Args:
        classes: class → its labels.
        drawn_title: of the picture, where it differs from the heading.
    """
    rows = {
        name: [sum(counts.labels[label] for label in labels) for labels in classes.values()]
        for name, counts in files.items()
    }
    _draw_shares(drawn_title or title, list(classes), rows, path)
    columns: list[Sequence[str]] = [[*classes, "all"]]
    for counts in rows.values():
        columns.append([f"{count:,}" for count in (*counts, sum(counts))])
        columns.append([f"{share:.2f}" for share in (*_shares(counts), sum(_shares(counts)))])
    header = ["label", *[cell for name in files for cell in (f"{name}: rows", "%")]]
    lines = [f"## {escape(title)}", "", f"![{escape(title)}]({path.name})", "", *undrawn("labels", list(classes))]
    return [*lines, *table(header, list(zip(*columns, strict=True)))]


def _shares(rows: Sequence[int]) -> list[float]:
    return [100 * count / max(sum(rows), 1) for count in rows]


def _draw_shares(title: str, classes: Sequence[str], files: Mapping[str, Sequence[int]], path: Path) -> None:
    """Draw bars of how often each class occurs, the files side by side."""
    series, texts = {}, {}
    for rows, drawn in zip(files.values(), drawable(list(files)), strict=True):
        legend = f"{drawn} (n = {sum(rows):,})"
        series[legend] = _shares(rows)
        texts[legend] = [f"{share:.1f} %  ({count:,})" for share, count in zip(series[legend], rows, strict=True)]
    height = 1.5 + len(classes) * (0.25 if len(files) == 1 else 0.17 * len(files) + 0.06)
    with picture(path, 8.5, height) as figure:
        axes = figure.add_subplot()
        bars(axes, classes, series, texts)
        axes.set_title(title if len(files) > 1 else f"{title} (n = {sum(next(iter(files.values()))):,})")
        axes.set_xlabel("share of rows, %")


def _lengths(files: Mapping[str, Counts], output: Path) -> list[str]:
    shown = max(counts.length_at(0.995) for counts in files.values())
    width = -(-shown // 50)
    edges = np.arange(0, shown + 2 * width, width)
    with picture(output / "lengths.png", 8.5, 4.2) as figure:
        axes = figure.add_subplot()
        for number, (counts, drawn) in enumerate(zip(files.values(), drawable(list(files)), strict=True)):
            lengths, rows = np.array(sorted(counts.lengths.items())).T
            shares, _ = np.histogram(np.minimum(lengths, edges[-1]), edges, weights=100 * rows / counts.rows)
            median, color = counts.length_at(0.5), COLORS[number % len(COLORS)]
            legend = f"{drawn} (n = {counts.rows:,}, median {median})"
            axes.stairs(shares, edges, color=color, linewidth=1.6, label=legend)
            axes.axvline(median, color=color, linestyle="--", linewidth=1)
        axes.set_title("Sentence length (dashed: median; the last bin holds all longer ones)")
        longest = max(counts.length_at(1.0) for counts in files.values())
        axes.set_xlabel(f"characters, in bins of {width} (longest {longest:,})")
        axes.set_ylabel("share of rows, %")
        axes.set_xlim(0, edges[-1])
        axes.grid(axis="y")
        legend_below(axes)
    header = ["data", "rows", "mean", *QUANTILES]
    table_rows = [
        [name, f"{counts.rows:,}", f"{counts.mean_length:.1f}", *map(counts.length_at, QUANTILES.values())]
        for name, counts in files.items()
    ]
    return ["## Sentence length in characters", "", "![Sentence length](lengths.png)", "", *table(header, table_rows)]


def _pairs(files: Mapping[str, Counts], output: Path, taxonomy: Taxonomy) -> list[str]:
    """Show how the rows of each label are distributed over pairs of entity types."""
    labels, columns = _ordered(taxonomy.labels, files), _columns(files)
    grids = {name: _grid(counts, labels, columns) for name, counts in files.items() if counts.labelled}
    _draw_pairs(grids, labels, columns, output / "pairs.png")
    title = "Entity types (subject→object) by label"
    lines = [f"## {title}", "", "![Entity types by label](pairs.png)", "", *undrawn("pairs", columns)]
    for name, grid in grids.items():
        body = [[label, *_cells(row)] for label, row in zip(labels, grid, strict=True)]
        total = ["all", *[f"{count:,}" for count in grid.sum(axis=0)]]
        lines += [f"### {escape(name)}: rows", "", *table(["label", *columns], [*body, total])]
    return lines


def _columns(files: Mapping[str, Counts]) -> list[str]:
    """Return the type pairs that have a column, in alphabetical order; the last column may be `OTHER`."""
    total: Counter[str] = Counter()
    for counts in files.values():
        for (pair, _), rows in counts.pairs.items():
            total[pair] += rows
    ranked = sorted(total, key=lambda pair: (-total[pair], pair))
    return sorted(ranked) if len(ranked) <= PAIRS_SHOWN else [*sorted(ranked[: PAIRS_SHOWN - 1]), OTHER]


def _grid(counts: Counts, labels: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Return the number of rows of each label (grid row) and type pair (grid column)."""
    grid = np.zeros((len(labels), len(columns)), dtype=np.int64)
    for (pair, label), rows in counts.pairs.items():
        grid[labels.index(label), columns.index(pair if pair in columns else OTHER)] += rows
    return grid


def _draw_pairs(grids: Mapping[str, np.ndarray], labels: Sequence[str], columns: Sequence[str], path: Path) -> None:
    width = 3.2 + len(grids) * max(0.52 * len(columns), 2.5)
    with picture(path, width, 1.9 + 0.25 * len(labels)) as figure:
        panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
        for axes, grid, drawn in zip(panels, grids.values(), drawable(list(grids)), strict=True):
            shares = 100 * grid / np.maximum(grid.sum(axis=1, keepdims=True), 1)
            heat_map(axes, shares, [_cells(row) for row in grid], labels, columns, rotation=60)
            axes.set_title(f"{drawn} (n = {grid.sum():,})")
            axes.set_xlabel("subject type → object type")
        title = "Rows by entity types and label (shade: share of the label's rows)"
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def _cells(counts: np.ndarray) -> list[str]:
    return [f"{count:,}" if count else "" for count in counts]


def _ordered(labels: Sequence[str], files: Mapping[str, Counts]) -> list[str]:
    """Return labels by their frequency in the first labelled file; labels of equal frequency keep their order."""
    first = next(counts for counts in files.values() if counts.labelled)
    return sorted(labels, key=lambda label: -first.labels[label])
