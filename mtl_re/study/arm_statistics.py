"""Arms over seeds, and differences between arms: what may be said, and how sure.

Two sources of chance are kept apart, and named. Rows: other test rows, these trained models (a bootstrap that resamples
rows and averages the difference over the seeds, the same rows for both arms and for all seeds). Seeds: other trainings,
these rows (Student's t interval and exact sign flips of the paired differences). A difference counts as shown only if
it stands against both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.scoring.metrics import Floats, Resampled, all_metrics, multiplicities
from mtl_re.scoring.significance import COMPARED_SCORES, holm, permutation_test, seed_interval
from mtl_re.study.cell_logits import Read

BySeed = Mapping[int, Read]
"""One arm under one reading: seed → rows as read."""

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """An arm minus its baseline in one score, percentage points, over the seeds both have.

    Attributes:
        rows_ci, rows_p: by the bootstrap over rows. seeds_ci: t interval (None for one seed).
        seeds_p: sign flips; smallest_p: what so few seeds can reach at best.
        rows_holm, seeds_holm: the p-values adjusted for all comparisons of a report (set by `adjusted`).
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
    seeds_p: float
    smallest_p: float
    rows_holm: float = 1.0
    seeds_holm: float = 1.0

    @property
    def verdict(self) -> str:
        """`better` or `worse` if adjusted p over rows < 0.05 and the interval over seeds leaves out 0."""
        if self.rows_holm >= LEVEL or self.seeds_ci is None or self.seeds_ci[0] <= 0 <= self.seeds_ci[1]:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def figures(read: Read) -> dict[str, Any]:
    """All metrics of one arm at one seed, without intervals (`metrics.all_metrics`)."""
    gate = read.reading.gate
    return all_metrics(read.gold, read.probs, read.hard, read.soft, gate, read.taxonomy, read.prior, resamples=0)


def flat_figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report's table by column name: scores, gate F1, fine accuracy of each head, error counts."""
    found = {name: values[name] for name in ("micro_f1", "auprc", "macro_f1", "accuracy")}
    found["gate_f1"] = values["gate"]["f1"]
    found |= {f"fine_{name}": value for name, value in values["fine"].items()}
    found |= {f"error_{name}": value for name, value in values["errors"].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def summarised(per_seed: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, SD and t interval over seeds of every figure that all seeds have."""
    names = [name for name in per_seed[0] if all(name in values for values in per_seed)]
    return {name: seed_interval([values[name] for values in per_seed]) for name in names}


def compare(
    names: tuple[str, str, str], ours: BySeed, base: BySeed, resamples: int, folder: Path | None = None
) -> list[Difference]:
    """Differences of an arm from its baseline in micro-F1 and AUPRC.

    Seeds scored on the same rows share their resamples; where every seed has validation rows of its own, each seed is
    resampled by itself.

    Args:
        names: arm, reading, and what to call the baseline.
        folder: where bootstrap draws are kept for the next report (None: nowhere).

    Raises:
        MtlReError: no seed in common, or rows that differ between the two arms.
    """
    seeds = sorted(set(ours) & set(base))
    if not seeds:
        raise MtlReError(f"{names[0]}/{names[1]} and {names[2]} have no finished seed in common")
    if any(
        ours[seed].rows != base[seed].rows or ours[seed].taxonomy.labels != base[seed].taxonomy.labels for seed in seeds
    ):
        raise MtlReError(f"{names[0]}/{names[1]} and {names[2]} were scored on different rows or labels")
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
    return [_difference(names, score, observed[:, place], drawn[place]) for place, score in enumerate(COMPARED_SCORES)]


def _difference(names: tuple[str, str, str], score: str, by_seed: Floats, drawn: Floats) -> Difference:
    over_seeds, flips = seed_interval(by_seed.tolist()), permutation_test(by_seed.tolist())
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    smaller = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (smaller + 1) / (len(drawn) + 1))
    ci = None if over_seeds["ci"] is None else (over_seeds["ci"][0], over_seeds["ci"][1])
    mean = float(by_seed.mean())
    return Difference(*names, score, len(by_seed), mean, (low, high), p, ci, flips["p"], flips["smallest_p"])


def adjusted(found: Sequence[Difference]) -> list[Difference]:
    """The same differences with Holm's p-values; the family is all comparisons of one score."""
    result = list(found)
    for score in COMPARED_SCORES:
        places = [place for place, difference in enumerate(found) if difference.score == score]
        rows, seeds = (holm([getattr(found[place], name) for place in places]) for name in ("rows_p", "seeds_p"))
        for place, row_p, seed_p in zip(places, rows, seeds, strict=True):
            result[place] = replace(found[place], rows_holm=row_p, seeds_holm=seed_p)
    return result


def draws(read: Read, resamples: int, stream: int, folder: Path | None = None) -> tuple[Floats, Floats]:
    """(scores,) on all rows and (scores, resamples) on resampled ones, in %; kept in `folder` by digest."""
    if folder is None:
        return _drawn(read, resamples, stream)
    digest = hashlib.sha256(repr((resamples, stream, read.taxonomy.labels)).encode())
    for array in (read.gold, read.labels, read.probs):
        digest.update(np.ascontiguousarray(array).tobytes())
    path = folder / f"{digest.hexdigest()[:32]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        point, drawn = _drawn(read, resamples, stream)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate([point[:, None], drawn], axis=1))
        partial.replace(path)
    kept = np.load(path, allow_pickle=False)
    return kept[:, 0], kept[:, 1:]


def _drawn(read: Read, resamples: int, stream: int) -> tuple[Floats, Floats]:
    score = Resampled(read.gold, read.labels, read.probs, read.taxonomy)
    once = np.stack(score(np.ones((len(read.gold), 1))))[:, 0]
    parts = [np.stack(score(chunk)) for chunk in multiplicities(len(read.gold), resamples, stream)]
    return once, np.concatenate(parts, axis=1)


# ---- points on the simplex -----------------------------------------------------------------------------------


CORNERS = ((0.5, math.sqrt(3) / 2), (0.0, 0.0), (1.0, 0.0))
"""Of the triangle: top, left, right."""


def ternary(shares: Floats) -> Floats:
    """Shares of three weights (N, 3), any scale → places (N, 2) in the triangle with corners at the top, the left and
    the right, one for each weight.

    Raises:
        MtlReError: not three columns, or a row that is negative or sums to 0.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.ndim != 2 or shares.shape[1] != 3 or (shares < 0).any() or not (shares.sum(axis=1) > 0).all():
        raise MtlReError(
            f"ternary: shape {shares.shape}; expected (N, 3) weights, not negative, some above 0 in each row"
        )
    return np.asarray(shares / shares.sum(axis=1, keepdims=True) @ np.array(CORNERS))
