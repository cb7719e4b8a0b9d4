"""Any number of rows, by any number of processes, through kills, to one checked file.

The unit of work is a window: so many consecutive rows of the input, as read. Batches are made inside a window, so a
window's output is the same whichever process makes it and whenever. Each process works on a fixed share of the windows
and writes a part file for each (`parts`); `--resume` works on the windows that have none. The input is read to its end
before the work starts, so that a bad row is reported at once. Rank 0 decides what is left to do, and in the end merges
the parts, checks the output and publishes it. What is made of a row is a `WindowJob`'s business: `predict` makes a
prediction of it, `extract` the triples of a document.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from tqdm import tqdm

from mtl_re.config import ExtractConfig, PredictConfig
from mtl_re.data.loading import cures, write_rejected
from mtl_re.data.readers import NoRowsError, file_digest
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError
from mtl_re.files import remove, unwritable
from mtl_re.outputs import remember
from mtl_re.predict.parts import PartFiles, RejectedRow, WindowPart
from mtl_re.predict.process_group import ProcessGroup
from mtl_re.signals import stop_signals

Row = TypeVar("Row")
Progress = Callable[[float], object]
"""Called with the rows that have just been finished, or parts of one."""
_POLL = 0.2  # seconds between two looks at the parts of other processes


class Answer(NamedTuple):
    """What a window has become.

    Attributes:
        encoded: Rows of the output, as they will be handed to `publish`. rows: Their number. ids: `IdDigest` of them.
        used: Rows of the input that could be used. rejected: What was left out.
        told: What is to be said when all is done, with a number; the numbers of all windows are added up.
    """

    encoded: bytes
    rows: int
    ids: str
    used: int
    rejected: list[RejectedRow]
    told: dict[str, int]


@dataclass(frozen=True)
class WorkPlan:
    """What rank 0 has decided.

    Attributes:
        fingerprint: All that the bytes of the output depend on, as JSON values.
        total: Rows of the input. finished: Windows that have a part, and their input rows.
    """

    fingerprint: dict[str, Any]
    total: int
    finished: dict[int, int]


class WindowJob(ABC, Generic[Row]):
    """One output to be made.

    Args:
        options: The command's.
        data: The input.
        output: The file.
        group: The processes that share the work.

    Attributes:
        rejected: Where the rows left out are listed, if there are any. quiet: Whether no progress is shown.
        may_be_empty: Whether an input without a usable row gives an empty output, as one of many may, and no fault.
        read, left_out: Rows of the input, and those of them that were left out; known when the job is done.
    """

    command: ClassVar[str]
    """The command's name, which messages and the progress bar show."""
    left_out_name: ClassVar[str] = "bad rows"
    """What `rejected` lists, for messages."""

    def __init__(self, options: PredictConfig | ExtractConfig, data: str, output: Path, group: ProcessGroup) -> None:
        self.options, self.data, self.group = options, data, group
        self.parts = PartFiles(output)
        self.rejected = output.with_name(f"{output.name}.rejected.jsonl")
        self.quiet, self.may_be_empty = group.rank > 0, False
        self.read = self.left_out = 0

    @property
    def output(self) -> Path:
        """The file to make."""
        return self.parts.output

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, Row | BadRow]]:
        """Yield every row of the input with its number, or what is wrong with it."""

    def digest(self) -> str:
        """Return a digest of the input, by which a change of it is seen."""
        return file_digest(self.data)

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return all that the bytes of the output depend on, as JSON values (the input's digest is added)."""

    @abstractmethod
    def answer(self, rows: list[tuple[int, Row]], tick: Progress) -> Answer:
        """Work on the sound rows of one window.

        Args:
            rows: With their numbers.
            tick: To be called with the rows just finished, or parts of one.

        Raises:
            MtlReError: A row cannot be used, and may not be left out.
        """

    @abstractmethod
    def publish(self, chunks: Iterable[bytes], expected: Callable[[], Iterable[tuple[int, str]]]) -> None:
        """Put the encoded rows of all windows into the output, checked (`expected`: number and `IdDigest` of each)."""

    def look_at(self, row: Row) -> None:
        """See one sound row while the input is looked through; for what is to be said of all rows."""

    def looked(self, rows: int) -> None:
        """The input was looked through; it has so many rows."""

    # ---- one run

    def run(self) -> int:
        """Make the output and return the number of its rows (0 on other ranks than the first).

        Raises:
            MtlReError: Rows or the output's directory are at fault; an old output stands.
        """
        with ExitStack() as held:
            try:
                plan = self.group.from_first(lambda: self._prepare(held))
                with self.group.faults_told():
                    windows = self._work(plan)
                return self._conclude(windows, plan) if self.group.rank == 0 else 0
            except BrokenPipeError:
                raise
            except OSError as error:
                raise unwritable(self.output, error) from error

    # ---- before

    def _prepare(self, held: ExitStack) -> WorkPlan:
        """Rank 0: hold the output, look through the input, and find out what is left to do."""
        held.enter_context(self.parts.locked(self.command))
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # `torchrun --max-restarts`
        resume = self.options.resume or restarted
        total, digest = self._look_through()
        fingerprint = self.fingerprint() | {"data": digest, "window": self.options.window}
        finished = self.parts.recover(fingerprint, self.options.on_bad_row == "skip") if resume else {}
        if not resume:
            if self.parts.windows():
                lost = f"{self.parts.rows():,} rows of an interrupted `mtl-re {self.command}` are thrown away"
                _say(f"{self.output}: {lost} (--resume would keep them)")
            self.parts.remove()
        held.push(lambda kind, *_: self._keep_or_clear() if kind else None)
        return WorkPlan(fingerprint, total, finished)

    def _keep_or_clear(self) -> None:
        """After a fault: say what is kept, or remove the parts where no row is finished."""
        if rows := self.parts.rows():
            _say(f"{self.output}: {rows:,} finished rows are kept; the same command with --resume goes on from there")
        else:
            self.parts.remove()

    def _look_through(self) -> tuple[int, str]:
        """Check and count the rows of the input, and return their number and its digest: of a file's bytes, or of the
        rows of a data set of the hub, which is then read twice and not three times.

        Raises:
            MtlReError: A row is bad and may not be left out, or the input ends in a fault.
        """
        seen = hashlib.sha256() if self.data.startswith("hub:") else None
        rows = 0
        for _, row in self._input():
            rows += 1
            if seen is not None:
                seen.update(f"{row!r}\n".encode(errors="backslashreplace"))
            if isinstance(row, BadRow):
                self._reject(row)
            else:
                self.look_at(row)
        self.looked(rows)
        return rows, self.digest() if seen is None else seen.hexdigest()

    def _input(self) -> Iterator[tuple[int, Row | BadRow]]:
        """Yield `rows`; that there is none counts as a bad row where the output may be empty."""
        try:
            yield from self.rows()
        except NoRowsError:
            if not self.may_be_empty:
                raise
            yield 1, BadRow(self.data, 1, "row", "missing; the file holds no rows")

    def _reject(self, row: BadRow) -> RejectedRow:
        """Return a bad row as it is kept in a part.

        Raises:
            MtlReError: It may not be left out.
        """
        if self.options.on_bad_row == "error" and row.fits:
            raise MtlReError(f"{row}; {cures([row], 1)[-1]}")
        if self.options.on_bad_row == "error":
            raise MtlReError(f"{row} (on_bad_row skip leaves such rows out)")
        return row.row, row.field, row.reason

    # ---- the work

    def _work(self, plan: WorkPlan) -> int:
        """Work on this rank's share of the windows that are left, and return the number of all windows.

        Of n ranks, rank k takes every n-th of them from the k-th on. Rank 0 then waits for the parts of the others.
        """
        group, parts, finished = self.group, self.parts, plan.finished
        windows, left, mine, rows_done = 0, 0, 0, sum(finished.values())
        with self._bar(plan) as bar:

            def move(rows: float) -> None:
                bar.update(min(rows, plan.total) - bar.n)  # the parts of a row may sum to more than it, by rounding

            def show() -> None:
                others = len(parts.windows()) - len(finished) - mine if group.size > 1 and group.rank == 0 else 0
                move(rows_done + others * self.options.window)

            for number, rows in self._windows():
                windows += 1
                if number in finished:
                    continue
                if left % group.size == group.rank:
                    self._answer_window(plan, number, rows, lambda part: move(bar.n + part))
                    mine += 1
                    rows_done += len(rows)
                    show()
                left += 1
            while group.rank == 0 and len(parts.windows()) < windows:
                time.sleep(_POLL)
                show()
        return windows

    def _bar(self, plan: WorkPlan) -> Any:
        """Return a bar over the rows of all ranks, those of an earlier run included; the rate is this run's."""
        return tqdm(
            total=plan.total,
            initial=sum(plan.finished.values()),
            desc=f"{self.command} {self.data}",
            unit="row",
            unit_scale=True,
            smoothing=0.1,
            disable=self.quiet,
            file=sys.stderr,
        )

    def _windows(self) -> Iterator[tuple[int, list[tuple[int, Row | BadRow]]]]:
        rows = self._input()
        for number in count():
            if not (window := list(islice(rows, self.options.window))):
                return
            yield number, window

    def _answer_window(self, plan: WorkPlan, number: int, rows: list[tuple[int, Row | BadRow]], tick: Progress) -> None:
        bad = [self._reject(row) for _, row in rows if isinstance(row, BadRow)]
        answer = self.answer([(place, row) for place, row in rows if not isinstance(row, BadRow)], tick)
        rejected = sorted([*bad, *answer.rejected])
        part = WindowPart(
            number, plan.fingerprint, len(rows), answer.used, answer.rows, answer.ids, rejected, answer.told
        )
        self.parts.write(part, answer.encoded)

    # ---- after

    def _conclude(self, windows: int, plan: WorkPlan) -> int:
        """Rank 0: merge the parts in the input's order, check the file, publish it, and return its number of rows."""
        parts, data = self.parts, self.data
        summaries, told = [], Counter[str]()
        for part, _ in parts.in_order(windows):
            summaries.append((part.rows, part.ids, part.read, part.used, len(part.rejected)))
            told.update(part.told)
        counts = ((rows, read, used, lost) for rows, _, read, used, lost in summaries)
        rows, self.read, used, lost = map(sum, zip(*counts, strict=True))
        self.left_out = lost
        if not data.startswith("hub:") and self.digest() != plan.fingerprint["data"]:
            parts.remove()
            raise MtlReError(f"{data}: it was changed while its rows were read; run `mtl-re {self.command}` again")
        if not used and not self.may_be_empty:
            first = next(self._rejected(windows))
            parts.remove()
            raise MtlReError(f"{first}; none of the {lost:,} rows can be used")
        if lost:
            write_rejected(self.rejected, self._rejected(windows))
            remember([self.rejected])  # at once: a kill before the output stands must not make it somebody else's
            _say(f"{data}: {lost} {self.left_out_name} left out, listed in {self.rejected}")
        else:
            remove(self.rejected)  # an earlier output's
        expected = [(number, ids) for number, ids, *_ in summaries]
        self.publish((encoded for _, encoded in parts.in_order(windows)), lambda: expected)
        remember([self.output])  # as above; the command notes it too, but only when all is done
        for text, number in told.items():
            _say(f"{data}: {number:,} {text}")
        parts.remove()
        return rows

    def _rejected(self, windows: int) -> Iterator[BadRow]:
        for part, _ in self.parts.in_order(windows):
            for number, field, reason in part.rejected:
                yield BadRow(self.data, number, field, reason)


def run_job(make: Callable[[ProcessGroup], WindowJob[Any]]) -> int:
    """Make a job and run it in the processes of this launch, stopping cleanly at SIGTERM and Ctrl-C.

    Args:
        make: Called in every process with its group; loads the checkpoint.

    Returns:
        The number of rows written (0 on other ranks than the first).

    Raises:
        MtlReError: As `WindowJob.run` and `make` raise it.
    """
    with stop_signals(interrupt=True) as received, ProcessGroup() as group:
        try:
            return make(group).run()
        except KeyboardInterrupt as error:
            if group.size > 1 and signal.SIGTERM in received:
                text = "stopped by the launcher, because another process ended or because it was told to stop"
                raise MtlReError(text) from error
            raise


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
