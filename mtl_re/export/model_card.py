"""The model card, README.md of an exported directory: what the model is, its scores, how to use it, and its limits.

Enters: the model, the export's report, and what is known of its training and scores. Leaves: markdown with the YAML
metadata that the hub reads (`model-index`). A score that was not measured is reported as missing, never guessed. File
names appear in the card, paths of this machine do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl_re import __version__
from mtl_re.config import ExportConfig
from mtl_re.errors import MtlReError
from mtl_re.files import read_json, read_yaml
from mtl_re.model.network import MtlReModel
from mtl_re.training.run_report import HIGHLIGHTS

HUB_METRICS = {"micro_f1": ("f1", "micro-F1 without no_relation"), "auprc": ("auprc", "AUPRC, mean over labels")}
"""Key of evaluate's JSON → (the hub's metric type, the name shown)."""
KLUE_LICENCE, UNKNOWN_LICENCE = "cc-by-sa-4.0", "other"
"""Licences of the weights. What other training data allows is unknown, so it is `other` unless the user names one."""


@dataclass
class Known:
    """What is known of a model besides its weights.

    Attributes:
        train: the manifest's entry for the training rows. options: resolved training options. local_encoder: whether
            the encoder was a directory where the model was trained; it may have been moved since.
        scores: pairs of a description of the rows and evaluate's JSON. cooccurrence: `mtl-re cooccurrence`'s JSON.
        licence: of the weights, if the user named one.
    """

    train: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    local_encoder: bool = False
    scores: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cooccurrence: dict[str, Any] | None = None
    licence: str | None = None

    @property
    def klue(self) -> bool:
        """Whether the name of the training file contains `klue`."""
        return "klue" in public_name(str(self.train.get("source", ""))).lower()


def gather(run: Path | None, averaged: Sequence[int], options: ExportConfig) -> Known:
    """Collect what the run directory and the options say of a model.

    Args:
        averaged: steps of the checkpoints whose weights were averaged, if they were.

    Raises:
        MtlReError: a file cannot be read, or is not of the kind that its option takes.
    """
    known = Known(licence=options.licence)
    if options.metrics is not None:
        rows = options.metrics_data or Path(options.metrics).name
        known.scores.append((rows, _read_numbers(options.metrics, "--metrics", ("n", "micro_f1", "auprc"))))
    if run is not None:
        manifest, config, valid = (run / name for name in ("manifest.json", "config.yaml", "valid_metrics.json"))
        if manifest.is_file():
            about = read_json(manifest).get("data", {})
            known.train, known.local_encoder = about.get("train", {}), about.get("local_encoder") is True
        if config.is_file():
            known.options = read_yaml(config)
        if valid.is_file() and not averaged:  # the scores of the best model say nothing of an average
            known.scores.append(("validation rows of the run, on which this model was chosen", read_json(valid)))
    if options.cooccurrence is not None:
        known.cooccurrence = _read_numbers(options.cooccurrence, "--cooccurrence", ("rate", "low", "high", "n"))
        if not 0 <= known.cooccurrence["low"] <= known.cooccurrence["rate"] <= known.cooccurrence["high"] <= 1:
            raise MtlReError(f"--cooccurrence: {options.cooccurrence}: 'rate' and its interval must be shares of 1")
    return known


def _read_numbers(path: str, option: str, keys: Sequence[str]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise MtlReError(f"{option}: {path}: no such file")
    values = read_json(Path(path))
    if missing := [key for key in keys if not isinstance(values.get(key), int | float)]:
        raise MtlReError(f"{option}: {path} has no number under {', '.join(map(repr, missing))}; is it the right file?")
    return values


def public_name(spec: str) -> str:
    """Return a DATA or an encoder without its directory on this machine; hub ids and `sample:` stay as they are."""
    local = Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1
    return Path(spec).name if local and not spec.startswith(("hub:", "sample:")) else spec


# ---- the card ----------------------------------------------------------------------------------------------------


def render_card(model: MtlReModel, report: Mapping[str, Any], known: Known) -> str:
    """Return the whole card, with the YAML metadata first."""
    from huggingface_hub import ModelCard

    parts = [
        _what(model, known),
        _scores(model, known, report),
        _use(model, report),
        _limits(model, known),
        _training(model, report, known),
        _licence(known),
    ]
    text = f"---\n{_head(model, known, report).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    return str(ModelCard(text))  # parses the metadata, so that a fault shows here and not on the hub


def _head(model: MtlReModel, known: Known, report: Mapping[str, Any]) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Relation Extraction",
            dataset_type="klue" if "klue" in rows.lower() else "mtl-re",
            dataset_name=rows,
            metric_type=kind,
            metric_name=title,
            metric_value=round(float(values[key]), 2),
        )
        for rows, values in known.scores
        for key, (kind, title) in HUB_METRICS.items()
        if values.get(key) is not None
    ]
    kinds = [] if len(model.taxonomy.heads) == 1 else ["multi-task", "hierarchical"]
    return ModelCardData(
        language="ko" if known.klue else None,
        license=_weights_licence(known),
        library_name="transformers",
        tags=["relation-extraction", *kinds, *(["onnx"] if "onnx" in report else [])],
        datasets=["klue"] if known.klue else None,
        base_model=_hub_encoder(known),
        model_name="mtl-re relation extraction",
        eval_results=results or None,
    )


def _weights_licence(known: Known) -> str:
    if known.licence is not None:
        return known.licence
    return KLUE_LICENCE if known.klue else UNKNOWN_LICENCE


def _hub_encoder(known: Known) -> str | None:
    """Return the encoder's hub id, or None if it is a local directory."""
    name = str(known.options.get("model", {}).get("encoder", ""))
    if known.local_encoder:
        return None
    return name if name.count("/") == 1 and not name.startswith(".") and public_name(name) == name else None


