"""Is a difference more than chance? Statistics of pairs, over rows (one model each) and over seeds (one study).

In: two sets of predictions of the same rows, or one value a seed of two arms. Out: plain dicts; scores and
differences in percentage points, always b minus a. Pairing is the point: both arms see the same resampled rows, or
the same seed, so what the arms share cancels.

Sources: Efron & Tibshirani 1993 (bootstrap), Good 2005 (sign flips), Holm 1979, McNemar 1947; Cohen 1988 (power).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.config import CompareConfig
from mtl_re.data.loading import load_examples
from mtl_re.errors import MtlReError, tell
from mtl_re.scoring.metrics import Floats, Indices, Resampled, auprc, micro_f1, multiplicities
from mtl_re.scoring.prediction_files import PredictedRows, label_index, parsed_row, prediction_rows
from mtl_re.scoring.writers import label_order
from mtl_re.taxonomy import NO_RELATION, Taxonomy

DRAWS = 100_000
"""Most sign flips of a permutation test: those of 16 pairs (65,536) are enumerated; of more pairs they are drawn."""

COMPARED_SCORES = ("micro_f1", "auprc")
LEVEL = 0.05
"""Level of significance."""
POWER = 0.8
"""Probability with which a difference that is called detectable is shown."""


# ---- over rows -----------------------------------------------------------------------------------------------


def paired_bootstrap(
    gold: Indices,
    pred_a: Indices,
    pred_b: Indices,
    probs_a: Floats,
    probs_b: Floats,
    taxonomy: Taxonomy,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare two sets of predictions on resampled rows, the same resample for both.

    It covers the sampling of test rows with both models fixed; training again is another source of variation
    (`permutation_test` over seeds). Classes that vanish from a resample: see `metrics.Resampled`.

    Args:
        gold, pred_a, pred_b: (N,) indices into `taxonomy.labels`.
        probs_a, probs_b: (N, L) probabilities.
        resamples: at least 1; p cannot go below 2 / (resamples + 1).

    Returns:
        For `micro_f1` and `auprc`: `difference` (b - a on all rows), `ci` (95 % percentile interval), `p` (two-sided,
        twice the smaller share of resamples on one side of zero, (k + 1) / (n + 1), at most 1).

    Raises:
        MtlReError: there are no resamples, or predictions do not fit the taxonomy or each other.
    """
    if resamples < 1:
        raise MtlReError(f"resamples: {resamples}; at least 1 is needed")
    arm_a, arm_b = Resampled(gold, pred_a, probs_a, taxonomy), Resampled(gold, pred_b, probs_b, taxonomy)
    chunks = [np.subtract(arm_b(drawn), arm_a(drawn)) for drawn in multiplicities(len(gold), resamples, seed)]
    observed = np.subtract(arm_b(np.ones((len(gold), 1))), arm_a(np.ones((len(gold), 1))))[:, 0]
    found = {}
    for name, point, drawn in zip(COMPARED_SCORES, observed, np.concatenate(chunks, axis=1), strict=True):
        low, high, p = bootstrap_summary(drawn)
        found[name] = {"difference": float(point), "ci": [low, high], "p": p}
    return found


def bootstrap_summary(drawn: Floats) -> tuple[float, float, float]:
    """Return the 95 % percentile interval and the two-sided p-value of resampled differences, shape (resamples,)."""
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    smaller = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return low, high, min(1.0, 2 * (smaller + 1) / (len(drawn) + 1))


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Return McNemar's exact two-sided p-value of the rows that one of two arms alone gets right; 1 if none."""
    from scipy.stats import binomtest

    discordant = only_a_right + only_b_right
    return float(binomtest(only_a_right, discordant, 0.5).pvalue) if discordant else 1.0


# ---- over seeds ----------------------------------------------------------------------------------------------


