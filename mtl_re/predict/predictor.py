"""`Predictor`: one or several checkpoints as a Python object. The command `mtl-re predict` is `predict`.

Rows pass through in windows: each window is tokenised, sorted by length, batched, and put back in input order, so
memory depends on the window and not on the input. Several checkpoints vote softly: the mean of their probabilities.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch

from mtl_re.config import Backend, Gate, Restrict
from mtl_re.data.validation import Example, parse_row
from mtl_re.errors import MtlReError, RowError
from mtl_re.model.device import resolve_precision
from mtl_re.predict import triples
from mtl_re.predict.triples import EntityLike, Triple
from mtl_re.predict.vote import vote_shares
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoded, Decoding, check_prior, stored_thresholds
from mtl_re.scoring.inference import Tick
from mtl_re.scoring.writers import Prediction, predictions_of


class Predictor:
    """One or several models over the same labels that answer as one.

    Args:
        members: The models; their probabilities are averaged.
        decoding: How logits become labels (None: by the first member's own gate, and nothing else is applied).
        batch_size: Rows of one forward pass.
        precision: Arithmetic of the forward pass: `no` (fp32), `bf16`, `fp16` or `auto`.
        weights: Of the members in the mean, such as `2,1` (None: equal ones).

    Raises:
        MtlReError: The members' labels differ, the prior would need all rows at once, or `batch_size` is below 1.
    """

    def __init__(
        self,
        members: Sequence[ComposedModel],
        decoding: Decoding | None = None,
        batch_size: int = 128,
        precision: str = "no",
        weights: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise MtlReError(f"batch_size: {batch_size}; expected 1 or more")
        self.members, self.taxonomy = list(members), members[0].taxonomy
        for member in members[1:]:
            if set(member.taxonomy.labels) != set(self.taxonomy.labels):
                raise MtlReError("these checkpoints have different labels; they cannot vote together")
        self.decoding = decoding or Decoding(gate=members[0].config.gate)
        if self.decoding.prior == "em":
            raise MtlReError("--prior em reads all rows before it answers; give shares, or see `mtl-re evaluate`")
        if self.decoding.prior != "none":
            for one in members:
                check_prior(self.decoding.prior, one.taxonomy, one.root.config.training_prior)
            divided = [[(name, {*labels}) for name, labels in one.taxonomy.groups.items()] for one in members]
            if any(other != divided[0] for other in divided[1:]):
                what = "these checkpoints divide the labels into coarse classes, or order these, differently"
                raise MtlReError(f"--prior: {what}; leave it out")
        self.batch_size, self.precision = batch_size, resolve_precision(precision, members[0].device)
        self.weights = None if weights is None else vote_shares(weights, len(self.members))

    @classmethod
    def from_pretrained(
        cls,
        *checkpoints: str | Mapping[str, str],
        device: str | None = None,
        gate: Gate | None = None,
        prior: str = "none",
        restrict: Restrict = "none",
        batch_size: int = 128,
        precision: str = "no",
        backend: Backend = "torch",
    ) -> Predictor:
        """Load CKPT directories or hub ids, or maps from head to checkpoint (see `ComposedModel`); several vote softly.

        Args:
            device: Name of a torch device (None: the GPU if there is one).
            gate: `hard`: the most probable coarse class, then the best label in it; `soft`: the best label of all
                (None: the first checkpoint's own).
            prior: `none`, or shares of the coarse classes such as `0.6,0.17,0.23`.
            restrict: `none`, or `subject_type`: only labels whose coarse class takes subjects of the row's type.
            backend: `torch`, or a graph of an exported directory, run by onnxruntime on the CPU: `onnx`, `onnx-int8`.

        Raises:
            MtlReError: A checkpoint cannot be loaded, or a precision is asked of a graph, whose file fixes it.
        """
        if backend != "torch" and precision not in ("no", "auto"):
            raise MtlReError(f"precision {precision}: the backend {backend} computes as its file says; leave it out")
        precision = "no" if backend != "torch" else precision
        members = [ComposedModel.load(checkpoint, device, backend) for checkpoint in checkpoints]
        decoding = Decoding(gate or members[0].config.gate, prior, restrict)
        return cls(members, decoding, batch_size, precision)

    def probabilities(self, examples: Sequence[Example], tick: Tick | None = None) -> np.ndarray:
        """Return (examples, labels) float64 in the order of `taxonomy.labels`, the mean over the members.

        Args:
            tick: Called after every batch with the number of its rows; each of the `networks` passes over all rows.
        """
        return self._decoded(examples, tick).probs.numpy()

    def _decoded(self, examples: Sequence[Example], tick: Tick | None = None) -> Decoded:
        """Decode the mean of the members' probabilities."""
        total = torch.zeros(len(examples), len(self.taxonomy.labels), dtype=torch.float64)
        for number, member in enumerate(self.members):
            logits = member.logits(examples, self.batch_size, self.precision, tick=tick)
            columns = [member.taxonomy.labels.index(label) for label in self.taxonomy.labels]
            probs = member.decode(logits, examples, self.decoding).probs[:, columns]
            total += probs if self.weights is None else probs * float(self.weights[number])
        return Decoded(total / len(self.members) if self.weights is None else total, self.taxonomy, self.decoding)

    @cached_property
    def digests(self) -> list[str]:
        """For each member the SHA-256 of all that its logits follow from (`Predictor`s are not trained further)."""
        return [_digest(member) for member in self.members]

    @property
    def entity_types(self) -> list[str]:
        """The entity types that all members were trained with; empty if one of them does not say."""
        known = [set(model.config.entity_types) for member in self.members for model, _ in member.networks.values()]
        return sorted(set.intersection(*known))

    @property
    def networks(self) -> int:
        """Number of distinct networks that a row passes through."""
        return sum(len({id(model) for model, _ in member.networks.values()}) for member in self.members)

    def usable(self, examples: Sequence[Example], reject: Callable[[Example, RowError], None]) -> list[Example]:
        """Return the examples that every member can take, in order; the others go to `reject` with the reason."""
        for member in self.members:
            examples = list(member.usable(examples, reject))
        return list(examples)

    def predict(self, rows: Sequence[Example | Mapping[str, Any]], tick: Tick | None = None) -> list[Prediction]:
        """Return one prediction for each row, in order.

        Args:
            rows: Examples, or maps in KLUE's form (see `parse_row`).
            tick: As for `probabilities`.

        Raises:
            MtlReError: A map is no row; the message names the first such row, counted from 1, and its field.
        """
        return self._predict(self._parsed(rows, first=1), tick)

    def _predict(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Prediction]:
        if not examples:
            return []
        return list(predictions_of(self._decoded(examples, tick), examples))

    def extract(
        self,
        sentence: str,
        entities: Sequence[EntityLike],
        threshold: float | Literal["stored"] | Mapping[str, float | None] = 0.5,
    ) -> list[Triple]:
        """Return the relations between the entities of one sentence, the most probable first.

            >>> predictor.extract("세종대왕은 조선의 왕이다.", [(0, 3, "PER"), (6, 7, "LOC"), (10, 10, "POH")])
            [Triple(subject=Entity(word='세종대왕', ...), relation='per:title', object=Entity(word='왕', ...), ...)]

        Args:
            entities: Each an `Entity`, (start, end, type), or a map of start, end, type and perhaps word; spans are
                inclusive Python characters. Every ordered pair whose spans do not cross and whose subject type the
                taxonomy's relations take is scored, all pairs at once.
            threshold: Least score. A pair gives its most probable relation, whatever class the gate would open; the
                score is the probability p(coarse)·p(fine | coarse) of that relation. `stored`: each relation's own
                threshold, as `mtl-re calibrate --precision` left it in the checkpoint, under the prior of its fit. Or
                a map from relation to its threshold (None: no triple of it is given).

        Raises:
            MtlReError: An entity is at fault; the message names it. Or no thresholds are stored, or other ones in
                another member.
        """
        predictor, least = self.with_stored_thresholds() if threshold == "stored" else (self, threshold)
        keep = triples.keeps(self.taxonomy, least)
        pairs, _ = triples.candidates(sentence, entities, self.taxonomy, self.entity_types)
        return triples.triples_of(pairs, predictor.probabilities(pairs), self.taxonomy, keep) if pairs else []

    def with_stored_thresholds(self) -> tuple[Predictor, dict[str, float | None]]:
        """Return this predictor under the prior that the stored thresholds were fitted under, and the thresholds:
        relation → least score of its triples (None: none is given).

        Raises:
            MtlReError: No thresholds are stored, or they were fitted under other circumstances.
        """
        configs = [member.root.config for member in self.members]
        given = self.decoding
        prior, thresholds = stored_thresholds(configs, self.taxonomy, given.prior, given.restrict)
        made = copy.copy(self)
        made.decoding = replace(given, prior=prior)
        return made, thresholds

    def predict_stream(self, rows: Iterable[Example | Mapping[str, Any]], window: int = 4096) -> Iterator[Prediction]:
        """Yield what `predict` returns, for any number of rows, holding `window` of them at a time.

        Raises:
            MtlReError: `window` is below 1, or a row is at fault.
        """
        if window < 1:
            raise MtlReError(f"window: {window}; expected 1 or more")
        remaining, first = iter(rows), 1
        while chunk := list(islice(remaining, window)):
            yield from self._predict(self._parsed(chunk, first))
            first += len(chunk)

    def _parsed(self, rows: Sequence[Example | Mapping[str, Any]], first: int) -> list[Example]:
        examples = []
        for number, row in enumerate(rows, first):
            try:
                examples.append(parse_row(row, self.taxonomy, number) if isinstance(row, Mapping) else row)
            except RowError as error:
                raise MtlReError(f"row {number}: {error}") from error
        return examples


def _digest(member: ComposedModel) -> str:
    """Return a digest of each head's config, weights and tokenizer, wherever they were loaded from."""
    by_network: dict[int, str] = {}
    for model, tokenizer in member.networks.values():
        if id(model) not in by_network:
            config = {key: value for key, value in model.config.to_dict().items() if key != "transformers_version"}
            digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
            digest.update(tokenizer.backend_tokenizer.to_str().encode())
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            by_network[id(model)] = digest.hexdigest()
    digests = {head: by_network[id(model)] for head, (model, _) in member.networks.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
