"""Model + rows → probabilities → metrics.

Rows go through the model in batches of like length, and come back in their own order; every process may take a share.
What is applied between logits and labels (temperatures, target prior, gate) is named in the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from mtl_re import calibration, gating, metrics
from mtl_re.collate import Collator, sorted_batches
from mtl_re.config import EvalConfig, EvaluateConfig, Gate, check_shares
from mtl_re.errors import MtlReError
from mtl_re.features import FeatureTable, Featurizer
from mtl_re.model import MtlReModel, load
from mtl_re.taxonomy import Taxonomy

if TYPE_CHECKING:
    from mtl_re.data import Example

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Scored:
    """Rows with their probabilities.

    Attributes:
        probs: (rows, labels) float64 in taxonomy order, after temperatures and prior.
        prior: what was done to the coarse prior, in words.
    """

    probs: np.ndarray
    prior: str

    def labels(self, taxonomy: Taxonomy, gate: Gate) -> np.ndarray:
        """(rows,) indices of the predicted labels."""
        return gating.labels(torch.from_numpy(self.probs), taxonomy, gate).numpy()


def table_logits(
    model: MtlReModel,
    table: FeatureTable,
    pad_id: int,
    batch_size: int,
    precision: str = "no",
    share: tuple[int, int] = (0, 1),
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a table's rows.

    Args:
        model: its device decides where this runs; put into eval mode and back.
        pad_id: the tokenizer's padding token.
        precision: `no`, `fp16` or `bf16` for the encoder's arithmetic.
        share: (rank, processes): this process takes every so-manieth batch.
        progress: title of a progress bar (None: no bar).

    Returns:
        Row numbers (n,) and their logits (n, all heads' classes side by side) float32; both cover all rows if
        `share` is (0, 1).
    """
    device = next(model.parameters()).device
    heads = model.taxonomy.heads
    collate = Collator(table, pad_id, model.takes_types, [0] * len(heads))
    batches = sorted_batches(table.lengths, batch_size)[share[0] :: share[1]]
    rows: list[np.ndarray] = []
    parts: list[torch.Tensor] = []
    was_training = model.training
    model.eval()
    bar = tqdm(total=sum(map(len, batches)), desc=progress, unit="row", disable=progress is None, file=sys.stderr)
    with torch.inference_mode(), autocast(device, precision), bar:
        for batch_rows in batches:
            batch = {name: tensor.to(device) for name, tensor in collate(batch_rows).items() if name != "targets"}  # type: ignore[attr-defined]
            logits = model(**batch)
            parts.append(torch.cat([logits[head.name] for head in heads], dim=-1).float().cpu())
            rows.append(batch_rows)
            bar.update(len(batch_rows))
    model.train(was_training)
    width = sum(len(head.classes) for head in heads)
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, width), np.float32)
    return np.concatenate(rows), torch.cat(parts).numpy()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass; nothing for fp32."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()


def all_logits(
    model: MtlReModel,
    table: FeatureTable,
    pad_id: int,
    batch_size: int,
    precision: str = "no",
    accelerator: Any = None,
    progress: str | None = None,
) -> np.ndarray:
    """(rows, all heads' classes) logits in row order; with an accelerator the processes share the work and all get
    the whole."""
    share = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    parts = [table_logits(model, table, pad_id, batch_size, precision, share, progress)]
    if share[1] > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    ordered = np.empty((len(table), parts[0][1].shape[1]), np.float32)
    for rows, logits in parts:
        ordered[rows] = logits
    return ordered


def probabilities(logits: np.ndarray, taxonomy: Taxonomy, temperatures: dict[str, float] | None = None) -> np.ndarray:
    """(rows, labels) float64 product probabilities of side-by-side logits."""
    widths = [len(head.classes) for head in taxonomy.heads]
    split = torch.from_numpy(logits).double().split(widths, dim=-1)
    by_head = {head.name: scores for head, scores in zip(taxonomy.heads, split, strict=True)}
    return gating.product(by_head, taxonomy, temperatures).numpy()


def apply_prior(probs: np.ndarray, model: MtlReModel, prior: str) -> Scored:
    """Shift the coarse prior as an option says: `none`, `em`, or comma-separated shares.

    Raises:
        MtlReError: not such an option, or the checkpoint does not know its training prior.
    """
    if prior == "none":
        return Scored(probs, "none")
    trained, taxonomy = model.config.training_prior, model.taxonomy
    if trained is None:
        raise MtlReError("--prior: this checkpoint does not record the prior it was trained under")
    if prior == "em":
        coarse = gating.coarse(torch.from_numpy(probs), taxonomy).numpy()
        target = calibration.em_prior(coarse, trained)
        said = "em (estimated from these rows without their labels): " + ", ".join(f"{share:.4f}" for share in target)
    else:
        target = parse_shares(prior)
        said = prior
    return Scored(gating.shift_prior(torch.from_numpy(probs), taxonomy, target, trained).numpy(), said)


