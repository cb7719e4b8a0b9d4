"""A row as it stands in its source, and what its readers share: limits, faults, lines.

Nothing here says what a row must hold: `validation` does.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mtl_re.errors import MtlReError, RowError

CHUNK = 1 << 20
"""Characters of JSON, or bytes of a file, read at once."""
MAX_ELEMENT = 64 << 20
"""Longest single row of text, in characters: anything longer is not a sentence with two entities."""
Stream = IO[bytes] | gzip.GzipFile
TEXTS = ("text", "sentence", "document", "content", "body")
"""What a row or a document calls its text."""


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


def one_line(text: str) -> str:
    """Return `text` without line breaks: a message is one line even where a file's name is not."""
    return " ".join(text.splitlines())


def fault(source: str, text: str) -> MtlReError:
    """Return the fault of a whole source, in one line."""
    return MtlReError(one_line(f"{source}: {text}"))


def lines_of(source: str, text: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines with their ends, each of a bounded length."""
    number = 0
    while line := text.readline(MAX_ELEMENT):
        number += 1
        if len(line) >= MAX_ELEMENT:
            raise fault(source, f"line {number} is longer than {MAX_ELEMENT:,} characters; expected one row a line")
        yield line


def parquet_rows(file: Path | IO[bytes], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, some at a time.

    Args:
        columns: Those to read (None: all).

    Raises:
        pyarrow.ArrowException: It is not sound.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(file, pre_buffer=False) as table:
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()
