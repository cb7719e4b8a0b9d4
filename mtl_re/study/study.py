"""The plan of a study: arms (what is varied) and seeds, each pair a cell (one training run), and how cells are decoded.

In: what `study_file` has read. Out: `Cell`s with all their options. Whatever is wrong with them is found before the
first cell trains, because their options go through the parser and the registries of `mtl-re train`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from mtl_re.config import Config, parse_config
from mtl_re.data.splits import Splits, load_splits
from mtl_re.errors import MtlReError
from mtl_re.files import same_file
from mtl_re.scoring.decoding import Decoding
from mtl_re.study.design import Design
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.losses import normalise
from mtl_re.training.setup import check_entries

Sampler = Literal["tpe", "random"]
Pruner = Literal["none", "median"]
Response = Literal["selection", "micro_f1", "auprc", "gate_f1"]
"""Scores over which a surface is fitted."""
Arm = dict[str, Any]
"""Values by dotted config key."""

_OWNED = ("train.run_dir", "train.resume", "train.seed")


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, both included; whole numbers if the bounds and the step are whole."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return all(isinstance(part, int) for part in (self.low, self.high, 1 if self.step is None else self.step))


@dataclass(frozen=True)
class Search:
    """Arms that a sampler chooses while the study runs."""

    axes: Mapping[str, list[Any] | Range]
    trials: int
    sampler: Sampler

    def corners(self) -> list[Arm]:
        """Return arms at the ends of every axis, by which a search is checked before it runs."""
        ends = {key: [axis.low, axis.high] if isinstance(axis, Range) else axis for key, axis in self.axes.items()}
        longest = max(map(len, ends.values()))
        return [{key: values[min(place, len(values) - 1)] for key, values in ends.items()} for place in range(longest)]


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        settings: What the arm sets, by dotted key.
        config: All options, nested, as in a config file of `mtl-re train`.
    """

    arm: str
    seed: int
    settings: Arm
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the cell and of its run directory."""
        return f"{self.arm}-s{self.seed}"

    @property
    def text(self) -> str:
        """All options as the cell's `cell.yaml` holds them."""
        return str(yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False))

    @cached_property
    def options(self) -> Config:
        """The options as `mtl-re train` parses them (`checked_config`), defaults filled in; do not change them."""
        return checked_config(self.config)

    @property
    def digest(self) -> str:
        """The digest of all options: a cell whose digest has changed is another cell."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StudyDecoding(Decoding):
    """A way to decode the logits of a study's cells: one of the study file's `readings`.

    Attributes:
        calibrate: Divide the logits of each head by a temperature fitted on the cell's own validation rows, before the
            prior is shifted, for EM presumes calibrated posteriors (`scoring.calibrate` says what that did here). Arms
            without validation rows are not decoded in this way.
    """

    calibrate: bool = False


@dataclass(frozen=True)
class Confirmation:
    """How the optimum of a design is confirmed.

    Attributes:
        base: Options of its cells: the study's base with the overrides of `confirm`, nested.
        test: Data file on which they are scored (None: each on its own validation rows).
        baseline: Loss weights that the optimum is compared with, by head.
    """

    base: dict[str, Any]
    test: str | None
    baseline: dict[str, float]


@dataclass(frozen=True)
class Study:
    """A checked study file.

    Attributes:
        base: Options of the base config file with the study's overrides, nested.
        arms: By name; empty for a search.
        axes: Values of a grid's axes, for the report.
        composed: By name and head, the arm whose checkpoint gives the head's logits.
        readings: The ways to decode the cells, by name.
        baseline: Arm and reading (None: the same reading as that of the arm compared).
        test: Data file on which cells are scored (None: each on its own validation rows).
        storage: URL of Optuna's database (None: SQLite in `output`).
        design: A mixture design over the loss weights, whose points are arms too.
        runs: The design's cells: arm and seed. All other arms have every seed of `seeds`.
        confirmation: How the design's optimum is confirmed.
        prediction: Of a study that confirms an optimum: what the surface predicted (see `confirmation`).
    """

    name: str
    base: dict[str, Any]
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    search: Search | None = None
    composed: dict[str, dict[str, str]] = field(default_factory=dict)
    readings: dict[str, StudyDecoding] = field(default_factory=lambda: {"hard": StudyDecoding()})
    baseline: tuple[str, str | None] | None = None
    test: str | None = None
    pruner: Pruner = "none"
    storage: str | None = None
    output: Path = Path("runs/ablations")
    design: Design | None = None
    runs: tuple[tuple[str, int], ...] = ()
    confirmation: Confirmation | None = None
    prediction: Mapping[str, Any] | None = None

    def cells(self) -> list[Cell]:
        """Return every cell of a study that is no search: the design's runs, then the other arms seed by seed, so that
        a study cut short is still paired.
        """
        runs = [*self.runs, *((arm, seed) for seed in self.seeds for arm in self.other_arms)]
        return [self.cell(arm, self.arms[arm], seed) for arm, seed in runs]

    @property
    def other_arms(self) -> list[str]:
        """Names of the arms that are no points of the design."""
        designed = {arm for arm, _ in self.runs}
        return [arm for arm in self.arms if arm not in designed]

    def cell(self, arm: str, settings: Arm, seed: int) -> Cell:
        """Return a cell; its options are those of the base, with the arm's settings and the seed."""
        config = deepcopy(self.base)
        for key, value in settings.items():
            set_dotted(config, key, value)
        set_dotted(config, "train.seed", seed)
        return Cell(arm, seed, dict(settings), config)

    @property
    def calibrates(self) -> bool:
        """Whether a decoding fits temperatures on validation rows."""
        return any(reading.calibrate for reading in self.readings.values())

    def run_dir(self, cell: Cell) -> Path:
        """Return the directory in which a cell trains."""
        return self.output / "cells" / cell.key


