"""Predictions joined with the rows they were made of: what `errors` and `cooccurrence` analyse.

Enters: predictions with gold labels, and optionally DATA, joined by id and order. Leaves: `Rows` of arrays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtl_re.config import JoinedRowsConfig
from mtl_re.data import spool
from mtl_re.data.loading import load_examples
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.figures import LONGEST
from mtl_re.scoring.metrics import Floats, Indices
from mtl_re.scoring.prediction_files import PredictedRows, check_labels, parsed_row, prediction_rows
from mtl_re.scoring.writers import label_order
from mtl_re.taxonomy import Taxonomy

Mask = npt.NDArray[np.bool_]
UNUSUAL = re.compile(r"[^\w /.→-]")
"""Characters that a shown entity type must not hold: a type is any text of the data."""


@dataclass(frozen=True)
class Rows:
    """Predictions joined with their rows.

    Attributes:
        gold, pred: (N,), indices into `taxonomy.labels`. probs: (N, L).
        examples: (N,), the rows of DATA; None if no DATA was given. left_out: number of invalid rows of DATA.
    """

    ids: Sequence[str]
    gold: Indices
    pred: Indices
    probs: Floats
    examples: Sequence[Example] | None
    taxonomy: Taxonomy
    left_out: int

    def related(self) -> tuple[Mask, Mask]:
        """Return whether the gold label and the predicted label of each row are relations. Shape: (N,), (N,)."""
        relation = np.array([label != self.taxonomy.no_relation for label in self.taxonomy.labels])
        return relation[self.gold], relation[self.pred]


def read_joined(path: Path, options: JoinedRowsConfig) -> Rows:
    """Read predictions, and the row of DATA from which each was made.

    Raises:
        MtlReError: a file cannot be read, a row is malformed, a label set differs, or predictions and DATA do not hold
            the same rows in the same order (names file and line).
    """
    taxonomy = Taxonomy.from_option(options.heads)
    loaded = None if options.data is None else load_examples(options.data, taxonomy, options.on_bad_row, options)
    examples, bad = loaded or (None, [])
    predicted = None if examples is None else PredictedRows(examples, str(options.data), options.on_bad_row == "skip")
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    ids, labels, probs = [], [], []
    order = label_order(options.label_order, taxonomy, ".csv")
    for number, (where, row) in enumerate(prediction_rows(path, order)):
        if number == 0:
            check_labels(where, row, taxonomy)
        row = row if predicted is None else predicted.take(where, row)
        if row.get("gold") is None:
            raise MtlReError(f"{where}: gold: missing; predict labelled rows, or give them with --data")
        name, (gold, pred), values = parsed_row((where, row), index)
        ids.append(name)
        labels.append((gold, pred))
        probs.append(values)
    if not labels:
        raise MtlReError(f"{path}: no rows")
    lost = 0
    if predicted is not None:
        predicted.check_end(where)
        lost = len(predicted.examples) - len(predicted.places)
        examples = spool.select(predicted.examples, np.array(predicted.places)) if lost else predicted.examples
    columns = np.array(labels).T
    return Rows(ids, columns[0], columns[1], np.stack(probs), examples, taxonomy, len(bad) + lost)


def type_pair(example: Example) -> str:
    """Return the entity types of a row as they are shown, with `?` for what is not part of a plain word."""
    return UNUSUAL.sub("?", f"{example.subject.type}→{example.object.type}")[:LONGEST]
