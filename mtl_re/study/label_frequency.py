"""Where the arms differ: their scores on rare and on frequent relations.

In: scored arms. Out: a section of the report and a picture. The relations that have gold rows are divided, by how many,
into three groups of (nearly) equally many labels. A group's F1 is the micro-F1 of its labels, its AUPRC the mean of
their areas.
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
from mtl_re.study.comparisons import Named, comparisons
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.study.study import Study
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
    """Return the relations that have gold rows in three groups of nearly equally many, rare ones first.

    Fewer than six make no groups.

    Args:
        support: (labels,) gold rows of each label; labels of equal support stay in the label set's order.
    """
    related = [number for number, label in enumerate(taxonomy.labels) if label != taxonomy.no_relation]
    ordered = sorted((number for number in related if support[number]), key=lambda number: support[number])
    return [np.array(part) for part in np.array_split(ordered, len(GROUPS))] if len(ordered) >= 6 else []


def frequency_section(study: Study, entries: Sequence[ScoredArm], folder: Path) -> list[str]:
    """Write the arms' scores by the labels' frequency, beside the baseline's, and draw the difference in each label.

    Empty for arms of different label sets, and for few labels.
    """
    by_name = {(entry.arm, entry.reading): entry for entry in entries}
    decoded = [((*name, seed), cell) for name, entry in by_name.items() for seed, cell in entry.cells.items()]
    cells = {key: LabelScores.of(cell) for key, cell in decoded}
    taxonomies = {cell.taxonomy.labels: cell.taxonomy for _, cell in decoded}
    if len(taxonomies) > 1:
        return []
    [taxonomy] = taxonomies.values()
    support = np.mean([scores.counts.sum(axis=1) for scores in cells.values()], axis=0)
    if not (groups := label_groups(support, taxonomy)):
        return []
    bases = {one.entry: one.base for one in comparisons(study, list(by_name))}
    columns = [(score, labels) for score in SCORES for labels in groups]
    rows = [
        [entry.name, *(_text(name, bases.get(name), cells, *column) for column in columns)]
        for name, entry in by_name.items()
    ]
    sizes = "; ".join(
        f"{name}: {len(labels)} labels of {support[labels].min():,.0f} to {support[labels].max():,.0f} rows"
        for name, labels in zip(GROUPS, groups, strict=True)
    )
    text = f"Relations by their number of gold rows among those scored ({sizes}; labels without one are left out). "
    text += "F1 is pooled over a group's labels, AUPRC is their mean; means over seeds"
    if bases:
        text += (
            ", and in brackets the difference from the baseline with its 95 % interval over seeds. It describes and "
            "tests nothing: no interval over rows is given, and of few rows it would be wide"
        )
    header = ["arm/reading", *(f"{score}, {name}" for score in SCORES for name in GROUPS)]
    lines = ["## Rare and frequent relations", "", f"{text}.", "", *table(header, rows)]
    labels = np.concatenate(groups)[::-1]
    if drawn := _label_differences(bases, cells, labels):
        names = [f"{taxonomy.labels[label]} ({support[label]:,.0f})" for label in labels]
        pictures.label_differences(drawn, names, folder / "labels.png")
        lines += ["![F1 of each relation minus the baseline's, by its number of gold rows](labels.png)", ""]
    return lines


Cells = Mapping[tuple[str, str, int], LabelScores]
"""By arm, reading and seed."""


def _by_seed(cells: Cells, name: Named) -> dict[int, LabelScores]:
    return {key[2]: scores for key, scores in cells.items() if key[:2] == name}


def _text(name: Named, base: Named | None, cells: Cells, score: str, labels: Indices) -> str:
    """Return an arm's mean over seeds in one group of labels, and its difference from the baseline."""
    ours = {seed: _score(scores, score, labels) for seed, scores in _by_seed(cells, name).items()}
    text = f"{np.mean(list(ours.values())):.1f}"
    theirs = {} if base is None else {s: _score(scores, score, labels) for s, scores in _by_seed(cells, base).items()}
    apart = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return f"{text} ({_difference(apart)})" if apart and np.isfinite(apart).all() else text


def _score(scores: LabelScores, name: str, labels: Indices) -> float:
    return scores.f1(labels) if name == "F1" else scores.auprc(labels)


def _difference(apart: Sequence[float]) -> str:
    found = seed_interval(apart)
    if found["ci"] is None:
        return f"{found['mean']:+.1f}"
    return f"{found['mean']:+.1f} [{found['ci'][0]:+.1f}, {found['ci'][1]:+.1f}]"


def _label_differences(bases: Mapping[Named, Named], cells: Cells, labels: Indices) -> dict[str, Floats]:
    """Return (seeds, labels) differences in F1 from the baseline, of every other arm under its first decoding."""
    found: dict[str, Floats] = {}
    for arm in dict.fromkeys(name[0] for name, base in bases.items() if name[0] != base[0]):
        name = next(name for name in bases if name[0] == arm)
        ours, theirs = _by_seed(cells, name), _by_seed(cells, bases[name])
        if common := sorted(set(ours) & set(theirs)):
            found["/".join(name)] = np.array(
                [[ours[seed].f1(one) - theirs[seed].f1(one) for one in labels[:, None]] for seed in common]
            )
    return found
