"""The life of any run, of training and of adaptation: begun, recorded, ended; `resume` saves it and takes it up again.

`setup` and `adapt.setup` say what their kind of run adds to `Run`. Rank 0 alone decides and writes
(`processes.on_main`); what it decides, or the fault it met, reaches every rank, so all go on or all stop.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mtl_re.config import RunConfig, TrackingConfig
from mtl_re.data.loading import write_rejected
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError, first_line
from mtl_re.files import remove, whole_folder, write_json, write_yaml
from mtl_re.model.network import save
from mtl_re.training.processes import make_accelerator, on_main
from mtl_re.training.run_dir import claim_run_dir
from mtl_re.training.tracking import Trackers, manifest


@dataclass
class Run:
    """What every run works with.

    Attributes:
        options: The group `train` of its config.
        model: The network as accelerate wraps it (DDP). plain_model: The network itself.
        identity: All that must be the same for a resumed run to be the same run, as text.
    """

    options: RunConfig
    accelerator: Accelerator
    run_dir: Path
    tokenizer: Any
    model: Any
    plain_model: Any
    optimizer: Any
    trackers: Trackers
    precision: str
    identity: dict[str, str]

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def say(self, text: str) -> None:
        """Print a line for the person watching, once."""
        if self.main:
            print(text, file=sys.stderr, flush=True)


# ---- beginning ---------------------------------------------------------------------------------------------------


def start_run(
    options: RunConfig, tracking: TrackingConfig, name: str, resources: ExitStack
) -> tuple[Accelerator, Path]:
    """Give the accelerator, and the run directory, locked until `resources` is closed.

    Args:
        name: Of the config, for the default run directory.

    Raises:
        MtlReError: A tracker is not installed, or the directory is in use or cannot be written.
    """
    accelerator = make_accelerator(options.precision, tracking.trackers)
    run_dir = on_main(accelerator, lambda: claim_run_dir(options.run_dir, options.resume, name, resources))
    accelerator.project_configuration.logging_dir = str(run_dir)  # TensorBoard writes there
    return accelerator, run_dir


def seed_process(accelerator: Accelerator, seed: int, step: int = 0) -> None:
    """Seed what dropout draws from, differently on every process."""
    torch.manual_seed(seed + 1_000_003 * accelerator.process_index + step)


def check_ranks_agree(accelerator: Accelerator, identity: Mapping[str, str]) -> None:
    """Check that all ranks read the same rows: each computes the batch order from its own.

    Call it before DDP is made, which dies without a word where the ranks' networks differ.

    Raises:
        MtlReError: The ranks read different rows, or run under different options.
    """
    if accelerator.num_processes == 1:
        return
    identities = gather_object([identity])
    for rank, other in enumerate(identities):
        if differ := [name for name, value in identities[0].items() if other[name] != value]:
            what = f"process {rank} of {len(identities)} has other {', '.join(differ)} than process 0"
            raise MtlReError(f"{what}; give every node the same files and options")


def identity_of_options(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return options as they stand in `Run.identity`.

    Args:
        groups: Group → option → value, those left out that a resumed run may change. (Of batch_size and accumulate the
            checkpoint keeps the product.)
    """
    free = {"run_dir", "resume", "keep", "save_every", "batch_size", "accumulate"}
    return {
        f"options {group}.{name}": json.dumps(value, sort_keys=True, ensure_ascii=False)
        for group, values in groups.items()
        for name, value in values.items()
        if group != "train" or name not in free
    }


def write_run_records(
    run: Run, options: Mapping[str, Any], described: Mapping[str, Any], rejected: Sequence[BadRow]
) -> None:
    """Write config.yaml, manifest.json and, if there are any bad rows, rejected.jsonl.

    Call it only when it is certain that this run may go on: a refused resume leaves the directory as it was.

    Raises:
        MtlReError: The run directory cannot be written.
    """
    write_yaml(run.run_dir / "config.yaml", dict(options))
    if rejected:
        write_rejected(run.run_dir / "rejected.jsonl", rejected)
    else:  # what a run left that was killed before its first checkpoint, and whose rows were mended since
        remove(run.run_dir / "rejected.jsonl")
    device, processes = str(run.accelerator.device), run.accelerator.num_processes
    rows = {name: text for name, text in run.identity.items() if not name.startswith("options ")}
    written = manifest({**described, "identity": rows}, run.options.seed, processes, run.precision, device)
    write_json(run.run_dir / "manifest.json", written)


# ---- the model and the end ---------------------------------------------------------------------------------------


def write_network(run_dir: Path, what: str, network: Any, tokenizer: Any) -> None:
    """Write a network and its tokenizer as a Hugging Face directory in `model/`, all of it or nothing.

    Args:
        what: The network is called in a message.

    Raises:
        MtlReError: It cannot be written.
    """
    try:
        with whole_folder(run_dir / "model") as build:
            save(network, tokenizer, build)
    except Exception as error:  # safetensors and tokenizers each raise their own kinds for a full disk
        fault = f"the {what} cannot be written ({first_line(error)}); the old one stands"
        raise MtlReError(f"{run_dir / 'model'}: {fault}") from error


def fit_and_conclude(run: Run, state: Any, fit: Callable[[], bool], conclude: Callable[[], dict[str, Any]]) -> Path:
    """Train, write the results on the main process if the run came to its end, and leave; return the run directory.

    Args:
        fit: Whether all steps were taken. conclude: Writes the results and returns the final scores; on all processes.
    """
    with peers_named(run.accelerator):
        finished = fit()
        scores = conclude() if finished else {}
        run.accelerator.wait_for_everyone()
    run.trackers.finish(scores, state.step, finished)
    destroy_process_group(run)
    return run.run_dir


@contextmanager
def peers_named(accelerator: Accelerator) -> Iterator[None]:
    """Say in words what gloo and NCCL say when a process that they talk to is gone."""
    try:
        yield
    except RuntimeError as error:
        gone = ("Connection closed", "Connection reset", "onnection was closed", "roken pipe", "imed out", "NCCL")
        if accelerator.num_processes == 1 or not any(word in str(error) for word in gone):
            raise
        what = f"another process of this run has ended or stands still ({first_line(error)})"
        raise MtlReError(f"{what}; its own message names the cause; then go on with --train.resume auto") from error


def destroy_process_group(run: Run) -> None:
    """End the process group. DDP must be gone before: destroying the group under it hung a rank in 6 of 24 runs."""
    if run.accelerator.num_processes > 1:
        run.model = run.optimizer = None
        run.accelerator.free_memory()
        gc.collect()
        torch.distributed.destroy_process_group()
