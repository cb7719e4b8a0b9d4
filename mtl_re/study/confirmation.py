"""`--confirm K`: is the optimum of the surface better than the baseline, in trainings that the surface has not seen?

Enters: a study whose design is finished. Leaves: a study of two arms, `optimum` and `baseline`, with K fresh seeds that
both have, on the budget that `confirm` names. What the surface predicts is written down (prediction.json) before the
first of them trains, and stays when more pairs are added or the surface changes: no prediction is fitted to its test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_re.errors import MtlReError, tell
from mtl_re.files import read_json, write_json
from mtl_re.markdown import table
from mtl_re.scoring.metrics import Floats
from mtl_re.scoring.significance import LEVEL, seed_interval, t_test
from mtl_re.scoring.summary import NONE
from mtl_re.study.arm_statistics import UNSHOWN, Difference
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.mixture import Model, point_text, weights
from mtl_re.study.mixture_runs import RESPONSES, RunTable, run_table
from mtl_re.study.optimum import find_optimum
from mtl_re.study.scored_arms import ScoredArm, score_arms
from mtl_re.study.study import Study, check_study

FIRST_SEED = 10_001
"""Of the fresh seeds: below those of a design's own runs, above those that people write."""
PREDICTION = "prediction.json"


def check_confirmation(study: Study) -> None:
    """Check that the study which would confirm an optimum can run; the middle of the region stands for the optimum.

    Raises:
        MtlReError: Something is wrong with `confirm`.
    """
    assert study.design is not None
    heads = study.design.region.names
    try:
        check_study(_confirming(study, dict.fromkeys(heads, 1.0), 1, {}))
    except MtlReError as error:
        raise MtlReError(f"confirm: {error}") from error


def begin_confirmation(study: Study, pairs: int) -> Study:
    """Return the study that confirms the optimum, and write down what the surface predicts, unless that was done.

    Args:
        pairs: K, of fresh seeds.

    Raises:
        MtlReError: The study has no design, or runs of it are not finished.
    """
    if study.design is None:
        raise MtlReError(f"study {study.name} has no design, so there is no optimum to confirm (--confirm)")
    path = study.output / "confirm" / PREDICTION
    if not path.exists():
        write_json(path, _predicted(study))
    return stored_confirmation(study, pairs)


def stored_confirmation(study: Study, pairs: int) -> Study:
    """Return the study that confirms the optimum which was written down."""
    path = study.output / "confirm" / PREDICTION
    prediction = read_json(path)
    asked = json.loads(json.dumps(_asked(study)))
    if differ := [name for name, value in prediction.get("confirm", asked).items() if value != asked[name]]:
        what = f"{path} was written for another {' and '.join(differ)} than the study file names now"
        raise MtlReError(f"--confirm: {what}; put the file back, or remove {path.parent} with its pairs")
    return _confirming(study, prediction["optimum"], pairs, prediction)


def _confirming(study: Study, optimum: dict[str, float], pairs: int, prediction: Mapping[str, Any]) -> Study:
    assert study.confirmation is not None
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + pairs))
    used = {cell.seed for cell in study.cells()} | {*study.seeds}
    if stale := sorted(used & set(seeds)):
        raise MtlReError(
            f"confirm: seed {stale[0]} is one of the study's own; seeds from {FIRST_SEED} on must be fresh"
        )
    return Study(
        name=f"{study.name}-confirm",
        base=study.confirmation.base,
        seeds=seeds,
        arms={
            "optimum": {"loss.weights": optimum, "loss.weighting": "fixed"},
            "baseline": {"loss.weights": study.confirmation.baseline, "loss.weighting": "fixed"},
        },
        readings=study.readings,
        baseline=("baseline", None),
        test=study.confirmation.test,
        storage=study.storage,
        output=study.output / "confirm",
        prediction=prediction,
    )


