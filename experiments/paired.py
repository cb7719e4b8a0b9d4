"""Any two arms of a finished study, paired: what its report, which knows one baseline, does not answer.

    python experiments/paired.py STUDY.yaml adapted/em-soft plain/hard
    python experiments/paired.py STUDY.yaml vote:adapted/em-soft plain/hard   # the soft vote of all seeds of an arm
    python experiments/paired.py STUDY.yaml fold1/soft+fold2/soft one/soft    # of several arms, seed by seed

A vote of all seeds is one model, not one a seed: beside it, chance over seeds only lies in the other arm.
"""

import argparse
from pathlib import Path

from mtl_re.errors import MtlReError
from mtl_re.study.arm_statistics import compare, figures, flat_figures, summarised
from mtl_re.study.cell_logits import vote
from mtl_re.study.cell_process import finished
from mtl_re.study.report import read_entries
from mtl_re.study.study_file import load_study

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("study", type=Path)
parser.add_argument("a", help="ARM/READING, vote:ARM/READING, or ARM/READING+ARM/READING")
parser.add_argument("b", help="what is subtracted")
parser.add_argument("--resamples", type=int, default=10_000)
given = parser.parse_args()
study = load_study(given.study)
cells = {(cell.arm, cell.seed): cell for cell in study.cells() if finished(study.run_dir(cell))}
entries = {entry.name: entry for entry in read_entries(study, cells)}


def entry(name):
    if name not in entries:
        parser.error(f"{name}: no such arm/reading is finished; there are {', '.join(entries)}")
    return entries[name]


def side(name):
    """By seed, the rows as one model or a vote reads them; and the scores' summary."""
    if name.startswith("vote:"):
        reads = entry(name.removeprefix("vote:")).reads
        one = vote(list(reads.values()))
        return dict.fromkeys(reads, one), summarised([flat_figures(figures(one))])
    if name in entries or "+" not in name:
        return entry(name).reads, entry(name).summary
    members = [entry(member).reads for member in name.split("+")]
    seeds = set.intersection(*map(set, members))
    if not seeds:
        parser.error(f"{name}: no seed is finished in all of these arms")
    reads = {seed: vote([member[seed] for member in members]) for seed in sorted(seeds)}
    return reads, summarised([flat_figures(figures(read)) for read in reads.values()])


sides = []
for name in (given.a, given.b):
    try:
        reads, found = side(name)
    except MtlReError as error:
        parser.error(f"{name}: {error}")
    sides.append(reads)
    for score in ("micro_f1", "auprc"):
        values = found[score]
        print(name, score, f"{values['mean']:.2f}", "" if values["ci"] is None else f"± {values['sd']:.2f}")
if given.a.startswith("vote:") and given.b.startswith("vote:"):  # one model each: nothing is paired by seed
    sides = [{0: next(iter(reads.values()))} for reads in sides]
for one in compare((given.a, "", given.b), *sides, given.resamples, study.output / "draws"):
    said = f"{one.difference:+.2f}; over rows {one.rows_ci[0]:+.2f} to {one.rows_ci[1]:+.2f} (p {one.rows_p:.4f})"
    if one.seeds_ci is not None:
        said += f"; over seeds {one.seeds_ci[0]:+.2f} to {one.seeds_ci[1]:+.2f} (p {one.seeds_p:.3f})"
    print(f"{one.score}: {said}")
