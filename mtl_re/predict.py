"""A checkpoint as a Python object, and `mtl-re predict`.

Rows stream through in windows: each window is tokenised, sorted by length, batched, and put back in input order, so
memory depends on the window and not on the input. Several checkpoints vote softly: the mean of their probabilities.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from mtl_re import evaluation, gating
from mtl_re.config import Gate, PredictConfig, Restrict
from mtl_re.errors import MtlReError
from mtl_re.inference import resolve_precision
from mtl_re.scorer import Reading, Scorer, parse_shares
from mtl_re.writers import Prediction, check_suffix, label_order, write_predictions

if TYPE_CHECKING:
    from mtl_re.data import Example


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
            parse_shares(self.reading.prior)
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
    ) -> Predictor:
        """Load CKPT directories or hub ids (or maps from head to checkpoint, see `Scorer`); several vote softly.

        Args:
            device: torch device name (None: the GPU if there is one).
            gate: `hard` or `soft` (None: the first checkpoint's own).
            prior: `none`, or shares of the coarse classes such as `0.6,0.17,0.23`.
            restrict: `none` or `subject_type`.
        """
        members = [Scorer.load(checkpoint, device) for checkpoint in checkpoints]
        reading = Reading(gate or members[0].config.gate, prior, restrict)
        return cls(members, reading, batch_size, precision)

    def probabilities(self, examples: Sequence[Example]) -> np.ndarray:
        """(rows, labels) float64 in the order of `taxonomy.labels`, the mean over the members."""
        total = np.zeros((len(examples), len(self.taxonomy.labels)))
        for member in self.members:
            logits = member.logits(examples, self.batch_size, self.precision)
            columns = [member.taxonomy.labels.index(label) for label in self.taxonomy.labels]
            total += member.read(logits, examples, self.reading).probs[:, columns]
        return total / len(self.members)

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction a row, in order."""
        if not examples:
            return []
        probs = self.probabilities(examples)
        labels = gating.labels(
            torch.from_numpy(probs), self.taxonomy, self.reading.gate, self.reading.threshold
        ).numpy()
        return [
            Prediction.of(example.id, probs[row], int(labels[row]), self.taxonomy, example.label)
            for row, example in enumerate(examples)
        ]

    def predict_stream(self, examples: Iterable[Example], window: int = 4096) -> Iterator[Prediction]:
        """As `predict` for any number of rows, holding `window` of them at a time."""
        rows = iter(examples)
        while chunk := list(islice(rows, window)):
            yield from self.predict(chunk)


def predict(checkpoints: Sequence[str], options: PredictConfig) -> int:
    """`mtl-re predict`: read, predict, write; returns the number of rows written."""
    from mtl_re.data import read_examples

    path = Path(options.output)
    check_suffix(path)
    given: list[str | dict[str, str]] = list(checkpoints)
    if options.compose:
        given.append(evaluation.checkpoint_or_composed(None, options.compose))
    if not given:
        raise MtlReError("give a checkpoint, or --compose HEAD=CKPT ... for one a head")
    members = [Scorer.load(checkpoint) for checkpoint in given]
    reading = evaluation.reading_of(options, members[0])
    predictor = Predictor(members, reading, options.batch_size, options.precision)
    order = label_order(options.label_order, predictor.taxonomy, path.suffix)
    lost: list[object] = []
    examples = read_examples(options.data, predictor.taxonomy, options.on_bad_row, lost.append)
    if options.on_bad_row == "skip":
        for member in members:
            examples = member.usable(examples, lambda example, error: lost.append(error))
    stream = predictor.predict_stream(examples, options.window)
    with tqdm(stream, desc=f"predict {options.data}", unit="row", file=sys.stderr) as bar:
        count = write_predictions(bar, path, predictor.taxonomy, order)
    evaluation.tell_lost(options.data, len(lost))
    return count