def _what(model: MtlReModel, known: Known) -> str:
    taxonomy = model.taxonomy
    heads = ", ".join(f"`{head.name}` ({len(head.classes)})" for head in taxonomy.heads)
    encoder = public_name(str(known.options.get("model", {}).get("encoder", model.encoder.config.model_type)))
    encoder = Path(encoder).name if known.local_encoder else encoder
    title, trained = (
        "# Relation extraction with one encoder and gated heads",
        "and the heads {heads} were trained jointly",
    )
    probabilities = f"the product p(coarse)·p(fine | coarse); the `{model.config.gate}` gate chooses the label"
    if len(taxonomy.heads) == 1:
        title, trained = "# Relation extraction with one encoder and a flat head", "and one head, {heads}, were trained"
        probabilities = "one softmax over all labels; the most probable label is chosen"
    return (
        f"{title}\n\n"
        f"From a sentence, a subject and an object to one of {len(taxonomy.labels)} labels. One shared encoder "
        f"({encoder}) {trained.format(heads=heads)} with mtl-re {__version__}. Probabilities are {probabilities}.\n\n"
        f"Labels, in the order of the probabilities: {', '.join(f'`{label}`' for label in taxonomy.labels)}."
    )


def _scores(model: MtlReModel, known: Known, report: Mapping[str, Any]) -> str:
    lines = ["## Scores", ""]
    if known.scores:
        lines += ["| rows | n | micro-F1 | AUPRC | decoding |", "|---|---|---|---|---|"]
        lines += [_score_row(rows, values) for rows, values in known.scores]
        left_out = "" if model.taxonomy.no_relation is None else f"; micro-F1 excludes `{model.taxonomy.no_relation}`"
        lines += ["", f"In %, with 95 % bootstrap intervals over the rows{left_out}."]
    else:
        lines.append("Not measured for these weights (`mtl-re evaluate`, then `mtl-re export --metrics`).")
    if "onnx" in report:
        check = report["onnx"]["check"]
        lines += [
            "",
            f"`model.onnx` compared with PyTorch on {check['rows']} rows of {report['check_data']}: largest difference "
            f"of a probability {check['largest_probability_difference']:.1e}, equal labels "
            f"{100 * check['equal_labels']:.2f} %.",
        ]
    if "int8" in report:
        lines += ["", _int8(report["int8"], report["check_data"])]
    return "\n".join(lines)


def _score_row(rows: str, values: Mapping[str, Any]) -> str:
    cells = []
    for key in HUB_METRICS:
        interval = (values.get("ci") or {}).get(key)
        shown = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
        cells.append("–" if values.get(key) is None else f"{values[key]:.1f}{shown}")
    applied = [f"{values.get('gate_mode', '?')} gate", f"prior {values.get('prior', 'none')}"]
    if values.get("restrict", "none") != "none":
        applied.append(f"restricted by {values['restrict']}")
    if values.get("threshold") is not None:
        applied.append(f"threshold {values['threshold']:.3g}")
    if temperatures := values.get("temperatures"):
        applied.append("temperatures " + " ".join(f"{name} {value:.3g}" for name, value in temperatures.items()))
    decoding = ", ".join(applied)
    return f"| {_cell(rows)} | {values.get('n', '–')} | {' | '.join(cells)} | {_cell(decoding)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _int8(result: Mapping[str, Any], rows: str) -> str:
    cost = result["tried"][result["recipe"]]
    over = f" **Over the bounds, and kept with `--force`: {', '.join(result['over'])}.**" if result["over"] else ""
    scores = ", ".join(
        f"{name} {cost[key]['before']:.2f} → {cost[key]['after']:.2f} "
        f"(paired 95 % interval of the difference [{cost[key]['ci'][0]:.2f}, {cost[key]['ci'][1]:.2f}])"
        for key, name in (("micro_f1", "micro-F1"), ("auprc", "AUPRC"))
    )
    return (
        f"`model.int8.onnx` ({result['recipe']} in int8) compared with fp32 on {result['rows']} rows of {rows}: "
        f"{scores}, largest change of a probability {cost['largest_drift']:.3f}, "
        f"changed labels {cost['changed_labels']:.2f} %.{over}"
    )


