"""Decode a study's flat head as the hard gate decodes three heads: the most probable class first, then a label of it.

    python experiments/flat_by_class.py experiments/ablations/hierarchy-e5.yaml flat joint

A flat head has no gate: both readings take its most probable label. Here the probabilities of its labels are summed by
coarse class. It tells what of a difference is the heads' and what is the decoding's.
"""

import argparse
from pathlib import Path

from mtl_re.scoring import gating
from mtl_re.scoring.metrics import Indices
from mtl_re.study.arm_statistics import compare
from mtl_re.study.cell_logits import DecodedCell
from mtl_re.study.finished_cells import finished_cells
from mtl_re.study.scored_arms import score_arms
from mtl_re.study.study_file import load_study
from mtl_re.taxonomy import Taxonomy

RESAMPLES = 10_000
HIERARCHY = Taxonomy.from_option("hierarchical")


class ByClass(DecodedCell):
    """A cell of the flat head whose label is read off class first."""

    @property
    def labels(self) -> Indices:
        """(rows,) labels: of the class with the largest sum, the most probable one."""
        return gating.labels(self.decoded.probs, HIERARCHY, "hard").numpy()


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("flat", help="arm with one head")
    parser.add_argument("heads", help="arm with three")
    given = parser.parse_args()
    study = load_study(given.study)
    entries = {entry.name: entry for entry in score_arms(study, finished_cells(study, study.cells()))}
    plain, gated = entries[f"{given.flat}/hard"].cells, entries[f"{given.heads}/hard"].cells
    first = {seed: ByClass(cell.gold, cell.decoded, cell.rows) for seed, cell in plain.items()}
    if any(cell.taxonomy.labels != HIERARCHY.labels for cell in first.values()):
        raise SystemExit("the labels of the flat head are not KLUE's, in its order")
    sides = {"plain argmax": plain, "class first": first, f"{given.heads}, hard gate": gated}
    for name, cells in sides.items():
        wrong = [cell.labels != cell.gold for cell in cells.values()]
        none = [(cell.gold == 0, cell.labels == 0) for cell in cells.values()]
        alarms = sum(int((gold & ~said).sum()) for gold, said in none) / len(none)
        missed = sum(int((~gold & said).sum()) for gold, said in none) / len(none)
        print(f"{name}: {missed:.1f} missed, {alarms:.1f} false alarms, {sum(map(sum, wrong)) / len(wrong):.1f} errors")
    for ours, base in (("class first", "plain argmax"), (f"{given.heads}, hard gate", "class first")):
        for one in compare((ours, "", base), sides[ours], sides[base], RESAMPLES):
            seeds = "" if one.seeds_ci is None else f"[{one.seeds_ci[0]:+.2f}, {one.seeds_ci[1]:+.2f}] over seeds"
            rows = f"[{one.rows_ci[0]:+.2f}, {one.rows_ci[1]:+.2f}] over rows"
            print(f"{ours} - {base}, {one.score}: {one.difference:+.2f} {rows}, {seeds} (p {one.seeds_t_p:.3f})")


if __name__ == "__main__":
    main()
