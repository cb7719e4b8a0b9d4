"""Which pieces of a vocabulary are kept, and why.

Enters: a vocabulary, how often text uses each piece and each character. Leaves: ids by reason. A piece is kept if text
uses it `min_count` times; special pieces, single characters, and what the marker schemes and their question write are
kept whatever text uses, because without them words that text happened not to use, or every marked row, would end as
unknown. Single characters are those that text uses at all, those of no script (digits, signs) and all those of a script
that has at least `SCRIPT_SHARE` of the text's letters: a new name is written in letters of the language.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.trim.vocabulary import Vocabulary

SCRIPT_SHARE = 0.001
"""Share of the text's letters from which on all single characters of a script are kept."""


@dataclass
class Use:
    """What text uses.

    Attributes:
        pieces: (ids,) int64, how often; of a row with entities, in its sentence or in the one with blanks around the
            entities, as markers set them apart, whichever is more.
        characters: how often each occurs.
    """

    pieces: np.ndarray
    characters: Counter[str] = field(default_factory=Counter)


@cache
def script_of(character: str) -> str:
    """Return the script of a letter or accent by its Unicode name (HANGUL, LATIN, CJK, ...); empty for what has none,
    such as digits and signs."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    return unicodedata.name(character, "UNNAMED").split(" ")[0].split("-")[0]


def scripts_of(characters: Mapping[str, int]) -> dict[str, int]:
    """Return how often letters of each script occur, the most frequent first."""
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        if script := script_of(character):
            counts[script] += count
    return dict(counts.most_common())


def kept_scripts(characters: Mapping[str, int]) -> list[str]:
    """Return the scripts whose single characters are all kept."""
    counts = scripts_of(characters)
    return [script for script, count in counts.items() if count >= SCRIPT_SHARE * sum(counts.values())]


def chosen_ids(
    vocabulary: Vocabulary, tokenizer: Any, use: Use, min_count: int, wanted: Iterable[int]
) -> dict[str, set[int]]:
    """Return the ids to keep by reason, before `Vocabulary.closed`.

    Args:
        wanted: ids to keep whatever text uses.
    """
    special = {index for index in tokenizer.all_special_ids if index is not None}
    return {
        "special": special | set(vocabulary.added.values()),
        "markers": marker_ids(tokenizer),
        "characters": character_ids(vocabulary, use.characters),
        "text": {int(index) for index in np.flatnonzero(use.pieces >= min_count)},
        "keep": set(wanted),
    }


def character_ids(vocabulary: Vocabulary, characters: Mapping[str, int]) -> set[int]:
    """Return the ids of the pieces that are one character of those that stay (see the module)."""
    scripts = {"", *kept_scripts(characters)}
    return {
        index
        for piece, index in vocabulary.of_model.items()
        if (text := vocabulary.surface(piece)) is not None
        and len(text) == 1
        and (text in characters or script_of(text) in scripts)
    }


def marker_texts() -> list[str]:
    """Return what the marker schemes write for KLUE's entity types, and the question of `data.query`."""
    types = list(markers.TYPE_WORDS)
    pieces = [piece for scheme in markers.MARKERS for piece in markers.pieces(scheme, types)]
    words = [piece for piece in dict.fromkeys(pieces) if not piece.startswith("<")]  # those get tokens of their own
    asked = [markers.question(Entity(word, 0, 0, "PER"), Entity(word, 0, 0, "ORG")) for word in ("가", "각")]
    return [form for word in words for form in (word, f" {word}")] + [" ".join(words), *asked]


def marker_ids(tokenizer: Any) -> set[int]:
    """Return the ids of all pieces of `marker_texts`."""
    coded = tokenizer(marker_texts(), add_special_tokens=False)["input_ids"]
    return {index for ids in coded for index in ids}


def set_apart(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return a text with a blank before and behind each span, where none stands: as markers set entities apart.

    Args:
        spans: characters [start, stop).
    """
    edges = sorted({edge for span in spans for edge in span if 0 < edge < len(text)})
    parts = [text[start:stop] for start, stop in zip([0, *edges], [*edges, len(text)], strict=True)]
    joined = parts[0]
    for part in parts[1:]:
        joined += part if joined[-1].isspace() or part[0].isspace() else f" {part}"
    return joined


def named_ids(vocabulary: Vocabulary, name: str) -> set[int]:
    """Return the ids of a piece given by its name, with or without the signs of its place in a word.

    Raises:
        MtlReError: there is none.
    """
    found = {index for piece, index in vocabulary.ids.items() if name in (piece, vocabulary.surface(piece))}
    if not found:
        raise MtlReError(f"--keep: {name!r} is neither a file nor a piece of this vocabulary")
    return found
