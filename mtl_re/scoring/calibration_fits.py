"""Fits of decoding's parameters: temperatures, a prior of the coarse classes, a threshold, one for each relation.

Pure functions on arrays; none ever sees the labels of rows that are then scored. `mtl-re calibrate` (`calibrate`) calls
them on held-out rows and stores the result in the checkpoint.

Temperature: Guo et al. 2017 (arXiv 1706.04599), one for each head. Prior by EM: Saerens, Latinne & Decaestecker 2002;
it presumes calibrated posteriors (Alexandari et al. 2020, 1901.06852). BBSE: Lipton et al. 2018
(1802.03916), a cross-check that needs no calibration. Thresholds to a precision: Clopper & Pearson 1934 for the bound,
Geifman & El-Yaniv 2017 (1705.08500) for choosing by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_re.errors import MtlReError
from mtl_re.taxonomy import IGNORE, Taxonomy

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer]

TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature. A fit that ends at one has too few rows or a broken head, and is not taken."""
CONFIDENCE = 0.95
"""One-sided confidence of the lower bound of a precision."""
SUPPORT = 30
"""Rows from which on a relation is judged by its own rows: 29 right ones of 29 are the fewest that show a precision of
0.9 at that confidence."""


def fit_temperature(logits: Floats, targets: Indices) -> float | None:
    """Return the T that minimises the mean NLL of softmax(logits / T); None where the rows do not show one.

    That is where fewer than `SUPPORT` have a label for the head, or the NLL falls up to a bound of `TEMPERATURES`: rows
    that are all right, say, ask for a T of 0.

    Args:
        logits: (rows, classes) of one head.
        targets: (rows,), `IGNORE` where the head has no label; such rows do not count.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    known = targets != IGNORE
    if known.sum() < SUPPORT:
        return None
    scores, gold = logits[known].astype(float), targets[known]
    right = scores[np.arange(len(gold)), gold]

    def nll(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(scores * scale, axis=1) - right * scale).mean())

    bounds = np.log(TEMPERATURES)
    found = minimize_scalar(nll, bounds=tuple(bounds), method="bounded")
    return float(np.exp(found.x)) if all(nll(bound) > found.fun + 1e-6 for bound in bounds) else None


def fit_temperatures(
    logits: Mapping[str, Floats], labels: Sequence[str | None], taxonomy: Taxonomy
) -> dict[str, float]:
    """Fit one temperature a head (see `fit_temperature`); it is 1 where the rows do not show one.

    Args:
        logits: head → (rows, classes). labels: of the rows.
    """
    targets = [taxonomy.targets(label) for label in labels]
    fits = {name: fit_temperature(scores, np.array([row[name] for row in targets])) for name, scores in logits.items()}
    return {name: value or 1.0 for name, value in fits.items()}


def em_prior(coarse: Floats, trained: Sequence[float]) -> list[float]:
    """Estimate the class shares of a set of unlabelled rows by EM on their posteriors.

    Args:
        coarse: (rows, groups) posteriors under the training prior.
        trained: (groups,) the training prior.

    Returns:
        The estimated shares, summing to 1.

    Raises:
        MtlReError: training never saw one of the classes.
    """
    old = np.asarray(trained, float)
    if (old <= 0).any():
        raise MtlReError("prior: a coarse class had no training row, so its share cannot be estimated")
    share = old / old.sum()
    for _ in range(1000):
        joint = coarse * (share / old)
        updated = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(updated - share).max()
        share = updated
        if moved < 1e-8:
            break
    return [float(value) for value in share / share.sum()]


def bbse_prior(predicted: Indices, gold: Indices, unlabelled: Indices, classes: int) -> list[float]:
    """Estimate the class shares of unlabelled rows from hard predictions alone: solve C·w = q for the importance
    weights w.

    Args:
        predicted, gold: (rows,) class indices on labelled rows that training did not see.
        unlabelled: (other rows,) predicted class indices.
        classes: number of classes.

    Returns:
        Shares, summing to 1; negative solutions are cut to 0.

    Raises:
        MtlReError: the confusion matrix is singular (a class that is never there, or never predicted).
    """
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (predicted, gold), 1 / len(gold))
    seen = np.bincount(unlabelled, minlength=classes) / len(unlabelled)
    try:
        ratio = np.linalg.solve(confusion, seen)
    except np.linalg.LinAlgError as error:
        raise MtlReError("calibration: the coarse confusion matrix is singular; BBSE needs every class") from error
    shares = np.maximum(ratio, 0) * confusion.sum(axis=0)
    return [float(value) for value in shares / shares.sum()]


class Threshold(NamedTuple):
    """A relation threshold: a row is related if 1 - p(no_relation) reaches `value`.

    Attributes:
        value: the fitted threshold. interval: its 95 % bootstrap interval over rows. f1: micro-F1 (%) on the fitting
            rows at `value`; optimistic by construction.
    """

    value: float
    interval: tuple[float, float]
    f1: float


def fit_threshold(
    probs: Floats, gold: Indices, best: Indices, taxonomy: Taxonomy, weights: Floats | None = None, resamples: int = 500
) -> Threshold:
    """Find the relation threshold with the highest micro-F1.

    Args:
        probs: (rows, labels) under the prior that will be used.
        gold: (rows,) label indices.
        best: (rows,) the relation that each row gets once it counts as related.
        weights: (rows,) to match a target prior.
        resamples: of the bootstrap over rows.

    Raises:
        MtlReError: the taxonomy has no no_relation label, or no row is related.
    """
    if taxonomy.no_relation is None:
        raise MtlReError("calibration: this label set has no no_relation, so there is no threshold to fit")
    none = taxonomy.labels.index(taxonomy.no_relation)
    if (gold == none).all():
        raise MtlReError("calibration: no related row to fit a threshold on")
    related = 1 - probs[:, none]
    full = np.ones(len(gold)) if weights is None else np.asarray(weights, float)
    value, f1 = _best_threshold(related, best == gold, gold != none, full)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        rows = generator.integers(0, len(gold), len(gold))
        drawn.append(_best_threshold(related[rows], (best == gold)[rows], (gold != none)[rows], full[rows])[0])
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (value, value)
    return Threshold(value, (float(low), float(high)), f1)


def _best_threshold(related: Floats, right: npt.NDArray, positive: npt.NDArray, weights: Floats) -> tuple[float, float]:
    """Sweep all thresholds at once: rows in falling order of `related`, F1 = 2·TP / (predicted + gold)."""
    order = np.argsort(-related, kind="stable")
    hits = np.cumsum((right & positive)[order] * weights[order])
    f1 = 2 * hits / (np.cumsum(weights[order]) + (positive * weights).sum())
    ends = np.append(np.diff(related[order]) != 0, True)  # equal scores fall on one side together
    last = int(np.argmax(np.where(ends, f1, -1)))
    scores = related[order]
    below = scores[last + 1] if last + 1 < len(scores) else 0.0
    return float((scores[last] + below) / 2), float(100 * f1[last])


class RelationThreshold(NamedTuple):
    """The least score of one relation's triples.

    Attributes:
        value: the threshold; None: no triple of this relation is given.
        by: `own`: fitted on the relation's rows; `pooled`: it has too few, and the threshold of all relations together
            stands in, raised where its few rows ask for it; `never`: its rows, or all rows, do not show the precision.
        rows: rows whose most probable relation it is. kept: those of them that reach the threshold. precision: share
            of right rows among these, by weight (None: there are none).
    """

    value: float | None
    by: Literal["own", "pooled", "never"]
    rows: int
    kept: int
    precision: float | None


class RelationThresholds(NamedTuple):
    """A threshold for each relation; `pooled`: that of all relations together (None: the precision is not reached)."""

    relations: dict[str, RelationThreshold]
    pooled: float | None


def fit_relation_thresholds(
    best: Indices, scores: Floats, gold: Indices, taxonomy: Taxonomy, target: float, weights: Floats | None = None
) -> RelationThresholds:
    """Fit for each relation the smallest threshold at which its triples have a precision.

    A relation of `SUPPORT` rows or more gets the smallest threshold at which the lower bound (see `precision_bounds`)
    of its precision reaches the target, or none. A relation of fewer rows, which cannot show a high precision alone,
    gets that of all relations' rows together, or a higher one where the share of right rows among its own is still
    below the target. What is promised of it is therefore the precision of all triples together, not its own.

    Raw precision does not hold such a promise: the smallest of many thresholds is the one where chance was kind. On
    rows of KLUE-RE's train that the model never saw, split anew a hundred times, it left 34 to 65 % of the relations
    below the target, and this rule 2 to 8 %; under another prior 38 to 74 % and 1 to 8 %, but 16 to 22 % at the target
    0.9 (`experiments/results/2026-11-28_triple-precision`). The bound holds for one threshold chosen beforehand;
    nothing is added for the choice among many. Rows of another origin are promised nothing.

    On the fitting rows the precision of every relation at its threshold is at least the target, and a higher target
    never lowers a threshold.

    Args:
        best: (rows,) index of the most probable relation of each row (`gating.best_relation`).
        scores: (rows,) its probability, under the prior that will be used.
        gold: (rows,) label indices.
        target: the precision, 0 to 1.
        weights: (rows,) to match a target prior.
    """
    full = np.ones(len(gold)) if weights is None else np.asarray(weights, float)
    right, heaviest = best == gold, float(full.max(initial=0.0))
    pooled = _smallest(scores, precision_bounds(scores, right, full, heaviest), target)
    relations = {}
    for index, label in enumerate(taxonomy.labels):
        if label == taxonomy.no_relation:
            continue
        rows = best == index
        own = scores[rows], right[rows], full[rows]
        by: Literal["own", "pooled", "never"]
        if rows.sum() >= SUPPORT:
            value, by = _smallest(scores[rows], precision_bounds(*own, heaviest), target), "own"
        else:
            value, by = None if pooled is None else _raised(own, target, pooled), "pooled"
        kept = own[0] >= (np.inf if value is None else value)
        total = float(own[2][kept].sum())
        precision = float((own[1] * own[2])[kept].sum()) / total if total > 0 else None
        by = "never" if value is None else by
        relations[label] = RelationThreshold(value, by, int(rows.sum()), int(kept.sum()), precision)
    return RelationThresholds(relations, pooled)


def precision_bounds(scores: Floats, right: npt.NDArray, weights: Floats, heaviest: float) -> Floats:
    """Return, for each row, a lower bound of the precision of the rows that score as much as it or more.

    Without weights it is Clopper & Pearson's one-sided bound (1934), which is exact: Wilson's is too high for shares
    near 1, where these thresholds lie. With weights the bound is taken on the counts, and its odds are multiplied by
    the mean weight of the right rows over that of the wrong ones, to which one of the greatest weight is added: where
    no wrong row was seen, the next one may be of the class that the target prior makes more frequent. (An effective
    sample size does not know this: rows that are all right have equal weights, and nothing is discounted.)

    Args:
        scores, right, weights: (rows,), in any order.
        heaviest: the greatest weight of a row.

    Returns:
        (rows,) in the order of the rows; rows of equal scores have equal bounds.
    """
    from scipy.stats import beta

    order, ends = _tails(scores)
    count = np.arange(1, len(scores) + 1)
    hits = np.cumsum(right[order])
    misses = count - hits
    share = np.where(hits > 0, beta.ppf(1 - CONFIDENCE, np.maximum(hits, 1), misses + 1), 0.0)
    weight = weights[order]
    of_right = np.cumsum(weight * right[order]) / np.maximum(hits, 1) * share
    of_wrong = (np.cumsum(weight * ~right[order]) + heaviest) / (misses + 1) * (1 - share)
    total = of_right + of_wrong
    return _by_row(np.divide(of_right, total, out=np.zeros_like(total), where=total > 0), order, ends)


def _raised(own: tuple[Floats, npt.NDArray, Floats], target: float, floor: float) -> float | None:
    """Return the smallest threshold from `floor` on at which the share of right rows reaches the target, or above all
    of the rows (None: there is no probability above them).

    Args:
        own: scores, whether right, and weights of a relation's rows.
    """
    scores, right, weights = own
    order, ends = _tails(scores)
    total = np.cumsum(weights[order])
    hits = np.cumsum((right * weights)[order])
    share = _by_row(np.divide(hits, total, out=np.ones_like(total), where=total > 0), order, ends)
    if not (scores >= floor).any():
        return floor
    found = _smallest(scores, np.where(scores >= floor, share, -1.0), target)
    if found is not None:
        return max(floor, found)
    above = float(np.nextafter(scores.max(), np.inf))
    return above if above <= 1 else None


def _smallest(scores: Floats, reached: Floats, target: float) -> float | None:
    """Return the smallest threshold whose rows reach the target (None: no threshold's do).

    It lies between the lowest score kept and the next one below, so that rounding moves no row across it; never below
    the lowest score of all, where no row was seen.
    """
    kept = scores[reached >= target]
    if not len(kept):
        return None
    lowest = float(kept.min())
    below = float(scores[scores < lowest].max(initial=-np.inf))
    between = (lowest + below) / 2
    return between if below < between < lowest else lowest


def _tails(scores: Floats) -> tuple[Indices, Indices]:
    """Return the order of falling scores, and for each place in it the last place of the same score."""
    order = np.argsort(-scores, kind="stable")
    return order, np.searchsorted(-scores[order], -scores[order], side="right") - 1


def _by_row(values: Floats, order: Indices, ends: Indices) -> Floats:
    """Return what belongs to the last place of each row's score: equal scores fall on one side together."""
    found = np.empty(len(order))
    found[order] = values[ends]
    return found
