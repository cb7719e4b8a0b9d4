"""How head weights move during training: per-step factors on `loss.weights`, from losses that all ranks agree on.

The factors are only decided here: `train.step_weights` multiplies `loss.weights` by them, and `losses.combine` the
losses by the result.

A weighting with `needs_losses` sees, after every optimizer step that was not skipped, the raw mean loss of each head
over the whole step (already reduced over processes), so its state is the same on every rank, and it gives the weights
of the next step. Weights are normalised to sum to the number of heads: only ratios matter under Adam. State is plain
JSON and lies in the checkpoint.

uncertainty: Kendall, Gal & Cipolla 2018 (arXiv 1705.07115). dwa: Liu, Johns & Davison 2019 (1803.10704). rlw: Lin et
al. 2022 (2111.10603), the control that a method should beat. famo: Liu et al. 2023 (2306.03792).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Losses = Mapping[str, float]
"""Raw mean loss by head; a head without a labelled row in the step is absent."""


class Weighting:
    """`loss.weights` as they are, and the interface of the others.

    Args:
        heads: names of the heads that are trained, in taxonomy order.
        seed: of whatever is random.

    Attributes:
        needs_losses: `update` wants the losses of every step (costs a small reduction).
        needs_after: `update` also wants the losses of the same rows after the step (costs a forward pass).
    """

    needs_losses = False
    needs_after = False

    def __init__(self, heads: Sequence[str], seed: int) -> None:
        self.heads, self.seed = tuple(heads), seed

    def factors(self, step: int) -> dict[str, float]:
        """Return the factor on each head's weight at a step, positive, summing to the number of heads."""
        return dict.fromkeys(self.heads, 1.0)

    def update(self, before: Losses, after: Losses | None) -> None:
        """Learn from the step just taken."""

    def end_epoch(self) -> None:
        """Learn from the epoch just finished."""

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `restore` continues exactly."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do the inverse of `state`."""

    def _spread(self, values: np.ndarray) -> dict[str, float]:
        scaled = values * (len(self.heads) / values.sum())
        return dict(zip(self.heads, map(float, scaled), strict=True))


class _Adam:
    """torch's Adam on a few numbers in float64, with JSON state."""

    def __init__(self, size: int, rate: float, decay: float = 0.0) -> None:
        self._numbers = torch.zeros(size, dtype=torch.float64)
        self._adam = torch.optim.Adam([self._numbers], lr=rate, weight_decay=decay)

    @property
    def values(self) -> np.ndarray:
        """(size,) float64."""
        return self._numbers.numpy().copy()

    def step(self, gradient: np.ndarray) -> None:
        self._numbers.grad = torch.from_numpy(gradient)
        self._adam.step()

    def state(self) -> dict[str, Any]:
        moments, none = self._adam.state[self._numbers], torch.zeros_like(self._numbers)
        first, second = (moments.get(name, none).tolist() for name in ("exp_avg", "exp_avg_sq"))
        return {"time": int(moments.get("step", 0)), "values": self.values.tolist(), "first": first, "second": second}

    def restore(self, state: Mapping[str, Any]) -> None:
        values, first, second = (
            torch.tensor(state[name], dtype=torch.float64) for name in ("values", "first", "second")
        )
        self._numbers.copy_(values)
        step = torch.tensor(float(state["time"]))
        self._adam.state[self._numbers] = {"step": step, "exp_avg": first, "exp_avg_sq": second}


class Uncertainty(Weighting):
    """Weight exp(-s_h), where s_h descends Σ_h exp(-s_h)·L_h + s_h: heads with a large loss count less."""

    needs_losses = True

    def __init__(self, heads: Sequence[str], seed: int) -> None:
        super().__init__(heads, seed)
        self.log_variances = _Adam(len(self.heads), rate=0.001)

    def factors(self, step: int) -> dict[str, float]:
        return self._spread(np.exp(-self.log_variances.values))

    def update(self, before: Losses, after: Losses | None) -> None:
        loss = np.array([before.get(head, math.nan) for head in self.heads])
        gradient = 1 - np.exp(-self.log_variances.values) * loss
        self.log_variances.step(np.where(np.isnan(loss), 0.0, gradient))

    def state(self) -> dict[str, Any]:
        return self.log_variances.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.log_variances.restore(state)


