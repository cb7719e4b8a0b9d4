"""Plan, run and report the benchmark: `python -m experiments.benchmarks`.

The parent imports no torch and does nothing while a measurement runs. Repeats are the outer loop and contenders take
turns at going first, so that what the machine does meanwhile falls on all alike. Figures are kept as they come
(measurements.jsonl); a measurement that fails is named, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, product
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.benchmarks import memory, report
from experiments.benchmarks.setting import NAMES, PREDICT, TRAIN, Setting

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TRAIN_ROWS = SHARED / "klue-re" / "klue-re-v1.1_train.json.gz"
TEST_ROWS = SHARED / "klue-re" / "klue-re-v1.1_dev-open.json.gz"
LOCAL = {name: SHARED / "encoders" / name for name in ("ko-mini", "e5-ko")}
"""Encoders that are not published; left out where they are missing."""
ENCODERS = ("ko-mini", "e5-ko", "roberta-base", "tiny")
PASS_COSTS = (64, 128, 256, 512, 1024, 10**9)
"""The last: one pass a step."""
LENGTH_STEPS = (1, 8, 16)
MOST_TIMES = 100
"""Of dev-open, for every command but predict."""


@dataclass(frozen=True)
class Amount:
    """Measured training steps, steps before them, and rows to predict (None: all)."""

    steps: int
    warmup: int
    predict_rows: int | None


FULL = {
    "ko-mini": Amount(60, 10, None),
    "e5-ko": Amount(30, 5, None),
    "roberta-base": Amount(8, 2, 256),
    "tiny": Amount(100, 10, None),
}
QUICK = {
    "ko-mini": Amount(10, 3, 600),
    "e5-ko": Amount(5, 2, 128),
    "roberta-base": Amount(2, 1, 64),
    "tiny": Amount(10, 3, 600),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__.splitlines()[0])
    made.add_argument(
        "--only", nargs="+", choices=list(NAMES), help="parts (default: train predict growth); memory alone"
    )
    made.add_argument("--encoders", nargs="+", choices=ENCODERS, help="default: ko-mini roberta-base; memory: e5-ko")
    made.add_argument("--contenders", nargs="+", choices=list(TRAIN | PREDICT), help="default: all")
    made.add_argument(
        "--quick", action="store_true", help="few steps, 2 repeats; roberta-base is trained, not predicted"
    )
    made.add_argument("--repeats", type=int, help="default: 5; with --quick 2; a sweep 3; growth at most 3")
    made.add_argument("--steps", type=int, help="measured training steps, for every encoder (memory: 1000)")
    made.add_argument("--warmup", type=int, help="training steps before them")
    made.add_argument("--rows", type=int, default=6400, help="training rows that the steps are taken from")
    made.add_argument("--predict-rows", type=int, help="rows to predict, for every encoder")
    made.add_argument(
        "--times",
        nargs="+",
        type=int,
        help="growth: times dev-open (default: 1 10; --quick: 1; add 100; above that only predict)",
    )
    made.add_argument("--batch-size", type=int, default=32, help="training rows of a step (memory: of a pass too)")
    made.add_argument("--predict-batch-size", type=int, default=128)
    made.add_argument("--precision", choices=("auto", "no", "bf16"), default="auto", help="of training, for all")
    made.add_argument("--predict-precision", choices=("auto", "no", "bf16"), default="no", help="of prediction")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument(
        "--allocator", choices=("auto", "system", "jemalloc"), default="auto", help="auto: jemalloc if here"
    )
    made.add_argument("--commands", nargs="+", choices=memory.COMMANDS, default=memory.COMMANDS, help="of memory")
    made.add_argument(
        "--allocators", nargs="+", choices=list(memory.ALLOCATORS), default=list(memory.ALLOCATORS), help="of memory"
    )
    made.add_argument("--short-steps", type=int, default=300, help="memory: steps or passes of all commands but train")
    made.add_argument("--most-mb", type=float, default=10_000, help="memory: a run is stopped above this")
    made.add_argument("--checkpoint", help="predict with a trained checkpoint too (int8's loss of F1 is then reported)")
    made.add_argument("--output", type=Path, help="default: experiments/results/DATE_bench")
    made.add_argument("--work", type=Path, help="directory for networks and rows, some GB (default: a temporary one)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if anything failed."""
    options = _completed(parser().parse_args(arguments))
    environment = _environment(options)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mtl-re-bench-", dir=options.work) as work:
        environment["MTL_RE_CACHE"] = f"{work}/cache"
        say(f"making rows and networks in {work}")
        made = _child("inputs", _wish(options, work), Path(work) / "made.json", environment)
        if isinstance(made, str):
            print(made, file=sys.stderr)
            return 1
        if options.only == ["memory"]:
            return _memory(options, made, Path(work), environment)
        settings = [one for one in plan(options, made, work) if _label(one) not in made["skipped"]]
        if not settings:
            print("benchmark: nothing to measure; see --only, --encoders and --contenders", file=sys.stderr)
            return 1
        output = _output(options)
        records, failed = measure(settings, output, Path(work), environment)
    head = _head(options, made, environment, failed)
    (output / "settings.json").write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if records:
        report.write(output, records, head)
    print(output)
    return int(bool(failed))


