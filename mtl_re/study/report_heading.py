"""The head of a study's report: what was trained and how, on which rows it is scored, how its readings decode.

Enters: the cells, planned and finished, and the scored arms. Leaves: lines of Markdown. What would make a difference
between arms mean something else is said here: cells not finished, other arithmetic, checkpoints chosen by other rules,
test rows that a cell has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_re.errors import MtlReError
from mtl_re.files import read_json
from mtl_re.markdown import escape, table
from mtl_re.scoring.summary import NONE
from mtl_re.study.cell_logits import shared_rows
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.study.study import Cell, Study


def heading(
    study: Study,
    cells: Mapping[Any, Cell],
    done: Mapping[Any, Cell],
    entries: Sequence[ScoredArm],
    resamples: int,
) -> list[str]:
    """Return the head of the report.

    Args:
        cells: All planned ones. done: Those that are finished. resamples: Of the bootstrap over rows.
    """
    rows = sorted({len(cell.gold) for entry in entries for cell in entry.cells.values()})
    counts = "–".join(f"{count:,}" for count in {rows[0]: 0, rows[-1]: 0})
    lines = [f"# Study {escape(study.name)}", ""]
    missing = [cell.key for key, cell in cells.items() if key not in done]
    seeds = f"seeds {', '.join(map(str, study.seeds))}"
    if study.runs:
        seeds = f"the design's runs have seeds of their own{', the other arms ' + seeds if study.other_arms else ''}"
        if study.design is not None and study.design.options.block_seeds:
            seeds = f"the design's blocks have seeds {', '.join(map(str, study.design.options.block_seeds))}"
    lines += [f"{len(done)} of {len(cells)} cells are finished; {seeds}."]
    if missing:
        lines += ["", f"**Not finished** (left out): {', '.join(missing)}."]
    if len(ways := _arithmetic(study, done)) > 1:
        parts = "; ".join(f"{way}: {', '.join(keys)}" for way, keys in ways.items())
        lines += ["", f"**Trained in different arithmetic** (a difference between arms may be its): {parts}."]
    if study.test is not None:
        where = f"All scores are on `{study.test}` ({counts} rows){_shared(study, done)}"
    else:
        same = len({cell.rows for entry in entries for cell in entry.cells.values()}) == 1
        rows_of = (
            f"the same {counts} validation rows in all cells" if same else f"each cell's validation rows ({counts})"
        )
        where = f"**No test rows.** All scores are on {rows_of}"
        where += "; the checkpoint was selected on them too, so they rank the arms but overestimate their scores"
    lines += ["", f"{_selection(done)}. {where}.", ""]
    lines += [
        f"Intervals over rows: {resamples:,} bootstrap resamples. All scores in %, differences in percentage points.",
        "",
    ]
    readings = [
        [name, decoding.gate, decoding.prior, decoding.restrict, _temperatures(entries, name), _priors(entries, name)]
        for name, decoding in study.readings.items()
    ]
    means = ["temperatures, mean over arms and seeds", "prior applied, mean over arms and seeds"]
    lines += table(["reading", "gate", "prior", "restriction", *means], readings)
    if study.calibrates:
        lines += [
            "Temperatures are fitted on each cell's own validation rows; arms without such rows are left out there.",
            "",
        ]
    if composed := [[name, ", ".join(f"{h}: {a}" for h, a in parts.items())] for name, parts in study.composed.items()]:
        lines += table(["composed of separate networks", "head: arm"], composed)
    return lines


def _arithmetic(study: Study, done: Mapping[tuple[str, int], Cell]) -> dict[str, list[str]]:
    """Return which cells were trained in which precision, by how many processes, on which device.

    `train.precision: auto` depends on the machine, and the processes multiply the rows of a step.
    """
    ways: dict[str, list[str]] = {}
    for cell in done.values():
        path = study.run_dir(cell) / "manifest.json"
        if used := read_json(path).get("hardware") if path.is_file() else None:  # kept cells of before have none
            precision = "fp32" if used["precision"] == "no" else used["precision"]
            processes = f"{used['processes']} process{'es' if used['processes'] > 1 else ''}"
            kind = used["device"].partition(":")[0]
            ways.setdefault(f"{precision}, {processes} on {kind}", []).append(cell.key)
    return ways


def _selection(done: Mapping[tuple[str, int], Cell]) -> str:
    """Say by what each arm's checkpoint was kept; arms may differ in that."""
    arms: dict[str, list[str]] = {}
    for arm, cell in {arm: cell for (arm, _), cell in done.items()}.items():
        config = cell.options
        shares = f" (re-weighted to coarse shares {config.eval.target_prior})" if config.eval.target_prior else ""
        kept = f"the checkpoint with the best {config.eval.metric} on validation rows was kept{shares}"
        kept = kept if config.data.validated else "nothing was selected: the last model counts"
        arms.setdefault(kept, []).append(arm)
    if len(arms) == 1:
        return f"In every cell {next(iter(arms))}"
    return ". ".join(f"In {', '.join(map(escape, names))} {kept}" for kept, names in arms.items())


def _shared(study: Study, done: Mapping[tuple[str, int], Cell]) -> str:
    """Say how many of the test rows the cells have read."""
    try:
        rows, sentences = shared_rows(study, list(done.values()))
    except MtlReError as error:
        return f", which no cell was given; its rows were not compared with theirs ({escape(str(error))})"
    return (
        f", which no cell was given: {rows:,} of its rows are among those that cells trained or selected on, by "
        f"sentence and spans, and {sentences:,} by their sentence alone"
    )


def _priors(entries: Sequence[ScoredArm], reading: str) -> str:
    priors = [cell.prior for entry in entries if entry.reading == reading for cell in entry.cells.values()]
    shares = [[float(part) for part in text.removeprefix("em: ").split(", ")] for text in priors if text != "none"]
    return ", ".join(f"{sum(column) / len(column):.3f}" for column in zip(*shares, strict=True)) if shares else NONE


def _temperatures(entries: Sequence[ScoredArm], reading: str) -> str:
    by_head: dict[str, list[float]] = {}
    for entry in entries:
        for cell in entry.cells.values() if entry.reading == reading else ():
            for head, value in cell.decoded.temperatures.items():
                by_head.setdefault(head, []).append(value)
    means = [f"{head} {sum(values) / len(values):.2f}" for head, values in by_head.items() if set(values) != {1.0}]
    return ", ".join(means) or NONE
