"""By which fields the files of other tools are known, so that a message can name the format (`convert` reads them)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_SIGNS: dict[str, frozenset[str]] = {
    "tacred": frozenset({"token", "subj_start", "obj_start"}),
    "opennre": frozenset({"h", "t"}),
    "label-studio": frozenset({"data", "annotations"}),
    "doccano": frozenset({"text", "entities", "relations"}),
    "korre": frozenset({"subj_name", "obj_name"}),
}


def format_of(fields: Iterable[str] | Mapping[str, Any]) -> str | None:
    """Return the format whose records have such fields; None where no format is known by its fields."""
    names = set(fields)
    for name, signs in _SIGNS.items():
        if signs <= names:
            return name
    if isinstance(fields, Mapping) and "entity_type" in str(fields.get("subject_entity", "")):
        return "boostcamp"
    if names & {"sentence", "text"} and not names & {"subject_entity", "object_entity"} and len(names) >= 3:
        return "columns"
    return None
