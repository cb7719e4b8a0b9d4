"""The finished runs of a mixture design as a table, and the arms that lie beside its surface.

Enters: scored arms and the cells' metrics.jsonl. Leaves: proportions, blocks and scores for `surface`. Scores are those
of the study's first reading; the selection score is that by which a cell kept its checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from mtl_re.scoring.metrics import Floats
from mtl_re.study.mixture import Model, Region
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.study.study import Cell, Response, Study, shares_of
from mtl_re.study.surface import Surface
from mtl_re.training.metrics_log import read_log

RESPONSES = {"selection": "selection score", "micro_f1": "micro-F1", "auprc": "AUPRC", "gate_f1": "gate F1"}
MAY_DIFFER = {"loss.weights", "loss.weighting"}
"""What may be set by an arm that is compared with the surface."""


@dataclass(frozen=True)
class RunTable:
    """The finished runs of a design.

    Attributes:
        points: (N, q) proportions.
        seeds: (N,) of the trainings.
        blocks: (N,) `seeds`, where the design has blocks of common seeds; None where every run has its own.
        scores: By response, (N,) in %; a response that some run lacks is absent.
    """

    region: Region
    points: Floats
    seeds: np.ndarray
    blocks: np.ndarray | None
    scores: dict[str, Floats]

    def surface(self, response: str, model: Model) -> Surface:
        """Fit a surface.

        Raises:
            MtlReError: The finished runs are too few for it.
        """
        return Surface(self.region, model, self.points, self.scores[response], self.blocks)

    def flat(self, response: str) -> bool:
        """Return whether all runs have the same score, so that there is nothing to fit."""
        return bool(np.ptp(self.scores[response]) < 1e-9)


@dataclass(frozen=True)
class ArmBeside:
    """An arm that is no point of the design, such as a moving weighting.

    Attributes:
        moves: Whether its weights move during training.
        points: (n, q) proportions of each seed's run, averaged over its steps.
        seeds: (n,).
        scores: By response, (n,).
    """

    name: str
    moves: bool
    points: Floats
    seeds: np.ndarray
    scores: dict[str, Floats]


def run_table(study: Study, entries: Sequence[ScoredArm]) -> RunTable:
    """Return the finished runs of a study's design, in the design's order."""
    assert study.design is not None
    by_run = _by_run(study, entries)
    planned = zip(study.runs, study.design.runs, strict=True)
    kept = [(by_run[key], run) for key, run in planned if key in by_run]
    points = np.array([run.point for _, run in kept], dtype=np.float64).reshape(
        len(kept), len(study.design.region.names)
    )
    seeds = np.array([run.seed for _, run in kept])
    return RunTable(
        region=study.design.region,
        points=points,
        seeds=seeds,
        blocks=seeds if study.design.options.block_seeds else None,
        scores=_common([scores for scores, _ in kept]),
    )


def arms_beside(study: Study, entries: Sequence[ScoredArm]) -> list[ArmBeside]:
    """Return the other arms that differ from the design's runs in nothing but how their weights are set."""
    assert study.design is not None
    by_run, heads = _by_run(study, entries), study.design.region.names
    found = []
    for arm in study.other_arms:
        seeds = [seed for seed in study.seeds if (arm, seed) in by_run]
        if not seeds or set(study.arms[arm]) - MAY_DIFFER:
            continue
        points = [mean_weights(study, study.cell(arm, study.arms[arm], seed), heads) for seed in seeds]
        moves = shares_of(study, study.arms[arm]) is None
        scores = _common([by_run[arm, seed] for seed in seeds])
        found.append(ArmBeside(arm, moves, np.array(points), np.array(seeds), scores))
    return found


def mean_weights(study: Study, cell: Cell, heads: Sequence[str]) -> Floats:
    """Return (q,) a finished run's proportions of the loss weights, averaged over its steps."""
    if (shares := shares_of(study, cell.settings)) is not None:
        return np.array([shares[head] for head in heads])
    lines = [line for line in read_log(study.run_dir(cell) / "metrics.jsonl") if line["kind"] == "train"]
    steps = [weights for line in lines for weights in line.get("weights_by_step", [line["weights"]])]
    rows = np.array([[weights[head] for head in heads] for weights in steps])
    return np.asarray((rows / rows.sum(axis=1, keepdims=True)).mean(axis=0))


def _by_run(study: Study, entries: Sequence[ScoredArm]) -> dict[tuple[str, int], dict[str, float]]:
    reading = next(iter(study.readings))
    found = {}
    for entry in entries:
        for seed in entry.metrics if entry.reading == reading else ():
            known = entry.scores(seed)
            found[entry.arm, seed] = {name: known[name] for name in get_args(Response) if name in known}
    return found


def _common(rows: Sequence[dict[str, float]]) -> dict[str, Floats]:
    names = [name for name in get_args(Response) if rows and all(name in row for row in rows)]
    return {name: np.array([row[name] for row in rows]) for name in names}