def _predicted(study: Study) -> dict[str, Any]:
    """Return the optimum and, by response, the difference that the surface predicts between it and the baseline.

    `selected_by` is the score that stands for `selection` where the pairs have no validation rows: its metric on the
    test rows (None: there is none); `baseline_tried` whether the baseline lies between the design's runs, so that the
    surface speaks of it.
    """
    assert study.design is not None
    assert study.confirmation is not None
    cells = {(cell.arm, cell.seed): cell for cell in study.cells() if (cell.arm, cell.seed) in study.runs}
    done = finished_cells(study, cells.values())
    if missing := [cell.key for key, cell in cells.items() if key not in done]:
        raise MtlReError(
            f"--confirm: {len(missing)} of the design's {len(cells)} runs are not finished (the first: {missing[0]}); "
            "run the study first"
        )
    table_ = run_table(study, score_arms(study, cells))
    options, heads = study.design.options, study.design.region.names
    if table_.flat(options.response):
        raise MtlReError(f"--confirm: all runs have the same {RESPONSES[options.response]}; there is no optimum")
    surface = table_.surface(options.response, options.model)
    optimum = find_optimum(surface).point
    rounded = weights(heads, optimum.tolist())
    base = np.array([study.confirmation.baseline.get(head, 1.0) for head in heads], dtype=float)
    base /= base.sum()
    differences = {
        name: predicted_difference(table_, name, options.model, optimum, base)
        for name in table_.scores
        if not table_.flat(name)
    }
    tell(f"study {study.name}: the optimum is {point_text(heads, optimum)} ({rounded})")
    config = next(iter(cells.values())).options
    # On test rows the metric itself counts; the selection score estimates it at the shares that such rows are to have.
    own_rows = study.confirmation.test is None and config.eval.target_prior is not None
    selected_by = None if own_rows else config.eval.metric
    return {
        "optimum": rounded,
        "response": options.response,
        "model": options.model,
        "selected_by": selected_by,
        "baseline_tried": bool(surface.tried(base[None])[0]),
        "differences": differences,
        "confirm": _asked(study),
    }


def _asked(study: Study) -> dict[str, Any]:
    """Return what a prediction is made for, as JSON values: pairs of another kind cannot be held against it."""
    assert study.confirmation is not None
    assert study.design is not None
    options = study.design.options
    return {
        "base": study.confirmation.base,
        "baseline": study.confirmation.baseline,
        "test": study.confirmation.test,
        "response": options.response,
        "model": options.model,
    }


def predicted_difference(
    runs: RunTable, response: str, model: Model, optimum: Floats, base: Floats
) -> dict[str, float]:
    """Return what a surface predicts of the difference between two mixtures.

    Returns:
        `difference`; `low` and `high`, 95 % by Scheffé's S-method for all differences, since the optimum was chosen
        from the same runs; `sd`, of a run around the surface; `t`, Student's quantile for it.
    """
    surface = runs.surface(response, model)
    value, error = (float(part[0]) for part in surface.difference(optimum[None], base))
    half = surface.contrast_factor * error
    bounds = {"difference": value, "low": value - half, "high": value + half}
    return bounds | {"sd": surface.sd, "t": surface.point_factor}


def observable(predicted: Mapping[str, float], pairs: int) -> tuple[float, float]:
    """Return the 95 % interval in which the mean difference of some pairs should lie, if the prediction holds.

    The spread of that mean is added to the interval of the prediction, as the root of the sum of squares.
    """
    noise = predicted["t"] * predicted["sd"] * math.sqrt(2 / pairs)
    half = math.hypot(predicted["high"] - predicted["difference"], noise)
    return predicted["difference"] - half, predicted["difference"] + half


# ---- the report ------------------------------------------------------------------------------------------------------


