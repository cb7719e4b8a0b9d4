"""SIGKILL runs at random moments, resume them to their end, and compare the bits with runs that nobody killed.

    python tests/kill_runs.py --kills 1000

A parent that has imported everything and has never started a thread forks a child for each attempt, so an attempt costs
a fork and not an interpreter; forking is sound because no lock or thread exists yet (asserted before every fork). A run
is killed, resumed, killed again ..., until an attempt ends before its kill; then it must be the reference run: weights,
Adam's moments, random states, position, metrics.jsonl without rates, scores (`distributed_worker.assert_same_run`); for
predictions, extractions and exports the bytes of the output; for a study every cell finished, once, and none open (its
cells are `fake_launch.py`'s: what is killed is the worker and Optuna's database). Figures go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import select
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import yaml
from distributed_worker import assert_same_run, assert_same_tensors, last_checkpoint, lines, rows_file, run_job, shrink
from safetensors.torch import load_file
from tqdm import tqdm

import mtl_re.training.train
from mtl_re.adapt.adapt import adapt
from mtl_re.config import (
    AdaptConfig,
    AdaptDataConfig,
    AdaptModelConfig,
    AdaptTrainConfig,
    ExportConfig,
    ExtractConfig,
    OptimConfig,
    PredictConfig,
)
from mtl_re.export.export import export
from mtl_re.predict.extract import extract
from mtl_re.predict.predict import predict
from mtl_re.study import cell_process, cell_queue, workers
from mtl_re.study.cell_queue import CellQueue
from mtl_re.study.study_file import load_study

LIMIT = 120.0
"""Seconds after which an attempt that nobody kills counts as hanging."""


@dataclass(frozen=True)
class Case:
    """One kind of run. `work(folder)` begins it or goes on with it; `same(folder, reference)` raises unless equal.

    Kills come within `room` times the reference's duration: where work starts over it must be able to end at all.
    """

    name: str
    work: Callable[[Path], None]
    same: Callable[[Path, Path], None]
    room: float = 1.0


class Progress:
    """Memory that outlives a killed child: steps taken, the step it began from, when its first step was done."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 24)
        self.clear()

    def clear(self) -> None:
        self.memory[:] = struct.pack("qqd", -1, -1, 0.0)

    def read(self) -> tuple[int, int, float]:
        return struct.unpack("qqd", self.memory[:])

    def note(self, before: int, after: int) -> None:
        _, began, moment = self.read()
        first = began < 0
        self.memory[:] = struct.pack("qqd", after, before if first else began, time.monotonic() if first else moment)


@dataclass
class Figures:
    """What the kills cost."""

    kills: int = 0
    survived: int = 0
    runs: int = 0
    lost_steps: list[int] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    by_case: dict[str, int] = field(default_factory=dict)

    def summary(self, seconds: float, seed: int) -> dict[str, Any]:
        def spread(values: list[Any]) -> dict[str, float] | None:
            return {"mean": round(statistics.mean(values), 3), "max": round(max(values), 3)} if values else None

        return {
            "kills": self.kills,
            "survived": self.survived,
            "runs": self.runs,
            "kills_by_case": self.by_case,
            "lost_steps": spread(self.lost_steps),
            "seconds_to_the_next_step": spread(self.recovery),
            "seconds": round(seconds, 1),
            "seed": seed,
        }


# ---- cases ---------------------------------------------------------------------------------------------------------

TRAININGS: dict[str, dict[str, Any]] = {
    "every step": {"train.save_every": 1},
    "keep one, best model replaced": {
        "train.save_every": 2,
        "train.keep": 1,
        "eval.every": 2,
        "eval.metric": "auprc",
        "optim.lr": 1e-2,
    },
    "epochs": {"train.epochs": 3, "tracking.log_every": 3},
    "accumulation": {"train.batch_size": 4, "train.accumulate": 2, "train.save_every": 3, "tracking.log_every": 2},
    "weighting": {"loss.weighting": "uncertainty", "train.save_every": 2},
    "workers": {"train.workers": 2, "train.save_every": 3},
}


def training(name: str, rows: Path, progress: Progress) -> Case:
    def work(folder: Path) -> None:
        real = mtl_re.training.train.step

        def noted(run: Any, state: Any, *rest: Any) -> None:
            before = state.step
            real(run, state, *rest)
            progress.note(before, state.step)

        mtl_re.training.train.step = noted
        run_job(
            {"data.train": str(rows), "train.run_dir": str(folder / "run"), "train.resume": "auto"} | TRAININGS[name]
        )

    return Case(f"train: {name}", work, lambda one, other: assert_same_run(one / "run", other / "run"))


