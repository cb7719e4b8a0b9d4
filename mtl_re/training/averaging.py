"""Weights averaged over the steps of a training: they are evaluated and kept, while the weights go on learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of a network's trainable parameters: a ← d · a + (1 - d) · w after each step.

    d is the given decay, but not above (1 + t) / (10 + t) at update t, so that the weights of the first steps, which
    know nothing yet, do not linger (as in TensorFlow's ExponentialMovingAverage). Averaging the iterates is due to
    Polyak & Juditsky 1992; for networks see Izmailov et al. 2018, arXiv 1803.05407. The step is torch's; its
    `AveragedModel` would copy the whole network, frozen heads included, and forget the initial weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._live = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self.values = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    def update(self) -> None:
        """Take the network's present weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self.values.values()), list(self._live.values()), self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights inside the block; afterwards its own again, bit for bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._live.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Make the average what it was.

        Raises:
            KeyError: A parameter has no value.
        """
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._live.items():
            parameter.copy_(values[name])
