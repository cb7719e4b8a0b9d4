"""More rows than memory should hold: they lie in a temporary file and are read back one at a time.

Training, splitting and tokenising go over their rows in order or by number, so a sequence that decodes a row when it
is asked for is all they need. Up to `IN_MEMORY` rows stay a list. The file has no name: it is gone with the process.
"""

from __future__ import annotations

import marshal
import mmap
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, overload

from mtl_re.errors import MtlReError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
IN_MEMORY = 50_000
"""Rows that are kept as a list; more of them lie in a file."""


class Spool(Sequence[T]):
    """Rows of a file, in an order of its own.

    Args:
        text: the file's bytes. starts: (rows of the file + 1,) where each begins.
        decode: plain values → a row.
        chosen: (rows,) which of them this sequence holds.
    """

    def __init__(
        self, text: mmap.mmap, starts: np.ndarray, decode: Callable[[tuple[Any, ...]], T], chosen: np.ndarray
    ) -> None:
        self._text, self._starts, self._decode, self._chosen = text, starts, decode, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Spool[T]: ...
    def __getitem__(self, index: int | slice) -> T | Spool[T]:
        if isinstance(index, slice):
            return Spool(self._text, self._starts, self._decode, self._chosen[index])
        row = self._chosen[index]
        return self._decode(marshal.loads(self._text[self._starts[row] : self._starts[row + 1]]))

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: np.ndarray) -> Spool[T]:
        """The rows of these numbers, in their order."""
        return Spool(self._text, self._starts, self._decode, self._chosen[indices])


def kept(
    rows: Iterable[T], encode: Callable[[T], tuple[Any, ...]], decode: Callable[[tuple[Any, ...]], T]
) -> Sequence[T]:
    """All rows as a sequence: a list, or a spool where they are many.

    Args:
        encode, decode: a row to plain values (text, numbers, tuples) and back.

    Raises:
        MtlReError: the temporary file cannot be written.
    """
    stream = iter(rows)
    first = list(islice(stream, IN_MEMORY + 1))
    if len(first) <= IN_MEMORY:
        return first
    import numpy as np  # few rows start without it

    starts = array("q", [0])
    try:
        with tempfile.TemporaryFile(prefix="mtl-re-rows-") as file:
            for part in (first, stream):
                for row in part:
                    starts.append(starts[-1] + file.write(marshal.dumps(encode(row))))
                first.clear()
            file.flush()
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        where = f"{len(starts):,} rows, of which more than {IN_MEMORY:,} go to a file in {tempfile.gettempdir()}"
        raise MtlReError(f"{where}: cannot be written ({error.strerror or error}); set TMPDIR") from error
    return Spool(text, np.frombuffer(starts, np.int64), decode, np.arange(len(starts) - 1))


def select(rows: Sequence[T], indices: np.ndarray) -> Sequence[T]:
    """The rows of these numbers, in their order."""
    return rows.select(indices) if isinstance(rows, Spool) else [rows[index] for index in indices]
