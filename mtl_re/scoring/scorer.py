"""Checkpoint(s) → probabilities of examples: one network, or one network a head composed by the same gate.

Enters: a CKPT directory or hub id (or one for each head). Leaves: (rows, labels) probabilities and labels; all that was
applied on the way (temperatures, prior, type restriction, threshold, gate) is named by `Scored.describe`. Evaluation,
prediction and calibration all stand on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtl_re.config import Backend, Gate, Restrict, parse_shares
from mtl_re.errors import MtlReError, RowError
from mtl_re.features.featurizer import Featurizer
from mtl_re.model.cpu import speed_up
from mtl_re.model.device import default_device, resolve_precision
from mtl_re.model.network import MtlReModel, load
from mtl_re.scoring import calibration, gating
from mtl_re.scoring.inference import Tick, all_logits, probabilities
from mtl_re.taxonomy import Taxonomy

if TYPE_CHECKING:
    from mtl_re.data.validation import Example


@dataclass(frozen=True)
class Reading:
    """How product probabilities become the reported ones, and a label.

    Attributes:
        gate: `hard` or `soft`.
        prior: `none`, `em` (from the rows themselves, without labels), or target shares as text.
        restrict: `none`, or `subject_type`: only labels whose coarse class takes subjects of the row's type.
        threshold: a row is related if 1 - p(no_relation) reaches this (None: the gate alone decides).
    """

    gate: Gate = "hard"
    prior: str = "none"
    restrict: Restrict = "none"
    threshold: float | None = None


class Scorer:
    """One network for all heads, or one for each.

    Args:
        networks: (model, tokenizer) by head name, all over the same labels and heads.

    Raises:
        MtlReError: heads are missing or unknown, or the labels differ.
    """

    def __init__(self, networks: Mapping[str, tuple[MtlReModel, Any]]) -> None:
        self.networks = dict(networks)
        first = next(iter(self.networks.values()))[0]
        self.taxonomy, self.config = first.taxonomy, first.config
        heads = [head.name for head in self.taxonomy.heads]
        if set(self.networks) != set(heads):
            raise MtlReError(f"--compose: the heads are {', '.join(heads)}; given were {', '.join(self.networks)}")
        for model, _ in self.networks.values():
            if model.taxonomy.heads != self.taxonomy.heads:
                raise MtlReError("--compose: these checkpoints have different labels or heads")
        self.root = self.networks[self.taxonomy.root.name][0]

    @classmethod
    def of(cls, model: MtlReModel, tokenizer: Any) -> Scorer:
        """One network for all heads."""
        return cls({head.name: (model, tokenizer) for head in model.taxonomy.heads})

    @classmethod
    def load(cls, checkpoint: str | Mapping[str, str], device: str | None = None, backend: Backend = "torch") -> Scorer:
        """From a CKPT, or from one for each head; a CKPT named twice is loaded once.

        Args:
            backend: `torch`, or a graph of an exported directory: `onnx`, `onnx-int8`; both run on the CPU.

        Raises:
            MtlReError: a checkpoint cannot be loaded, or a graph was asked onto another device.
        """
        names = {checkpoint} if isinstance(checkpoint, str) else set(checkpoint.values())
        loaded = {name: _network(name, device, backend) for name in sorted(names)}
        if isinstance(checkpoint, str):
            return cls.of(*loaded[checkpoint])
        return cls({head: loaded[name] for head, name in checkpoint.items()})

    @property
    def temperatures(self) -> dict[str, float]:
        """By head, from the network that the head comes from; 1 is left out."""
        found = {name: model.config.temperatures.get(name, 1.0) for name, (model, _) in self.networks.items()}
        return {name: value for name, value in found.items() if value != 1.0}

    def usable(self, examples: Iterable[Example], reject: Callable[[Example, RowError], None]) -> Iterator[Example]:
        """The examples that every network can take, in order; the others go to `reject` with the reason."""

        def told(number: int, example: Example, error: RowError) -> None:
            reject(example, error)  # the number is one among the rows that the networks before could take

        for model, tokenizer in {id(pair[0]): pair for pair in self.networks.values()}.values():
            examples = (example for example, _ in featurizer_of(model, tokenizer).stream(examples, told))
        yield from examples

    def logits(
        self,
        examples: Sequence[Example],
        batch_size: int,
        precision: str = "no",
        progress: str | None = None,
        tick: Tick | None = None,
    ) -> np.ndarray:
        """(rows, all heads' classes side by side) float32; every distinct network runs once, and ticks."""
        done: dict[int, np.ndarray] = {}
        columns, start = [], 0
        for head in self.taxonomy.heads:
            model, tokenizer = self.networks[head.name]
            if id(model) not in done:
                table = featurizer_of(model, tokenizer).table(examples)
                title = progress if len(done) == 0 else f"{progress} ({head.name})" if progress else None
                pad_id, arithmetic = tokenizer.pad_token_id, resolve_precision(precision)
                done[id(model)] = all_logits(model, table, pad_id, batch_size, arithmetic, None, title, tick)
            columns.append(done[id(model)][:, start : start + len(head.classes)])
            start += len(head.classes)
        return np.concatenate(columns, axis=1)

    def read(self, logits: np.ndarray, examples: Sequence[Example], reading: Reading) -> Scored:
        """Logits → probabilities and labels under a reading."""
        probs = torch.from_numpy(probabilities(logits, self.taxonomy, self.temperatures))
        subjects = [example.subject.type for example in examples]
        probs, shares = apply_reading(probs, self.taxonomy, self.root.config.training_prior, subjects, reading)
        return Scored(probs.numpy(), self, replace(reading, prior="none" if shares is None else reading.prior), shares)


def _network(name: str, device: str | None, backend: Backend) -> tuple[Any, Any]:
    """One CKPT's network and tokenizer, on its device."""
    if backend == "torch":
        model, tokenizer = load(name)
        place = default_device() if device is None else torch.device(device)
        model.to(place)  # type: ignore[arg-type] # transformers wraps `to` untyped
        speed_up(model)
        return model, tokenizer
    from mtl_re.model.onnx_model import load_onnx

    if device not in (None, "cpu"):
        raise MtlReError(f"device {device!r}: the backend {backend} runs on the cpu; take backend torch for others")
    return load_onnx(name, backend)


def apply_reading(
    probs: torch.Tensor, taxonomy: Taxonomy, trained: Sequence[float] | None, subjects: Sequence[str], reading: Reading
) -> tuple[torch.Tensor, list[float] | None]:
    """A reading's prior, then its restriction: the one place that knows their order.

    Args:
        probs: (rows, labels) after temperatures. trained: the training prior, if known.
        subjects: (rows,) entity types of the subjects.

    Returns:
        The probabilities, and the target shares if a prior was applied.

    Raises:
        MtlReError: a prior is asked for, and the training prior is unknown.
    """
    shares: list[float] | None = None
    if reading.prior != "none" and len(probs):
        if trained is None:
            raise MtlReError("--prior: this checkpoint does not record the prior it was trained under")
        em = reading.prior == "em"
        coarse = gating.coarse(probs, taxonomy).numpy()
        shares = calibration.em_prior(coarse, trained) if em else parse_shares("--prior", reading.prior)
        probs = gating.shift_prior(probs, taxonomy, shares, trained)
    if reading.restrict == "subject_type":
        probs = gating.restrict(probs, taxonomy, subjects)
    return probs, shares


@dataclass(frozen=True)
class Scored:
    """Rows as a reading sees them.

    Attributes:
        probs: (rows, labels) float64 in taxonomy order.
        scorer: whose they are. reading: what was applied. shares: the target prior in numbers, if one was applied.
    """

    probs: np.ndarray
    scorer: Scorer
    reading: Reading
    shares: list[float] | None

    def labels(self, gate: Gate | None = None) -> np.ndarray:
        """(rows,) indices of the predicted labels, by the reading's gate or another one."""
        probs, taxonomy = torch.from_numpy(self.probs), self.scorer.taxonomy
        return gating.labels(probs, taxonomy, gate or self.reading.gate, self.reading.threshold).numpy()

    def describe(self) -> dict[str, Any]:
        """What was applied between logits and labels; goes into every output."""
        prior = self.reading.prior
        if prior == "em" and self.shares is not None:
            numbers = ", ".join(f"{share:.4f}" for share in self.shares)
            prior = f"em (estimated from these rows without their labels): {numbers}"
        return {
            "prior": prior,
            "temperatures": self.scorer.temperatures,
            "restrict": self.reading.restrict,
            "threshold": self.reading.threshold,
        }


def featurizer_of(model: MtlReModel, tokenizer: Any) -> Featurizer:
    """The featurizer a checkpoint was trained with."""
    config = model.config
    return Featurizer(
        tokenizer, model.taxonomy, config.markers, config.query, config.max_input_length, config.entity_types
    )


def parse_compose(parts: Sequence[str]) -> dict[str, str]:
    """`coarse=A org=B per=C` → head → checkpoint.

    Raises:
        MtlReError: a part is not HEAD=CKPT, or a head stands twice.
    """
    found: dict[str, str] = {}
    for part in parts:
        head, equals, checkpoint = part.partition("=")
        if not equals or not head or not checkpoint or head in found:
            raise MtlReError(f"--compose: {part!r}; expected HEAD=CKPT, each head once (coarse=A org=B per=C)")
        found[head] = checkpoint
    return found
