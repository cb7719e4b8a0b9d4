"""A training run's figures on their way to metrics.jsonl: summed over the steps of a window, read once a line.

Losses are raw and unweighted, means over labelled rows, so that curves of different weights can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mtl_re.training.setup import Run
from mtl_re.training.state import State, Window, settle
from mtl_re.training.tracking import MetricsLog


@dataclass
class Clock:
    """Time since the last logged line, evaluations and checkpoints left out.

    Attributes:
        rows, tokens: of the window that were counted before this clock started (after a resume).
    """

    began: float = field(default_factory=time.perf_counter)
    rows: int = 0
    tokens: int = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        stopped = time.perf_counter()
        yield
        self.began += time.perf_counter() - stopped


def add_step(
    run: Run, window: Window, sums: dict[str, Tensor], counts: dict[str, int], rows: np.ndarray, norm: Tensor
) -> None:
    """Count a step into the window; its tensors stay on the device until the line is written."""
    for name in run.taught:  # an untaught head's rows need not have been read: it has no loss to speak of
        window.losses[name] = window.losses.get(name, 0.0) + sums[name]
        window.counts[name] = window.counts.get(name, 0) + counts[name]
    window.rows += len(rows)
    window.tokens += int(run.train_table.lengths[rows].sum())
    window.norm = norm


def _rates(run: Run) -> dict[str, float]:
    """The encoder's (its top layer's) and the heads' learning rate."""
    rates: dict[str, float] = {"lr": 0.0, "head_lr": 0.0}
    for group in run.optimizer.param_groups:
        for name in group["names"]:
            key = "lr" if name.startswith("encoder.") else "head_lr"
            rates[key] = max(rates[key], group["lr"])
    return rates


def write_window(run: Run, state: State, log: MetricsLog | None, clock: Clock, bar: Any) -> None:
    """One line of metrics.jsonl: raw losses by head (mean over labelled rows), weights, rates."""
    window = state.window
    settle(run, window)
    now = time.perf_counter()
    seconds = max(now - clock.began, 1e-9)
    means = {name: window.losses[name] / max(window.counts[name], 1) for name in window.losses}
    line = {
        "kind": "train",
        "step": state.step,
        "epoch": round(state.epoch + state.position * state.step_rows / len(run.train_table), 4),
        "loss": means,
        "labelled_rows": dict(window.counts),
        "weights": window.weights[-1] if window.weights else run.weights,
        **_rates(run),
        "grad_norm": window.norm,
        "skipped_steps": state.skipped,
        "left_out_steps": len(state.left_out),
        "rows_per_s": round((window.rows - clock.rows) / seconds, 2),
        "tokens_per_s": round((window.tokens - clock.tokens) / seconds, 1),
    }
    if log is not None:
        log.write(line | ({"weights_by_step": window.weights} if window.weights else {}))
        bar.set_postfix(
            {name: f"{value:.3f}" for name, value in means.items()} | {"tok/s": f"{window.tokens / seconds:.0f}"}
        )
    run.trackers.log(line, state.step)
    state.window = Window()
    clock.began, clock.rows, clock.tokens = now, 0, 0