def _memory(options: argparse.Namespace, made: dict[str, Any], work: Path, environment: dict[str, str]) -> int:
    """Watch the memory of whole commands; 1 if one failed."""
    output = options.output or ROOT / "experiments" / "results" / f"{time.strftime('%Y-%m-%d')}_memory"
    output.mkdir(parents=True, exist_ok=True)
    adapted = LOCAL["ko-mini"] if LOCAL["ko-mini"].is_dir() else "scratch:mini"
    made |= {"memory_rows": str(TRAIN_ROWS) if TRAIN_ROWS.is_file() else "sample:train", "adapted": str(adapted)}
    options.command_line = f"python -m experiments.benchmarks {' '.join(sys.argv[1:])}"
    good = memory.run_all(list(memory.plan(options, made, str(work))), options, environment, output, work)
    print(output)
    return int(not good)


def _completed(options: argparse.Namespace) -> argparse.Namespace:
    """Defaults that depend on one another, and what is missing on this machine."""
    options.only = options.only or ["train", "predict", "growth"]
    if "memory" in options.only and options.only != ["memory"]:
        sys.exit("benchmark: memory is measured alone, by --only memory")
    options.repeats = options.repeats or (2 if options.quick else 3 if options.only == ["sweep"] else 5)
    options.times = options.times or ([1] if options.quick else [1, 10])
    options.contenders = options.contenders or list(TRAIN | PREDICT)
    options.skipped = {}
    if not TRAIN_ROWS.is_file():
        options.skipped["KLUE-RE"] = f"{TRAIN_ROWS.parent} is not here: the embedded sample corpus stands in"
    usual = ["ko-mini", "roberta-base"] if options.only != ["memory"] else ["e5-ko"]
    wanted = options.encoders or usual
    options.encoders = [name for name in wanted if name not in LOCAL or LOCAL[name].is_dir()]
    options.skipped |= {name: f"{LOCAL[name]} is not here" for name in wanted if name not in options.encoders}
    if options.only == ["memory"]:
        options.encoders = options.encoders[:1] or ["roberta-base"]
        options.rows = options.short_steps * options.batch_size
    options.amounts = {name: _amount(options, name) for name in (*ENCODERS, "checkpoint")}
    return options


def _amount(options: argparse.Namespace, name: str) -> Amount:
    known = (QUICK if options.quick else FULL)["ko-mini" if name == "checkpoint" else name]
    steps, warmup = options.steps or known.steps, known.warmup if options.warmup is None else options.warmup
    return Amount(steps, max(warmup, 1), options.predict_rows or known.predict_rows)


