"""Features → padded batches, in an order that is a pure function of lengths, seed and epoch.

`epoch_steps` fixes which rows every optimizer step takes, `step_parts` which of them each process sees in each
forward pass. Nothing about the order lives in a loader's state: resuming is "go on at step k", and every process
knows the whole step without asking the others. Rows of similar length go together, so little is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from mtl_re.features import FeatureTable

_POOL = 50  # steps' worth of rows that are sorted together: enough to pad little, few enough to stay random


class Batch(TypedDict, total=False):
    """Tensors of one forward pass.

    input_ids, attention_mask: (batch, length) int64. positions: (batch, 4) int64, see `features.POSITIONS`.
    targets: (batch, heads) int64. token_type_ids: (batch, length) int64, only where the encoder has them.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    token_type_ids: torch.Tensor


def epoch_steps(lengths: np.ndarray, step_rows: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of every optimizer step of an epoch.

    Args:
        lengths: (rows,) tokens of each row.
        step_rows: rows of a step over all processes and forward passes; the last step may have fewer.
        seed, epoch: with `lengths`, all that the order depends on.

    Returns:
        One array of row numbers a step, sorted by length within the step; together each row once.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    steps: list[np.ndarray] = []
    for start in range(0, len(order), step_rows * _POOL):
        pool = order[start : start + step_rows * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        steps += [pool[begin : begin + step_rows] for begin in range(0, len(pool), step_rows)]
    return [steps[index] for index in generator.permutation(len(steps))]


def step_parts(rows: np.ndarray, processes: int, passes: int) -> list[list[np.ndarray]]:
    """Deal the rows of a step to `passes` forward passes on each of `processes` processes.

    Returns:
        parts[process][pass], contiguous in length so that the processes of one pass do like work. Parts are empty
        where rows run out.
    """
    parts = np.array_split(rows, processes * passes)
    return [[parts[step * processes + rank] for step in range(passes)] for rank in range(processes)]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All rows in batches of like length, the longest first (so that memory runs out at once or never)."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Collator:
    """Pads rows of a table to the longest of them.

    Args:
        table: the rows.
        pad_id: token id of the padding.
        token_types: whether the encoder reads `token_type_ids`.
        no_targets: (heads,) targets of a row that trains nothing. An empty batch is filled with row 0 under these
            targets, so that a process without rows still takes part in the step and adds exactly nothing.
    """

    def __init__(self, table: FeatureTable, pad_id: int, token_types: bool, no_targets: Sequence[int]) -> None:
        self.table, self.pad_id, self.token_types = table, pad_id, token_types
        self.no_targets = np.array([no_targets], np.int64)

    def __call__(self, rows: Sequence[int] | np.ndarray) -> Batch:
        chosen = np.asarray(rows if len(rows) else [0], np.int64)
        table = self.table
        lengths = table.lengths[chosen]
        ids = np.full((len(chosen), int(lengths.max())), self.pad_id, np.int64)
        for line, row in enumerate(chosen):
            ids[line, : lengths[line]] = table.ids[table.starts[row] : table.starts[row + 1]]
        column = np.arange(ids.shape[1])
        batch: Batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((column < lengths[:, None]).astype(np.int64)),
            "positions": torch.from_numpy(table.positions[chosen].astype(np.int64)),
            "targets": torch.from_numpy(table.targets[chosen] if len(rows) else self.no_targets.copy()),
        }
        if self.token_types:
            second = (column >= table.second[chosen][:, None]) & (column < lengths[:, None])
            batch["token_type_ids"] = torch.from_numpy(second.astype(np.int64))
        return batch
