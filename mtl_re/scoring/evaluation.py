"""Probabilities → metrics: what training selects by, and `mtl-re evaluate`.

What was applied between logits and labels (temperatures, prior, type restriction, threshold, gate) is named in the
result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtl_re.config import EvalConfig, EvaluateConfig, Gate, OnBadRow
from mtl_re.errors import MtlReError
from mtl_re.files import write_json
from mtl_re.scoring import gating, metrics
from mtl_re.scoring.scorer import Reading, Scored, Scorer, parse_compose
from mtl_re.scoring.writers import Prediction, check_suffix, write_predictions
from mtl_re.taxonomy import Taxonomy

if TYPE_CHECKING:
    from mtl_re.data.validation import Example


def report(
    probs: np.ndarray,
    gold: np.ndarray,
    taxonomy: Taxonomy,
    gate: Gate,
    resamples: int,
    prior: str = "none",
    threshold: float | None = None,
) -> dict[str, Any]:
    """All metrics of `mtl-re evaluate`.

    Args:
        probs: (rows, labels) as read, in taxonomy order.
        gold: (rows,) label indices.
        gate: which label counts; the other one goes into `disagreement`.
        resamples: of the bootstrap (0: no intervals).
        prior: what was done to the coarse prior, in words.
        threshold: relation threshold, if any.
    """
    tensor = torch.from_numpy(probs)
    hard = gating.labels(tensor, taxonomy, "hard", threshold).numpy()
    soft = gating.labels(tensor, taxonomy, "soft", threshold).numpy()
    return metrics.report(gold, probs, hard, soft, gate, taxonomy, prior, resamples)


def selection_score(probs: np.ndarray, gold: np.ndarray, taxonomy: Taxonomy, options: EvalConfig) -> float:
    """The figure by which the best model is chosen, rows re-weighted to `eval.target_prior` if there is one."""
    weights = None
    if options.target_prior is not None:
        weights = metrics.prior_weights(gold, taxonomy, options.target_prior)
    predicted = predicted_labels(probs, taxonomy, options.gate)
    if options.metric == "auprc":
        return float(metrics.auprc(gold, probs, weights))
    if options.metric == "accuracy":
        return float(metrics.accuracy(gold, predicted, weights))
    function = metrics.micro_f1 if options.metric == "micro_f1" else metrics.macro_f1
    return float(function(gold, predicted, taxonomy, weights))


def predicted_labels(probs: np.ndarray, taxonomy: Taxonomy, gate: Gate) -> np.ndarray:
    """(rows,) label indices under a gate, from (rows, labels) probabilities."""
    return gating.labels(torch.from_numpy(probs), taxonomy, gate).numpy()


def gold_indices(examples: Sequence[Example], taxonomy: Taxonomy) -> np.ndarray:
    """(rows,) label indices.

    Raises:
        MtlReError: a row has no label.
    """
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    for example in examples:
        if example.label is None:
            raise MtlReError(f"{example.where} has no label; evaluation needs one in every row (see `predict`)")
    return np.array([index[example.label] for example in examples if example.label is not None], np.int64)


def evaluate(ckpt: str | None, options: EvaluateConfig) -> dict[str, Any]:
    """`mtl-re evaluate`: score a checkpoint, or composed ones, on labelled rows and write what was asked for."""
    if options.predictions is not None:
        check_suffix(Path(options.predictions))
    scorer = Scorer.load(checkpoint_or_composed(ckpt, options.compose))
    examples = labelled_examples(options.data, scorer, options.on_bad_row)
    reading = reading_of(options, scorer)
    logits = scorer.logits(examples, options.batch_size, options.precision, f"evaluate {options.data}")
    scored = scorer.read(logits, examples, reading)
    gold = gold_indices(examples, scorer.taxonomy)
    applied = scored.describe()
    result = report(
        scored.probs, gold, scorer.taxonomy, reading.gate, options.resamples, applied["prior"], reading.threshold
    )
    result |= applied
    if options.predictions is not None:
        _write_predictions(Path(options.predictions), scored, examples)
    if options.output is not None:
        write_json(Path(options.output), result)
    return result


def reading_of(options: Any, scorer: Scorer) -> Reading:
    """The reading that `evaluate`'s or `predict`'s options ask for, the checkpoint's own where they say nothing."""
    config = scorer.root.config
    return Reading(
        gate=options.gate or config.gate,
        prior=options.prior,
        restrict=options.restrict,
        threshold=config.relation_threshold if options.threshold == "stored" else None,
    )


def checkpoint_or_composed(ckpt: str | None, compose: Sequence[str] | None) -> str | dict[str, str]:
    """The one checkpoint, or one for each head.

    Raises:
        MtlReError: both or neither were given.
    """
    if (ckpt is None) == (not compose):
        raise MtlReError("give a checkpoint, or --compose HEAD=CKPT ... for one a head")
    return parse_compose(compose or []) if ckpt is None else ckpt


def labelled_examples(spec: str, scorer: Scorer, on_bad_row: OnBadRow) -> Sequence[Example]:
    """All rows of a DATA that the scorer can take.

    Raises:
        MtlReError: there are none, or one is bad and `on_bad_row` is `error`.
    """
    from mtl_re.data.loading import load_examples

    examples, bad = load_examples(spec, scorer.taxonomy, on_bad_row)
    lost = len(bad)
    if on_bad_row == "skip":
        usable = list(scorer.usable(examples, lambda example, error: None))
        lost, examples = lost + len(examples) - len(usable), usable
    tell_lost(spec, lost)
    if not examples:
        raise MtlReError(f"{spec}: no rows to evaluate")
    return examples


def tell_lost(spec: str, lost: int) -> None:
    """Say how many rows were left out, if any were."""
    if lost:
        print(f"{spec}: {lost} bad rows left out (`mtl-re check` lists them)", file=sys.stderr)


def _write_predictions(path: Path, scored: Scored, examples: Sequence[Example]) -> None:
    taxonomy, labels = scored.scorer.taxonomy, scored.labels()
    predictions = (
        Prediction.of(example.id, scored.probs[row], int(labels[row]), taxonomy, example.label)
        for row, example in enumerate(examples)
    )
    write_predictions(predictions, path, taxonomy)
