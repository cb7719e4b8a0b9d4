"""The steps of decoding: heads → probabilities over the final labels → one label. No training loss goes through here.

Probabilities are always the full product p(coarse)·p(fine | coarse): zeros outside the gated branch would leave F1 as
it is and ruin AUPRC. A target prior shifts the coarse classes, p'(c) ∝ p(c)·π_target(c)/π_train(c) (Saerens et al.
2002), and p(fine | coarse) stays the same. The gate then chooses the label: the hard gate takes the most probable root
class and then the most probable label under it; the soft gate takes the most probable label of all. With one flat head
both are the plain argmax. `decoding` applies the steps in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl_re.config import Gate
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy


def product(
    logits: Mapping[str, Tensor], taxonomy: Taxonomy, temperatures: Mapping[str, float] | None = None
) -> Tensor:
    """Return the probabilities of the final labels.

    Args:
        logits: by head, (batch, classes).
        temperatures: by head, divides its logits (absent: 1).

    Returns:
        (batch, labels), rows summing to 1, in the dtype of the logits.
    """
    scale = temperatures or {}
    log_p = {name: (scores / scale.get(name, 1.0)).log_softmax(-1) for name, scores in logits.items()}
    root = log_p[taxonomy.root.name]
    columns: list[Tensor] = [root[:, 0]] * len(taxonomy.labels)
    for position, (name, branch) in enumerate(zip(taxonomy.root.classes, taxonomy.branches, strict=True)):
        for rank, label in enumerate(branch):
            fine = log_p[name][:, rank] if len(branch) > 1 else 0.0
            columns[label] = root[:, position] + fine
    return torch.stack(columns, dim=-1).exp()


def coarse(probs: Tensor, taxonomy: Taxonomy) -> Tensor:
    """Return the probabilities of the coarse classes: (batch, labels) → (batch, groups)."""
    groups = torch.tensor(taxonomy.group_of_label, device=probs.device)
    return torch.zeros(probs.shape[0], len(taxonomy.groups), dtype=probs.dtype, device=probs.device).index_add(
        1, groups, probs
    )


def shift_prior(probs: Tensor, taxonomy: Taxonomy, target: Sequence[float], trained: Sequence[float]) -> Tensor:
    """Return the probabilities under another prior of the coarse classes.

    Args:
        probs: (batch, labels) under the training prior.
        target: share of each coarse class where the model is used.
        trained: share of each coarse class in the training rows.

    Raises:
        MtlReError: the number of shares does not fit, or training never saw one of the coarse classes.
    """
    check_shares(taxonomy, target, trained)
    ratio = torch.tensor([t / s for t, s in zip(target, trained, strict=True)], dtype=probs.dtype, device=probs.device)
    shifted = probs * ratio[torch.tensor(taxonomy.group_of_label, device=probs.device)]
    return shifted / shifted.sum(-1, keepdim=True)


def check_shares(taxonomy: Taxonomy, target: Sequence[float], trained: Sequence[float]) -> None:
    """Raise MtlReError where `shift_prior` cannot go from one prior of the coarse classes to the other."""
    names = list(taxonomy.groups)
    if len(target) != len(names) or len(trained) != len(names):
        raise MtlReError(f"prior: {len(target)} shares for {len(names)} coarse classes ({', '.join(names)})")
    if min(trained) <= 0:
        raise MtlReError(f"prior: coarse class {names[list(trained).index(min(trained))]!r} had no training row")


def restrict(probs: Tensor, taxonomy: Taxonomy, subjects: Sequence[str]) -> Tensor:
    """Rule out every label whose coarse class does not take a subject of the row's type.

    On KLUE-RE the subject's type all but decides between org and per (13 exceptions among the 3,134 related rows of
    its validation split). no_relation takes any type, and so does a coarse class whose `subject_types` are empty or not
    given. A row of which nothing would be left stays as it was.

    Args:
        probs: (batch, labels).
        subjects: (batch,) entity types of the subjects.
    """
    types = taxonomy.subject_types or {}
    takes = [types.get(name, ()) for name in taxonomy.groups]  # empty: any type
    kinds = sorted(set(subjects))
    table = torch.tensor(
        [[not takes[group] or kind in takes[group] for group in taxonomy.group_of_label] for kind in kinds],
        dtype=probs.dtype,
        device=probs.device,
    ).reshape(len(kinds), len(taxonomy.labels))
    kept = probs * table[[kinds.index(kind) for kind in subjects]]
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(torch.finfo(probs.dtype).tiny), probs)


def labels(probs: Tensor, taxonomy: Taxonomy, gate: Gate, threshold: float | None = None) -> Tensor:
    """Return the index of the predicted label: (batch, labels) → (batch,).

    Args:
        gate: `hard`: the most probable root class, then the most probable label under it; `soft`: the most probable
            label.
        threshold: a row is related if 1 - p(no_relation) reaches this, and the gate chooses among the relations (None:
            the gate decides whether a row is related as well).

    Raises:
        MtlReError: a threshold is given, and the taxonomy has no no_relation label.
    """
    if threshold is None:
        return _gated(probs, taxonomy, gate)
    if taxonomy.no_relation is None:
        raise MtlReError("threshold: this label set has no no_relation label")
    none = taxonomy.labels.index(taxonomy.no_relation)
    relations = probs.clone()
    relations[:, none] = -1.0  # below every probability, so that the gate never chooses it
    related = 1 - probs[:, none] >= threshold
    return torch.where(related, _gated(relations, taxonomy, gate), none)


def best_relation(probs: Tensor, taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
    """Return the most probable label of each row that is a relation, and its probability.

    No gate decides here: the hard gate may open a coarse class that holds no relation as probable as one outside it.

    Args:
        probs: (batch, labels).

    Returns:
        Indices into `taxonomy.labels` (batch,) and probabilities (batch,). Where the taxonomy has no `no_relation`,
        every label is a relation.
    """
    candidates = probs
    if taxonomy.no_relation is not None:
        candidates = probs.clone()
        candidates[:, taxonomy.labels.index(taxonomy.no_relation)] = -1.0  # below every probability
    best = candidates.max(dim=-1)
    return best.indices, best.values


def _gated(probs: Tensor, taxonomy: Taxonomy, gate: Gate) -> Tensor:
    """Let the coarse prediction decide which fine head speaks: `hard` takes the best label inside the most probable
    coarse class, `soft` the best of all labels. Shapes: probs (rows, labels); result (rows,) label indices."""
    if gate == "soft":
        return probs.argmax(-1)
    root = torch.stack([probs[:, list(branch)].sum(-1) for branch in taxonomy.branches], dim=-1)
    opened = torch.zeros(len(taxonomy.branches), len(taxonomy.labels), dtype=torch.bool, device=probs.device)
    for position, branch in enumerate(taxonomy.branches):
        opened[position, list(branch)] = True
    return probs.masked_fill(~opened[root.argmax(-1)], -2.0).argmax(-1)