def _wish(options: argparse.Namespace, work: str) -> dict[str, Any]:
    """What `inputs.prepare` is to make."""
    real = TRAIN_ROWS.is_file()
    predicted = [name for name in options.encoders if not (options.quick and name == "roberta-base")]
    predicted += ["checkpoint"] if options.checkpoint else []
    if "predict" in options.only or (options.only == ["memory"] and {"predict", "evaluate"} & set(options.commands)):
        options.predicted = predicted
    else:
        options.predicted = []
    return {
        "work": work,
        "train": str(TRAIN_ROWS) if real else "sample:train",
        "test": str(TEST_ROWS) if real else "sample:test",
        "pool": options.rows,
        "tokenizer": str(LOCAL["ko-mini"]) if LOCAL["ko-mini"].is_dir() else None,
        "encoders": {name: str(LOCAL[name]) if name in LOCAL else None for name in options.encoders},
        "predict": options.predicted,
        "predict_rows": {name: amount.predict_rows for name, amount in options.amounts.items()},
        "contenders": options.contenders,
        "times": options.times if "growth" in options.only else [],
        "growth_rows": options.predict_rows,
        "checkpoint": options.checkpoint and str(Path(options.checkpoint).resolve()),
    }


# ---- what is measured --------------------------------------------------------------------------------------------


def plan(options: argparse.Namespace, made: dict[str, Any], work: str) -> Iterator[Setting]:
    """All measurements in the order they run."""
    for repeat in range(options.repeats):
        turn = list(_turn(options, made, work, repeat))
        for part, encoder in dict.fromkeys(one.key[:2] for one in turn):
            group = [one for one in turn if one.key[:2] == (part, encoder)]
            first = repeat % len(group)
            yield from group[first:] + group[:first]


def _turn(options: argparse.Namespace, made: dict[str, Any], work: str, repeat: int) -> Iterator[Setting]:
    common: dict[str, Any] = {"work": work, "threads": options.threads, "seed": repeat, "repeat": repeat}
    learning = {"rows": made["train"], "batch_size": options.batch_size, "precision": options.precision} | common
    reading = {"batch_size": options.predict_batch_size, "precision": options.predict_precision} | common
    for name in options.encoders:
        amount, folder = options.amounts[name], made["folders"][name]
        steps = {"steps": amount.steps, "warmup": amount.warmup, "encoder": name, "folder": folder}
        if "train" in options.only:
            for contender in (one for one in TRAIN if one in options.contenders):
                yield Setting("train", contender, **steps, **learning)
        if "sweep" in options.only:
            yield Setting("sweep", "packed", **steps, **learning)
            for cost, step in product(PASS_COSTS, LENGTH_STEPS):
                named = f"{'one pass' if cost == PASS_COSTS[-1] else cost}, {step}"
                yield Setting("sweep", named, pass_cost=cost, length_step=step, **steps, **learning)
    for name in options.predicted:
        given = {"encoder": name, "folder": made["networks"][name], "rows": made["predict"][name]}
        for contender in (one for one in PREDICT if one in options.contenders):
            yield Setting("predict", contender, **given, **reading)
    if "growth" in options.only and repeat < 3:
        for command, times in product(("predict", "evaluate", "extract", "train"), options.times):
            if times > MOST_TIMES and command != "predict":
                continue
            documents = command == "extract"
            given = {
                "folder": made["networks"]["extract" if documents else "growth"],
                "rows": made["documents" if documents else "growth"][str(times)],
            }
            yield Setting("growth", f"{times}×", command, **given, **reading)


