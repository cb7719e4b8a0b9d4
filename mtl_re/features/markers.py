"""Two entities in a sentence → the marked text, and the tokens that survive truncation.

Enters: a sentence and two spans. Leaves: `Marked`. `mark` is the only function that inserts markers, `fit_length` the
only one that truncates a sentence. Marker pieces are written with spaces around them: byte-level and SentencePiece
vocabularies then see whole known pieces (`▁@`), and a particle after the entity is tokenised alike under every scheme.
Positions are characters of the marked text and become token positions by the tokenizer's offsets, never by counting.

`levitated` leaves the sentence as it is: its pieces stand behind it (see `levitated`).

Typed markers: Zhou & Chen 2022 (arXiv 2102.01373); Korean type words: common in KLUE-RE contest work.
`special`: the four tokens of KLUE-baseline (arXiv 2105.09680).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mtl_re.data.validation import Entity, check_spans
from mtl_re.errors import RowError, entry

Role = Literal["subject", "object"]
ROLES: tuple[Role, Role] = ("subject", "object")

TYPE_WORDS = {"PER": "사람", "ORG": "단체", "LOC": "장소", "DAT": "날짜", "POH": "기타", "NOH": "숫자"}
"""KLUE's entity types in Korean, as one common word each."""


@dataclass(frozen=True)
class Marked:
    """A marked sentence.

    Attributes:
        text: the sentence with markers.
        subject: characters [start, stop) from the subject's first marker piece to behind its last (under `levitated`,
            of the subject itself).
        object: the same for the object. Of nested entities one range lies inside the other.
        inserted: the character ranges [start, stop) of `text` that are not of the sentence, in order.
    """

    text: str
    subject: tuple[int, int]
    object: tuple[int, int]
    inserted: tuple[tuple[int, int], ...]


# ---- schemes: (role, entity type) → text before and text after the entity ------------------------------------


def _korean(kind: str) -> str:
    if kind not in TYPE_WORDS:
        raise RowError(
            "type", f"{kind!r} has no Korean word in typed_punct_ko (known: {', '.join(TYPE_WORDS)}); use typed_punct"
        )
    return TYPE_WORDS[kind]


def typed_punct_ko(role: Role, kind: str) -> tuple[str, str]:
    """`@ * 사람 * 이름 @` and `# ^ 단체 ^ 이름 #`."""
    return (f"@ * {_korean(kind)} *", "@") if role == "subject" else (f"# ^ {_korean(kind)} ^", "#")


def typed_punct(role: Role, kind: str) -> tuple[str, str]:
    """`@ * per * name @` and `# ^ org ^ name #`: the type in lower case."""
    return (f"@ * {kind.lower()} *", "@") if role == "subject" else (f"# ^ {kind.lower()} ^", "#")


def entity_punct(role: Role, kind: str) -> tuple[str, str]:
    """`@ name @` and `# name #`: no type."""
    return ("@", "@") if role == "subject" else ("#", "#")


def special(role: Role, kind: str) -> tuple[str, str]:
    """KLUE's four new tokens, no type."""
    return ("<subj>", "</subj>") if role == "subject" else ("<obj>", "</obj>")


def typed_special(role: Role, kind: str) -> tuple[str, str]:
    """Two new tokens for each role and entity type; a blank inside a type is written `_`, for a token has none."""
    name = f"{role[0].upper()}:{'_'.join(kind.split())}"
    return f"<{name}>", f"</{name}>"


Scheme = Callable[[Role, str], tuple[str, str]]
MARKERS: dict[str, Scheme] = {
    "typed_punct_ko": typed_punct_ko,
    "typed_punct": typed_punct,
    "entity_punct": entity_punct,
    "special": special,
    "typed_special": typed_special,
    "levitated": typed_special,
}
LEVITATED = "levitated"
"""The scheme whose markers stand behind the sentence."""
ADDS_TOKENS = frozenset({"special", "typed_special", LEVITATED})
"""Schemes whose pieces are added to the vocabulary as special tokens."""


def names_types(name: str) -> bool:
    """Return whether the scheme writes the entity's type; one that training never saw cannot be read then."""
    scheme = entry("data.markers", name, MARKERS)
    return scheme(ROLES[0], "PER") != scheme(ROLES[0], "ORG")


def pieces(name: str, types: Sequence[str]) -> list[str]:
    """Return every space-separated piece that the scheme writes for these entity types, each once, in a fixed order."""
    texts = [text for role in ROLES for kind in types for text in entry("data.markers", name, MARKERS)(role, kind)]
    return list(dict.fromkeys(piece for text in texts for piece in text.split()))


# ---- marking -------------------------------------------------------------------------------------------------


