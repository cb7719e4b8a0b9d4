"""Parameter groups and the learning-rate schedule.

The schedule is a pure function of the step, set on the groups before every step: there is no scheduler object whose
state could be lost, or that could step once a process (accelerate #2926).
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from mtl_re.config import OptimConfig
from mtl_re.errors import MtlReError

_NOT_DECAYED = re.compile(r"(^|\.)bias$|norm[^.]*\.weight$|layernorm", re.IGNORECASE)
_LAYER = re.compile(r"\.layers?\.(\d+)\.")


def parameter_groups(model: nn.Module, options: OptimConfig) -> list[dict[str, Any]]:
    """Return groups of the trainable parameters by peak rate and decay.

    The encoder's rate falls by `layer_decay` for each layer further from the heads (the embeddings lie below layer 0;
    what comes after the last layer counts as the top). Parameters that take no gradient are left out, so neither decay
    nor momentum can move them.

    Raises:
        MtlReError: `layer_decay` is asked of an encoder whose layers have no numbers, such as ALBERT's shared one.

    Returns:
        Groups with `params`, `names` (same order), `peak_lr`, `lr`, `weight_decay`.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = 1 + max((int(found[1]) for name, _ in named if (found := _LAYER.search(name))), default=-1)
    if layers == 0 and options.layer_decay != 1:
        raise MtlReError(
            "optim.layer_decay: this encoder has no numbered layers, so their rates cannot differ; leave it 1"
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        rate = _peak(name, layers, options)
        decay = 0.0 if _NOT_DECAYED.search(name) else options.weight_decay
        group = groups.setdefault(
            (rate, decay), {"params": [], "names": [], "peak_lr": rate, "lr": rate, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _peak(name: str, layers: int, options: OptimConfig) -> float:
    if not name.startswith("encoder."):
        return options.lr if options.head_lr is None else options.head_lr
    if found := _LAYER.search(name):
        below_top = layers - 1 - int(found[1])
    else:
        below_top = layers if "embed" in name else 0
    return options.lr * options.layer_decay**below_top


def make_optimizer(model: nn.Module, options: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) over `parameter_groups`, fused where torch has a fused kernel."""
    return torch.optim.AdamW(parameter_groups(model, options), lr=options.lr, betas=(0.9, options.beta2), fused=True)


def rate_factor(step: int, total: int, options: OptimConfig) -> float:
    """Return the factor on every peak rate at a step.

    Args:
        step: Steps already taken, from 0.
        total: Steps of the whole run.
    """
    warmup = math.ceil(total * options.warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if options.schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1.0


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
