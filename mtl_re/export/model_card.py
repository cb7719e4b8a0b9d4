"""The README.md of an exported directory: what the model is, how good, how to use it, and where it fails.

Enters: the model, the export's report, and what is known of its training and scores. Leaves: markdown with the YAML
head that the hub reads (`model-index`). A figure that was not measured is said to be missing, never guessed; no path
of the machine goes in, only names of files.
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
from mtl_re.model.network import MtlReModel

SCORES = {"micro_f1": ("f1", "micro-F1 without no_relation"), "auprc": ("auprc", "AUPRC, mean over labels")}
"""Key of evaluate's JSON → the hub's metric type, and its name."""
KLUE_LICENCE, UNKNOWN_LICENCE = "cc-by-sa-4.0", "other"
"""Licences of weights. What the training rows allow is not ours to guess, so without a word it is `other`."""


@dataclass
class Known:
    """What is known of a model besides its weights.

    Attributes:
        train: the manifest's entry for the training rows. options: resolved training options.
        scores: [rows in words, evaluate's JSON]. cooccurrence: `mtl-re cooccurrence`'s JSON. licence: as the user named
            it.
    """

    train: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    scores: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cooccurrence: dict[str, Any] | None = None
    licence: str | None = None

    @property
    def klue(self) -> bool:
        """Whether the training file's name says KLUE."""
        return "klue" in public_name(str(self.train.get("source", ""))).lower()


def gather(run: Path | None, averaged: Sequence[int], options: ExportConfig) -> Known:
    """Collect what the run directory and the options tell.

    Raises:
        MtlReError: a file that was named cannot be read, or is of another kind.
    """
    known = Known(licence=options.licence)
    if run is not None:
        known.train = _json(run / "manifest.json").get("data", {}).get("train", {})
        known.options = _training_options(run / "config.yaml")
    if options.metrics is not None:
        rows = options.metrics_data or Path(options.metrics).name
        known.scores.append((rows, _of_kind(options.metrics, "--metrics", ("n", "micro_f1", "auprc"))))
    valid = run / "valid_metrics.json" if run is not None else None
    if valid is not None and valid.is_file() and not averaged:  # these scores are the best model's, not the mean's
        known.scores.append(("validation rows of the run, on which this model was chosen", _json(valid)))
    if options.cooccurrence is not None:
        known.cooccurrence = _of_kind(options.cooccurrence, "--cooccurrence", ("rate", "low", "high", "n"))
        if not 0 <= known.cooccurrence["low"] <= known.cooccurrence["rate"] <= known.cooccurrence["high"] <= 1:
            raise MtlReError(f"--cooccurrence: {options.cooccurrence}: 'rate' and its interval must be shares of 1")
    return known


def _of_kind(path: str, option: str, keys: Sequence[str]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise MtlReError(f"{option}: {path}: no such file")
    values = _json(Path(path))
    if missing := [key for key in keys if not isinstance(values.get(key), int | float)]:
        raise MtlReError(f"{option}: {path} has no number under {', '.join(map(repr, missing))}; is it the right file?")
    return values


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MtlReError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise MtlReError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _training_options(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    import yaml

    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise MtlReError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error


def public_name(spec: str) -> str:
    """A DATA or an encoder without the place where it lies on this machine; hub ids and `sample:` as they are."""
    local = Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1
    return Path(spec).name if local and not spec.startswith(("hub:", "sample:")) else spec


# ---- the card ----------------------------------------------------------------------------------------------------


def render(model: MtlReModel, report: Mapping[str, Any], known: Known) -> str:
    """The whole card, YAML head first."""
    from huggingface_hub import ModelCard

    parts = [
        _what(model, known),
        _scores(known, report),
        _use(model, report),
        _limits(model, known),
        _training(model, report, known),
        _licence(known),
    ]
    text = f"---\n{_head(known, report).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    return str(ModelCard(text))  # parses the head, so that a broken one fails here and not on the hub


def _head(known: Known, report: Mapping[str, Any]) -> Any:
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
        for key, (kind, title) in SCORES.items()
        if values.get(key) is not None
    ]
    return ModelCardData(
        language="ko",
        license=_weights_licence(known),
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["relation-extraction", "multi-task", "hierarchical", *(["onnx"] if "onnx" in report else [])],
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
    """The encoder's hub id, where it is one."""
    name = str(known.options.get("model", {}).get("encoder", ""))
    return name if name.count("/") == 1 and not name.startswith(".") and public_name(name) == name else None


def _what(model: MtlReModel, known: Known) -> str:
    taxonomy = model.taxonomy
    heads = ", ".join(f"`{head.name}` ({len(head.classes)})" for head in taxonomy.heads)
    encoder = public_name(str(known.options.get("model", {}).get("encoder", model.encoder.config.model_type)))
    return (
        "# Relation extraction with one encoder and gated heads\n\n"
        f"A sentence, a subject and an object → one of {len(taxonomy.labels)} labels. One shared encoder ({encoder}), "
        f"heads {heads}, trained jointly with mtl-re {__version__}. Probabilities "
        "are the product p(coarse)·p(fine | coarse); the label is read off by the "
        f"`{model.config.gate}` gate.\n\n"
        f"Labels, in the order of the probabilities: {', '.join(f'`{label}`' for label in taxonomy.labels)}."
    )


def _scores(known: Known, report: Mapping[str, Any]) -> str:
    lines = ["## Scores", ""]
    if known.scores:
        lines += ["| rows | n | micro-F1 | AUPRC | read as |", "|---|---|---|---|---|"]
        lines += [_score_row(rows, values) for rows, values in known.scores]
        lines += ["", "In %, with 95 % bootstrap intervals over the rows; micro-F1 leaves `no_relation` out."]
    else:
        lines.append("Not measured for these weights (`mtl-re evaluate`, then `mtl-re export --metrics`).")
    if "onnx" in report:
        check = report["onnx"]["check"]
        lines += [
            "",
            f"`model.onnx` against PyTorch on {check['rows']} rows of {report['check_data']}: largest difference of a "
            f"probability {check['largest_probability_difference']:.1e}, equal labels "
            f"{100 * check['equal_labels']:.2f} %.",
        ]
    if "int8" in report:
        lines += ["", _int8(report["int8"], report["check_data"])]
    return "\n".join(lines)


def _score_row(rows: str, values: Mapping[str, Any]) -> str:
    cells = []
    for key in SCORES:
        interval = (values.get("ci") or {}).get(key)
        shown = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
        cells.append("–" if values.get(key) is None else f"{values[key]:.1f}{shown}")
    reading = f"{values.get('gate_mode', '?')} gate, prior {values.get('prior', 'none')}"
    return f"| {_cell(rows)} | {values.get('n', '–')} | {' | '.join(cells)} | {_cell(reading)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _int8(result: Mapping[str, Any], rows: str) -> str:
    cost = result["tried"][result["recipe"]]
    over = f" **Over the bounds and kept by force: {', '.join(result['over'])}.**" if result["over"] else ""
    scores = ", ".join(
        f"{name} {cost[key]['before']:.2f} → {cost[key]['after']:.2f} "
        f"(paired 95 % interval of the difference [{cost[key]['ci'][0]:.2f}, {cost[key]['ci'][1]:.2f}])"
        for key, name in (("micro_f1", "micro-F1"), ("auprc", "AUPRC"))
    )
    return (
        f"`model.int8.onnx` ({result['recipe']} in int8) against fp32 on {result['rows']} rows of {rows}: {scores}, "
        f"largest drift of a probability {cost['largest_drift']:.3f}, "
        f"changed labels {cost['changed_labels']:.2f} %.{over}"
    )


def _use(model: MtlReModel, report: Mapping[str, Any]) -> str:
    parts = [_TORCH]
    if "onnx" in report:
        parts.append(_ONNX)
    return "## Use\n\n" + "\n\n".join([*parts, _OURS])


_TORCH = """With torch and transformers, without mtl-re (`DIR` is this directory):

```python
import sys

import torch
from transformers import AutoModel

sys.path.insert(0, "DIR")
from mtl_re_input import InputMaker

model = AutoModel.from_pretrained("DIR", trust_remote_code=True).eval()
maker = InputMaker("DIR")
for rows, batch in maker.batches(maker.read("rows.jsonl"), 32, model.takes_types):
    with torch.inference_mode():
        logits = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    probabilities, labels = model.answer(logits)
    print([(row.id, model.config.id2label[label]) for row, label in zip(rows, labels.tolist())])
```

A row is KLUE-RE's: `sentence`, and `subject_entity` and `object_entity` with `word`, `start_idx`, `end_idx` (inclusive
characters) and `type`. `AutoTokenizer.from_pretrained("DIR", trust_remote_code=True)` gives the tokenizer alone."""
_ONNX = """With onnxruntime, tokenizers and numpy alone: `python predict_onnx.py rows.jsonl > predictions.jsonl`. The
graph goes from token ids to `probabilities`, `coarse` and `label`; what it applies on the way stands in
`export.json`."""
_OURS = """With mtl-re: `Predictor.from_pretrained("DIR").predict(rows)`, or `mtl-re predict DIR --data rows.json
--output predictions.jsonl`; `backend="onnx"` runs the graph."""


def _limits(model: MtlReModel, known: Known) -> str:
    prior = model.config.training_prior
    groups = list(model.taxonomy.groups)
    shares = (
        ", ".join(f"{name} {share:.2f}" for name, share in zip(groups, prior or [], strict=False)) or "not recorded"
    )
    klue = "KLUE-RE's dev holds twice the share of `no_relation` that its train holds. " if known.klue else ""
    lines = [
        "## Limits",
        "",
        f"* **Prior shift.** The prior of the coarse classes learnt in training: {shares}. {klue}Where a text's shares "
        "differ, probabilities are off, and where it holds more unrelated pairs, relations are over-predicted. "
        "mtl-re can shift the prior (`--prior`).",
        f"* **False relations.** {_cooccurrence(known.cooccurrence)}",
        "* Entities must be given, with types that training saw "
        f"({', '.join(model.config.entity_types) or 'any'}); nothing finds them. Input beyond "
        f"{model.config.max_input_length} tokens is cut around the two entities.",
        "* Labels and sentences are those of news and encyclopedia text; other registers were not measured.",
    ]
    return "\n".join(lines)


def _cooccurrence(values: Mapping[str, Any] | None) -> str:
    what = "Two entities that merely stand in one sentence may come out related"
    if values is None:
        return f"{what}; the rate was not measured for this export (`mtl-re cooccurrence`)."
    threshold = values.get("threshold")
    at = "at the gate" if threshold is None else f"at threshold {threshold}"
    rate, low, high = (100 * values[key] for key in ("rate", "low", "high"))
    return (
        f"{what}: {rate:.1f} % [{low:.1f}, {high:.1f}] of {values['n']} annotated unrelated pairs do, {at}. "
        "Annotated pairs are a selected sample; arbitrary pairs of running text may differ."
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
    groups = {name: known.options.get(name, {}) for name in ("loss", "optim", "train")}
    settings = {f"{name}.{key}": value for name, values in groups.items() for key, value in values.items()}
    chosen = {key: value for key, value in settings.items() if key in _SHOWN}
    if chosen:
        lines += ["", "| option | value |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in chosen.items())]
    return "\n".join(lines)


_SHOWN = frozenset(
    {
        *(f"loss.{name}" for name in ("kind", "reduction", "weighting", "weights", "label_smoothing")),
        *(f"optim.{name}" for name in ("lr", "head_lr", "weight_decay", "warmup", "schedule", "layer_decay")),
        *(f"train.{name}" for name in ("epochs", "max_steps", "batch_size", "accumulate", "precision", "seed")),
    }
)


def _licence(known: Known) -> str:
    if known.klue:
        data = (
            "Trained on KLUE-RE (Park et al. 2021, [arXiv 2105.09680](https://arxiv.org/abs/2105.09680)), which is "
            "CC BY-SA 4.0; name it where you use this model."
        )
    else:
        data = "The training rows have their own licence; a model trained on KLUE-RE (CC BY-SA 4.0) should name it."
    weights = "" if known.licence is None else f"Weights: {known.licence}. "
    return f"## Licence\n\nThe code in this directory is Apache-2.0. {weights}{data}"
