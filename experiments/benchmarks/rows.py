"""A file of rows → examples and the token ids that every contender reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.setting import MAX_LENGTH, SCHEME
from mtl_re.data.loading import load_examples
from mtl_re.data.validation import Example
from mtl_re.features.featurizer import FeatureTable, Featurizer
from mtl_re.features.markers import TYPE_WORDS, mark
from mtl_re.taxonomy import Taxonomy


def read(path: str) -> list[Example]:
    """All rows of a file; one at fault stops the benchmark."""
    return load_examples(path, Taxonomy.from_prefixes(), "error")[0]


def table(examples: Sequence[Example], tokenizer: Any) -> FeatureTable:
    """The rows as mtl-re reads them: marked by `SCHEME`, cut to `MAX_LENGTH` tokens."""
    featurizer = Featurizer(tokenizer, Taxonomy.from_prefixes(), SCHEME, False, MAX_LENGTH, list(TYPE_WORDS))
    return featurizer.table(examples)


def flat_labels(examples: Sequence[Example]) -> list[int]:
    """Index of each row's label among all 30."""
    labels = Taxonomy.from_prefixes().labels
    return [labels.index(str(row.label)) for row in examples]


def texts(examples: Sequence[Example]) -> list[str]:
    """The marked sentences."""
    return [mark(row.sentence, row.subject, row.object, SCHEME).text for row in examples]
