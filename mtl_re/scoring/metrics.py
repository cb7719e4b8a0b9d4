"""Scores of predictions: the two official ones of KLUE-RE, their intervals, and the kinds of errors.

In: gold and predicted label indices (N,), probabilities (N, L) in `taxonomy.labels` order, and optionally row
weights (N,). Out: percentages 0-100. Everything is counted end to end over all rows; nothing is scored only where
an earlier head was right. Pure functions on numpy arrays.

A score is a function of row weights: ones give the score itself, `prior_weights` the score at other coarse shares,
and bootstrap multiplicities a resample. So rows are sorted once a class, and a thousand resamples are one pass.

Definitions: KLUE-benchmark/KLUE-baseline, which calls scikit-learn's `f1_score` and `precision_recall_curve` + `auc`.
The tests hold these functions equal to scikit-learn's, with weights, ties and empty classes. They are our own because a
resample is one more column of weights here, and one more call there: a bootstrap takes a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mtl_re.config import check_shares
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer[Any]]


def micro_f1(gold: Indices, pred: Indices, taxonomy: Taxonomy, weights: Floats | None = None) -> float:
    """Return micro-F1 in % over the labels without `no_relation` (over all labels where the taxonomy has none).

    Equal to `100 * f1_score(gold, pred, average="micro", labels=[all but no_relation])`; 0 where it is undefined.
    Shape: gold and pred (N,), indices into `taxonomy.labels`; weights (N,), None counts every row once.

    Raises:
        MtlReError: no rows, shapes that differ, or an index out of range.
    """
    counts = confusion_counts(gold, pred, len(taxonomy.labels), weights)
    kept = _related(taxonomy)
    hits, predicted, actual = np.diag(counts)[kept].sum(), counts[:, kept].sum(), counts[kept].sum()
    return 100 * float(_ratio(2 * hits, predicted + actual))


def auprc(gold: Indices, probs: Floats, weights: Floats | None = None) -> float:
    """Return the area under the precision-recall curve in %: the plain mean of `auprc_by_class` over all L classes.

    A class without a gold row counts 50: scikit-learn sets its recall to one, and the trapezoid from (0, 1) to
    (1, 0) is one half. `all_metrics` lists such classes in `empty_classes`.

    Shape: gold (N,), indices into the columns of `probs`; probs (N, L), probabilities, for logits rank rows
    differently and give another number; weights (N,), None counts every row once.

    Raises:
        MtlReError: no rows, shapes that differ, an index out of range, or a probability that is not finite.
    """
    return float(auprc_by_class(gold, probs, weights).mean())


def auprc_by_class(gold: Indices, probs: Floats, weights: Floats | None = None) -> Floats:
    """Return the area under each class's curve in %, (L,): scikit-learn's `auc(recall, precision)`.

    The trapezoid rule; rows of equal score make one point. Arguments and errors are those of `auprc`.
    """
    gold, probs = _checked_probs(gold, probs)
    columns = _weights(weights, len(gold))[:, None]
    areas = [Curve(gold == label, probs[:, label]).areas(columns)[0] for label in range(probs.shape[1])]
    return 100 * np.nan_to_num(np.array(areas), nan=0.5)


class Curve:
    """The precision-recall curve of one class: sorted once, then integrated for any row weights.

    Only points where recall moves have area under them, so precision is needed at the two ends of each group of
    equal scores that holds a positive row, and nowhere else: a few points for a rare class.

    Shape: positive (N,), the rows of this class; scores (N,), its probability in each row.
    """

    def __init__(self, positive: npt.NDArray[np.bool_], scores: Floats) -> None:
        order = np.argsort(-scores, kind="stable")
        descending = scores[order]
        first = np.flatnonzero(np.r_[True, descending[1:] != descending[:-1]])  # (G,) where each tied group begins
        last = np.r_[first[1:], len(order)]
        ranks = np.flatnonzero(positive[order])  # of the positive rows
        group = np.searchsorted(first, ranks, side="right") - 1
        groups, self._group_starts = np.unique(group, return_index=True)
        self._positives = order[ranks]
        edges = np.unique(np.r_[0, first[groups], last[groups]])
        self._segment_starts, self._rows = edges[:-1], order[: edges[-1]]
        self._before, self._after = np.searchsorted(edges, first[groups]), np.searchsorted(edges, last[groups])

    def areas(self, weights: Floats) -> Floats:
        """Areas 0-1. Shape: weights (N, R), R sets of them → (R,); NaN where the positive rows weigh nothing."""
        if len(self._positives) == 0:
            return np.full(weights.shape[1], np.nan)
        hits = _running(weights[self._positives], self._group_starts)  # (G + 1, R)
        total = _running(weights[self._rows], self._segment_starts)
        # Before the first row of any weight the curve stands at (recall 0, precision 1), as in scikit-learn.
        start = _ratio(hits[:-1], total[self._before], undefined=1.0)
        end = _ratio(hits[1:], total[self._after], undefined=1.0)
        return _ratio((np.diff(hits, axis=0) * (start + end) / 2).sum(axis=0), hits[-1], undefined=np.nan)


def macro_f1(gold: Indices, pred: Indices, taxonomy: Taxonomy, weights: Floats | None = None) -> float:
    """Return the mean F1 in % over the labels without `no_relation` that occur in gold or are predicted; else 0.

    A label that does neither has no F1 and is not averaged in as a zero. Arguments and errors: see `micro_f1`.
    """
    counts = confusion_counts(gold, pred, len(taxonomy.labels), weights)
    occurring = _related(taxonomy) & (counts.any(axis=0) | counts.any(axis=1))
    return 100 * float(_precision_recall_f1(counts)[2][occurring].mean()) if occurring.any() else 0.0


def accuracy(gold: Indices, pred: Indices, weights: Floats | None = None) -> float:
    """Return the share of rows in % (by weight) whose label is right.

    Shape: gold, pred and weights (N,). Errors: see `micro_f1`.
    """
    gold, pred = _checked_pair(gold, pred)
    return 100 * float(np.average(gold == pred, weights=_weights(weights, len(gold))))


CALIBRATION_BINS = 15


def confidence_bins(confidence: Floats, bins: int = CALIBRATION_BINS) -> Indices:
    """Return the number of each confidence's bin, of equal width and (low, high] (Guo et al. 2017): (N,) → (N,)."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def ece(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error in % over the bins of `confidence_bins` (Guo et al. 2017).

    Shape: confidence (N,), probability 0-1 of the label that was predicted; correct (N,), whether it is right.

    Raises MtlReError for no rows, shapes that differ, or a confidence outside 0-1.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    if confidence.ndim != 1 or confidence.shape != np.shape(correct) or len(confidence) == 0:
        raise MtlReError(f"ece: confidence {confidence.shape}, correct {np.shape(correct)}; expected (N,) twice, N > 0")
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():  # False for NaN as well
        raise MtlReError("ece: a confidence lies outside 0-1; give probabilities, not logits")
    gap = np.bincount(
        confidence_bins(confidence, bins), weights=confidence - np.asarray(correct, dtype=np.float64), minlength=bins
    )
    return 100 * float(np.abs(gap).sum() / len(confidence))


