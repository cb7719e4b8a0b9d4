"""Processes that train in step: what accelerate makes of them, and how one of them decides for all.

Rank 0 alone decides and writes (`on_main`); what it decides, or the fault it met, reaches every rank, so all go on or
all stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)

from mtl_re.config import Precision
from mtl_re.errors import MtlReError
from mtl_re.model.device import resolve_precision

T = TypeVar("T")
_PATIENCE = timedelta(minutes=10)  # a rank that waits longer for another gives up


def make_accelerator(precision: Precision, trackers: Sequence[str]) -> Accelerator:
    """Make the accelerator; how many processes there are and on what is the launcher's decision.

    Raises:
        MtlReError: A distributed mode other than data parallel, or a tracker that is not installed.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise MtlReError(f"tracking.trackers: {name} is not installed (pip install -c constraints.txt {name})")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    device = torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    AcceleratorState._reset_state()  # it outlives a run of this process and would refuse another precision
    accelerator = Accelerator(
        mixed_precision=resolve_precision(precision, device),
        dynamo_backend="no",  # one of accelerate's own config would rename the weights; see train.compile
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # its own setting would divide the losses
        log_with=list(trackers) or None,
        project_dir="." if trackers else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.")
    if kind not in {"NO", "MULTI_CPU", "MULTI_GPU"}:
        raise MtlReError(f"accelerate launches {kind}; mtl-re trains on one device or data parallel (DDP)")
    return accelerator


def overruled_precision(option: str, precision: str) -> str | None:
    """Return a note where accelerate's own setting (`accelerate launch --mixed_precision`) is not what is taken."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if asked in (None, precision):
        return None
    why = f"train.precision {option} decides" + (", which accelerate sets to `no` unasked" if asked == "no" else "")
    return f"precision is {precision}, not accelerate's mixed_precision {asked}: {why} (--train.precision changes it)"


def overruled_accumulation(accumulate: int) -> str | None:
    """Return a note where accelerate's own setting (`accelerate launch --gradient_accumulation_steps`) is not taken."""
    asked = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if asked in ("1", str(accumulate)):
        return None
    return f"gradients are accumulated over {accumulate} batch(es), not accelerate's {asked}: train.accumulate decides"


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result, or its fault, to every rank.

    Raises:
        MtlReError: What `work` raised, on all ranks.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except MtlReError as error:
            outcome[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise MtlReError(outcome[1])
    result: T = outcome[0]
    return result


def on_all(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on every rank and give each its own result; where one fails all raise, or the others would wait for it.

    Raises:
        MtlReError: What `work` raised, naming the rank unless it raised the same on all.
    """
    if accelerator.num_processes == 1:
        return work()
    result, fault = None, None
    try:
        result = work()
    except MtlReError as error:
        fault = str(error)
    faults = gather_object([fault])
    if found := next(((rank, text) for rank, text in enumerate(faults) if text is not None), None):
        rank, text = found
        raise MtlReError(text if len(set(faults)) == 1 else f"process {rank} of {len(faults)}: {text}")
    return result  # type: ignore[return-value] # `work` came to its end
