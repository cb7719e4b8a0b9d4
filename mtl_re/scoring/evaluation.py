"""Decoded rows and their gold labels → metrics: what training selects by, and `mtl-re evaluate`.

Tensors become arrays here, once. What was applied between logits and labels (temperatures, prior, type restriction,
threshold, gate) is named in the result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.config import EvalConfig, EvaluateConfig, OnBadRow, ReadingConfig
from mtl_re.data.loading import load_examples
from mtl_re.data.subject_types import SubjectTypes
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError, tell
from mtl_re.files import write_json
from mtl_re.scoring import metrics
from mtl_re.scoring.composed import ComposedModel, checkpoint_or_composed
from mtl_re.scoring.decoding import Decoded, check_prior, decoding_of
from mtl_re.scoring.writers import check_suffix, predictions_of, write_predictions
from mtl_re.taxonomy import Taxonomy


def score_decoded(decoded: Decoded, gold: np.ndarray, resamples: int) -> dict[str, Any]:
    """Return all metrics of `mtl-re evaluate`.

    Args:
        gold: (rows,) label indices.
        resamples: of the bootstrap (0: no intervals).
    """
    hard, soft = decoded.hard.numpy(), decoded.soft.numpy()
    gate, prior = decoded.decoding.gate, decoded.applied()["prior"]
    probs, heads = decoded.probs.numpy(), None if decoded.unrestricted is None else decoded.unrestricted.numpy()
    return metrics.all_metrics(gold, probs, hard, soft, gate, decoded.taxonomy, prior, resamples, unrestricted=heads)


def selection_score(decoded: Decoded, gold: np.ndarray, options: EvalConfig) -> float:
    """Return the figure by which the best model is chosen, rows re-weighted to `eval.target_prior` if there is one."""
    taxonomy, predicted, weights = decoded.taxonomy, decoded.labels.numpy(), None
    if options.target_prior is not None:
        weights = metrics.prior_weights(gold, taxonomy, options.target_prior)
    if options.metric == "auprc":
        return float(metrics.auprc(gold, decoded.probs.numpy(), weights))
    if options.metric == "accuracy":
        return float(metrics.accuracy(gold, predicted, weights))
    function = metrics.micro_f1 if options.metric == "micro_f1" else metrics.macro_f1
    return float(function(gold, predicted, taxonomy, weights))


def gold_indices(examples: Sequence[Example], taxonomy: Taxonomy) -> np.ndarray:
    """Return the label indices of rows, (rows,).

    Raises:
        MtlReError: a row has no label.
    """
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    for example in examples:
        if example.label is None:
            raise MtlReError(f"{example.where} has no label; evaluation needs one in every row (see `predict`)")
    return np.array([index[example.label] for example in examples if example.label is not None], np.int64)


def evaluate(ckpt: str | None, options: EvaluateConfig) -> dict[str, Any]:
    """Score a checkpoint, or composed ones, on labelled rows and write the files that the options name.

    Returns:
        The metrics (`metrics.all_metrics`) and what was applied in decoding (`Decoded.applied`).

    Raises:
        MtlReError: an option, a checkpoint or a row is at fault, or a file cannot be written.
    """
    if options.predictions is not None:
        check_suffix(Path(options.predictions))
    model = ComposedModel.load(checkpoint_or_composed(ckpt, options.compose))
    decoding = decoding_of([model.root.config], options.prior, options.threshold, options.gate, options.restrict)
    check_prior(decoding.prior, model.taxonomy, model.root.config.training_prior)
    examples = labelled_examples(options.data, model, options.on_bad_row, options)
    logits = model.logits(examples, options.batch_size, options.precision, f"evaluate {options.data}")
    decoded = model.decode(logits, examples, decoding)
    result = score_decoded(decoded, gold_indices(examples, model.taxonomy), options.resamples) | decoded.applied()
    if options.prior == "none" and decoded.decoding.prior != "none":
        result["prior"] += " (stored with the threshold)"
    if options.predictions is not None:
        write_predictions(predictions_of(decoded, examples), Path(options.predictions), model.taxonomy)
    if options.output is not None:
        write_json(Path(options.output), result)
    return result


def labelled_examples(
    spec: str, model: ComposedModel, on_bad_row: OnBadRow, reading: ReadingConfig
) -> Sequence[Example]:
    """Read all rows of a DATA that the model can take.

    Raises:
        MtlReError: there are no rows, or one is bad and `on_bad_row` is `error`.
    """
    examples, bad = load_examples(spec, model.taxonomy, on_bad_row, reading)
    lost = len(bad)
    if on_bad_row == "skip":
        usable = list(model.usable(examples, lambda example, error: None))
        lost, examples = lost + len(examples) - len(usable), usable
    tell_lost(spec, lost)
    if not examples:
        raise MtlReError(f"{spec}: no rows to evaluate")
    subjects = SubjectTypes(model.taxonomy)
    for example in examples:
        subjects.add(example)
    if warning := subjects.warning(spec):
        tell(warning)
    return examples


def tell_lost(spec: str, lost: int) -> None:
    """Print how many rows were left out, if any were."""
    if lost:
        print(f"{spec}: {lost} bad rows left out (`mtl-re check` lists them)", file=sys.stderr)
