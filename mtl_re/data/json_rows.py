"""JSON → raw rows: an array, also one inside an object; one object a line; a table by columns, as pandas writes one.

Enters: decoded text. Leaves: `RawRow`s. One element of an array is held at a time; of a table by columns, all of it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from mtl_re.data.raw_rows import CHUNK, MAX_ELEMENT, TEXTS, RawRow, fault, lines_of, one_line
from mtl_re.errors import MtlReError, RowError

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
        return fault(self.source, f"line {line}{row}: {what}")


def read_json(source: str, text: io.TextIOWrapper) -> Iterator[RawRow]:
    """Yield the elements of an array, also of one inside an object (`{"data": [...]}`); of a file that holds one object
    a line, these; and the rows of a table by columns, as pandas writes one."""
    window = _Window(source, text)
    first = window.peek()
    if not first:
        raise fault(source, "is empty; expected a JSON array of objects")
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


def read_jsonl(source: str, text: io.TextIOWrapper) -> Iterator[RawRow]:
    seen = False
    for number, line in enumerate(lines_of(source, text), start=1):
        if not (content := line.strip(" \t\r\n")):
            continue
        if not seen and (content.startswith("[") or content == "{"):
            raise fault(source, "is one JSON value over several lines; rename it to .json")
        try:
            value = _DECODER.decode(content)
            inside = value if not seen and isinstance(value, dict) and not _has_text(value) else {}
            arrays = {key: inner for key, inner in inside.items() if isinstance(inner, list)}
            if rows := next((key for key, inner in arrays.items() if any(map(_is_row, inner))), None):
                raise fault(source, f"is one object that holds rows under {rows!r}; rename it to .json")
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
