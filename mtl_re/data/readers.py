"""Bytes → raw rows: a path, a hub data set or the embedded sample becomes an iterator of field maps.

Enters: a DATA argument. Leaves: `RawRow`s whose fields are unchecked (`validation` says what they must be), in constant
memory for every format that people write by the row. Text is UTF-8, or UTF-16 or CP949 as Korean Excel writes them (a
note says so). A fault of the whole file raises `MtlReError` when it is reached, in one line; a fault
of one row (a line that is not JSON, a wrong number of columns) travels in `RawRow.fault`, so that the caller decides
whether to stop or to count it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any, Literal

from mtl_re.config import SampleConfig
from mtl_re.data.format_signs import format_of
from mtl_re.encodings import SNIFFED, encoding_of, tell_encoding
from mtl_re.errors import MtlReError, RowError

CHUNK = 1 << 20
"""Characters read at once from a JSON array."""
MAX_ELEMENT = 64 << 20
"""Longest single row of text, in characters: anything longer is not a sentence with two entities."""
MAX_CELL = 4 << 20
"""Longest cell of a CSV, in characters: a quote that is never closed runs into this."""

Stream = IO[bytes] | gzip.GzipFile
SAMPLE_SPLITS: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its source.

    Attributes:
        source: the DATA argument it came from.
        number: counted from 1: the line of a .jsonl, else the row (a CSV's header and blank lines do not count).
        fields: field name → value, unchecked.
        fault: why the row could not be decoded; `fields` is empty then.
    """

    source: str
    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    fault: RowError | None = None


class NoRowsError(MtlReError):
    """A source that can be read holds no rows."""


def read_rows(spec: str, kind: str | None = None) -> Iterator[RawRow]:
    """Yield the rows of DATA.

    Args:
        spec: a path (.json, .jsonl, .csv, .parquet, each also .gz), `hub:DATASET/CONFIG:SPLIT` or
            `sample:train|valid|test`.
        kind: the format of a file whose suffix does not say it, as a suffix.

    Raises:
        MtlReError: the source cannot be read (where and why, in one line).
        NoRowsError: it holds no rows.
    """
    read = _read_hub if spec.startswith("hub:") else _read_sample if spec.startswith("sample:") else None
    empty = True
    for row in _read_file(spec, kind) if read is None else read(spec):
        empty = False
        yield row
    if empty:
        raise NoRowsError(one_line(f"{spec}: holds no rows; expected at least one"))


