"""Where a training run stands: what a step leaves behind, written to disk and read back exactly.

`State` is plain JSON; weights, Adam's moments and random states go beside it as tensors by name. A run is resumed only
into the same options and the same rows (`prepare.identity`); equal states then continue equally, bit for bit on CPU and
with the same number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mtl_re import files
from mtl_re.config import Config
from mtl_re.errors import MtlReError
from mtl_re.training import checkpoint
from mtl_re.training.processes import on_all, on_main
from mtl_re.training.setup import Run
from mtl_re.training.tracking import MetricsLog


@dataclass
class State:
    """Where a run stands. Plain JSON values; equal states continue equally.

    Attributes:
        step: optimizer steps taken. epoch, position: the next step is number `position` of `epoch`.
        step_rows: rows of a full step, over all processes and passes.
        best_score, best_step, evaluations_without_gain: model selection.
        skipped: fp16 steps skipped for overflow, in all and in a row.
        left_out: steps whose rows a rollback left out, by number. norms: the last steps' gradient norms, where
            `train.spike` asks for them.
        window: sums since the last line of metrics.jsonl.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    step_rows: int = 0
    best_score: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    evaluated_step: int = -1
    left_out: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    window: Window = field(default_factory=lambda: Window())


@dataclass
class Window:
    """Sums over the steps since the last logged line, over all processes.

    Attributes:
        losses: by head, raw loss sum. counts: by head, labelled rows. rows, tokens: as read, without
            padding. norm: the last step's gradient norm. weights: of every step, where they move.
    """

    losses: dict[str, Any] = field(default_factory=dict)  # tensors until they are read: no synchronisation a step
    counts: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    norm: Any = 0.0
    weights: list[dict[str, float]] = field(default_factory=list)


def settle(run: Run, window: Window) -> None:
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


def save_state(run: Run, state: State) -> None:
    """Write a resumable checkpoint. Every rank contributes its random state; rank 0 writes."""
    settle(run, state.window)
    generators = random_tensors(run.accelerator)
    scaler = run.accelerator.scaler
    record = {
        "state": asdict(state),
        "processes": run.accelerator.num_processes,
        "scaler": None if scaler is None else scaler.state_dict(),
        "weighting": run.weighting.state(),
        "identity": run.identity,
    }
    tensors = {
        "model": run.plain_model.state_dict(),
        "optimizer": optimizer_tensors(run.optimizer),
        "random": generators,
    }
    if run.average is not None:
        record["averaged"] = run.average.updates
        tensors["average"] = run.average.values

    def write() -> None:
        if (log := run.run_dir / "metrics.jsonl").exists():
            files.sync(log)  # not even a power cut may leave a checkpoint ahead of the log
        checkpoint.save(run.run_dir / "checkpoints", state.step, tensors, record, run.config.train.keep)

    on_main(run.accelerator, write)


def resume(run: Run) -> tuple[State, MetricsLog | None]:
    """The state to start from: a checkpoint's, as `train.resume` asks, or a fresh one.

    Raises:
        MtlReError: the checkpoint is damaged, or belongs to other options or rows.
    """
    options = run.config.train
    state = State(step_rows=options.batch_size * options.accumulate * run.accelerator.num_processes)
    path = on_main(run.accelerator, lambda: _choose(run)) if options.resume == "auto" else options.resume
    if path is not None:
        state = restore(run, Path(path))
    log = on_main(run.accelerator, lambda: MetricsLog(run.run_dir / "metrics.jsonl", state.step))
    return state, log if run.main else None


def _choose(run: Run) -> str | None:
    """The newest whole checkpoint of the run. Rank 0 looks for all: it also puts back what a kill left aside."""
    files.recover(run.run_dir)
    found, faults = checkpoint.newest(run.run_dir / "checkpoints")
    for fault in faults:
        run.say(f"passed over: {fault}")
    run.say(f"going on from {found.path}" if found else "no checkpoint to go on from: starting anew")
    return None if found is None else str(found.path)


def restore(run: Run, path: Path) -> State:
    """Make the run what it was at a checkpoint.

    Raises:
        MtlReError: the checkpoint is damaged, or belongs to other options or rows.
    """
    found = on_all(run.accelerator, lambda: checkpoint.load(path))
    try:
        _check_identity(run, found)
        return _restore(run, found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # whole, but written by something else
        raise MtlReError(f"{path}: is no checkpoint of such a run ({type(error).__name__}: {error})") from error


def _check_identity(run: Run, found: checkpoint.Checkpoint) -> None:
    """Raise unless options and rows are those of the checkpoint; what has changed since is named, with both values."""
    before, places = found.state["identity"], {"training rows": "train", "validation rows": "valid"}
    changed, defaults = [], Config().to_dict()
    for name, now in run.identity.items():
        if (then := recorded(before, name, defaults)) == now:
            continue
        if name in places:
            changed.append(f"{name} (data.{places[name]}: {getattr(run.config.data, places[name])})")
        else:
            changed.append(f"{name} ({then} then, {now} now)")
    if changed:
        raise MtlReError(f"{found.path}: cannot go on, because these have changed since: {', '.join(changed)}")


def recorded(identity: Mapping[str, str], name: str, defaults: Mapping[str, Any]) -> str | None:
    """What a checkpoint's identity says under a name; of an option that is younger than the checkpoint, its default."""
    if name in identity or not name.startswith("options "):
        return identity.get(name)
    group, option = name.removeprefix("options ").split(".", 1)
    return json.dumps(defaults[group][option], sort_keys=True, ensure_ascii=False)


def _restore(run: Run, found: checkpoint.Checkpoint) -> State:
    """Put weights, moments, random states and the weighting back."""
    run.plain_model.load_state_dict(found.tensors["model"])
    put_optimizer(run.optimizer, found.tensors["optimizer"])
    if run.average is not None:
        run.average.restore(found.tensors["average"], found.state["averaged"])
    if run.accelerator.scaler is not None and found.state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(found.state["scaler"])
    run.weighting.restore(found.state["weighting"])
    if not put_random(run.accelerator, found):
        run.say(f"this run had {found.state['processes']} processes: going on, but not bit for bit")
        torch.manual_seed(
            run.config.train.seed + 1_000_003 * run.accelerator.process_index + found.state["state"]["step"]
        )
    values = dict(found.state["state"])
    window = Window(**values.pop("window"))
    if not run.main:
        window.losses = dict.fromkeys(window.losses, 0.0)
    return State(**values, window=window)


def random_tensors(accelerator: Accelerator) -> dict[str, Tensor]:
    """Every process's random states, by `rank/device`; only dropout draws from them."""
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
    """Adam's moments and counters by parameter name, so that their order cannot matter."""
    return {
        f"{name}//{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def put_optimizer(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            prefix = f"{name}//"
            moments = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in moments.items()}
