"""The text of `mtl-re evaluate`: scores, intervals and what must be known to understand them."""

import numpy as np

from mtl_re.scoring import metrics
from mtl_re.scoring.summary import evaluation_summary
from mtl_re.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_prefixes()


def result_of(taxonomy=TAXONOMY, rows=400, present=None, resamples=20):
    """evaluate's JSON of random predictions; only the first `present` labels have gold rows."""
    rng = np.random.default_rng(0)
    classes = len(taxonomy.labels)
    gold = rng.integers(0, present or classes, rows)
    probs = rng.dirichlet(np.ones(classes), rows)
    probs[np.arange(rows), gold] += 0.2
    probs /= probs.sum(axis=1, keepdims=True)
    labels = probs.argmax(axis=1)
    return metrics.all_metrics(gold, probs, labels, labels, "hard", taxonomy, resamples=resamples)


def test_summary_says_the_scores_and_the_empty_classes():
    result = result_of(present=28)
    text = evaluation_summary(result)
    low, high = result["ci"]["micro_f1"]
    assert f"micro-F1     {result['micro_f1']:>8.2f}  [{low:.2f}, {high:.2f}]" in text
    assert (
        "2 class(es) without a gold row, each counts 50 in AUPRC's mean of 30, 3.33 in all: per:religion, per:title"
        in text
    )
    assert f"missed {result['errors']['missed']}" in text
    assert all(len(line) < 120 for line in text.splitlines() if not line.startswith("note"))


def test_summary_without_intervals_and_notes():
    result = result_of(resamples=0)
    assert result["ci"]["auprc"] is None
    text = evaluation_summary(result)
    assert "95 %" not in text
    assert "note" not in text


def test_a_score_outside_its_interval_is_remarked():
    result = result_of()
    result["ci"]["auprc"] = [result["auprc"] + 1, result["auprc"] + 2]
    assert "AUPRC lies outside its interval" in evaluation_summary(result)
