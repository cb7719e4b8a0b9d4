"""What is in the data: how often each label occurs, how long sentences are, which entity types meet in which label.

Enters: DATA, one or several, each streamed once. Leaves: a folder with pictures and the same as tables in `explore.md`.
Several files are drawn next to each other as shares of their own labelled rows, so that a shift of the prior is seen
at once. The texts of the data are counted, never written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtl_re.data.loading import read_examples
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError
from mtl_re.figures import (
    COLORS,
    bars,
    drawable,
    escape,
    heat_map,
    legend_below,
    picture,
    table,
    undrawn,
    write_markdown,
)
from mtl_re.taxonomy import Taxonomy

PAIRS_SHOWN = 20
"""Entity-type pairs with a column of their own; rarer ones share the last."""
OTHER = "other"
QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
EXTENSIONS = re.compile(r"(\.(json|jsonl|csv|parquet|gz))+$")


@dataclass
class Counts:
    """What was counted in one DATA.

    Attributes:
        bad, first_bad: rows left out, and the first of them.
        labels: of labelled rows. lengths: characters of a sentence → rows, unlabelled ones too.
        pairs: (subject type → object type, label) → labelled rows.
    """

    rows: int = 0
    unlabelled: int = 0
    bad: int = 0
    first_bad: BadRow | None = None
    labels: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def labelled(self) -> int:
        """Rows that shares are shares of."""
        return self.rows - self.unlabelled

    @property
    def mean_length(self) -> float:
        """Characters of a sentence, averaged over rows."""
        return sum(length * rows for length, rows in self.lengths.items()) / self.rows

    def length_at(self, quantile: float) -> int:
        """The smallest length that at least this share of the rows does not exceed."""
        lengths = sorted(self.lengths)
        running = np.cumsum([self.lengths[length] for length in lengths])
        return lengths[int(np.searchsorted(running, quantile * running[-1] - 1e-9))]


def explore(specs: Sequence[str], output: Path, taxonomy: Taxonomy) -> Path:
    """Count every DATA and write pictures and tables.

    Bad rows are left out and counted (`mtl-re check` names them).

    Args:
        specs: DATA, as for every command; several are compared.
        output: folder for the pictures and `explore.md`; made if it is missing.

    Returns:
        The path of `explore.md`.

    Raises:
        MtlReError: DATA cannot be read or has no usable row, or the folder cannot be written.
    """
    files = {name: count(spec, taxonomy) for name, spec in zip(short_names(specs), specs, strict=True)}
    sections = [_overview(files, specs)]
    if any(counts.labelled for counts in files.values()):
        sections += [_labels(files, output, taxonomy), _coarse(files, output, taxonomy)]
        sections += [
            _group(files, output, taxonomy, place)
            for place, labels in enumerate(taxonomy.groups.values())
            if len(labels) > 1
        ]
    sections.append(_lengths(files, output))
    if any(counts.labelled for counts in files.values()):
        sections.append(_pairs(files, output, taxonomy))
    path = output / "explore.md"
    write_markdown(path, [line for section in sections for line in section])
    return path


def count(spec: str, taxonomy: Taxonomy) -> Counts:
    """Stream one DATA.

    Raises:
        MtlReError: it cannot be read, or none of its rows can be used.
    """
    found = Counts()

    def reject(row: BadRow) -> None:
        found.bad += 1
        found.first_bad = found.first_bad or row

    for example in read_examples(spec, taxonomy, "skip", reject):
        found.rows += 1
        found.lengths[len(example.sentence)] += 1
        if example.label is None:
            found.unlabelled += 1
            continue
        found.labels[example.label] += 1
        found.pairs[f"{example.subject.type}→{example.object.type}", example.label] += 1
    if found.rows == 0:
        raise MtlReError(f"{found.first_bad}; no row can be used" if found.bad else f"{spec}: no rows")
    return found


def short_names(specs: Sequence[str]) -> list[str]:
    """A name for each DATA to stand in legends: a file's without folder and extension, numbered if two are equal.

    `sample:` and `hub:` sources keep their text.
    """
    names = [spec if spec.startswith(("sample:", "hub:")) else EXTENSIONS.sub("", Path(spec).name) for spec in specs]
    if len(set(names)) == len(names):
        return names
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]


# ---- sections: each draws its picture and gives its markdown -----------------------------------------------------


def _overview(files: Mapping[str, Counts], specs: Sequence[str]) -> list[str]:
    header = ["data", "rows", "labelled", "unlabelled", "bad rows left out", "labels that occur", "source"]
    rows = [
        [
            name,
            *(
                f"{value:,}"
                for value in (counts.rows, counts.labelled, counts.unlabelled, counts.bad, len(counts.labels))
            ),
            spec,
        ]
        for (name, counts), spec in zip(files.items(), specs, strict=True)
    ]
    notes = [
        f"{escape(name)}: {counts.bad:,} bad row(s) left out, the first is row {counts.first_bad.row} "
        f"(its {escape(counts.first_bad.field)}); `mtl-re check` shows them."
        for name, counts in files.items()
        if counts.first_bad is not None
    ]
    shares = "Shares are of a file's labelled rows unless a heading says otherwise."
    return [
        "# The data",
        "",
        *table(header, rows),
        *undrawn("names", list(files)),
        shares,
        "",
        *[part for note in notes for part in (note, "")],
    ]


def _labels(files: Mapping[str, Counts], output: Path, taxonomy: Taxonomy) -> list[str]:
    title, labels = f"All {len(taxonomy.labels)} labels", _ordered(taxonomy.labels, files)
    found = {name: [counts.labels[label] for label in labels] for name, counts in files.items()}
    _draw_shares(title, labels, found, output / "labels.png")
    return _share_tables(title, labels, found, "labels.png")


def _coarse(files: Mapping[str, Counts], output: Path, taxonomy: Taxonomy) -> list[str]:
    title, groups = f"The {len(taxonomy.groups)} coarse classes", taxonomy.groups
    found = {
        name: [sum(counts.labels[label] for label in labels) for labels in groups.values()]
        for name, counts in files.items()
    }
    _draw_shares(title, list(groups), found, output / "coarse.png")
    return _share_tables(title, list(groups), found, "coarse.png")


def _group(files: Mapping[str, Counts], output: Path, taxonomy: Taxonomy, place: int) -> list[str]:
    """The labels of one coarse class among themselves."""
    groups = list(taxonomy.groups)
    group, drawn = groups[place], drawable(groups)[place]
    labels = _ordered(taxonomy.groups[group], files)
    found = {name: [counts.labels[label] for label in labels] for name, counts in files.items()}
    plain = re.fullmatch(r"\w+", group, re.ASCII)  # of other names, what is left could be the same for two
    picture_name = f"labels_{group if plain else f'class_{place + 1}'}.png"
    _draw_shares(f"Labels of {drawn}, as shares of the {drawn} rows", labels, found, output / picture_name)
    return _share_tables(f"Labels of {group}, as shares of the {group} rows", labels, found, picture_name)


def _shares(rows: Sequence[int]) -> list[float]:
    return [100 * count / max(sum(rows), 1) for count in rows]


def _draw_shares(title: str, classes: Sequence[str], files: Mapping[str, Sequence[int]], path: Path) -> None:
    """Bars of how often each class occurs, the files next to each other."""
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


def _share_tables(title: str, classes: Sequence[str], files: Mapping[str, Sequence[int]], image: str) -> list[str]:
    columns: list[Sequence[str]] = [[*classes, "all"]]
    for rows in files.values():
        columns.append([f"{count:,}" for count in (*rows, sum(rows))])
        columns.append([f"{share:.2f}" for share in (*_shares(rows), sum(_shares(rows)))])
    header = ["label", *[cell for name in files for cell in (f"{name}: rows", "%")]]
    lines = [f"## {escape(title)}", "", f"![{escape(title)}]({image})", "", *undrawn("labels", classes)]
    return [*lines, *table(header, list(zip(*columns, strict=True)))]


def _lengths(files: Mapping[str, Counts], output: Path) -> list[str]:
    shown = max(counts.length_at(0.995) for counts in files.values())
    width = -(-shown // 50)
    edges = np.arange(0, shown + 2 * width, width)
    with picture(output / "lengths.png", 8.5, 4.2) as figure:
        axes = figure.add_subplot()
        for place, (counts, drawn) in enumerate(zip(files.values(), drawable(list(files)), strict=True)):
            lengths, rows = np.array(sorted(counts.lengths.items())).T
            shares, _ = np.histogram(np.minimum(lengths, edges[-1]), edges, weights=100 * rows / counts.rows)
            median, color = counts.length_at(0.5), COLORS[place % len(COLORS)]
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
    """For every label, how its rows spread over pairs of entity types."""
    labels, columns = _ordered(taxonomy.labels, files), _columns(files)
    grids = {name: _grid(counts, labels, columns) for name, counts in files.items() if counts.labelled}
    _draw_pairs(grids, labels, columns, output / "pairs.png")
    title = "Entity types (subject→object) by label"
    lines = [f"## {title}", "", "![Entity types by label](pairs.png)", "", *undrawn("pairs", columns)]
    for name, grid in grids.items():
        body = [
            [label, *[f"{count:,}" if count else "" for count in row]] for label, row in zip(labels, grid, strict=True)
        ]
        total = ["all", *[f"{count:,}" for count in grid.sum(axis=0)]]
        lines += [f"### {escape(name)}: rows", "", *table(["label", *columns], [*body, total])]
    return lines


def _columns(files: Mapping[str, Counts]) -> list[str]:
    """The pairs of types with a column, in alphabetical order; the rare ones of a long tail share the last."""
    total: Counter[str] = Counter()
    for counts in files.values():
        for (pair, _), rows in counts.pairs.items():
            total[pair] += rows
    ranked = sorted(total, key=lambda pair: (-total[pair], pair))
    return sorted(ranked) if len(ranked) <= PAIRS_SHOWN else [*sorted(ranked[: PAIRS_SHOWN - 1]), OTHER]


def _grid(counts: Counts, labels: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Rows of each label (row) and pair of types (column)."""
    grid = np.zeros((len(labels), len(columns)), dtype=np.int64)
    for (pair, label), rows in counts.pairs.items():
        grid[labels.index(label), columns.index(pair if pair in columns else OTHER)] += rows
    return grid


