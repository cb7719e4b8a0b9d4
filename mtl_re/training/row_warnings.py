"""Training and validation rows → what one should know of them before the first step, or why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mtl_re.config import Config
from mtl_re.data.splits import Splits
from mtl_re.data.subject_types import SubjectTypes
from mtl_re.data.unicode_form import composed
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy

KNOWN_ENOUGH = 0.05
"""Share of unknown tokens from which on a warning says so (KLUE-RE under its own encoders: below 0.01)."""


def refuse_unknown(config: Config, share: float) -> None:
    """Raise MtlReError where the encoder's vocabulary hardly knows the training text."""
    if share > config.data.max_unknown:
        encoder = config.model.init or config.model.encoder
        what = f"{100 * share:.0f} % of the training text's tokens are unknown to {encoder} ([UNK])"
        cure = "take an encoder for this language, or --data.normalise nfc for text from macOS"
        raise MtlReError(f"model.encoder: {what}; {cure} (--data.max_unknown {config.data.max_unknown:g} is the bound)")


def warnings_of(rows: Splits, taxonomy: Taxonomy, trained: Sequence[str]) -> list[str]:
    """Return what a person should know of the training rows before the first step.

    Args:
        trained: names of the trained heads.
    """
    found = []
    if rows.unknown > KNOWN_ENOUGH:
        found.append(f"warning: {100 * rows.unknown:.1f} % of the training tokens are unknown to the encoder ([UNK])")
    labels: Counter[str | None] = Counter()
    subjects = SubjectTypes(taxonomy)
    held_out, trained_on = {composed(example.sentence) for example in rows.valid}, set[str]()
    for row in rows.train:  # once: more rows than fit into memory lie in a file
        labels[row.label] += 1
        subjects.add(row)
        if (sentence := composed(row.sentence)) in held_out:
            trained_on.add(sentence)
    for head in taxonomy.fine:
        if head.name in trained and not any(labels[label] for label in taxonomy.groups[head.name]):
            found.append(f"warning: the head {head.name} has no training row: it stays untrained")
    if len(labels) < 2:
        found.append(f"warning: all training rows have the label {next(iter(labels))}")
    elif absent := [name for name, group in taxonomy.groups.items() if not any(labels[label] for label in group)]:
        found.append(f"warning: no training row is of the coarse class {', '.join(absent)}")
    elif missing := [label for label in taxonomy.labels if not labels[label]]:
        found.append(f"warning: {len(missing)} label(s) have no training row: {', '.join(missing[:8])}")
    if warning := subjects.warning("training rows"):
        found.append(warning)
    if shared := sum(composed(example.sentence) in trained_on for example in rows.valid):
        what = "share their sentence with a training row (asked of other entities)"
        found.append(f"warning: {shared:,} of {len(rows.valid):,} validation rows {what}; scores on them are too high")
    return found
