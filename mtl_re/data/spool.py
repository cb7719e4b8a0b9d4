"""Examples beyond memory: they are written to a temporary file and decoded one at a time when asked for.

Enters: an iterator of examples. Leaves: a sequence of them: a list of up to `IN_MEMORY`, else a `Spool`. Splitting,
guarding and tokenising take their rows in order or by number, so a sequence is all they need. The file has no name: it
is gone with the process. Arrow was measured on 100,000 rows of KLUE's size and lost: `datasets` takes 17 s to write and
15 s to iterate over what this does in 0.7 s and 0.9 s, and leaves its files behind after a kill; bare pyarrow 7 s and
1.5 s, and 0.12 ms a row at random against 0.01 ms.
"""

from __future__ import annotations

import marshal
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, overload

from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError

if TYPE_CHECKING:
    import numpy as np

IN_MEMORY = 50_000
"""Rows that are kept as a list; more of them are kept in a file."""


class Spool(Sequence[Example]):
    """Examples of a file.

    Args:
        text: the file's bytes. starts: (rows of the file + 1,) offset of each row.
        chosen: (rows,) numbers of the file's rows that this sequence holds, in its order.
    """

    def __init__(self, text: mmap.mmap, starts: np.ndarray, chosen: np.ndarray) -> None:
        self._text, self._starts, self._chosen = text, starts, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Spool: ...
    def __getitem__(self, index: int | slice) -> Example | Spool:
        if isinstance(index, slice):
            return Spool(self._text, self._starts, self._chosen[index])
        row = self._chosen[index]
        return _decode(self._text[self._starts[row] : self._starts[row + 1]])

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: np.ndarray) -> Spool:
        """Return the rows of these numbers, in their order."""
        return Spool(self._text, self._starts, self._chosen[indices])


def _encode(example: Example) -> bytes:
    spans = [(entity.word, entity.start, entity.end, entity.type) for entity in (example.subject, example.object)]
    rest = (example.label, example.source, example.file, example.row)
    return marshal.dumps((example.id, example.sentence, *spans, *rest))


def _decode(text: bytes) -> Example:
    name, sentence, subject, object_, *rest = marshal.loads(text)
    return Example(name, sentence, Entity(*subject), Entity(*object_), *rest)


def collect(examples: Iterable[Example]) -> Sequence[Example]:
    """Return all examples as a sequence: a list, or a spool where they are many.

    Raises:
        MtlReError: the temporary file cannot be written.
    """
    stream = iter(examples)
    first = list(islice(stream, IN_MEMORY + 1))
    if len(first) <= IN_MEMORY:
        return first
    import numpy as np  # few rows are loaded without it

    starts = array("q", [0])
    try:
        with tempfile.TemporaryFile(prefix="mtl-re-rows-") as file:
            for example in chain(first, stream):
                starts.append(starts[-1] + file.write(_encode(example)))
            file.flush()
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        where = f"{len(starts):,} rows, of which more than {IN_MEMORY:,} go to a file in {tempfile.gettempdir()}"
        raise MtlReError(f"{where}: cannot be written ({error.strerror or error}); set TMPDIR") from error
    return Spool(text, np.frombuffer(starts, np.int64), np.arange(len(starts) - 1))


def select(examples: Sequence[Example], indices: np.ndarray) -> Sequence[Example]:
    """Return the examples of these numbers, in their order."""
    return examples.select(indices) if isinstance(examples, Spool) else [examples[index] for index in indices]
