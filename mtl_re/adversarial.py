"""Adversarial training: the token embeddings, moved for a moment to where the loss grows fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed(embedding: nn.Embedding, epsilon: float) -> Iterator[None]:
    """Inside, an embedding table is its weights + ε · g / ‖g‖, g being their gradient so far (the fast gradient method,
    Miyato et al. 2017, arXiv 1605.07725, on the table as a whole); afterwards it is what it was, bit for bit.

    g / ‖g‖ knows neither fp16's loss scale nor the number of processes. Where it is not finite or 0 nothing is moved.

    Args:
        embedding: of the input tokens, after a backward pass.
        epsilon: ε, length of the move over the whole table.
    """
    weight = embedding.weight
    before = weight.detach().clone()
    with torch.no_grad():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        move = gradient * (epsilon / gradient.float().norm())
        weight.add_(torch.nan_to_num(move, nan=0.0, posinf=0.0, neginf=0.0))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)
