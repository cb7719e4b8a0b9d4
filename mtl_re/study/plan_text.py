"""`mtl-re ablate STUDY --plan`: what a study will train, what it can show, and how long it takes. Nothing is trained.

Enters: a study. Leaves: markdown for the terminal: the design, its D-efficiency, the smallest differences that design
and paired seeds can show, and hours with the place where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mtl_re.markdown import table
from mtl_re.scoring.significance import COMPARED_SCORES, LEVEL, POWER, detectable_mean
from mtl_re.study.cell_queue import CellQueue, duration
from mtl_re.study.comparisons import comparisons, planned_names
from mtl_re.study.design import Design, d_efficiency
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.mixture import MODELS, products
from mtl_re.study.mixture_runs import RESPONSES
from mtl_re.study.power import detectable
from mtl_re.study.study import Cell, Study, checked_config, data_options, read_splits
from mtl_re.training.resume import planned_steps


def plan_text(study: Study, workers: int) -> str:
    """Return the plan of a study as markdown.

    Args:
        workers: That share its cells.
    """
    lines = [f"# Plan of study {study.name}", ""]
    if study.design is not None:
        lines += [*_design_lines(study, study.design), *_power_lines(study.design)]
    lines += _seed_lines(study)
    lines += _time_lines(study, workers)
    return "\n".join(lines).rstrip("\n")


# ---- the design ------------------------------------------------------------------------------------------------------


def _design_lines(study: Study, design: Design) -> list[str]:
    options, region, points = design.options, design.region, len({arm for arm, _ in study.runs})
    blocks = (
        f"in {len(options.block_seeds)} blocks of common seeds" if options.block_seeds else "each with its own seed"
    )
    bounds = ", ".join(
        f"{name} {100 * low:.3g} to {100 * high:.3g} %"
        for name, low, high in zip(region.names, region.low, region.high, strict=True)
    )
    lines = [
        f"A {options.kind} design over the loss weights of {len(region.names)} heads: {len(design.runs)} runs at "
        f"{points} points, {blocks}. Shares of the weights: {bounds}.",
        "",
        *table(
            ["run", "arm", *(f"weight of {name}" for name in region.names), "replicate", "seed"], _rows(study, design)
        ),
    ]
    efficiencies = [
        f"{model} {d_efficiency(design.points, region, model):.1f} %"
        for model in MODELS
        if len(products(len(region.names), model)) <= points
    ]
    lines += [
        f"D-efficiency: {', '.join(efficiencies)}. (100 %: no shares of runs over the region could tell the "
        "coefficients better. Points that also test the surface's form cost some of it.)",
        "",
    ]
    if any(weight == 0 for run in design.runs for weight in run.point):
        lines += [
            "**Some runs give a head no weight.** Such a head is not trained at all, so the surface has a cliff there: "
            "give `bounds` above 0.",
            "",
        ]
    return lines


def _rows(study: Study, design: Design) -> list[list[str]]:
    return [
        [
            str(number),
            arm,
            *(f"{len(run.point) * part:.3f}" for part in run.point),
            str(run.replicate),
            f"{run.seed}" + ("" if run.block is None else f" (block {run.block + 1})"),
        ]
        for number, ((arm, _), run) in enumerate(zip(study.runs, design.runs, strict=True), start=1)
    ]


def _power_lines(design: Design) -> list[str]:
    options = design.options
    unit = "SD" if options.sd is None else "points"
    rows = [
        [one.test, one.form, f"F({one.degrees[0]}, {one.degrees[1]})", f"{one.size * (options.sd or 1):.2f} {unit}"]
        for one in detectable(design)
    ]
    if options.sd is None:
        where = "No SD is given (`design.sd`), so sizes are in SDs of a run around the surface."
    else:
        where = f"SD of a run: {options.sd:.2f} points, {options.sd_source}."
    return [
        f"Smallest difference between the best and the worst weights that the {options.model} surface of the "
        f"{RESPONSES[options.response]} shows with power {100 * POWER:.0f} % at the level {100 * LEVEL:.0f} % "
        f"(noncentral F). {where}",
        "",
        *table(["what is shown", "if the truth is", "test", "smallest difference"], rows),
    ]


def _seed_lines(study: Study) -> list[str]:
    """Say what the arms that are compared one by one with the baseline can show over seeds."""
    planned = [] if study.search is not None else comparisons(study, planned_names(study))
    if not planned:
        return []
    if len(study.seeds) == 1:
        return ["One seed shows no difference between arms, however large.", ""]
    counts = {score: sum(score in one.scores for one in planned) for score in COMPARED_SCORES}
    sizes = ", ".join(
        f"{detectable_mean(len(study.seeds), count):.2f} in {RESPONSES[score]} ({count} comparison{'s' * (count > 1)})"
        for score, count in counts.items()
        if count
    )
    baseline = "/".join(filter(None, study.baseline or ()))
    return [
        f"True difference from {baseline} that {len(study.seeds)} paired seeds show with power {100 * POWER:.0f} %, in "
        f"SDs of the seeds' differences: {sizes}. (Paired t test at {100 * LEVEL:.0f} %, corrected for the number of "
        "comparisons; the p over rows must be as low.)",
        "",
    ]


# ---- hours -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Seconds of a cell, and where they come from."""

    seconds: dict[str, float]
    source: str


