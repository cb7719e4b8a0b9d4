"""`make demo`: the main job on the embedded corpus, as the four commands a user would type.

There is nothing here but the commands and their order. Each is printed before it runs, so that it can be copied, and
everything is written under `runs/` of the working directory.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from mtl_re.cli import main

CORPUS = "runs/sample"
TRAINING = (
    f"--data.train {CORPUS}/train.json --data.valid {CORPUS}/valid.json --data.max_length 128 "
    "--model.encoder scratch:tiny --model.pooling cls_mean --model.dropout 0.3 "
    "--optim.lr 1e-3 --train.epochs 6 --eval.every 100"
)
"""What `experiments/configs/sample.yaml` says, which an installed package does not have."""


def quickstart() -> int:
    """Write the corpus, train, evaluate on test rows and write a submission; return the exit code of the last command.

    A command that fails is the last one.
    """
    began = time.perf_counter()
    run_dir = f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}"
    test, scores, submission = f"{CORPUS}/test.json", f"{run_dir}/test_metrics.json", f"{run_dir}/submission.csv"
    steps = {
        "1. Korean sentences with all 30 labels, from templates": f"sample {CORPUS} --train 3000",
        "2. One encoder, three heads, trained jointly; the best model on the validation rows is kept": (
            f"train {TRAINING} --train.run_dir {run_dir}"
        ),
        "3. Scores on test rows, whose names and templates are not in the training rows": (
            f"evaluate {run_dir} --data {test} --output {scores}"
        ),
        "4. A contest submission": f"predict {run_dir} --data {test} --output {submission}",
    }
    for title, command in steps.items():
        print(f"\n== {title}\n$ mtl-re {command}", flush=True)
        if code := main(shlex.split(command)):
            return code
    written = {"checkpoint": f"{run_dir}/model", "report": f"{run_dir}/report/report.md", "scores": scores}
    print(f"\n== Done in {time.perf_counter() - began:.0f} s")
    for name, path in (written | {"submission": submission}).items():
        print(f"{name:<12}{path}{'' if Path(path).exists() else '  (missing)'}")
    program = os.path.relpath(Path(sys.executable).parent / "mtl-re")
    print(f"\nTry next:   {program} predict {run_dir} --data sample:valid --output out.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(quickstart())