def measure(
    settings: Sequence[Setting], output: Path, work: Path, environment: dict[str, str]
) -> tuple[list[report.Record], dict[str, str]]:
    """Run all; gives what was measured and what failed, {what: why}."""
    records: list[report.Record] = []
    failed: dict[str, str] = {}
    took: dict[tuple[str, str, str], list[float]] = {}
    for place, setting in enumerate(settings):
        began = time.perf_counter()
        found = _child("measure", asdict(setting), work / "figures.json", _fitting(environment, setting))
        took.setdefault(setting.key, []).append(time.perf_counter() - began)
        if isinstance(found, str):
            failed[f"{_label(setting)}, repeat {setting.repeat}"] = found
            outcome = f"FAILED: {found}"
        else:
            records.append({"setting": asdict(setting), "figures": found})
            with (output / "measurements.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(_public(records[-1]), ensure_ascii=False) + "\n")
            outcome = (
                f"{found.get('tokens', found['rows']) / found['wall_s']:,.0f} {_unit(found)} in {found['wall_s']:.1f} s"
            )
        left = time_left(settings[place + 1 :], took)
        say(f"[{place + 1}/{len(settings)}] {_label(setting)}: {outcome}; about {left / 60:.1f} min left")
    return records, failed


def _fitting(environment: dict[str, str], setting: Setting) -> dict[str, str]:
    """OpenVINO brings an allocator of its own and crashes where another one is preloaded."""
    preloaded = "LD_PRELOAD" if setting.contender.startswith("openvino") else None
    return {name: value for name, value in environment.items() if name != preloaded}


def time_left(settings: Sequence[Setting], took: dict[tuple[str, str, str], list[float]]) -> float:
    """Seconds, from what the same contenders took before, else their encoder's others, else any."""
    total = 0.0
    for setting in settings:
        near = took.get(setting.key) or [s for key, all_ in took.items() if key[:2] == setting.key[:2] for s in all_]
        total += mean(near or [seconds for all_ in took.values() for seconds in all_])
    return total


def _label(setting: Setting) -> str:
    return f"{setting.part} {setting.encoder} {setting.contender}"


def _unit(found: dict[str, Any]) -> str:
    return "tokens/s" if "tokens" in found else "rows/s"


def _public(record: report.Record) -> report.Record:
    """Without this machine's paths."""
    hidden = ("folder", "rows", "work")
    return {**record, "setting": {name: value for name, value in record["setting"].items() if name not in hidden}}


def _child(module: str, given: dict[str, Any], answer: Path, environment: dict[str, str]) -> Any:
    """What a module of this package answers in a process of its own; text if it failed."""
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", json.dumps(given), str(answer)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode or not answer.is_file():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"{module}: {last}"
    return json.loads(answer.read_text(encoding="utf-8"))


# ---- surroundings ------------------------------------------------------------------------------------------------


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """The same for all: offline, threads, allocator."""
    made = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    made.pop("MALLOC_CONF", None)  # jemalloc as it is by default
    made |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(options.threads))
    library = ctypes.util.find_library("jemalloc") if options.allocator != "system" else None
    if library is not None:
        made["LD_PRELOAD"] = library
    elif options.allocator == "jemalloc":
        sys.exit("benchmark: --allocator jemalloc, but no jemalloc is installed (Debian: libjemalloc2)")
    return made


def _output(options: argparse.Namespace) -> Path:
    """A new directory."""
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=False)
        return Path(options.output)
    day = ROOT / "experiments" / "results" / f"{time.strftime('%Y-%m-%d')}_bench"
    path = next(found for n in count(1) if not (found := day if n == 1 else day.with_name(f"{day.name}-{n}")).exists())
    path.mkdir(parents=True)
    return path


def _head(
    options: argparse.Namespace, made: dict[str, Any], environment: dict[str, str], failed: dict[str, str]
) -> dict[str, Any]:
    """What stands above the tables."""
    from mtl_re.training.tracking import git_state

    state = git_state() or {"commit": "unknown", "dirty": False}
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": f"python -m experiments.benchmarks {' '.join(sys.argv[1:])}".strip(),
        "commit": f"{state['commit']}{' (with uncommitted changes)' if state['dirty'] else ''}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {options.threads} threads used",
        "load when it ended": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
        "allocator": environment.get("LD_PRELOAD", "the system's"),
        "rows": "KLUE-RE train and dev-open" if TRAIN_ROWS.is_file() else "embedded sample",
        "batch": f"{options.batch_size} rows a training step, {options.predict_batch_size} rows a prediction pass",
        "training steps": ", ".join(
            f"{name} {options.amounts[name].steps} after {options.amounts[name].warmup}" for name in options.encoders
        )
        + f", taken from {options.rows:,} rows",
        "rows/s": "tokens/s over the mean length of the rows, so that it does not depend on which steps were measured",
    }
    return {"about": about, "skipped": options.skipped | made["skipped"] | failed, "int8": made["int8"]}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def say(text: str) -> None:
    """A line for the person watching."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
