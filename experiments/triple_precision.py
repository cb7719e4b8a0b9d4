"""Measure what thresholds do to triples on labelled rows: kept, precision, recall, and false relations.

    python experiments/triple_precision.py CKPT DATA --prior 0.6,0.17,0.23 --calibration p90/calibration.json ...

A triple is what `mtl-re extract` gives of a row: its most probable relation, if the probability reaches the threshold.
Rows of the table: one threshold for all relations, without a prior and with `--prior`; the thresholds stored in CKPT;
those in files that `mtl-re calibrate --precision --output` wrote, each with its temperatures and under the prior of its
fit. DATA passes through the network once.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from mtl_re.analysis.cooccurrence import false_rate
from mtl_re.predict.triples import keeps
from mtl_re.scoring import gating
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoded, Decoding, stored_thresholds
from mtl_re.scoring.evaluation import gold_indices, labelled_examples

FIXED = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
HEAD = "| thresholds | prior | relations given | kept | precision | recall | unrelated rows given a relation |"


def measure(decoded: Decoded, gold: np.ndarray, threshold: float | Mapping[str, float | None]) -> dict:
    """Return counts and shares of the triples that a threshold, or one a relation, keeps.

    Args:
        gold: (rows,) label indices.
    """
    taxonomy = decoded.taxonomy
    labels, scores = (one.tolist() for one in gating.best_relation(decoded.probs, taxonomy))
    keep = keeps(taxonomy, threshold)
    kept = np.array([keep(label, score) for label, score in zip(labels, scores, strict=True)])
    right = np.array(labels) == gold
    related = gold != taxonomy.labels.index(str(taxonomy.no_relation))
    return {
        "kept": int(kept.sum()),
        "right": int((kept & right).sum()),
        "recall": float((kept & right).sum() / related.sum()),
        "false": false_rate(kept[~related]),
        "relations": len(set(np.array(labels)[kept])),
    }


def line(name: str, prior: str, values: dict) -> str:
    """Return one row of the table, with 95 % Wilson intervals over rows."""
    kept, right, false = values["kept"], values["right"], values["false"]
    precision = "–"
    if kept:
        low, high = binomtest(right, kept).proportion_ci(0.95, method="wilson")
        precision = f"{100 * right / kept:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    rate = f"{100 * false['rate']:.1f} [{100 * false['low']:.1f}, {100 * false['high']:.1f}]"
    recall = f"{100 * values['recall']:.1f}"
    return f"| {name} | {prior} | {values['relations']} | {kept:,} | {precision} | {recall} | {rate} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--prior", help="a second prior for the fixed thresholds, such as 0.6,0.17,0.23")
    parser.add_argument("--calibration", type=Path, nargs="*", default=[], help="calibration.json files")
    given = parser.parse_args()
    model = ComposedModel.load(given.checkpoint)
    examples = labelled_examples(given.data, model, "error")
    gold, logits = gold_indices(examples, model.taxonomy), model.logits(examples, 128, progress=given.data)
    stored = model.root.config.temperatures
    rules: list[tuple[str, str, dict, float | Mapping[str, float | None]]] = []
    for prior in ["none", *([given.prior] if given.prior else [])]:
        rules += [(f"{value:g}", prior, stored, value) for value in FIXED]
    if model.root.config.relation_thresholds is not None:
        prior, values = stored_thresholds([model.root.config], model.taxonomy, "none", "none")
        rules.append((f"stored, target {model.root.config.precision_target:g}", prior, stored, values))
    for path in given.calibration:
        result = json.loads(path.read_text(encoding="utf-8"))
        fitted = result["precision"]
        prior = ",".join(map(repr, fitted["prior"])) or "none"
        values = {label: one["value"] for label, one in fitted["relations"].items()}
        name = f"fitted on {result['n']:,} rows, target {fitted['target']:g}"
        rules.append((name, prior, result["temperatures"], values))
    print(f"n = {len(gold):,} rows of {given.data}")
    print(f"stored temperatures: {stored or 'none (not calibrated)'}; fitted rules apply those of their file")
    print(f"\n{HEAD}\n|{'---|' * 7}")
    for name, prior, temperatures, threshold in rules:
        model.root.config.temperatures = temperatures
        print(line(name, prior, measure(model.decode(logits, examples, Decoding(prior=prior)), gold, threshold)))


if __name__ == "__main__":
    main()
