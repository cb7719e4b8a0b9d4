"""Rows → a warning where their subjects' types contradict their labels so often that the data must be read wrongly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mtl_re.data.validation import Example
from mtl_re.taxonomy import Taxonomy

CONTRARY = 0.1
"""Share of related rows whose subject may be of another type than the label's class takes."""


@dataclass
class SubjectTypes:
    """How often the subject's type contradicts a row's label: is not one that the label's coarse class takes.

    Attributes:
        related: rows with a relation whose coarse class says what it takes.
        contrary: type → those of them that it contradicts.
    """

    taxonomy: Taxonomy
    related: int = 0
    contrary: Counter[str] = field(default_factory=Counter)

    def add(self, row: Example) -> None:
        """Count a row."""
        if row.label is None or row.label == self.taxonomy.no_relation:
            return
        if taken := (self.taxonomy.subject_types or {}).get(self.taxonomy.coarse_of(row.label)):
            self.related += 1
            if row.subject.type not in taken:
                self.contrary[row.subject.type] += 1

    def warning(self, source: str) -> str | None:
        """Return a warning where types contradict labels so often that the data must be read wrongly.

        On 1,567 related rows of KLUE-RE's validation split 9 do; with label numbers read in another order 672, with
        subject and object swapped 1,243.
        """
        contrary = self.contrary.total()
        if self.related == 0 or contrary <= CONTRARY * self.related:
            return None
        taken = sorted({kind for kinds in (self.taxonomy.subject_types or {}).values() for kind in kinds})
        if contrary == self.related and not self.contrary.keys() & set(taken):
            named = ", ".join(f"{kind} ({count:,})" for kind, count in self.contrary.most_common(6))
            what = f"no subject of a relation has a type that relations take ({', '.join(taken)}), but {named}"
            return f"warning: {source}: {what}; are the entity types named otherwise, or subject and object swapped?"
        what = (
            f"in {contrary:,} of {self.related:,} related rows the subject's type contradicts the label's coarse class"
        )
        return f"warning: {source}: {what}; are subject and object swapped, or the labels numbered in another order?"
