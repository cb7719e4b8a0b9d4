"""`mtl-re calibrate`: fit on held-out rows, store in the checkpoint, compare before and after.

Temperatures (one a head) and a relation threshold are fitted on labelled rows; a target prior is given, or estimated on
unlabelled rows of the domain in which the model will be used. Temperatures come first, for EM presumes calibrated
posteriors (Alexandari et al. 2020, who recommend calibration with a bias for each class; one temperature has none). On
our dev-open that did not help: EM believed 69 % no_relation without temperatures and 73 % with them, where it has 60 %
(experiments/results/2026-11-24_recommended). Stored in the checkpoint's `config.json`: temperatures (applied from then
on, and named by `evaluate`) and the threshold with the prior it was fitted under (both applied where `--threshold
stored` asks for it). With `--precision`, also a threshold for each relation, for the triples of `mtl-re extract
--threshold stored`. The rows given here must not be scored afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mtl_re import figures
from mtl_re.config import CalibrateConfig, parse_config, parse_shares
from mtl_re.data.splits import check_unchanged, load_splits
from mtl_re.errors import MtlReError, tell
from mtl_re.files import read_yaml, whole_file, write_json
from mtl_re.model.network import THRESHOLD_KEYS, checkpoint_folder, split_heads
from mtl_re.scoring import calibration_fits, gating, metrics
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoded, Decoding, check_prior
from mtl_re.scoring.evaluation import gold_indices, labelled_examples
from mtl_re.taxonomy import IGNORE

if TYPE_CHECKING:
    from mtl_re.data.validation import Example


def calibrate(ckpt: str, options: CalibrateConfig) -> dict[str, Any]:
    """Fit, report, and store the result unless `options.store` is false.

    Raises:
        MtlReError: there are no rows to fit on, or the checkpoint cannot be written, or is an export whose other files
            would keep the old temperatures.
    """
    folder = checkpoint_folder(ckpt)
    model = ComposedModel.load(str(folder))
    model.root.config.temperatures = {}
    taxonomy = model.taxonomy
    check_prior(options.prior, taxonomy, model.root.config.training_prior)
    if options.store:
        _refuse_export(folder)
    source = options.data or f"the rows that {folder.parent} held out"
    if options.data:
        examples = labelled_examples(options.data, model, options.on_bad_row, options)
    else:
        examples = held_out(folder, model)
    gold = gold_indices(examples, taxonomy)
    logits = model.logits(examples, options.batch_size, progress=f"calibrate on {source}")
    before = model.decode(logits, examples, Decoding())
    parts = {name: part.numpy() for name, part in split_heads(logits, taxonomy).items()}
    labels = [example.label for example in examples]
    temperatures = calibration_fits.fit_temperatures(parts, labels, taxonomy)
    targets = [taxonomy.targets(label) for label in labels]
    rows = {name: sum(row[name] != IGNORE for row in targets) for name in temperatures}
    for name in (name for name, value in temperatures.items() if value == 1):
        what = f"its {rows[name]:,} labelled rows show no other (at least {calibration_fits.SUPPORT} are needed)"
        tell(f"the head {name} keeps temperature 1: {what}")
    model.root.config.temperatures = temperatures
    after = model.decode(logits, examples, Decoding())
    prior = _prior(model, options, after, gold)
    threshold = _threshold(model, logits, examples, gold, prior["target"])
    result = {
        "data": source,
        "n": len(examples),
        "temperatures": temperatures,
        "rows_by_head": rows,
        "before": _quality(before, gold),
        "after": _quality(after, gold),
        "prior": prior,
        "threshold": threshold,
        "stored": options.store,
    }
    precision = None
    if options.precision is not None:
        precision = _precision(model, logits, examples, gold, prior["target"], options.precision)
        result["precision"] = precision
        _tell_precision(precision)
    if options.output is not None:
        _pictures(Path(options.output), before, after, gold, result)
    if options.store:
        store(folder, temperatures, threshold, precision)
    return result


def _refuse_export(folder: Path) -> None:
    """Raise MtlReError for an exported directory: its graph and its card state the temperatures that it has now."""
    if stale := [path.name for path in (*folder.glob("*.onnx"), *folder.glob("export.json"))]:
        what = f"{folder} is an export, whose {', '.join(stale)} would keep the old temperatures"
        raise MtlReError(f"{what}; calibrate the run and export it again, or give --store false")


def held_out(folder: Path, model: ComposedModel) -> Sequence[Example]:
    """Return the validation rows of the run whose `model/` a folder is: read, split off and rejected again as its
    training did.

    Raises:
        MtlReError: the folder is not the model of a run, the run held no rows out, or the files that it split have
            changed since: rows that it was trained on would be among those that it held out.
    """
    path = folder.parent / "config.yaml"
    if not path.is_file():
        raise MtlReError(f"{folder}: is not the model/ of a run; name labelled rows with --data")
    config = parse_config(read_yaml(path))
    check_unchanged(folder.parent)
    rows = load_splits(config, model.taxonomy).valid
    if config.data.on_bad_row == "skip":
        rows = list(model.usable(rows, lambda example, error: None))
    if not rows:
        raise MtlReError(f"{folder.parent}: this run held no rows out; name labelled rows with --data")
    return rows


def _quality(decoded: Decoded, gold: np.ndarray) -> dict[str, float]:
    """Return the NLL of the final labels, and the ECE (%) of the soft label and of the coarse class."""
    probs, coarse = decoded.probs.numpy(), _coarse(decoded)
    groups = np.array(decoded.taxonomy.group_of_label)
    picked = probs[np.arange(len(gold)), gold]
    return {
        "nll": float(-np.log(np.maximum(picked, 1e-300)).mean()),
        "ece": metrics.ece(probs.max(axis=1), probs.argmax(axis=1) == gold),
        "coarse_ece": metrics.ece(coarse.max(axis=1), coarse.argmax(axis=1) == groups[gold]),
    }


def _coarse(decoded: Decoded) -> np.ndarray:
    """Return (rows, groups) probabilities of the coarse classes."""
    return gating.coarse(decoded.probs, decoded.taxonomy).numpy()


def _prior(model: ComposedModel, options: CalibrateConfig, decoded: Decoded, gold: np.ndarray) -> dict[str, Any]:
    """Return the target prior: given, or by EM on unlabelled rows with BBSE as a cross-check."""
    prior: dict[str, Any] = {"trained": model.root.config.training_prior, "target": None}
    if options.prior != "none" and options.unlabelled is not None:
        raise MtlReError("calibrate: give --prior or --unlabelled, not both")
    if options.prior != "none":
        prior |= {"target": parse_shares("--prior", options.prior), "by": "given"}
    if options.unlabelled is not None:
        from mtl_re.data.loading import load_examples

        rows, _ = load_examples(options.unlabelled, model.taxonomy, "error", options)
        logits = model.logits(rows, options.batch_size, progress=f"estimate the prior of {options.unlabelled}")
        target = model.decode(logits, rows, Decoding(prior="em")).shares
        prior |= {"target": target, "by": f"EM on {options.unlabelled} ({len(rows)} rows)"}
        groups = np.array(model.taxonomy.group_of_label)
        predicted, unlabelled = (
            _coarse(one).argmax(axis=1) for one in (decoded, model.decode(logits, rows, Decoding()))
        )
        try:  # a cross-check: where it is impossible, the estimate stands and the reason is reported
            prior["bbse"] = calibration_fits.bbse_prior(predicted, groups[gold], unlabelled, len(model.taxonomy.groups))
        except MtlReError as error:
            prior["bbse"] = str(error)
    return prior


def _threshold(
    model: ComposedModel, logits: Tensor, examples: Sequence[Example], gold: np.ndarray, target: list[float] | None
) -> dict[str, Any] | None:
    """Return a relation threshold under the target prior, rows re-weighted to it, and that prior (empty: none)."""
    taxonomy, gate = model.taxonomy, model.config.gate
    if taxonomy.no_relation is None:
        return None
    prior = "none" if target is None else ",".join(map(repr, target))
    decoded = model.decode(logits, examples, Decoding(gate, prior))
    best = gating.labels(decoded.probs, taxonomy, gate, threshold=-1.0).numpy()
    weights = None if target is None else metrics.prior_weights(gold, taxonomy, target)
    fitted = calibration_fits.fit_threshold(decoded.probs.numpy(), gold, best, taxonomy, weights)
    plain = metrics.micro_f1(gold, decoded.labels.numpy(), taxonomy, weights)
    scores = {"f1": fitted.f1, "f1_without": plain}
    return {"value": fitted.value, "interval": list(fitted.interval), **scores, "prior": target or []}


def _precision(
    model: ComposedModel,
    logits: Tensor,
    examples: Sequence[Example],
    gold: np.ndarray,
    target: list[float] | None,
    wanted: float,
) -> dict[str, Any]:
    """Return a threshold for each relation under the target prior, rows re-weighted to it, and that prior.

    The triples are those of `mtl-re extract`: the most probable relation of each row, with its probability as score.
    """
    taxonomy = model.taxonomy
    prior = "none" if target is None else ",".join(map(repr, target))
    decoded = model.decode(logits, examples, Decoding(prior=prior))
    best, scores = (one.numpy() for one in gating.best_relation(decoded.probs, taxonomy))
    weights = None if target is None else metrics.prior_weights(gold, taxonomy, target)
    fitted = calibration_fits.fit_relation_thresholds(best, scores, gold, taxonomy, wanted, weights)
    return {
        "target": wanted,
        "confidence": calibration_fits.CONFIDENCE,
        "prior": target or [],
        "pooled": fitted.pooled,
        "relations": {label: one._asdict() for label, one in fitted.relations.items()},
    }


def _tell_precision(precision: dict[str, Any]) -> None:
    """Say which relations the fit of their thresholds speaks of, and which it does not."""
    relations = precision["relations"]
    by = {kind: [label for label, one in relations.items() if one["by"] == kind] for kind in ("own", "pooled", "never")}
    target, support = precision["target"], calibration_fits.SUPPORT
    tell(
        f"--precision {target:g}: {len(by['own'])} of {len(relations)} relations reach it on their own rows; "
        f"{len(by['pooled'])} with fewer than {support} rows get the threshold of all relations together, which "
        "promises nothing of each"
    )
    if by["never"]:
        which = "any relation" if len(by["never"]) == len(relations) else ", ".join(by["never"])
        cure = "no triple of these will be given; more labelled rows (--data) or a lower target may show it"
        tell(f"--precision {target:g} is not shown for {which}: {cure}")


def store(
    folder: Path,
    temperatures: dict[str, float],
    threshold: dict[str, Any] | None,
    precision: dict[str, Any] | None = None,
) -> None:
    """Write the fits into a checkpoint's config.json, at once or not at all.

    Args:
        threshold: `value`, and `prior`: the shares under which it was fitted.
        precision: `target`, `prior`, and `relations`: relation → `value`, its threshold (None: those that an earlier
            fit stored are removed, because its temperatures are no longer there).

    Raises:
        MtlReError: the file cannot be written.
    """
    path = folder / "config.json"
    with whole_file(path) as partial:
        config = json.loads(path.read_text(encoding="utf-8"))
        value, prior = (threshold["value"], threshold["prior"]) if threshold else (None, None)
        config |= {"temperatures": temperatures, "relation_threshold": value, "relation_threshold_prior": prior}
        for key in THRESHOLD_KEYS:
            config.pop(key, None)
        if precision is not None:
            values = {label: one["value"] for label, one in precision["relations"].items()}
            config |= dict(zip(THRESHOLD_KEYS, (values, precision["prior"], precision["target"]), strict=True))
        partial.write_text(json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[list[float], list[float], list[int]]:
    """Return the mean confidence, the share of right rows and the count of each occupied bin, the bins of the ECE."""
    index = metrics.confidence_bins(confidence)
    bins = [index == number for number in np.unique(index)]
    return (
        [float(confidence[rows].mean()) for rows in bins],
        [float(right[rows].mean()) for rows in bins],
        [int(rows.sum()) for rows in bins],
    )


def _pictures(output: Path, before: Decoded, after: Decoded, gold: np.ndarray, result: dict[str, Any]) -> None:
    """Write calibration.json and a reliability picture before and after."""
    write_json(output / "calibration.json", result)
    with figures.picture(output / "reliability.png", 9, 4.4) as figure:
        for number, (title, decoded) in enumerate({"before": before, "after": after}.items(), start=1):
            axes, probs = figure.add_subplot(1, 2, number), decoded.probs.numpy()
            confidence, right, counts = reliability(probs.max(axis=1), probs.argmax(axis=1) == gold)
            sizes = [12 + 300 * count / len(gold) for count in counts]
            axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
            axes.plot(confidence, right, color="#0072b2", linewidth=1)
            axes.scatter(confidence, right, s=sizes, color="#0072b2", alpha=0.7)
            quality = result[title]
            axes.set_title(f"{title} calibration: ECE {quality['ece']:.1f} %, NLL {quality['nll']:.3f}", fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the predicted label", ylabel="share right")
            axes.set_aspect("equal")
