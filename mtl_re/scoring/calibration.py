"""Fits of decoding's parameters: temperatures, a prior of the coarse classes, a relation threshold.

Pure functions on arrays; none ever sees the labels of rows that are then scored. `mtl-re calibrate` (`calibrate`) calls
them on held-out rows and stores the result in the checkpoint.

Temperature: Guo et al. 2017 (arXiv 1706.04599), one for each head. Prior by EM: Saerens, Latinne & Decaestecker 2002;
it presumes calibrated posteriors and overshoots without (Alexandari et al. 2020, 1901.06852). BBSE: Lipton et al. 2018
(1802.03916), a cross-check that needs no calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_re.errors import MtlReError
from mtl_re.taxonomy import IGNORE, Taxonomy

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer]

TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature; a fit that ends at one has too few rows or a broken head."""


def fit_temperature(logits: Floats, targets: Indices) -> float:
    """Return the T that minimises the mean NLL of softmax(logits / T).

    Args:
        logits: (rows, classes) of one head.
        targets: (rows,), `IGNORE` where the head has no label; such rows do not count.

    Raises:
        MtlReError: no row has a label for this head.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    known = targets != IGNORE
    if not known.any():
        raise MtlReError("calibration: a head has no labelled row here; give more rows")
    scores, gold = logits[known].astype(float), targets[known]
    right = scores[np.arange(len(gold)), gold]

    def nll(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(scores * scale, axis=1) - right * scale).mean())

    found = minimize_scalar(nll, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def fit_temperatures(
    logits: Mapping[str, Floats], labels: Sequence[str | None], taxonomy: Taxonomy
) -> dict[str, float]:
    """Fit one temperature a head (see `fit_temperature`).

    Args:
        logits: head → (rows, classes). labels: of the rows.
    """
    targets = [taxonomy.targets(label) for label in labels]
    return {name: fit_temperature(scores, np.array([row[name] for row in targets])) for name, scores in logits.items()}


def em_prior(coarse: Floats, trained: Sequence[float], rounds: int = 1000, tolerance: float = 1e-8) -> list[float]:
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
    for _ in range(rounds):
        joint = coarse * (share / old)
        updated = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(updated - share).max()
        share = updated
        if moved < tolerance:
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
