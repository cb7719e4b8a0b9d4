"""Reading of a study file (YAML) into `study.Study`.

Arms are listed (`arms`), the product of axes (`axes` of lists: the full grid), or sampled while the study runs (`axes`
with ranges, or `trials` and `sampler`: a search). A mixture design over the loss weights (`design`) makes arms of its
points, beside those that are listed. `readings` names the ways in which the cells' logits are decoded. An unknown key,
a value of the wrong type or a name that nothing defines is an error that names it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from mtl_re.config import GROUPS, Gate, Restrict, parse_shares
from mtl_re.errors import MtlReError
from mtl_re.files import file_name, read_yaml
from mtl_re.study.confirmation import check_confirmation
from mtl_re.study.design import Design
from mtl_re.study.design_file import design_arms, read_confirmation, read_design
from mtl_re.study.file_keys import choice, known, number, some, typed
from mtl_re.study.study import (
    Arm,
    Confirmation,
    Pruner,
    Range,
    Sampler,
    Search,
    Study,
    StudyDecoding,
    check_study,
    set_dotted,
)

_NAME = re.compile(r"[\w.,=+-]{1,100}")
KEYS = (
    *("name", "base", "overrides", "arms", "axes", "trials", "sampler", "seeds", "composed", "readings"),
    *("baseline", "test", "pruner", "storage", "output", "design", "confirm"),
)


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        MtlReError: Something is wrong with the file or the options of a cell; the message names it.
    """
    raw = read_yaml(path)
    try:
        study = _study(raw, path)
        check_study(study)
        if study.confirmation is not None:
            check_confirmation(study)
    except MtlReError as error:
        raise MtlReError(f"{path}: {error}") from error
    return study


# ---- the file's keys -----------------------------------------------------------------------------------------


def _study(raw: dict[str, Any], path: Path) -> Study:
    known(raw, KEYS, "study")
    name = typed(raw, "name", str, path.stem)
    if not _NAME.fullmatch(name):
        raise MtlReError(f"name: {name!r}; letters, digits and . , = + - only (it names a directory)")
    base = read_yaml(path.parent / typed(raw, "base", str))
    for key, value in typed(raw, "overrides", dict, {}).items():
        _merge(base, key, value)
    seeds = _seeds(raw)
    design = _design(raw, base, path.parent, seeds)
    arms, axes, search = ({}, {}, None) if design and "arms" not in raw else _varied(raw)
    points, runs = design_arms(design) if design else ({}, ())
    if twice := sorted(set(points) & set(arms)):
        raise MtlReError(f"arms: {twice[0]}: the design has a point of this name; give the arm another")
    arms = {**points, **arms}
    readings = {key: _decoding(key, value) for key, value in typed(raw, "readings", dict, {"hard": {}}).items()}
    if not readings:
        raise MtlReError("readings: at least one is needed")
    composed = typed(raw, "composed", dict, {})
    pruner = choice(raw, "pruner", get_args(Pruner), "none")
    if pruner != "none" and (search is None or len(seeds) > 1):
        raise MtlReError(f"pruner: {pruner} is for a search with one seed; elsewhere it would drop an arm's bad seeds")
    return Study(
        name=name,
        base=base,
        seeds=seeds,
        arms=arms,
        axes=axes,
        search=search,
        composed=composed,
        readings=readings,
        baseline=_baseline(raw, [*arms, *composed], readings),
        test=typed(raw, "test", str, None),
        pruner=pruner,
        storage=typed(raw, "storage", str, None),
        output=Path(typed(raw, "output", str, f"runs/ablations/{name}")),
        design=design,
        runs=runs,
        confirmation=_confirmation(raw, base, design),
    )


def _design(raw: dict[str, Any], base: dict[str, Any], folder: Path, seeds: tuple[int, ...]) -> Design | None:
    if "design" not in raw:
        return None
    if odd := {"axes", "trials", "sampler"} & set(raw):
        raise MtlReError(f"{sorted(odd)[0]}: a design makes its own arms; other arms can be listed beside it (arms)")
    return read_design(typed(raw, "design", dict), base, folder, seeds)


def _confirmation(raw: dict[str, Any], base: dict[str, Any], design: Design | None) -> Confirmation | None:
    if design is None:
        if "confirm" in raw:
            raise MtlReError("confirm: belongs to a design, whose optimum it confirms")
        return None
    return read_confirmation(typed(raw, "confirm", dict, {}), deepcopy(base), _merge, list(design.region.names))


def _merge(options: dict[str, Any], key: str, value: Any) -> None:
    """Apply a nested or dotted override: only the values it names change, but a map of weights is set as a whole."""
    inner = isinstance(value, dict) and (key in GROUPS)
    for part, child in value.items() if inner else [("", value)]:
        set_dotted(options, f"{key}.{part}" if inner else key, child)


