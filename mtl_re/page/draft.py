"""A draft of one question: a sentence and the entity spans marked in it so far.

Enters: text and selections in a browser's units (UTF-16 code units). Leaves: inclusive spans of Python characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtl_re.data.validation import span_clash

Role = Literal["subject", "object"]
Span = tuple[int, int]
ROLES: tuple[Role, Role] = ("subject", "object")


def python_span(text: str, start: int, stop: int) -> Span | None:
    """Convert a browser's selection to an inclusive span of Python characters.

    An emoji takes two UTF-16 units; a selection of one of them counts as the whole emoji. White space at both ends is
    dropped, because a double click often selects the space behind a word.

    Args:
        start, stop: the selection [start, stop) in UTF-16 units.

    Returns:
        The span, or None if nothing but white space is selected.
    """
    first, last, units = len(text), -1, 0
    for position, character in enumerate(text):
        width = 2 if ord(character) > 0xFFFF else 1
        if units < stop and units + width > start and not character.isspace():
            first, last = min(first, position), position
        units += width
    return None if last < 0 else (first, last)


@dataclass(frozen=True)
class Draft:
    """A sentence, and the inclusive character spans of the entities that are marked in it."""

    sentence: str = ""
    subject: Span | None = None
    object: Span | None = None

    def span(self, role: Role) -> Span | None:
        """Return the span of a role's entity."""
        return self.subject if role == "subject" else self.object

    def edited(self, sentence: str) -> Draft:
        """Return the draft with its sentence changed; a mark outside the changed characters moves with its word."""
        before = self.sentence
        if sentence == before:
            return self
        shortest = min(len(before), len(sentence))
        head = next((i for i in range(shortest) if before[i] != sentence[i]), shortest)
        tail = next((i for i in range(shortest - head) if before[-1 - i] != sentence[-1 - i]), shortest - head)
        shift = len(sentence) - len(before)

        def carried(span: Span | None) -> Span | None:
            if span is None or span[1] < head:
                return span
            return (span[0] + shift, span[1] + shift) if span[0] >= len(before) - tail else None

        return Draft(sentence, carried(self.subject), carried(self.object))

    def marked(self, role: Role, span: Span) -> Draft:
        """Return the draft with one more mark, which removes the other role's mark if they cross or are the same."""

        def kept(other: Span | None) -> Span | None:
            return None if other is None or span_clash(span, other) else other

        if role == "subject":
            return Draft(self.sentence, span, kept(self.object))
        return Draft(self.sentence, kept(self.subject), span)
