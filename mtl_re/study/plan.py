"""What a study is: arms (what is varied) at seeds, each pair one training run, a cell; and how cells are read.

Enters: what `study_file` read. Leaves: `Cell`s with all their options. Everything that can be wrong with them is found
before the first cell trains: their options go through the parser and the registries that `mtl-re train` uses. No
Optuna here: it only holds which cells are done (`ablation`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mtl_re.config import Config, parse_config
from mtl_re.errors import MtlReError
from mtl_re.scoring.decoding import Decoding
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.losses import normalise
from mtl_re.training.setup import check_entries

Sampler = Literal["tpe", "random"]
Pruner = Literal["none", "median"]
Arm = dict[str, Any]
"""Dotted config key → value."""

_OWNED = ("train.run_dir", "train.resume", "train.seed")


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, both possible; whole numbers if both bounds and the step are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(part, int) for part in (self.low, self.high, 1 if self.step is None else self.step))


@dataclass(frozen=True)
class Search:
    """Arms that a sampler chooses while the study runs."""

    axes: Mapping[str, list[Any] | Range]
    trials: int
    sampler: Sampler

    def corners(self) -> list[Arm]:
        """Arms at the ends of every axis, by which a search is checked before it runs."""
        ends = {key: [axis.low, axis.high] if isinstance(axis, Range) else axis for key, axis in self.axes.items()}
        longest = max(map(len, ends.values()))
        return [{key: values[min(place, len(values) - 1)] for key, values in ends.items()} for place in range(longest)]


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        settings: what the arm sets, by dotted key. config: all options, nested, as in a train config file.
    """

    arm: str
    seed: int
    settings: Arm
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of the cell and of its run directory."""
        return f"{self.arm}-s{self.seed}"

    @property
    def text(self) -> str:
        """All options as the cell's `cell.yaml` holds them."""
        return str(yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False))

    @property
    def digest(self) -> str:
        """Of all options: a cell whose digest changed is another cell."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StudyReading(Decoding):
    """A reading of a study's cells.

    Attributes:
        calibrate: divide each head's logits by a temperature fitted on the cell's own validation rows, before the
            prior: EM overshoots on uncalibrated posteriors (Alexandari et al. 2020). Arms without such rows have no
            reading of this kind.
    """

    calibrate: bool = False


@dataclass(frozen=True)
class Study:
    """A study file, checked. `arms` is empty for a search; `axes` holds a grid's values for the report.

    Attributes:
        base: options of the base config file with the study's overrides, nested.
        composed: name → head → arm whose checkpoint gives that head's logits.
        baseline: arm and reading (None: the reading of the arm compared).
    """

    name: str
    base: dict[str, Any]
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    search: Search | None = None
    composed: dict[str, dict[str, str]] = field(default_factory=dict)
    readings: dict[str, StudyReading] = field(default_factory=lambda: {"hard": StudyReading()})
    baseline: tuple[str, str | None] | None = None
    test: str | None = None
    pruner: Pruner = "none"
    storage: str | None = None
    output: Path = Path("runs/ablations")

    def cells(self) -> list[Cell]:
        """Every cell of a study that is no search, seed by seed, so that a study cut short is still paired."""
        return [self.cell(arm, settings, seed) for seed in self.seeds for arm, settings in self.arms.items()]

    def cell(self, arm: str, settings: Arm, seed: int) -> Cell:
        """A cell; its options are the base's, with the arm's settings and the seed."""
        config = deepcopy(self.base)
        for key, value in settings.items():
            set_dotted(config, key, value)
        set_dotted(config, "train.seed", seed)
        return Cell(arm, seed, dict(settings), config)

    @property
    def calibrates(self) -> bool:
        """Whether a reading fits temperatures on validation rows."""
        return any(reading.calibrate for reading in self.readings.values())

    def run_dir(self, cell: Cell) -> Path:
        """Where a cell trains."""
        return self.output / "cells" / cell.key


def set_dotted(options: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested maps, making those that are missing."""
    *parents, last = key.split(".")
    for parent in parents:
        options = options.setdefault(parent, {})
        if not isinstance(options, dict):
            raise MtlReError(f"{key}: {parent} is no group of options")
    options[last] = deepcopy(value)


