"""Any two arms of a finished study, paired: what its report, which knows one baseline, does not answer.

    python experiments/paired.py STUDY.yaml adapted/em-soft plain/hard
    python experiments/paired.py STUDY.yaml vote:adapted/em-soft plain/hard   # the soft vote of all seeds of an arm

A vote is one model, not one a seed: beside it, chance over seeds only lies in the other arm.
"""

import argparse
from pathlib import Path

from mtl_re.ablation_report import read_entries
from mtl_re.arm_statistics import compare, figures, flat_figures, summarised
from mtl_re.cell_logits import vote
from mtl_re.cell_process import finished
from mtl_re.study_file import load_study

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
    reads, found = entry.reads, entry.summary
    if name.startswith("vote:"):
        one = vote(list(entry.reads.values()))
        reads, found = dict.fromkeys(entry.reads, one), summarised([flat_figures(figures(one))])
    sides.append(reads)
    for score in ("micro_f1", "auprc"):
        values = found[score]
        print(name, score, f"{values['mean']:.2f}", "" if values["ci"] is None else f"± {values['sd']:.2f}")
for one in compare((given.a, "", given.b), *sides, given.resamples, study.output / "draws"):
    said = f"{one.difference:+.2f}; over rows {one.rows_ci[0]:+.2f} to {one.rows_ci[1]:+.2f} (p {one.rows_p:.4f})"
    if one.seeds_ci is not None:
        said += f"; over seeds {one.seeds_ci[0]:+.2f} to {one.seeds_ci[1]:+.2f} (p {one.seeds_p:.3f})"
    print(f"{one.score}: {said}")
