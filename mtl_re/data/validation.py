"""One raw row → an `Example`, or the field at fault.

Enters: the fields of a `raw_rows.RawRow`. Leaves: `Example`, with spans as inclusive Python character positions that
are checked to spell their words. Official KLUE JSON, the contest's CSV and the hub's integer labels are told apart by
the form of their values, never by a file's name. `loading` applies this to a whole DATA.
"""

from __future__ import annotations

import ast
import json
import math
import numbers
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import field as dataclass_field
from typing import Any, Literal

from mtl_re.config import ReadingConfig
from mtl_re.data.raw_rows import one_line
from mtl_re.data.unicode_form import compose_spans, difference, is_decomposed
from mtl_re.errors import RowError
from mtl_re.taxonomy import KLUE, Taxonomy

MAX_SENTENCE = 20_000
"""Longest sentence that is accepted, in characters (KLUE-RE's longest has 455)."""
UNLABELLED = 100
"""The contest's label of rows whose true label is withheld."""
WITHHELD = (str(UNLABELLED), f"{UNLABELLED}.0")
"""The same as text, as a CSV holds it."""
LABEL_NAMES = frozenset(
    ["label", "labels", "relation", "relations", "relation_type", "rel", "gold", "gold_label", "predicate"]
)
"""What other data sets call the label, in lower case; a row with one of these and no `label` is at fault."""

AS_KLUE = ReadingConfig()
READINGS = tuple(
    ReadingConfig(span_ends=ends, first_character=first) for ends in ("inclusive", "exclusive") for first in (0, 1)
)
"""The ways in which spans are counted in the field, KLUE-RE's first."""

