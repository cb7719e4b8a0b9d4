"""Raw rows → examples: what a row must be, and what a set of rows must be before anything is trained on it.

Enters: `readers.RawRow`. Leaves: `Example`, with spans as inclusive Python character positions that are checked to
spell their words. Official KLUE JSON, the contest's CSV and the hub's integer labels are told apart by the shape of
their values, never by a file's name. A row at fault stops the reading or is reported to the caller: none is lost in
silence. Rows are split by sentence and guarded by sentence and spans, since one sentence carries several rows.
"""

from __future__ import annotations

import ast
import json
import reprlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtl_re.data import spool
from mtl_re.data.readers import file_digest as file_digest  # callers find it beside load_examples
from mtl_re.data.readers import one_line, read_rows
from mtl_re.errors import MtlReError, RowError
from mtl_re.files import whole_file
from mtl_re.taxonomy import KLUE, Taxonomy

if TYPE_CHECKING:
    pass  # at run time only where rows are split: reading and checking them starts without

MAX_SENTENCE = 20_000
"""Longest sentence, in characters (KLUE-RE's longest has 455)."""
UNLABELLED = 100
"""The contest's stand-in for a label that is kept back."""

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
    """One row: how does the subject relate to the object in this sentence? `label` is None where nobody says."""

    id: str
    sentence: str
    subject: Entity
    object: Entity
    label: str | None = None
    source: str | None = None

    @property
    def key(self) -> Key:
        """What makes two rows the same question."""
        return (self.sentence, self.subject.start, self.subject.end, self.object.start, self.object.end)

    def to_values(self) -> tuple[Any, ...]:
        """Plain values, for `spool`."""
        spans = [(entity.word, entity.start, entity.end, entity.type) for entity in (self.subject, self.object)]
        return (self.id, self.sentence, *spans, self.label, self.source)

    @classmethod
    def from_values(cls, values: tuple[Any, ...]) -> Example:
        """The inverse of `to_values`."""
        name, sentence, subject, object_, label, source = values
        return cls(name, sentence, Entity(*subject), Entity(*object_), label, source)

    def to_row(self) -> dict[str, Any]:
        """The row in KLUE's JSON form: the inverse of `parse_row`."""
        spans = {
            name: {"word": entity.word, "start_idx": entity.start, "end_idx": entity.end, "type": entity.type}
            for name, entity in (("subject_entity", self.subject), ("object_entity", self.object))
        }
        return {"guid": self.id, "sentence": self.sentence, **spans, "label": self.label, "source": self.source}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: where it stands and what is wrong with it."""

    source: str
    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        return one_line(f"{self.source}:{self.row}: {self.field}: {self.reason}")


# ---- one row -----------------------------------------------------------------------------------------------------


def parse_row(fields: Mapping[str, Any], taxonomy: Taxonomy, number: int = 1) -> Example:
    """Check one raw row and make it an example.

    Args:
        fields: `guid` or `id`, `sentence`, `subject_entity`, `object_entity`, `label`, `source`; an entity is a map
            of `word`, `start_idx`, `end_idx`, `type`, or the Python text of one.
        taxonomy: the labels that may occur.
        number: becomes the id of a row that has none.

    Raises:
        RowError: the first field at fault.
    """
    sentence = _string(fields, "sentence")
    if len(sentence) > MAX_SENTENCE:
        raise RowError("sentence", f"{len(sentence):,} characters; at most {MAX_SENTENCE:,} are read")
    subject_entity = _entity(fields, "subject_entity", sentence)
    object_entity = _entity(fields, "object_entity", sentence)
    if subject_entity.start <= object_entity.end and object_entity.start <= subject_entity.end:
        spans = f"{subject_entity.start}..{subject_entity.end} and {object_entity.start}..{object_entity.end}"
        raise RowError("object_entity", f"overlaps the subject ({spans}); two separate spans are expected")
    return Example(
        id=_identity(fields, number),
        sentence=sentence,
        subject=subject_entity,
        object=object_entity,
        label=_label(fields.get("label"), taxonomy),
        source=None if _absent(fields.get("source")) else _string(fields, "source"),
    )


def _entity(fields: Mapping[str, Any], name: str, sentence: str) -> Entity:
    value = _present(fields, name, name)
    if isinstance(value, str):
        value = _literal(value, name)
    if not isinstance(value, Mapping):
        raise RowError(name, f"expected word, start_idx, end_idx and type, found {shown(value)}")
    start, end = (_position(value, key, name) for key in ("start_idx", "end_idx"))
    if not 0 <= start <= end < len(sentence):
        what = f"span {start}..{end} does not lie in the sentence (0..{len(sentence) - 1}, ends inclusive)"
        raise RowError(f"{name}.start_idx" if start < 0 or start >= len(sentence) else f"{name}.end_idx", what)
    word = _string(value, "word", name)
    if sentence[start : end + 1] != word:
        found = shown(sentence[start : end + 1])
        raise RowError(f"{name}.word", f"{shown(word)}, but characters {start}..{end} of the sentence are {found}")
    return Entity(word, start, end, _string(value, "type", name))


def _literal(text: str, name: str) -> Any:
    """The contest CSV's entity: a Python dict as text. Nothing is executed."""
    try:
        if len(text) > 2 * MAX_SENTENCE:
            raise ValueError(f"{len(text):,} characters")
        with warnings.catch_warnings():  # an odd backslash is the file's affair, and the word check sees what it made
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        reason = f"not the Python text of a dict: {shown(text)} ({type(error).__name__})"
        raise RowError(name, reason) from error