def _draw_pairs(grids: Mapping[str, np.ndarray], labels: Sequence[str], columns: Sequence[str], path: Path) -> None:
    width = 3.2 + len(grids) * max(0.52 * len(columns), 2.5)
    with picture(path, width, 1.9 + 0.25 * len(labels)) as figure:
        panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
        for axes, (name, grid), drawn in zip(panels, grids.items(), drawable(list(grids)), strict=True):
            sums = grid.sum(axis=1, keepdims=True)
            shares = 100 * grid / np.maximum(sums, 1)
            texts = [["" if not rows else f"{rows:,}" for rows in line] for line in grid]
            heat_map(axes, shares, texts, labels, columns, rotation=60)
            axes.set_title(f"{drawn} (n = {grids[name].sum():,})")
            axes.set_xlabel("subject type → object type")
        figure.suptitle(
            "Rows by entity types and label (shade: share of the label's rows)", x=0.01, ha="left", fontsize=12
        )


# ---- small things ------------------------------------------------------------------------------------------------


def _ordered(labels: Sequence[str], files: Mapping[str, Counts]) -> list[str]:
    """Labels by how often the first labelled file has them, then in their own order."""
    first = next(counts for counts in files.values() if counts.labelled)
    return sorted(labels, key=lambda label: -first.labels[label])
