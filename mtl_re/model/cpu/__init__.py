"""The one door to what makes a model cheaper on a CPU; on a GPU nothing behind it is used.

`speed_up` is called by whoever has put a model on its device, in training and in scoring. Behind it stand packed
sequences (`packed`: no computation for padding) and dropout from fewer random numbers (`dropout`); `allocator_hint`
says how to start the process with a faster memory allocator, and `release_free_memory` keeps the usual one small.
"""

from __future__ import annotations

from typing import Any

from mtl_re.model.cpu.allocator import allocator_hint, release_free_memory
from mtl_re.model.cpu.dropout import use_quick_dropout
from mtl_re.model.cpu.packed import packed_states, use_packed_attention

__all__ = ["allocator_hint", "release_free_memory", "speed_up"]


def speed_up(model: Any) -> None:
    """Switch a model on a CPU to faster ways of computing the same; leave one on another device, or compiled, alone.

    Args:
        model: an `MtlReModel` on its device, not wrapped.
    """
    compiled = getattr(model.encoder, "_compiled_call_impl", None) is not None
    if model.device.type != "cpu" or compiled:
        return
    use_quick_dropout(model)
    if use_packed_attention(model.encoder):
        model.encode = packed_states
