"""Rows → model input without torch or transformers: what a service needs in front of `model.onnx`.

Enters: an exported directory and rows in any form `data` reads. Leaves: numpy batches named like the graph's inputs.
Marking, cutting and positions are `markers` and `features` themselves: `mtl-re export` copies this module and all it
imports into the directory (as `mtl_re_input/`), so that no second implementation can drift.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.data.loading import read_examples
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.features.featurizer import Features, Featurizer
from mtl_re.taxonomy import Taxonomy


class PlainTokenizer:
    """The part of a Hugging Face tokenizer that `Featurizer` uses, over `tokenizer.json` alone.

    Args:
        folder: holds tokenizer.json and tokenizer_config.json.

    Raises:
        MtlReError: they are not there, or are no tokenizer.
    """

    is_fast = True  # offsets are there

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.core = Tokenizer.from_file(str(folder / "tokenizer.json"))
            names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare exceptions
            raise MtlReError(f"{folder}: no tokenizer there ({error}); give an exported directory") from error
        self.core.no_padding()
        self.core.no_truncation()
        self.pad_token_id, self.unk_token_id = (self._id(names.get(name)) for name in ("pad_token", "unk_token"))

    def _id(self, token: Any) -> int | None:
        """The id of a special token, which older files write as a map."""
        text = token.get("content") if isinstance(token, dict) else token
        return None if text is None else self.core.token_to_id(text)

    def __call__(
        self, text: str | list[str], pair: str | None = None, add_special_tokens: bool = True, **ignored: Any
    ) -> dict[str, Any]:
        """Ids and character offsets of a text or pair, or lists of them for a list of texts."""
        if isinstance(text, str):
            coded = self.core.encode(text, pair, add_special_tokens=add_special_tokens)
            return {"input_ids": coded.ids, "offset_mapping": coded.offsets}
        many = self.core.encode_batch(text, add_special_tokens=add_special_tokens)
        return {"input_ids": [coded.ids for coded in many], "offset_mapping": [coded.offsets for coded in many]}


class InputMaker:
    """Rows of any DATA file → numpy batches for one exported model.

    Args:
        folder: an exported directory.

    Raises:
        MtlReError: it is not one.
    """

    def __init__(self, folder: str | Path) -> None:
        place = Path(folder)
        try:
            self.config = json.loads((place / "config.json").read_text(encoding="utf-8"))
            self.taxonomy = Taxonomy.from_dict(self.config["taxonomy"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MtlReError(f"{folder}: no config.json of an exported model there ({error})") from error
        self.tokenizer = PlainTokenizer(place)
        config = self.config
        markers, query, length = config["markers"], config["query"], config["max_input_length"]
        self.featurizer = Featurizer(self.tokenizer, self.taxonomy, markers, query, length, config["entity_types"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The final labels, in the order of the probabilities."""
        return self.taxonomy.labels

    def read(self, data: str) -> Iterator[Example]:
        """The rows of a .json, .jsonl or .csv file (each also .gz), labelled or not.

        Raises:
            MtlReError: it cannot be read, or a row is bad.
        """
        return read_examples(data, self.taxonomy)

    def batches(
        self, examples: Iterable[Example], batch_size: int, token_types: bool = False
    ) -> Iterator[tuple[list[Example], dict[str, np.ndarray]]]:
        """Examples in order with what the graph reads of them.

        Args:
            token_types: whether the graph has the input `token_type_ids`.

        Raises:
            MtlReError: a row cannot be made to fit.
        """
        rows = self.featurizer.stream(examples)
        while chunk := list(islice(rows, batch_size)):
            features = [row for _, row in chunk]
            yield [example for example, _ in chunk], padded(features, self.tokenizer.pad_token_id or 0, token_types)


def padded(rows: Sequence[Features], pad_id: int, token_types: bool) -> dict[str, np.ndarray]:
    """One batch, padded to its longest row; the same as `collate.Collator` gives, as numpy int64.

    Shapes: input_ids, attention_mask, token_type_ids (batch, length); positions (batch, 4).
    """
    lengths = np.array([len(row.input_ids) for row in rows])
    ids = np.full((len(rows), lengths.max()), pad_id, np.int64)
    for line, row in enumerate(rows):
        ids[line, : lengths[line]] = row.input_ids
    column = np.arange(ids.shape[1])
    inside = column < lengths[:, None]
    batch = {
        "input_ids": ids,
        "attention_mask": inside.astype(np.int64),
        "positions": np.array([row.positions for row in rows], np.int64),
    }
    if token_types:
        second = np.array([row.second for row in rows])
        batch["token_type_ids"] = (inside & (column >= second[:, None])).astype(np.int64)
    return batch
