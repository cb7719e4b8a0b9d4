"""Model → `model.onnx`: one graph from token ids to probabilities and label, checked against PyTorch.

Temperatures, prior, product and gate are the functions of `gating`, traced together with the network, so the graph
cannot decode differently from PyTorch. The result is still checked: `check_graph` compares it with PyTorch on real rows
in several batch sizes and on random tokens up to the longest input, and a graph that differs is refused.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mtl_re.config import parse_shares
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError, first_line
from mtl_re.features.collate import Collator, sorted_batches, text_batches
from mtl_re.features.featurizer import Features, FeatureTable
from mtl_re.features.levitated import MARKS, pad_pairs
from mtl_re.model.network import MtlReModel, join_heads, parameter_count
from mtl_re.model.onnx_model import OUTPUTS, OnnxModel
from mtl_re.scoring import gating
from mtl_re.scoring.composed import ComposedModel, featurizer_of
from mtl_re.scoring.decoding import Decoding

LARGEST_DIFFERENCE = 1e-4
"""Allowed difference of a probability from PyTorch's; another order of operations in fp32 causes about 1e-6."""
LEAST_EQUAL = 0.999
"""Share of rows whose labels must be equal; one row may always differ, because it may be a tie."""
ONE_FILE = 1_800_000_000
"""Bytes of weights that go into the graph's file (protobuf is limited to 2 GB); larger ones get a second file."""
BATCH_SIZES = (32, 7, 1)
MIXED_ROWS = 40
"""Rows that are also run in the smaller batch sizes, in their own order, so that lengths are mixed."""


class DecodedModel(nn.Module):
    """The network, followed by all steps from its logits to a label.

    Args:
        model: in eval mode.
        decoding: gate, prior and threshold; no restriction, which would need entity types beside the token ids.
    """

    def __init__(self, model: MtlReModel, decoding: Decoding) -> None:
        super().__init__()
        self.model, self.decoding = model, decoding
        self.shares = None if decoding.prior == "none" else parse_shares("--prior", decoding.prior)
        if self.shares is not None and model.config.training_prior is None:
            raise MtlReError("--prior: this checkpoint does not record the prior it was trained under")

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pairs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `OUTPUTS`: logits (batch, classes of all heads), probabilities (batch, labels), coarse (batch, groups)
        and label (batch,)."""
        taxonomy, config = self.model.taxonomy, self.model.config
        logits = self.model(input_ids, attention_mask, positions, token_type_ids, position_ids, pairs)
        probs = gating.product(logits, taxonomy, config.temperatures)
        if self.shares is not None:
            probs = gating.shift_prior(probs, taxonomy, self.shares, config.training_prior)
        label = gating.labels(probs, taxonomy, self.decoding.gate, self.decoding.threshold)
        return join_heads(logits, taxonomy), probs, gating.coarse(probs, taxonomy), label


def write_graph(model: MtlReModel, decoding: Decoding, path: Path) -> dict[str, Any]:
    """Write the graph, and return its entry in the report.

    Raises:
        MtlReError: onnx or onnxscript is not installed, or this encoder cannot be exported.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter imports it
    except ImportError as error:
        raise MtlReError("onnx and onnxscript are not installed; pip install -e '.[onnx]' in the checkout") from error
    batch = _tokens(model, 2, min(17, model.config.max_input_length), seed=0)
    rows = torch.export.Dim("batch")
    sizes = {0: torch.export.Dim("sequences") if model.levitated else rows, 1: torch.export.Dim("length")}
    shapes = {name: {0: rows} if name == "positions" else sizes for name in batch}
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                DecodedModel(model, decoding).eval(),
                (),
                kwargs=batch,
                input_names=list(batch),
                output_names=list(OUTPUTS),
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the encoder's code raises
        kind = model.encoder.config.model_type
        raise MtlReError(f"--onnx: the exporter cannot take a {kind} encoder ({first_line(error)})") from error
    proto = program.model_proto  # type: ignore[union-attr] # None only without dynamo
    _remove_notes(proto)
    facts = {
        "labels": json.dumps(list(model.taxonomy.labels), ensure_ascii=False),
        "coarse": json.dumps(list(model.taxonomy.groups), ensure_ascii=False),
        "reading": json.dumps(described(model, decoding)),
    }
    onnx.helper.set_model_props(proto, facts)
    save_graph(proto, path, 4 * parameter_count(model) > ONE_FILE)
    return {"opset": proto.opset_import[0].version, "inputs": list(batch), "outputs": list(OUTPUTS)}


def save_graph(proto: Any, path: Path, large: bool) -> None:
    """Write a graph to one file, or, if it is large, its weights to `NAME.data` beside it."""
    import onnx

    onnx.save_model(proto, str(path), save_as_external_data=large, location=f"{path.name}.data" if large else None)


def described(model: MtlReModel, decoding: Decoding) -> dict[str, Any]:
    """Return what the graph applies between logits and label."""
    values = {"gate": decoding.gate, "prior": decoding.prior, "threshold": decoding.threshold}
    return {**values, "temperatures": dict(model.config.temperatures)}


def _remove_notes(proto: Any) -> None:
    """Remove the exporter's notes, which hold stack traces with paths of this machine."""
    for owner in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, *proto.functions):
        del owner.metadata_props[:]
        owner.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own internals; the result is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- comparison with PyTorch -------------------------------------------------------------------------------------