def mark(sentence: str, subject: Entity, object: Entity, name: str) -> Marked:
    """Insert the markers of scheme `name` around two entities; the words themselves do not change.

    One entity may lie inside the other; its markers then stand inside the other's.

    Raises:
        RowError: the spans are equal, cross, or exceed the sentence, or the scheme does not know a type.
    """
    scheme = entry("data.markers", name, MARKERS)
    roles = list(zip(ROLES, (subject, object), strict=True))
    for role, entity in roles:
        if not 0 <= entity.start <= entity.end < len(sentence):
            raise RowError(f"{role}_entity", f"span {entity.start}..{entity.end} leaves the sentence")
    check_spans(subject, object)
    if name == LEVITATED:
        return Marked(sentence, (subject.start, subject.end + 1), (object.start, object.end + 1), ())
    outer_first = sorted(roles, key=lambda item: (item[1].start, -item[1].end))
    edges = [(entity.start, False, role, scheme(role, entity.type)[0]) for role, entity in outer_first]
    edges += [(entity.end + 1, True, role, scheme(role, entity.type)[1]) for role, entity in reversed(outer_first)]
    text, behind, closed = "", 0, False
    inserted: list[tuple[int, int]] = []
    spans: dict[Role, tuple[int, int]] = {}

    def insert(piece: str) -> None:
        nonlocal text
        inserted.append((len(text), len(text) + len(piece)))
        text += piece

    def copy(stop: int) -> None:
        nonlocal text, behind
        if closed and behind < stop and not sentence[behind].isspace():
            insert(" ")
        text, behind = text + sentence[behind:stop], stop

    for place, closing, role, piece in sorted(edges, key=lambda edge: (edge[0], not edge[1])):
        copy(place)
        if closing:
            insert(f" {piece}")
            spans[role] = (spans[role][0], len(text))
        else:
            if text and not text[-1].isspace():
                insert(" ")
            spans[role] = (len(text), len(text))
            insert(f"{piece} ")
        closed = closing
    copy(len(sentence))
    return Marked(text, spans["subject"], spans["object"], tuple(inserted))


def unmark(marked: Marked) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Return sentence, subject and object span (inclusive characters) of a marked text: the inverse of `mark`."""

    def in_sentence(place: int) -> int:
        return place - sum(min(stop, place) - start for start, stop in marked.inserted if start < place)

    edges = [0, *(edge for span in marked.inserted for edge in span), len(marked.text)]
    sentence = "".join(marked.text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
    subject, object = ((in_sentence(start), in_sentence(stop) - 1) for start, stop in (marked.subject, marked.object))
    return sentence, subject, object


def question(subject: Entity, object: Entity) -> str:
    """Return the query for the second segment: what relation holds between the two entities?"""
    return f"이 문장에서 {subject.word}{_particle(subject.word, '과', '와')} {object.word}의 관계는 무엇인가?"


def _particle(word: str, closed: str, open_: str) -> str:
    """Return the particle that agrees with a word's last syllable; other scripts than Hangul take the open form."""
    code = ord(word[-1]) - 0xAC00
    return closed if 0 <= code < 11172 and code % 28 else open_


# ---- truncating -------------------------------------------------------------------------------------------------


def fit_length(length: int, first: tuple[int, int], second: tuple[int, int], budget: int) -> list[int]:
    """Return the tokens of a sentence to keep, so that at most `budget` remain and both entities survive.

    Context is cut at the outer ends first, evenly; what one side does not use goes to the other. Only where entities
    and the text between them exceed the budget is that text cut as well: its tokens nearest to an entity are kept.

    Args:
        length: number of tokens of the sentence.
        first, second: token ranges [start, stop) of the marked entities, in order; nested ones count as the outer one.
        budget: number of tokens that may remain.

    Returns:
        Kept token indices, ascending; all of them when the sentence fits.

    Raises:
        RowError: the two entities alone exceed the budget.
    """
    if length <= budget:
        return list(range(length))
    if second[1] <= first[1]:
        second = (first[1], first[1])
    needed = first[1] - first[0] + second[1] - second[0]
    if needed > budget:
        raise RowError("sentence", f"the two marked entities take {needed} tokens, data.max_length leaves {budget}")
    spare = budget - (second[1] - first[0])
    if spare >= 0:
        left, right = _share(spare, first[0], length - second[1])
        return list(range(first[0] - left, second[1] + right))
    middle = budget - needed  # tokens left for the text between the entities: half beside each
    behind, ahead = (middle + 1) // 2, middle // 2
    return [*range(first[0], first[1] + behind), *range(second[0] - ahead, second[1])]


def _share(spare: int, left: int, right: int) -> tuple[int, int]:
    """Split `spare` evenly over two sides that take at most `left` and `right`."""
    half = min(left, (spare + 1) // 2)
    rest = min(right, spare - half)
    return min(left, spare - rest), rest
