"""The page's texts in Korean and English (texts.yaml): its sentences, entity types, explanations of labels,
and a text to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

Language = Literal["ko", "en"]
_Translations = dict[Language, dict[str, str]]

_READ: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"))
TEXTS: _Translations = _READ["texts"]
TYPES: _Translations = _READ["types"]
GLOSSES: _Translations = _READ["glosses"]
EXAMPLE: str = _READ["example"]
"""A text to try, its entities written `[word|type]`."""
