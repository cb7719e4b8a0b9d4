"""Where the arms differ: their scores on rare and on frequent relations.

In: scored arms. Out: a section of the report and a picture. The relations that have gold rows are divided, by how many,
into three groups of equally many labels. A group's F1 is the micro-F1 of its labels, its AUPRC the mean of their areas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtl_re.markdown import table
from mtl_re.scoring.metrics import Floats, Indices, auprc_by_class, confusion_counts
from mtl_re.scoring.significance import seed_interval
from mtl_re.study import pictures
from mtl_re.study.cell_logits import DecodedCell
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.taxonomy import Taxonomy

GROUPS = ("rare", "middle", "frequent")
SCORES = ("F1", "AUPRC")


@dataclass(frozen=True)
class LabelScores:
    """Scores of one cell by label, in %.

    Attributes:
        counts: (labels, labels) rows by gold and predicted label.
        areas: (labels,) under the precision-recall curves; NaN for labels without a gold row.
    """

    counts: Floats
    areas: Floats

    @classmethod
    def of(cls, cell: DecodedCell) -> LabelScores:
        """Score a decoded cell."""
        areas = auprc_by_class(cell.gold, cell.probs)
        counts = confusion_counts(cell.gold, cell.labels, len(cell.taxonomy.labels))
        return cls(counts, np.where(counts.sum(axis=1) > 0, areas, np.nan))

    def f1(self, labels: Indices) -> float:
        """Return the micro-F1 of some labels, in %; 0 where none of them is gold or predicted."""
        hits = np.diag(self.counts)[labels].sum()
        both = self.counts.sum(axis=0)[labels].sum() + self.counts.sum(axis=1)[labels].sum()
        return 200 * float(hits / both) if both else 0.0

    def auprc(self, labels: Indices) -> float:
        """Return the mean area of some labels, in %."""
        return float(np.nanmean(self.areas[labels]))


def label_groups(support: Floats, taxonomy: Taxonomy) -> list[Indices]:
    """Return the relations that have gold rows in three groups of equally many, rare ones first; none if there are
    fewer than six.

    Args:
        support: (labels,) gold rows of each label; labels of equal support stay in the label set's order.
    """
    related = [number for number, label in enumerate(taxonomy.labels) if label != taxonomy.no_relation]
    ordered = sorted((number for number in related if support[number]), key=lambda number: support[number])
    return [np.array(part) for part in np.array_split(ordered, len(GROUPS))] if len(ordered) >= 6 else []


def frequency_section(entries: Sequence[ScoredArm], baseline: tuple[str, str | None] | None, folder: Path) -> list[str]:
    """Write the arms' scores by the labels' frequency, beside the baseline's, and draw the difference in each label."""
    cells = {(entry.name, seed): LabelScores.of(cell) for entry in entries for seed, cell in entry.cells.items()}
    support = np.mean([scores.counts.sum(axis=1) for scores in cells.values()], axis=0)
    taxonomy = next(iter(entries[0].cells.values())).taxonomy
    groups = label_groups(support, taxonomy)
    if not groups:
        return []
    bases = {entry.name: _base(entry, entries, baseline) for entry in entries}
    columns = [(score, labels) for score in SCORES for labels in groups]
    rows = [[e.name, *(_cell(e, bases[e.name], cells, *column) for column in columns)] for e in entries]
    sizes = "; ".join(
        f"{name}: {len(labels)} labels of {support[labels].min():,.0f} to {support[labels].max():,.0f} rows"
        for name, labels in zip(GROUPS, groups, strict=True)
    )
    text = f"Relations by their number of gold rows ({sizes}). F1 is pooled over a group's labels, AUPRC is their mean"
    if any(base is not None for base in bases.values()):
        text += "; in brackets the difference from the baseline with its 95 % interval over seeds, not corrected"
    header = ["arm/reading", *(f"{score}, {name}" for score in SCORES for name in GROUPS)]
    lines = ["## Rare and frequent relations", "", f"{text}.", "", *table(header, rows)]
    labels = np.concatenate(groups)[::-1]
    if drawn := _label_differences(entries, bases, cells, labels):
        names = [f"{taxonomy.labels[label]} ({support[label]:,.0f})" for label in labels]
        pictures.label_differences(drawn, names, folder / "labels.png")
        lines += ["![F1 of each relation minus the baseline's, by its number of gold rows](labels.png)", ""]
    return lines


def _cell(
    entry: ScoredArm,
    base: ScoredArm | None,
    cells: Mapping[tuple[str, int], LabelScores],
    score: str,
    labels: Indices,
) -> str:
    """Return an arm's mean over seeds in one group of labels, and its difference from the baseline."""
    values = {seed: _score(cells[entry.name, seed], score, labels) for seed in entry.cells}
    text = f"{np.mean(list(values.values())):.1f}"
    if base is None:
        return text
    apart = [values[seed] - _score(cells[base.name, seed], score, labels) for seed in values if seed in base.cells]
    return f"{text} ({_difference(apart)})"


def _score(scores: LabelScores, name: str, labels: Indices) -> float:
    return scores.f1(labels) if name == "F1" else scores.auprc(labels)


def _base(entry: ScoredArm, entries: Sequence[ScoredArm], baseline: tuple[str, str | None] | None) -> ScoredArm | None:
    """Return what an arm is compared with; None for the baseline itself and where there is none in common."""
    if baseline is None:
        return None
    arm, reading = baseline
    named = (one for one in entries if (one.arm, one.reading) == (arm, reading or entry.reading))
    base = next(named, None)
    return base if base is not None and base is not entry and set(base.cells) & set(entry.cells) else None


def _difference(apart: Sequence[float]) -> str:
    found = seed_interval(apart)
    if found["ci"] is None:
        return f"{found['mean']:+.1f}"
    return f"{found['mean']:+.1f} [{found['ci'][0]:+.1f}, {found['ci'][1]:+.1f}]"


def _label_differences(
    entries: Sequence[ScoredArm],
    bases: Mapping[str, ScoredArm | None],
    cells: Mapping[tuple[str, int], LabelScores],
    labels: Indices,
) -> dict[str, Floats]:
    """Return (seeds, labels) differences in F1 from the baseline, of every arm under its first decoding."""
    found: dict[str, Floats] = {}
    for entry in entries:
        base = bases[entry.name]
        if base is None or entry.arm in {name.split("/")[0] for name in found}:
            continue
        found[entry.name] = np.array(
            [
                [cells[entry.name, seed].f1(one) - cells[base.name, seed].f1(one) for one in labels[:, None]]
                for seed in sorted(set(entry.cells) & set(base.cells))
            ]
        )
    return found