def _varied(raw: dict[str, Any]) -> tuple[dict[str, Arm], dict[str, list[Any]], Search | None]:
    """Return the arms, the axes that a grid made them of, and the search; a search has neither arms nor axes yet."""
    if ("arms" in raw) == ("axes" in raw):
        raise MtlReError("give either arms or axes (or a design)")
    if "arms" in raw:
        if odd := {"trials", "sampler"} & set(raw):
            raise MtlReError(f"{sorted(odd)[0]}: belongs to a search over axes, not to arms")
        arms = typed(raw, "arms", dict)
        for name, settings in arms.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise MtlReError(f"arms: {name!r}; an arm's name has letters, digits and . , = + - (it names files)")
            if not isinstance(settings, dict):
                raise MtlReError(f"arms: {name}: expected a map of dotted keys to values")
        return some("arms", arms), {}, None
    axes = {key: _axis(key, value) for key, value in some("axes", typed(raw, "axes", dict)).items()}
    if "trials" in raw or "sampler" in raw or any(isinstance(axis, Range) for axis in axes.values()):
        trials = typed(raw, "trials", int)
        if trials < 1:
            raise MtlReError(f"trials: {trials}; at least 1 is needed")
        return {}, {}, Search(axes, trials, choice(raw, "sampler", get_args(Sampler), "tpe"))
    lists = {key: axis for key, axis in axes.items() if isinstance(axis, list)}
    return _grid(lists), lists, None


def _grid(axes: Mapping[str, list[Any]]) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        name = grid_name(settings)
        if name in arms:
            raise MtlReError(f"axes: two points of the grid are both called {name!r}; remove the repeated value")
        arms[name] = settings
    return arms


def grid_name(settings: Arm) -> str:
    """Return an arm's name made of its values, fit for a file name, such as `weights=1-2-1,lr=0.0002`."""
    lasts = [key.rsplit(".", 1)[-1] for key in settings]
    names = lasts if len(set(lasts)) == len(lasts) else list(settings)
    return file_name(",".join(f"{name}={_value(value)}" for name, value in zip(names, settings.values(), strict=True)))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(map(_value, value.values()))
    if isinstance(value, list):
        return "-".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _axis(key: str, value: Any) -> list[Any] | Range:
    if isinstance(value, list) and value:
        return value
    if not isinstance(value, dict):
        raise MtlReError(f"axes: {key}: expected a list of values or a range {{low, high, log, step}}")
    known(value, [part.name for part in fields(Range)], f"axes: {key}")
    low, high = value.get("low"), value.get("high")
    if not (number(low) and number(high) and low < high):  # type: ignore[operator] # numbers, as just checked
        raise MtlReError(f"axes: {key}: low {low} and high {high} must be numbers, low below high")
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool) or not (step is None or (number(step) and step > 0)):
        raise MtlReError(f"axes: {key}: log is true or false, step a number above 0")
    if log and (step is not None or low <= 0):  # type: ignore[operator]
        raise MtlReError(f"axes: {key}: with log, low must be above 0 and there is no step")
    return Range(low, high, log, step)  # type: ignore[arg-type]


def _decoding(name: Any, value: Any) -> StudyDecoding:
    where = f"readings: {name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MtlReError(f"{where}: letters, digits and . , = + - only")
    if not isinstance(value, dict | None):
        raise MtlReError(f"{where}: expected a map with gate, prior, restrict, calibrate")
    value = value or {}
    known(value, ("gate", "prior", "restrict", "calibrate"), where)
    prior = value.get("prior", "none")
    if prior not in ("none", "em"):
        shares = parse_shares(f"{where}: prior", prior if isinstance(prior, list) else str(prior))
        prior = ",".join(f"{share:g}" for share in shares)
    gate = choice(value, "gate", get_args(Gate), "hard", where)
    restrict = choice(value, "restrict", get_args(Restrict), "none", where)
    if not isinstance(calibrate := value.get("calibrate", False), bool):
        raise MtlReError(f"{where}: calibrate: {calibrate!r}; expected true or false")
    return StudyDecoding(gate, prior, restrict, calibrate=calibrate)


def _baseline(
    raw: dict[str, Any], arms: list[str], readings: dict[str, StudyDecoding]
) -> tuple[str, str | None] | None:
    text = typed(raw, "baseline", str, None)
    if text is None:
        return None
    arm, _, reading = text.partition("/")
    if arm not in arms:
        raise MtlReError(f"baseline: there is no arm {arm!r}; the arms are {', '.join(arms) or 'chosen by the search'}")
    if reading and reading not in readings:
        raise MtlReError(f"baseline: there is no reading {reading!r}; the readings are {', '.join(readings)}")
    return arm, reading or None


def _seeds(raw: dict[str, Any]) -> tuple[int, ...]:
    if "design" in raw and "arms" not in raw and "seeds" not in raw:
        return (1,)  # of no cell: the design's runs have seeds of their own
    seeds = typed(raw, "seeds", list)
    if not seeds or len(set(map(str, seeds))) < len(seeds) or not all(type(seed) is int for seed in seeds):
        raise MtlReError(f"seeds: {seeds}; expected a list of different whole numbers")
    return tuple(seeds)
