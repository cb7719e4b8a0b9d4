"""`mtl-re heads`: the labels of a data file → the two-level map that `model.heads` takes, to be read and edited.

Enters: DATA with labels of any set. Leaves: a YAML file. The coarse class of a label is what stands before its first
`:` or `/` (`people` of NYT's `/people/person/born`); a label without either is a class of its own. Nothing is decided
in silence: rows are counted beside each label, and rare labels and spellings that resemble a more frequent label are
marked.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mtl_re.config import HeadsConfig
from mtl_re.data.readers import read_rows
from mtl_re.data.validation import UNLABELLED, WITHHELD, is_absent, literal
from mtl_re.errors import MtlReError, RowError
from mtl_re.files import write_text
from mtl_re.taxonomy import NO_RELATION, ROOT_NAMES, Taxonomy

RARE = 10
"""A label with fewer rows than this is marked: a head hardly learns it."""
SIMILAR = 0.9
"""Ratio of matching characters (difflib) from which a rare label is taken for another one misspelt."""
NO_RELATION_NAMES = (NO_RELATION, "NA", "None", "Other", "no-relation", "norelation", "관계없음", "관계_없음")
"""What data sets call "no relation"; the first of them that occurs is taken."""


@dataclass
class LabelCounts:
    """Labels of a file.

    Attributes:
        rows: label → rows. subjects: coarse class → subject type → rows.
    """

    rows: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def coarse_class(label: str) -> str:
    """Return what stands before the first `:` or `/` that has something before it, made fit for the name of a head (no
    dots).

    A class may not be called like the root head, so that one gets an underscore.
    """
    parts = (part.strip() for part in re.split(r"[:/]", label))
    name = next(filter(None, parts), "_").replace(".", "_")
    return f"{name}_" if name in ROOT_NAMES.values() else name


def count_labels(spec: str) -> LabelCounts:
    """Count the labels of DATA; rows without one are skipped.

    Raises:
        MtlReError: DATA cannot be read, a label is not text, or no row has one.
    """
    counts = LabelCounts()
    for raw in read_rows(spec):
        label = raw.fields.get("label")
        if is_absent(label, blank=True) or label in (UNLABELLED, *WITHHELD) or raw.fault is not None:
            continue
        if not isinstance(label, str) or label.isdecimal():
            what = f"label {label!r} is a number, whose order is not known; `mtl-re heads` needs names"
            raise MtlReError(f"{spec}:{raw.number}: {what}")
        counts.rows[label] += 1
        subject = raw.fields.get("subject_entity")
        if isinstance(subject, str):
            with suppress(RowError):  # `check` names it; here it is one row fewer to count types by
                subject = literal(subject, "subject_entity")
        if isinstance(subject, Mapping) and isinstance(subject.get("type"), str):
            counts.subjects[coarse_class(label)][subject["type"]] += 1
    if not counts.rows:
        fields = ", ".join(next(iter(read_rows(spec))).fields)
        raise MtlReError(f"{spec}: no row has a label (the first row has {fields})")
    return counts


def no_relation_of(labels: Mapping[str, int]) -> str | None:
    """Return the label that means "no relation", by its name; None where no name is known to."""
    lowered = {label.lower(): label for label in labels}
    return next((lowered[name.lower()] for name in NO_RELATION_NAMES if name.lower() in lowered), None)


def resembles(label: str, counts: Mapping[str, int]) -> str | None:
    """Return a label at least ten times as frequent that differs in a letter, in case or in separators only."""

    def plain(text: str) -> str:
        return re.sub(r"[\W_]+", "", text).lower()

    for other, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        if other == label or count < 10 * counts[label]:
            continue
        one, two = plain(label), plain(other)
        if one == two or difflib.SequenceMatcher(None, one, two).ratio() >= SIMILAR:
            return other
    return None


def write_heads(spec: str, options: HeadsConfig) -> str:
    """Write the map of a file's labels, and return the path (`mtl-re heads`).

    Raises:
        MtlReError: see `heads_yaml`; or the file cannot be written.
    """
    write_text(Path(options.output), heads_yaml(spec))
    return options.output


def heads_yaml(spec: str) -> str:
    """Return the YAML text of the map.

    Raises:
        MtlReError: see `count_labels`; or the labels do not make a taxonomy (a single label, say).
    """
    counts = count_labels(spec)
    none = no_relation_of(counts.rows)
    groups: dict[str, list[str]] = {}
    for label, _ in sorted(counts.rows.items(), key=lambda pair: (pair[0] != none, -pair[1], pair[0])):
        name = coarse_class(label)
        if label == none and "." not in label:
            name = label
        elif none is not None and name == none:  # `Other:thing` beside `Other`, which must be alone
            name = f"{name}_"
        groups.setdefault(name, []).append(label)
    types = {
        name: tuple(kind for kind, _ in counts.subjects[name].most_common())
        for name, labels in groups.items()
        if labels != [none] and counts.subjects.get(name)
    }
    labels = tuple(label for group in groups.values() for label in group)
    Taxonomy(labels, {name: tuple(group) for name, group in groups.items()}, no_relation=none, subject_types=types)
    return _written(spec, counts.rows, groups, none, types)


def _written(
    spec: str,
    counts: Counter[str],
    groups: Mapping[str, list[str]],
    none: str | None,
    types: Mapping[str, tuple[str, ...]],
) -> str:
    lines = [
        "# Written by mtl-re heads.",
        f"# Labels of {spec}: {counts.total():,} labelled rows, {len(counts)} labels, {len(groups)} coarse classes.",
        "# Check the classes (move labels where you like), then: mtl-re train ... --model.heads THIS_FILE",
        f"no_relation: {_quoted(none) if none is not None else 'null   # no label is known to mean it; name it here'}",
        "groups:",
    ]
    for name, group in groups.items():
        lines.append(f"  {_quoted(name)}:   # {sum(counts[label] for label in group):,} rows")
        lines += [f"    - {_quoted(label)}   # {_remark(label, counts)}" for label in group]
    if types:
        lines.append("subject_types:   # as they occur; a class that is left out takes subjects of any type")
        lines += [f"  {_quoted(name)}: [{', '.join(map(_quoted, kinds))}]" for name, kinds in types.items()]
    return "\n".join(lines) + "\n"


def _remark(label: str, counts: Counter[str]) -> str:
    remark = f"{counts[label]:,} rows"
    if (other := resembles(label, counts)) is not None:
        remark += f"; SPELLING? resembles {other} ({counts[other]:,} rows)"
    elif counts[label] < RARE:
        remark += "; rare"
    return remark


def _quoted(text: str) -> str:
    """Return a YAML scalar that is read back as this text, whatever it looks like."""
    return json.dumps(text, ensure_ascii=False)
