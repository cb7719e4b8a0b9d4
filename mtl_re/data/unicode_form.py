"""Hangul and accents written apart → written as one character each (Unicode's composed form, NFC).

macOS and some converters write 한 as three characters, ㅎ ㅏ ㄴ (NFD). It looks the same, but a vocabulary of composed
syllables does not know it, and no comparison of texts sees that two copies are equal. `composed` is what is compared;
`compose_spans` also maps spans, exactly: a span that would cut a composed character in two is refused.

Source: Unicode Standard Annex 15. Characters that NFC merely replaces by another one (U+F9E1 by U+674E) are left alone.
"""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtl_re.errors import RowError


def is_decomposed(text: str) -> bool:
    """Return whether the text holds characters that are written apart and could be one."""
    return not unicodedata.is_normalized("NFC", text) and len(unicodedata.normalize("NFC", text)) < len(text)


def composed(text: str) -> str:
    """Return the text in composed form; as it is if nothing in it is decomposed."""
    return unicodedata.normalize("NFC", text) if is_decomposed(text) else text


def compose_spans(
    text: str, spans: Sequence[tuple[int, int]], places: Mapping[int, int] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Return the composed text, and where spans of the given text lie in it.

    Args:
        spans: inclusive characters (start, end).
        places: the text's `composed_borders`, where they are known already.

    Raises:
        RowError: a span begins or ends inside a composed character.
    """
    if not is_decomposed(text):
        return text, list(spans)
    places = composed_borders(text) if places is None else places
    mapped = []
    for start, end in spans:
        if start not in places or end + 1 not in places:
            raise RowError("span", f"{start}..{end} begins or ends inside a character that is written in parts")
        mapped.append((places[start], places[end + 1] - 1))
    return unicodedata.normalize("NFC", text), mapped


def composed_borders(text: str) -> dict[int, int]:
    """Map each border between characters of the text that is one of the composed text too to its place there.

    A border is counted by the characters before it, so 0 and the length of the text are always among them.
    """
    places: dict[int, int] = {0: 0}
    length, cluster = 0, ""
    for place, character in enumerate(text):
        if cluster and _separate(cluster, character):
            length += len(unicodedata.normalize("NFC", cluster))
            places[place], cluster = length, ""
        cluster += character
    places[len(text)] = length + len(unicodedata.normalize("NFC", cluster))
    return places


@dataclass(frozen=True, slots=True)
class Borders:
    """The borders that a text as it was given shares with its composed form, rising: each one's place in either."""

    given: array[int]
    composed: array[int]

    @classmethod
    def of(cls, places: Mapping[int, int]) -> Borders:
        """Make them of `composed_borders`."""
        return cls(array("q", places), array("q", places.values()))

    def given_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the least inclusive span of the given text that holds one of the composed text."""
        first, stop = bisect_right(self.composed, start) - 1, bisect_left(self.composed, end + 1)
        return self.given[first], self.given[stop] - 1


def _separate(before: str, character: str) -> bool:
    """Return whether no character is composed, or reordered, across the border between the two."""
    if unicodedata.combining(character):
        return False
    apart = unicodedata.normalize("NFC", before) + unicodedata.normalize("NFC", character)
    return unicodedata.normalize("NFC", before + character) == apart


def difference(one: str, other: str) -> str:
    """Return how two texts that look the same differ, to be put behind them in a message; "" if they do not look so."""
    if one == other or unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other):
        return ""
    which = "the first" if is_decomposed(one) and not is_decomposed(other) else "the second"
    return f"; they look the same, but {which} is written in decomposed characters (NFD, as macOS does)"