def confusion_counts(gold: Indices, pred: Indices, classes: int, weights: Floats | None = None) -> Floats:
    """Sum the weights of the rows of each gold class (row) predicted as each class (column).

    Shape: gold, pred and weights (N,) → (classes, classes). Errors: see `micro_f1`.
    """
    gold, pred = _checked_pair(gold, pred, classes)
    flat = np.bincount(gold * classes + pred, weights=_weights(weights, len(gold)), minlength=classes**2)
    return flat.reshape(classes, classes).astype(np.float64)


def prior_weights(gold: Indices, taxonomy: Taxonomy, shares: Sequence[float]) -> Floats:
    """Return row weights under which the coarse classes have the given shares: share / observed share, mean 1.

    Shape: gold (N,), indices into `taxonomy.labels` → (N,). `shares`: one a coarse class, in `taxonomy.groups` order.

    Raises:
        MtlReError: a coarse class has no rows to re-weight, or the shares do not fit the taxonomy.
    """
    names = list(taxonomy.groups)
    check_shares("target prior", list(shares))
    if len(shares) != len(names):
        raise MtlReError(f"target prior: {len(shares)} shares for the {len(names)} coarse classes {names}")
    coarse = np.array(taxonomy.group_of_label)[_checked(gold, "gold", len(taxonomy.labels))]
    observed = np.bincount(coarse, minlength=len(names))
    if not observed.all():
        empty = names[int(np.argmin(observed))]
        raise MtlReError(f"target prior: no row of coarse class {empty!r} to re-weight; use more rows or no prior")
    target = np.array(shares, dtype=np.float64) / sum(shares)
    return np.asarray((target * len(coarse) / observed)[coarse])


