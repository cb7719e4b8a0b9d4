"""An exponential moving average of the weights, which is what is scored and kept.

Late weights jump about a valley of the loss; their average lies nearer its floor (Polyak & Juditsky 1992; Izmailov et
al. 2018, arXiv 1803.05407). Training itself never reads the average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a module's trained parameters.

    After step t it is d · average + (1 - d) · weights with d = min(decay, t / (t + 9)), so that the first steps'
    weights are forgotten soon, however large the decay.

    Args:
        module: whose parameters are averaged; those that take no gradient are left out.
        decay: 0 keeps no average: everything here then does nothing.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad} if decay else {}
        self.parameters: dict[str, nn.Parameter] = trained
        self.average = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step in. Args: step: steps taken, from 1."""
        if self.average:
            weight = 1 - min(self.decay, step / (step + 9))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module's weights are the average; afterwards again its own."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name, for a checkpoint."""
        return self.average

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for name, average in self.average.items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
