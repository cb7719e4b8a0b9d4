"""What both training loops share (`train`, `adapt`): stop signals, when something is due, writing the model, leaving.

A run here is a `prepare.Run` or an `adapt_run.AdaptRun`: both have `accelerator`, `model`, `optimizer` and `run_dir`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mtl_re.errors import MtlReError, first_line
from mtl_re.files import seal_weights, whole_folder

MAX_SKIPPED = 25  # fp16 steps skipped in a row after which the loss scale is not what is wrong
_FLAG_EVERY = 10  # steps between two agreements of several processes on whether to stop


def agreed_to_stop(run: Any, state: Any, stopped: list[int]) -> bool:
    """Whether any process was told to stop; asked for at the same steps on all of them."""
    if run.accelerator.num_processes == 1:
        return bool(stopped)
    if state.step % _FLAG_EVERY:
        return False
    flag = torch.tensor(float(bool(stopped)), device=run.accelerator.device)
    return bool(run.accelerator.reduce(flag, "sum") > 0)


def due(every: int | str, step: int, epoch_finished: bool) -> bool:
    """Whether something that happens every so many steps, or every "epoch", happens now."""
    return epoch_finished if every == "epoch" else step % int(every) == 0


def write_model(run_dir: Path, what: str, network: Any, tokenizer: Any) -> None:
    """A network and its tokenizer as a Hugging Face directory in `model/`, all of it or nothing.

    Args:
        what: the network is called in a message.

    Raises:
        MtlReError: it cannot be written.
    """
    try:
        with whole_folder(run_dir / "model") as build:
            network.save_pretrained(build)
            seal_weights(build)
            tokenizer.save_pretrained(build)
    except Exception as error:  # safetensors and tokenizers each raise their own kinds for a full disk
        fault = f"the {what} cannot be written ({first_line(error)}); the old one stands"
        raise MtlReError(f"{run_dir / 'model'}: {fault}") from error


@contextmanager
def peers_named(run: Any) -> Iterator[None]:
    """Say in words what gloo and NCCL say when a process that they talk to is gone."""
    try:
        yield
    except RuntimeError as error:
        gone = ("Connection closed", "Connection reset", "onnection was closed", "roken pipe", "imed out", "NCCL")
        if run.accelerator.num_processes == 1 or not any(word in str(error) for word in gone):
            raise
        what = f"another process of this run has ended or stands still ({first_line(error)})"
        raise MtlReError(f"{what}; its own message names the cause; then go on with --train.resume auto") from error


def leave(run: Any) -> None:
    """End the process group. DDP must be gone before: destroying the group under it hung a rank in 6 of 24 runs."""
    if run.accelerator.num_processes > 1:
        run.model = run.optimizer = None
        run.accelerator.free_memory()
        gc.collect()
        torch.distributed.destroy_process_group()
