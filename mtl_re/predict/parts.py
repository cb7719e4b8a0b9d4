"""Part files: the finished windows of an output, each whole or absent, until all of them become the output.

The directory `.partial-NAME.parts` beside the output NAME holds one file for each finished window of the input, named
by the window's number, and the lock of the process that will publish. A part is a line with the SHA-256 of all that
follows, a line of JSON (`WindowPart`), and the encoded rows. It is written whole or not at all, so a kill leaves no
half of one, and a flipped bit anywhere in it is detected. A part also says which output it belongs to, so any
number of processes may write parts, and another number of them may go on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtl_re.errors import MtlReError
from mtl_re.files import being_written, unwritable, whole_file

RejectedRow = tuple[int, str, str]
"""A row left out: its number in the input, the field at fault, the reason."""
_LOCK = "lock"


@dataclass(frozen=True)
class WindowPart:
    """What a part file says of its window.

    Attributes:
        window: The window's number. fingerprint: All that the bytes of the output depend on, as JSON values.
        read: Rows of the input. used: Those of them that could be used. rows: Rows of the output. ids: `IdDigest` of
            these. rejected: What was left out of the input. told: What is to be said in the end, with a number.
    """

    window: int
    fingerprint: dict[str, Any]
    read: int
    used: int
    rows: int
    ids: str
    rejected: list[RejectedRow]
    told: dict[str, int]


class PartFiles:
    """The part files of one output.

    Args:
        output: The file that they will become.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.directory = output.with_name(f".partial-{output.name}.parts")

    def path(self, window: int) -> Path:
        """Return where a window's part lies, or will lie."""
        return self.directory / str(window)

    def windows(self) -> list[int]:
        """Return the numbers of the windows that have a part, in order."""
        return sorted(int(name) for name in self._names() if name.isdecimal())

    def _names(self) -> list[str]:
        return os.listdir(self.directory) if self.directory.is_dir() else []

    @contextmanager
    def locked(self, command: str = "predict") -> Iterator[None]:
        """Make the directory and hold the output for this process; the system frees it however the process ends.

        Args:
            command: That writes the output, for the message.

        Raises:
            MtlReError: The directory cannot be written, or another process holds the output.
        """
        try:
            if self.output.is_dir():
                raise IsADirectoryError(None, "it is a directory")
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.output, error) from error
        try:
            with being_written(self.output, self.directory / _LOCK, command):
                yield
        finally:
            with suppress(OSError):  # where parts are kept, or another process holds the lock
                self.directory.rmdir()

    def remove(self) -> None:
        """Remove all parts, and what a killed process left of one."""
        for name in self._names():
            if name != _LOCK:
                (self.directory / name).unlink(missing_ok=True)

    # ---- one part

    def write(self, part: WindowPart, rows: bytes) -> None:
        """Write a finished window's part, whole or not at all.

        Raises:
            MtlReError: The disk is full or fails.
        """
        content = json.dumps(asdict(part)).encode() + b"\n" + rows
        with whole_file(self.path(part.window)) as partial:
            partial.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def load(self, window: int) -> tuple[WindowPart, bytes] | None:
        """Return a window's part and its encoded rows; None if it is missing or damaged."""
        try:
            seal, _, content = self.path(window).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if seal != hashlib.sha256(content).hexdigest().encode():
            return None
        description, _, rows = content.partition(b"\n")
        try:
            part = WindowPart(**json.loads(description))
        except TypeError:  # another version's
            return None
        return (part, rows) if part.window == window else None

    # ---- all parts

    def recover(self, fingerprint: Mapping[str, Any], keep_rejected: bool) -> dict[int, int]:
        """Find out what an interrupted prediction has finished, and remove what is damaged or half written.

        Args:
            fingerprint: Of the output that is wanted.
            keep_rejected: Whether rows may be left out of a window.

        Returns:
            Window → number of its input rows.

        Raises:
            MtlReError: The parts belong to another output, whose difference the message names, or left rows out that
                may not be; nothing is removed.
        """
        finished: dict[int, int] = {}
        lacking = 0
        for window in self.windows():
            if (loaded := self.load(window)) is not None:
                part, _ = loaded
                compare(self.output, part.fingerprint, fingerprint)
                finished[window] = part.read
                lacking += bool(part.rejected)
        if lacking and not keep_rejected:
            what = f"{lacking:,} finished windows left rows out"
            raise MtlReError(f"{self.output}: --resume: {what}; give --on_bad_row skip, or start over without --resume")
        for name in self._names():
            if name != _LOCK and not (name.isdecimal() and int(name) in finished):
                (self.directory / name).unlink()
        return finished

    def fingerprint(self) -> dict[str, Any] | None:
        """Return what the first undamaged part was made of; None where there is none."""
        loaded = next(filter(None, map(self.load, self.windows())), None)
        return None if loaded is None else loaded[0].fingerprint

    def rows(self) -> int:
        """Return the number of input rows in finished windows, as their parts say; what they hold is not checked."""
        rows = 0
        for window in self.windows():
            with suppress(ValueError, TypeError), self.path(window).open("rb") as file:
                file.readline()
                rows += WindowPart(**json.loads(file.readline())).read
        return rows

    def in_order(self, windows: int) -> Iterator[tuple[WindowPart, bytes]]:
        """Give the parts of the windows 0 to `windows` - 1, one at a time.

        Raises:
            MtlReError: One is missing or damaged.
        """
        for window in range(windows):
            if (loaded := self.load(window)) is None:
                raise MtlReError(f"{self.path(window)}: is missing or damaged; --resume predicts its rows again")
            yield loaded


def compare(output: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare two fingerprints.

    Raises:
        MtlReError: They differ; the message names in what.
    """

    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 40 else text[:12] + "..."

    names = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    if names:
        told = "; ".join(f"{name} was {short(begun.get(name))}, is {short(wanted.get(name))}" for name in names)
        raise MtlReError(
            f"{output}: --resume: the rows so far were predicted otherwise ({told}); without --resume it starts over"
        )
