"""Compare rules that fit a threshold for each relation to a precision: which of them holds its promise on other rows?

    python experiments/threshold_rules.py RUN --rows 20000 --repeats 100 [--prior 0.6,0.17,0.23] [--logits FILE]

Enters: a run that was trained on a part of its rows (`data.limit`). The rows of the same file whose sentences the run
never saw are divided anew, by sentence, in each repeat: the rules fit on `--sizes` of them and are measured on the
rest. Leaves: a table. `short`: of the relations that keep 20 test rows or more, the share whose precision lies below
the target; `short by 0.05`: by more than that. With a prior, rows are re-weighted to it. No other data is read.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta, norm

from mtl_re.config import parse_config, parse_shares
from mtl_re.data.loading import load_examples
from mtl_re.data.splits import load_splits
from mtl_re.files import WEIGHTS, digest, read_yaml
from mtl_re.model.network import split_heads
from mtl_re.scoring import calibration_fits, gating, metrics
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding as Reading
from mtl_re.scoring.decoding import decode
from mtl_re.scoring.evaluation import gold_indices
from mtl_re.taxonomy import Taxonomy

Bound = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""Right or not, and weights, of rows in falling order of scores → a bound of the precision of each first k rows."""


def raw(right: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Return the share of right rows."""
    return np.cumsum(right * weights) / np.cumsum(weights)


def size(weights: np.ndarray) -> np.ndarray:
    """Return Kish's effective sample sizes."""
    return np.cumsum(weights) ** 2 / np.cumsum(weights**2)


def wilson(right: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Return Wilson's one-sided lower bound at the effective sample size."""
    share, count, z = raw(right, weights, alpha), size(weights), norm.ppf(1 - alpha)
    spread = z * np.sqrt(share * (1 - share) / count + z * z / 4 / count**2)
    return (share + z * z / 2 / count - spread) / (1 + z * z / count)


def clopper_pearson(right: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Return Clopper and Pearson's lower bound at the effective sample size (Korn & Graubard 1998)."""
    count = size(weights)
    hits = raw(right, weights, alpha) * count
    return np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1e-9), count - hits + 1), 0)


def own(bound: Bound, alpha: float = 0.05, least: int = 1) -> Callable:
    """Return a rule: each relation the smallest threshold with `least` rows whose bound reaches the target, or none."""

    def fit(best, scores, gold, taxonomy: Taxonomy, target, weights):
        found = np.full(len(taxonomy.labels), np.inf)
        for label in set(best.tolist()):
            rows = np.flatnonzero(best == label)
            rows = rows[np.argsort(-scores[rows], kind="stable")]
            reached = bound(best[rows] == gold[rows], weights[rows], alpha) >= target
            reached &= np.append(np.diff(scores[rows]) != 0, True) & (np.arange(1, len(rows) + 1) >= least)
            if reached.any():
                found[label] = scores[rows[np.flatnonzero(reached)[-1]]]
        return found

    return fit


def package(best, scores, gold, taxonomy: Taxonomy, target, weights):
    """Fit by the package's rule."""
    fitted = calibration_fits.fit_relation_thresholds(best, scores, gold, taxonomy, target, weights).relations
    values = [fitted[label].value if label in fitted else None for label in taxonomy.labels]
    return np.array([np.inf if value is None else value for value in values])


RULES: dict[str, Callable] = {
    "0.5 for all": lambda best, scores, gold, taxonomy, target, weights: np.full(len(taxonomy.labels), 0.5),
    "raw precision": own(raw),
    "raw precision, 10 rows": own(raw, least=10),
    "Wilson 90 %": own(wilson, 0.1),
    "Wilson 95 %": own(wilson),
    "Clopper–Pearson 90 %, effective size": own(clopper_pearson, 0.1),
    "Clopper–Pearson 95 %, effective size": own(clopper_pearson),
    "**the package's**": package,
}