def check_graph(
    path: Path, model: MtlReModel, tokenizer: Any, examples: Sequence[Example], decoding: Decoding
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compare a graph with PyTorch.

    Returns:
        The report and the graph's outputs for all rows. The report holds `rows`, `batch_sizes`, `lengths` (shortest and
        longest of the real rows), `random_shapes`, the largest difference of a logit and of a probability (also of a
        coarse one), and the share of equal labels.

    Raises:
        MtlReError: they differ by more than rounding.
    """
    composed, graph = ComposedModel.of(model, tokenizer), OnnxModel(path, model.config)
    logits = composed.logits(examples, BATCH_SIZES[0], progress="PyTorch")
    decoded = composed.decode(logits, examples, decoding)
    outputs_of_torch = (logits, decoded.probs, gating.coarse(decoded.probs, model.taxonomy), decoded.labels)
    expected = {name: part.numpy() for name, part in zip(OUTPUTS, outputs_of_torch, strict=True)}
    table = featurizer_of(model, tokenizer).table(examples)
    outputs = graph_outputs(graph, table, tokenizer.pad_token_id, BATCH_SIZES[0], path.name)
    seen = [_differences(expected, outputs)]
    collate = Collator(table, tokenizer.pad_token_id, graph.takes_types, levitated=graph.levitated)
    for size in BATCH_SIZES[1:]:
        for start in range(0, min(len(table), MIXED_ROWS), size):
            rows = np.arange(start, min(start + size, len(table)))
            chosen = {name: values[rows] for name, values in expected.items()}
            seen.append(_differences(chosen, graph.run(dict(collate(rows)))))
    shapes = _random_check(model, graph, decoding, seen)
    differences = {name: np.concatenate([one[name].ravel() for one in seen]) for name in OUTPUTS}
    report = {
        "rows": len(examples),
        "batch_sizes": list(BATCH_SIZES),
        "lengths": [int(table.lengths.min()), int(table.lengths.max())],
        "random_shapes": shapes,
        "largest_logit_difference": float(differences["logits"].max()),
        "largest_probability_difference": float(max(differences["probabilities"].max(), differences["coarse"].max())),
        "equal_labels": 1 - float(differences["label"].mean()),
    }
    refuse_difference(report, len(differences["label"]))
    return report, outputs


def refuse_difference(report: dict[str, Any], rows: int) -> None:
    """Raise MtlReError if a graph differs from PyTorch by more than rounding; NaN counts as a difference."""
    largest, unequal = report["largest_probability_difference"], round((1 - report["equal_labels"]) * rows)
    if not largest <= LARGEST_DIFFERENCE or unequal > max(1, (1 - LEAST_EQUAL) * rows):
        what = f"probabilities by {largest:.2g}, {unequal} of {rows} labels"
        raise MtlReError(f"--onnx: the graph differs from PyTorch ({what}); nothing was exported")


def graph_outputs(
    graph: OnnxModel, table: FeatureTable, pad_id: int, batch_size: int, title: str
) -> dict[str, np.ndarray]:
    """Return all outputs of a graph for the rows of a table, in the order of the table."""
    collate = Collator(table, pad_id, graph.takes_types, levitated=graph.levitated)
    parts: list[dict[str, np.ndarray]] = []
    batches = text_batches(table, batch_size) if graph.levitated else sorted_batches(table.lengths, batch_size)
    with tqdm(total=len(table), desc=title, unit="row", file=sys.stderr) as bar:
        for rows in batches:
            parts.append(graph.run(dict(collate(rows))))
            bar.update(len(rows))
    back = np.argsort(np.concatenate(batches))
    return {name: np.concatenate([part[name] for part in parts])[back] for name in OUTPUTS}


def _differences(expected: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: _difference(expected[name], given[name]) for name in OUTPUTS}


def _difference(expected: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return absolute differences, or, for labels, whether they differ."""
    if given.dtype == np.int64:
        return expected != given
    return np.abs(expected.astype(np.float64) - given)


def _random_check(model: MtlReModel, graph: OnnxModel, decoding: Decoding, seen: list[Any]) -> list[list[int]]:
    """Compare on random tokens in batches of other shapes, up to the longest input: real rows may all be short."""
    longest = model.config.max_input_length
    shapes = sorted({(3, min(9, longest)), (2, max(longest // 2, 4)), (1, longest)})
    whole = DecodedModel(model, decoding).eval()
    for number, (rows, length) in enumerate(shapes):
        batch = _tokens(model, rows, length, seed=number)
        with torch.inference_mode():
            expected = {name: out.numpy() for name, out in zip(OUTPUTS, whole(**batch), strict=True)}
        seen.append(_differences(expected, graph.run(batch)))
    return [list(shape) for shape in shapes]


def _tokens(model: MtlReModel, rows: int, length: int, seed: int) -> dict[str, Tensor]:
    """Return a batch of random tokens, each row with one more token of padding than the row before; with levitated
    markers as many sequences, of two pairs each, and one pair more."""
    generator = torch.Generator().manual_seed(seed)
    known = model.encoder.get_input_embeddings().num_embeddings
    if model.levitated:
        texts = [torch.randint(0, known, (length - row,), generator=generator).tolist() for row in range(rows)]
        features = []
        for number in range(2 * rows + 1):
            text = texts[number % rows]
            marks = torch.randint(0, known, (MARKS,), generator=generator).tolist()
            places = torch.randint(0, len(text), (2, 2), generator=generator).sort(-1).values.flatten().numpy()
            features.append(Features(np.array(text + marks, np.int32), places, len(text), np.zeros(0, np.int64)))
        arrays = pad_pairs(features, 0, model.takes_types)
        del arrays["attention_mask"]  # `pairs` says it
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    ids = torch.randint(0, known, (rows, length), generator=generator)
    inside = torch.arange(length) < length - torch.arange(rows)[:, None]
    positions = torch.randint(0, length - rows + 1, (rows, 2, 2), generator=generator).sort(-1).values
    batch = {"input_ids": ids, "attention_mask": inside.long(), "positions": positions.flatten(1)}
    if model.takes_types:
        batch["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(rows, length).contiguous()
    return batch
