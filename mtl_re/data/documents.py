"""One raw row → a `Document`: a text, and the spans of its entities where they are given.

Enters: a DATA argument as `readers` reads it, a .txt file, or a directory of them. Leaves: `Document`s whose entities
are checked to lie in the text and to spell their words, and a `BadRow` for each row at fault. The fields go by the
names of annotation tools and libraries (`FIELDS`, `ENTITY_FIELDS`); a row of KLUE-RE is a document too, with its
subject and object as entities.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mtl_re.config import ReadingConfig
from mtl_re.data.raw_rows import CHUNK, TEXTS, RawRow, one_line
from mtl_re.data.readers import file_digest, read_rows
from mtl_re.data.tool_records import python_offset
from mtl_re.data.unicode_form import Borders, compose_spans, composed_borders, is_decomposed
from mtl_re.data.validation import (
    AS_KLUE,
    BadRow,
    Entity,
    fitting_readings,
    identity,
    is_absent,
    is_blank,
    literal,
    shown,
    string_of,
    whole_number,
)
from mtl_re.data.walk import files_of
from mtl_re.encodings import SNIFFED, encoding_of, tell_encoding
from mtl_re.errors import MtlReError, RowError

MAX_DOCUMENT = 4 << 20
"""Longest document, in characters."""
FIELDS: Mapping[str, Sequence[str]] = {
    "id": ("id", "guid", "doc_id", "document_id", "docid"),
    "text": TEXTS,
    "entities": ("entities", "entity", "ents", "spans", "labels", "label"),
}
"""Field of a document → the names that it goes by."""
ENTITY_FIELDS: Mapping[str, Sequence[str]] = {
    "start": ("start", "start_idx", "start_offset", "start_char", "begin"),
    "end": ("end", "end_idx", "end_offset", "end_char", "stop"),
    "type": ("type", "entity_type", "label", "tag", "entity_group"),
    "word": ("word", "text", "form", "surface", "mention"),
}
"""Field of an entity → the names that it goes by; `word` may be missing."""
EXCLUSIVE = ("end_offset", "end_char", "stop")
"""Names of an end that tools use for the character behind the entity: doccano, spaCy, Python's slices."""
EXCLUSIVE_LISTS: Mapping[str, Sequence[str | None]] = {
    "ents": ("end", None),
    "spans": ("end", None),
    "labels": (None,),
    "label": (None,),
}
"""Names of a list → further names of an end (None: of [start, end, type]) that the tools which use them count so: spaCy
and displaCy, Prodigy, doccano."""
EntityLike = Entity | tuple[int, int, str] | Mapping[str, Any]
"""An entity as a caller may give it: an `Entity`, (start, end, type), or a map of start, end, type and perhaps word."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its entities.

    Attributes:
        id: The row's own, or its number; for a .txt file its path.
        entities: In the order of the row, with spans in inclusive characters of the text, each listed once; None where
            the row gives none.
        borders: Of a text that was composed: where it lies in the text as it was given.
        unsure: Whether an entity for which no word was given stands behind a character beyond U+FFFF, which some tools
            count twice.
    """

    id: str
    text: str
    entities: tuple[Entity, ...] | None
    borders: Borders | None = field(default=None, compare=False, repr=False)
    unsure: bool = field(default=False, compare=False, repr=False)

    def given_span(self, start: int, end: int) -> tuple[int, int]:
        """Return where inclusive characters of the text lie in the text as it was given, composed or not."""
        return (start, end) if self.borders is None else self.borders.given_span(start, end)


def read_documents(
    spec: str, reading: ReadingConfig = AS_KLUE, name: str | None = None
) -> Iterator[tuple[int, Document | BadRow]]:
    """Yield every document of DATA with its number, or what is wrong with it.

    Args:
        spec: Rows in any form that `mtl-re predict` reads, a .txt file (one document), or a directory: each .txt file
            in it, and in the directories below, is a document.
        reading: As for `parse_document`.
        name: The id of a .txt file that is DATA (None: the file's name).

    Raises:
        MtlReError: DATA cannot be read, or a directory holds no .txt file.
    """
    for raw in _texts(spec, name) if _is_text(spec) else read_rows(spec):
        try:
            if raw.fault is not None:
                raise raw.fault
            yield raw.number, parse_document(raw.fields, raw.number, reading)
        except RowError as error:
            spans = "entities" in error.field and raw.fault is None
            fits = fitting_readings(partial(parse_document, raw.fields), reading) if spans else ()
            yield raw.number, BadRow(raw.source, raw.number, error.field, one_line(error.reason), fits)


