"""Dropout (Srivastava et al. 2014) on a CPU, from a quarter of the random numbers.

torch draws one number from its serial generator for each element, which takes a sixth of a base-size training step.
Here one draw of 64 bits decides four elements, 16 bits each, so the rate is exact to 1 / 65,536. The generator is
torch's own: checkpoints hold its state, and the same seed drops the same elements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dropped(states: Tensor, rate: float) -> Tensor:
    """Return `states` with each element set to 0 with probability `rate`, else divided by 1 - rate.

    Args:
        states: any shape, on a CPU. rate: in [0, 1).
    """
    if rate == 0:
        return states
    count = states.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(rate * 2**16) - 2**15  # compared with 16 bits as a signed number
    kept = words.view(torch.int16)[:count].view(states.shape) >= threshold
    factors = kept.view(torch.uint8).to(states.dtype)  # converting from bool would be eight times slower
    return states * factors.div_(1 - rate)


class QuickDropout(nn.Dropout):
    """`nn.Dropout`, computed by `dropped`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropped(input, self.p) if self.training else input


def use_quick_dropout(network: nn.Module) -> None:
    """Replace every `nn.Dropout` of a network on a CPU by a `QuickDropout` of the same rate."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p < 1:
                setattr(module, name, QuickDropout(child.p).train(child.training))
