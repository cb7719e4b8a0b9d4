"""Logits and targets → one scalar.

Each head gives a sum S_h in fp32 over the rows it has a label for, and their number n_h (`HeadLoss`). `combine` is
the only place where a loss is multiplied by its head's weight (weights of classes are in S_h already):

    joint:     L = Σ_h w_h · S_h / N        N: rows of the optimizer step
    per_head:  L = Σ_h w_h · S_h / N_h      N_h: rows of the step that head h has a label for

N and N_h are counted over all processes and forward passes of the step, so that splitting a step changes nothing.
With unit weights `joint` is the mean negative log-likelihood of the product distribution p(coarse)·p(fine | coarse):
for a row with a fine head, -log p(c) - log p(f|c); without one, -log p(c). `per_head` multiplies head h by N / N_h:
a loss weight that no option shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_re.config import LossConfig
from mtl_re.errors import MtlReError, entry
from mtl_re.files import read_yaml
from mtl_re.taxonomy import IGNORE, Taxonomy


@dataclass(frozen=True)
class HeadLoss:
    """Raw, unweighted loss of one head on one forward pass.

    Attributes:
        sum: scalar fp32, summed over the rows with a label for this head; 0 with a zero gradient if there is none.
        count: scalar int64, the number of those rows.
        penalty: scalar fp32 that is trained with the sum, but is no part of the raw loss (R-Drop's divergence).
        weighted: scalar fp32 that is trained in place of the sum: the same with class weights.
    """

    sum: Tensor
    count: Tensor
    penalty: Tensor | None = None
    weighted: Tensor | None = None


Loss = Callable[[Tensor, Tensor, LossConfig, "Tensor | None"], Tensor]
"""(logits (batch, classes) fp32, targets (batch,), options, weights of the rows (batch,) or None for 1) → scalar sum
over rows whose target is not IGNORE."""


def cross_entropy(logits: Tensor, targets: Tensor, options: LossConfig, weights: Tensor | None = None) -> Tensor:
    """-log p(target), with label smoothing."""
    settings: dict[str, Any] = {"ignore_index": IGNORE, "label_smoothing": options.label_smoothing}
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", **settings)
    return (F.cross_entropy(logits, targets, reduction="none", **settings) * weights).sum()


def focal(logits: Tensor, targets: Tensor, options: LossConfig, weights: Tensor | None = None) -> Tensor:
    """(1 - p(target))^γ times cross entropy (Lin et al. 2017, arXiv 1708.02002)."""
    rows = F.cross_entropy(
        logits, targets, reduction="none", ignore_index=IGNORE, label_smoothing=options.label_smoothing
    )
    known = targets != IGNORE
    index = torch.where(known, targets, 0)
    # log p is at most 0; its exponential is clamped below 1 because the gradient of 0^γ is infinite for γ < 1.
    target_log = logits.log_softmax(-1).gather(1, index[:, None]).squeeze(1)
    easy = target_log.exp().clamp(max=1 - 1e-6)
    rows = torch.where(known, (1 - easy) ** options.focal_gamma, 0.0) * rows
    return (rows if weights is None else rows * weights).sum()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal}


def head_losses(
    logits: Mapping[str, Tensor],
    targets: Tensor,
    options: LossConfig,
    class_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, HeadLoss]:
    """Return the raw loss of every head, and what is trained where that is not the raw loss.

    Args:
        logits: By head, in taxonomy order, (views · batch, classes of the head): one or more forward passes of each
            row under different dropout, view by view; their losses are averaged.
        targets: (batch, heads), columns in the same order.
        options: which loss and its parameters.
        class_weights: By head, (classes of the head); see `class_weights`.
    """
    function = entry("loss.kind", options.kind, LOSSES)
    losses = {}
    for (name, scores), column in zip(logits.items(), targets.unbind(1), strict=True):
        views, scores = len(scores) // len(column), scores.float()
        repeated, weighted = column.repeat(views), None
        total = function(scores, repeated, options, None) / views
        if class_weights:
            of_rows = class_weights[name][torch.where(repeated != IGNORE, repeated, 0)]
            weighted = function(scores, repeated, options, of_rows) / views
        penalty = options.rdrop * divergence(scores, column) if options.rdrop else None
        losses[name] = HeadLoss(total, (column != IGNORE).sum(), penalty, weighted)
    return losses


def divergence(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the symmetric KL divergence ½ (KL(p‖q) + KL(q‖p)) of two forward passes of each row, summed over the
    labelled rows (R-Drop, Liang et al. 2021, arXiv 2106.14448).

    Args:
        scores: (2 · n · batch, classes) logits, the two passes in turn, n views of each.
        targets: (batch,).
    """
    one, other = scores.log_softmax(-1).view(-1, 2, len(targets), scores.shape[-1]).unbind(1)
    rows = 0.5 * ((one.exp() - other.exp()) * (one - other)).sum(-1)  # (n, batch), both directions in one sum
    return torch.where(targets != IGNORE, rows, 0.0).sum() / len(rows)


def combine(
    losses: Mapping[str, HeadLoss], counts: Mapping[str, int], rows: int, weights: Mapping[str, float], reduction: str
) -> Tensor:
    """Return the scalar to differentiate: this pass's share of the step's loss.

    Args:
        losses: raw losses of one forward pass.
        counts: by head, labelled rows in the whole optimizer step, over all processes and passes.
        rows: labelled rows in the whole step.
        weights: by head, normalised (see `normalise`).
        reduction: `joint` or `per_head`.
    """
    total = torch.zeros((), device=next(iter(losses.values())).sum.device)
    for name, loss in losses.items():
        if weights[name] == 0:  # an untrained head must not touch the sum, not even as 0 · inf
            continue
        denominator = rows if reduction == "joint" else counts[name]
        value = loss.sum if loss.weighted is None else loss.weighted
        value = value if loss.penalty is None else value + loss.penalty
        total = total + weights[name] * value / max(denominator, 1)
    return total


def normalise(weights: Mapping[str, float], heads: Sequence[str]) -> dict[str, float]:
    """Return the weights of all heads, scaled to sum to the number of heads; a head not named counts as 1.

    Scaling all weights alike changes the size of the loss and nothing else that Adam sees (except its epsilon), so
    only ratios are kept: an ablation moves on the simplex.

    Raises:
        MtlReError: A name is no head of this taxonomy, or all weights are 0.
    """
    if unknown := set(weights) - set(heads):
        raise MtlReError(f"loss.weights: no head is called {sorted(unknown)[0]!r}; the heads are {', '.join(heads)}")
    full = {name: float(weights.get(name, 1.0)) for name in heads}
    total = sum(full.values())
    if total <= 0:
        raise MtlReError("loss.weights: all weights are 0; at least one head must be trained")
    return {name: weight * len(heads) / total for name, weight in full.items()}


def class_weights(option: str, taxonomy: Taxonomy, targets: np.ndarray) -> dict[str, Tensor]:
    """Return the weights of the classes of each head; empty for `none`.

    `balanced` gives every class that has training rows the same weight in all; a YAML file maps names of classes to
    weights (1 where it names none). Either way the mean over the training rows of a head is 1, so that counts of rows
    stay the denominators of `combine`, and how a step is split changes nothing.

    Args:
        targets: (training rows, heads), as in the feature table.

    Raises:
        MtlReError: The file cannot be read, a name is no class of any head, or a weight is not above 0.
    """
    if option == "none":
        return {}
    given = {} if option == "balanced" else read_yaml(Path(option))
    known = {name for head in taxonomy.heads for name in head.classes}
    for name, value in given.items():
        if name not in known:
            raise MtlReError(
                f"loss.class_weights: {option}: {name!r} is no class of {', '.join(sorted(known)[:6])}, ..."
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise MtlReError(f"loss.class_weights: {option}: {name}: {value!r}; expected a number above 0")
    made = {}
    for column, head in enumerate(taxonomy.heads):
        labelled = targets[:, column][targets[:, column] != IGNORE]
        counts = np.bincount(labelled, minlength=len(head.classes)).astype(np.float64)
        weights = np.array([float(given.get(name, 1.0)) for name in head.classes])
        if option == "balanced":
            weights = 1 / np.maximum(counts, 1)
        if len(labelled):
            weights *= counts.sum() / (weights * counts).sum()
        made[head.name] = torch.tensor(weights, dtype=torch.float32)
    return made
