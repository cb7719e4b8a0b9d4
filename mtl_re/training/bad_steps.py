"""Steps that would ruin the weights: found before the update, then the run stops, or goes back and leaves them out.

A step is bad where the gradient's global norm is not finite, or far above the last ones' where `train.spike` asks for
that; the norm is of the summed gradients, so all processes agree without communication. Going back means the newest
whole checkpoint: the steps from there are the same steps again, bit for bit, up to the bad one, whose rows are left
out. So a kill at any moment, and a resume, still ends as the uninterrupted run.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtl_re.errors import MtlReError
from mtl_re.training import checkpoint
from mtl_re.training.loop import MAX_SKIPPED, BadStepError
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.processes import on_main
from mtl_re.training.setup import TrainRun
from mtl_re.training.state import State, restore_training

_KNOWN, _ENOUGH = 50, 20  # norms that a spike is measured against, and how many of them it takes


def check_step(run: TrainRun, state: State, norm: Tensor, sums: dict[str, Tensor], rows: np.ndarray) -> bool:
    """Check a step's gradient norm before the update; return whether fp16's scaler will skip it.

    Under fp16 an overflow is normal: the scaler skips the step and lowers its scale. Only a long run of them is not.
    (accelerate's `step_was_skipped` stays False with a fused optimizer, which leaves the weights alone by itself.)

    Raises:
        BadStepError: The step is bad; its rows are named.
    """
    if not torch.isfinite(norm):
        if run.accelerator.scaler is not None and state.skipped_in_a_row < MAX_SKIPPED:
            return True
        what = "the loss or its gradient is not finite"
    elif run.config.train.spike is None or not _spikes(state, float(norm), run.config.train.spike):
        return False
    else:
        what = f"the gradient spikes (the last steps' median norm is {statistics.median(state.norms):g})"
    shown = ", ".join(run.rows.train[row].id for row in rows[:8])
    losses = ", ".join(f"{name} {float(value):g}" for name, value in sums.items())
    raise BadStepError(
        state.step,
        f"step {state.step + 1}: {what} (gradient norm {float(norm):g}; loss sums on this process: {losses}). Rows of "
        f"this step: {shown}{', ...' if len(rows) > 8 else ''} ({len(rows)} in all). Nothing was saved after it; lower "
        "optim.lr, look at these rows, or go on without them (--train.resume auto --train.on_bad_step rollback)",
    )


def _spikes(state: State, norm: float, factor: float) -> bool:
    """Whether a norm stands out from the last ones; one that does not becomes one of them."""
    if len(state.norms) >= _ENOUGH and norm > factor * statistics.median(state.norms):
        return True
    state.norms = [*state.norms, norm][-_KNOWN:]
    return False


def roll_back(run: TrainRun, state: State, log: MetricsLog | None, bad: BadStepError) -> None:
    """Make run, state and log what they were at the newest whole checkpoint, the bad step marked as left out.

    Raises:
        MtlReError: Rolling back is not asked for, too many steps are left out already, or no checkpoint is whole.
    """
    options = run.config.train
    if options.on_bad_step == "stop":
        raise bad
    if len(state.left_out) >= options.max_rollbacks:
        raise MtlReError(f"{bad} (train.max_rollbacks: {options.max_rollbacks} steps were left out already)") from bad
    path, left_out = on_main(run.accelerator, lambda: _newest(run, bad.step)), [*state.left_out, bad.step]
    run.optimizer.zero_grad()
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()  # ends the step it has begun; its scale comes from the checkpoint
    vars(state).update(vars(restore_training(run, path)), left_out=left_out)
    if log is not None:
        log.forget(state.step)
    run.say(f"{bad}\nwent back to {path}; the rows of step {bad.step + 1} will be left out")


def _newest(run: TrainRun, step: int) -> Path:
    found, faults = checkpoint.newest(run.run_dir / "checkpoints", step)
    if found is None:
        raise MtlReError(f"{run.run_dir / 'checkpoints'}: no whole checkpoint to go back to ({'; '.join(faults)})")
    return found.path