def confirmation_section(study: Study, entries: Sequence[ScoredArm], differences: Sequence[Difference]) -> list[str]:
    """Return the lines of the report of a study that confirms an optimum; none for other studies.

    Args:
        differences: Of the report, for what the test rows say.
    """
    if study.prediction is None:
        return []
    reading = next(iter(study.readings))
    arms = {entry.arm: entry for entry in entries if entry.reading == reading}
    if set(arms) != {"optimum", "baseline"}:
        return []
    selected_by = study.prediction.get("selected_by", "micro_f1")
    over_rows = {one.score: one for one in differences if (one.arm, one.reading) == ("optimum", reading)}
    rows = [
        row
        for response, predicted in study.prediction["differences"].items()
        if (row := _confirmed(response, predicted, arms["optimum"], arms["baseline"], selected_by, over_rows))
    ]
    heads = list(study.prediction["optimum"])
    shares = np.array(list(study.prediction["optimum"].values()))
    beyond = [
        "**The baseline's weights lie outside what the design tried**: what the surface predicts is extrapolated, "
        "and its intervals hold only if the surface has the right form there.",
        "",
    ]
    header = ["score of the surface", "confirmed by", "pairs", "surface predicts", "pairs should show"]
    return [
        "## Does the optimum hold?",
        "",
        f"Optimum of the {study.prediction['model']} surface of the {RESPONSES[study.prediction['response']]}: "
        f"{point_text(heads, shares / shares.sum())} of the loss weights. Both arms were trained with "
        "the same fresh seeds.",
        "",
        *([] if study.prediction.get("baseline_tried", True) else beyond),
        *table([*header, "the pairs show", "over rows", "inside?", "verdict"], rows),
        "All differences are optimum − baseline, in percentage points, with 95 % intervals. The surface predicts: its "
        "difference, the interval by Scheffé's S-method (the optimum was chosen from the same runs). The pairs should "
        "show: that interval widened by the spread of the mean of so many pairs, as wide as runs spread around the "
        "surface. The pairs show: their mean difference and Student's t interval over seeds; beside it the bootstrap "
        "interval over rows. Better or worse is said where both exclude 0 (p < 0.05), and of a score without an "
        "interval over rows where the one over seeds does. The p-values are not adjusted for the number of scores: the "
        f"one that counts is of the {RESPONSES[study.prediction['response']]}, which was named beforehand. (The table "
        "of differences below adjusts for all of its comparisons.) The surface was fitted on another "
        "budget or other rows where `confirm` changes them, so a difference outside its band may be theirs.",
        "",
    ]


def _confirmed(
    response: str,
    predicted: Mapping[str, float],
    optimum: ScoredArm,
    baseline: ScoredArm,
    selected_by: str | None,
    over_rows: Mapping[str, Difference],
) -> list[str] | None:
    """Return one row of the table; None where the pairs have no such score."""
    measured = response
    if response == "selection" and not optimum.selection:
        if selected_by not in RESPONSES:
            return None
        measured = selected_by
    seeds = sorted(set(optimum.metrics) & set(baseline.metrics))
    ours, theirs = ([entry.scores(seed).get(measured, math.nan) for seed in seeds] for entry in (optimum, baseline))
    pairs = [our - their for our, their in zip(ours, theirs, strict=True)]
    if not pairs or not all(map(math.isfinite, pairs)):
        return None
    shown = seed_interval(pairs)
    low, high = observable(predicted, len(pairs))
    ci = shown["ci"]
    rows = over_rows.get(measured)
    verdict = UNSHOWN
    if max(t_test(pairs), 0.0 if rows is None else rows.rows_p) < LEVEL:
        verdict = "optimum better" if shown["mean"] > 0 else "optimum worse"
    return [
        RESPONSES[response],
        RESPONSES[measured],
        str(len(pairs)),
        f"{predicted['difference']:+.2f} [{predicted['low']:+.2f}, {predicted['high']:+.2f}]",
        f"[{low:+.2f}, {high:+.2f}]",
        f"{shown['mean']:+.2f}" + ("" if ci is None else f" [{ci[0]:+.2f}, {ci[1]:+.2f}]"),
        NONE if rows is None else f"[{rows.rows_ci[0]:+.2f}, {rows.rows_ci[1]:+.2f}]",
        "yes" if low <= shown["mean"] <= high else "no",
        verdict,
    ]
