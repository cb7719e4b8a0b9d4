"""Running a study: workers on one or many machines share its cells until each has run once.

What is done and left stands in `trial_book`. While a worker has a job it holds the job's lock file, and so does the
training process it started; the system frees the lock however they end. A running trial whose lock is free (or, if
another machine had it, whose beat stands still) is taken up again, and training resumes from its checkpoint.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mtl_re.config import AblateConfig
from mtl_re.errors import MtlReError
from mtl_re.study.cell_process import Outcome, locked, run_cell, stop_with_parent
from mtl_re.study.study import Cell
from mtl_re.study.study_file import load_study
from mtl_re.study.trial_book import Board, Book, Job, make_folder, searched_arms

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

POLL = 2.0
"""Seconds between two looks at a study whose remaining jobs others hold."""
BEAT = 30.0
"""Seconds between two signs of life of a job."""
GRACE = 240.0
"""Seconds without a sign of life after which a job of another machine is taken for dead."""


# ---- the command ---------------------------------------------------------------------------------------------


def ablate(path: Path, options: AblateConfig) -> Path:
    """`mtl-re ablate`: run what is left of a study, and write its report.

    Returns:
        The path of the report.

    Raises:
        MtlReError: the study file is wrong, or cells failed (after the others ran and the report was written).
    """
    from mtl_re.study.report import write_report

    study = load_study(path)
    if options.report:
        return write_report(study, searched_arms(study), options.resamples)
    _check_launch(options.launch)
    book = Book(study)
    book.enqueue(retry=options.retry)
    if options.workers > 1:
        _spawn(path, options)
    else:
        Worker(book, options.launch).work()
    board = book.board()
    if board.open:
        raise MtlReError(f"{board.line(study.name)}; stopped before the end, run the same command to go on")
    written = write_report(study, searched_arms(study), options.resamples)
    if board.failed:
        reasons = "; ".join(f"{key}: {trial.user_attrs['reason']}" for key, trial in sorted(board.failed.items()))
        raise MtlReError(f"{len(board.failed)} of the study's cells failed (--retry runs them again): {reasons}")
    return written


def worker(path: str, launch: str) -> None:
    """One worker of `--workers N`, in a process of its own; what it could not do stands in the storage."""
    book = Book(load_study(Path(path)))
    book.enqueue()
    Worker(book, launch).work()


def _spawn(path: Path, options: AblateConfig) -> None:
    """Start the workers and wait for all; a signal to stop is passed on to them."""
    code = "import sys; from mtl_re.study.runner import worker; worker(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(path), options.launch]
    workers = [subprocess.Popen(command, preexec_fn=stop_with_parent) for _ in range(options.workers)]
    with _stop_signals() as stopped:
        while any(process.poll() is None for process in workers):
            if stopped:
                for process in workers:
                    process.send_signal(signal.SIGTERM)
                stopped.clear()
            time.sleep(0.2)


def _check_launch(launch: str) -> None:
    if launch and shutil.which(first := shlex.split(launch)[0]) is None:
        raise MtlReError(f"--launch: {first!r} is not a program that can be found")


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT: the cell that runs saves a checkpoint and leaves, then the worker does."""
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


# ---- one worker ----------------------------------------------------------------------------------------------


