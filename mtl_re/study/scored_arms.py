"""The finished cells of a study, scored: every arm and composition under every decoding, by seed.

In: finished cells. Out: `ScoredArm`s. The test rows are scored here (through `cell_logits`) and nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from mtl_re.study.arm_statistics import cell_metrics, summarise
from mtl_re.study.cell_logits import CellLogits, DecodedCell, cell_logits, compose, decode_cell
from mtl_re.study.cell_process import best_score
from mtl_re.study.study import Cell, Study, parts_only


@dataclass
class ScoredArm:
    """One arm under one decoding, over its finished seeds.

    Attributes:
        reading: Name of the decoding among the study's `readings`.
        cells: Decoded rows by seed.
        metrics: By seed and column name.
        selection: Selection score by seed, where the cell had validation rows.
    """

    arm: str
    reading: str
    cells: dict[int, DecodedCell]
    metrics: dict[int, dict[str, float]]
    selection: dict[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`arm/reading`."""
        return f"{self.arm}/{self.reading}"

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Mean, SD and interval over seeds of every metric, and of the selection score."""
        return summarise([self.scores(seed) for seed in self.metrics])

    def scores(self, seed: int) -> dict[str, float]:
        """Return the metrics of one seed, and its selection score where there is one."""
        return self.metrics[seed] | ({"selection": self.selection[seed]} if seed in self.selection else {})


def score_arms(study: Study, done: Mapping[tuple[str, int], Cell]) -> list[ScoredArm]:
    """Score every arm and composition under every decoding, over the seeds that are finished."""
    logits = {
        key: cell_logits(study, cell)
        for key, cell in tqdm(done.items(), desc="logits", unit="cell", file=sys.stderr, disable=None)
    }
    alone = dict.fromkeys(arm for arm, _ in done if arm not in parts_only(study))
    by_arm: dict[str, dict[int, CellLogits]] = {arm: {} for arm in alone}
    scores: dict[str, dict[int, float]] = {arm: {} for arm in by_arm}
    for (arm, seed), part in logits.items():
        if arm in by_arm:
            by_arm[arm][seed] = part
            if (score := best_score(study.run_dir(done[arm, seed]))) is not None:
                scores[arm][seed] = score
    for name, parts in study.composed.items():
        whole = [seed for seed in study.seeds if all((arm, seed) in logits for arm in parts.values())]
        by_arm[name] = {seed: compose({head: logits[arm, seed] for head, arm in parts.items()}) for seed in whole}
    entries = []
    for arm, by_seed in by_arm.items():
        for reading, decoding in study.readings.items():
            decoded = {
                seed: decode_cell(part, decoding)
                for seed, part in by_seed.items()
                if part.fitted or not decoding.calibrate
            }
            metrics = {seed: cell_metrics(one) for seed, one in decoded.items()}
            if decoded:
                entries.append(ScoredArm(arm, reading, decoded, metrics, scores.get(arm, {})))
    return entries