class DynamicAverage(Weighting):
    """DWA: softmax of how little each head's epoch loss fell, L(t-1) / L(t-2), at temperature 2."""

    needs_losses = True
    temperature = 2.0

    def __init__(self, heads: Sequence[str], seed: int) -> None:
        super().__init__(heads, seed)
        self.history: list[dict[str, float]] = []
        self.sums = dict.fromkeys(self.heads, 0.0)
        self.steps = dict.fromkeys(self.heads, 0)

    def factors(self, step: int) -> dict[str, float]:
        if len(self.history) < 2:
            return super().factors(step)
        last, before = self.history[-1], self.history[-2]
        ratios = [last[head] / max(before[head], 1e-12) for head in self.heads]
        return self._spread(_softmax(np.array(ratios) / self.temperature))

    def update(self, before: Losses, after: Losses | None) -> None:
        for head, loss in before.items():
            self.sums[head] += loss
            self.steps[head] += 1

    def end_epoch(self) -> None:
        means = {head: self.sums[head] / max(self.steps[head], 1) for head in self.heads}
        self.history = [*self.history[-1:], means]
        self.sums, self.steps = dict.fromkeys(self.heads, 0.0), dict.fromkeys(self.heads, 0)

    def state(self) -> dict[str, Any]:
        return {"history": self.history, "sums": self.sums, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.history, self.sums, self.steps = list(state["history"]), dict(state["sums"]), dict(state["steps"])


class Random(Weighting):
    """RLW: softmax of standard normal draws, new at every step and a pure function of seed and step."""

    def factors(self, step: int) -> dict[str, float]:
        draws = np.random.default_rng([self.seed, step]).standard_normal(len(self.heads))
        return self._spread(_softmax(draws))


class Famo(Weighting):
    """FAMO: task logits ξ move so that all losses fall at the same rate.

    The step's weights are z_h / L_h with z = softmax(ξ) (the gradient of Σ_h z_h·log L_h), L_h being the head's loss on
    the step before; after the step ξ descends Σ_h z_h·(log L_h(before) - log L_h(after)), with the paper's decay.
    """

    needs_losses = True
    needs_after = True
    floor = 1e-8

    def __init__(self, heads: Sequence[str], seed: int) -> None:
        super().__init__(heads, seed)
        self.logits = _Adam(len(self.heads), rate=0.025, decay=0.001)
        self.last = np.ones(len(self.heads))

    def factors(self, step: int) -> dict[str, float]:
        return self._spread(_softmax(self.logits.values) / self.last)

    def update(self, before: Losses, after: Losses | None) -> None:
        if after is None:
            raise ValueError("famo needs the losses after the step")
        old = np.array([before.get(head, math.nan) for head in self.heads])
        new = np.array([after.get(head, math.nan) for head in self.heads])
        seen = ~np.isnan(old) & ~np.isnan(new)
        fall = np.where(seen, np.log(np.maximum(old, self.floor)) - np.log(np.maximum(new, self.floor)), 0.0)
        z = _softmax(self.logits.values)
        self.logits.step(np.where(seen, z * (fall - (z * fall).sum()), 0.0))  # of z·fall through the softmax
        self.last = np.where(seen, np.maximum(old, self.floor), self.last)

    def state(self) -> dict[str, Any]:
        return {"logits": self.logits.state(), "last": self.last.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.logits.restore(state["logits"])
        self.last = np.array(state["last"])


WEIGHTINGS: dict[str, Callable[[Sequence[str], int], Weighting]] = {
    "fixed": Weighting,
    "uncertainty": Uncertainty,
    "dwa": DynamicAverage,
    "rlw": Random,
    "famo": Famo,
}


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    result: np.ndarray = powers / powers.sum()
    return result
