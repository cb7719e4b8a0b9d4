"""`mtl-re cooccurrence`: how often two entities that merely stand in one sentence come out related.

Enters: predictions .jsonl with gold labels (and DATA, for entity types). Leaves: the rate among rows whose gold label
is no_relation, with Wilson's 95 % interval, as predicted and over thresholds, overall and by entity types.

What the rate is not: KLUE-RE's no_relation rows are pairs that annotators were shown and found unrelated, chosen so
that most pairs are related. Among all pairs of entities in running text a far larger part is unrelated and most are
farther apart, so of the triples found there a larger part is false than on KLUE-RE, even where this rate holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.analysis.error_analysis import Mask, Rows, read_joined, type_pair
from mtl_re.config import CooccurrenceConfig, ErrorsConfig
from mtl_re.errors import MtlReError
from mtl_re.files import write_json

DEFINITION = (
    "share of rows with gold label no_relation (annotated pairs of entities in one real sentence) that come out "
    "related; shares 0-1; low and high: Wilson 95 % over rows, this one model fixed"
)
RULES = {
    "any_relation": "1 - p(no_relation) reaches the threshold (`--threshold stored`, `mtl-re errors`)",
    "one_relation": "the most probable relation alone reaches the threshold (`mtl-re extract`)",
}


def cooccurrence(predictions: Path, options: CooccurrenceConfig) -> dict[str, Any]:
    """Measure, and write `options.output` if one is given.

    Returns:
        `rate`, `low`, `high`, `n`, `related` as predicted (`threshold` None) or at `options.threshold` on
        1 - p(no_relation); `thresholds`: for each the same two ways, with the share of related rows kept (`recall`);
        `by_types`: entity-type pair → the rate, the most frequent first (empty without DATA).

    Raises:
        MtlReError: a file is malformed (file:line), or no row is of no_relation.
    """
    joined = ErrorsConfig("", options.data, heads=options.heads, on_bad_row=options.on_bad_row)
    rows = read_joined(predictions, joined)
    if rows.taxonomy.no_relation is None:
        raise MtlReError(f"{predictions}: this label set has no no_relation label, so there is nothing to measure")
    related, predicted = rows.related()
    if related.all():
        raise MtlReError(f"{predictions}: no row has the gold label {rows.taxonomy.no_relation}; nothing to measure")
    scores = relation_scores(rows)
    found = predicted if options.threshold is None else scores["any_relation"] >= options.threshold
    result: dict[str, Any] = {
        **false_rate(found[~related]),
        "threshold": options.threshold,
        "recall": _share(found[related]),
        "definition": DEFINITION,
        "rules": RULES,
        "thresholds": [_at(threshold, scores, related) for threshold in options.thresholds],
        "by_types": by_types(rows, found),
        "predictions": predictions.name,
        "rows": len(related),
    }
    if options.output is not None:
        write_json(Path(options.output), result)
    return result


def relation_scores(rows: Rows) -> dict[str, np.ndarray]:
    """(N,) what each rule of `RULES` compares with its threshold."""
    none = rows.taxonomy.labels.index(str(rows.taxonomy.no_relation))
    return {"any_relation": 1 - rows.probs[:, none], "one_relation": np.delete(rows.probs, none, axis=1).max(axis=1)}


def false_rate(found: Mask) -> dict[str, Any]:
    """Share of unrelated rows (n,) that were found related, with Wilson's interval."""
    from scipy.stats import binomtest

    count, alarms = len(found), int(found.sum())
    low, high = binomtest(alarms, count).proportion_ci(0.95, method="wilson")
    return {"rate": alarms / count, "low": float(low), "high": float(high), "n": count, "related": alarms}


def by_types(rows: Rows, found: Mask) -> dict[str, dict[str, Any]]:
    """The rate of each entity-type pair that has an unrelated row."""
    if rows.examples is None:
        return {}
    pairs, unrelated = np.array([type_pair(example) for example in rows.examples]), ~rows.related()[0]
    names, counts = np.unique(pairs[unrelated], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(name): false_rate(found[unrelated & (pairs == name)]) for name in names[order]}


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    where = "as predicted" if result["threshold"] is None else f"at threshold {result['threshold']:g}"
    kept = "" if result["recall"] is None else f"; of the related rows {100 * result['recall']:.1f} % come out related"
    lines = [f"unrelated pairs that come out related, {where}: {_percent(result)}{kept}"]
    for row in result["thresholds"]:
        parts = [f"{name} {_percent(row[name])}, recall {_recall(row[name])}" for name in RULES]
        lines.append(f"threshold {row['threshold']:g}: " + "; ".join(parts))
    return "\n".join([*lines, *(f"{name}: {_percent(part)}" for name, part in result["by_types"].items())])


def _at(threshold: float, scores: dict[str, np.ndarray], related: Mask) -> dict[str, Any]:
    ways = {
        name: {**false_rate(score[~related] >= threshold), "recall": _share(score[related] >= threshold)}
        for name, score in scores.items()
    }
    return {"threshold": threshold, **ways}


def _share(found: Sequence[bool] | Mask) -> float | None:
    return float(np.mean(found)) if len(found) else None


def _percent(part: dict[str, Any]) -> str:
    low, high = 100 * part["low"], 100 * part["high"]
    return f"{100 * part['rate']:.1f} % [{low:.1f}, {high:.1f}] of {part['n']:,}"


def _recall(part: dict[str, Any]) -> str:
    return "–" if part["recall"] is None else f"{100 * part['recall']:.1f} %"