def parse_document(fields: Mapping[str, Any], number: int = 1, reading: ReadingConfig = AS_KLUE) -> Document:
    """Return the document that one raw row holds.

    Args:
        fields: See `FIELDS`; `entities` is a list of maps (`ENTITY_FIELDS`) or of [start, end, type], or the JSON or
            Python text of one; `subject_entity` and `object_entity` serve where there is none.
        number: The row's; it becomes the id of a row that has none.
        reading: How spans are counted, and whether decomposed characters are composed.

    Raises:
        RowError: The first field at fault.
    """
    name = _name(fields, "text")
    text = string_of(fields, name)
    if len(text) > MAX_DOCUMENT:
        raise RowError(name, f"{len(text):,} characters; at most {MAX_DOCUMENT:,} are accepted; divide the document")
    given = _given(fields)
    entities, unsure = None, False
    if given is not None:
        listed, values = given
        read = [_entity(text, value, f"entities[{n}]", reading, listed) for n, value in enumerate(values)]
        entities = [entity for entity, _ in read]
        double = _DOUBLE.search(text)
        unsure = double is not None and any(not told and entity.start > double.start() for entity, told in read)
    borders = None
    if reading.normalise == "nfc" and is_decomposed(text):
        places = composed_borders(text)
        borders = Borders.of(places)
        text, spans = compose_spans(text, [(entity.start, entity.end) for entity in entities or ()], places)
        if entities is not None:
            pairs = zip(entities, spans, strict=True)
            entities = [Entity(text[start : end + 1], start, end, entity.type) for entity, (start, end) in pairs]
    key = next((key for key in FIELDS["id"] if not is_absent(fields.get(key))), None)
    id = str(number) if key is None else identity({"id": fields[key]}, number)
    return Document(id, text, None if entities is None else tuple(dict.fromkeys(entities)), borders, unsure)


def entity_at(text: str, given: EntityLike, name: str) -> Entity:
    """Check one entity against its text and return it.

    Args:
        name: What messages call the entity, such as `entities[2]`.

    Raises:
        RowError: It is not a span of the text, the span spells another word, or it has no type.
    """
    if not isinstance(text, str):
        raise RowError("sentence", f"expected text, found {shown(text)}")
    start, end, kind, word = _parts(given, name)
    for key, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise RowError(f"{name}.{key}", f"expected a whole number, found {shown(value)}")
    if not 0 <= start <= end < len(text):
        raise RowError(name, f"span {start}..{end} does not lie in the sentence (0..{len(text) - 1}, inclusive)")
    if not isinstance(kind, str) or not kind.strip():
        raise RowError(f"{name}.type", f"expected an entity type such as PER, found {shown(kind)}")
    spelled = text[start : end + 1]
    if word is not None and word != spelled:
        raise RowError(f"{name}.word", f"{shown(word)}, but characters {start}..{end} are {shown(spelled)}")
    if is_blank(spelled):
        raise RowError(name, f"characters {start}..{end} are blank: {shown(spelled)}")
    return Entity(spelled, start, end, kind)


def _parts(given: Any, name: str) -> tuple[Any, Any, Any, Any]:
    """Return (start, end, type, word) of an entity in any of its forms; word is None where none is given."""
    if isinstance(given, Entity):
        return given.start, given.end, given.type, given.word
    if isinstance(given, Mapping):
        needed, keys = {"start", "end", "type"}, set(given)
        if odd := sorted(map(str, (needed - keys) | (keys - needed - {"word"}))):
            raise RowError(name, f"keys {odd} are missing or unknown; expected start, end, type and perhaps word")
        return given["start"], given["end"], given["type"], given.get("word")
    if isinstance(given, tuple | list) and len(given) == 3:
        return (*given, None)
    raise RowError(name, f"expected an Entity, (start, end, type) or a map of these, found {shown(given)}")


# ---- a row's fields ------------------------------------------------------------------------------------------------


def _name(fields: Mapping[str, Any], field: str) -> str:
    """Return the name under which a row has a field.

    Raises:
        RowError: It has none, or two that differ.
    """
    names = [name for name in FIELDS[field] if not is_absent(fields.get(name))]
    if not names:
        known = ", ".join(FIELDS[field])
        raise RowError(field, f"missing; the row has {shown(list(fields))}, and expected is one of {known}")
    if any(fields[name] != fields[names[0]] for name in names[1:]):
        raise RowError(field, f"stands under {' and under '.join(names)}, with different values; leave one")
    return names[0]


def _given(fields: Mapping[str, Any]) -> tuple[str, Sequence[Any]] | None:
    """Return the entities that a row lists, and the name of the list; None where it says nothing of entities."""
    for name in FIELDS["entities"]:
        value = fields.get(name)
        if is_absent(value) or (name == "label" and not isinstance(value, list)):  # `label` may be a relation's
            continue
        if isinstance(value, str):
            value = literal(value, name, MAX_DOCUMENT)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise RowError("entities", f"expected a list of start, end and type, found {shown(value)}")
        return name, value
    pair = [fields.get(name) for name in ("subject_entity", "object_entity")]
    if all(map(is_absent, pair)):
        return None
    return "entities", [literal(value, "entities") if isinstance(value, str) else value for value in pair]


_DOUBLE = re.compile("[\U00010000-\U0010ffff]")
"""A character that takes two UTF-16 units, in which JavaScript counts."""


