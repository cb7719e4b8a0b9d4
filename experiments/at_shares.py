"""Score a study's finished cells as if coarse classes had other shares: rows are weighted, as by `eval.target_prior`.

    python experiments/at_shares.py STUDY.yaml 0.6,0.17,0.23

For studies on a split of train, whose shares are not those of the development split. It prints F1 and AUPRC of every
arm and reading, mean ± SD over seeds, and the difference from the baseline with its 95 % interval and p over seeds
(paired t test, not corrected). There is nothing over rows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtl_re.config import parse_shares
from mtl_re.scoring.metrics import auprc, micro_f1, prior_weights
from mtl_re.scoring.significance import seed_interval, t_test
from mtl_re.study.cell_logits import DecodedCell
from mtl_re.study.comparisons import comparisons
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.scored_arms import score_arms
from mtl_re.study.study_file import load_study


def scores_at(cell: DecodedCell, shares: Sequence[float]) -> dict[str, float]:
    """Return F1 and AUPRC of a cell whose rows are weighted to coarse shares."""
    weights = prior_weights(cell.gold, cell.taxonomy, shares)
    f1 = micro_f1(cell.gold, cell.labels, cell.taxonomy, weights)
    return {"F1": f1, "AUPRC": auprc(cell.gold, cell.probs, weights)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("shares", help="of the coarse classes, such as 0.6,0.17,0.23")
    options = parser.parse_args(arguments)
    study, shares = load_study(options.study), parse_shares("shares", options.shares)
    cells = finished_cells(study, study.cells())
    found = {
        (entry.arm, entry.reading): {seed: scores_at(cell, shares) for seed, cell in entry.cells.items()}
        for entry in score_arms(study, cells)
    }
    bases = {one.entry: one.base for one in comparisons(study, list(found))}
    for name, by_seed in found.items():
        for score in ("F1", "AUPRC"):
            values = {seed: scores[score] for seed, scores in by_seed.items()}
            mean = seed_interval(list(values.values()))
            spread = "" if mean["sd"] is None else f" ± {mean['sd']:.1f}"
            text = f"{'/'.join(name)} {score}: {mean['mean']:.1f}{spread}"
            theirs = found[bases[name]] if name in bases else {}
            apart = [value - theirs[seed][score] for seed, value in values.items() if seed in theirs]
            if len(apart) > 1:
                over = seed_interval(apart)
                low, high = over["ci"]
                text += f"; {over['mean']:+.1f} [{low:+.1f}, {high:+.1f}] p {t_test(apart):.4f}"
            print(text)


if __name__ == "__main__":
    main()
