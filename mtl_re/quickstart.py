"""`make demo`: the main job on the embedded corpus, as the four commands a user would type.

Nothing here but the commands and their order; each is printed before it runs, so that it can be copied.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from mtl_re.cli import main

CORPUS = "runs/sample"


def quickstart() -> int:
    """Write the corpus, train, evaluate on held-out rows, write a submission; the first fault's exit code."""
    began = time.perf_counter()
    run_dir = f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}"
    test, scores, submission = f"{CORPUS}/test.json", f"{run_dir}/test_metrics.json", f"{run_dir}/submission.csv"
    steps = {
        "1. Korean sentences with all 30 labels, from templates": f"sample {CORPUS} --train 3000",
        "2. One encoder, three heads, trained jointly (best of the validation rows kept)": (
            f"train --config experiments/configs/sample.yaml --train.run_dir {run_dir}"
        ),
        "3. Scores on test rows, whose names and templates training never saw": (
            f"evaluate {run_dir} --data {test} --output {scores}"
        ),
        "4. A contest submission": f"predict {run_dir} --data {test} --output {submission}",
    }
    for title, command in steps.items():
        print(f"\n== {title}\n$ mtl-re {command}", flush=True)
        if code := main(shlex.split(command)):
            return code
    made = {"checkpoint": f"{run_dir}/model", "report": f"{run_dir}/report/report.md", "scores": scores}
    print(f"\n== Done in {time.perf_counter() - began:.0f} s")
    for name, path in (made | {"submission": submission}).items():
        print(f"{name:<12}{path}{'' if Path(path).exists() else '  (missing)'}")
    print(f"\nTry next:   .venv/bin/mtl-re predict {run_dir} --data sample:valid --output out.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(quickstart())
