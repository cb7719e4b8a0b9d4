"""The small training run that the tests share: as functions, in a killable child, and as a script for torchrun.

A job is a dict of dotted options (`{"train.epochs": 2}`) with some keys of its own (see `run_job`), so that a run in
this process, in a child and under `torchrun distributed_worker.py JOB.json` is the same run. Every encoder is
`scratch:tiny` shrunk to one layer: a run of eight steps takes well under a second.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tqdm import tqdm

from mtl_re.config import GROUPS, Config
from mtl_re.data import sample
from mtl_re.model import encoders
from mtl_re.scoring import evaluation
from mtl_re.training import checkpoint, loop, run_report, tracking
from mtl_re.training import train as train_module
from mtl_re.training.train import train

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BASE: dict[str, Any] = {
    "data.max_length": 96,
    "data.valid_fraction": 0.2,
    "model.encoder": "scratch:tiny",
    "optim.lr": 1e-3,
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.precision": "no",
    "tracking.log_every": 1,
}
"""Forty rows of `rows_file` under these options: 32 training rows, 4 steps an epoch, 8 steps."""
RATES = {"rows_per_s", "tokens_per_s"}
git_state = functools.cache(tracking.git_state)


def rows_file(path: Path, size: int = 40, split: str = "train", seed: int = 0) -> Path:
    """Write sample rows in KLUE JSON."""
    path.write_text(json.dumps(sample.rows(split, size, seed), ensure_ascii=False), encoding="utf-8")
    return path


def make_config(options: Mapping[str, Any]) -> Config:
    """`BASE` with these dotted options over it."""
    groups: dict[str, dict[str, Any]] = {}
    for dotted, value in (BASE | dict(options)).items():
        group, name = dotted.split(".")
        groups.setdefault(group, {})[name] = value
    return Config(**{name: group(**groups.get(name, {})) for name, group in GROUPS.items()})


def shrink(patch: pytest.MonkeyPatch, dropout: bool = True) -> None:
    """Make runs small and quick: a smaller `scratch:tiny` (without dropout of its own, if asked), no pictures at the
    end, git asked once, and memory not given back.
    """
    size = encoders.SCRATCH_SIZES["tiny"] | SIZE
    if not dropout:
        size = {name: 0.0 if "dropout" in name else value for name, value in size.items()}
    patch.setitem(encoders.SCRATCH_SIZES, "tiny", size)
    patch.setattr(run_report, "write_run_report", lambda run_dir: None)
    patch.setattr(tracking, "git_state", git_state)
    patch.setattr(loop, "release_free_memory", lambda: None)


def score_by_step(patch: pytest.MonkeyPatch, scores: Mapping[str, float]) -> None:
    """Have evaluations return these figures, by step, so that which model is best hangs on no machine's rounding."""
    if not scores:
        return
    evaluate_now, steps = train_module.evaluate_now, [0]

    def remembering(run: Any, state: Any, *rest: Any) -> Any:
        steps[0] = state.step
        return evaluate_now(run, state, *rest)

    patch.setattr(train_module, "evaluate_now", remembering)
    patch.setattr(evaluation, "selection_score", lambda *arguments: scores[str(steps[0])])


def run_job(job: Mapping[str, Any]) -> None:
    """Train as a job says.

    Its own keys: `dropout` (False: none in the encoder either), `kill` ([function, call, "before" | "after"]: SIGKILL
    this process around that call of `module.function`), `signal` ([number, function, call]: send it to itself before
    that call), `sleep` (seconds before each step), `stop_rank` ([rank, step]: that rank raises there), `scores` (see
    `score_by_step`).
    """
    job = dict(job)
    shrink(pytest.MonkeyPatch(), job.pop("dropout", True))
    score_by_step(pytest.MonkeyPatch(), job.pop("scores", {}))
    if kill := job.pop("kill", None):
        _signal_at(kill[0], kill[1], signal.SIGKILL, kill[2])
    if sent := job.pop("signal", None):
        _signal_at(sent[1], sent[2], sent[0], "before")
    if seconds := job.pop("sleep", None):
        _wrap("mtl_re.training.train.step", lambda call: time.sleep(seconds))
    if fault := job.pop("stop_rank", None):

        def stop(call: int) -> None:
            if int(os.environ.get("RANK", "0")) == fault[0] and call == fault[1]:
                raise RuntimeError("stopped by the test")

        _wrap("mtl_re.training.train.step", stop)
    print(train(make_config(job)))


def _signal_at(name: str, call: int, number: int, when: str) -> None:
    def act(now: int) -> None:
        if now == call:
            os.kill(os.getpid(), number)

    _wrap(name, act, when)


