"""How a run is saved and taken up again: what a checkpoint holds, which one is chosen, and whether it may go on.

Enters: a `Run` and its state. Leaves: a checkpoint by `checkpoint.save`, or the run as it was at one. A run is resumed
only into the same options and the same rows (`Run.identity`); equal states then continue equally, bit for bit on CPU
and with the same number of processes. A finished run can be lengthened, by more epochs or steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mtl_re.config import OptimConfig
from mtl_re.data.splits import data_record
from mtl_re.errors import MtlReError
from mtl_re.files import read_yaml, recover, sync
from mtl_re.training import checkpoint
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.optimizer import rate_factor
from mtl_re.training.processes import on_all, on_main
from mtl_re.training.run import Run, identity_of_options, seed_process
from mtl_re.training.run_dir import ENDS_WITH

_LENGTHS = ("options train.epochs", "options train.max_steps")


def save_run(run: Run, state: Any, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> None:
    """Write a resumable checkpoint. Every rank contributes its random state; rank 0 writes.

    Args:
        state: A dataclass of JSON values that has a `step`.
        tensors: What the kind of run adds: file stem → name → tensor. record: The same, JSON values.
    """
    generators, scaler = random_tensors(run.accelerator), run.accelerator.scaler
    whole = {
        "state": asdict(state),
        "processes": run.accelerator.num_processes,
        "arithmetic": [run.accelerator.device.type, run.precision],
        "scaler": None if scaler is None else scaler.state_dict(),
        **record,
        "identity": run.identity,
    }
    model, optimizer = network_tensors(run.plain_model), optimizer_tensors(run.optimizer)
    groups = {"model": model, "optimizer": optimizer, "random": generators, **tensors}

    def write() -> None:
        if (log := run.run_dir / "metrics.jsonl").exists():
            sync(log)  # not even a power cut may leave a checkpoint ahead of the log
        checkpoint.save(run.run_dir / "checkpoints", state.step, groups, whole, run.options.keep)

    on_main(run.accelerator, write)


def chosen_checkpoint(run: Run) -> Path | None:
    """Return the checkpoint to go on from, as `train.resume` asks; None: start anew.

    Rank 0 looks for all: it also puts back what a kill left aside.

    Raises:
        MtlReError: The directory holds a finished run, or a model of other options or rows, and no whole checkpoint:
            starting anew would replace it.
    """
    if run.options.resume != "auto":
        return None if run.options.resume is None else Path(run.options.resume)

    def newest() -> Path | None:
        recover(run.run_dir)
        found, faults = checkpoint.newest(run.run_dir / "checkpoints")
        for fault in faults:
            run.say(f"passed over: {fault}")
        if found is None and any((run.run_dir / name).exists() for name in ENDS_WITH):
            what = f"{run.run_dir} holds a finished run and no whole checkpoint to go on from"
            raise MtlReError(f"train.resume: {what}; name another directory, or remove this one")
        if found is None and (changed := _changed_options(run)):
            what = f"{run.run_dir} holds a model trained under other options or on other rows ({', '.join(changed)})"
            raise MtlReError(
                f"train.resume: {what}, and no whole checkpoint; name another directory, or remove this one"
            )
        run.say(f"going on from {found.path}" if found else "no checkpoint to go on from: starting anew")
        return None if found is None else found.path

    return on_main(run.accelerator, newest)


def _changed_options(run: Run) -> list[str]:
    """Return the options and rows with which the model in the run's directory was trained otherwise; none without a
    model."""
    if not (run.run_dir / "model").exists():
        return []
    with suppress(
        MtlReError, AttributeError, KeyError, TypeError
    ):  # config.yaml is gone or was edited: nothing is known
        rows = data_record(run.run_dir).get("identity", {})
        before = identity_of_options(read_yaml(run.run_dir / "config.yaml")) | rows
        return [name for name, value in run.identity.items() if before.get(name, value) != value]
    return []


def loaded_checkpoint(
    run: Run,
    path: Path,
    defaults: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, str],
    rows: int,
    optim: OptimConfig,
) -> checkpoint.Checkpoint:
    """Read a checkpoint on every rank and check that it is of this run, or of a finished one that is to be lengthened.

    Args:
        defaults: Of all options. sources: Entry of the identity → option and file that it comes from.
        rows: Of an epoch. optim: The schedule, of which a lengthened run says where it stands.

    Raises:
        MtlReError: It is damaged, or options or rows have changed since; what has is named, with both values.
    """
    found = on_all(run.accelerator, lambda: checkpoint.read_checkpoint(path))
    with taken_for_a_run(path):
        before = {name: recorded(found.state["identity"], name, defaults) for name in run.identity}
        changed = [name for name, now in run.identity.items() if before[name] != now]
        if (kept := found.state["state"]["step_rows"]) != (asked := rows_of_a_step(run)):
            run.say(f"a step keeps its {kept} rows; batch_size × accumulate × processes is {asked} now")
        if changed and set(changed) <= set(_LENGTHS):
            epochs, most = (json.loads(str(before[name])) for name in _LENGTHS)
            state = found.state["state"]
            ended, _ = planned_steps(epochs, most, state["step_rows"], rows)
            if state["step"] == ended and _lengthened(run, ended, state["step_rows"], rows, optim):
                return found
    if changed:
        told = [f"{name} ({sources.get(name, f'{before[name]} then, {run.identity[name]} now')})" for name in changed]
        cure = "only a run that reached its last step can go on with more (not one that train.early_stop ended)"
        cure = f"; {cure}" if set(changed) <= set(_LENGTHS) else ""
        raise MtlReError(f"{path}: cannot go on, because these have changed since: {', '.join(told)}{cure}")
    return found


def _lengthened(run: Run, ended: int, step_rows: int, rows: int, optim: OptimConfig) -> bool:
    """Return whether a run that ended at a step is longer now, and say what becomes of its learning rate."""
    total, _ = planned_steps(run.options.epochs, run.options.max_steps, step_rows, rows)
    if total <= ended:
        return False
    last, next_ = rate_factor(ended, ended, optim), rate_factor(ended, total, optim)
    run.say(
        f"this run was finished at step {ended:,} and is lengthened to {total:,} steps: the learning rate goes on at "
        f"{next_:.3g} of its peak ({last:.3g} before), where the {optim.schedule} schedule of {total:,} steps stands; "
        "a run of that length from the start would not be the same"
    )
    return True


def rows_of_a_step(run: Run) -> int:
    """Return the rows of a full step, over all processes and passes."""
    return run.options.batch_size * run.options.accumulate * run.accelerator.num_processes


def planned_steps(epochs: int, most: int | None, step_rows: int, rows: int) -> tuple[int, int]:
    """Return the steps of a whole run and of an epoch.

    Args:
        most: `train.max_steps`. step_rows: Rows of a full step, over all processes and passes. rows: Of an epoch.
    """
    per_epoch = math.ceil(rows / step_rows)
    return per_epoch * epochs if most is None else most, per_epoch


def recorded(identity: Mapping[str, str], name: str, defaults: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what a checkpoint's identity holds by a name; of an option younger than the checkpoint, its default."""
    if name in identity or not name.startswith("options "):
        return identity.get(name)
    group, option = name.removeprefix("options ").split(".", 1)
    return json.dumps(defaults[group][option], sort_keys=True, ensure_ascii=False)


