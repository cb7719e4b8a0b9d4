"""Scores of arms over their seeds, and differences between arms with intervals and p-values.

Two sources of variation are kept apart. Over rows: other test rows, the same trained models (a bootstrap resamples
rows, the same for both arms and for all seeds, and averages the difference over the seeds). Over seeds: other
trainings, the same rows (Student's t interval and test, and sign flips, of the paired differences). A difference counts
as shown only if it holds against both, with the p-values of both adjusted for the number of comparisons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.files import whole_file
from mtl_re.scoring.evaluation import score_decoded
from mtl_re.scoring.metrics import Floats, Resampled, multiplicities
from mtl_re.scoring.significance import (
    COMPARED_SCORES,
    LEVEL,
    bootstrap_summary,
    detectable_mean,
    holm,
    permutation_test,
    seed_interval,
    t_test,
)
from mtl_re.study.cell_logits import DecodedCell

BySeed = Mapping[int, DecodedCell]
"""One arm under one decoding, by seed."""


UNSHOWN = "no difference shown"


@dataclass(frozen=True)
class Difference:
    """An arm minus its baseline in one score, in percentage points, over the seeds that both have.

    Attributes:
        reading: Name of the arm's decoding among the study's `readings`.
        rows_ci: 95 % interval by the bootstrap over rows.
        rows_p: p-value by the same bootstrap.
        seeds_ci: 95 % t interval over seeds (None for one seed).
        seeds_sd: SD of the seeds' differences (None for one seed).
        seeds_t_p: p-value by the paired t test over seeds (1 for one seed).
        seeds_p: p-value by sign flips of the seeds' differences.
        smallest_p: The lowest p-value that so few seeds can reach.
        rows_holm: `rows_p` adjusted for all comparisons of a report (by `holm_adjusted`).
        seeds_t_holm, seeds_holm: `seeds_t_p` and `seeds_p` adjusted in the same way.
        seeds_detectable: The true difference that the adjusted t test shows with power 80 %, if `seeds_sd` is the true
            SD (by `holm_adjusted`; None for one seed).
    """

    arm: str
    reading: str
    baseline: str
    score: str
    seeds: int
    difference: float
    rows_ci: tuple[float, float]
    rows_p: float
    seeds_ci: tuple[float, float] | None
    seeds_sd: float | None
    seeds_t_p: float
    seeds_p: float
    smallest_p: float
    rows_holm: float = 1.0
    seeds_t_holm: float = 1.0
    seeds_holm: float = 1.0
    seeds_detectable: float | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the adjusted p over rows and that of the t test over seeds are both below 0.05."""
        if max(self.rows_holm, self.seeds_t_holm) >= LEVEL:
            return UNSHOWN
        return "better" if self.difference > 0 else "worse"


def cell_metrics(cell: DecodedCell) -> dict[str, float]:
    """Return the metrics of one cell by column name: scores, calibration error, gate F1, accuracy of heads, errors."""
    values = score_decoded(cell.decoded, cell.gold, resamples=0)
    columns = {name: values[name] for name in ("micro_f1", "auprc", "macro_f1", "accuracy", "ece")}
    columns["gate_f1"] = values["gate"]["f1"]
    columns |= {f"fine_{name}": value for name, value in values["fine"].items()}
    columns |= {f"error_{name}": value for name, value in values["errors"].items()}
    return {name: float(value) for name, value in columns.items() if value is not None}