Key = tuple[str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Entity:
    """A span of the sentence: `sentence[start : end + 1] == word`, in Python characters."""

    word: str
    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row: how does the subject relate to the object in this sentence?

    Attributes:
        id: KLUE's `guid`; not unique.
        label: None where the row is unlabelled.
        source: KLUE's `source`: the corpus that the sentence was taken from.
        file, row: the DATA that the row was loaded from and its number there, as `raw_rows.RawRow` counts; None for a
            row that was made in memory. They say where, not what: equality ignores them.
    """

    id: str
    sentence: str
    subject: Entity
    object: Entity
    label: str | None = None
    source: str | None = None
    file: str | None = field(default=None, compare=False)
    row: int | None = field(default=None, compare=False)

    @property
    def key(self) -> Key:
        """Sentence and spans, decomposed characters composed: rows that share them ask the same question."""
        spans = [(entity.start, entity.end) for entity in (self.subject, self.object)]
        if is_decomposed(self.sentence):
            with suppress(RowError):  # a span that cuts a character stands for itself alone
                sentence, spans = compose_spans(self.sentence, spans)
                return (sentence, *spans[0], *spans[1])
        return (self.sentence, *spans[0], *spans[1])

    @property
    def where(self) -> str:
        """`FILE:ROW (ID)` for messages, or `row ID` where the row comes from no file."""
        return one_line(f"row {self.id}" if self.file is None else f"{self.file}:{self.row} ({self.id})")

    def to_row(self) -> dict[str, Any]:
        """Return the row in KLUE's JSON form: the inverse of `parse_row`."""
        spans = {
            name: {"word": entity.word, "start_idx": entity.start, "end_idx": entity.end, "type": entity.type}
            for name, entity in (("subject_entity", self.subject), ("object_entity", self.object))
        }
        return {"guid": self.id, "sentence": self.sentence, **spans, "label": self.label, "source": self.source}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, in the form of `rejected.jsonl`.

    Attributes:
        source: the DATA that holds it.
        row: its number there.
        field: the field at fault, as named in the file.
        reason: what is wrong with it.
        fits: the `READINGS` under which nothing is (by number).
    """

    source: str
    row: int
    field: str
    reason: str
    fits: tuple[int, ...] = dataclass_field(default=(), compare=False)

    def record(self) -> dict[str, Any]:
        """Return the line of rejected.jsonl."""
        return {"source": self.source, "row": self.row, "field": self.field, "reason": self.reason}

    def __str__(self) -> str:
        return one_line(f"{self.source}:{self.row}: {self.field}: {self.reason}")


def parse_row(
    fields: Mapping[str, Any],
    taxonomy: Taxonomy,
    number: int = 1,
    file: str | None = None,
    reading: ReadingConfig = AS_KLUE,
) -> Example:
    """Return the example that one raw row holds.

    Args:
        fields: `guid` or `id`, `sentence`, `subject_entity`, `object_entity`, `label`, `source`; an entity is a map
            of `word`, `start_idx`, `end_idx`, `type`, or the Python text of one.
        taxonomy: the labels that may occur.
        number: the row's; it becomes the id of a row that has none.
        file: the DATA that the row is from, if any.
        reading: how spans are counted, and whether decomposed characters are composed.

    Raises:
        RowError: the first field at fault.
    """
    sentence = string_of(fields, "sentence")
    if len(sentence) > MAX_SENTENCE:
        raise RowError("sentence", f"{len(sentence):,} characters; at most {MAX_SENTENCE:,} are accepted")
    subject_entity = _entity(fields, "subject_entity", sentence, reading)
    object_entity = _entity(fields, "object_entity", sentence, reading)
    if reading.normalise == "nfc":
        sentence, subject_entity, object_entity = _composed(sentence, subject_entity, object_entity)
    check_spans(subject_entity, object_entity)
    return Example(
        id=identity(fields, number),
        sentence=sentence,
        subject=subject_entity,
        object=object_entity,
        label=_label(_label_field(fields), taxonomy),
        source=None if is_absent(fields.get("source"), blank=True) else string_of(fields, "source"),
        file=file,
        row=None if file is None else number,
    )


def fitting_readings(parse: Callable[..., object], reading: ReadingConfig) -> tuple[int, ...]:
    """Return the numbers of the other `READINGS` under which `parse(reading=...)` finds a faulty row sound."""
    fits = []
    for number, other in enumerate(READINGS):
        if (other.span_ends, other.first_character) != (reading.span_ends, reading.first_character):
            with suppress(RowError):
                parse(reading=other)
                fits.append(number)
    return tuple(fits)


def span_clash(one: tuple[int, int], other: tuple[int, int]) -> Literal["same", "crossing"] | None:
    """Return why two inclusive spans cannot both be marked; None where they are apart or one lies inside the other."""
    first, second = sorted([one, other])
    if first == second:
        return "same"
    return "crossing" if first[0] < second[0] <= first[1] < second[1] else None


def check_spans(subject: Entity, object: Entity) -> None:
    """Raise RowError where `span_clash` finds a reason."""
    clash = span_clash((subject.start, subject.end), (object.start, object.end))
    spans = f"{subject.start}..{subject.end} and {object.start}..{object.end}"
    if clash == "same":
        raise RowError("object_entity", f"is the same span as the subject ({spans}); two entities are expected")
    if clash == "crossing":
        raise RowError("object_entity", f"crosses the subject ({spans}); one may lie in the other, or beside it")


def _composed(sentence: str, *entities: Entity) -> tuple[str, Entity, Entity]:
    """Return sentence and entities in composed characters."""
    whole, spans = compose_spans(sentence, [(entity.start, entity.end) for entity in entities])
    subject, object = (
        Entity(whole[start : end + 1], start, end, entity.type)
        for entity, (start, end) in zip(entities, spans, strict=True)
    )
    return whole, subject, object


def _entity(fields: Mapping[str, Any], name: str, sentence: str, reading: ReadingConfig) -> Entity:
    value = _present(fields, name, name)
    if isinstance(value, str):
        value = literal(value, name)
    if not isinstance(value, Mapping):
        raise RowError(name, f"expected word, start_idx, end_idx and type, found {shown(value)}")
    start, end = (_position(value, key, name) - reading.first_character for key in ("start_idx", "end_idx"))
    end -= reading.span_ends == "exclusive"
    if not 0 <= start <= end < len(sentence):
        what = f"span {start}..{end} does not lie in the sentence (0..{len(sentence) - 1}, ends inclusive)"
        raise RowError(f"{name}.start_idx" if start < 0 or start >= len(sentence) else f"{name}.end_idx", what)
    word = string_of(value, "word", name)
    if (spelled := sentence[start : end + 1]) != word:
        reason = f"{shown(word)}, but characters {start}..{end} of the sentence are {shown(spelled)}"
        reason += difference(word, spelled)
        raise RowError(f"{name}.word", reason)
    return Entity(word, start, end, string_of(value, "type", name))


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: spaces, control characters, characters without width."""
    return not any(character.isprintable() and character != " " for character in text)


def literal(text: str, name: str, most: int = 2 * MAX_SENTENCE) -> Any:
    """Decode an entity of the contest CSV, a Python dict as text, or a list of them; nothing is executed.

    pandas, NumPy and Excel leave other spellings behind (`np.int64(3)`, JSON's `null`, tabs for commas), which are
    tried where the text is no Python; whatever they make of a word is compared with the sentence later.
    """
    if len(text) > most:
        raise RowError(name, f"{len(text):,} characters; at most {most:,} are accepted: {shown(text)}")
    fault: Exception | None = None
    for spelled in (text, _NUMPY.sub(r"\1", text), text.replace("\t", ",")):
        try:
            with warnings.catch_warnings():  # of an invalid escape: the check of the word sees what it became
                warnings.simplefilter("ignore")
                return ast.literal_eval(spelled)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            fault = fault or error
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        kind = type(fault).__name__
        raise RowError(name, f"not the Python text of a dict: {shown(text)} ({kind})") from fault


_NUMPY = re.compile(r"\b(?:np\.|numpy\.)?u?(?:int|float)\d+\((-?\d+(?:\.\d*)?)\)")


def _position(value: Mapping[str, Any], key: str, name: str) -> int:
    position = whole_number(_present(value, key, f"{name}.{key}"))
    if position is None:
        raise RowError(f"{name}.{key}", f"expected a whole number, found {shown(value[key])}")
    return position


def whole_number(value: Any) -> int | None:
    """Return a whole number of any type, `3.0` and NumPy's included; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    return int(number) if number.is_integer() else None


def string_of(fields: Mapping[str, Any], key: str, parent: str = "") -> str:
    """Return a field's text; it must be encodable and hold a visible character."""
    path = f"{parent}.{key}" if parent else key
    value = encodable(_present(fields, key, path), path)
    if is_blank(value):
        raise RowError(path, f"is blank: {shown(value)}")
    return value


def encodable(value: Any, path: str) -> str:
    """Return a value that is text and can be written as UTF-8; raise RowError for any other."""
    if not isinstance(value, str):
        raise RowError(path, f"expected text, found {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(path, f"half a surrogate pair at character {error.start}; export the text again") from error
    return value


def identity(fields: Mapping[str, Any], number: int) -> str:
    key = "guid" if "guid" in fields else "id"
    value = fields.get(key)
    if is_absent(value):
        return str(number)
    whole = whole_number(value)
    return string_of(fields, key) if whole is None else str(whole)


def _label_field(fields: Mapping[str, Any]) -> Any:
    """Return the value of `label`; a row that has another column of labels instead is not an unlabelled one."""
    if "label" in fields:
        return fields["label"]
    for name, value in fields.items():
        if str(name).lower() in LABEL_NAMES and not is_absent(value):
            what = f"missing, but there is {name!r}: {shown(value)}"
            raise RowError("label", f"{what}; rename that column to label (or see `mtl-re convert --from columns`)")
    return None


def _label(value: Any, taxonomy: Taxonomy) -> str | None:
    if is_absent(value, blank=True) or value in WITHHELD:
        return None
    number = whole_number(value)
    if number == UNLABELLED:
        return None
    # Numbers are in KLUE's order, whatever order a taxonomy over KLUE's labels has; no other order is known.
    numbered = set(taxonomy.labels) <= set(KLUE)
    if number is not None and numbered and 0 <= number < len(KLUE):
        value = KLUE[number]
    if not isinstance(value, str) or value not in taxonomy.labels:
        hint = shown(list(taxonomy.labels))
        if isinstance(value, str) and value.isdecimal():
            hint = "a number as text has no known order; write the name"
        elif number is not None:
            numbers_known = f"KLUE numbers its labels 0 to {len(KLUE) - 1}"
            hint = numbers_known if numbered else "a number has no known order; write the name"
        raise RowError("label", f"{shown(value)} is not one of the {len(taxonomy.labels)} labels ({hint})")
    return value


def _present(fields: Mapping[str, Any], key: str, path: str) -> Any:
    value = fields.get(key)
    if value is None:
        raise RowError(path, f"missing; the row has {shown(list(fields))}")
    return value


def is_absent(value: Any, blank: bool = False) -> bool:
    """Return whether a value is None, empty text (or, with `blank`, blank text), or the NaN of pandas for either."""
    if isinstance(value, str):
        return not (value.strip() if blank else value)
    return value is None or (isinstance(value, numbers.Real) and value != value)


def shown(value: Any) -> str:
    """Return a short form of any value, on one line."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)
