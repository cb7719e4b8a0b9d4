"""`--only memory`: resident memory of whole commands over their steps, under each allocator.

Enters: encoders and rows that `inputs` made. Leaves, in one directory: a CSV of samples for each run, `runs.jsonl`
(what was run, at which commit, how it ended), a picture, and a README with the verdict. A run whose samples are there
already is not repeated, so an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import csv
import ctypes.util
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.setting import MAX_LENGTH, SCHEME
from experiments.benchmarks.watch import Sample, watch
from mtl_re import figures
from mtl_re.markdown import table

COMMANDS = ("train", "adapt", "predict", "evaluate")
NO_DECAY = "dirty_decay_ms:-1,muzzy_decay_ms:-1"
ALLOCATORS = {
    "jemalloc": "jemalloc, default settings (what the README advises)",
    "glibc": "glibc",
    "jemalloc-no-decay": f"jemalloc, MALLOC_CONF={NO_DECAY} (what it advised until 2026-11-25)",
}
SETTLED = 100
"""Steps after which memory should no longer grow; a third of a run that is too short for it."""
FLAT = 0.1
"""Share of its median by which a flat run's memory may grow from there to the end, by a straight line."""


class Run(NamedTuple):
    """One command under one allocator.

    Attributes:
        arguments: of `mtl-re`, the command's name first. steps: to be taken.
        per_step: what the command's progress bar counts a step (1, or the rows of a forward pass).
    """

    command: str
    allocator: str
    arguments: list[str]
    steps: int
    per_step: int

    @property
    def name(self) -> str:
        return f"{self.command}-{self.allocator}"


def plan(options: Namespace, made: Mapping[str, Any], work: str) -> Iterator[Run]:
    """Yield all runs: commands in their order, each under every allocator."""
    encoder = made["folders"][options.encoders[0]]
    checkpoint = options.checkpoint or f"{next(iter(made['networks'].values()), '')}/ckpt"
    steps, rows = options.steps or 1000, str(options.batch_size)
    fixed = ["--train.epochs", "1", "--train.batch_size", rows, "--train.precision", options.precision]
    learning = [*fixed, "--train.save_every", "250", "--data.train", made["memory_rows"], "--model.encoder"]
    marked = ["--model.pooling", "cls_markers", "--data.markers", SCHEME, "--data.max_length", str(MAX_LENGTH)]
    marked += ["--data.valid_fraction", "0"]
    wholly = ["--data", made["train"], "--batch_size", rows, "--output"]
    for command in options.commands:
        count = steps if command == "train" else options.short_steps
        for allocator in options.allocators:
            place = f"{work}/{command}-{allocator}"
            arguments = {
                "train": [*learning, encoder, *marked],
                "adapt": [*learning, made["adapted"]],
                "predict": [checkpoint, *wholly, f"{place}.jsonl"],
                "evaluate": [checkpoint, *wholly, f"{place}.json"],
            }[command]
            if command in ("train", "adapt"):
                arguments = [*arguments, "--train.max_steps", str(count), "--train.run_dir", place]
            yield Run(
                command,
                allocator,
                [command, *arguments],
                count,
                1 if command in ("train", "adapt") else options.batch_size,
            )


def run_all(runs: Sequence[Run], options: Namespace, environment: Mapping[str, str], output: Path, work: Path) -> bool:
    """Run what has not been run yet, one after the other, and write the report after each; False if any failed."""
    for run in runs:
        if (output / f"{run.name}.csv").is_file():
            continue
        print(f"{run.name}: {run.steps} steps of `mtl-re {run.command}`", file=sys.stderr, flush=True)
        began = time.strftime("%Y-%m-%d %H:%M")
        command = [sys.executable, "-m", "mtl_re", *run.arguments]
        most = options.most_mb
        watched = watch(command, _surroundings(run.allocator, environment), work / f"{run.name}.err", most_mb=most)
        _write_samples(output / f"{run.name}.csv", watched.samples)
        about = {"name": run.name, "began": began, "commit": _commit(), "ended": watched.ended, "steps": run.steps}
        about |= {"per_step": run.per_step, "threads": options.threads, "arguments": _public(run.arguments, work)}
        with (output / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(about, ensure_ascii=False) + "\n")
        write_report(output, options.command_line)
    return all(one["ended"] == "exit code 0" or one["ended"].startswith("stopped") for one in _runs(output))


