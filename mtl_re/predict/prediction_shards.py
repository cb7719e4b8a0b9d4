"""Finished windows of a prediction on disk, until all of them become the output.

Beside the output NAME lie, for each process k, `.partial-NAME.k` (encoded rows, window after window, in the order in
which they were finished) and `.partial-NAME.k.journal` (JSON lines). A journal's first line is the fingerprint of all
that the output depends on; each other line is one window. Rows are on the disk before their line is written, so a kill
leaves at most rows without a line or half a line: `recover` cuts off both, and what does not match its hash. A line has
a hash of its own: a flipped bit in a window's number would else put its rows in another window's place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from mtl_re.errors import MtlReError
from mtl_re.files import unwritable

Rejected = tuple[int, str, str]
"""A row left out: its number in the input, the field at fault, the reason."""


@dataclass(frozen=True)
class Window:
    """A journal's line: a finished window of the input.

    Attributes:
        window: its number. offset, length: its bytes in the shard. sha256: of these bytes.
        rows: rows of the output. ids: `IdDigest` of the input rows that they answer.
        rejected: the rows left out.
    """

    window: int
    offset: int
    length: int
    sha256: str
    rows: int
    ids: str
    rejected: list[Rejected]

    @property
    def read(self) -> int:
        """Rows of the input."""
        return self.rows + len(self.rejected)


class Shards:
    """The shards of one output.

    Args:
        output: the file that they will become.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._name = re.compile(re.escape(f".partial-{output.name}.") + r"(\d+)(\.journal)?")

    def shard(self, number: int) -> Path:
        return self.output.with_name(f".partial-{self.output.name}.{number}")

    def journal(self, number: int) -> Path:
        return self.output.with_name(f".partial-{self.output.name}.{number}.journal")

    def numbers(self) -> list[int]:
        """Of the shards that lie there, whole or not."""
        names = os.listdir(self.output.parent) if self.output.parent.is_dir() else []
        return sorted({int(match[1]) for name in names if (match := self._name.fullmatch(name))})

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the output's folder and hold the output for this process; the system frees it however that ends.

        Raises:
            MtlReError: the place cannot be written, or another process writes there.
        """
        lock = self.output.with_name(f".partial-{self.output.name}.lock")
        try:
            if self.output.is_dir():
                raise IsADirectoryError(None, "it is a directory")
            self.output.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise unwritable(self.output, error) from error
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise MtlReError(f"{self.output}: another `mtl-re predict` is writing it") from error
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all shards."""
        for number in self.numbers():
            self.journal(number).unlink(missing_ok=True)  # first: a shard without a journal is nothing
            self.shard(number).unlink(missing_ok=True)

    # ---- taking up

    def recover(self, fingerprint: Mapping[str, Any]) -> list[Window]:
        """Cut every shard back to its whole windows.

        Args:
            fingerprint: of the output that is wanted.

        Returns:
            The finished windows, each once.

        Raises:
            MtlReError: the shards belong to another output; the text names what differs.
        """
        for number in self.numbers():
            if (begun := self._fingerprint(number)) is not None:
                _compare(self.output, begun, fingerprint)
        found: dict[int, Window] = {}
        for number in self.numbers():
            whole = [w for w in self._whole(number) if w.window not in found]
            found |= {window.window: window for window in whole}
            self._cut(number, fingerprint, whole)
        return list(found.values())

    def _fingerprint(self, number: int) -> dict[str, Any] | None:
        """What a journal begins with; None if not even that was written."""
        with suppress(FileNotFoundError), self.journal(number).open("rb") as file:
            return _parsed(file.readline())
        return None

    def _whole(self, number: int) -> Iterator[Window]:
        """Windows of a shard whose bytes are as the journal says."""
        with suppress(FileNotFoundError), self.shard(number).open("rb") as rows:
            for _, window in self._lines(number):
                rows.seek(window.offset)
                if hashlib.sha256(rows.read(window.length)).hexdigest() == window.sha256:
                    yield window

    def _lines(self, number: int) -> Iterator[tuple[int, Window]]:
        """A journal's windows, each with the offset of its line; a torn line ends them."""
        with suppress(FileNotFoundError), self.journal(number).open("rb") as file:
            line = file.readline()
            offset, begun = len(line), _parsed(line) is not None
            while begun and (fields := _parsed(line := file.readline())) is not None:
                yield offset, Window(**fields)
                offset += len(line)

    def _cut(self, number: int, fingerprint: Mapping[str, Any], whole: Sequence[Window]) -> None:
        if not whole:
            self.journal(number).unlink(missing_ok=True)
            self.shard(number).unlink(missing_ok=True)
            return
        lines = _line(fingerprint) + b"".join(_line(asdict(window)) for window in whole)
        if lines != self.journal(number).read_bytes():
            rewritten = self.journal(number).with_name(f".partial-{self.output.name}.lines")
            rewritten.write_bytes(lines)
            os.replace(rewritten, self.journal(number))
        os.truncate(self.shard(number), max(window.offset + window.length for window in whole))

    # ---- collecting

    def index(self) -> dict[int, tuple[int, int]]:
        """Window → shard, and the offset of its line in the journal."""
        return {window.window: (number, offset) for number in self.numbers() for offset, window in self._lines(number)}

    def finished(self) -> int:
        """Input rows in finished windows."""
        return sum(window.read for number in self.numbers() for _, window in self._lines(number))

    def described(self, windows: int) -> Iterator[tuple[int, Window]]:
        """Shard and journal line of the windows 0 to `windows` - 1, in order.

        Raises:
            MtlReError: one is missing, or its line is damaged.
        """
        places = self.index()
        if missing := [number for number in range(windows) if number not in places]:
            raise MtlReError(f"{self.output}: {len(missing)} windows are missing; go on with --resume")
        journals: dict[int, IO[bytes]] = {}
        try:
            for number in range(windows):
                shard, offset = places[number]
                if shard not in journals:
                    journals[shard] = self.journal(shard).open("rb")
                journals[shard].seek(offset)
                if (fields := _parsed(journals[shard].readline())) is None:
                    raise MtlReError(f"{self.journal(shard)}: is damaged; --resume predicts what it no longer tells of")
                yield shard, Window(**fields)
        finally:
            for file in journals.values():
                file.close()

    def chunks(self, windows: int) -> Iterator[bytes]:
        """The encoded rows of the windows 0 to `windows` - 1, in order, one window at a time.

        Raises:
            MtlReError: one is missing or damaged.
        """
        for shard, window in self.described(windows):
            with self.shard(shard).open("rb") as file:
                file.seek(window.offset)
                rows = file.read(window.length)
            if hashlib.sha256(rows).hexdigest() != window.sha256:
                raise MtlReError(f"{self.shard(shard)}: window {window.window} is damaged; --resume predicts it again")
            yield rows