def set_dotted(options: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of `a.b.c` in nested maps, adding those that are missing."""
    *parents, last = key.split(".")
    for parent in parents:
        options = options.setdefault(parent, {})
        if not isinstance(options, dict):
            raise MtlReError(f"{key}: {parent} is not a group of options")
    options[last] = deepcopy(value)


def checked_config(options: Mapping[str, Any]) -> Config:
    """Parse nested options with the parser of `mtl-re train` and check their names against the registries.

    Raises:
        MtlReError: A key is unknown, a value is of the wrong type or out of range, or no registry has a name.
    """
    config = parse_config(options)
    normalise(config.loss.weights, [head.name for head in Taxonomy.from_option(config.model.heads).heads])
    check_entries(config)
    return config


def data_options(options: Mapping[str, Any]) -> str:
    """Return what decides which rows a training with nested options reads and how it splits them, as a cache's key."""
    data = {name: value for name, value in options.get("data", {}).items() if name not in ("markers", "max_length")}
    return json.dumps(data, sort_keys=True)


def read_splits(data: str, heads: str) -> Splits:
    """Return the training and validation rows of cells with some `data_options` and label set.

    Raises:
        MtlReError: As for `load_splits`.
    """
    config = checked_config({"data": json.loads(data), "model": {"heads": heads}})
    return load_splits(config, Taxonomy.from_option(heads))


# ---- checks over the whole study -----------------------------------------------------------------------------


def check_study(study: Study) -> None:
    """Check every cell, the compositions, and that the data are there and kept apart.

    Raises:
        MtlReError: Something is wrong; the message names the arm.
    """
    configs, seen, arms = [], set[str | int](), dict[str, Config]()
    for cell in study.cells():  # each arm and each seed once: no option hangs on both
        if not {cell.arm, cell.seed} <= seen:
            configs.append(check_cell(study, cell))
            arms.setdefault(cell.arm, configs[-1])
            seen |= {cell.arm, cell.seed}
    if study.search is not None:
        for settings in study.search.corners():
            cell = study.cell("search", settings, study.seeds[0])
            configs.append(check_cell(study, cell))
            if not configs[-1].data.validated:
                raise MtlReError("a search needs validation rows to select by: set data.valid or data.valid_fraction")
        if study.composed:
            raise MtlReError("composed: a search has no arms to compose; write the arms out")
    _check_composed(study)
    _check_scored_rows(study, arms)
    for config in configs:
        _check_priors(study, list(Taxonomy.from_option(config.model.heads).groups))
    if study.calibrates and not any(config.data.validated for config in configs):
        raise MtlReError("readings: calibrate needs an arm with validation rows: set data.valid or data.valid_fraction")


def _check_scored_rows(study: Study, arms: Mapping[str, Config]) -> None:
    """Raise MtlReError if an arm has no rows to be scored on, or other ones than the baseline it is compared with."""
    if study.test is not None:
        return
    if bare := [arm for arm, config in arms.items() if not config.data.validated]:
        raise MtlReError(f"arm {bare[0]}: has no validation rows to be scored on; set test, or give it some (data)")
    if study.baseline is None or study.baseline[0] not in arms:
        return
    known, unscored = _scored_rows(arms[study.baseline[0]]), parts_only(study)
    for arm, config in arms.items():
        if arm not in unscored and (found := _scored_rows(config)) != known:
            names = ", ".join(f"data.{name}" for name in sorted({*found, *known}) if found.get(name) != known.get(name))
            cure = "set test or data.valid, so that both are scored on the same rows, or leave baseline out"
            raise MtlReError(f"arm {arm}: its validation rows are not the baseline's (they differ in {names}); {cure}")


def _scored_rows(config: Config) -> dict[str, Any]:
    """Return the options of `data` that decide which validation rows a run has."""
    split = ("valid",) if config.data.valid is not None else ("train", "limit", "fold", "valid_fraction", "split_seed")
    names = (*split, "span_ends", "first_character", "normalise", "on_bad_row")
    if config.data.fold is not None:
        names = tuple(name for name in names if name != "valid_fraction")
    return {name: getattr(config.data, name) for name in names}


def _check_priors(study: Study, groups: Sequence[str]) -> None:
    """Raise MtlReError if a reading's prior has not one share for each coarse class of a label set."""
    for name, decoding in study.readings.items():
        shares = decoding.prior.split(",")
        if decoding.prior not in ("none", "em") and len(shares) != len(groups):
            what = f"{len(shares)} shares for {len(groups)} coarse classes ({', '.join(groups)})"
            raise MtlReError(f"readings: {name}: prior: {what}")


def check_cell(study: Study, cell: Cell) -> Config:
    """Check the options of one cell and return them.

    Raises:
        MtlReError: Something is wrong; the message names the arm.
    """
    where = f"arm {cell.arm}"
    if owned := [key for key in _OWNED if key in cell.settings]:
        raise MtlReError(f"{where}: {owned[0]}: the study sets this itself{' (seeds)' if 'seed' in owned[0] else ''}")
    try:
        config = cell.options
    except MtlReError as error:
        raise MtlReError(f"{where}: {error}") from error
    for name, spec in (("data.train", config.data.train), ("data.valid", config.data.valid)):
        if spec == "":
            raise MtlReError(f"{where}: {name} is not set")
        if spec is not None and _same_rows(spec, study.test):
            raise MtlReError(f"{where}: {name}: {spec} is also test, on which no cell may train or select")
        if spec is not None:
            check_exists(f"{where}: {name}", spec)
    if study.test is not None:
        check_exists("test", study.test)
    if study.calibrates and study.test is None:
        raise MtlReError("readings: calibrate fits on validation rows, which are scored here; it needs test")
    return config


def _same_rows(spec: str, test: str | None) -> bool:
    return test is not None and (spec == test or same_file(Path(spec), Path(test)))


def check_exists(where: str, spec: str) -> None:
    """Raise an error unless a data file exists; names of the hub and of the embedded sample are not looked up."""
    if not spec.startswith(("hub:", "sample:")) and not Path(spec).is_file():
        raise MtlReError(f"{where}: {spec} is not a file (data paths are relative to the working directory)")


def heads_of(study: Study, arm: str) -> list[str]:
    """Return the names of the heads of an arm's checkpoints."""
    config = study.cell(arm, study.arms[arm], study.seeds[0]).config
    return [head.name for head in Taxonomy.from_option(config.get("model", {}).get("heads", "hierarchical")).heads]


def trained_heads(study: Study, arm: str) -> list[str]:
    """Return the names of the heads that an arm trains: those whose weight is not 0."""
    weights = study.cell(arm, study.arms[arm], study.seeds[0]).config.get("loss", {}).get("weights") or {}
    return [head for head in heads_of(study, arm) if weights.get(head, 1) != 0]


def parts_only(study: Study) -> set[str]:
    """Return the arms that only lend a head to a composition: they leave a head untrained, so are not scored alone."""
    lent = {arm for parts in study.composed.values() for arm in parts.values()}
    return {arm for arm in lent if trained_heads(study, arm) != heads_of(study, arm)}


def shares_of(study: Study, settings: Arm) -> dict[str, float] | None:
    """Return each head's share of the loss weights (sum 1); None if there is one head or the weights change."""
    config = study.cell("", settings, study.seeds[0]).options
    heads = [head.name for head in Taxonomy.from_option(config.model.heads).heads]
    if len(heads) == 1 or config.loss.weighting != "fixed":
        return None
    return {head: weight / len(heads) for head, weight in normalise(config.loss.weights, heads).items()}


def _check_composed(study: Study) -> None:
    for name, parts in study.composed.items():
        where = f"composed: {name}"
        if name in study.arms:
            raise MtlReError(f"{where}: an arm has this name already")
        if not isinstance(parts, dict) or not parts:
            raise MtlReError(f"{where}: expected a map of heads to arms")
        for head, arm in parts.items():
            if arm not in study.arms:
                raise MtlReError(f"{where}: {head}: there is no arm {arm!r}; the arms are {', '.join(study.arms)}")
            if set(parts) != set(heads := heads_of(study, arm)):
                raise MtlReError(f"{where}: names heads {sorted(parts)}, but arm {arm!r} has {sorted(heads)}")
            if head not in trained_heads(study, arm):
                raise MtlReError(f"{where}: {head}: arm {arm!r} gives this head the weight 0, so it is untrained there")
