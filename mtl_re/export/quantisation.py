"""`model.onnx` → `model.int8.onnx`, if its cost on labelled rows stays within bounds.

Dynamic quantisation (onnxruntime): weights become int8 with one scale per channel and activations are scaled at run
time, so no calibration rows are needed. int8 has broken models of this kind (GLiNER issues 218 and 270), therefore the
loss of F1 and AUPRC and the share of changed labels are bounded. Recipes are tried from the smallest file on; the first
one within the bounds is kept, and all that were tried are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError, first_line
from mtl_re.export.onnx_graph import BATCH_SIZES, graph_outputs, quiet
from mtl_re.model.network import MtlReModel
from mtl_re.model.onnx_model import OnnxModel
from mtl_re.scoring import metrics
from mtl_re.scoring.composed import featurizer_of
from mtl_re.scoring.evaluation import gold_indices
from mtl_re.scoring.significance import paired_bootstrap
from mtl_re.taxonomy import Taxonomy

RECIPES: dict[str, list[str]] = {"weights and embeddings": ["MatMul", "Gather"], "weights": ["MatMul"]}
"""Name → operators that are quantised. The pair layer and the heads (`Gemm`) stay fp32: they are a thousandth of the
arithmetic, and their rounding errors would reach the logits directly."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Bounds:
    """What int8 may cost: points of micro-F1 and of AUPRC, and percent of the rows whose label changes."""

    score: float
    changed: float

    def broken(self, cost: dict[str, Any]) -> list[str]:
        """Return what exceeds the bounds, as phrases."""
        scores = {name: -cost[name]["difference"] for name in ("micro_f1", "auprc")}
        phrases = [f"{name} {loss:.2f} points lower" for name, loss in scores.items() if not loss <= self.score]
        changed = cost["changed_labels"]
        return phrases + ([f"{changed:.2f} % of the labels changed"] if not changed <= self.changed else [])


def write_int8(
    source: Path,
    target: Path,
    model: MtlReModel,
    tokenizer: Any,
    examples: Sequence[Example],
    outputs: dict[str, np.ndarray],
    bounds: Bounds,
    force: bool,
) -> dict[str, Any]:
    """Quantise a graph and measure the cost.

    Args:
        examples: labelled rows. outputs: of the fp32 graph for these rows.
        force: keep the last recipe's graph even if it exceeds the bounds.

    Returns:
        `recipe`: the one kept. `tried`: recipe → cost (see `quantisation_cost`) and `megabytes`. `bounds`, `rows`.
        `over`: what exceeds the bounds, as phrases.

    Raises:
        MtlReError: every recipe exceeds the bounds, or a row has no label.
    """
    gold = gold_indices(examples, model.taxonomy)
    table, pad_id = featurizer_of(model, tokenizer).table(examples), tokenizer.pad_token_id
    tried: dict[str, Any] = {}
    over: list[str] = []
    for recipe in RECIPES:
        for old in target.parent.glob(f"{target.name}*"):  # onnx writes behind the weights of the recipe before
            old.unlink()
        quantise(source, target, recipe)
        changed = graph_outputs(OnnxModel(target, model.config), table, pad_id, BATCH_SIZES[0], target.name)
        tried[recipe] = quantisation_cost(gold, outputs, changed, model.taxonomy)
        tried[recipe]["megabytes"] = round(_size(target) / 1e6, 1)
        if not (over := bounds.broken(tried[recipe])):
            break
    if over and not force:
        raise MtlReError(
            f"--int8: against fp32 on {len(examples)} rows, {' and '.join(over)}; --int8_bound allows {bounds.score}, "
            f"--int8_changed {bounds.changed}; nothing was exported (leave --int8 out, or --force keeps it)"
        )
    limits = {"score": bounds.score, "changed_labels": bounds.changed}
    return {"recipe": recipe, "rows": len(examples), "bounds": limits, "over": over, "tried": tried}


def quantise(source: Path, target: Path, recipe: str) -> None:
    """Write the int8 graph of a recipe.

    Raises:
        MtlReError: onnxruntime cannot quantise this graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = source.with_name(f"{source.name}.data").exists()
    try:
        with quiet():
            quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=RECIPES[recipe],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
                extra_options={"MatMulConstBOnly": True},  # products of two activations, in attention, stay fp32
            )
    except Exception as error:  # onnxruntime's quantiser raises bare exceptions
        raise MtlReError(f"--int8: onnxruntime cannot quantise this graph ({first_line(error)})") from error


def quantisation_cost(
    gold: np.ndarray, before: dict[str, np.ndarray], after: dict[str, np.ndarray], taxonomy: Taxonomy
) -> dict[str, Any]:
    """Compare the outputs of two graphs for the same rows.

    Returns:
        For `micro_f1` and `auprc`: `before`, `after`, `difference` (after - before) and its paired 95 % interval `ci`;
        `largest_drift` and `mean_drift` of a probability; `changed_labels` in %.
    """
    first, second = (np.asarray(out["probabilities"], np.float64) for out in (before, after))
    paired = paired_bootstrap(gold, before["label"], after["label"], first, second, taxonomy, RESAMPLES)
    scores = {
        "micro_f1": [metrics.micro_f1(gold, out["label"], taxonomy) for out in (before, after)],
        "auprc": [metrics.auprc(gold, probs) for probs in (first, second)],
    }
    result: dict[str, Any] = {
        name: {"before": old, "after": new, "difference": new - old, "ci": paired[name]["ci"]}
        for name, (old, new) in scores.items()
    }
    drift = np.abs(second - first)
    changed = 100 * float((before["label"] != after["label"]).mean())
    return result | {
        "largest_drift": float(drift.max()),
        "mean_drift": float(drift.mean()),
        "changed_labels": changed,
    }


def _size(path: Path) -> int:
    """Return the bytes of a graph and of the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