class Resampled:
    """Micro-F1 and AUPRC of one set of predictions as functions of row multiplicities; sorts rows once.

    A class with gold rows of which a resample holds none is left out of that resample's AUPRC mean, which then
    runs over fewer classes. A class without any gold row counts 50 in every resample, as it does in `auprc`.

    Shape: gold and pred (N,), indices into `taxonomy.labels`; probs (N, L).
    """

    def __init__(self, gold: Indices, pred: Indices, probs: Floats, taxonomy: Taxonomy) -> None:
        gold, probs = _checked_probs(gold, probs, taxonomy)
        gold, pred = _checked_pair(gold, pred, len(taxonomy.labels))
        related = _related(taxonomy)
        shares = 2.0 * ((gold == pred) & related[gold]), related[gold] + 1.0 * related[pred]
        self._f1_parts = np.stack(shares)  # (2, N) what a row adds to the numerator and the denominator
        present, self._empty = np.unique(gold), probs.shape[1] - len(np.unique(gold))
        self._curves = [Curve(gold == label, probs[:, label]) for label in present]

    def __call__(self, multiplicities: Floats) -> tuple[Floats, Floats]:
        """Micro-F1 and AUPRC in %. Shape: multiplicities (N, R) → (R,), (R,)."""
        numerator, denominator = self._f1_parts @ multiplicities
        areas = np.stack([curve.areas(multiplicities) for curve in self._curves])  # (classes present, R)
        counted = (~np.isnan(areas)).sum(axis=0) + self._empty
        mean = (np.nansum(areas, axis=0) + 0.5 * self._empty) / counted
        return 100 * _ratio(numerator, denominator), 100 * mean


