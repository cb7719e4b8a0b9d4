"""Rows → model input without torch or transformers: what a service needs in front of `model.onnx`.

Enters: an exported directory, and rows in any format that `data.readers` reads. Leaves: numpy batches, named like the
graph's inputs. Markers, truncation and positions come from `features`: `mtl-re export` copies this module and all that
it imports into the directory (as `mtl_re_input/`), so there is no second implementation that could diverge.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.data.loading import read_examples
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.features.featurizer import Featurizer, pad_batch
from mtl_re.features.levitated import pad_pairs
from mtl_re.features.markers import LEVITATED
from mtl_re.taxonomy import Taxonomy


class PlainTokenizer:
    """The part of a Hugging Face tokenizer that `Featurizer` uses, over `tokenizer.json` alone.

    Args:
        directory: holds tokenizer.json and tokenizer_config.json.

    Raises:
        MtlReError: a file is missing, or does not hold a tokenizer.
    """

    is_fast = True  # as transformers calls a tokenizer that gives offsets

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.core = Tokenizer.from_file(str(directory / "tokenizer.json"))
            names = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare exceptions
            raise MtlReError(f"{directory}: holds no tokenizer ({error}); give an exported directory") from error
        self.core.no_padding()
        self.core.no_truncation()
        self.pad_token_id, self.unk_token_id = (self._id(names.get(name)) for name in ("pad_token", "unk_token"))

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]:
        """Return the ids of tokens; None for one that the vocabulary does not have."""
        return [self.core.token_to_id(token) for token in tokens]

    def _id(self, token: Any) -> int | None:
        """Return the id of a special token, given as text or, in older files, as a map."""
        text = token.get("content") if isinstance(token, dict) else token
        return None if text is None else self.core.token_to_id(text)

    def __call__(
        self, text: str | list[str], pair: str | None = None, add_special_tokens: bool = True, **ignored: Any
    ) -> dict[str, Any]:
        """Return ids and character offsets of a text or pair, or lists of them for a list of texts."""
        if isinstance(text, str):
            encoding = self.core.encode(text, pair, add_special_tokens=add_special_tokens)
            return {"input_ids": encoding.ids, "offset_mapping": encoding.offsets}
        encodings = self.core.encode_batch(text, add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in encodings], "offset_mapping": [one.offsets for one in encodings]}


class InputMaker:
    """Rows of any DATA file → numpy batches for one exported model.

    Args:
        directory: an exported directory.

    Raises:
        MtlReError: it is not one.
    """

    def __init__(self, directory: str | Path) -> None:
        try:
            self.config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
            self.taxonomy = Taxonomy.from_dict(self.config["taxonomy"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MtlReError(f"{directory}: holds no config.json of an exported model ({error})") from error
        self.tokenizer = PlainTokenizer(Path(directory))
        config = self.config
        markers, query, length = config["markers"], config["query"], config["max_input_length"]
        self.featurizer = Featurizer(self.tokenizer, self.taxonomy, markers, query, length, config["entity_types"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The final labels, in the order of the probabilities."""
        return self.taxonomy.labels

    def read(self, data: str) -> Iterator[Example]:
        """Yield the rows of a .json, .jsonl or .csv file (each also .gz), labelled or not.

        Raises:
            MtlReError: the file cannot be read, or a row is invalid.
        """
        return read_examples(data, self.taxonomy)

    def batches(
        self, examples: Iterable[Example], batch_size: int, token_types: bool = False
    ) -> Iterator[tuple[list[Example], dict[str, np.ndarray]]]:
        """Yield batches of examples, in order, with the graph's inputs for them (see `pad_batch`).

        Args:
            token_types: whether the graph has the input `token_type_ids`.

        Raises:
            MtlReError: the two entities of a row do not fit the model's longest input, or the size is below 1.
        """
        if batch_size < 1:
            raise MtlReError(f"batch size {batch_size}; expected 1 or more rows")
        rows = self.featurizer.stream(examples)
        while chunk := list(islice(rows, batch_size)):
            features, pad = [row for _, row in chunk], pad_pairs if self.config["markers"] == LEVITATED else pad_batch
            yield [example for example, _ in chunk], pad(features, self.tokenizer.pad_token_id or 0, token_types)