def _entity(text: str, value: Any, name: str, reading: ReadingConfig, listed: str) -> tuple[Entity, bool]:
    """Return one entity of the row's list of this name, its span counted as `reading` says; and whether it has a word,
    with which it was compared."""
    end_name: str | None = None
    if isinstance(value, Mapping):
        found = {}
        for field, names in ENTITY_FIELDS.items():
            key = next((key for key in names if value.get(key) is not None), None)
            if key is not None:
                found[field] = value[key]
            elif field != "word":
                what = f"missing; the entity has {shown(list(value))}, and expected is one of {', '.join(names)}"
                raise RowError(f"{name}.{field}", what)
        start, end, kind, word = found["start"], found["end"], found["type"], found.get("word")
        end_name = next(key for key in ENTITY_FIELDS["end"] if value.get(key) is not None)
    else:
        start, end, kind, word = _parts(value, name)
    if word is None and reading.span_ends == "inclusive":
        _check_end(name, listed, end_name)
    places = []
    for key, place in (("start", start), ("end", end)):
        if (number := whole_number(place)) is None:
            raise RowError(f"{name}.{key}", f"expected a whole number, found {shown(place)}")
        places.append(number - reading.first_character)
    places[1] -= reading.span_ends == "exclusive"
    given = {"start": places[0], "end": places[1], "type": kind}
    if word is None:
        return _trimmed(entity_at(text, given, name)), False
    try:
        return _trimmed(entity_at(text, given | {"word": word}, name)), True
    except RowError as error:
        if _DOUBLE.search(text) and word == text[python_offset(text, places[0]) : python_offset(text, places[1] + 1)]:
            what = "it is right in UTF-16 units, as JavaScript counts; count characters, so that an emoji is one"
            raise RowError(error.field, f"{error.reason} ({what})") from error
        raise


def _check_end(name: str, listed: str, end: str | None) -> None:
    """Raise RowError if tools that name the list, or the end (None: of [start, end, type]), so count it otherwise."""
    of_list = end in EXCLUSIVE_LISTS.get(listed, ())
    if of_list or end in EXCLUSIVE:
        used = "a list of this name, with such entities," if of_list else "this name"
        what = f"tools that use {used} count the character behind the entity, and no word tells"
        other = "the list `entities`" if of_list else "it `end`"
        cure = f"give --span_ends exclusive, or name {other} if it is the entity's last character"
        raise RowError(f"{name}.{end}" if end else name, f"{f'`{listed}`: ' if of_list else ''}{what}; {cure}")


def _trimmed(entity: Entity) -> Entity:
    """Return an entity without the blanks at its ends, which some tools mark with it and no sentence begins with."""
    start = entity.start + len(entity.word) - len(entity.word.lstrip())
    word = entity.word.strip()
    return Entity(word, start, start + len(word) - 1, entity.type)


# ---- text files ----------------------------------------------------------------------------------------------------


def digest_of(spec: str) -> str:
    """Return the SHA-256 of DATA, of the names and contents of all text files where it is a directory of them.

    Raises:
        MtlReError: DATA cannot be read.
    """
    if not os.path.isdir(spec):
        return file_digest(spec)
    digest = hashlib.sha256()
    for name, path in _files(spec):
        digest.update(f"{name}\0{file_digest(str(path))}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_text(spec: str) -> bool:
    return os.path.isdir(spec) or spec.lower().endswith(".txt")


def _files(spec: str) -> list[tuple[str, Path]]:
    """Return the .txt files of a directory and those below it: the path in it, as a document's id, and the path."""
    files = files_of(spec, lambda name: name.endswith(".txt"), ".txt")
    if not files:
        raise MtlReError(one_line(f"{spec}: holds no .txt file; expected one document a file, or a file of rows"))
    return [(Path(name).as_posix(), Path(path)) for name, path in files]


def _texts(spec: str, name: str | None) -> Iterator[RawRow]:
    """Yield one row a text file."""
    files = _files(spec) if os.path.isdir(spec) else [(Path(spec).name if name is None else name, Path(spec))]
    for number, (id, path) in enumerate(files, start=1):
        try:
            if not (text := _text(path)).strip():
                raise RowError("text", "is blank")
            yield RawRow(spec, number, {"id": id, "text": text})
        except RowError as error:
            yield RawRow(spec, number, fault=RowError(error.field, f"{id}: {error.reason}"))


def _text(path: Path) -> str:
    """Return a file's text, its line breaks as they are.

    Raises:
        MtlReError: The file cannot be opened.
        RowError: It is too long, or in no encoding that is known.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_DOCUMENT + CHUNK)
    except OSError as error:
        raise MtlReError(one_line(f"{path}: cannot be read ({error.strerror})")) from error
    encoding = encoding_of(content[:SNIFFED])
    tell_encoding(str(path), encoding)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if len(content) >= 4 * MAX_DOCUMENT:
            raise RowError("text", f"more than {MAX_DOCUMENT:,} characters; divide the document") from error
        raise RowError("text", f"byte {error.start} is not {error.encoding.upper()} ({error.reason})") from error
