"""`mtl-re ablate`: workers on one or many machines share a study's cells until each has run, then write its report.

Which cells wait, and how a cell is retried, stands in `cell_queue`; how a cell's training is started, watched and
stopped, in `cell_process`. A worker trains one cell at a time, and stays until no cell is left that another worker
could still lose.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_re.config import AblateConfig
from mtl_re.errors import MtlReError
from mtl_re.files import make_directory, write_text
from mtl_re.signals import stop_signals
from mtl_re.study.cell_process import Outcome, in_use, run_cell, start_process
from mtl_re.study.cell_queue import CellQueue, searched_arms
from mtl_re.study.confirmation import begin_confirmation, stored_confirmation
from mtl_re.study.finished_cells import check_options
from mtl_re.study.study import Cell
from mtl_re.study.study_file import load_study

if TYPE_CHECKING:
    from optuna.trial import Trial

POLL = 2.0
"""Seconds between two looks at a study whose remaining cells others run."""


# ---- the command ---------------------------------------------------------------------------------------------------


def ablate(path: Path, options: AblateConfig) -> Path | str:
    """Run what is left of a study, and write its report; or plan it, or confirm its optimum.

    Returns:
        The path of the report, or the plan as text.

    Raises:
        MtlReError: The study file is wrong, or cells failed (after the others ran and the report was written).
    """
    from mtl_re.study.cell_logits import check_test_rows
    from mtl_re.study.plan_text import plan_text
    from mtl_re.study.report import write_report

    study = load_study(path)
    if options.plan and (given := [name for name in ("report", "confirm", "retry") if getattr(options, name)]):
        raise MtlReError(f"--plan trains and writes nothing; leave out --{given[0]}")
    if options.plan:
        return plan_text(study, options.workers)
    if (study.output / "report").exists() and not any((study.output / name).exists() for name in ("cells", "draws")):
        what = f"{study.output} holds a report, and no cells of a study"
        raise MtlReError(f"output: {what}; name another directory, whose report/ this command may replace")
    if options.confirm:
        study = begin_confirmation(study, options.confirm)
    if options.report:
        return write_report(study, searched_arms(study), options.resamples)
    _check_launch(options.launch)
    check_test_rows(study)  # what is wrong with them is said now, not after all trainings
    queue = CellQueue(study)
    queue.enqueue(retry_failed=options.retry)
    if options.workers > 1:
        _spawn(path, options)
    else:
        Worker(queue, options.launch).work()
    progress = queue.progress()
    if progress.open:
        raise MtlReError(f"{progress.line(study.name)}; stopped before the end, run the same command to go on")
    if not progress.failed:
        return write_report(study, searched_arms(study), options.resamples)
    reasons = "; ".join(f"{key}: {trial.user_attrs['reason']}" for key, trial in sorted(progress.failed.items()))
    failure = f"{len(progress.failed)} of the study's cells failed (--retry runs them again): {reasons}"
    if progress.done:
        try:
            write_report(study, searched_arms(study), options.resamples)
        except MtlReError as error:
            failure += f"; and there is no report: {error}"
    raise MtlReError(failure)


def work_on(path: str, launch: str, pairs: str = "0") -> None:
    """Be one worker of `--workers N`, in a process of its own; what it could not do stands in the queue.

    Args:
        pairs: Of `--confirm`.
    """
    study = load_study(Path(path))
    Worker(CellQueue(stored_confirmation(study, int(pairs)) if int(pairs) else study), launch).work()


def _spawn(path: Path, options: AblateConfig) -> None:
    """Start the workers and wait for all; a signal to stop is passed on to them."""
    code = "import sys; from mtl_re.study.workers import work_on; work_on(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(path), options.launch, str(options.confirm)]
    with stop_signals() as stopped:
        workers = [start_process(command) for _ in range(options.workers)]
        while any(process.poll() is None for process in workers):
            if stopped:
                for process in workers:
                    process.send_signal(signal.SIGTERM)
                stopped.clear()
            time.sleep(0.2)


def _check_launch(launch: str) -> None:
    if launch and shutil.which(first := shlex.split(launch)[0]) is None:
        raise MtlReError(f"--launch: {first!r} is not a program that can be found")


# ---- one worker ------------------------------------------------------------------------------------------------------


class Worker:
    """Takes cells until none is left, waiting for those that others run in case they die."""

    def __init__(self, queue: CellQueue, launch: str = "") -> None:
        self.queue, self.launch = queue, launch
        self.stopped: list[int] = []
        self.news = ""

    def work(self) -> None:
        """Run cells until the study is finished, or a signal asks to stop."""
        with stop_signals() as self.stopped:
            self._say()
            while not self.stopped:
                self.news = ""
                if self.queue.take(self._run):
                    if self.news:
                        self._say(self.news)
                elif self.queue.progress().open:
                    self._rest(POLL)
                else:
                    break

    def _run(self, key: str, trial: Trial) -> float:
        """Run the cells of a trial and return its value: the selection score, 0 where nothing was selected by."""
        from optuna.exceptions import TrialPruned

        self._say(f"begins {key}")
        try:
            outcome = self._cells(self.queue.cells(key, trial), trial)
        except MtlReError as error:
            outcome = Outcome("failed", reason=str(error))
        if outcome.kind == "stopped":  # without a reason, so that it is queued again
            self.news = f"stopped {key}; the same command goes on"
            raise MtlReError("stopped")
        score = "" if outcome.score is None else f", score {outcome.score:.2f}"
        self.news = f"{key} {outcome.kind}{score}{': ' + outcome.reason if outcome.reason else ''}"
        for name in ("score", "seconds", "reason"):
            trial.set_user_attr(name, getattr(outcome, name))
        if outcome.kind == "pruned":
            raise TrialPruned
        if outcome.kind == "failed":
            raise MtlReError(str(outcome.reason))
        return outcome.score or 0.0

    def _cells(self, cells: Sequence[Cell], trial: Trial) -> Outcome:
        """Run cells one after the other; the first that is not done ends it."""
        scores, seconds = [], 0.0
        prune = self.queue.study.pruner != "none"
        for cell in cells:
            outcome = self._cell(cell, trial if prune else None)
            if outcome.kind != "done":
                return outcome
            seconds += outcome.seconds or 0.0
            scores.append(outcome.score)
        known = [score for score in scores if score is not None]
        return Outcome("done", score=sum(known) / len(known) if known else None, seconds=seconds)

    def _cell(self, cell: Cell, trial: Trial | None) -> Outcome:
        study = self.queue.study
        run_dir = study.run_dir(cell)
        make_directory(run_dir)
        config = run_dir / "cell.yaml"
        if (run_dir / "metrics.jsonl").exists():
            check_options(run_dir, cell)
        write_text(config, cell.text)
        if in_use(run_dir):
            self._say(f"{cell.key} waits: {run_dir} is in use by another training process")
        group = cell.config.get("tracking", {}).get("group") or f"{study.name}/{cell.arm}"
        log = study.output / "logs" / f"{cell.key}.log"
        return run_cell(run_dir, config, self.launch, group, log, lambda: not self.stopped, trial)

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopped:
            time.sleep(0.1)

    def _say(self, news: str = "") -> None:
        line = self.queue.progress().line(self.queue.study.name)
        print(f"{line}{' | ' if news else ''}{news}", file=sys.stderr, flush=True)