def multiplicities(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw bootstrap resamples as how often each row is drawn, in chunks (rows, R) whose R sum to `resamples`."""
    generator = np.random.default_rng(seed)
    size = min(max((1 << 20) // rows, 1), 512)  # about 8 MB at once
    for done in range(0, resamples, size):
        count = min(size, resamples - done)
        drawn = generator.integers(rows, size=(count, rows)) * count + np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * count)
        yield counts.reshape(rows, count).astype(np.float64)


def bootstrap_intervals(
    gold: Indices,
    pred: Indices,
    probs: Floats,
    taxonomy: Taxonomy,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, list[float] | None]:
    """Return 95 % percentile bootstrap intervals over rows.

    They hold the model fixed and cover the sampling of test rows only, not the training seed. How classes that
    vanish from a resample count: see `Resampled`.

    Returns:
        `{"micro_f1": [low, high], "auprc": [low, high]}` in %; None in place of each where `resamples` is 0.
    """
    score = Resampled(gold, pred, probs, taxonomy)
    if resamples == 0:
        return {"micro_f1": None, "auprc": None}
    pairs = [score(chunk) for chunk in multiplicities(len(gold), resamples, seed)]
    named = zip(("micro_f1", "auprc"), zip(*pairs, strict=True), strict=True)
    return {name: np.quantile(np.concatenate(values), [0.025, 0.975]).tolist() for name, values in named}


def all_metrics(
    gold: Indices,
    probs: Floats,
    pred_hard: Indices,
    pred_soft: Indices,
    gate_mode: Literal["hard", "soft"],
    taxonomy: Taxonomy,
    prior: str = "none",
    resamples: int = 1000,
    unrestricted: Floats | None = None,
) -> dict[str, Any]:
    """Return the metrics that `mtl-re evaluate` writes, as plain JSON values, percentages 0-100.

    A precision, recall or F1 that is undefined is 0, as in scikit-learn; a value without any row to stand on
    (a head's accuracy, a label's AUPRC, the gate of a taxonomy without `no_relation`) is None. The coarse prediction
    is the coarse class of the predicted label, so that it means the same for every layout.

    Args:
        gold, probs: (N,) indices into `taxonomy.labels`, (N, L) product probabilities.
        pred_hard, pred_soft: (N,) labels by each gate; `gate_mode` says which ones are scored.
        prior: how the coarse prior of these rows was chosen; copied to the output.
        unrestricted: (N, L) probabilities before labels were ruled out (None: none were); heads are judged by them.

    Raises:
        MtlReError: no rows, shapes that differ, values out of range, or an unknown gate mode.
    """
    if gate_mode not in ("hard", "soft"):
        raise MtlReError(f"gate {gate_mode!r}; expected 'hard' or 'soft'")
    gold, probs = _checked_probs(gold, probs, taxonomy)
    pred = _checked(pred_hard if gate_mode == "hard" else pred_soft, "pred", len(taxonomy.labels))
    counts = confusion_counts(gold, pred, len(taxonomy.labels))
    return {
        "n": len(gold),
        "micro_f1": micro_f1(gold, pred, taxonomy),
        "auprc": auprc(gold, probs),
        "macro_f1": macro_f1(gold, pred, taxonomy),
        "accuracy": accuracy(gold, pred),
        "ci": bootstrap_intervals(gold, pred, probs, taxonomy, resamples),
        "coarse": _coarse(counts, taxonomy),
        "gate": _gate(counts, taxonomy),
        "fine": _fine(gold, probs if unrestricted is None else unrestricted, taxonomy),
        "errors": error_counts(counts, taxonomy),
        "disagreement": 100 - accuracy(pred_hard, pred_soft),
        "ece": ece(probs[np.arange(len(gold)), pred], gold == pred),
        "per_label": _per_label(counts, auprc_by_class(gold, probs), taxonomy),
        "gate_mode": gate_mode,
        "prior": prior,
        "empty_classes": [label for label, rows in zip(taxonomy.labels, counts.sum(axis=1), strict=True) if rows == 0],
    }


def _coarse(counts: Floats, taxonomy: Taxonomy) -> dict[str, Any]:
    names = list(taxonomy.groups)
    member = np.eye(len(names))[list(taxonomy.group_of_label)]  # (L, coarse classes)
    merged = member.T @ counts @ member
    nested = {row: {name: round(merged[i, j]) for j, name in enumerate(names)} for i, row in enumerate(names)}
    return {"accuracy": 100 * float(np.trace(merged) / merged.sum()), "confusion": nested}


def _gate(counts: Floats, taxonomy: Taxonomy) -> dict[str, float | None]:
    """Return how well "has a relation" is told from `no_relation`, whichever relation it is."""
    keys = ("precision", "recall", "f1")
    if taxonomy.no_relation is None:
        return dict.fromkeys(keys)
    member = np.eye(2)[_related(taxonomy).astype(int)]  # (L, 2): no relation, a relation
    values = _precision_recall_f1(member.T @ counts @ member)
    return {key: 100 * float(value[1]) for key, value in zip(keys, values, strict=True)}


def _fine(gold: Indices, probs: Floats, taxonomy: Taxonomy) -> dict[str, float | None]:
    """Return the accuracy inside the gold label's own coarse class, for each class with several labels."""
    group_of_label = np.array(taxonomy.group_of_label)
    inside_accuracy: dict[str, float | None] = {}
    for number, (name, labels) in enumerate(taxonomy.groups.items()):
        inside, rows = np.flatnonzero(group_of_label == number), np.flatnonzero(group_of_label[gold] == number)
        if len(labels) > 1:
            best = inside[probs[np.ix_(rows, inside)].argmax(axis=1)]
            inside_accuracy[name] = accuracy(gold[rows], best) if len(rows) else None
    return inside_accuracy


def error_counts(counts: Floats, taxonomy: Taxonomy) -> dict[str, int]:
    """Count every wrong row in exactly one of four kinds."""
    related, group = _related(taxonomy), np.array(taxonomy.group_of_label)
    both, same = related[:, None] & related, group[:, None] == group
    kinds = {
        "missed": related[:, None] & ~related,
        "false_alarm": ~related[:, None] & related,
        "wrong_branch": both & ~same,
        "wrong_label": both & same & ~np.eye(len(group), dtype=bool),
    }
    return {kind: round(counts[cells].sum()) for kind, cells in kinds.items()}


def _per_label(counts: Floats, areas: Floats, taxonomy: Taxonomy) -> dict[str, dict[str, float | int | None]]:
    precision, recall, f1 = (100 * values for values in _precision_recall_f1(counts))
    support = counts.sum(axis=1)
    found: dict[str, dict[str, float | int | None]] = {}
    for i, label in enumerate(taxonomy.labels):
        area = float(areas[i]) if support[i] else None
        scores = {"precision": float(precision[i]), "recall": float(recall[i]), "f1": float(f1[i])}
        found[label] = {**scores, "auprc": area, "support": round(support[i])}
    return found


def _precision_recall_f1(counts: Floats) -> tuple[Floats, Floats, Floats]:
    hits, predicted, actual = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    return _ratio(hits, predicted), _ratio(hits, actual), _ratio(2 * hits, predicted + actual)


def _ratio(numerator: Any, denominator: Any, undefined: float = 0.0) -> Floats:
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    fallback = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), undefined)
    return np.divide(numerator, denominator, out=fallback, where=denominator != 0)