def _wrap(name: str, act: Any, when: str = "before") -> None:
    """Call `act(number of this call)` around every call of `module.function` (or `module.Class.method`)."""
    place, _, attribute = name.rpartition(".")
    try:
        owner: Any = importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, kind = place.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    real, calls = getattr(owner, attribute), [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if when == "before":
            act(calls[0])
        result = real(*arguments, **named)
        if when == "after":
            act(calls[0])
        return result

    setattr(owner, attribute, wrapped)


# ---- a child that can be killed --------------------------------------------------------------------------------


def start_child(job: Mapping[str, Any], log: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Run a job in a process of its own, its output in `log`.

    A fork server that has torch loaded and has never run a backward pass makes the children: each starts in a tenth of
    the time of a fresh interpreter.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtl_re.training.train"])
    child = context.Process(target=_child, args=(dict(job), str(log), dict(environment or {})))
    child.start()
    return child


def run_child(job: Mapping[str, Any], log: Path, timeout: float = 120) -> int:
    """Run a job in a child to its end; the exit code, negative for a signal."""
    child = start_child(job, log)
    child.join(timeout)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"no end after {timeout} s: {log.read_text()}")
    return child.exitcode


def run_group(job: Mapping[str, Any], folder: Path, processes: int = 2, timeout: float = 120) -> list[int]:
    """Run a job on several processes that find each other as under torchrun, started fast; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "1",
    }
    children = [
        start_child(job, folder / f"log-{rank}", shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    end = time.monotonic() + timeout
    for child in children:
        child.join(max(end - time.monotonic(), 0))
    stuck = [rank for rank, child in enumerate(children) if child.exitcode is None]
    for rank in stuck:
        os.kill(children[rank].pid, signal.SIGABRT)  # faulthandler writes where it stands
        children[rank].join(10)
        children[rank].kill()
    said = "\n".join((folder / f"log-{rank}").read_text()[-3000:] for rank in range(processes))
    assert not stuck, f"rank(s) {stuck} had not ended after {timeout} s: {said}"
    return [child.exitcode for child in children]


def _child(job: Mapping[str, Any], log: str, environment: Mapping[str, str]) -> None:
    import torch

    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    faulthandler.enable()
    tqdm.set_lock(threading.RLock())  # its default is a semaphore shared over forks, which a killed child may hold
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own, for the loader's workers
    run_job(job)


def torchrun(
    job: Mapping[str, Any], folder: Path, processes: int = 2, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a job under torchrun on CPU; `accelerate launch --cpu` would start one process only."""
    path = folder / f"job-{time.monotonic_ns()}.json"
    path.write_text(json.dumps(dict(job)), encoding="utf-8")
    return subprocess.run(
        [*launcher(processes), __file__, str(path)],
        env=launch_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def launcher(processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def launch_environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# ---- comparing runs --------------------------------------------------------------------------------------------


def lines(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl without rates, which no two runs share."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    read = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in read if kind in (None, line["kind"])]


def weights(run_dir: Path) -> dict[str, Any]:
    """Tensors of the run's model."""
    return load_file(run_dir / "model" / "model.safetensors")


def last_checkpoint(run_dir: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint, which must be whole."""
    found, faults = checkpoint.newest(run_dir / "checkpoints")
    assert not faults, faults
    assert found is not None
    return found


def assert_same_tensors(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float = 0.0) -> None:
    """Equal names, shapes and values; bit for bit without a tolerance."""
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape, name
        gap = (tensor.double() - other[name].double()).abs().max().item() if tensor.numel() else 0.0
        assert gap <= tolerance, f"{name}: differs by {gap}"


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs ended alike, bit for bit: model, optimizer, random state, position, metrics and scores."""
    assert_same_tensors(weights(one), weights(other))
    a, b = last_checkpoint(one), last_checkpoint(other)
    assert a.path.name == b.path.name
    average = {"average"} if "averaged" in a.state else set()  # where `train.ema` keeps one
    assert set(a.tensors) == set(b.tensors) == {"model", "optimizer", "random"} | average
    for stem, tensors in a.tensors.items():
        assert_same_tensors(tensors, b.tensors[stem])
    assert a.state == b.state
    assert lines(one) == lines(other)
    assert (one / "valid_metrics.json").read_text() == (other / "valid_metrics.json").read_text()


def copy_run(source: Path, target: Path) -> Path:
    """A run directory of one's own to damage."""
    shutil.copytree(source, target)
    return target


if __name__ == "__main__":
    from mtl_re.cli import _fail
    from mtl_re.errors import MtlReError

    try:
        run_job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except MtlReError as error:
        raise SystemExit(_fail(error, 1)) from error
