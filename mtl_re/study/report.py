"""The report of a study: which arms differ from the baseline, by how much, and with what certainty.

In: the finished cells of a study (logits by `cell_logits`, curves from metrics.jsonl). Out: OUTPUT/report/ with
report.md, scores.csv (a line for each seed), summary.csv, differences.csv and pictures. It can be written at any time;
cells that are not finished are listed in it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from mtl_re.data.splits import inputs_of
from mtl_re.errors import MtlReError
from mtl_re.files import write_csv
from mtl_re.markdown import table, undrawn, write_markdown
from mtl_re.scoring.significance import LEVEL, POWER, sd_factors
from mtl_re.scoring.summary import ERROR_NAMES, NONE
from mtl_re.study import pictures
from mtl_re.study.arm_statistics import Difference, compare, holm_adjusted
from mtl_re.study.comparisons import comparisons
from mtl_re.study.confirmation import confirmation_section
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.label_frequency import frequency_section
from mtl_re.study.report_heading import heading
from mtl_re.study.scored_arms import ScoredArm, score_arms
from mtl_re.study.study import Arm, Cell, Study, shares_of, trained_heads
from mtl_re.study.surface_report import surface_section
from mtl_re.training.metrics_log import read_log

SCORES = {"micro_f1": "micro-F1", "auprc": "AUPRC"}


def write_report(study: Study, searched: Mapping[str, Arm], resamples: int) -> Path:
    """Write a study's report from the cells that are finished.

    Args:
        searched: Arms that a search has chosen so far (see `cell_queue.searched_arms`).
        resamples: Of the bootstrap over rows.

    Returns:
        The path of `report.md`.

    Raises:
        MtlReError: No cell is finished, or a finished one cannot be read or was trained with other options.
    """
    arms = dict(searched) or study.arms
    planned = [study.cell(*arm, seed) for arm in searched.items() for seed in study.seeds] or study.cells()
    cells = {(cell.arm, cell.seed): cell for cell in planned}
    done = finished_cells(study, planned)
    if not done:
        raise MtlReError(f"study {study.name}: no cell is finished in {study.output / 'cells'}, so there is no report")
    _check_same_data(study, done)
    with FileLock(study.output / "report.lock"):
        folder = study.output / "report"
        entries = score_arms(study, done)
        if not entries:
            what = "no arm has all the cells that its scores need, so there is no report"
            finished = ", ".join(cell.key for cell in done.values())
            raise MtlReError(f"study {study.name}: {what}; finished are {finished}")
        differences = compare_to_baseline(study, entries, resamples, study.output / "draws")
        _write_tables(folder, entries, differences)
        sections = [
            heading(study, cells, done, entries, resamples),
            confirmation_section(study, entries, differences),
            surface_section(study, entries, folder),
            _scores(entries, folder),
            _differences(differences, folder, resamples),
            _errors(entries, folder),
            frequency_section(study, entries, folder) if study.design is None else [],
            _search(study, searched, entries),
            _axes(study, arms, entries, folder),
            _curves(study, arms, done, folder),
        ]
        write_markdown(folder / "report.md", [line for section in sections for line in section])
    return folder / "report.md"


def _check_same_data(study: Study, done: Mapping[Any, Cell]) -> None:
    """Raise MtlReError if a file that two finished cells began from was changed between their trainings."""
    first: dict[str, tuple[str, str]] = {}
    for cell in done.values():
        for source, digest in inputs_of(study.run_dir(cell)).items():
            key, known = first.setdefault(source, (cell.key, digest))
            if digest != known:
                what = (
                    f"{source} was changed between the trainings of {key} and {cell.key}, which are not comparable now"
                )
                raise MtlReError(f"study {study.name}: {what}; give the study another output and train all cells again")


# ---- comparisons -------------------------------------------------------------------------------------------------


def compare_to_baseline(
    study: Study, entries: Sequence[ScoredArm], resamples: int, folder: Path | None
) -> list[Difference]:
    """Compare every arm with the baseline, Holm-adjusted; return none without a finished baseline."""
    by_name = {(entry.arm, entry.reading): entry for entry in entries}
    differences: list[Difference] = []
    planned = comparisons(study, list(by_name))
    for one in tqdm(planned, desc="bootstrap", unit="arm", file=sys.stderr, disable=None):
        ours, base = by_name[one.entry], by_name[one.base]
        if set(base.cells) & set(ours.cells):
            found = compare((*one.entry, base.name), ours.cells, base.cells, resamples, folder)
            differences += [difference for difference in found if difference.score in one.scores]
    return holm_adjusted(differences)


# ---- sections --------------------------------------------------------------------------------------------------


def _scores(entries: Sequence[ScoredArm], folder: Path) -> list[str]:
    pictures.scores([(entry.name, entry.metrics) for entry in entries], SCORES, folder / "scores.png")
    fine = dict.fromkeys(key for entry in entries for key in entry.summary if key.startswith("fine_"))
    columns = [*SCORES, "ece", "gate_f1", *fine]
    if any("selection" in entry.summary for entry in entries):
        columns.append("selection")
    rows = [
        [entry.name, str(len(entry.cells)), *(_cell(entry.summary.get(column)) for column in columns)]
        for entry in entries
    ]
    named = SCORES | {"ece": "ECE", "gate_f1": "gate F1"}
    heads = [named.get(column, column.replace("fine_", "fine: ")) for column in columns]
    note = (
        "Mean ± SD over seeds, and the 95 % interval of the mean (Student's t). `ECE`: expected calibration error "
        "of the predicted labels: lower is better. `fine: X` is the accuracy of the head X on rows whose gold label is "
        "one of its own; `selection` is the score by which checkpoints were kept."
    )
    lines = ["## Scores", "", "![Scores](scores.png)", "", *undrawn("arms", [entry.name for entry in entries])]
    return [*lines, *table(["arm/reading", "seeds", *heads], rows), note, ""]


def _cell(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return NONE
    if summary["ci"] is None:
        return f"{summary['mean']:.2f}"
    return f"{summary['mean']:.2f} ± {summary['sd']:.2f} ({summary['ci'][0]:.2f} to {summary['ci'][1]:.2f})"


def _differences(differences: Sequence[Difference], folder: Path, resamples: int) -> list[str]:
    if not differences:
        return ["## Differences", "", "Nothing is compared: no baseline is named, or it has no finished cell.", ""]
    pictures.differences(differences, SCORES, folder / "differences.png")
    lines = ["## Differences from the baseline", "", "![Differences with their intervals](differences.png)", ""]
    for score, name in SCORES.items():
        rows = [
            [
                f"{d.arm}/{d.reading}",
                d.baseline,
                f"{d.difference:+.2f}",
                f"{d.rows_ci[0]:+.2f} to {d.rows_ci[1]:+.2f}",
                f"{d.rows_p:.4f} ({d.rows_holm:.4f})",
                NONE if d.seeds_ci is None else f"{d.seeds_ci[0]:+.2f} to {d.seeds_ci[1]:+.2f}",
                f"{d.seeds_t_p:.4f} ({d.seeds_t_holm:.4f})",
                f"{d.seeds_detectable:.2f}" if d.seeds_detectable else NONE,
                d.verdict,
            ]
            for d in differences
            if d.score == score
        ]
        header = ["arm/reading", "minus", "difference", "95 % over rows", "p (Holm)"]
        lines += [f"### {name}", "", *table([*header, "95 % over seeds", "p (Holm)", "detectable", "verdict"], rows)]
    compared = {name: sum(d.score == score for d in differences) for score, name in SCORES.items()}
    counts = ", ".join(f"{count} for {name}" for name, count in compared.items())
    least = sorted({(d.seeds, d.smallest_p) for d in differences})
    floor = "; ".join(f"with {seeds} seeds none of their p can be below {p:.4g}" for seeds, p in least)
    lines += [
        "Over rows: a paired bootstrap (other rows, the same trained models); the difference is averaged over the "
        "seeds. Over seeds: Student's paired t test, and its interval (other trainings, the same rows). Holm's "
        f"correction is over the comparisons of a score ({counts}; AUPRC does not depend on the gate, so readings that "
        "differ in the gate alone are listed once); the intervals are not corrected. Verdict: better or worse if "
        "Holm's p over rows and Holm's p over seeds are both below 0.05. Sign flips of the seeds' differences, which "
        f"presume no normal distribution, stand in differences.csv; {floor}.",
        "",
        *_resamples_note(max(compared.values()), resamples),
        _detectable_note(differences),
        "",
    ]
    return lines


def _resamples_note(comparisons: int, resamples: int) -> list[str]:
    """Say where the bootstrap cannot show any difference: its p is no smaller than one resample in all allows."""
    least = 2 / (resamples + 1)
    if comparisons * least < LEVEL:
        return []
    return [
        f"**Too few resamples**: with {resamples:,} of them no p over rows is below {least:.2g}, which {comparisons} "
        f"comparisons correct to {min(comparisons * least, 1):.2g}: no difference can be shown. Take at least "
        f"{math.ceil(2 * comparisons / LEVEL):,} (--resamples).",
        "",
    ]


def _detectable_note(differences: Sequence[Difference]) -> str:
    factors = [
        f"{low:.2f} to {high:.2f} times that with {seeds} seeds"
        for seeds in sorted({d.seeds for d in differences} - {1})
        for low, high in [sd_factors(seeds)]
    ]
    if not factors:
        return "One seed shows no difference, however large."
    return (
        f"Detectable: a true difference of this size is shown over seeds (p below {LEVEL:g} after correction) in "
        f"{100 * POWER:.0f} % of such studies, if the SD of the seeds' differences is the one found here. Where none "
        f"is shown, one of this size would have been missed in {100 * (1 - POWER):.0f} % of them, a smaller one more "
        f"often. The SD is an estimate itself: the true one lies (95 %) within {', '.join(factors)}."
    )


def _errors(entries: Sequence[ScoredArm], folder: Path) -> list[str]:
    kinds = {f"error_{kind}": ": ".join(text) for kind, text in ERROR_NAMES.items()}
    means = {entry.name: {kind: entry.summary[kind]["mean"] for kind in kinds} for entry in entries}
    pictures.errors(means, kinds, folder / "errors.png")
    rows = [
        [name, *(f"{value:,.1f}" for value in values.values()), f"{sum(values.values()):,.1f}"]
        for name, values in means.items()
    ]
    lines = ["## Kinds of errors", "", "Rows, mean over seeds.", "", "![Kinds of errors](errors.png)", ""]
    return [*lines, *table(["arm/reading", *kinds.values(), "all"], rows)]


def _search(study: Study, searched: Mapping[str, Arm], entries: Sequence[ScoredArm]) -> list[str]:
    if study.search is None:
        return []
    scores = {entry.arm: entry.summary["selection"]["mean"] for entry in entries if "selection" in entry.summary}
    ranked = sorted(scores, key=lambda arm: -scores[arm])
    keys = list(study.search.axes)
    rows = [[arm, f"{scores[arm]:.2f}", *(f"{searched[arm][key]}" for key in keys)] for arm in ranked]
    text = (
        f"{len(scores)} of {study.search.trials} arms, sampled by {study.search.sampler} to maximise the selection "
        "score. The score of the best of many arms is biased upwards: confirm it on other rows and seeds."
    )
    return ["## Search", "", text, "", *table(["arm", "selection", *keys], rows)]


def _axes(study: Study, arms: Mapping[str, Arm], entries: Sequence[ScoredArm], folder: Path) -> list[str]:
    """Write the score over each weight, over each axis, and over the simplex; of a design its surface says it all."""
    if study.design is not None:
        return []
    first = next(iter(study.readings))
    selects = study.test is None and all("selection" in entry.summary for entry in entries)
    figure = "selection" if selects else "micro_f1"
    what = "selection score" if selects else f"micro-F1, reading {first}"
    values = {entry.arm: entry.summary[figure]["mean"] for entry in entries if entry.reading == first}
    lines: list[str] = []
    shares = {arm: part for arm in values if arm in arms and (part := shares_of(study, arms[arm])) is not None}
    same_heads = len({tuple(part) for part in shares.values()}) == 1
    if same_heads and len({tuple(part.values()) for part in shares.values()}) >= 3:
        pictures.over_weights(shares, values, what, folder / "weights.png")
        lines += ["## Loss weights", "", "Shares of the loss weights: only their ratios matter.", ""]
        lines += [f"![{what} over each weight](weights.png)", ""]
        if len(next(iter(shares.values()))) == 3:
            pictures.ternary_map(shares, values, what, folder / "ternary.png")
            lines += [f"![{what} over the simplex](ternary.png)", ""]
    axes = list(study.search.axes) if study.search else list(study.axes)
    values = {arm: value for arm, value in values.items() if arm in arms}  # a composition has no values of its own
    if scalar := [key for key in axes if all(isinstance(arms[arm].get(key), int | float | str) for arm in values)]:
        points = {key: [(arms[arm][key], value) for arm, value in values.items()] for key in scalar}
        pictures.over_axes(points, what, folder / "axes.png")
        lines += [
            "## Axes",
            "",
            f"Each point is an arm, with its mean {what} over the seeds.",
            "",
            "![Axes](axes.png)",
            "",
        ]
    return lines


def _curves(study: Study, arms: Mapping[str, Arm], done: Mapping[tuple[str, int], Cell], folder: Path) -> list[str]:
    curves: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
    designed = {arm for arm, _ in study.runs}  # too many points for one picture
    for (arm, _), cell in ((key, cell) for key, cell in done.items() if key[0] not in designed):
        path = study.run_dir(cell) / "metrics.jsonl"
        lines = [line for line in read_log(path) if line["kind"] == "train"] if path.exists() else []
        trained = trained_heads(study, arm) if arm in study.arms else None
        for head in lines[0]["loss"] if lines else ():
            if trained is None or head in trained:
                points = [(line["step"], line["loss"][head]) for line in lines if line["labelled_rows"][head]]
                curves.setdefault(head, {}).setdefault(arm, []).append(points)
    if not curves:
        return []
    pictures.losses(curves, list(arms), folder / "losses.png")
    text = "Unweighted loss of each head for a labelled row, mean over seeds."
    return ["## Learning curves", "", text, "", "![Learning curves](losses.png)", ""]


# ---- tables ----------------------------------------------------------------------------------------------------


def _write_tables(folder: Path, entries: Sequence[ScoredArm], differences: Sequence[Difference]) -> None:
    scores = [
        {
            "arm": e.arm,
            "reading": e.reading,
            "seed": seed,
            "rows": len(e.cells[seed].gold),
            "prior": e.cells[seed].prior,
        }
        | e.scores(seed)
        for e in entries
        for seed in e.metrics
    ]
    summary = []
    for entry in entries:
        for figure, v in entry.summary.items():
            low, high = v["ci"] or (None, None)
            values = {"n": v["n"], "mean": v["mean"], "sd": v["sd"], "low": low, "high": high}
            summary.append({"arm": entry.arm, "reading": entry.reading, "figure": figure, **values})
    compared = [asdict(difference) | {"verdict": difference.verdict} for difference in differences]
    for name, rows in (("scores", scores), ("summary", summary), ("differences", compared)):
        write_csv(folder / f"{name}.csv", rows)