def _time_lines(study: Study, workers: int) -> list[str]:
    if study.search is not None:
        return [f"{study.search.trials} arms, chosen while the study runs, × {len(study.seeds)} seeds."]
    cells = study.cells()
    done = finished_cells(study, cells)
    left = [cell for cell in cells if (cell.arm, cell.seed) not in done]
    others = ", ".join(study.other_arms)
    lines = [f"{len(cells)} cells, {len(cells) - len(left)} of them finished."]
    if study.design is not None and others:
        lines[0] += f" Beside the design: {others}, seeds {', '.join(map(str, study.seeds))}."
    if not left:
        return lines
    pace = _measured(study, cells) or _stated(study, cells)
    if pace is None:
        stated = "" if study.design is None else "; or give `design.seconds_per_step`"
        return [*lines, "", f"Hours: unknown until one cell has finished{stated}."]
    seconds = sum(pace.seconds[cell.key] for cell in left)
    each = duration(sum(pace.seconds.values()) / len(pace.seconds))
    by = f"{workers} workers" if workers > 1 else "one worker"
    lines += ["", f"Time left: {duration(seconds / workers)} for {by}, {each} a cell ({pace.source})."]
    if study.confirmation is not None and (steps := _confirming_steps(study, pace)):
        lines += ["", steps]
    return lines


def _measured(study: Study, cells: Iterable[Cell]) -> Pace | None:
    """Return the mean time of the study's finished cells."""
    begun = (study.output / "cells").is_dir() if study.storage else (study.output / "study.db").is_file()
    if not begun:  # a queue would be made
        return None
    done = CellQueue(study).progress().done.values()
    seconds = [float(trial.user_attrs["seconds"]) for trial in done if trial.user_attrs.get("seconds", 0) > 1]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    return Pace({cell.key: mean for cell in cells}, f"the mean of {len(seconds)} finished cells")


def _stated(study: Study, cells: Iterable[Cell]) -> Pace | None:
    """Return the time by the study file's seconds per step."""
    if study.design is None or (rate := study.design.options.seconds_per_step) is None:
        return None
    steps = {cell.key: steps_of(cell.config) for cell in cells}
    counts = sorted(set(steps.values()))
    shown = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    source = f"{shown} steps at {rate:g} s, as the study file states"
    return Pace({key: count * rate for key, count in steps.items()}, source)


def _confirming_steps(study: Study, pace: Pace) -> str:
    """Return how long a pair of the confirmation takes, at the pace of the study's own cells."""
    assert study.confirmation is not None
    mine, theirs = steps_of(study.cells()[0].config), steps_of(study.confirmation.base)
    first = study.cells()[0].key
    pair = 2 * theirs * pace.seconds[first] / mine
    return f"Each pair of --confirm: 2 × {theirs:,} steps, {duration(pair)} at that pace."


def steps_of(config: dict[str, Any]) -> int:
    """Return the optimizer steps of a run on one process."""
    checked = checked_config(config)
    rows = _training_rows(data_options(config), checked.model.heads)
    options = checked.train
    return planned_steps(options.epochs, options.max_steps, options.batch_size * options.accumulate, rows)[0]


@lru_cache(maxsize=4)
def _training_rows(options: str, heads: str) -> int:
    return len(read_splits(options, heads).train)
