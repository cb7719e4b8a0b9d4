"""From the pair vector to the logits of a head: hidden layers of its own, and what else a coarse class's logit reads.

Enters: the pair vector (batch, dim). Leaves: logits by head (batch, classes), fp32. With the evidence `fine`, the logit
of a coarse class is a product of experts (Hinton 2002): the coarse head's output plus the logarithm of the mean of the
exponentials of its fine head's logits. Rows of no_relation then push the fine logits down, as under a flat softmax, and
p(coarse)·p(fine | coarse) is still the exact product: what the fine head says is added before the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mtl_re.taxonomy import Taxonomy


def classifier(dim: int, classes: int, layers: int, dropout: float) -> nn.Module:
    """Return a head: hidden layers as wide as the pair vector, then a linear map to its classes.

    Args:
        layers: Hidden layers; with 0 the head is the linear map alone, as in checkpoints that do not know this option.
    """
    if not layers:
        return nn.Linear(dim, classes)
    hidden = [module for _ in range(layers) for module in (nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout))]
    return nn.Sequential(*hidden, nn.Linear(dim, classes))


def with_fine_evidence(logits: Mapping[str, Tensor], taxonomy: Taxonomy) -> dict[str, Tensor]:
    """Add to each coarse logit the log-mean-exp of its class's fine logits; a class without a fine head keeps its own.

    The mean, not the sum: a class with more labels does not begin ahead.

    Args:
        logits: By head, (batch, classes of the head).
    """
    root = taxonomy.root
    own = logits[root.name]
    evidence = [
        logits[name].logsumexp(-1) - math.log(len(branch)) if len(branch) > 1 else torch.zeros_like(own[:, 0])
        for name, branch in zip(root.classes, taxonomy.branches, strict=True)
    ]
    return {**logits, root.name: own + torch.stack(evidence, dim=-1)}
