"""Where a training stands: what a step leaves behind, written to disk and read back exactly.

`State` is plain JSON. Of what a checkpoint holds this is training's own share (the average of the weights, the moving
weights of heads, the sums since the last logged line); the rest is `resume`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl_re.config import Config
from mtl_re.training.loop import LoopState
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.resume import (
    chosen_checkpoint,
    loaded_checkpoint,
    open_log,
    restore_run,
    rows_of_a_step,
    save_run,
    taken_for_a_run,
)
from mtl_re.training.setup import TrainRun


@dataclass
class State(LoopState):
    """Where a training stands.

    Attributes:
        best_score, evaluations_without_gain: Of model selection. best_weights: SHA-256 of the best model's weights.
        left_out: Steps whose rows a rollback left out, by number. norms: The last steps' gradient norms, where
            `train.spike` asks for them.
        window: Sums since the last line of metrics.jsonl.
    """

    best_score: float | None = None
    best_weights: str | None = None
    evaluations_without_gain: int = 0
    left_out: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    window: StepSums = field(default_factory=lambda: StepSums())


@dataclass
class StepSums:
    """Sums over the steps since the last logged line, over all processes.

    Attributes:
        losses: By head, the raw loss sum. counts: By head, labelled rows.
        rows, tokens: Of the steps, without padding.
        norm: The last step's gradient norm. weights: Of every step, where they move.
    """

    losses: dict[str, Any] = field(default_factory=dict)  # tensors until they are read: no synchronisation a step
    counts: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    norm: Any = 0.0
    weights: list[dict[str, float]] = field(default_factory=list)


def reduce_sums(run: TrainRun, window: StepSums) -> None:
    """Turn the window's tensors into numbers over all processes (synchronises)."""
    if not any(isinstance(value, Tensor) for value in window.losses.values()):
        return
    names = list(window.losses)
    local = torch.stack([torch.as_tensor(window.losses[name], device=run.accelerator.device) for name in names])
    total = run.accelerator.reduce(local.double() if local.device.type != "mps" else local, "sum")
    # Numbers that were already global must be counted once: they sit on rank 0 alone (see below).
    values = [float(value) for value in total]
    window.losses = dict(zip(names, values if run.main else [0.0] * len(names), strict=True))
    window.norm = float(window.norm)


def save_training(run: TrainRun, state: State) -> None:
    """Write a resumable checkpoint; every rank calls it."""
    reduce_sums(run, state.window)
    tensors: dict[str, Mapping[str, Tensor]] = {}
    record: dict[str, Any] = {"weighting": run.weighting.state()}
    if run.average is not None:
        tensors["average"], record["averaged"] = run.average.values, run.average.updates
    save_run(run, state, tensors, record)


def resume_training(run: TrainRun) -> tuple[State, MetricsLog | None]:
    """Return the state to start from, a checkpoint's, as `train.resume` asks, or a fresh one; and the log.

    Raises:
        MtlReError: The checkpoint is damaged, or belongs to other options or rows.
    """
    path = chosen_checkpoint(run)
    state = State(step_rows=rows_of_a_step(run)) if path is None else restore_training(run, path)
    return state, open_log(run, state.step)


def restore_training(run: TrainRun, path: Path) -> State:
    """Make the run what it was at a checkpoint.

    Raises:
        MtlReError: The checkpoint is damaged, or belongs to other options or rows.
    """
    data = run.config.data
    sources = {"training rows": f"data.train: {data.train}", "validation rows": f"data.valid: {data.valid}"}
    found = loaded_checkpoint(run, path, Config().to_dict(), sources, len(run.train_table), run.config.optim)
    with taken_for_a_run(path):
        restore_run(run, found)
        if run.average is not None:
            run.average.restore(found.tensors["average"], found.state["averaged"])
        run.weighting.restore(found.state["weighting"])
        values = dict(found.state["state"])
        window = StepSums(**values.pop("window"))
        if not run.main:
            window.losses = dict.fromkeys(window.losses, 0.0)
        return State(**values, window=window)