def file_digest(spec: str) -> str:
    """Return the SHA-256 of DATA: of a file's bytes, or of the rows as JSON where there is no file.

    Raises:
        MtlReError: the source cannot be read.
    """
    digest = hashlib.sha256()
    if spec.startswith(("hub:", "sample:")):
        for row in read_rows(spec):
            digest.update(json.dumps(row.fields, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()
    with _faults_of(spec), _open_regular(spec) as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def one_line(text: str) -> str:
    """Return `text` without line breaks: a message is one line even where a file's name is not."""
    return " ".join(text.splitlines())


# ---- files -------------------------------------------------------------------------------------------------------


def _read_file(source: str, kind: str | None) -> Iterator[RawRow]:
    name = os.path.basename(source).lower()
    kind = kind or os.path.splitext(name.removesuffix(".gz"))[1]
    if kind not in FORMATS:
        if not os.path.exists(source) and source.count("/") == 1 and not kind:
            raise _fault(source, f"no such file; for a data set of the hub write hub:{source}:train")
        _open_regular(source).close()  # that a file is missing is the more useful message
        known = ", ".join(FORMATS)
        other = "; `mtl-re convert --from semeval` reads SemEval's text" if kind == ".txt" else ""
        raise _fault(
            source, f"unknown file type {kind or name!r}; expected {known}, each also with .gz after it{other}"
        )
    with _open_regular(source) as file:
        stream = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
        with stream, _faults_of(source, stream):
            if kind == ".parquet":
                yield from _read_parquet(source, stream)
                return
            with _text(source, stream) as text:
                yield from TEXT_FORMATS[kind](source, text)


def _open_regular(source: str) -> IO[bytes]:
    """Open a regular file; a pipe or device could block for ever or never end."""
    try:
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            raise _fault(source, "is a directory; expected a file")
        if not stat.S_ISREG(mode):
            raise _fault(source, "is not a regular file; copy its content to one")
        return open(source, "rb")
    except FileNotFoundError:
        hint = "give a path, hub:DATASET/CONFIG:SPLIT or sample:" + "|".join(SAMPLE_SPLITS)
        raise _fault(source or "''", f"no such file; {hint}") from None
    except OSError as error:
        raise _fault(source, f"cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a null byte in the path
        raise _fault(repr(source), f"cannot be opened ({error})") from error


@contextmanager
def _faults_of(source: str, stream: Stream | None = None) -> Iterator[None]:
    """Turn what reading can raise into one line; `stream` gives the position of a byte that is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        # The block that failed to decode ends at the stream's position.
        where = (stream.tell() if stream is not None else len(error.object)) - len(error.object) + error.start
        hint = "save the file as UTF-8 (in Excel: `CSV UTF-8`; Korean Windows writes CP949 otherwise)"
        raise _fault(source, f"byte {where} is not {error.encoding.upper()} ({error.reason}); {hint}") from error
    except gzip.BadGzipFile as error:
        raise _fault(source, f"is not sound gzip ({error}); if it is not compressed, drop the .gz") from error
    except EOFError as error:
        raise _fault(source, "is cut short (the gzip stream has no end); copy or download it again") from error
    except zlib.error as error:
        raise _fault(source, f"is damaged ({error}); copy or download it again") from error
    except OSError as error:
        raise _fault(source, f"cannot be read ({error.strerror or error})") from error


def _fault(source: str, text: str) -> MtlReError:
    return MtlReError(one_line(f"{source}: {text}"))


@contextmanager
def _text(source: str, stream: Stream) -> Iterator[io.TextIOWrapper]:
    """Decode UTF-8 with or without a byte order mark, or what `encoding_of` recognises; `stream` stays open."""
    start = b""
    with suppress(EOFError, OSError, zlib.error):  # a damaged file is named where it is read
        start = stream.read(SNIFFED)
    stream.seek(0)
    encoding = encoding_of(start)
    tell_encoding(source, encoding)
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    try:
        yield text
    finally:
        text.detach()


def _lines(source: str, text: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines with their ends, each of a bounded length."""
    number = 0
    while line := text.readline(MAX_ELEMENT):
        number += 1
        if len(line) >= MAX_ELEMENT:
            raise _fault(source, f"line {number} is longer than {MAX_ELEMENT:,} characters; expected one row a line")
        yield line


# ---- JSON --------------------------------------------------------------------------------------------------------

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")


class _Window:
    """The undecoded part of a JSON text: `text[at:]`, extended from `stream` when more is needed.

    The standard library decodes each element, so an array and a .jsonl take the same values: NaN, integers of any size
    and half surrogate pairs included, which streaming parsers (ijson over yajl) refuse, change or crash on.
    """

    def __init__(self, source: str, stream: io.TextIOWrapper) -> None:
        self.source, self.stream = source, stream
        self.text, self.at = "", 0
        self.line, self.row = 1, 0  # of text[0]; of the last value decoded

    def peek(self) -> str:
        """Return the next character that is not blank, or an empty string at the end of the text."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._grow():
                return self.text[self.at : self.at + 1]

    def take(self, mark: str, otherwise: str) -> None:
        """Consume `mark`, or raise."""
        if self.peek() != mark:
            raise self.fault(otherwise, self.at)
        self.at += 1

    def value(self) -> Any:
        """Decode the next JSON value."""
        self.row += 1
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._grow():
                    raise self.fault(f"not JSON ({error.msg}); correct or export it again", error.pos) from error
            except RecursionError as error:
                raise self.fault("nested too deeply to be a row", self.at) from error
            except ValueError as error:  # an integer of thousands of digits
                raise self.fault(str(error), self.at) from error
            else:
                if end < len(self.text) or not self._grow():  # a number may continue behind the window
                    self.at = end
                    return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Return whether more text could mend the error: it is at the window's end, or a string has no end yet."""
        return error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")

    def _grow(self) -> bool:
        """Double the undecoded text, so that a long value costs linear time; return False at the end."""
        unread = len(self.text) - self.at
        if unread >= MAX_ELEMENT:
            raise self.fault(f"one value is longer than {MAX_ELEMENT:,} characters; expected an array of rows", self.at)
        if not (fresh := self.stream.read(max(CHUNK, unread))):
            return False
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + fresh, 0
        return True

    def fault(self, what: str, position: int) -> MtlReError:
        line = self.line + self.text.count("\n", 0, position)
        row = f", row {self.row}" if self.row else ""
        return _fault(self.source, f"line {line}{row}: {what}")


def _read_json(source: str, text: io.TextIOWrapper) -> Iterator[RawRow]:
    """Yield the elements of an array, also of one inside an object (`{"data": [...]}`); of a file that holds one object
    a line, these; and the rows of a table by columns, as pandas writes one."""
    window = _Window(source, text)
    first = window.peek()
    if not first:
        raise _fault(source, "is empty; expected a JSON array of objects")
    if first == "{":
        yield from _read_object(source, window)
    else:
        window.take("[", "not a JSON array of objects")
        for value in _values(window):
            yield _object(source, window.row, value)
    if window.peek():
        raise window.fault("text after the end of the rows; remove it", window.at)


def _values(window: _Window) -> Iterator[Any]:
    """Yield the values of an array whose bracket is taken, and take the one that closes it."""
    window.row = 0
    if window.peek() != "]":
        yield window.value()
        while window.peek() == ",":
            window.at += 1
            yield window.value()
    window.take("]", "expected ',' or ']' after an element; the file may be cut short")


def _read_object(source: str, window: _Window) -> Iterator[RawRow]:
    """Yield the rows of a text that begins with an object, once it is known what the object is."""
    fields: dict[str, Any] = {}
    wrapped: str | None = None
    window.take("{", "not a JSON object")
    while window.peek() not in ("}", ""):
        key = str(window.value())
        window.take(":", "expected ':' after a key")
        if window.peek() != "[":
            fields[key] = window.value()
        else:
            window.at += 1
            values = _values(window)
            first = next(values, _EMPTY)
            if _has_text(fields) or not _is_row(first):
                fields[key] = [] if first is _EMPTY else [first, *values]
            elif wrapped is not None:
                raise window.fault(f"rows under {wrapped!r} and under {key!r}; give each its own file", window.at)
            else:
                wrapped = key
                for value in chain([first], values):
                    yield _object(source, window.row, value)
        if window.peek() == ",":
            window.at += 1
    window.take("}", "expected ',' or '}' after a value; the file may be cut short")
    if wrapped is not None and _has_text(fields):
        raise window.fault("an object that is a row and holds rows; expected an array of rows", window.at)
    if wrapped is not None:
        return
    if isinstance(fields.get("sentence"), dict):
        yield from _columns(source, fields)
        return
    window.row = 1
    yield RawRow(source, 1, fields)
    while window.peek() == "{":
        yield _object(source, window.row + 1, window.value())


def _is_row(value: Any) -> bool:
    """Return whether an element of an array may be a row, and not a part of one (of an annotation tool's record)."""
    return isinstance(value, dict) and not value.keys() & _PARTS


_PARTS = {"result", "start", "start_idx", "start_offset", "start_char", "begin", "from_id", "pos"}
"""Keys of annotations, entities and relations in the records that `convert` and `extract` read."""


TEXTS = ("text", "sentence", "document", "content", "body")
"""What a row or a document calls its text."""
_EMPTY = object()


def _has_text(fields: dict[str, Any]) -> bool:
    """Return whether an object is a row and no wrapper of rows, whatever lists it holds."""
    return "sentence" in fields or any(isinstance(fields.get(name), str) for name in TEXTS)


def _columns(source: str, columns: dict[str, Any]) -> Iterator[RawRow]:
    """Yield the rows of pandas' `DataFrame.to_json()`: column → row name → cell."""
    names = list(columns["sentence"])
    for number, name in enumerate(names, start=1):
        cells = {key: column.get(name) if isinstance(column, dict) else column for key, column in columns.items()}
        yield RawRow(source, number, cells)


def _read_jsonl(source: str, text: io.TextIOWrapper) -> Iterator[RawRow]:
    seen = False
    for number, line in enumerate(_lines(source, text), start=1):
        if not (content := line.strip(" \t\r\n")):
            continue
        if not seen and (content.startswith("[") or content == "{"):
            raise _fault(source, "is one JSON value over several lines; rename it to .json")
        try:
            value = _DECODER.decode(content)
            inside = value if not seen and isinstance(value, dict) and not _has_text(value) else {}
            arrays = {key: inner for key, inner in inside.items() if isinstance(inner, list)}
            if rows := next((key for key, inner in arrays.items() if any(map(_is_row, inner))), None):
                raise _fault(source, f"is one object that holds rows under {rows!r}; rename it to .json")
            seen = True
            yield _object(source, number, value)
        except json.JSONDecodeError as error:
            seen = True
            yield RawRow(source, number, fault=RowError("row", f"not JSON ({error.msg} at column {error.colno})"))
        except (RecursionError, ValueError) as error:
            yield RawRow(source, number, fault=RowError("row", f"not JSON ({one_line(str(error))})"))


def _object(source: str, number: int, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(source, number, value)
    return RawRow(source, number, fault=RowError("row", f"expected an object, found {type(value).__name__}"))


# ---- CSV and Parquet -----------------------------------------------------------------------------------------------


def _read_csv(source: str, text: io.TextIOWrapper) -> Iterator[RawRow]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    lines = _lines(source, text)
    first = next(lines, "")
    # Whatever the file's name says: Excel's `Unicode text` has tabs, and where a comma is the decimal sign, semicolons.
    delimiter = max(",\t;", key=first.count)
    cells = _cells(csv.reader(chain([first], lines), strict=True, delimiter=delimiter))
    header = next(cells, None)
    if (
        isinstance(header, csv.Error)
        or header is None
        or (not {"sentence", "text"} & set(header) and format_of(header) is None)
    ):
        found = "the file is empty" if header is None else str(header)[:200]
        raise _fault(source, f"the first line must name the columns (id, sentence, subject_entity, ...); found {found}")
    if len(set(header)) < len(header):
        raise _fault(source, f"the first line names a column twice: {header}")
    for number, row in enumerate(cells, start=1):
        if isinstance(row, csv.Error):
            if "field limit" in str(row):
                what = f"row {number}: a cell is longer than {MAX_CELL:,} characters; a closing quote may be missing"
                raise _fault(source, what) from row
            yield RawRow(source, number, fault=RowError("row", f"not CSV ({row})"))
        elif len(row) != len(header):
            reason = f"{len(row)} columns where the first line has {len(header)}"
            yield RawRow(source, number, fault=RowError("row", reason))
        else:
            yield RawRow(source, number, dict(zip(header, row, strict=True)))


def _cells(reader: Any) -> Iterator[list[str] | csv.Error]:
    """Yield rows that are not blank; an ill-formed row as its error, after which the reader continues."""
    while True:
        try:
            if row := next(reader):
                yield row
        except csv.Error as error:
            yield error
        except StopIteration:
            return


def _read_parquet(source: str, stream: Stream) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as plain:
        if isinstance(stream, gzip.GzipFile):  # Parquet begins at its end, which gzip cannot seek to
            shutil.copyfileobj(stream, plain, CHUNK)
        number = 0
        try:
            file = parquet.ParquetFile(plain if isinstance(stream, gzip.GzipFile) else stream, pre_buffer=False)
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield RawRow(source, number, fields)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            after = f"after row {number}: " if number else ""
            raise _fault(source, f"{after}not sound Parquet ({error}); write or copy it again") from error


TEXT_FORMATS: dict[str, Callable[[str, io.TextIOWrapper], Iterator[RawRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
FORMATS = (*TEXT_FORMATS, ".parquet")


# ---- hub and sample ----------------------------------------------------------------------------------------------


def _read_hub(spec: str) -> Iterator[RawRow]:
    """Yield a hub split: `hub:klue/re:train` is data set `klue`, configuration `re`; the first may hold a slash."""
    name, _, split = spec.removeprefix("hub:").partition(":")
    dataset, _, config = name.rpartition("/")
    if not (dataset and config and split):
        raise _fault(spec, "expected hub:DATASET/CONFIG:SPLIT, for example hub:klue/re:train")
    import datasets

    number = 0
    try:
        for fields in datasets.load_dataset(dataset, config, split=split, streaming=True):
            number += 1
            yield RawRow(spec, number, dict(fields))
    except Exception as error:  # the hub client raises dozens of kinds: network, name, licence, format
        after = f"after row {number}: " if number else ""
        what = f"{after}the hub data set cannot be read ({type(error).__name__}: {error}); check name and network"
        raise _fault(spec, what) from error


def _read_sample(spec: str) -> Iterator[RawRow]:
    name = spec.removeprefix("sample:")
    split = next((split for split in SAMPLE_SPLITS if split == name), None)
    if split is None:
        raise _fault(spec, f"unknown split {name!r}; expected one of {', '.join(SAMPLE_SPLITS)}")
    from mtl_re.data import sample

    config = SampleConfig()
    for number, fields in enumerate(sample.rows(split, getattr(config, split), config.seed), start=1):
        yield RawRow(spec, number, fields)
