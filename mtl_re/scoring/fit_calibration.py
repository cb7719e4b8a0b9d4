"""`mtl-re calibrate`: fit on rows set aside, store in the checkpoint, show before and after.

Temperatures (one a head) and a relation threshold are fitted on labelled rows; a target prior is given, or estimated on
unlabelled rows of the place where the model will be used. Temperatures come first: EM on uncalibrated posteriors
overshoots. Stored in the checkpoint's `config.json`: temperatures (applied from then on, and named in every output) and
the threshold (applied where `--threshold stored` asks for it). The rows given here must not be scored afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtl_re import figures
from mtl_re.config import CalibrateConfig, parse_config, parse_shares
from mtl_re.data.splits import load_splits
from mtl_re.errors import MtlReError
from mtl_re.files import read_yaml, write_json
from mtl_re.model.network import checkpoint_folder
from mtl_re.scoring import calibration, gating, metrics
from mtl_re.scoring.evaluation import gold_indices, labelled_examples
from mtl_re.scoring.inference import by_head, probabilities
from mtl_re.scoring.scorer import Reading, Scorer
from mtl_re.taxonomy import Taxonomy

if TYPE_CHECKING:
    from mtl_re.data.validation import Example

BINS = 15


def calibrate(ckpt: str, options: CalibrateConfig) -> dict[str, Any]:
    """Fit, report, and store unless `options.store` says no.

    Raises:
        MtlReError: there are no rows to fit on, a head has no labelled one, or the checkpoint cannot be written.
    """
    folder = checkpoint_folder(ckpt)
    scorer = Scorer.load(str(folder))
    scorer.root.config.temperatures = {}
    taxonomy = scorer.taxonomy
    source = options.data or f"the rows that {folder.parent} held out"
    examples = labelled_examples(options.data, scorer, "error") if options.data else held_out(folder, taxonomy)
    gold = gold_indices(examples, taxonomy)
    logits = scorer.logits(examples, options.batch_size, progress=f"calibrate on {source}")
    before = probabilities(logits, taxonomy)
    labels = [example.label for example in examples]
    temperatures = calibration.fit_temperatures(by_head(logits, taxonomy), labels, taxonomy)
    scorer.root.config.temperatures = temperatures
    after = probabilities(logits, taxonomy, temperatures)
    prior = _prior(scorer, options, after, gold, examples)
    threshold = _threshold(scorer, logits, examples, gold, prior["target"])
    result = {
        "data": source,
        "n": len(examples),
        "temperatures": temperatures,
        "before": _quality(before, gold, taxonomy),
        "after": _quality(after, gold, taxonomy),
        "prior": prior,
        "threshold": threshold,
        "stored": options.store,
    }
    if options.output is not None:
        _pictures(Path(options.output), before, after, gold, taxonomy, result)
    if options.store:
        store(folder, temperatures, threshold["value"] if threshold else None)
    return result


def held_out(folder: Path, taxonomy: Taxonomy) -> Sequence[Example]:
    """The validation rows of the run whose `model/` a folder is, read and split off again as its training did.

    Raises:
        MtlReError: it is no run's, or the run had none.
    """
    path = folder.parent / "config.yaml"
    if not path.is_file():
        raise MtlReError(f"{folder}: is not the model/ of a run; name labelled rows with --data")
    rows = load_splits(parse_config(read_yaml(path)), taxonomy).valid
    if not rows:
        raise MtlReError(f"{folder.parent}: this run held no rows out; name labelled rows with --data")
    return rows


def _quality(probs: np.ndarray, gold: np.ndarray, taxonomy: Taxonomy) -> dict[str, float]:
    """NLL of the final labels, and ECE (%) of the soft label and of the coarse class."""
    groups = np.array(taxonomy.group_of_label)
    coarse = gating.coarse(torch.from_numpy(probs), taxonomy).numpy()
    picked = probs[np.arange(len(gold)), gold]
    return {
        "nll": float(-np.log(np.maximum(picked, 1e-300)).mean()),
        "ece": metrics.ece(probs.max(axis=1), probs.argmax(axis=1) == gold, BINS),
        "coarse_ece": metrics.ece(coarse.max(axis=1), coarse.argmax(axis=1) == groups[gold], BINS),
    }


def _prior(
    scorer: Scorer, options: CalibrateConfig, probs: np.ndarray, gold: np.ndarray, examples: Sequence[Example]
) -> dict[str, Any]:
    """The target prior: given, or by EM on unlabelled rows with BBSE as a cross-check."""
    trained = scorer.root.config.training_prior
    found: dict[str, Any] = {"trained": trained, "target": None}
    if options.prior != "none" and options.unlabelled is not None:
        raise MtlReError("calibrate: give --prior or --unlabelled, not both")
    if options.prior != "none":
        found |= {"target": parse_shares("--prior", options.prior), "by": "given"}
    if options.unlabelled is not None:
        from mtl_re.data.loading import load_examples

        rows, _ = load_examples(options.unlabelled, scorer.taxonomy, "error")
        logits = scorer.logits(rows, options.batch_size, progress=f"estimate the prior of {options.unlabelled}")
        scored = scorer.read(logits, rows, Reading(prior="em"))
        plain = probabilities(logits, scorer.taxonomy, scorer.temperatures)
        groups = np.array(scorer.taxonomy.group_of_label)

        def guessed(values: np.ndarray) -> np.ndarray:
            return gating.coarse(torch.from_numpy(values), scorer.taxonomy).numpy().argmax(axis=1)

        found |= {"target": scored.shares, "by": f"EM on {options.unlabelled} ({len(rows)} rows)"}
        try:  # a cross-check: where it cannot be had, the estimate stands and the reason is told
            found["bbse"] = calibration.bbse_prior(
                guessed(probs), groups[gold], guessed(plain), len(scorer.taxonomy.groups)
            )
        except MtlReError as error:
            found["bbse"] = str(error)
    return found


def _threshold(
    scorer: Scorer, logits: np.ndarray, examples: Sequence[Example], gold: np.ndarray, target: list[float] | None
) -> dict[str, Any] | None:
    """A relation threshold under the target prior, rows re-weighted to it."""
    taxonomy = scorer.taxonomy
    if taxonomy.no_relation is None:
        return None
    prior = "none" if target is None else ",".join(map(repr, target))
    scored = scorer.read(logits, examples, Reading(gate=scorer.config.gate, prior=prior))
    probs = torch.from_numpy(scored.probs)
    best = gating.labels(probs, taxonomy, scorer.config.gate, threshold=-1.0).numpy()
    weights = None if target is None else metrics.prior_weights(gold, taxonomy, target)
    fitted = calibration.fit_threshold(scored.probs, gold, best, taxonomy, weights)
    plain = metrics.micro_f1(gold, scored.labels(), taxonomy, weights)
    return {"value": fitted.value, "interval": list(fitted.interval), "f1": fitted.f1, "f1_without": plain}


def store(folder: Path, temperatures: dict[str, float], threshold: float | None) -> None:
    """Write the fits into a checkpoint's config.json, at once or not at all.

    Raises:
        MtlReError: it cannot be written.
    """
    path = folder / "config.json"
    partial = path.with_name(".partial-config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"temperatures": temperatures, "relation_threshold": threshold}
        partial.write_text(json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise MtlReError(f"{path}: cannot be written ({error.strerror})") from error


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[list[float], list[float], list[int]]:
    """Mean confidence, share right and count of each occupied bin of equal width."""
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [index == number for number in range(BINS) if (index == number).any()]
    return (
        [float(confidence[rows].mean()) for rows in bins],
        [float(right[rows].mean()) for rows in bins],
        [int(rows.sum()) for rows in bins],
    )


def _pictures(
    output: Path, before: np.ndarray, after: np.ndarray, gold: np.ndarray, taxonomy: Taxonomy, result: dict[str, Any]
) -> None:
    """calibration.json and a reliability picture before and after."""
    write_json(output / "calibration.json", result)
    with figures.picture(output / "reliability.png", 9, 4.4) as figure:
        for place, (title, probs) in enumerate({"before": before, "after": after}.items(), start=1):
            axes = figure.add_subplot(1, 2, place)
            confidence, right, counts = reliability(probs.max(axis=1), probs.argmax(axis=1) == gold)
            sizes = [12 + 300 * count / len(gold) for count in counts]
            axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
            axes.plot(confidence, right, color="#0072b2", linewidth=1)
            axes.scatter(confidence, right, s=sizes, color="#0072b2", alpha=0.7)
            quality = result[title]
            axes.set_title(f"{title} calibration: ECE {quality['ece']:.1f} %, NLL {quality['nll']:.3f}", fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the predicted label", ylabel="share right")
            axes.set_aspect("equal")
