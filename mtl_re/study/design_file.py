"""The keys `design` and `confirm` of a study file.

Enters: the file's map and the base options. Leaves: a `Design` with the arms of its points, and a `Confirmation`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.study.design import Design, DesignOptions, Kind, make_design
from mtl_re.study.file_keys import choice, known, number, some, typed
from mtl_re.study.mixture import MODELS, Region, point_name, weights
from mtl_re.study.study import Arm, Confirmation, Response, checked_config
from mtl_re.study.surface import pooled_sd
from mtl_re.taxonomy import Taxonomy

OVER = ("loss.weights",)
DESIGN_KEYS = (
    *("over", "kind", "runs", "replicates", "bounds", "blocks", "model", "response", "sd", "seconds_per_step"),
)
CONFIRM_KEYS = ("overrides", "test", "baseline")
LEAST_WEIGHT = 0.15
"""Lower bound of a head's weight, where unit weights are 1, if the file gives the head no bounds."""


def read_design(raw: Mapping[str, Any], base: dict[str, Any], folder: Path, seeds: tuple[int, ...]) -> Design:
    """Read `design`.

    Args:
        raw: The value of the key. base: Options of the base config, nested. folder: Of the study file.
        seeds: Of the study, for blocks.

    Raises:
        MtlReError: A value is wrong, or no design fits.
    """
    known(raw, DESIGN_KEYS, "design")
    choice(raw, "over", OVER, OVER[0], "design")
    try:
        config = checked_config(base)
    except MtlReError as error:
        raise MtlReError(f"base: {error}") from error
    if config.loss.weighting != "fixed":
        raise MtlReError(
            f"design: its runs keep their weights, but base sets loss.weighting {config.loss.weighting!r}; make it "
            "fixed there, and list moving weightings as arms"
        )
    taxonomy = Taxonomy.from_option(config.model.heads)
    heads = [head.name for head in taxonomy.heads]
    missing = {"selection": not config.data.validated, "gate_f1": taxonomy.no_relation is None}
    responses = tuple(response for response in get_args(Response) if not missing.get(response))
    response = choice(raw, "response", responses, "selection" if config.data.validated else "micro_f1", "design")
    sd, source = _sd(raw, folder, response)
    options = DesignOptions(
        kind=choice(raw, "kind", get_args(Kind), "", "design"),
        runs=_whole(raw, "runs"),
        replicates=_whole(raw, "replicates", 2),
        model=choice(raw, "model", MODELS, "quadratic", "design"),
        response=response,
        block_seeds=_block_seeds(raw, seeds),
        sd=sd,
        sd_source=source,
        seconds_per_step=_positive(raw, "seconds_per_step"),
    )
    try:
        return make_design(options, Region.bounded(heads, _bounds(raw, heads)))
    except MtlReError as error:
        raise MtlReError(f"design: {error}") from error


def _whole(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    try:
        value: int = typed(raw, key, int, *([] if default is None else [default]))
    except MtlReError as error:
        raise MtlReError(f"design: {error}") from error
    if value < 1:
        raise MtlReError(f"design: {key}: {value}; at least 1 is needed")
    return value


def _positive(raw: Mapping[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is not None and not (number(value) and value > 0):
        raise MtlReError(f"design: {key}: {value!r}; expected a number above 0")
    return None if value is None else float(value)


def _block_seeds(raw: Mapping[str, Any], seeds: tuple[int, ...]) -> tuple[int, ...]:
    if raw.get("blocks") is None:
        return ()
    count = _whole(raw, "blocks")
    if not 2 <= count <= len(seeds):
        raise MtlReError(f"design: blocks: {count}; expected 2 to {len(seeds)}, for a block takes one of the seeds")
    return seeds[:count]


def _bounds(raw: Mapping[str, Any], heads: list[str]) -> dict[str, tuple[float, float]]:
    """Read `bounds`; a head without any has at least `LEAST_WEIGHT`, for a head of weight 0 is not trained at all."""
    given = raw.get("bounds") or {}
    if not isinstance(given, dict):
        raise MtlReError(f"bounds: {given!r}; expected a map of heads to [low, high]")
    found = {head: (LEAST_WEIGHT / len(heads), 1.0) for head in heads}
    for head, pair in given.items():
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(number, pair))):
            raise MtlReError(f"bounds: {head}: {pair!r}; expected [low, high], proportions of the weights")
        found[head] = (float(pair[0]), float(pair[1]))
    return found


def _sd(raw: Mapping[str, Any], folder: Path, response: str) -> tuple[float | None, str]:
    """Read `sd`: a number, or the scores.csv of an earlier study, whose runs of one arm show it."""
    value = raw.get("sd")
    if not isinstance(value, str):
        return _positive(raw, "sd"), "as the study file states"
    path = folder / value
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        first = rows[0]["reading"]
        arms: dict[str, list[float]] = {}
        for row in rows:
            if row["reading"] == first and row.get(response):
                arms.setdefault(row["arm"], []).append(float(row[response]))
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise MtlReError(f"design: sd: {path} is no scores.csv of a study that has {response} ({error})") from error
    sd = pooled_sd([np.array(scores) for scores in arms.values()])
    if not sd:
        raise MtlReError(f"design: sd: {path}: no arm has two runs that differ in {response}; state a number")
    return sd, f"of runs of one arm in {path.name} of {path.parent.name}"


def design_arms(design: Design) -> tuple[dict[str, Arm], tuple[tuple[str, int], ...]]:
    """Return the arms of a design's points by name, and its runs as pairs of an arm and a seed."""
    names = [point_name(design.region.names, run.point) for run in design.runs]
    arms = {
        name: {"loss.weights": weights(design.region.names, run.point)}
        for name, run in zip(names, design.runs, strict=True)
    }
    return arms, tuple((name, run.seed) for name, run in zip(names, design.runs, strict=True))


def read_confirmation(
    raw: Mapping[str, Any], base: dict[str, Any], merge: Callable[[dict[str, Any], str, Any], None], heads: list[str]
) -> Confirmation:
    """Read `confirm`.

    Args:
        base: A copy of the study's base options, which takes the overrides. merge: Applies one of these.

    Raises:
        MtlReError: A value is wrong.
    """
    known(raw, CONFIRM_KEYS, "confirm")
    for key, value in typed(raw, "overrides", dict, {}).items():
        merge(base, key, value)
    baseline = typed(raw, "baseline", dict, dict.fromkeys(heads, 1.0))
    if not all(number(value) and value >= 0 for value in some("confirm: baseline", baseline).values()):
        raise MtlReError(f"confirm: baseline: {baseline}; expected a map of heads to weights")
    return Confirmation(base, typed(raw, "test", str, None), baseline)
