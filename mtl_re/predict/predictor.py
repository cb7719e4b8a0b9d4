"""A checkpoint as a Python object (the command `mtl-re predict` is `predict_run`).

Rows stream through in windows: each window is tokenised, sorted by length, batched, and put back in input order, so
memory depends on the window and not on the input. Several checkpoints vote softly: the mean of their probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtl_re.config import Backend, ExtractConfig, Gate, Restrict, parse_shares
from mtl_re.data.validation import Example, parse_row
from mtl_re.errors import MtlReError, RowError
from mtl_re.model.device import resolve_precision
from mtl_re.predict import triples
from mtl_re.scoring import gating
from mtl_re.scoring.inference import Tick
from mtl_re.scoring.scorer import Reading, Scorer
from mtl_re.scoring.writers import Prediction

if TYPE_CHECKING:
    from mtl_re.predict.triples import Given, Triple


class Predictor:
    """One or several scorers that answer as one.

    Args:
        members: over the same labels.
        reading: what is applied to probabilities (None: the first member's own gate, nothing else).
        batch_size: rows of one forward pass.
        precision: `no`, `bf16`, `fp16` or `auto`.

    Raises:
        MtlReError: the members' labels differ, or the prior would need all rows at once.
    """

    def __init__(
        self, members: Sequence[Scorer], reading: Reading | None = None, batch_size: int = 128, precision: str = "no"
    ) -> None:
        self.members, self.taxonomy = list(members), members[0].taxonomy
        for member in members[1:]:
            if set(member.taxonomy.labels) != set(self.taxonomy.labels):
                raise MtlReError("these checkpoints have different labels; they cannot vote together")
        self.reading = reading or Reading(gate=members[0].config.gate)
        if self.reading.prior == "em":
            raise MtlReError("--prior em reads all rows before it answers; give shares, or see `mtl-re evaluate`")
        if self.reading.prior != "none":
            parse_shares("--prior", self.reading.prior)
        self.batch_size, self.precision = batch_size, resolve_precision(precision)

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
        """Load CKPT directories or hub ids (or maps from head to checkpoint, see `Scorer`); several vote softly.

        Args:
            device: torch device name (None: the GPU if there is one).
            gate: `hard` or `soft` (None: the first checkpoint's own).
            prior: `none`, or shares of the coarse classes such as `0.6,0.17,0.23`.
            restrict: `none` or `subject_type`.
            backend: `torch`, or a graph of an exported directory, run by onnxruntime on the CPU: `onnx`, `onnx-int8`.

        Raises:
            MtlReError: a checkpoint cannot be loaded, or a precision was asked of a graph, whose file fixes it.
        """
        if backend != "torch" and precision not in ("no", "auto"):
            raise MtlReError(f"precision {precision}: the backend {backend} computes as its file says; leave it out")
        precision = "no" if backend != "torch" else precision
        members = [Scorer.load(checkpoint, device, backend) for checkpoint in checkpoints]
        reading = Reading(gate or members[0].config.gate, prior, restrict)
        return cls(members, reading, batch_size, precision)

    def probabilities(self, examples: Sequence[Example], tick: Tick | None = None) -> np.ndarray:
        """(rows, labels) float64 in the order of `taxonomy.labels`, the mean over the members.

        Args:
            tick: called after every batch with its rows; each of the `networks` goes through all rows.
        """
        total = np.zeros((len(examples), len(self.taxonomy.labels)))
        for member in self.members:
            logits = member.logits(examples, self.batch_size, self.precision, tick=tick)
            columns = [member.taxonomy.labels.index(label) for label in self.taxonomy.labels]
            total += member.read(logits, examples, self.reading).probs[:, columns]
        return total / len(self.members)

    @property
    def networks(self) -> int:
        """Distinct networks that a row goes through."""
        return sum(len({id(model) for model, _ in member.networks.values()}) for member in self.members)

    def predict(self, rows: Sequence[Example | Mapping[str, Any]], tick: Tick | None = None) -> list[Prediction]:
        """One prediction a row, in order.

        Args:
            rows: examples, or maps in KLUE's form (see `data.parse_row`).
            tick: as for `probabilities`.

        Raises:
            MtlReError: a map is no row; the text names the first one, counted from 1, and its field.
        """
        return self._predict(self._parsed(rows, first=1), tick)

    def _predict(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Prediction]:
        if not examples:
            return []
        probs = self.probabilities(examples, tick)
        labels = gating.labels(
            torch.from_numpy(probs), self.taxonomy, self.reading.gate, self.reading.threshold
        ).numpy()
        return [
            Prediction.of(example.id, probs[row], int(labels[row]), self.taxonomy, example.label)
            for row, example in enumerate(examples)
        ]

    def extract(self, sentence: str, entities: Sequence[Given], threshold: float = 0.5) -> list[Triple]:
        """The relations between the entities of one sentence, the surest first.

            >>> predictor.extract("세종대왕은 조선의 왕이다.", [(0, 3, "PER"), (6, 7, "LOC"), (10, 10, "POH")])
            [Triple(subject=Entity(word='세종대왕', ...), relation='per:title', object=Entity(word='왕', ...), ...)]

        Args:
            entities: each an `Entity`, (start, end, type), or a map of start, end, type and perhaps word; spans are
                inclusive Python characters. Every ordered pair of disjoint ones is scored, at once, whose subject
                type the taxonomy's relations take.
            threshold: least score; a triple's score is the probability p(coarse)·p(fine | coarse) of its relation.

        Raises:
            MtlReError: an entity is at fault; the text names it.
        """
        return triples.extract(self, sentence, entities, threshold)

    def predict_stream(self, rows: Iterable[Example | Mapping[str, Any]], window: int = 4096) -> Iterator[Prediction]:
        """As `predict` for any number of rows, holding `window` of them at a time."""
        left, first = iter(rows), 1
        while chunk := list(islice(left, window)):
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


def extract_triples(ckpt: str, options: ExtractConfig) -> list[triples.Triple]:
    """`mtl-re extract`: return the triples of `options.sentence`, the surest first.

    Raises:
        MtlReError: the checkpoint cannot be loaded, or an entity is not in the sentence.
    """
    entities = [triples.find_entity(options.sentence, text) for text in options.entity]
    predictor = Predictor.from_pretrained(ckpt, gate=options.gate, prior=options.prior, restrict=options.restrict)
    return predictor.extract(options.sentence, entities, options.threshold)