def unseen(run: Path, rows: int, path: Path | None) -> tuple[ComposedModel, dict[str, torch.Tensor], np.ndarray, list]:
    """Return the run's model with temperatures fitted on its held-out rows; logits, gold labels and sentences of rows
    that it never saw (kept in `path`, if one is given)."""
    config = parse_config(read_yaml(run / "config.yaml"))
    model = ComposedModel.load(str(run / "model"))
    splits = load_splits(config, model.taxonomy)
    seen = {example.sentence for example in [*splits.train, *splits.valid]}
    every, _ = load_examples(config.data.train, model.taxonomy, "error", config.data)
    other = [example for example in every if example.sentence not in seen][:rows]
    mark = digest(run / "model" / WEIGHTS) + "".join(example.id for example in other)
    if path is not None and path.is_file():
        valid, logits, of = torch.load(path, weights_only=True)
        if of != mark:
            raise SystemExit(f"{path}: holds the logits of another model or of other rows; name another file")
    else:
        valid, logits = (model.logits(part, 128, "auto", progress="rows") for part in (splits.valid, other))
        if path is not None:
            torch.save((valid, logits, mark), path)
    parts = {name: part.numpy() for name, part in split_heads(valid, model.taxonomy).items()}
    labels = [example.label for example in splits.valid]
    model.root.config.temperatures = calibration_fits.fit_temperatures(parts, labels, model.taxonomy)
    sentences = [example.sentence for example in other]
    return model, split_heads(logits, model.taxonomy), gold_indices(other, model.taxonomy), sentences


def measure(values, best, scores, gold, none: int, target: float, weights) -> list[float]:
    """Return precision, recall, false-relation rate, relations measured, share short, share short by 0.05."""
    kept, right = scores >= values[best], best == gold
    total = weights[kept].sum()
    gaps = []
    for label in range(len(values)):
        rows = kept & (best == label)
        if rows.sum() >= 20:
            gaps.append(target - np.average(right[rows], weights=weights[rows]))
    short = np.array(gaps or [np.nan])
    return [
        float((weights * right)[kept].sum() / total) if total else np.nan,
        float((weights * right)[kept].sum() / weights[gold != none].sum()),
        float(kept[gold == none].mean()),
        len(gaps),
        float((short > 0).mean()) if gaps else np.nan,
        float((short > 0.05).mean()) if gaps else np.nan,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1600, 6000])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--prior", default="none")
    parser.add_argument("--logits", type=Path, help="keep the logits in this file, and take them from it")
    given = parser.parse_args()
    model, logits, gold, sentences = unseen(given.run, given.rows, given.logits)
    taxonomy, trained = model.taxonomy, model.root.config.training_prior
    read = decode(logits, taxonomy, Reading(prior=given.prior), temperatures=model.temperatures, trained=trained)
    best, scores = (one.numpy() for one in gating.best_relation(read.probs, taxonomy))
    weights = np.ones(len(gold))
    if given.prior != "none":
        weights = metrics.prior_weights(gold, taxonomy, parse_shares("--prior", given.prior))
    none, rng = taxonomy.labels.index(str(taxonomy.no_relation)), np.random.default_rng(0)
    _, place = np.unique(sentences, return_inverse=True)
    print(f"{len(gold):,} rows, {given.repeats} repeats, prior {given.prior}\n")
    print("| fitted on | target | rule | precision | recall | false relations | relations | short | short by 0.05 |")
    print("|" + "---|" * 9)
    for count in given.sizes:
        for target in (0.7, 0.8, 0.9):
            found: dict[str, list] = {name: [] for name in RULES}
            for _ in range(given.repeats):
                order = np.argsort(rng.permutation(place.max() + 1)[place], kind="stable")
                fit, test = order[:count], order[count:]
                for name, rule in RULES.items():
                    values = rule(best[fit], scores[fit], gold[fit], taxonomy, target, weights[fit])
                    parts = (best[test], scores[test], gold[test], none, target, weights[test])
                    found[name].append(measure(values, *parts))
            for name, rows in found.items():
                mean = np.nanmean(np.array(rows), axis=0)
                cells = [f"{100 * value:.1f}" for value in mean]
                cells[3] = f"{mean[3]:.1f}"
                print(f"| {count:,} | {target} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
