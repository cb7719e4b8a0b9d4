"""A tokenizer's pieces as `tokenizer.json` holds them, and the same tokenizer with fewer of them.

Enters: the JSON of a tokenizer of the `tokenizers` library. Leaves: its pieces, what keeping some of them demands, and
the JSON of the cut tokenizer. The law that `closed` is made for: a text whose pieces are all kept has the same pieces
under the cut tokenizer. Unigram (Kudo 2018, arXiv 1804.10959): the best segmentation stays the best among fewer ones if
the score of an unknown character, the lowest score - 10, stays what it is. WordPiece: the longest match stays the
longest. BPE (Sennrich et al. 2016, arXiv 1508.07909): each merge on the way to a kept piece must be kept, by whatever
way the piece can be reached; then every step of a text takes the same merge as before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from mtl_re.data.lost_pieces import unknown_piece
from mtl_re.errors import MtlReError

WORD_START = "▁"
"""What SentencePiece writes for the space before a word."""
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""Pieces for the bytes of a character that is no piece (byte fallback)."""


BYTE_LETTERS: dict[str, int] = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""Byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""


class Vocabulary:
    """The pieces of a tokenizer.

    Args:
        data: its `tokenizer.json`.

    Raises:
        MtlReError: its model is none of Unigram, WordPiece and BPE.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data, self.model = data, data["model"]
        self.kind: str = self.model.get("type", "")
        if self.kind not in CLOSURES:
            what = f"its tokenizer's model is {self.kind or 'of an unnamed kind'}"
            raise MtlReError(f"trim: {what}; only {', '.join(CLOSURES)} can be cut")

    @cached_property
    def of_model(self) -> dict[str, int]:
        """Piece → id, without added tokens that the model does not hold."""
        vocabulary = self.model["vocab"]
        if self.kind == "Unigram":
            return {piece: index for index, (piece, _) in enumerate(vocabulary)}
        return dict(vocabulary)

    @cached_property
    def added(self) -> dict[str, int]:
        """Added token → id: special tokens, and whole words that a user has added."""
        return {token["content"]: token["id"] for token in self.data["added_tokens"]}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece or added token → id."""
        return self.of_model | self.added

    @cached_property
    def byte_level(self) -> bool:
        """Whether a letter of a piece stands for a byte."""
        steps = (self.data.get("pre_tokenizer"), self.data.get("normalizer"))
        return any(part.get("type") == "ByteLevel" for step in steps for part in _parts(step))

    @cached_property
    def unknown(self) -> str | None:
        """The piece of what no other piece stands for."""
        return unknown_piece(self.model)

    @property
    def prefix(self) -> str:
        """What stands before a piece that continues a word (`##`)."""
        return self.model.get("continuing_subword_prefix") or ""

    def surface(self, piece: str) -> str | None:
        """Return the text that a piece stands for, without signs of its place in a word; None for part of a
        character."""
        if piece in BYTES and self.model.get("byte_fallback"):
            return None
        if self.byte_level:
            try:
                return bytes(BYTE_LETTERS[letter] for letter in piece).decode().removeprefix(" ")
            except (KeyError, UnicodeDecodeError):
                return None
        text = piece.removeprefix(self.prefix) if self.prefix else piece
        text = text.removesuffix(self.model.get("end_of_word_suffix") or "")
        return text if text == WORD_START else text.removeprefix(WORD_START)

    def closed(self, chosen: Iterable[int]) -> set[int]:
        """Return the ids that must be kept where those of `chosen` are, so that the law holds."""
        return CLOSURES[self.kind](self, set(chosen) | set(self.added.values()))

    def cut(self, kept: Mapping[int, int]) -> dict[str, Any]:
        """Return the JSON of the tokenizer with these pieces only.

        Args:
            kept: id → new id, closed (see `closed`), rising: the order of the pieces does not change.
        """
        data = copy.deepcopy({key: value for key, value in self.data.items() if key != "model"})
        data["model"] = MODELS[self.kind](self, kept)
        data["added_tokens"] = [token | {"id": kept[token["id"]]} for token in self.data["added_tokens"]]
        for part in _parts(data.get("post_processor")):
            _renumber_frame(part, kept)
        if data.get("padding"):
            data["padding"]["pad_id"] = kept[data["padding"]["pad_id"]]
        return data


def _parts(step: Mapping[str, Any] | None) -> Iterator[Any]:
    """Yield a step of the pipeline, or those that a sequence holds."""
    if step is None:
        return
    inner = [part for key in ("normalizers", "pretokenizers", "processors") for part in step.get(key) or ()]
    if inner:
        for part in inner:
            yield from _parts(part)
    else:
        yield step


