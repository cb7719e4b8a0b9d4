"""Network + rows → logits: the forward pass without gradients, wherever it runs.

Rows go through the network in batches of like length and come back in their own order; with several processes each
takes a share and all get the whole. What the logits mean is `decoding`'s business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mtl_re.errors import MtlReError
from mtl_re.features.collate import Collator, sorted_batches, text_batches
from mtl_re.features.featurizer import FeatureTable
from mtl_re.model.device import autocast
from mtl_re.model.network import MtlReModel, join_heads

Tick = Callable[[int], object]
"""Called with the number of rows that have just been finished."""


def table_logits(
    model: MtlReModel,
    table: FeatureTable,
    pad_id: int,
    batch_size: int,
    precision: str = "no",
    share: tuple[int, int] = (0, 1),
    progress: str | None = None,
    tick: Tick | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the logits of a table's rows.

    Args:
        model: its device decides where this runs; put into eval mode and back.
        pad_id: the tokenizer's padding token.
        precision: `no`, `fp16` or `bf16` for the encoder's arithmetic.
        share: (rank, processes): this process takes batches rank, rank + processes, rank + 2 · processes …
        progress: title of a progress bar (None: no bar).
        tick: called after every batch with its rows.

    Returns:
        Row numbers (n,) int64 and their logits (n, all heads' classes side by side) float32, both on the CPU; all rows
        if `share` is (0, 1).
    """
    device = next(model.parameters()).device
    levitated = model.levitated
    collate = Collator(table, pad_id, model.takes_types, levitated=levitated)
    batches = text_batches(table, batch_size) if levitated else sorted_batches(table.lengths, batch_size)
    batches = batches[share[0] :: share[1]]
    rows = [torch.zeros(0, dtype=torch.int64)]
    parts = [torch.zeros(0, sum(len(head.classes) for head in model.taxonomy.heads))]
    was_training = model.training
    model.eval()
    bar = tqdm(total=sum(map(len, batches)), desc=progress, unit="row", disable=progress is None, file=sys.stderr)
    with torch.inference_mode(), autocast(device, precision), bar:
        for batch_rows in batches:
            batch = {name: tensor.to(device) for name, tensor in collate(batch_rows).items() if name != "targets"}  # type: ignore[attr-defined]
            parts.append(join_heads(model(**batch), model.taxonomy).float().cpu())
            rows.append(torch.from_numpy(batch_rows))
            bar.update(len(batch_rows))
            if tick is not None:
                tick(len(batch_rows))
    model.train(was_training)
    numbers, logits = torch.cat(rows), torch.cat(parts)
    if odd := int((~torch.isfinite(logits)).any(dim=1).sum()):
        cure = "take bf16 or no" if precision == "fp16" else "the weights are damaged, or their training broke"
        raise MtlReError(
            f"{odd} of {len(numbers)} rows have logits that are not finite (precision {precision}); {cure}"
        )
    return numbers, logits


def all_logits(
    model: MtlReModel,
    table: FeatureTable,
    pad_id: int,
    batch_size: int,
    precision: str = "no",
    accelerator: Any = None,
    progress: str | None = None,
    tick: Tick | None = None,
) -> Tensor:
    """Compute (rows, all heads' classes) logits in row order; with an accelerator the processes share the work and
    all get the whole."""
    share = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    parts = [table_logits(model, table, pad_id, batch_size, precision, share, progress, tick)]
    if share[1] > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    ordered = torch.full((len(table), parts[0][1].shape[1]), torch.nan)
    for rows, logits in parts:
        ordered[rows] = logits
    assert not ordered.isnan().any(), "a row is in no batch"
    return ordered
