"""Compare any two arms of a finished study, paired by seed and row (its report compares with one baseline only).

    python experiments/paired.py STUDY.yaml adapted/em-soft plain/hard
    python experiments/paired.py STUDY.yaml vote:adapted/em-soft plain/hard   # the soft vote of all seeds of an arm
    python experiments/paired.py STUDY.yaml fold1/soft+fold2/soft one/soft    # of several arms, seed by seed

A soft vote (the mean of the members' probabilities) of all seeds is one model, not one for each seed: in a comparison
with it, the variation over seeds is that of the other arm alone.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_re.errors import MtlReError
from mtl_re.study.arm_statistics import BySeed, cell_metrics, compare, summarise
from mtl_re.study.cell_logits import vote
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.scored_arms import ScoredArm, score_arms
from mtl_re.study.study_file import load_study


def named_entry(entries: Mapping[str, ScoredArm], name: str) -> ScoredArm:
    """Return the entry called ARM/READING."""
    if name not in entries:
        raise MtlReError(f"no such arm/reading is finished; there are {', '.join(entries)}")
    return entries[name]


def side(entries: Mapping[str, ScoredArm], name: str) -> tuple[BySeed, dict[str, dict[str, Any]]]:
    """Return one side of a comparison: the decoded rows of each seed, and the summary of their scores."""
    if name.startswith("vote:"):
        by_seed = named_entry(entries, name.removeprefix("vote:")).cells
        voted = vote(list(by_seed.values()))
        return dict.fromkeys(by_seed, voted), summarise([cell_metrics(voted)])
    if name in entries or "+" not in name:
        entry = named_entry(entries, name)
        return entry.cells, entry.summary
    members = [named_entry(entries, member).cells for member in name.split("+")]
    seeds = sorted(set.intersection(*map(set, members)))
    if not seeds:
        raise MtlReError("no seed is finished in all of these arms")
    by_seed = {seed: vote([member[seed] for member in members]) for seed in seeds}
    return by_seed, summarise([cell_metrics(rows) for rows in by_seed.values()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of both arms, and their differences with intervals over rows and over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("a", help="ARM/READING, vote:ARM/READING, or ARM/READING+ARM/READING")
    parser.add_argument("b", help="the arm that is subtracted, in the same form")
    parser.add_argument("--resamples", type=int, default=10_000)
    options = parser.parse_args(arguments)
    study = load_study(options.study)
    cells = finished_cells(study, study.cells())
    entries = {entry.name: entry for entry in score_arms(study, cells)}
    sides = []
    for name in (options.a, options.b):
        try:
            by_seed, summary = side(entries, name)
        except MtlReError as error:
            parser.error(f"{name}: {error}")
        sides.append(by_seed)
        for score in ("micro_f1", "auprc"):
            values = summary[score]
            print(name, score, f"{values['mean']:.2f}", "" if values["ci"] is None else f"± {values['sd']:.2f}")
    if options.a.startswith("vote:") and options.b.startswith("vote:"):  # one model each: nothing is paired by seed
        sides = [{0: next(iter(by_seed.values()))} for by_seed in sides]
    for one in compare((options.a, "", options.b), *sides, options.resamples, study.output / "draws"):
        text = f"{one.difference:+.2f}; over rows {one.rows_ci[0]:+.2f} to {one.rows_ci[1]:+.2f} (p {one.rows_p:.4f})"
        if one.seeds_ci is not None:
            text += f"; over seeds {one.seeds_ci[0]:+.2f} to {one.seeds_ci[1]:+.2f} (p {one.seeds_p:.3f})"
        print(f"{one.score}: {text}")


if __name__ == "__main__":
    main()
