"""The loop of any run, of training and of adaptation: what happens between two steps, and when.

A kind of run says what its steps, lines, evaluations and checkpoints are (`Loop`'s methods); when each is due, what a
stop signal does, and what counts as time of training is said here.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from mtl_re.errors import MtlReError
from mtl_re.model.cpu import release_free_memory
from mtl_re.signals import stop_signals
from mtl_re.training.resume import planned_steps
from mtl_re.training.run import Run

MAX_SKIPPED = 25  # fp16 steps skipped in a row after which the loss scale is not what is wrong
_FLAG_EVERY = 10  # steps between two agreements of several processes on whether to stop


@dataclass
class LoopState:
    """Where a run stands: plain JSON values, which a checkpoint holds; equal states continue equally.

    Attributes:
        step: Optimizer steps taken. epoch, position: The next step is number `position` of `epoch`.
        step_rows: Rows of a full step, over all processes and passes.
        evaluated_step: The step of the last evaluation; -1: there was none.
        best_step: The step of the model that is kept.
        skipped, skipped_in_a_row: fp16 steps skipped for overflow.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    step_rows: int = 0
    evaluated_step: int = -1
    best_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


class BadStepError(MtlReError):
    """A step must not be taken. Attributes: step: its number, from 0."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(what)
        self.step = step


@dataclass
class Clock:
    """Time since the last logged line, evaluations and checkpoints left out.

    Attributes:
        rows, tokens: Counted since the last line before this clock started (before a resume): not in its time.
    """

    rows: int = 0
    tokens: int = 0
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        stopped = time.perf_counter()
        yield
        self.began += time.perf_counter() - stopped

    def rates(self, rows: int, tokens: int) -> tuple[float, float]:
        """Return rows and tokens a second, of the sums since the last line; the clock starts anew."""
        now = time.perf_counter()
        seconds = max(now - self.began, 1e-9)
        found = (rows - self.rows) / seconds, (tokens - self.tokens) / seconds
        self.rows, self.tokens, self.began = 0, 0, now
        return found


class Loop(ABC):
    """All remaining steps of a run.

    Args:
        rows: Of an epoch.
        log_every: Steps between two lines of metrics.jsonl.
        evaluate_every: Steps between two evaluations, or "epoch".
    """

    def __init__(self, run: Run, state: LoopState, rows: int, log_every: int, evaluate_every: int | str) -> None:
        self._run, self._state, self.log_every, self.evaluate_every = run, state, log_every, evaluate_every
        options = run.options
        self.total, self.per_epoch = planned_steps(options.epochs, options.max_steps, state.step_rows, rows)
        self.clock, self.bar = self.new_clock(), tqdm(disable=True)

    @abstractmethod
    def steps(self) -> Iterator[None]:
        """Take the remaining steps of the epoch, one at each iteration."""

    @abstractmethod
    def write_line(self) -> None:
        """Write what was summed since the last line, if anything, to metrics.jsonl."""

    @abstractmethod
    def evaluate(self) -> None:
        """Score the held-out rows and keep the best model."""

    @abstractmethod
    def save(self) -> None:
        """Write a resumable checkpoint."""

    @abstractmethod
    def new_clock(self) -> Clock:
        """Return a clock that leaves out what was summed before."""

    def start(self) -> None:  # noqa: B027
        """Do what comes before the first step."""

    def end_epoch(self) -> None:  # noqa: B027
        """Do what comes after the last step of an epoch."""

    def gave_up(self) -> bool:
        """Return whether to stop early."""
        return False

    def go_back(self, bad: BadStepError) -> None:
        """Make run and state what they were before a bad step, or raise it."""
        raise bad

    def fit(self) -> bool:
        """Take all steps; return False if a signal ended them early (a checkpoint of that moment stands)."""
        state, shown = self._state, {"dynamic_ncols": True, "smoothing": 0.05, "disable": not self._run.main}
        self.bar = tqdm(total=self.total, initial=state.step, unit="step", **shown)
        with stop_signals() as stopped, self.bar:
            self.start()
            self.clock = self.new_clock()
            while state.step < self.total and not self.gave_up():
                self.bar.set_description(f"epoch {state.epoch + 1}/{math.ceil(self.total / self.per_epoch)}")
                try:
                    going = self.epoch(stopped)
                except BadStepError as bad:
                    self.go_back(bad)
                    self.clock, self.bar.n = self.new_clock(), state.step
                    continue
                if not going:
                    self.save()
                    cure = f"go on with --train.run_dir {self._run.run_dir} --train.resume auto"
                    self._run.say(f"stopped by a signal after step {state.step}; {cure}")
                    return False
        self.write_line()
        if state.evaluated_step != state.step:
            self.evaluate()
        self.save()
        return True

    def epoch(self, stopped: list[int]) -> bool:
        """Take the rest of one epoch; return False if a signal asks to stop."""
        state = self._state
        for _ in self.steps():
            state.position += 1
            if finished := state.position == self.per_epoch:
                state.epoch, state.position = state.epoch + 1, 0
                self.end_epoch()
            if state.step % self.log_every == 0 or state.step == self.total:
                self.write_line()
                release_free_memory()
            self.bar.update(1)
            with self.clock.paused():
                if due(self.evaluate_every, state.step, finished):
                    self.evaluate()
                ends = state.step >= self.total or self.gave_up()
                # The last step is saved when its lines are written: a kill in between would have them written twice.
                if due(self._run.options.save_every, state.step, finished) and not ends:
                    self.save()
            if agreed_to_stop(self._run, state, stopped):
                return False
            if ends:
                break
        return True


def agreed_to_stop(run: Run, state: LoopState, stopped: list[int]) -> bool:
    """Return whether any process was told to stop; asked for at the same steps on all of them."""
    if run.accelerator.num_processes == 1:
        return bool(stopped)
    if state.step % _FLAG_EVERY:
        return False
    flag = torch.tensor(float(bool(stopped)), device=run.accelerator.device)
    return bool(run.accelerator.reduce(flag, "sum") > 0)


def due(every: int | str, step: int, epoch_finished: bool) -> bool:
    """Return whether something that happens every so many steps, or every "epoch", happens now."""
    return epoch_finished if every == "epoch" else step % int(every) == 0


def epoch_reached(state: LoopState, rows: int) -> float:
    """Return the epochs done, as a fraction, of so many rows each."""
    return round(state.epoch + state.position * state.step_rows / rows, 4)


def show(bar: Any, values: dict[str, float], tokens_per_s: float) -> None:
    """Show losses and speed on the progress bar."""
    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()} | {"tok/s": f"{tokens_per_s:.0f}"})
