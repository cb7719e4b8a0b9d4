"""Drafts of a question: a sentence with a subject and an object, or a text with any number of typed entities.

Enters: text and selections in a browser's units (UTF-16 code units). Leaves: inclusive spans of Python characters.
Drafts are values: every edit gives another one, and a mark moves with its word when the text around it changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mtl_re.data.validation import Entity, span_clash
from mtl_re.features.markers import Role

Span = tuple[int, int]


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


def carried(before: str, after: str, spans: Sequence[Span | None]) -> list[Span | None]:
    """Return where spans of a text stand after an edit; None for one that the edit touched."""
    shortest = min(len(before), len(after))
    head = next((i for i in range(shortest) if before[i] != after[i]), shortest)
    tail = next((i for i in range(shortest - head) if before[-1 - i] != after[-1 - i]), shortest - head)
    shift = len(after) - len(before)

    def moved(span: Span | None) -> Span | None:
        if span is None or span[1] < head:
            return span
        return (span[0] + shift, span[1] + shift) if span[0] >= len(before) - tail else None

    return [moved(span) for span in spans]


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
        subject, object = carried(self.sentence, sentence, (self.subject, self.object))
        return Draft(sentence, subject, object)

    def marked(self, role: Role, span: Span) -> Draft:
        """Return the draft with one more mark, which removes the other role's mark if they cross or are the same."""

        def kept(other: Span | None) -> Span | None:
            return None if other is None or span_clash(span, other) else other

        if role == "subject":
            return Draft(self.sentence, span, kept(self.object))
        return Draft(self.sentence, kept(self.subject), span)


@dataclass(frozen=True)
class Markup:
    """A text of any number of sentences, and the entities marked in it, by start, the outer one first."""

    text: str = ""
    entities: tuple[Entity, ...] = ()

    def edited(self, text: str) -> Markup:
        """Return the markup with its text changed; a mark outside the changed characters moves with its word."""
        spans = carried(self.text, text, [(entity.start, entity.end) for entity in self.entities])
        kept = zip(self.entities, spans, strict=True)
        return Markup(text, tuple(Entity(one.word, *span, one.type) for one, span in kept if span is not None))

    def marked(self, span: Span, kind: str) -> Markup:
        """Return the markup with one more entity, which removes those that cross it or are the same span."""
        kept = [one for one in self.entities if not span_clash(span, (one.start, one.end))]
        return self.holding([*kept, Entity(self.text[span[0] : span[1] + 1], *span, kind)])

    def marked_everywhere(self, span: Span, kind: str) -> Markup:
        """Return the markup with a word marked wherever a word of the text begins with it and nothing is marked yet."""
        word = self.text[span[0] : span[1] + 1]
        starts = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(word)}", self.text)]
        found = [Entity(word, start, start + len(word) - 1, kind) for start in starts]
        return self.marked(span, kind).joined_by(found)

    def joined_by(self, entities: Sequence[Entity]) -> Markup:
        """Return the markup with those of the entities, apart from each other, that share no character with a mark."""
        free = [
            one for one in entities if not any(one.start <= own.end and own.start <= one.end for own in self.entities)
        ]
        return self.holding([*self.entities, *free])

    def unmarked(self, span: Span) -> Markup:
        """Return the markup without the entities that share a character with a span."""
        return self.holding([one for one in self.entities if one.end < span[0] or span[1] < one.start])

    def holding(self, entities: Sequence[Entity]) -> Markup:
        """Return the same text with these entities."""
        return Markup(self.text, tuple(sorted(entities, key=lambda one: (one.start, -one.end))))
