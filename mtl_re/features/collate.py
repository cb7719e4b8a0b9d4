"""Features → padded batches, in an order that is a pure function of row count, seed and epoch.

Enters: a `FeatureTable` and row numbers. Leaves: `Batch`. `epoch_steps` fixes the rows of every optimizer step by a
plain shuffle: steps of rows of like length would pad less but learn markedly slower. `step_parts` saves padding inside
the step instead: it splits the step into forward passes of like length, which does not change its gradient. No loader
holds the order as state: a run resumes at step k, and every process knows the whole step without asking the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict, cast

import numpy as np
import torch

from mtl_re.features.featurizer import FeatureTable, pad_batch
from mtl_re.features.levitated import pad_pairs, same_text
from mtl_re.taxonomy import IGNORE

PASS_COST = {"cpu": 64, "cuda": 2048}
"""Cost of one more forward pass, in tokens that take as long, by device type: low on a CPU, high on a GPU, which a pass
must fill. Another device costs what a GPU does."""
PACKED_PASS_COST = 1_000_000
"""The same where passes compute nothing for padding, so that a further pass saves nothing."""
LENGTH_STEP = 8
"""Training passes are padded to a multiple of this: kernels and memory are kept for every shape that occurs."""


class Batch(TypedDict, total=False):
    """Tensors of one forward pass.

    input_ids, attention_mask: (batch, length) int64. positions: (batch, 4) int64, see `featurizer.POSITIONS`.
    targets: (batch, heads) int64. token_type_ids: (batch, length) int64, only where the encoder has them.
    Of levitated markers: position_ids, pairs (sequences, length) int64, positions (batch, 5): `levitated.pad_pairs`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    token_type_ids: torch.Tensor
    position_ids: torch.Tensor
    pairs: torch.Tensor


def epoch_steps(rows: int, step_rows: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of every optimizer step of an epoch.

    Args:
        rows: number of rows in the table.
        step_rows: rows of a step over all processes and forward passes; the last step may have fewer.
        seed, epoch: with `rows`, all that the order depends on.

    Returns:
        One array of row numbers a step; together each row once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return [order[start : start + step_rows] for start in range(0, rows, step_rows)]


def pass_cost(device: str, packed: bool = False) -> int:
    """Return the cost of one more forward pass, in tokens.

    Args:
        device: type of the device, as torch calls it. packed: whether passes compute nothing for padding.
    """
    return PACKED_PASS_COST if packed else PASS_COST.get(device, PASS_COST["cuda"])


def step_parts(
    rows: np.ndarray, lengths: np.ndarray, processes: int, batch_size: int, pass_cost: int
) -> list[list[np.ndarray]]:
    """Deal the rows of a step to the processes, and each share to forward passes of like length.

    Args:
        rows: (n,) of the step.
        lengths: (n,) their tokens.
        processes: each gets about as many rows, and as long ones, as the others.
        batch_size: rows of one pass at most.
        pass_cost: see `pass_cost`.

    Returns:
        parts[process][pass]; a process for which no row is left has one empty part. The number of passes may differ
        between processes: they meet at the end of the step.
    """
    order = np.argsort(lengths, kind="stable")
    shares = [order[process::processes] for process in range(processes)]
    padded = -(-lengths // LENGTH_STEP) * LENGTH_STEP
    return [[rows[part] for part in like_length(share, padded[share], batch_size, pass_cost)] for share in shares]


def like_length(share: np.ndarray, lengths: np.ndarray, batch_size: int, pass_cost: int) -> list[np.ndarray]:
    """Cut a share, sorted by length, where padded tokens plus the parts' own cost are least (dynamic programming).

    Args:
        share: (n,) row numbers. lengths: (n,) ascending.
        batch_size: rows of one part at most. pass_cost: of one more part, in tokens.
    """
    count = len(share)
    least = np.zeros(count + 1)  # of the first k rows
    begins = np.zeros(count + 1, np.int64)  # where the last pass over them begins
    for end in range(1, count + 1):
        starts = np.arange(max(0, end - batch_size), end)
        costs = least[starts] + lengths[end - 1] * (end - starts) + pass_cost
        best = int(costs.argmin())
        least[end], begins[end] = costs[best], starts[best]
    cuts = [count]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return [share[begin:end] for end, begin in pairwise(cuts)][::-1] or [share]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return all rows in batches of like length, the longest first, so that memory runs out at once or never."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def text_batches(table: FeatureTable, batch_size: int) -> list[np.ndarray]:
    """Return what `sorted_batches` does for rows with levitated markers: rows of the same text are in one batch, where
    they share a sequence. Only a text with more rows than `batch_size` is in several, so some batches are not full."""
    order = np.argsort(-table.lengths, kind="stable")
    batches: list[np.ndarray] = []
    for group in same_text([table[row] for row in order]):
        for start in range(0, len(group), batch_size):
            rows = order[np.array(group[start : start + batch_size], np.int64)]
            if batches and len(batches[-1]) + len(rows) <= batch_size:
                batches[-1] = np.concatenate([batches[-1], rows])
            else:
                batches.append(rows)
    return batches


class Collator:
    """Pad rows of a table to the longest of them.

    Args:
        table: the rows.
        pad_id: token id of the padding.
        token_types: whether the encoder takes `token_type_ids`.
        levitated: whether the rows' markers stand behind their text; rows of the same text then share a sequence.

    An empty batch is filled with row 0 under no target, so that a process without rows still takes part in the step and
    adds exactly nothing.
    """

    def __init__(
        self,
        table: FeatureTable,
        pad_id: int,
        token_types: bool,
        length_step: int = 1,
        levitated: bool = False,
    ) -> None:
        self.levitated = levitated
        self.table, self.pad_id, self.token_types, self.length_step = table, pad_id, token_types, length_step

    def __call__(self, rows: Sequence[int] | np.ndarray) -> Batch:
        chosen, lengths = np.asarray(rows if len(rows) else [0], np.int64), self.table.lengths
        features = [self.table[row] for row in chosen]
        if self.levitated:
            arrays = pad_pairs(features, self.pad_id, self.token_types, self.length_step)
        else:
            rounded = -(-int(lengths[chosen].max()) // self.length_step) * self.length_step
            arrays = pad_batch(features, self.pad_id, self.token_types, min(rounded, int(lengths.max())))
        arrays["targets"] = (
            self.table.targets[chosen] if len(rows) else np.full((1, self.table.targets.shape[1]), IGNORE)
        )
        return cast(Batch, {name: torch.from_numpy(array) for name, array in arrays.items()})
