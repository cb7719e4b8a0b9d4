"""Which arms of a study are compared with its baseline, and in which scores.

AUPRC is of the probabilities, which do not depend on the gate: decodings of an arm that differ in the gate alone are
one comparison in it, and none where the baseline has the same probabilities. Points of a mixture design are not
compared one by one: their surface answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtl_re.scoring.significance import COMPARED_SCORES
from mtl_re.study.study import Study, parts_only

Named = tuple[str, str]
"""An arm (or a composition) and a reading."""


@dataclass(frozen=True)
class Comparison:
    """An arm under one decoding, what it is compared with, and the scores in which it is."""

    entry: Named
    base: Named
    scores: tuple[str, ...]


def planned_names(study: Study) -> list[Named]:
    """Return what the report will compare, once all cells are finished."""
    parts = {arm: [arm] for arm in study.other_arms if arm not in parts_only(study)}
    parts |= {name: list(lent.values()) for name, lent in study.composed.items()}
    configs = {arm: study.cell(arm, study.arms[arm], study.seeds[0]).options for arm in study.other_arms}
    return [
        (name, reading)
        for name, arms in parts.items()
        for reading, decoding in study.readings.items()
        if not decoding.calibrate or all(configs[arm].data.validated for arm in arms)
    ]


def comparisons(study: Study, names: Sequence[Named]) -> list[Comparison]:
    """Return the comparisons of arms with the baseline; none without one.

    Args:
        names: What there is to compare, the baseline among it.
    """
    if study.baseline is None:
        return []
    found: list[Comparison] = []
    seen: set[object] = set()
    designed = {arm for arm, _ in study.runs}
    for arm, reading in names:
        base = (study.baseline[0], study.baseline[1] or reading)
        if base == (arm, reading) or base not in names or arm in designed:
            continue
        ours, theirs = ((name, replace(study.readings[key], gate="soft")) for name, key in ((arm, reading), base))
        known = ours == theirs or (ours, theirs) in seen
        seen.add((ours, theirs))
        scores = tuple(score for score in COMPARED_SCORES if score != "auprc" or not known)
        found.append(Comparison((arm, reading), base, scores))
    return found
