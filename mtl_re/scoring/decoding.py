"""Decoding: logits by head → probabilities of the final labels → one label a row.

The one place that knows the order: temperatures → product of the heads → prior → type restriction → threshold → gate.
The steps themselves are functions of `gating`, the prior by EM one of `calibration_fits`. Everything stays a float64
tensor; whoever computes metrics or writes files converts. What was applied is named by `Decoded.applied`, which
goes into the JSON of `evaluate`; files of predictions and triples do not name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

from torch import Tensor

from mtl_re.config import Gate, Restrict, parse_shares
from mtl_re.errors import MtlReError, tell
from mtl_re.scoring import calibration_fits, gating
from mtl_re.taxonomy import Taxonomy


@dataclass(frozen=True)
class Decoding:
    """What stands between product probabilities and a label.

    Attributes:
        gate: `hard` or `soft`.
        prior: `none`, `em` (estimated from the rows themselves, without labels), or target shares as text.
        restrict: `none`, or `subject_type`: only labels whose coarse class takes subjects of the row's type.
        threshold: a row is related if 1 - p(no_relation) reaches this (None: the gate alone decides).

    Raises:
        MtlReError: gate or restriction has another name.
    """

    gate: Gate = "hard"
    prior: str = "none"
    restrict: Restrict = "none"
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("gate", self.gate, get_args(Gate)),
            ("restrict", self.restrict, get_args(Restrict)),
        ):
            if value not in known:
                raise MtlReError(f"{name}: {value!r}; expected one of {', '.join(known)}")


def check_prior(prior: str, taxonomy: Taxonomy, trained: Sequence[float] | None) -> None:
    """Check target shares before any row is read.

    Raises:
        MtlReError: they are no shares, not one for each coarse class, or of a class that training never saw.
    """
    if prior in ("none", "em"):
        return
    shares = parse_shares("--prior", prior)
    if trained is not None:
        gating.check_shares(taxonomy, shares, trained)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Rows after decoding.

    Attributes:
        probs: (rows, labels) float64, in taxonomy order.
        decoding: what was applied. shares: the target prior in numbers, if one was applied.
        temperatures: by head, as applied.
        unrestricted: (rows, labels) probabilities before the restriction, by which heads are judged; None without one.
    """

    probs: Tensor
    taxonomy: Taxonomy
    decoding: Decoding
    shares: list[float] | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    unrestricted: Tensor | None = None

    @cached_property
    def hard(self) -> Tensor:
        """(rows,) labels by the hard gate."""
        return gating.labels(self.probs, self.taxonomy, "hard", self.decoding.threshold)

    @cached_property
    def soft(self) -> Tensor:
        """(rows,) labels by the soft gate."""
        return gating.labels(self.probs, self.taxonomy, "soft", self.decoding.threshold)

    @property
    def labels(self) -> Tensor:
        """(rows,) indices of the predicted labels, by the gate of the decoding."""
        return self.hard if self.decoding.gate == "hard" else self.soft

    def applied(self) -> dict[str, Any]:
        """Return what was applied between logits and labels, as JSON values."""
        prior = self.decoding.prior
        if prior == "em" and self.shares is not None:
            numbers = ", ".join(f"{share:.4f}" for share in self.shares)
            prior = f"em (estimated from these rows without their labels): {numbers}"
        return {
            "prior": prior,
            "temperatures": dict(self.temperatures),
            "restrict": self.decoding.restrict,
            "threshold": self.decoding.threshold,
        }


def decode(
    logits: Mapping[str, Tensor],
    taxonomy: Taxonomy,
    decoding: Decoding,
    *,
    temperatures: Mapping[str, float] | None = None,
    trained: Sequence[float] | None = None,
    subjects: Sequence[str] = (),
) -> Decoded:
    """Decode logits.

    Args:
        logits: by head, (rows, classes of the head).
        temperatures: by head, divides its logits (absent: 1).
        trained: (groups,) the training prior; needed where the decoding shifts the prior.
        subjects: (rows,) entity types of the subjects; needed where the decoding restricts labels by them.

    Raises:
        MtlReError: the decoding shifts the prior, and the training prior is unknown or does not fit.
    """
    temperatures = temperatures or {}
    probs = gating.product({name: part.double() for name, part in logits.items()}, taxonomy, temperatures)
    shares: list[float] | None = None
    if decoding.prior != "none" and len(probs):
        if trained is None:
            raise MtlReError("--prior: this checkpoint does not record the prior it was trained under")
        if decoding.prior == "em":
            shares = calibration_fits.em_prior(gating.coarse(probs, taxonomy).numpy(), trained)
        else:
            shares = parse_shares("--prior", decoding.prior)
        probs = gating.shift_prior(probs, taxonomy, shares, trained)
    unrestricted = None
    if decoding.restrict == "subject_type":
        probs, unrestricted = gating.restrict(probs, taxonomy, subjects), probs
    applied = replace(decoding, prior="none" if shares is None else decoding.prior)
    return Decoded(probs, taxonomy, applied, shares, temperatures, unrestricted)


