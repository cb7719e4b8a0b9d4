"""Checkpoint(s) → one model that answers for all heads: one network for all of them, or one network a head.

Enters: a CKPT directory or hub id, or one for each head (`--compose`). Leaves: logits of examples, and the examples
decoded. Evaluation, prediction and calibration all stand on this; the forward pass itself is `inference`, and what is
done to the logits is `decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_re.config import Backend
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError, RowError, tell
from mtl_re.features.featurizer import Featurizer
from mtl_re.model.cpu import speed_up
from mtl_re.model.device import default_device, resolve_precision
from mtl_re.model.network import MtlReModel, join_heads, load, split_heads
from mtl_re.scoring.decoding import Decoded, Decoding, decode
from mtl_re.scoring.inference import Tick, all_logits

UNKNOWN = 0.1
"""Share of unknown tokens from which on a warning says so."""


class ComposedModel:
    """One network for all heads, or one for each, that answer as one model.

    Attributes:
        networks: head → (model, tokenizer). root: the network of the root head, whose training prior and relation
            threshold count. featurizers: id of a network → how rows are written for it. told: whether unknown tokens
            were warned of.

    Args:
        networks: (model, tokenizer) by head name, all over the same labels and heads.

    Raises:
        MtlReError: heads are missing or unknown, or the labels differ.
    """

    def __init__(self, networks: Mapping[str, tuple[MtlReModel, Any]]) -> None:
        self.networks = dict(networks)
        first = next(iter(self.networks.values()))[0]
        self.taxonomy = first.taxonomy
        heads = [head.name for head in self.taxonomy.heads]
        if set(self.networks) != set(heads):
            raise MtlReError(f"--compose: the heads are {', '.join(heads)}; given were {', '.join(self.networks)}")
        for model, _ in self.networks.values():
            if model.taxonomy.heads != self.taxonomy.heads:
                raise MtlReError("--compose: these checkpoints have different labels or heads")
        self.root = self.networks[self.taxonomy.root.name][0]
        self.config = self.root.config
        pairs = {id(pair[0]): pair for pair in self.networks.values()}
        self.featurizers = {key: featurizer_of(*pair) for key, pair in pairs.items()}
        self.told = False

    @classmethod
    def of(cls, model: MtlReModel, tokenizer: Any) -> ComposedModel:
        """Use one network for all heads."""
        return cls({head.name: (model, tokenizer) for head in model.taxonomy.heads})

    @classmethod
    def load(
        cls, checkpoint: str | Mapping[str, str], device: str | None = None, backend: Backend = "torch"
    ) -> ComposedModel:
        """Load one CKPT, or one for each head; a CKPT named twice is loaded once.

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
    def device(self) -> torch.device:
        """Where the root head's network computes."""
        return next((parameter.device for parameter in self.root.parameters()), torch.device("cpu"))

    @property
    def temperatures(self) -> dict[str, float]:
        """By head, from the network that the head comes from; 1 is left out."""
        stored = {name: model.config.temperatures.get(name, 1.0) for name, (model, _) in self.networks.items()}
        return {name: value for name, value in stored.items() if value != 1.0}

    def usable(self, examples: Iterable[Example], reject: Callable[[Example, RowError], None]) -> Iterator[Example]:
        """Yield the examples that every network can take, in order; the others go to `reject` with the reason."""

        def rejected(number: int, example: Example, error: RowError) -> None:
            reject(example, error)  # the number counts only the rows that the networks before could take

        for featurizer in self.featurizers.values():
            examples = (example for example, _ in featurizer.stream(examples, rejected))
        yield from examples

    def logits(
        self,
        examples: Sequence[Example],
        batch_size: int,
        precision: str = "no",
        progress: str | None = None,
        tick: Tick | None = None,
    ) -> Tensor:
        """Return (rows, all heads' classes side by side) float32 on the CPU; every distinct network runs once, and
        ticks."""
        by_network: dict[int, dict[str, Tensor]] = {}
        for head, (model, tokenizer) in ((head.name, self.networks[head.name]) for head in self.taxonomy.heads):
            if id(model) not in by_network:
                table = self.featurizers[id(model)].table(examples)
                self._tell_unknown(self.featurizers[id(model)].unknown_share(table))
                title = progress if not by_network or not progress else f"{progress} ({head})"
                pad_id, arithmetic = tokenizer.pad_token_id, resolve_precision(precision, self.device)
                side_by_side = all_logits(model, table, pad_id, batch_size, arithmetic, None, title, tick)
                by_network[id(model)] = split_heads(side_by_side, self.taxonomy)
        parts = {name: by_network[id(model)][name] for name, (model, _) in self.networks.items()}
        return join_heads(parts, self.taxonomy)

    def _tell_unknown(self, share: float) -> None:
        """Print, once, that the vocabulary does not know much of the text."""
        if share > UNKNOWN and not self.told:
            what = f"{100 * share:.0f} % of the tokens are unknown to this model's vocabulary ([UNK])"
            tell(f"warning: {what}; is the text in its language, and not in parts (NFD)?")
            self.told = True

    def decode(self, logits: Tensor, examples: Sequence[Example], decoding: Decoding) -> Decoded:
        """Decode logits of examples with the temperatures and the training prior of these networks."""
        return decode(
            split_heads(logits, self.taxonomy),
            self.taxonomy,
            decoding,
            temperatures=self.temperatures,
            trained=self.root.config.training_prior,
            subjects=[example.subject.type for example in examples],
        )


def _network(name: str, device: str | None, backend: Backend) -> tuple[Any, Any]:
    """Load one CKPT's network and tokenizer onto its device."""
    if backend == "torch":
        model, tokenizer = load(name)
        model.to(default_device() if device is None else torch.device(device))  # type: ignore[arg-type] # transformers wraps `to` untyped
        speed_up(model)
        return model, tokenizer
    from mtl_re.model.onnx_model import load_onnx

    if device not in (None, "cpu"):
        raise MtlReError(f"device {device!r}: the backend {backend} runs on the cpu; take backend torch for others")
    return load_onnx(name, backend)


def featurizer_of(model: MtlReModel, tokenizer: Any) -> Featurizer:
    """Make the featurizer that a checkpoint was trained with; it probes the tokenizer, so make it once."""
    config = model.config
    return Featurizer(
        tokenizer, model.taxonomy, config.markers, config.query, config.max_input_length, config.entity_types
    )


def checkpoint_or_composed(ckpt: str | None, compose: Sequence[str] | None) -> str | dict[str, str]:
    """Return the one checkpoint, or one for each head.

    Raises:
        MtlReError: both or neither were given.
    """
    if (ckpt is None) == (not compose):
        raise MtlReError("give a checkpoint, or --compose HEAD=CKPT ... for one a head")
    return parse_compose(compose or []) if ckpt is None else ckpt


def parse_compose(parts: Sequence[str]) -> dict[str, str]:
    """Parse `coarse=A org=B per=C` into head → checkpoint.

    Raises:
        MtlReError: a part is not HEAD=CKPT, or a head stands twice.
    """
    checkpoints: dict[str, str] = {}
    for part in parts:
        head, equals, checkpoint = part.partition("=")
        if not equals or not head or not checkpoint or head in checkpoints:
            raise MtlReError(f"--compose: {part!r}; expected HEAD=CKPT, each head once (coarse=A org=B per=C)")
        checkpoints[head] = checkpoint
    return checkpoints