def _position(value: Mapping[str, Any], key: str, name: str) -> int:
    position = _present(value, key, f"{name}.{key}")
    if isinstance(position, bool) or not isinstance(position, int):
        raise RowError(f"{name}.{key}", f"expected a whole number, found {shown(position)}")
    return position


def _string(fields: Mapping[str, Any], key: str, parent: str = "") -> str:
    """Text that can be encoded and that shows something."""
    place = f"{parent}.{key}" if parent else key
    value = _present(fields, key, place)
    if not isinstance(value, str):
        raise RowError(place, f"expected text, found {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(place, f"half a surrogate pair at character {error.start}; export the text again") from error
    if not any(character.isprintable() and character != " " for character in value):
        raise RowError(place, f"is blank: {shown(value)}")
    return value


def _identity(fields: Mapping[str, Any], number: int) -> str:
    key = "guid" if "guid" in fields else "id"
    value = fields.get(key)
    if _absent(value):
        return str(number)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(fields, key)


def _label(value: Any, taxonomy: Taxonomy) -> str | None:
    if _absent(value) or value == str(UNLABELLED):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        # The hub numbers labels in KLUE's order, whatever order a taxonomy over them has.
        order = KLUE if set(taxonomy.labels) <= set(KLUE) else taxonomy.labels
        if 0 <= value < len(order):
            value = order[value]
        elif value == UNLABELLED:
            return None
    if not isinstance(value, str) or value not in taxonomy.labels:
        digits = isinstance(value, str) and value.isdecimal()
        hint = "a number as text has no known order; write the name" if digits else shown(list(taxonomy.labels))
        raise RowError("label", f"{shown(value)} is not one of the {len(taxonomy.labels)} labels ({hint})")
    return value


def _present(fields: Mapping[str, Any], key: str, place: str) -> Any:
    value = fields.get(key)
    if value is None:
        raise RowError(place, f"missing; the row has {shown(list(fields))}")
    return value


def _absent(value: Any) -> bool:
    """None, empty text, or the NaN that pandas writes for either."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def shown(value: Any) -> str:
    """A short form of any value, on one line."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)


# ---- a source of rows --------------------------------------------------------------------------------------------


def read_examples(
    spec: str,
    taxonomy: Taxonomy,
    on_bad_row: Literal["error", "skip"] = "error",
    rejected: Callable[[BadRow], object] | None = None,
) -> Iterator[Example]:
    """Stream the examples of DATA.

    Args:
        on_bad_row: `error` stops at the first bad row; `skip` hands each to `rejected` and goes on.

    Raises:
        MtlReError: DATA cannot be read, or a row is bad and `on_bad_row` is `error`.
    """
    if on_bad_row == "skip" and rejected is None:
        raise ValueError("on_bad_row='skip' needs `rejected`, so that no row is lost in silence")
    for _, row in parsed(spec, taxonomy):
        if isinstance(row, Example):
            yield row
        elif on_bad_row == "skip" and rejected is not None:
            rejected(row)
        else:
            raise MtlReError(f"{row} (on_bad_row skip leaves such rows out)")


def load_examples(
    spec: str, taxonomy: Taxonomy, on_bad_row: Literal["error", "skip"] = "error"
) -> tuple[Sequence[Example], list[BadRow]]:
    """All examples of DATA (many lie in a file, see `spool`), and the rows left out (always none under `error`).

    Raises:
        MtlReError: DATA cannot be read, a row is bad under `error` (the first is named, the others are counted), or
            no row is good.
    """
    bad: list[BadRow] = []
    good = spool.kept(read_examples(spec, taxonomy, "skip", bad.append), Example.to_values, Example.from_values)
    if bad and on_bad_row == "error":
        more = f"; {len(bad) - 1:,} more bad row(s)" if len(bad) > 1 else ""
        raise MtlReError(f"{bad[0]}{more} (on_bad_row skip leaves such rows out)")
    if bad and not good:
        raise MtlReError(f"{bad[0]}; none of the {len(bad):,} rows can be used")
    return good, bad


def parsed(spec: str, taxonomy: Taxonomy) -> Iterator[tuple[int, Example | BadRow]]:
    for raw in read_rows(spec):
        try:
            if raw.fault is not None:
                raise raw.fault
            yield raw.number, parse_row(raw.fields, taxonomy, raw.number)
        except RowError as error:
            yield raw.number, BadRow(raw.source, raw.number, error.field, one_line(error.reason))


def write_rejected(path: Path, bad_rows: Iterable[BadRow]) -> None:
    """Write bad rows as JSON, one a line."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for bad in bad_rows:
            file.write(json.dumps(asdict(bad), ensure_ascii=False) + "\n")


def label_counts(examples: Iterable[Example]) -> dict[str, int]:
    """Rows of each label, the most frequent first; unlabelled rows are not counted."""
    return dict(Counter(example.label for example in examples if example.label is not None).most_common())


# ---- splitting and guarding --------------------------------------------------------------------------------------
