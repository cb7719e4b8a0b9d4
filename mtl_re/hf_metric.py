"""KLUE-RE's official scores as a metric of the `evaluate` library; offline.

In: a row of probabilities and a gold index for each example, labels in KLUE's order. Out: `micro_f1` and `auprc` in
%. `KlueReMetric()` and `evaluate.load("mtl_re/hf_metric.py")` give the same metric; both need this package installed.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.scoring.metrics import auprc, micro_f1
from mtl_re.taxonomy import KLUE, Taxonomy

DESCRIPTION = """KLUE-RE: micro-F1 over the 29 relations without no_relation, and the area under the precision-recall
curve averaged over all 30 labels, both in percent."""

INPUTS = """
Args:
    predictions: for each example, 30 probabilities in KLUE's label order; the label scored by micro-F1 is their argmax.
    references: for each example, the index of its gold label in KLUE's order.
Returns:
    micro_f1, auprc: percentages 0-100.
"""

CITATION = """@inproceedings{park2021klue,
  title={KLUE: Korean Language Understanding Evaluation},
  author={Sungjoon Park and others},
  booktitle={NeurIPS Datasets and Benchmarks},
  year={2021}
}"""


class KlueReMetric(evaluate.Metric):
    """`compute(predictions=[[p] * 30, ...], references=[index, ...])` → `{"micro_f1": ..., "auprc": ...}`.

    Raises:
        MtlReError: there are no rows, a row does not have 30 probabilities, or an index is out of range.
    """

    def _info(self) -> evaluate.MetricInfo:
        # float64: float32 would tie scores that differ, and move AUPRC.
        probabilities = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": probabilities, "references": datasets.Value("int64")}),
            reference_urls=["https://github.com/KLUE-benchmark/KLUE"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        if odd := sorted({len(row) for row in predictions} - {len(KLUE)}):
            raise MtlReError(f"predictions: a row of {odd[0]} values; expected {len(KLUE)} probabilities")
        probs, gold = np.array(predictions, dtype=np.float64), np.array(references, dtype=np.int64)
        pred = probs.argmax(axis=1)
        return {"micro_f1": micro_f1(gold, pred, Taxonomy.from_prefixes()), "auprc": auprc(gold, probs)}
