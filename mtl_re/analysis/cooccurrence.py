"""`mtl-re cooccurrence`: how often a model relates two entities that only occur in the same sentence.

Enters: predictions with gold labels, or DATA that has them (and the entity types). Leaves: the share of no_relation
rows that are predicted as related, with Wilson's 95 % interval: as predicted, at thresholds, and by entity types.

What this false-positive rate does not tell: KLUE-RE's no_relation rows are pairs that annotators saw and found
unrelated, sampled such that most annotated pairs are related. In running text far more entity pairs are unrelated, and
most are farther apart, so precision is lower there than on KLUE-RE even if this rate stays the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtl_re.analysis.joined_rows import Mask, Rows, read_joined, type_pair
from mtl_re.config import CooccurrenceConfig
from mtl_re.errors import MtlReError
from mtl_re.files import write_json
from mtl_re.scoring import gating

DEFINITION = (
    "share of rows with gold label no_relation (annotated entity pairs of real sentences) that are predicted as "
    "related, from 0 to 1; low and high: Wilson 95 % interval over rows, for this one model"
)
RULES = {
    "any_relation": "1 - p(no_relation) reaches the threshold (`--threshold stored`, `mtl-re errors`)",
    "one_relation": "the probability of the most probable relation reaches the threshold (`mtl-re extract`)",
}
"""Rules by which a pair counts as related at a threshold."""


def cooccurrence(predictions: Path, options: CooccurrenceConfig) -> dict[str, Any]:
    """Measure the rate, and write it to `options.output` if one is given.

    Returns:
        `rate`, `low`, `high`, `n`, `related`: of the labels as predicted (`threshold` None), or by `any_relation` at
        `options.threshold`. `recall`: share of the related rows that are predicted as related. `thresholds`: the same
        by both rules at each threshold. `by_types`: entity-type pair → its rate, the most frequent pair first (empty
        without DATA).

    Raises:
        MtlReError: a file is malformed (names file and line), or no row has the gold label no_relation.
    """
    rows = read_joined(predictions, options)
    if rows.taxonomy.no_relation is None:
        raise MtlReError(f"{predictions}: this label set has no no_relation label, so there is no rate to measure")
    related, predicted = rows.related()
    if related.all():
        raise MtlReError(
            f"{predictions}: no row has the gold label {rows.taxonomy.no_relation}; there is no rate to measure"
        )
    scores = relation_scores(rows)
    positive = predicted if options.threshold is None else scores["any_relation"] >= options.threshold
    result: dict[str, Any] = {
        **false_rate(positive[~related]),
        "threshold": options.threshold,
        "recall": _share(positive[related]),
        "definition": DEFINITION,
        "rules": RULES,
        "thresholds": [_at(threshold, scores, related) for threshold in options.thresholds],
        "by_types": by_types(rows, positive),
        "predictions": predictions.name,
        "rows": len(related),
    }
    if options.output is not None:
        write_json(Path(options.output), result)
    return result


def relation_scores(rows: Rows) -> dict[str, np.ndarray]:
    """Return what each rule of `RULES` compares with the threshold. Shape: (N,) each."""
    none = rows.taxonomy.labels.index(str(rows.taxonomy.no_relation))
    best = gating.best_relation(torch.from_numpy(rows.probs), rows.taxonomy)[1]
    return {"any_relation": 1 - rows.probs[:, none], "one_relation": best.numpy()}


def false_rate(positive: Mask) -> dict[str, Any]:
    """Return the share of unrelated rows that are predicted as related, with Wilson's interval.

    Shape: positive (n,), of the unrelated rows alone.
    """
    from scipy.stats import binomtest

    count, alarms = len(positive), int(positive.sum())
    low, high = binomtest(alarms, count).proportion_ci(0.95, method="wilson")
    return {"rate": alarms / count, "low": float(low), "high": float(high), "n": count, "related": alarms}


def by_types(rows: Rows, positive: Mask) -> dict[str, dict[str, Any]]:
    """Return the rate of each entity-type pair that has an unrelated row. Shape: positive (N,), of all rows."""
    if rows.examples is None:
        return {}
    pairs, unrelated = np.array([type_pair(example) for example in rows.examples]), ~rows.related()[0]
    names, counts = np.unique(pairs[unrelated], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(name): false_rate(positive[unrelated & (pairs == name)]) for name in names[order]}


def render_cooccurrence(result: dict[str, Any]) -> str:
    """Return the result as a few lines of text."""
    where = "as predicted" if result["threshold"] is None else f"at threshold {result['threshold']:g}"
    kept = "" if result["recall"] is None else f"; recall on related pairs {100 * result['recall']:.1f} %"
    lines = [f"unrelated pairs predicted as related, {where}: {_percent(result)}{kept}"]
    for row in result["thresholds"]:
        parts = [f"{name} {_percent(row[name])}, recall {_recall(row[name])}" for name in RULES]
        lines.append(f"threshold {row['threshold']:g}: " + "; ".join(parts))
    return "\n".join([*lines, *(f"{name}: {_percent(part)}" for name, part in result["by_types"].items())])


def _at(threshold: float, scores: dict[str, np.ndarray], related: Mask) -> dict[str, Any]:
    rates = {
        name: {**false_rate(score[~related] >= threshold), "recall": _share(score[related] >= threshold)}
        for name, score in scores.items()
    }
    return {"threshold": threshold, **rates}


def _share(positive: Mask) -> float | None:
    return float(np.mean(positive)) if len(positive) else None


def _percent(part: dict[str, Any]) -> str:
    low, high = 100 * part["low"], 100 * part["high"]
    return f"{100 * part['rate']:.1f} % [{low:.1f}, {high:.1f}] of {part['n']:,}"


def _recall(part: dict[str, Any]) -> str:
    return "–" if part["recall"] is None else f"{100 * part['recall']:.1f} %"
