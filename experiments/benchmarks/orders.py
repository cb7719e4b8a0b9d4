"""Which rows every contender's steps take: numbers only, so that the fairness of the benchmark can be tested.

Enters: token lengths of a pool of rows. Leaves: steps as arrays of row numbers. All contenders take steps of the same
pool, as many rows (or real tokens) a step as the others. Where fewer steps are measured than the pool holds, orders
that sort by length give steps evenly spread over the lengths: their first ones would all be long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` items spread evenly over a sequence, going round again if it has fewer."""
    if count >= len(items):
        return [items[index % len(items)] for index in range(count)]
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def shuffled_steps(rows: int, step_rows: int, count: int, seed: int) -> list[np.ndarray]:
    """The first `count` steps of a plain shuffle, whole steps only."""
    order = np.random.default_rng(seed).permutation(rows)
    whole = max(rows // step_rows, 1)
    return [order[step * step_rows : (step + 1) * step_rows] for step in (index % whole for index in range(count))]


def grouped_steps(lengths: np.ndarray, step_rows: int, count: int, seed: int) -> list[np.ndarray]:
    """Steps of Hugging Face's own `LengthGroupedSampler` over the whole pool, `count` of them over all lengths."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    generator = torch.Generator().manual_seed(seed)
    order = np.array(list(LengthGroupedSampler(step_rows, lengths=lengths.tolist(), generator=generator)))
    return _spread([order[start : start + step_rows] for start in _starts(len(order), step_rows)], lengths, count, seed)


def exact_passes(lengths: np.ndarray, most_tokens: float, seed: int) -> list[np.ndarray]:
    """All rows in passes without any padding: rows of equal length, at most `most_tokens` tokens, the fullest first."""
    generator = np.random.default_rng(seed)
    passes: list[np.ndarray] = []
    for length in np.unique(lengths):
        rows = generator.permutation(np.flatnonzero(lengths == length))
        most = max(int(most_tokens // length), 1)
        passes += np.array_split(rows, -(-len(rows) // most))
    return sorted(passes, key=lambda part: -int(lengths[part].sum()))


def exact_steps(lengths: np.ndarray, step_tokens: float, count: int, seed: int) -> list[list[np.ndarray]]:
    """Steps of `exact_passes` in random order, on average `step_tokens` tokens each."""
    passes = exact_passes(lengths, step_tokens, seed)
    order = np.random.default_rng(seed).permutation(len(passes))
    sizes = np.array([lengths[passes[index]].sum() for index in order])
    numbers = (np.cumsum(sizes) - sizes / 2) // step_tokens  # a pass belongs to the step in which its middle lies
    steps = [[passes[index] for index in order[numbers == number]] for number in np.unique(numbers)]
    return evenly(steps, count)


def _starts(rows: int, step_rows: int) -> range:
    return range(0, max(rows - step_rows + 1, 1), step_rows)


def _spread(steps: list[np.ndarray], lengths: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """`count` steps over all lengths, in random order."""
    ordered = sorted(steps, key=lambda rows: float(lengths[rows].mean()))
    chosen = evenly(ordered, count)
    return [chosen[index] for index in np.random.default_rng(seed).permutation(count)]


def padded_tokens(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> int:
    """Tokens of these batches, each padded to its longest row."""
    return sum(int(lengths[rows].max()) * len(rows) for rows in batches)
