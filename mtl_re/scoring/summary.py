"""evaluate's JSON → text: the block that `mtl-re evaluate` prints, and the words that reports use for its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_re.taxonomy import NO_RELATION

RARE = 13
"""Rows up to which a label counts as rare: nine classes of KLUE-RE's validation split, which carry 30 % of AUPRC."""
EMPTY_AUPRC = 50
"""What a class without a gold row counts in AUPRC (see `metrics.auprc`)."""
NONE = "–"

SCORE_NAMES = {"micro_f1": "micro-F1", "auprc": "AUPRC", "macro_f1": "macro-F1", "accuracy": "accuracy", "ece": "ECE"}
ERROR_NAMES = {
    "missed": ("missed", "a relation predicted as none"),
    "false_alarm": ("false alarm", "none predicted as a relation"),
    "wrong_branch": ("wrong branch", "another coarse class"),
    "wrong_label": ("wrong label", "another label of the class"),
}


def evaluation_summary(result: Mapping[str, Any]) -> str:
    """Return evaluate's JSON as a block of text, percentages."""
    gate = _pairs({key: result["gate"][key] for key in ("precision", "recall")})
    fine = f"{_pairs(result['fine'])}, accuracy given the right branch" if result["fine"] else NONE
    errors = ", ".join(f"{ERROR_NAMES.get(kind, (kind,))[0]} {count:,}" for kind, count in result["errors"].items())
    left_out = "over all labels: none is known to mean no relation"
    if result["gate"]["f1"] is not None:
        left_out = f"{NO_RELATION if NO_RELATION in result['per_label'] else 'no relation'} left out"
    rows = [
        ("rows", f"{result['n']:,}", f"gate {result['gate_mode']}, prior {result['prior']}"),
        ("micro-F1", percent(result["micro_f1"]), f"{_interval(result, 'micro_f1')}{left_out}"),
        ("AUPRC", percent(result["auprc"]), f"{_interval(result, 'auprc')}mean of {len(result['per_label'])} classes"),
        ("macro-F1", percent(result["macro_f1"]), "mean over the relations that occur"),
        ("accuracy", percent(result["accuracy"]), f"coarse {percent(result['coarse']['accuracy'])}"),
        ("gate F1", percent(result["gate"]["f1"]), f"{gate}, has a relation"),
        ("fine", "", fine),
        ("errors", f"{sum(result['errors'].values()):,}", errors),
        ("disagreement", percent(result["disagreement"]), "% of rows, where hard and soft gate differ"),
        ("ECE", percent(result["ece"]), "expected calibration error"),
    ]
    lines = [f"{name:<13}{value:>8}  {text}".rstrip() for name, value, text in rows]
    return "\n".join([*lines, *(f"note: {note}" for note in notes(result))])


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to understand the scores; empty if nothing."""
    found = []
    if empty := result.get("empty_classes", []):
        classes = len(result["per_label"])
        counted = (
            f"each counts {EMPTY_AUPRC} in AUPRC's mean of {classes}, {EMPTY_AUPRC * len(empty) / classes:.2f} in all"
        )
        found.append(f"{len(empty)} class(es) without a gold row, {counted}: {', '.join(empty)}")
    for name, bounds in (result.get("ci") or {}).items():
        if bounds is not None and not bounds[0] <= result[name] <= bounds[1]:
            found.append(
                f"{SCORE_NAMES[name]} lies outside its interval: a resample repeats rows, which raises the scores of "
                "classes with few rows; trust the interval's width, not its position"
            )
    return found


def percent(value: float | None) -> str:
    """Return a figure with two decimals, or a dash where there is none."""
    return NONE if value is None else f"{value:.2f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Return an interval with two decimals, or a dash if there is none."""
    return NONE if bounds is None else f"{bounds[0]:.2f}–{bounds[1]:.2f}"


def label_rows(labels: Sequence[str], per_label: Mapping[str, Any]) -> list[list[str]]:
    """Return a table's cells for some labels of evaluate's JSON: label, rows, precision, recall, F1, AUPRC."""
    keys = ("precision", "recall", "f1", "auprc")
    return [
        [label, f"{scores['support']:,}", *[percent(scores[key] if scores["support"] else None) for key in keys]]
        for label, scores in ((label, per_label[label]) for label in labels)
    ]


def _interval(result: Mapping[str, Any], name: str) -> str:
    bounds: Sequence[float] | None = (result.get("ci") or {}).get(name)
    return "" if bounds is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}] 95 %, "


def _pairs(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{key} {percent(value)}" for key, value in values.items())