def decoding_of(
    configs: Sequence[Any], prior: str, threshold: str, gate: Gate | None = None, restrict: Restrict = "none"
) -> Decoding:
    """Return the decoding that a command's options ask for.

    Args:
        configs: of the checkpoints: one, or those that vote together.
        threshold: `none`, or `stored`: what `mtl-re calibrate` left in the checkpoint, which is applied together with
            the prior that it was fitted under.
        gate: None: the first checkpoint's own.

    Raises:
        MtlReError: a stored threshold was asked for, and there is none, or it was fitted under other circumstances.
    """
    value = None
    if threshold == "stored":
        prior, value = _stored(configs, prior, restrict)
    return Decoding(gate or configs[0].gate, prior, restrict, value)


def _stored(configs: Sequence[Any], prior: str, restrict: Restrict) -> tuple[str, float]:
    """Return the stored threshold's prior and the threshold itself."""
    value, shares = configs[0].relation_threshold, configs[0].relation_threshold_prior
    if value is None:
        raise MtlReError("--threshold stored: this checkpoint holds none; `mtl-re calibrate` fits one")
    if any((one.relation_threshold, one.relation_threshold_prior) != (value, shares) for one in configs):
        raise MtlReError("--threshold stored: a vote applies one threshold, and these checkpoints hold different ones")
    _check_unrestricted(restrict)
    if shares is None:
        text = "an older version stored it and does not record the prior it was fitted under; it is applied with"
        tell(f"--threshold stored: {text} --prior {prior} (`mtl-re calibrate` fits it anew)")
        return prior, value
    return _fitted_prior(prior, shares), value


def stored_thresholds(
    configs: Sequence[Any], taxonomy: Taxonomy, prior: str, restrict: Restrict
) -> tuple[str, dict[str, float | None]]:
    """Return the relations' own thresholds that `mtl-re calibrate --precision` stored, and the prior to apply first.

    Args:
        configs: of the checkpoints: one, or those that vote together.
        prior: as asked for; `none` stands for the prior that the thresholds were fitted under.

    Returns:
        The prior, as text; and relation → least score of its triples (None: none is given).

    Raises:
        MtlReError: no thresholds are stored, or they were fitted under other circumstances, or for other relations.
    """
    values, shares = configs[0].relation_thresholds, configs[0].relation_thresholds_prior
    if values is None:
        what = "this checkpoint holds none for single relations"
        raise MtlReError(f"--threshold stored: {what}; `mtl-re calibrate CKPT --precision 0.9` fits them")
    if any((one.relation_thresholds, one.relation_thresholds_prior) != (values, shares) for one in configs):
        raise MtlReError("--threshold stored: a vote applies one threshold, and these checkpoints hold different ones")
    _check_unrestricted(restrict)
    relations = {label for label in taxonomy.labels if label != taxonomy.no_relation}
    if odd := sorted(relations ^ set(values)):
        what = f"the stored thresholds are not those of this checkpoint's relations ({odd[0]!r})"
        raise MtlReError(f"--threshold stored: {what}; fit them again with `mtl-re calibrate CKPT --precision 0.9`")
    return _fitted_prior(prior, shares or []), dict(values)


def _check_unrestricted(restrict: Restrict) -> None:
    """Refuse a restriction beside a stored threshold."""
    if restrict != "none":
        raise MtlReError("--threshold stored: it was fitted without --restrict, which shifts p(no_relation); give one")


def _fitted_prior(prior: str, shares: Sequence[float]) -> str:
    """Return the prior that a stored threshold was fitted under (no shares: the training prior), unless another was
    asked for."""
    fitted = ",".join(map(repr, shares)) if shares else "none"
    if prior not in ("none", fitted) and not (prior != "em" and shares and _near(prior, shares)):
        raise MtlReError(f"--threshold stored: it was fitted under the prior {fitted}, not {prior}; leave --prior out")
    return fitted


def _near(prior: str, shares: Sequence[float]) -> bool:
    """Whether a prior given as text is these shares, rounded to three decimals or more."""
    given = parse_shares("--prior", prior)
    return len(given) == len(shares) and all(abs(a - b) < 1e-3 for a, b in zip(given, shares, strict=True))