def _renumber_frame(part: dict[str, Any], kept: Mapping[int, int]) -> None:
    """Give the special tokens of a post-processor their new ids."""
    for name in ("sep", "cls"):  # BertProcessing, RobertaProcessing: [token, id]
        if name in part:
            part[name] = [part[name][0], kept[part[name][1]]]
    if part.get("type") == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [kept[index] for index in token["ids"]]


# ---- the three models: what must be kept besides, and the model with fewer pieces --------------------------------


def _unigram_closure(vocabulary: Vocabulary, chosen: set[int]) -> set[int]:
    """The lowest score, and all bytes where a character may fall back to them."""
    scores = [score for _, score in vocabulary.model["vocab"]]
    return chosen | {scores.index(min(scores))} | _fixed(vocabulary)


def _word_piece_closure(vocabulary: Vocabulary, chosen: set[int]) -> set[int]:
    return chosen | _fixed(vocabulary)


def _bpe_closure(vocabulary: Vocabulary, chosen: set[int]) -> set[int]:
    """Every piece that any way of making a chosen piece passes through."""
    made_of: dict[str, list[str]] = {}
    for left, right in merges_of(vocabulary):
        made_of.setdefault(merged(vocabulary, left, right), []).extend((left, right))
    ids, names = vocabulary.of_model, {index: piece for piece, index in vocabulary.of_model.items()}
    closed = chosen | _fixed(vocabulary)
    todo = [names[index] for index in closed if index in names]
    while todo:
        for part in made_of.get(todo.pop(), ()):
            if ids[part] not in closed:
                closed.add(ids[part])
                todo.append(part)
    return closed


def _fixed(vocabulary: Vocabulary) -> set[int]:
    """Ids that a model needs whatever is kept: the unknown piece, and those of bytes."""
    ids = vocabulary.of_model
    fixed = {vocabulary.unknown} if vocabulary.unknown is not None else set()
    if vocabulary.model.get("byte_fallback"):
        fixed |= BYTES
    if vocabulary.byte_level:
        fixed |= BYTE_LETTERS.keys()
    return {ids[piece] for piece in fixed if piece in ids}


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the merges of a BPE model, the first one made first (older files write a pair as one string)."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in vocabulary.model["merges"])
    return [(left, right) for left, right in pairs]


def merged(vocabulary: Vocabulary, left: str, right: str) -> str:
    """Return the piece that a merge makes."""
    return left + right.removeprefix(vocabulary.prefix)


def _cut_unigram(vocabulary: Vocabulary, kept: Mapping[int, int]) -> dict[str, Any]:
    model = vocabulary.model
    pieces = [entry for index, entry in enumerate(model["vocab"]) if index in kept]
    unknown = model.get("unk_id")
    return {**model, "vocab": pieces, "unk_id": None if unknown is None else kept[unknown]}


def _cut_word_piece(vocabulary: Vocabulary, kept: Mapping[int, int]) -> dict[str, Any]:
    return {**vocabulary.model, "vocab": _renumbered(vocabulary, kept)}


def _cut_bpe(vocabulary: Vocabulary, kept: Mapping[int, int]) -> dict[str, Any]:
    pieces = _renumbered(vocabulary, kept)
    merges = [
        [left, right]
        for left, right in merges_of(vocabulary)
        if left in pieces and right in pieces and merged(vocabulary, left, right) in pieces
    ]
    return {**vocabulary.model, "vocab": pieces, "merges": merges}


def _renumbered(vocabulary: Vocabulary, kept: Mapping[int, int]) -> dict[str, int]:
    return {piece: kept[index] for piece, index in vocabulary.of_model.items() if index in kept}


CLOSURES: dict[str, Callable[[Vocabulary, set[int]], set[int]]] = {
    "Unigram": _unigram_closure,
    "WordPiece": _word_piece_closure,
    "BPE": _bpe_closure,
}
MODELS: dict[str, Callable[[Vocabulary, Mapping[int, int]], dict[str, Any]]] = {
    "Unigram": _cut_unigram,
    "WordPiece": _cut_word_piece,
    "BPE": _cut_bpe,
}


def gaps(vocabulary: Vocabulary, kept: Iterable[int]) -> list[str]:
    """Return the kept pieces through which a word that was unknown may become known; no others bend the law.

    WordPiece gives up a word where its longest matches leave a character over. Without a long match a shorter one, and
    a piece across that character, may go on. It needs a kept piece that holds, behind its first character, one that is
    no piece of its own there (`##c`); vocabularies of the usual trainers have none.
    """
    if vocabulary.kind != "WordPiece":
        return []
    inside = {piece for piece in vocabulary.of_model if piece.startswith(vocabulary.prefix)}
    names = {index: piece for piece, index in vocabulary.of_model.items()}
    special = vocabulary.added
    chosen = (names[index] for index in sorted(kept) if index in names and names[index] not in special)
    return [
        piece
        for piece in chosen
        if any(vocabulary.prefix + character not in inside for character in piece.removeprefix(vocabulary.prefix)[1:])
    ]