def adapting(rows: Path) -> Case:
    options = {"batch_size": 8, "max_steps": 8, "save_every": 1, "precision": "no", "resume": "auto"}

    def work(folder: Path) -> None:
        shrink(pytest.MonkeyPatch())
        adapt(
            AdaptConfig(
                AdaptDataConfig(train=str(rows), held_out=0.1, max_length=64),
                AdaptModelConfig(encoder="scratch:tiny", vocabulary=600),
                optim=OptimConfig(lr=5e-3),
                train=AdaptTrainConfig(run_dir=str(folder / "run"), **options),  # type: ignore[arg-type]
            )
        )

    def same(one: Path, other: Path) -> None:
        a, b = (last_checkpoint(folder / "run") for folder in (one, other))
        for stem in ("model", "optimizer", "random"):
            assert_same_tensors(a.tensors[stem], b.tensors[stem])
        assert a.state == b.state
        assert lines(one / "run") == lines(other / "run")
        assert_same_tensors(*(load_file(folder / "run" / "model" / "model.safetensors") for folder in (one, other)))

    return Case("adapt", work, same)


PREDICTIONS: dict[str, dict[str, Any]] = {
    "predictions.csv": {"window": 16, "batch_size": 4},
    "predictions.jsonl": {"window": 7, "batch_size": 16},
    "predictions.parquet": {"window": 16, "batch_size": 8},
}


def prediction(name: str, rows: Path, model: Path) -> Case:
    def work(folder: Path) -> None:
        options = PredictConfig(
            data=str(rows), output=str(folder / name), resume=True, on_bad_row="skip", **PREDICTIONS[name]
        )
        predict([str(model)], options)

    return Case(f"predict: {name}", work, lambda one, other: same_files(one, other, name))


EXTRACTIONS: dict[str, dict[str, Any]] = {
    "triples.csv": {"window": 16, "batch_size": 8},
    "triples.jsonl": {"window": 7, "batch_size": 16, "sentences": "whole"},
    "triples.parquet": {"window": 24, "batch_size": 8},
}


def extraction(name: str, documents: Path, model: Path) -> Case:
    def work(folder: Path) -> None:
        options = ExtractConfig(
            data=str(documents),
            output=str(folder / name),
            threshold=0.0,
            resume=True,
            on_bad_row="skip",
            **EXTRACTIONS[name],
        )
        extract(str(model), options)

    return Case(f"extract: {name}", work, lambda one, other: same_files(one, other, name))


def same_files(one: Path, other: Path, name: str) -> None:
    """Two folders hold the same bytes, the output `name` among them, and nothing else is left over."""
    made = [{path.name: path.read_bytes() for path in each.iterdir() if path.name != "log"} for each in (one, other)]
    assert name in made[0]
    assert made[0] == made[1], f"{[sorted(files) for files in made]}"


def studying(place: Path) -> Case:
    """Three cells and a worker; the launcher stands in for training."""
    (place / "base.yaml").write_text(
        yaml.safe_dump({"data": {"train": "sample:train", "limit": 100}, "model": {"encoder": "scratch:tiny"}})
    )
    keys = {"name": "s", "base": str(place / "base.yaml"), "arms": {"a": {}, "b": {"optim.lr": 0.01}}}

    def work(folder: Path) -> None:
        workers.POLL, cell_process.TICK, cell_queue.BEAT, cell_queue.GRACE = 0.1, 0.02, 1, 2
        study = folder / "study.yaml"
        study.write_text(yaml.safe_dump(keys | {"seeds": [1, 2], "output": str(folder / "out")}, sort_keys=False))
        launcher = f"{sys.executable} {Path(__file__).with_name('fake_launch.py')} quick {folder / 'events'}"
        queue = CellQueue(load_study(study))
        workers.Worker(queue, launcher).work()
        progress = queue.progress()
        assert not progress.open, progress
        assert not progress.failed, progress

    def same(one: Path, other: Path) -> None:
        cells = [
            {
                path.relative_to(each): path.read_text()
                for path in (each / "out" / "cells").rglob("*.*")
                if path.is_file()
            }
            for each in (one, other)
        ]
        assert cells[0] == cells[1]
        done = [CellQueue(load_study(each / "study.yaml")).progress().done for each in (one, other)]
        assert sorted(done[0]) == sorted(done[1]) == ["a-s1", "a-s2", "b-s1", "b-s2"]
        ended = [line.split()[1] for line in (one / "events").read_text().splitlines() if line.startswith("end")]
        assert len(ended) == len({*ended}), f"trained twice: {sorted(ended)}"

    return Case("study", work, same, room=2.0)


def exporting(run: Path) -> Case:
    """An older export stands there, and is replaced again and again."""

    def work(folder: Path) -> None:
        export(str(run), str(folder / "out"), ExportConfig(overwrite=True))

    def same(one: Path, other: Path) -> None:
        made = [
            {path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()}
            for each in (one, other)
        ]
        for files in made:
            assert files.pop(Path("log")) is not None
        differing = [name for name in made[0].keys() | made[1].keys() if made[0].get(name) != made[1].get(name)]
        assert len(made[1]) > 5
        assert not differing, f"{sorted(map(str, differing))}"

    return Case("export", work, same, room=2.0)


