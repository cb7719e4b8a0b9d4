"""Model + rows → logits → probabilities: the forward pass without gradients, wherever it runs.

Rows go through the model in batches of like length and come back in their own order; with several processes each takes
a share and all get the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mtl_re.features.collate import Collator, sorted_batches
from mtl_re.features.featurizer import FeatureTable
from mtl_re.model.device import autocast
from mtl_re.model.network import MtlReModel
from mtl_re.scoring import gating
from mtl_re.taxonomy import Taxonomy

Tick = Callable[[int], object]
"""Told how many rows have just been finished."""


def table_logits(
    model: MtlReModel,
    table: FeatureTable,
    pad_id: int,
    batch_size: int,
    precision: str = "no",
    share: tuple[int, int] = (0, 1),
    progress: str | None = None,
    tick: Tick | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a table's rows.

    Args:
        model: its device decides where this runs; put into eval mode and back.
        pad_id: the tokenizer's padding token.
        precision: `no`, `fp16` or `bf16` for the encoder's arithmetic.
        share: (rank, processes): this process takes every so-manieth batch.
        progress: title of a progress bar (None: no bar).
        tick: called after every batch with its rows.

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
            if tick is not None:
                tick(len(batch_rows))
    model.train(was_training)
    width = sum(len(head.classes) for head in heads)
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, width), np.float32)
    return np.concatenate(rows), torch.cat(parts).numpy()


def all_logits(
    model: MtlReModel,
    table: FeatureTable,
    pad_id: int,
    batch_size: int,
    precision: str = "no",
    accelerator: Any = None,
    progress: str | None = None,
    tick: Tick | None = None,
) -> np.ndarray:
    """(rows, all heads' classes) logits in row order; with an accelerator the processes share the work and all get
    the whole."""
    share = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    parts = [table_logits(model, table, pad_id, batch_size, precision, share, progress, tick)]
    if share[1] > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    ordered = np.empty((len(table), parts[0][1].shape[1]), np.float32)
    for rows, logits in parts:
        ordered[rows] = logits
    return ordered


def probabilities(logits: np.ndarray, taxonomy: Taxonomy, temperatures: dict[str, float] | None = None) -> np.ndarray:
    """(rows, labels) float64 product probabilities of side-by-side logits."""
    parts = {name: torch.from_numpy(part).double() for name, part in by_head(logits, taxonomy).items()}
    return gating.product(parts, taxonomy, temperatures).numpy()


def by_head(logits: np.ndarray, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """Head → its columns of side-by-side logits (rows, all classes)."""
    ends = np.cumsum([len(head.classes) for head in taxonomy.heads])[:-1]
    names = [head.name for head in taxonomy.heads]
    return dict(zip(names, np.split(logits, ends, axis=1), strict=True))
