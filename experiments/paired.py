"""Any two arms of a finished study, paired: what its report, which knows one baseline, does not answer.

    python experiments/paired.py STUDY.yaml adapted/em-soft plain/hard
    python experiments/paired.py STUDY.yaml vote:adapted/em-soft plain/hard   # the soft vote of all seeds of an arm

A vote is one model, not one a seed: beside it, chance over seeds only lies in the other arm.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mtl_re import gating
from mtl_re.ablation_report import read_entries
from mtl_re.arm_statistics import compare, figures, summarised
from mtl_re.cell_process import finished
from mtl_re.study_file import load_study


def voted(reads):
    """Every seed → the soft vote of all: mean probabilities, then the reading's gate."""
    first = next(iter(reads.values()))
    probs = np.mean([read.probs for read in reads.values()], axis=0)
    hard, soft = (gating.labels(torch.from_numpy(probs), first.taxonomy, gate).numpy() for gate in ("hard", "soft"))
    return dict.fromkeys(reads, replace(first, probs=probs, hard=hard, soft=soft, prior="of each member"))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("study", type=Path)
parser.add_argument("a", help="ARM/READING or vote:ARM/READING")
parser.add_argument("b", help="what is subtracted")
parser.add_argument("--resamples", type=int, default=10_000)
given = parser.parse_args()
study = load_study(given.study)
cells = {(cell.arm, cell.seed): cell for cell in study.cells() if finished(study.run_dir(cell))}
entries = {entry.name: entry for entry in read_entries(study, cells)}
sides = []
for name in (given.a, given.b):
    entry = entries.get(name.removeprefix("vote:"))
    if entry is None:
        parser.error(f"{name}: no such arm/reading is finished; there are {', '.join(entries)}")
    reads = voted(entry.reads) if name.startswith("vote:") else entry.reads
    found = summarised([{key: figures(read)[key] for key in ("micro_f1", "auprc")} for read in reads.values()])
    spread = {score: f" ± {values['sd']:.2f}" if values["sd"] else "" for score, values in found.items()}
    print(name, *(f"{score} {values['mean']:.2f}{spread[score]}" for score, values in found.items()))
    sides.append(reads)
for one in compare((given.a, "", given.b), *sides, given.resamples):
    seeds = (
        ""
        if one.seeds_ci is None
        else f"; over seeds {one.seeds_ci[0]:+.2f} to {one.seeds_ci[1]:+.2f} (p {one.seeds_p:.3f})"
    )
    low, high = one.rows_ci
    print(f"{one.score}: {one.difference:+.2f}; over rows {low:+.2f} to {high:+.2f} (p {one.rows_p:.4f}){seeds}")