# ---- attempts ------------------------------------------------------------------------------------------------------


def attempt(work: Callable[[], Any], log: Path, delay: float | None = None) -> int | None:
    """Run in a child; kill it after `delay` seconds unless it has ended. Its exit code, or None if it was killed."""
    assert len(os.listdir("/proc/self/task")) == 1, "the parent has threads: forking is not sound"
    pid = os.fork()
    if pid == 0:
        _child(work, log)
    handle = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([handle], [], [], LIMIT if delay is None else delay)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(handle)
    if os.WIFSIGNALED(status):
        if delay is None:
            raise AssertionError(f"no end after {LIMIT} s:\n{log.read_text()[-3000:]}")
        return None
    return os.waitstatus_to_exitcode(status)


def _child(work: Callable[[], Any], log: Path) -> None:
    import torch

    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its default is a semaphore shared over forks, which a killed child may hold
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reference(case: Case, folder: Path) -> float:
    """The run that nobody kills; its duration."""
    folder.mkdir()
    began = time.monotonic()
    if code := attempt(lambda: case.work(folder), folder / "log"):
        raise AssertionError(f"{case.name}: the reference ended with {code}:\n{(folder / 'log').read_text()[-3000:]}")
    return time.monotonic() - began


def killed_run(
    case: Case,
    folder: Path,
    undisturbed: Path,
    longest: float,
    figures: Figures,
    chance: random.Random,
    progress: Progress,
    most: int,
) -> bool:
    """One run, killed until it ends (at most `most` times); whether it ended as the undisturbed one."""
    folder.mkdir()
    log, kills, reached = folder / "log", 0, -1
    while True:
        progress.clear()
        began = time.monotonic()
        delay = chance.uniform(0, longest) if kills < most else None
        code = attempt(lambda: case.work(folder), log, delay)
        done, start, moment = progress.read()
        if start >= 0 and kills:
            figures.recovery.append(moment - began)
            if reached >= 0:
                figures.lost_steps.append(reached - start)
        reached = done if done >= 0 else reached
        if code is None:
            kills += 1
            continue
        break
    figures.runs += 1
    figures.kills += kills
    figures.by_case[case.name] = figures.by_case.get(case.name, 0) + kills
    good = code == 0 and attempt(lambda: case.same(folder, undisturbed), log) == 0
    figures.survived += kills * good
    return good


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="kinds of run whose names begin so, such as `study`")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    chance, figures, progress = random.Random(options.seed), Figures(), Progress()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-runs-") as name:
        place = Path(name)
        with contextlib.chdir(place):
            failed = _drive(place, options, chance, figures, progress, began)
    summary = figures.summary(time.monotonic() - began, options.seed)
    print(json.dumps(summary, indent=1))
    if options.output:
        options.output.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for line in failed:
        print(f"NOT THE SAME: {line}", file=sys.stderr)
    return 1 if failed else 0


def _drive(
    place: Path, options: argparse.Namespace, chance: random.Random, figures: Figures, progress: Progress, began: float
) -> list[str]:
    rows, many, trained = (
        rows_file(place / "rows.json"),
        rows_file(place / "many.json", 240),
        place / "reference-0" / "run",
    )
    cases = [training(name, rows, progress) for name in TRAININGS]
    cases += [prediction(name, many, trained) for name in PREDICTIONS]
    cases += [extraction(name, many, trained) for name in EXTRACTIONS]
    cases += [adapting(many), exporting(trained), studying(place)]
    lasted = {}
    for number, case in enumerate(cases):
        if number == 0 or case.name.startswith(options.only):  # the first one's model serves the others
            lasted[case.name] = reference(case, place / f"reference-{number}")
    asked = [number for number, case in enumerate(cases) if case.name.startswith(options.only)]
    failed, wanted = [], options.kills
    for number in range(sys.maxsize):
        if figures.kills >= wanted or not asked:
            return failed
        which = asked[number % len(asked)]
        case, folder = cases[which], place / "run"
        left = wanted - figures.kills
        undisturbed = place / f"reference-{which}"
        longest = case.room * lasted[case.name]
        if not killed_run(case, folder, undisturbed, longest, figures, chance, progress, left):
            kept = Path(tempfile.mkdtemp(prefix="killed-")) / "run"
            shutil.move(folder, kept)
            failed.append(f"{case.name}, run {number}: {kept} (its end: {(kept / 'log').read_text()[-600:]})")
        shutil.rmtree(folder, ignore_errors=True)
        rate = figures.kills / (time.monotonic() - began)
        left_s = (wanted - figures.kills) / max(rate, 1e-9)
        print(f"{figures.survived}/{figures.kills} survived, {rate:.1f} kills/s, {left_s:.0f} s left", file=sys.stderr)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
