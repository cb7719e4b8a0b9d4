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


def cls_markers_both(hidden: Tensor, positions: Tensor) -> Tensor:
    """The first token, and first and last marker of the subject and of the object: 5 × dim."""
    return torch.cat([cls(hidden, positions), markers_both(hidden, positions)], dim=-1)


def mean(hidden: Tensor, positions: Tensor) -> Tensor:
    """Means over subject and object: 2 × dim."""
    subject = _span_mean(hidden, positions[:, 0], positions[:, 1])
    object_ = _span_mean(hidden, positions[:, 2], positions[:, 3])
    return torch.cat([subject, object_], dim=-1)


def cls_markers(hidden: Tensor, positions: Tensor) -> Tensor:
    """The first token and both first markers: 3 × dim."""
    return torch.cat([cls(hidden, positions), markers(hidden, positions)], dim=-1)


def cls_mean(hidden: Tensor, positions: Tensor) -> Tensor:
    """The first token and the means over subject and object: 3 × dim."""
    return torch.cat([cls(hidden, positions), mean(hidden, positions)], dim=-1)


class Pooling(NamedTuple):
    """A pooling and how many states wide its result is."""

    function: Callable[[Tensor, Tensor], Tensor]
    width: int


POOLINGS: dict[str, Pooling] = {
    "cls": Pooling(cls, 1),
    "markers": Pooling(markers, 2),
    "cls_markers": Pooling(cls_markers, 3),
    "markers_both": Pooling(markers_both, 4),
    "cls_markers_both": Pooling(cls_markers_both, 5),
    "mean": Pooling(mean, 2),
    "cls_mean": Pooling(cls_mean, 3),
}