class Worker:
    """Takes jobs until none is left, waiting for those that others run in case they die."""

    def __init__(self, book: Book, launch: str = "") -> None:
        self.book, self.launch = book, launch
        self.host = socket.gethostname()
        self.beats: dict[str, tuple[Any, float]] = {}  # job → (last sign of life, when it was first seen)
        self.stopped: list[int] = []

    def work(self) -> None:
        """Run jobs until the study is finished, or a signal asks to stop."""
        with _stop_signals() as self.stopped:
            self._say()
            while not self.stopped:
                board = self.book.board()
                if not board.open:
                    break
                if not self._take_one(board):
                    self._rest(POLL)

    def _take_one(self, board: Board) -> bool:
        for job in self.book.jobs:
            trial = board.waiting.get(job.key) or board.running.get(job.key)
            if trial is None:
                continue
            with locked(self.book.study.output / "locks" / job.key, wait=False) as lock:
                if lock is not None and self._mine(job, trial):
                    self._run(job, trial, lock)
                    return True
        return False

    def _mine(self, job: Job, seen: FrozenTrial) -> bool:
        """Whether the job, whose lock is held, is this worker's now."""
        trial = self.book.job_trials().get(job.key, seen)
        if trial._trial_id != seen._trial_id or trial.state.is_finished():
            return False
        if trial.state.name == "WAITING":
            return self.book.claim(trial)
        owner = trial.user_attrs.get("host")
        if owner in (None, self.host):
            return True  # its worker was here and let go of the lock: it is dead
        beat, since = trial.user_attrs.get("beat"), time.monotonic()
        if self.beats.get(job.key, (None, 0.0))[0] != beat:
            self.beats[job.key] = (beat, since)
        if time.monotonic() - self.beats[job.key][1] > GRACE:
            self.book.give_up(trial)
        return False

    def _run(self, job: Job, trial: FrozenTrial, lock: IO[str]) -> None:
        self.book.note(trial, host=self.host, beat=time.time())
        self._say(f"begins {job.key}")
        try:
            cells, handle = self.book.sampled(job, trial)
            outcome = self._cells(cells, trial, handle, lock)
        except MtlReError as error:
            outcome = Outcome("failed", reason=str(error))
        if outcome.kind == "stopped":  # the trial stays `running`, its lock free: whoever comes next goes on
            self._say(f"stopped {job.key}; the same command goes on")
            return
        self.book.tell(trial, outcome)
        score = "" if outcome.score is None else f", score {outcome.score:.2f}"
        self._say(f"{job.key} {outcome.kind}{score}{': ' + outcome.reason if outcome.reason else ''}")

    def _cells(self, cells: Sequence[Cell], trial: FrozenTrial, handle: Trial, lock: IO[str]) -> Outcome:
        """The cells of a job, one after the other; the first that is not done ends it."""
        scores, seconds = [], 0.0
        for place, cell in enumerate(cells):
            outcome = self._cell(cell, trial, handle if place == 0 and len(cells) == 1 else None, lock)
            if outcome.kind != "done":
                return outcome
            seconds += outcome.seconds or 0.0
            scores.append(outcome.score)
        known = [score for score in scores if score is not None]
        return Outcome("done", score=sum(known) / len(known) if known else None, seconds=seconds)

    def _cell(self, cell: Cell, trial: FrozenTrial, handle: Trial | None, lock: IO[str]) -> Outcome:
        run_dir, output = self.book.study.run_dir(cell), self.book.study.output
        make_folder(run_dir)
        config = run_dir / "cell.yaml"
        if config.exists() and config.read_text(encoding="utf-8") != cell.text and (run_dir / "metrics.jsonl").exists():
            raise MtlReError(f"{run_dir}: holds a run with other options; remove it or give the study another output")
        config.write_text(cell.text, encoding="utf-8")
        prune = handle if handle is not None and self.book.study.pruner != "none" else None
        last = time.monotonic()

        def alive() -> bool:
            nonlocal last
            if time.monotonic() - last > BEAT:
                last = time.monotonic()
                self.book.note(trial, beat=time.time())
            return not self.stopped

        group = cell.config.get("tracking", {}).get("group") or f"{self.book.study.name}/{cell.arm}"
        log = output / "logs" / f"{cell.key}.log"
        return run_cell(run_dir, config, self.launch, group, log, lock, alive, prune)

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopped:
            time.sleep(0.1)

    def _say(self, what: str = "") -> None:
        line = self.book.board().line(self.book.study.name)
        print(f"{line}{' | ' if what else ''}{what}", file=sys.stderr, flush=True)