def _surroundings(allocator: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run.

    Raises:
        SystemExit: jemalloc is asked for and not installed.
    """
    chosen = {name: value for name, value in environment.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
    if allocator == "glibc":
        return chosen
    if (library := ctypes.util.find_library("jemalloc")) is None:
        sys.exit("benchmark: no jemalloc is installed (Debian: libjemalloc2); take --allocators glibc")
    return chosen | {"LD_PRELOAD": library} | ({"MALLOC_CONF": NO_DECAY} if allocator == "jemalloc-no-decay" else {})


def _commit() -> str:
    from mtl_re.training.tracking import git_state

    state = git_state() or {"commit": "unknown", "dirty": False}
    return f"{state['commit'][:10]}{' (with uncommitted changes)' if state['dirty'] else ''}"


def _public(arguments: Sequence[str], work: Path) -> list[str]:
    """Return the arguments without this machine's directories."""
    return [Path(word).name if Path(word).is_absolute() or str(work) in word else word for word in arguments]


# ---- report ------------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """What the samples of a run say; memory in MB, `slope` in MB a step after `settled`, None where too few follow."""

    steps: float
    seconds_per_step: float
    settled: float
    middle: float
    last: float
    peak: float
    slope: float | None
    flat: bool | None


def summarise(samples: Sequence[Sample], per_step: int) -> Summary:
    """Return steps taken, memory after it settled, and whether it is flat from there on."""
    done = np.array([sample.done for sample in samples]) / per_step
    memory = np.array([sample.resident_mb for sample in samples])
    total = float(done.max())
    settled = min(SETTLED, total / 3)
    later = (done >= settled) & (done > 0)
    working = [sample.seconds for sample, steps in zip(samples, done, strict=True) if steps > 0]
    pace = (working[-1] - working[0]) / max(total - 1, 1) if working else float("nan")
    middle, last = (median(memory[chosen]) if chosen.any() else memory[-1] for chosen in (later, done >= 0.9 * total))
    slope = flat = None
    if later.sum() >= 10 and np.ptp(done[later]) >= settled / 2:
        slope = float(np.polyfit(done[later], memory[later], 1)[0])
        flat = slope * float(np.ptp(done[later])) <= FLAT * middle
    return Summary(total, pace, settled, middle, last, samples[-1].peak_mb, slope, flat)


def write_report(output: Path, command_line: str) -> None:
    """Write README.md and memory.png from the samples and `runs.jsonl` of a directory."""
    runs = _runs(output)
    samples = {run["name"]: _read_samples(output / f"{run['name']}.csv") for run in runs}
    rows = []
    for run in runs:
        one = summarise(samples[run["name"]], run["per_step"])
        verdict = "too short" if one.flat is None else "flat" if one.flat else "GROWS"
        slope = "" if one.slope is None else f"{100 * one.slope:+,.0f}"
        numbers = [f"{one.steps:,.0f}", f"{one.seconds_per_step:.2f}", f"{one.middle:,.0f}", f"{one.last:,.0f}"]
        command, allocator = run["name"].split("-", 1)
        rows.append([command, allocator, *numbers, f"{one.peak:,.0f}", slope, verdict, run["ended"], run["commit"]])
    header = ("command", "allocator", "steps", "s/step", "MB after 100 steps, median", "MB in the last tenth")
    header += ("peak MB", "MB per 100 steps", "after the first hundred", "ended", "commit")
    lines = ["# Resident memory of whole commands", "", f"`{command_line}`", "", *table(header, rows)]
    lines += [f"* {name}: {text}" for name, text in ALLOCATORS.items()]
    lines += ["* a step: an optimizer step of train and adapt, a forward pass of predict and evaluate"]
    lines += [f"* threads: {', '.join(sorted({str(run['threads']) for run in runs}))}; other work ran beside it"]
    lines += ["* VmRSS every two seconds (`NAME.csv`); peak: VmHWM, loading and checkpoints included"]
    lines += [f"* flat: a straight line from step {SETTLED} (a third of a shorter run) to the end rises by at most"]
    lines[-1] += f" {FLAT:.0%} of the median"
    lines += [f"* `{run['name']}` ({run['began']}): `mtl-re {' '.join(run['arguments'])}`" for run in runs]
    (output / "README.md").write_text("\n".join([*lines, "", "![memory](memory.png)", ""]), encoding="utf-8")
    _draw(output / "memory.png", runs, samples)


def _draw(path: Path, runs: Sequence[Mapping[str, Any]], samples: Mapping[str, Sequence[Sample]]) -> None:
    """Draw one panel a command, one line an allocator."""
    commands = list(dict.fromkeys(run["name"].split("-", 1)[0] for run in runs))
    with figures.picture(path, 9.5, 0.4 + 2.4 * len(commands)) as figure:
        panels = figure.subplots(len(commands), 1, squeeze=False)[:, 0]
        for axes, command in zip(panels, commands, strict=True):
            for run in runs:
                head, allocator = run["name"].split("-", 1)
                if head != command:
                    continue
                steps = [sample.done / run["per_step"] for sample in samples[run["name"]]]
                resident = [sample.resident_mb / 1000 for sample in samples[run["name"]]]
                color = figures.COLORS[list(ALLOCATORS).index(allocator)]
                axes.plot(steps, resident, color=color, linewidth=1, label=allocator)
            axes.axhline(2.5, color=figures.GREY, linewidth=0.8, linestyle="--")
            axes.set_ylim(bottom=0)
            axes.grid(True, axis="both")
            axes.set_title(command)
            axes.set_xlabel("steps" if command in ("train", "adapt") else "forward passes")
            axes.set_ylabel("resident memory, GB")
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _runs(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "runs.jsonl").read_text(encoding="utf-8").splitlines()]


def _write_samples(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        for sample in samples:
            writer.writerow((sample.seconds, sample.done, round(sample.resident_mb), round(sample.peak_mb)))


def _read_samples(path: Path) -> list[Sample]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Sample(float(row["seconds"]), int(row["done"]), float(row["resident_mb"]), float(row["peak_mb"]))
        for row in rows
    ]
