"""Lay a study's finished cells into a small folder that can be committed, or bring them back to go on elsewhere.

    python experiments/kept_cells.py keep STUDY.yaml FOLDER      # options, log, report, logits of what is finished
    python experiments/kept_cells.py restore STUDY.yaml FOLDER   # then `mtl-re ablate` trains only what is missing

Weights stay behind. Logits are kept as float16 (within a thousandth): labels and scores may differ in the last digit.
Heads that a cell does not train are left out, for nothing reads them. A kept cell is known by its options, defaults
filled in, not by its name: the folder of one study also serves another that has the same training in an arm.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import yaml

from mtl_re.study.cell_logits import cell_logits
from mtl_re.study.cell_process import finished
from mtl_re.study.report import parts_only
from mtl_re.study.plan import checked_config, heads_of, trained_heads
from mtl_re.study.study_file import load_study
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.losses import normalise

FILES = ("cell.yaml", "metrics.jsonl", "report/report.md")


def copy(source, target):
    for name in FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def keep(study, folder):
    for cell in study.cells():
        source, target = study.run_dir(cell), folder / cell.key
        if not finished(source) or finished(target):
            continue
        cell_logits(study, cell)  # computed now, if no report has been written yet
        left_out = set()
        if cell.arm in parts_only(study):
            left_out = set(heads_of(study, cell.arm)) - set(trained_heads(study, cell.arm))
        target.mkdir(parents=True, exist_ok=True)
        for logits in source.glob("logits-*.npz"):
            with np.load(logits) as found:
                arrays = {name: found[name] for name in found.files if name.removeprefix("head ") not in left_out}
            half = {name: array if name == "about" else array.astype(np.float16) for name, array in arrays.items()}
            np.savez_compressed(target / logits.name, **half)
        copy(source, target)
        print(target, file=sys.stderr)


def restore(study, folder):
    kept = {options(yaml.safe_load(path.read_text())): path.parent for path in sorted(folder.glob("*/cell.yaml"))}
    for cell in study.cells():
        source, target = kept.get(options(cell.config)), study.run_dir(cell)
        if source is not None and not target.exists():
            copy(source, target)
            (target / "cell.yaml").write_text(cell.text, encoding="utf-8")
            for logits in source.glob("logits-*.npz"):
                shutil.copyfile(logits, target / logits.name)
            print(f"{source} -> {target}", file=sys.stderr)


def options(config):
    """All options of a training run as text; two cells with the same are the same run."""
    whole = checked_config(config).to_dict()
    heads = [head.name for head in Taxonomy.from_option(whole["model"]["heads"]).heads]
    whole["loss"]["weights"] = normalise(whole["loss"]["weights"], heads)
    return json.dumps(whole, sort_keys=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("keep", "restore"))
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"keep": keep, "restore": restore}[given.action](load_study(given.study), given.folder)
