"""Fit Scheffé's surface to the published scores of a finished study, whose arms are points of the loss weights.

    python experiments/surface_of_scores.py STUDY.yaml scores.csv OUTPUT

STUDY.yaml names the weights of each arm; scores.csv is that of its report. Arms whose weights move are left out: the
CSV does not hold their weights. Nothing is trained, and no cell is needed.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_re.markdown import write_markdown
from mtl_re.study.design import DesignOptions
from mtl_re.study.mixture import MODELS, Region
from mtl_re.study.mixture_runs import RESPONSES, RunTable
from mtl_re.study.study import Study, heads_of, shares_of
from mtl_re.study.study_file import load_study
from mtl_re.study.surface_report import surface_lines


def read_runs(study: Study, scores: Path, reading: str) -> RunTable:
    """Return the runs of the arms whose weights stay, with their seeds as blocks.

    The region is what was tried: each head from its least to its greatest share.
    """
    shares = {arm: found for arm, settings in study.arms.items() if (found := shares_of(study, settings))}
    heads = heads_of(study, next(iter(shares)))
    with scores.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reading"] == reading and row["arm"] in shares]
    seeds = np.array([int(row["seed"]) for row in rows])
    points = np.array([[shares[row["arm"]][head] for head in heads] for row in rows])
    ends = zip(heads, points.min(axis=0).tolist(), points.max(axis=0).tolist(), strict=True)
    return RunTable(
        region=Region.bounded(heads, {head: (low, high) for head, low, high in ends}),
        points=points,
        seeds=seeds,
        blocks=seeds,
        scores={name: np.array([float(row[name]) for row in rows]) for name in RESPONSES if rows[0].get(name)},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write surface.md, its picture and its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--reading", default="hard", help="which decoding's scores (default: hard)")
    parser.add_argument("--response", choices=tuple(RESPONSES), default="selection", help="whose optimum (selection)")
    parser.add_argument("--model", choices=MODELS, default="quadratic", help="which surface answers (quadratic)")
    given = parser.parse_args(arguments)
    runs = read_runs(load_study(given.study), given.scores, given.reading)
    options = DesignOptions("simplex-lattice", len(runs.points), model=given.model, response=given.response)
    given.output.mkdir(parents=True, exist_ok=True)
    lines = [f"# Surface of {given.scores.parent.name}, reading {given.reading}", ""]
    lines += surface_lines(runs, options, [], given.output)
    write_markdown(given.output / "surface.md", lines)
    print(*lines[2:5], sep="\n")


if __name__ == "__main__":
    main()
