"""The page's texts in Korean and English (texts.yaml): its sentences, entity types, and explanations of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml

Language = Literal["ko", "en"]
_Translations = dict[Language, dict[str, str]]

_READ: dict[str, _Translations] = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"))
TEXTS, TYPES, GLOSSES = _READ["texts"], _READ["types"], _READ["glosses"]