@contextmanager
def taken_for_a_run(path: Path) -> Iterator[None]:
    """Turn errors of reading a state into a message: the checkpoint is sound, but not one of such a run."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MtlReError(f"{path}: is no checkpoint of such a run ({type(error).__name__}: {error})") from error


def restore_run(run: Run, found: checkpoint.Checkpoint) -> None:
    """Put weights, moments, loss scale and random states back; call it inside `taken_for_a_run`."""
    put_network(run.plain_model, found.tensors["model"])
    put_optimizer(run.optimizer, found.tensors["optimizer"])
    if run.accelerator.scaler is not None and found.state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(found.state["scaler"])
    now, then = [run.accelerator.device.type, run.precision], found.state.get("arithmetic")
    if then not in (None, now):
        what = f"this run was on {then[0]} in precision {then[1]}, and is on {now[0]} in {now[1]} now"
        run.say(f"{what}: going on, but not bit for bit")
    if not put_random(run.accelerator, found):
        run.say(f"this run had {found.state['processes']} processes: going on, but not bit for bit")
        seed_process(run.accelerator, run.options.seed, found.state["state"]["step"])


def open_log(run: Run, step: int) -> MetricsLog | None:
    """Open metrics.jsonl, without the lines behind a step, on the main process; None on the others.

    Where a checkpoint was named, later ones go too: they are of a future that this run will not have.
    """

    def begin_log() -> MetricsLog:
        if run.options.resume not in (None, "auto"):
            checkpoint.forget(run.run_dir / "checkpoints", step)
        return MetricsLog(run.run_dir / "metrics.jsonl", step)

    log = on_main(run.accelerator, begin_log)
    return log if run.main else None


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network by name, tied ones once."""
    names: dict[int, str] = {}
    every = network.state_dict(keep_vars=True)
    for name, tensor in every.items():
        names.setdefault(id(tensor), name)
    return {name: every[name].detach() for name in names.values()}


@torch.no_grad()
def put_network(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Do the inverse of `network_tensors`.

    Raises:
        KeyError: A tensor is missing, or is not the network's.
        ValueError: A tensor has another shape.
    """
    own = network_tensors(network)
    if differ := sorted(own.keys() ^ tensors.keys()):
        raise KeyError(differ[0])
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:  # copy_ would stretch some
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(tensors[name])


def random_tensors(accelerator: Accelerator) -> dict[str, Tensor]:
    """Return every process's random states, by `rank/device`; only dropout draws from them."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    parts = gather_object([states]) if accelerator.num_processes > 1 else [states]
    return {f"{rank}/{name}": tensor for rank, part in enumerate(parts) for name, tensor in part.items()}


def put_random(accelerator: Accelerator, found: checkpoint.Checkpoint) -> bool:
    """Put this process's random states back; False where the run had another number of processes."""
    if found.state["processes"] != accelerator.num_processes:
        return False
    own = f"{accelerator.process_index}/"
    mine = {k.removeprefix(own): tensor for k, tensor in found.tensors["random"].items() if k.startswith(own)}
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"], accelerator.device)
    return True


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """Return Adam's moments and counters by parameter name, so that their order cannot matter."""
    return {
        f"{name}//{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def put_optimizer(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Do the inverse of `optimizer_tensors`."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            prefix = f"{name}//"
            moments = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in moments.items()}