def summarise(per_seed: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return mean, SD and t interval over seeds of every metric that all seeds have."""
    names = [name for name in per_seed[0] if all(name in values for values in per_seed)]
    return {name: seed_interval([values[name] for values in per_seed]) for name in names}


def compare(
    names: tuple[str, str, str], ours: BySeed, base: BySeed, resamples: int, folder: Path | None = None
) -> list[Difference]:
    """Return the differences of an arm from its baseline in micro-F1 and AUPRC.

    Seeds that are scored on the same rows share their resamples; where every seed has validation rows of its own, each
    seed is resampled by itself.

    Args:
        names: The arm, its reading, and a name for the baseline.
        folder: Directory in which bootstrap draws are cached for the next report (None: they are not).

    Raises:
        MtlReError: The arms have no seed in common, or were scored on different rows.
    """
    seeds = sorted(set(ours) & set(base))
    if not seeds:
        raise MtlReError(f"{names[0]}/{names[1]} and {names[2]} have no finished seed in common")
    if any(ours[seed].scored_alike != base[seed].scored_alike for seed in seeds):
        what = "were scored on different rows, labels or labels without a relation"
        raise MtlReError(f"{names[0]}/{names[1]} and {names[2]} {what}")
    streams = {digest: number for number, digest in enumerate(dict.fromkeys(ours[seed].rows for seed in seeds))}
    drawn = np.zeros((len(COMPARED_SCORES), resamples))
    points = []
    for seed in seeds:
        stream = streams[ours[seed].rows]
        (our_point, our_draws), (base_point, base_draws) = (
            draws(part[seed], resamples, stream, folder) for part in (ours, base)
        )
        points.append(our_point - base_point)
        drawn += (our_draws - base_draws) / len(seeds)
    observed = np.stack(points)  # (seeds, scores)
    return [
        _difference(names, score, *values) for score, *values in zip(COMPARED_SCORES, observed.T, drawn, strict=True)
    ]


def _difference(names: tuple[str, str, str], score: str, by_seed: Floats, drawn: Floats) -> Difference:
    values = by_seed.tolist()
    over_seeds, flips = seed_interval(values), permutation_test(values)
    low, high, p = bootstrap_summary(drawn)
    ci = None if over_seeds["ci"] is None else (over_seeds["ci"][0], over_seeds["ci"][1])
    over_seeds_p = t_test(values), flips["p"], flips["smallest_p"]
    return Difference(
        *names, score, len(values), over_seeds["mean"], (low, high), p, ci, over_seeds["sd"], *over_seeds_p
    )


def holm_adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with Holm's p-values; the family is all comparisons of one score."""
    adjusted = list(differences)
    for score in COMPARED_SCORES:
        family = [number for number, one in enumerate(differences) if one.score == score]
        rows = holm([differences[number].rows_p for number in family])
        tests = holm([differences[number].seeds_t_p for number in family])
        flips = holm([differences[number].seeds_p for number in family])
        for number, row_p, test_p, flip_p in zip(family, rows, tests, flips, strict=True):
            one = differences[number]
            size = None if one.seeds_sd is None else one.seeds_sd * detectable_mean(one.seeds, len(family))
            adjusted[number] = replace(
                one, rows_holm=row_p, seeds_t_holm=test_p, seeds_holm=flip_p, seeds_detectable=size
            )
    return adjusted


def draws(cell: DecodedCell, resamples: int, stream: int, folder: Path | None = None) -> tuple[Floats, Floats]:
    """Return (scores,) on all rows and (scores, resamples) on resampled rows, in %; cached in `folder` by digest."""
    if folder is None:
        return _drawn(cell, resamples, stream)
    digest = hashlib.sha256(repr((resamples, stream, cell.taxonomy.labels)).encode())
    for array in (cell.gold, cell.labels, cell.probs):
        digest.update(np.ascontiguousarray(array).tobytes())
    path = folder / f"{digest.hexdigest()[:32]}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none yet, or damaged
        point, drawn = _drawn(cell, resamples, stream)
        kept = np.concatenate([point[:, None], drawn], axis=1)
        with whole_file(path, shared=True) as partial:
            np.save(partial, kept)
    return kept[:, 0], kept[:, 1:]


def _drawn(cell: DecodedCell, resamples: int, stream: int) -> tuple[Floats, Floats]:
    score = Resampled(cell.gold, cell.labels, cell.probs, cell.taxonomy)
    once = np.stack(score(np.ones((len(cell.gold), 1))))[:, 0]
    parts = [np.stack(score(chunk)) for chunk in multiplicities(len(cell.gold), resamples, stream)]
    return once, np.concatenate(parts, axis=1)
