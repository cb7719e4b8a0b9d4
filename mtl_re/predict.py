"""A checkpoint as a Python object, and `mtl-re predict`.

Rows stream through in windows: each window is tokenised, sorted by length, batched, and put back in input order, so
memory depends on the window and not on the input. Several checkpoints vote softly: the mean of their probabilities.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from mtl_re import evaluation, gating
from mtl_re.config import Gate, PredictConfig
from mtl_re.errors import MtlReError
from mtl_re.model import MtlReModel, load
from mtl_re.writers import Prediction, label_order, write_predictions

if TYPE_CHECKING:
    from mtl_re.data import BadRow, Example


class Predictor:
    """One or several checkpoints that answer as one.

    Args:
        members: (model, tokenizer) pairs over the same labels.
        gate: how the label is read off (None: the first model's own).
        prior: `none`, or shares of the coarse classes such as `0.6,0.17,0.23`.
        batch_size: rows of one forward pass.
        precision: `no`, `bf16`, `fp16` or `auto`.

    Raises:
        MtlReError: the members' labels differ.
    """

    def __init__(
        self,
        members: Sequence[tuple[MtlReModel, Any]],
        gate: Gate | None = None,
        prior: str = "none",
        batch_size: int = 128,
        precision: str = "no",
    ) -> None:
        self.members = members
        self.taxonomy = members[0][0].taxonomy
        for model, _ in members[1:]:
            if set(model.taxonomy.labels) != set(self.taxonomy.labels):
                raise MtlReError("these checkpoints have different labels; they cannot vote together")
        if prior == "em":
            raise MtlReError("--prior em reads all rows before it answers; give shares, or see `mtl-re evaluate`")
        self.gate: Gate = gate or members[0][0].config.gate
        self.prior, self.batch_size = prior, batch_size
        self.precision = evaluation.resolve_precision(precision)
        self._featurizers = [evaluation.featurizer_of(model, tokenizer) for model, tokenizer in members]

    @classmethod
    def from_pretrained(cls, *checkpoints: str, device: str | None = None, **options: Any) -> Predictor:
        """Load CKPT directories or hub ids.

        Args:
            device: torch device name (None: the GPU if there is one).
            options: as for the class.
        """
        place = evaluation.default_device() if device is None else torch.device(device)
        members = []
        for checkpoint in checkpoints:
            model, tokenizer = load(checkpoint)
            members.append((model.to(place), tokenizer))  # type: ignore[arg-type] # transformers wraps `to` untyped
        return cls(members, **options)

    def probabilities(self, examples: Sequence[Example]) -> np.ndarray:
        """(rows, labels) float64 in the order of `taxonomy.labels`, the mean over the members."""
        total = np.zeros((len(examples), len(self.taxonomy.labels)))
        for (model, tokenizer), featurizer in zip(self.members, self._featurizers, strict=True):
            table = featurizer.table(examples)
            logits = evaluation.all_logits(model, table, tokenizer.pad_token_id, self.batch_size, self.precision)
            probs = evaluation.probabilities(logits, model.taxonomy, model.config.temperatures)
            probs = evaluation.apply_prior(probs, model, self.prior).probs
            columns = [model.taxonomy.labels.index(label) for label in self.taxonomy.labels]
            total += probs[:, columns]
        return total / len(self.members)

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction a row, in order."""
        if not examples:
            return []
        probs = self.probabilities(examples)
        labels = gating.labels(torch.from_numpy(probs), self.taxonomy, self.gate).numpy()
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

    predictor = Predictor.from_pretrained(
        *checkpoints,
        gate=options.gate,
        prior=options.prior,
        batch_size=options.batch_size,
        precision=options.precision,
    )
    path = Path(options.output)
    order = label_order(options.label_order, predictor.taxonomy, path.suffix)
    bad: list[BadRow] = []
    examples = read_examples(options.data, predictor.taxonomy, options.on_bad_row, bad.append)
    stream = predictor.predict_stream(examples, options.window)
    with tqdm(stream, desc=f"predict {options.data}", unit="row", file=sys.stderr) as bar:
        count = write_predictions(bar, path, predictor.taxonomy, order)
    if bad:
        print(f"{options.data}: {len(bad)} bad rows left out (`mtl-re check` lists them)", file=sys.stderr)
    return count