class ShardWriter:
    """One process's shard: windows are added at its end.

    Args:
        shards: of the output. number: this process's. fingerprint: of the output.
    """

    def __init__(self, shards: Shards, number: int, fingerprint: Mapping[str, Any]) -> None:
        self.output = shards.output
        self._rows = shards.shard(number).open("ab")
        self._journal = shards.journal(number).open("ab")
        if not self._journal.tell():
            self._journal.write(_line(fingerprint))
            self._journal.flush()

    def add(self, window: int, rows: bytes, count: int, ids: str, rejected: list[Rejected]) -> None:
        """Put a finished window on the disk: its rows first, then its line."""
        offset, digest = self._rows.tell(), hashlib.sha256(rows).hexdigest()
        self._rows.write(rows)
        self._rows.flush()
        os.fsync(self._rows.fileno())
        done = Window(window, offset, len(rows), digest, count, ids, rejected)
        self._journal.write(_line(asdict(done)))
        self._journal.flush()

    def close(self) -> None:
        for file in (self._rows, self._journal):
            with suppress(OSError):  # all that counts was flushed; the rest of a failed write is not wanted
                file.close()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps({**value, "seal": _seal(value)}).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The inverse of `_line`; None for a torn or damaged line, and at the end."""
    try:
        value: dict[str, Any] = json.loads(line)
        return value if value.pop("seal") == _seal(value) and line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _seal(value: Mapping[str, Any]) -> str:
    """SHA-256 of what a line says."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _compare(output: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 40 else text[:12] + "..."

    names = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    if names:
        told = "; ".join(f"{name} was {short(begun.get(name))}, is {short(wanted.get(name))}" for name in names)
        raise MtlReError(
            f"{output}: --resume: the rows so far were predicted otherwise ({told}); without --resume it starts over"
        )