def checked_config(options: Mapping[str, Any]) -> Config:
    """Nested options → `Config`, by the parser of `mtl-re train` and the registries that own its names.

    Raises:
        MtlReError: an unknown key, a value of the wrong type or out of range, a name that no registry has.
    """
    config = parse_config(options)
    normalise(config.loss.weights, [head.name for head in Taxonomy.from_option(config.model.heads).heads])
    check_entries(config)
    return config


# ---- checks over the whole study -----------------------------------------------------------------------------


def check_study(study: Study) -> None:
    """Check every cell, the compositions, and that the data are there and kept apart.

    Raises:
        MtlReError: what is wrong, and in which arm.
    """
    configs = [check_cell(study, cell) for cell in study.cells()]
    if study.search is not None:
        for settings in study.search.corners():
            cell = study.cell("search", settings, study.seeds[0])
            configs.append(check_cell(study, cell))
            if not configs[-1].data.validated:
                raise MtlReError("a search needs validation rows to select by: set data.valid or data.valid_fraction")
        if study.composed:
            raise MtlReError("composed: a search has no arms to compose; write the arms out")
    _check_composed(study)
    if study.calibrates and not any(config.data.validated for config in configs):
        raise MtlReError("readings: calibrate needs an arm with validation rows: set data.valid or data.valid_fraction")


def check_cell(study: Study, cell: Cell) -> Config:
    """Check the options of one cell, and give them.

    Raises:
        MtlReError: what is wrong, with the arm's name.
    """
    where = f"arm {cell.arm}"
    if owned := [key for key in _OWNED if key in cell.settings]:
        raise MtlReError(f"{where}: {owned[0]}: the study sets this itself{' (seeds)' if 'seed' in owned[0] else ''}")
    try:
        config = checked_config(cell.config)
    except MtlReError as error:
        raise MtlReError(f"{where}: {error}") from error
    for name, spec in (("data.train", config.data.train), ("data.valid", config.data.valid)):
        if spec == "":
            raise MtlReError(f"{where}: {name} is not set")
        if spec is not None and spec == study.test:
            raise MtlReError(f"{where}: {name}: {spec} is also test, which no cell may learn or choose from")
        if spec is not None:
            check_exists(f"{where}: {name}", spec)
    if study.test is not None:
        check_exists("test", study.test)
    if study.calibrates and study.test is None:
        raise MtlReError("readings: calibrate fits on validation rows, which are scored here; it needs test")
    return config


def check_exists(where: str, spec: str) -> None:
    """Raise unless a data file is there; what comes from the hub or the package is not looked up."""
    if not spec.startswith(("hub:", "sample:")) and not Path(spec).is_file():
        raise MtlReError(f"{where}: {spec} is not a file (data paths are relative to the working directory)")


def heads_of(study: Study, arm: str) -> list[str]:
    """Names of the heads an arm's checkpoints have."""
    config = study.cell(arm, study.arms[arm], study.seeds[0]).config
    return [head.name for head in Taxonomy.from_option(config.get("model", {}).get("heads", "hierarchical")).heads]


def trained_heads(study: Study, arm: str) -> list[str]:
    """Names of the heads that an arm trains: those whose weight is not 0."""
    weights = study.cell(arm, study.arms[arm], study.seeds[0]).config.get("loss", {}).get("weights") or {}
    return [head for head in heads_of(study, arm) if weights.get(head, 1) != 0]


def shares_of(study: Study, settings: Arm) -> dict[str, float] | None:
    """Each head's share of the loss weights (they sum to 1); None where there is one head or the weights move."""
    config = checked_config(study.cell("", settings, study.seeds[0]).config)
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
