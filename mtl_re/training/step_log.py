"""A training run's figures on their way to metrics.jsonl: summed over the steps of a window, read once a line.

Losses are raw and unweighted, means over labelled rows, so that curves of different weights can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mtl_re.training.loop import Clock, epoch_reached, show
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.setup import TrainRun
from mtl_re.training.state import State, StepSums, reduce_sums


def add_step(
    run: TrainRun,
    window: StepSums,
    sums: dict[str, Tensor],
    counts: dict[str, int],
    rows: np.ndarray,
    norm: Tensor,
    skipped: bool,
) -> None:
    """Count a step into the window; its tensors stay on the device until the line is written.

    Of a step that fp16's scaler skipped, whose losses may be infinite, only the rows and tokens count.
    """
    for name in run.trained_heads:  # another head's rows need not have been read: it has no loss to speak of
        window.losses[name] = window.losses.get(name, 0.0) + (0.0 if skipped else sums[name])
        window.counts[name] = window.counts.get(name, 0) + (0 if skipped else counts[name])
    window.rows += len(rows)
    window.tokens += int(run.train_table.lengths[rows].sum())
    window.norm = window.norm if skipped else norm


def write_window(run: TrainRun, state: State, log: MetricsLog | None, clock: Clock, bar: Any) -> None:
    """Write one line of metrics.jsonl: raw losses by head (mean over labelled rows), weights, rates."""
    window = state.window
    reduce_sums(run, window)
    rows_per_s, tokens_per_s = clock.rates(window.rows, window.tokens)
    means = {name: window.losses[name] / max(window.counts[name], 1) for name in window.losses}
    line = {
        "kind": "train",
        "step": state.step,
        "epoch": epoch_reached(state, len(run.train_table)),
        "loss": means,
        "labelled_rows": dict(window.counts),
        "weights": window.weights[-1] if window.weights else run.weights,
        **_rates(run.optimizer),
        "grad_norm": window.norm,
        "skipped_steps": state.skipped,
        "left_out_steps": len(state.left_out),
        "rows_per_s": round(rows_per_s, 2),
        "tokens_per_s": round(tokens_per_s, 1),
    }
    if log is not None:
        log.write(line | ({"weights_by_step": window.weights} if window.weights else {}))
        show(bar, means, tokens_per_s)
    run.trackers.log(line, state.step)
    state.window = StepSums()


def _rates(optimizer: Any) -> dict[str, float]:
    """The encoder's (its top layer's) and the heads' learning rate."""
    rates: dict[str, float] = {"lr": 0.0, "head_lr": 0.0}
    for group in optimizer.param_groups:
        for name in group["names"]:
            key = "lr" if name.startswith("encoder.") else "head_lr"
            rates[key] = max(rates[key], group["lr"])
    return rates