def permutation_test(differences: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Test paired differences, one a seed, by flipping signs: how often is a mean this far from 0 by chance?

    All 2^n flips are enumerated for n <= 16; beyond that `DRAWS` random ones are, and a p-value cannot fall below
    2 / (`DRAWS` + 1).

    Returns:
        `n`, `mean`, `p` (two-sided), `smallest_p` (what n pairs can reach at best: 0.0625 for five, so five seeds never
        show p < 0.05), `exact` (whether flips were enumerated).

    Raises:
        MtlReError: there are no differences, or one is not finite.
    """
    from scipy import stats

    values = _finite(differences, "differences")
    count, p = len(values), 1.0
    exact = 2**count <= DRAWS
    if count > 1:  # scipy refuses a single pair, whose two flips are equally far from 0
        flips: dict[str, Any] = {"permutation_type": "samples", "n_resamples": DRAWS, "rng": seed}
        p = float(stats.permutation_test((values,), np.mean, vectorized=True, **flips).pvalue)
    smallest = 2.0 ** (1 - count) if exact else 2 / (DRAWS + 1)
    return {"n": count, "mean": float(values.mean()), "p": p, "smallest_p": smallest, "exact": exact}


def t_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired t test on differences, one a seed; 1 for a single seed.

    It is below 0.05 where the 95 % interval of `seed_interval` excludes 0.

    Raises:
        MtlReError: there are no differences, or one is not finite.
    """
    values = _finite(differences, "differences")
    mean, count = float(values.mean()), len(values)
    if count == 1 or mean == 0:
        return 1.0
    from scipy.stats import t

    error = float(values.std(ddof=1)) / math.sqrt(count)
    return float(2 * t.sf(abs(mean) / error, count - 1)) if error else 0.0


@cache
def detectable_mean(pairs: int, comparisons: int = 1) -> float:
    """Return the smallest true mean of paired differences that `t_test` shows with power 80 %, in their SDs.

    Args:
        pairs: Differences, one a seed.
        comparisons: In the family; the level is 5 % divided by them, which is what Holm's correction asks of a
            difference that stands alone among true zeros.

    Returns:
        Infinity for a single pair, which shows nothing.

    Raises:
        MtlReError: there is no pair or no comparison.
    """
    if pairs < 1 or comparisons < 1:
        raise MtlReError(f"pairs: {pairs}, comparisons: {comparisons}; at least 1 of each is needed")
    if pairs == 1:
        return math.inf
    from scipy.optimize import brentq
    from scipy.stats import norm, t

    # Power is the mean, over the distribution of the estimated SD, of a normal tail. By quadrature: solvers on the
    # noncentral t (statsmodels' TTestPower) return wrong values without a word for few pairs and small levels.
    critical = float(t.isf(LEVEL / comparisons / 2, pairs - 1))
    spread = _sd_ratios(pairs, (np.arange(4000) + 0.5) / 4000)

    def lack(shift: float) -> float:
        return float((norm.cdf(shift - critical * spread) + norm.cdf(-shift - critical * spread)).mean()) - POWER

    return float(brentq(lack, 0, 4 * critical + 10)) / math.sqrt(pairs)


def sd_factors(pairs: int) -> tuple[float, float]:
    """Return between which multiples of an SD that was estimated from so many values the true one lies (95 %)."""
    low, high = (1 / _sd_ratios(pairs, np.array([0.975, 0.025]))).tolist()
    return low, high


def _sd_ratios(pairs: int, shares: Floats) -> Floats:
    """Return quantiles of estimated SD ÷ true SD, of normal values."""
    from scipy.stats import chi2

    return np.asarray(np.sqrt(chi2.ppf(shares, pairs - 1) / (pairs - 1)))


def seed_interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Return the mean over seeds with Student's t interval.

    Returns:
        `n`, `mean`, `sd` (n - 1 in the denominator), `ci` [low, high]; the last two None for a single value.

    Raises:
        MtlReError: there are no values, one is not finite, or the level lies outside 0-1.
    """
    checked = _finite(values, "values")
    if not 0 < level < 1:
        raise MtlReError(f"level: {level}; expected a share between 0 and 1, such as 0.95")
    mean, count = float(checked.mean()), len(checked)
    if count == 1:
        return {"n": 1, "mean": mean, "sd": None, "ci": None}
    from scipy.stats import t  # its t.interval is NaN where all seeds agree

    sd = float(checked.std(ddof=1))
    half = float(t.ppf((1 + level) / 2, count - 1)) * sd / math.sqrt(count)
    return {"n": count, "mean": mean, "sd": sd, "ci": [mean - half, mean + half]}


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down, in the order given; they bound the family-wise error.

    Raises:
        MtlReError: a value lies outside 0-1.
    """
    found = np.asarray(p_values, dtype=np.float64)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():  # False for NaN as well
        raise MtlReError(f"p_values: {list(p_values)}; expected a list of numbers 0-1")
    # By hand: statsmodels' multipletests runs the garbage collector in every call, 0.3 s for two values.
    order, remaining = np.argsort(found, kind="stable"), np.arange(len(found), 0, -1)
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(np.maximum.accumulate(remaining * found[order]), 1)
    values: list[float] = adjusted.tolist()
    return values


def _finite(values: Sequence[float], name: str) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0 or not np.isfinite(found).all():
        raise MtlReError(f"{name}: {list(values)}; expected one finite number a seed, and at least one")
    return found


# ---- two prediction files ------------------------------------------------------------------------------------


def compare_files(a: Path, b: Path, options: CompareConfig) -> dict[str, Any]:
    """Compare two files of `mtl-re predict` or `evaluate --predictions` on the same labelled rows.

    Both are read side by side; a row needs `id`, `label`, `gold` and `probs`. The label set is read from the first
    row's `probs`; micro-F1 leaves out the "no relation" of `options.heads` where that has the same labels, else the
    label `no_relation` where there is one.

    Returns:
        `n`, `resamples`, `no_relation` (None if the labels have none), `a` and `b` (`file`, `micro_f1`, `auprc`),
        `micro_f1` and `auprc` (`difference`, `ci`, `p`), `only_a_right`, `only_b_right`, `mcnemar_p`.

    Raises:
        MtlReError: a file cannot be read, a row is malformed (file:line, field, what), or the files do not hold the
            same ids in the same order with the same gold labels.
    """
    gold, pred_a, pred_b, probs_a, probs_b, labels = _read_pair(Path(a), Path(b), options)
    # Neither score asks for coarse classes, and labels of any data set may come here: each stands alone.
    alone = {label: (label,) for label in labels}
    taxonomy = Taxonomy(labels, alone, "flat", _left_out(labels, options.heads))
    right_a, right_b = pred_a == gold, pred_b == gold
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    arms = {
        name: {"file": str(path), "micro_f1": micro_f1(gold, pred, taxonomy), "auprc": auprc(gold, probs)}
        for name, path, pred, probs in (("a", a, pred_a, probs_a), ("b", b, pred_b, probs_b))
    }
    return {
        "n": len(gold),
        "resamples": options.resamples,
        "no_relation": taxonomy.no_relation,
        **arms,
        **paired_bootstrap(gold, pred_a, pred_b, probs_a, probs_b, taxonomy, options.resamples, options.seed),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "mcnemar_p": mcnemar(only_a, only_b),
    }


def _left_out(labels: tuple[str, ...], heads: str) -> str | None:
    """Return the label that means "no relation" in a label set, None where it is not known to have one."""
    given = Taxonomy.from_option(heads)
    if set(given.labels) == set(labels):
        return given.no_relation
    if NO_RELATION in labels:
        return NO_RELATION
    what = f"no label is called {NO_RELATION}, so all {len(labels)} count as relations"
    tell(f"{what}; where one of them is none, give the label set that says so with --heads")
    return None


def _read_pair(
    a: Path, b: Path, options: CompareConfig
) -> tuple[Indices, Indices, Indices, Floats, Floats, tuple[str, ...]]:
    index: dict[str, int] = {}
    labels: list[tuple[int, int, int]] = []  # gold, predicted by a, predicted by b
    probs: tuple[list[Floats], list[Floats]] = ([], [])
    taxonomy, beside = Taxonomy.from_option(options.heads), []
    if options.data is not None:
        examples, _ = load_examples(options.data, taxonomy, options.on_bad_row, options)
        beside = [PredictedRows(examples, options.data, options.on_bad_row == "skip") for _ in range(2)]
    order = label_order(options.label_order, taxonomy, ".csv")
    for line_a, line_b in zip_longest(prediction_rows(a, order), prediction_rows(b, order)):
        if line_a is None or line_b is None:
            (where, row), short = (line_a, b) if line_b is None else (line_b, a)
            raise MtlReError(
                f"{where}: id: {row.get('id')!r} has no counterpart; {short} ends after {len(labels)} row(s)"
            )
        if beside:
            lines = zip(beside, (line_a, line_b), strict=True)
            line_a, line_b = ((where, rows.take(where, row)) for rows, (where, row) in lines)
        index = index or label_index(*line_a)
        id_a, (gold, pred_a), probs_a = parsed_row(line_a, index)
        id_b, (gold_b, pred_b), probs_b = parsed_row(line_b, index)
        for key, differs in (("id", id_a != id_b), ("gold", gold != gold_b)):
            if differs:
                values = f"{line_b[1][key]!r}, but {line_a[0]} has {line_a[1][key]!r}"
                raise MtlReError(f"{line_b[0]}: {key}: {values}; both files must hold the same rows in the same order")
        labels.append((gold, pred_a, pred_b))
        probs[0].append(probs_a)
        probs[1].append(probs_b)
    if not labels:
        raise MtlReError(f"{a}, {b}: no rows to compare")
    if beside and line_b is not None:
        beside[1].check_end(line_b[0])  # both have the same ids
    columns = np.array(labels).T
    return columns[0], columns[1], columns[2], np.stack(probs[0]), np.stack(probs[1]), tuple(index)
