"""Token states → one vector for the pair of entities.

A pooling takes `hidden` (batch, length, dim), `positions` (batch, 4; columns of `featurizer.POSITIONS`)
and gives (batch, width × dim). Marker poolings read the marker tokens themselves (Baldini Soares et
al. 2019, "entity start"); means run from an entity's first marker piece to its last (Wu & He 2019, R-BERT).
A new pooling needs its counterpart in `export/remote/modeling_mtl_re.py`, which exported models run: the export refuses
without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor


def _tokens(hidden: Tensor, positions: Tensor) -> Tensor:
    """States at `positions` (batch, n), side by side: (batch, n × dim)."""
    index = repeat(positions, "batch n -> batch n dim", dim=hidden.shape[-1])
    return rearrange(hidden.gather(1, index), "batch n dim -> batch (n dim)")


def _span_mean(hidden: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean state over tokens start..end, both included: (batch, dim)."""
    place = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (place >= start[:, None]) & (place <= end[:, None])  # (batch, length)
    weight = inside.to(hidden.dtype) / reduce(inside, "batch length -> batch 1", "sum")
    return torch.einsum("bl,bld->bd", weight, hidden)


def cls(hidden: Tensor, positions: Tensor) -> Tensor:
    """The first token: 1 × dim."""
    return hidden[:, 0]


def markers(hidden: Tensor, positions: Tensor) -> Tensor:
    """The first marker of the subject and of the object: 2 × dim."""
    return _tokens(hidden, positions[:, [0, 2]])


def markers_both(hidden: Tensor, positions: Tensor) -> Tensor:
    """First and last marker of the subject and of the object: 4 × dim."""
    return _tokens(hidden, positions)


def mean(hidden: Tensor, positions: Tensor) -> Tensor:
    """Means over subject and object: 2 × dim."""
    subject = _span_mean(hidden, positions[:, 0], positions[:, 1])
    object_ = _span_mean(hidden, positions[:, 2], positions[:, 3])
    return torch.cat([subject, object_], dim=-1)


class Pooling(NamedTuple):
    """A pooling and how many states wide its result is."""

    function: Callable[[Tensor, Tensor], Tensor]
    width: int


def beside(*poolings: Pooling) -> Pooling:
    """Return a pooling whose result is those of others, side by side."""

    def function(hidden: Tensor, positions: Tensor) -> Tensor:
        return torch.cat([pooling.function(hidden, positions) for pooling in poolings], dim=-1)

    return Pooling(function, sum(pooling.width for pooling in poolings))


CLS, MARKERS, MARKERS_BOTH, MEAN = Pooling(cls, 1), Pooling(markers, 2), Pooling(markers_both, 4), Pooling(mean, 2)
POOLINGS: dict[str, Pooling] = {
    "cls": CLS,
    "markers": MARKERS,
    "cls_markers": beside(CLS, MARKERS),
    "markers_both": MARKERS_BOTH,
    "cls_markers_both": beside(CLS, MARKERS_BOTH),
    "mean": MEAN,
    "cls_mean": beside(CLS, MEAN),
}
