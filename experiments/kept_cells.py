"""Lay a study's finished cells into a small folder that can be committed, or bring them back to go on elsewhere.

    python experiments/kept_cells.py keep STUDY.yaml FOLDER      # options, log, report, logits of what is finished
    python experiments/kept_cells.py restore STUDY.yaml FOLDER   # then `mtl-re ablate` trains only what is missing

Weights stay behind. Logits are kept as float16 (within a thousandth): labels and scores may differ in the last digit.
Heads that a cell does not train are left out, for nothing reads them.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

from mtl_re.ablation_report import parts_only
from mtl_re.cell_logits import cell_logits
from mtl_re.cell_process import finished
from mtl_re.study import heads_of, trained_heads
from mtl_re.study_file import load_study

FILES = ("cell.yaml", "metrics.jsonl", "report/report.md")


def copy(source, target):
    for name in FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def keep(study, folder):
    kept = "logits-test.npz" if study.test is not None else "logits-valid.npz"
    for cell in study.cells():
        source, target = study.run_dir(cell), folder / cell.key
        if not finished(source) or (target / kept).is_file():
            continue
        cell_logits(study, cell)  # computed now, if no report has been written yet
        copy(source, target)
        left_out = set()
        if cell.arm in parts_only(study):
            left_out = set(heads_of(study, cell.arm)) - set(trained_heads(study, cell.arm))
        with np.load(source / kept) as found:
            arrays = {name: found[name] for name in found.files if name.removeprefix("head ") not in left_out}
        half = {name: array if name == "about" else array.astype(np.float16) for name, array in arrays.items()}
        np.savez_compressed(target / kept, **half)
        print(target, file=sys.stderr)


def restore(study, folder):
    for cell in study.cells():
        source, target = folder / cell.key, study.run_dir(cell)
        if source.is_dir() and not target.exists():
            copy(source, target)
            for kept in source.glob("logits-*.npz"):
                shutil.copyfile(kept, target / kept.name)
            print(target, file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("keep", "restore"))
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"keep": keep, "restore": restore}[given.action](load_study(given.study), given.folder)
