"""CSV and Parquet → raw rows.

Enters: decoded text with commas, tabs or semicolons, or the bytes of a Parquet file. Leaves: `RawRow`s, in constant
memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import tempfile
from collections.abc import Iterator
from itertools import chain
from typing import Any

from mtl_re.data.format_signs import format_of
from mtl_re.data.raw_rows import CHUNK, RawRow, Stream, fault, lines_of, parquet_rows
from mtl_re.errors import RowError

MAX_CELL = 4 << 20
"""Longest cell of a CSV, in characters: a quote that is never closed runs into this."""


def read_csv(source: str, text: io.TextIOWrapper, any_columns: bool = False) -> Iterator[RawRow]:
    """Yield the rows of a table whose first line names the columns.

    Args:
        any_columns: Whether the columns may have other names than those of rows (for `convert`).
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    lines = lines_of(source, text)
    first = next(lines, "")
    # Whatever the file's name says: Excel's `Unicode text` has tabs, and where a comma is the decimal sign, semicolons.
    delimiter = max(",\t;", key=first.count)
    cells = _cells(source, csv.reader(chain([first], lines), strict=True, delimiter=delimiter))
    header = next(cells, None)
    known = any_columns or (isinstance(header, list) and ({"sentence", "text"} & set(header) or format_of(header)))
    if isinstance(header, RowError) or header is None or not known:
        found = "the file is empty" if header is None else str(header)[:200]
        raise fault(source, f"the first line must name the columns (id, sentence, subject_entity, ...); found {found}")
    if len(set(header)) < len(header):
        raise fault(source, f"the first line names a column twice: {header}")
    for number, row in enumerate(cells, start=1):
        if isinstance(row, RowError):
            yield RawRow(source, number, fault=row)
        elif len(row) != len(header):
            reason = f"{len(row)} columns where the first line has {len(header)}"
            yield RawRow(source, number, fault=RowError("row", reason))
        else:
            yield RawRow(source, number, dict(zip(header, row, strict=True)))


def _cells(source: str, reader: Any) -> Iterator[list[str] | RowError]:
    """Yield rows that are not blank; an ill-formed row as its error, after which the reader continues.

    Raises:
        MtlReError: A quote is never closed, so that the rows behind it cannot be told apart.
    """
    while True:
        first = reader.line_num + 1
        try:
            if row := next(reader):
                yield row
        except csv.Error as error:
            long = "field limit" in str(error)
            if long or ("unexpected end" in str(error) and reader.line_num > first):
                what = f"is longer than {MAX_CELL:,} characters" if long else "has a quote that is never closed"
                raise fault(source, f"line {first}: a cell {what}; quotes inside a cell must be doubled") from error
            lines = f"; lines {first} to {reader.line_num}, which a quote joins" if reader.line_num > first else ""
            yield RowError("row", f"not CSV ({error}{lines})")
        except StopIteration:
            return


def read_parquet(source: str, stream: Stream) -> Iterator[RawRow]:
    import pyarrow

    with tempfile.TemporaryFile() as plain:
        if isinstance(stream, gzip.GzipFile):  # Parquet begins at its end, which gzip cannot seek to
            shutil.copyfileobj(stream, plain, CHUNK)
        number = 0
        try:
            file = plain if isinstance(stream, gzip.GzipFile) else stream
            for number, fields in enumerate(parquet_rows(file), 1):
                yield RawRow(source, number, fields)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            after = f"after row {number}: " if number else ""
            raise fault(source, f"{after}not sound Parquet ({error}); write or copy it again") from error
