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
from mtl_re.data.raw_rows import CHUNK, RawRow, Stream, fault, lines_of
from mtl_re.errors import RowError

MAX_CELL = 4 << 20
"""Longest cell of a CSV, in characters: a quote that is never closed runs into this."""


def read_csv(source: str, text: io.TextIOWrapper) -> Iterator[RawRow]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    lines = lines_of(source, text)
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
        raise fault(source, f"the first line must name the columns (id, sentence, subject_entity, ...); found {found}")
    if len(set(header)) < len(header):
        raise fault(source, f"the first line names a column twice: {header}")
    for number, row in enumerate(cells, start=1):
        if isinstance(row, csv.Error):
            if "field limit" in str(row):
                what = f"row {number}: a cell is longer than {MAX_CELL:,} characters; a closing quote may be missing"
                raise fault(source, what) from row
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


def read_parquet(source: str, stream: Stream) -> Iterator[RawRow]:
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
            raise fault(source, f"{after}not sound Parquet ({error}); write or copy it again") from error