def parse_shares(text: str) -> list[float]:
    """`0.6,0.17,0.23` → numbers.

    Raises:
        MtlReError: not numbers, or not shares.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise MtlReError(f"--prior: {text!r}; expected none, em or shares such as 0.6,0.17,0.23") from error
    check_shares("--prior", shares)
    return shares


def gold_indices(examples: Sequence[Example], taxonomy: Taxonomy) -> np.ndarray:
    """(rows,) label indices.

    Raises:
        MtlReError: a row has no label.
    """
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    for example in examples:
        if example.label is None:
            raise MtlReError(f"row {example.id} has no label; evaluation needs one in every row (see `predict`)")
    return np.array([index[example.label] for example in examples if example.label is not None], np.int64)


def report(
    scored: Scored, gold: np.ndarray, taxonomy: Taxonomy, gate: Gate, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """All metrics of DESIGN §5."""
    hard, soft = scored.labels(taxonomy, "hard"), scored.labels(taxonomy, "soft")
    return metrics.report(gold, scored.probs, hard, soft, gate, taxonomy, scored.prior, resamples, seed)


def selection_score(scored: Scored, gold: np.ndarray, taxonomy: Taxonomy, options: EvalConfig) -> float:
    """The figure by which the best model is chosen, rows re-weighted to `eval.target_prior` if there is one."""
    weights = None
    if options.target_prior is not None:
        weights = metrics.prior_weights(gold, taxonomy, options.target_prior)
    predicted = scored.labels(taxonomy, options.gate)
    if options.metric == "auprc":
        return float(metrics.auprc(gold, scored.probs, weights))
    if options.metric == "accuracy":
        return float(metrics.accuracy(gold, predicted, weights))
    function = metrics.micro_f1 if options.metric == "micro_f1" else metrics.macro_f1
    return float(function(gold, predicted, taxonomy, weights))


def featurizer_of(model: MtlReModel, tokenizer: Any) -> Featurizer:
    """The featurizer a checkpoint was trained with."""
    config = model.config
    return Featurizer(
        tokenizer, model.taxonomy, config.markers, config.query, config.max_input_length, config.entity_types
    )


def evaluate(ckpt: str, options: EvaluateConfig) -> dict[str, Any]:
    """`mtl-re evaluate`: score a checkpoint on labelled rows and write what was asked for."""
    from mtl_re.data import load_examples
    from mtl_re.writers import Prediction, write_predictions

    model, tokenizer = load(ckpt)
    model.to(default_device())  # type: ignore[arg-type] # transformers wraps `to` untyped
    taxonomy, gate = model.taxonomy, options.gate or model.config.gate
    examples, bad = load_examples(options.data, taxonomy, options.on_bad_row)
    if bad:
        print(f"{options.data}: {len(bad)} bad rows left out (`mtl-re check` lists them)", file=sys.stderr)
    if not examples:
        raise MtlReError(f"{options.data}: no rows to evaluate")
    gold = gold_indices(examples, taxonomy)
    table = featurizer_of(model, tokenizer).table(examples)
    precision = resolve_precision(options.precision)
    logits = all_logits(
        model, table, tokenizer.pad_token_id, options.batch_size, precision, progress=f"evaluate {options.data}"
    )
    scored = apply_prior(probabilities(logits, taxonomy, model.config.temperatures), model, options.prior)
    result = report(scored, gold, taxonomy, gate, options.resamples)
    if options.predictions is not None:
        labels = scored.labels(taxonomy, gate)
        predictions = (
            Prediction.of(example.id, scored.probs[row], int(labels[row]), taxonomy, example.label)
            for row, example in enumerate(examples)
        )
        write_predictions(predictions, Path(options.predictions), taxonomy)
    if options.output is not None:
        write_json(Path(options.output), result)
    return result


def default_device() -> torch.device:
    """CUDA or Apple's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(option: str, device: torch.device | None = None) -> str:
    """`auto` → what the device computes fast.

    bf16 on CUDA from compute capability 8.0 and on CPUs with amx_bf16 (elsewhere it is emulated, 5× slower than fp32),
    else fp16 on CUDA, else fp32.

    Raises:
        MtlReError: fp16 was asked for without CUDA.
    """
    kind = (device or default_device()).type
    if option == "fp16" and kind != "cuda":
        raise MtlReError("precision fp16 needs a CUDA device; take bf16 or no")
    if option != "auto":
        return option
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    if kind == "cpu":
        return "bf16" if torch.cpu._is_amx_tile_supported() else "no"
    return "no"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once or not at all.

    Raises:
        MtlReError: the place cannot be written.
    """
    import os

    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise MtlReError(f"{path}: cannot be written ({error.strerror})") from error
