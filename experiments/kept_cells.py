"""Copy a study's finished cells into a small directory that can be committed, or restore them to continue elsewhere.

    python experiments/kept_cells.py keep STUDY.yaml DIR      # options, log, report and logits of finished cells
    python experiments/kept_cells.py restore STUDY.yaml DIR   # then `mtl-re ablate` trains only what is missing

With `--confirm K`: the cells of `mtl-re ablate STUDY.yaml --confirm K`, where that has begun.

Weights are not kept. Logits are kept as float16 (within a thousandth), so labels and scores may differ in the last
digit. Heads that a cell does not train are left out, because nothing reads them. A kept cell is identified by its
options, defaults filled in, not by its name: what one study kept also serves another study with the same training.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtl_re.files import whole_folder
from mtl_re.study.cell_logits import cell_logits
from mtl_re.study.cell_process import finished
from mtl_re.study.confirmation import stored_confirmation
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.study import Study, checked_config, heads_of, parts_only, trained_heads
from mtl_re.study.study_file import load_study
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.losses import normalise

FILES = ("cell.yaml", "metrics.jsonl", "report/report.md")


def copy(source: Path, target: Path) -> None:
    """Copy the small files of a run directory."""
    others = (path.name for name in ("rejected.jsonl", "manifest.json") for path in source.glob(name))
    for name in (*FILES, *others):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def keep(study: Study, directory: Path) -> None:
    """Copy what is finished and not kept yet."""
    for cell in finished_cells(study, study.cells()).values():
        source, target = study.run_dir(cell), directory / cell.key
        if finished(target):
            continue
        cell_logits(study, cell)  # computed now, if no report has been written yet
        untrained = set()
        if cell.arm in parts_only(study):
            untrained = set(heads_of(study, cell.arm)) - set(trained_heads(study, cell.arm))
        target.mkdir(parents=True, exist_ok=True)
        for logits in source.glob("logits-*.npz"):
            with np.load(logits) as file:
                arrays = {name: file[name] for name in file.files if name.removeprefix("head ") not in untrained}
            half = {name: array if name == "about" else array.astype(np.float16) for name, array in arrays.items()}
            np.savez_compressed(target / logits.name, **half)
        copy(source, target)
        print(target, file=sys.stderr)


def restore(study: Study, directory: Path) -> None:
    """Copy back every kept cell that the study plans and has not begun."""
    kept = {identity(yaml.safe_load(path.read_text())): path.parent for path in sorted(directory.glob("*/cell.yaml"))}
    for cell in study.cells():
        source, target = kept.get(identity(cell.config)), study.run_dir(cell)
        if source is not None and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(target) as build:  # its report is what says that a cell is finished
                copy(source, build)
                (build / "cell.yaml").write_text(cell.text, encoding="utf-8")
                for logits in source.glob("logits-*.npz"):
                    shutil.copyfile(logits, build / logits.name)
            print(f"{source} -> {target}", file=sys.stderr)


def identity(config: dict[str, Any]) -> str:
    """Return all options of a training run as text; two cells with equal text are the same run."""
    options = checked_config(config).to_dict()
    heads = [head.name for head in Taxonomy.from_option(options["model"]["heads"]).heads]
    options["loss"]["weights"] = normalise(options["loss"]["weights"], heads)
    return json.dumps(options, sort_keys=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("keep", "restore"))
    parser.add_argument("study", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--confirm", type=int, default=0)
    given = parser.parse_args()
    chosen = load_study(given.study)
    chosen = stored_confirmation(chosen, given.confirm) if given.confirm else chosen
    {"keep": keep, "restore": restore}[given.action](chosen, given.directory)
