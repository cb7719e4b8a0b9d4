"""What a trimmed vocabulary has lost, for the sentences at hand: tokenised with it and with the whole one.

Enters: the directory that `mtl-re trim` wrote, which holds the tokenizer of before as well, and sentences. Leaves: how
many of them the cut changes, and what it costs them. Both tokenizers are run, so nothing is estimated. A run that began
with such an encoder leads to it by its config.yaml.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mtl_re.data.validation import shown
from mtl_re.errors import MtlReError, first_line
from mtl_re.files import read_yaml

BEFORE = "before_trim.json.gz"
"""The tokenizer of before the cut, beside the encoder (no name that a library takes for a tokenizer's)."""
_CHUNK = 1024


@dataclass
class LostPieces:
    """Counts over sentences.

    Attributes:
        sentences: All of them. changed: Those whose pieces are others with the trimmed vocabulary.
        tokens, unknown: Of the changed ones, with the whole vocabulary and with the trimmed one.
        first: The first changed sentence.
    """

    sentences: int = 0
    changed: int = 0
    tokens: tuple[int, int] = (0, 0)
    unknown: tuple[int, int] = (0, 0)
    first: str = ""

    def add(self, sentence: str, before: Sequence[str], after: Sequence[str], unknown: str | None) -> None:
        """Count a sentence by its pieces with both vocabularies."""
        self.sentences += 1
        if before == after:
            return
        self.changed += 1
        self.first = self.first or sentence
        self.tokens = (self.tokens[0] + len(before), self.tokens[1] + len(after))
        self.unknown = (self.unknown[0] + before.count(unknown or ""), self.unknown[1] + after.count(unknown or ""))

    def warning(self, source: str) -> str | None:
        """Return a warning if a sentence needs pieces that were cut."""
        if not self.changed:
            return None
        share = f"{self.changed:,} of {self.sentences:,} distinct sentences need pieces that the encoder's vocabulary"
        cost = f"{self.tokens[1]:,} tokens instead of {self.tokens[0]:,}, {self.unknown[1]:,} unknown instead of"
        return f"warning: {source}: {share} has lost; they have {cost} {self.unknown[0]:,} (first: {shown(self.first)})"


class TrimmedTokenizers:
    """The tokenizers of a trimmed encoder, of before the cut and of after it.

    Args:
        folder: What `mtl-re trim` wrote, or a run that began with it.

    Raises:
        MtlReError: the folder is neither, or a tokenizer cannot be read.
    """

    def __init__(self, folder: str) -> None:
        from tokenizers import Tokenizer

        path = trimmed_folder(folder)
        try:
            before = Tokenizer.from_str(gzip.decompress((path / BEFORE).read_bytes()).decode())
            after = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # gzip, zlib and tokenizers raise kinds of their own
            raise MtlReError(f"--encoder: {path} cannot be read ({first_line(error)}); trim it again") from error
        self.both, self.unknown = (before, after), unknown_piece(json.loads(after.to_str())["model"])
        for tokenizer in self.both:
            tokenizer.no_truncation()
            tokenizer.no_padding()

    def lost(self, sentences: Iterable[str]) -> LostPieces:
        """Tokenise sentences with both vocabularies and count."""
        found, rest = LostPieces(), iter(sentences)
        while chunk := list(islice(rest, _CHUNK)):
            for sentence, *coded in zip(chunk, *(self._pieces(side, chunk) for side in (0, 1)), strict=True):
                found.add(sentence, coded[0], coded[1], self.unknown)
        return found

    def _pieces(self, side: int, texts: Sequence[str]) -> list[list[str]]:
        tokenizer = self.both[side]  # (`tokens` would name an unknown character by itself)
        coded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[str(tokenizer.id_to_token(index)) for index in text.ids] for text in coded]


def unknown_piece(model: dict[str, Any]) -> str | None:
    """Return the piece of what is unknown, in the model of a tokenizer.json."""
    if model["type"] == "Unigram":
        index = model.get("unk_id")
        return None if index is None else str(model["vocab"][index][0])
    token: str | None = model.get("unk_token")
    return token


def trimmed_folder(name: str) -> Path:
    """Return the directory of the trimmed encoder that a name is, or that a run began with.

    Raises:
        MtlReError: there is none.
    """
    path, seen = Path(name), set[Path]()
    while path not in seen:
        if (path / BEFORE).is_file():
            return path
        seen.add(path)
        if (path / "config.yaml").is_file():
            path = Path(str((read_yaml(path / "config.yaml").get("model") or {}).get("encoder", "")))
        elif path.name == "model":
            path = path.parent
    raise MtlReError(f"--encoder: {name} is neither an encoder that mtl-re trim wrote nor a run that began with one")