def _use(model: MtlReModel, report: Mapping[str, Any]) -> str:
    """Return card_use.md, without the part about a graph where there is none."""
    text = Path(__file__).with_name("card_use.md").read_text(encoding="utf-8").strip()
    start, _, rest = text.partition("<!-- onnx -->\n")
    graph, _, end = rest.partition("\n<!-- /onnx -->\n\n")
    return f"{start}{graph}\n\n{end}" if "onnx" in report else start + end


def _limits(model: MtlReModel, known: Known) -> str:
    shares = zip(model.taxonomy.groups, model.config.training_prior or [], strict=False)
    prior = ", ".join(f"{name} {share:.2f}" for name, share in shares) or "not recorded"
    klue_shift = "KLUE-RE's dev set has twice the share of `no_relation` of its training set. " if known.klue else ""
    origin = "KLUE-RE's sentences come from encyclopedia and news articles. " if known.klue else ""
    return f"""## Limits

* **Prior shift.** Prior of the coarse classes in training: {prior} (their shares of the rows, as the \
loss weights them). {klue_shift}Where shares differ, probabilities \
are miscalibrated, and text with more unrelated pairs gets too many relations. mtl-re can shift the prior (`--prior`).
* **False relations.** {_cooccurrence(known.cooccurrence)}{_precision(model)}
* Entities must be given, with types that occur in training ({", ".join(model.config.entity_types) or "any"}); the \
model does not find them. Input of more than {model.config.max_input_length} tokens is cut around the two entities.
* {origin}Text of other kinds than the training rows was not measured."""


def _cooccurrence(values: Mapping[str, Any] | None) -> str:
    what = "The model may relate two entities that only occur in the same sentence"
    if values is None:
        return f"{what}; the rate was not measured for this export (`mtl-re cooccurrence`)."
    threshold = values.get("threshold")
    at = "as predicted" if threshold is None else f"at threshold {threshold}"
    rate, low, high = (100 * values[key] for key in ("rate", "low", "high"))
    return (
        f"{what}: {rate:.1f} % [{low:.1f}, {high:.1f}] of {values['n']} annotated unrelated pairs, {at}. "
        "Annotated pairs are a selected sample; arbitrary pairs of running text may differ."
    )


def _precision(model: MtlReModel) -> str:
    """Return what to say of thresholds that were fitted for single relations (nothing where there are none)."""
    config = model.config
    if config.relation_thresholds is None or config.precision_target is None:
        return ""
    shares = ", ".join(f"{share:.2f}" for share in config.relation_thresholds_prior or []) or "those of training"
    given = sum(value is not None for value in config.relation_thresholds.values())
    return (
        f" Thresholds fitted to a precision of {config.precision_target:g} on held-out rows (coarse shares: {shares}) "
        f"are stored for {given} of {len(config.relation_thresholds)} relations; the others are never given by "
        "`mtl-re extract --threshold stored`."
    )


def _training(model: MtlReModel, report: Mapping[str, Any], known: Known) -> str:
    lines = ["## Training", ""]
    if known.train:
        lines.append(f"Rows: {known.train.get('rows', '?')} of {public_name(str(known.train.get('source', '?')))}.")
    if steps := report["averaged_steps"]:
        lines.append(f"Weights: the mean of the training checkpoints of steps {', '.join(map(str, steps))}.")
    lines.append(
        f"{report['parameters']:,} parameters; markers `{model.config.markers}`, pooling `{model.config.pooling}`, "
        f"temperatures {json.dumps(model.config.temperatures) if model.config.temperatures else 'none'}."
    )
    settings = [
        f"| `{group}.{key}` | {value} |"
        for group in ("loss", "optim", "train")
        for key, value in known.options.get(group, {}).items()
        if key in HIGHLIGHTS[group]
    ]
    return "\n".join([*lines, *(["", "| option | value |", "|---|---|", *settings] if settings else [])])


def _licence(known: Known) -> str:
    if known.klue:
        data = (
            "Trained on KLUE-RE (Park et al. 2021, [arXiv 2105.09680](https://arxiv.org/abs/2105.09680)), which is "
            "CC BY-SA 4.0; give credit to it where you use this model."
        )
    else:
        data = "The training rows have their own licence; give credit to KLUE-RE (CC BY-SA 4.0) if they are from it."
    weights = "" if known.licence is None else f"Weights: {known.licence}. "
    return f"## Licence\n\nThe code in this directory is Apache-2.0. {weights}{data}"