def _running(weights: Floats, starts: Indices) -> Floats:
    """Return running totals at segment ends, a zero first. Shape: weights (rows, R), starts (S,) → (S + 1, R)."""
    sums = np.add.reduceat(weights, starts, axis=0)
    return np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(sums, axis=0)])


def _related(taxonomy: Taxonomy) -> npt.NDArray[np.bool_]:
    """Return which labels are relations, (L,)."""
    return np.array([label != taxonomy.no_relation for label in taxonomy.labels])


def _checked(indices: Indices, name: str, classes: int | None = None) -> Indices:
    array = np.asarray(indices)
    if array.ndim != 1 or len(array) == 0:
        raise MtlReError(f"{name}: shape {array.shape}; expected (N,) with at least one row to score")
    if not np.issubdtype(array.dtype, np.integer):
        raise MtlReError(f"{name}: {array.dtype}; expected integer label indices")
    if classes is not None and not (array.min() >= 0 and array.max() < classes):
        raise MtlReError(f"{name}: label index {array.min()} to {array.max()}; expected 0 to {classes - 1}")
    return array.astype(np.int64)


def _checked_pair(gold: Indices, pred: Indices, classes: int | None = None) -> tuple[Indices, Indices]:
    gold, pred = _checked(gold, "gold", classes), _checked(pred, "pred", classes)
    if len(gold) != len(pred):
        raise MtlReError(f"pred: {len(pred)} rows, gold: {len(gold)}; they must be the same rows")
    return gold, pred


def _checked_probs(gold: Indices, probs: Floats, taxonomy: Taxonomy | None = None) -> tuple[Indices, Floats]:
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 2 or (taxonomy is not None and probs.shape[1] != len(taxonomy.labels)):
        labels = "L" if taxonomy is None else len(taxonomy.labels)
        raise MtlReError(f"probs: shape {probs.shape}; expected (N, {labels})")
    gold = _checked(gold, "gold", probs.shape[1])
    if len(gold) != len(probs):
        raise MtlReError(f"probs: {len(probs)} rows, gold: {len(gold)}; they must be the same rows")
    if not (finite := np.isfinite(probs).all(axis=1)).all():
        raise MtlReError(f"probs: row {int(np.argmin(finite))} (counted from 0) holds a value that is not finite")
    return gold, probs


def _weights(weights: Floats | None, rows: int) -> Floats:
    if weights is None:
        return np.ones(rows)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (rows,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        raise MtlReError(f"weights: shape {weights.shape}; expected ({rows},) finite, not negative, not all zero")
    return weights
