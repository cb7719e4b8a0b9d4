"""Score a contest submission against KLUE JSON with scikit-learn alone: an independent check of `mtl-re evaluate`.

python experiments/score_submission.py submission.csv dev.json[.gz]
"""

import ast
import csv
import gzip
import json
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import auc, f1_score, precision_recall_curve

ORDER = """no_relation org:top_members/employees org:members org:product per:title org:alternate_names per:employee_of
org:place_of_headquarters per:product org:number_of_employees/members per:children per:place_of_residence
per:alternate_names per:other_family per:colleagues per:origin per:siblings per:spouse org:founded
org:political/religious_affiliation org:member_of per:parents org:dissolved per:schools_attended per:date_of_death
per:date_of_birth per:place_of_birth per:place_of_death org:founded_by per:religion""".split()  # noqa: SIM905
"""The contest's order of labels, in which a submission lists its probabilities."""


def score(submission: Path, data: Path) -> tuple[int, float, float]:
    """Return the number of rows, and micro-F1 without `no_relation` and mean AUPRC in %."""
    with submission.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with gzip.open(data, "rt", encoding="utf-8") if data.suffix == ".gz" else data.open(encoding="utf-8") as file:
        items = json.load(file)
    assert [row["id"] for row in rows] == [item["guid"] for item in items], "ids differ"
    gold = np.array([ORDER.index(item["label"]) for item in items])
    predicted = np.array([ORDER.index(row["pred_label"]) for row in rows])
    probs = np.array([ast.literal_eval(row["probs"]) for row in rows])
    f1 = 100 * f1_score(gold, predicted, labels=list(range(1, 30)), average="micro")
    curves = [precision_recall_curve(gold == label, probs[:, label])[:2] for label in range(30)]
    return len(gold), f1, 100 * float(np.mean([auc(recall, precision) for precision, recall in curves]))


if __name__ == "__main__":
    count, f1, auprc = score(*map(Path, sys.argv[1:]))
    print(f"n {count}  micro-F1 {f1:.4f}  AUPRC {auprc:.4f}")
