"""Examples → features: marked, tokenised, truncated, with the token positions of both entities.

Enters: `Example`s and a fast tokenizer. Leaves: a `FeatureTable`, a few flat arrays however many rows there are.
Positions are computed after truncation, from character offsets, so they cannot point past the end or at another token,
which is the classic fault of this task. Special tokens come from a probe of the tokenizer itself, so every encoder
family keeps its own frame (`[CLS] a [SEP] b [SEP]`, `<s> a </s></s> b </s>`, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError, RowError
from mtl_re.features import markers
from mtl_re.taxonomy import Taxonomy

POSITIONS = ("subject_start", "subject_end", "object_start", "object_end")
"""Columns of `positions`: the token of each entity's first marker piece and of its last one."""

READ_AHEAD = 1024
"""Rows that are tokenised in one call."""

Reject = Callable[[int, Example, RowError], None]
"""Called for a row that does not fit: its index among the rows given, the row, and the reason."""


class Features(NamedTuple):
    """One row as the model takes it.

    Attributes:
        input_ids: (length,) int32, special tokens included.
        positions: (4,) int32, see `POSITIONS`; under the scheme `levitated` the tokens that its last four tokens mark.
        second: index of the first token of the second segment (the length where there is none).
        targets: (heads,) int64 in the order of `taxonomy.heads`, `IGNORE` where a head has no label.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    second: int
    targets: np.ndarray


@dataclass(frozen=True)
class FeatureTable:
    """`Features` of many rows as flat arrays.

    Attributes:
        ids: (tokens,) int32, all rows concatenated.
        starts: (rows + 1,) int64, offset of each row in `ids`.
        positions: (rows, 4) int32.
        second: (rows,) int32.
        targets: (rows, heads) int64.
    """

    ids: np.ndarray
    starts: np.ndarray
    positions: np.ndarray
    second: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.second)

    def __getitem__(self, row: int) -> Features:
        ids = self.ids[self.starts[row] : self.starts[row + 1]]
        return Features(ids, self.positions[row], int(self.second[row]), self.targets[row])

    @cached_property
    def lengths(self) -> np.ndarray:
        """(rows,) number of tokens, special tokens included."""
        return np.diff(self.starts)

    @classmethod
    def from_rows(cls, rows: Sequence[Features], heads: int) -> FeatureTable:
        """Concatenate rows."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row.input_ids) for row in rows], out=starts[1:])
        return cls(
            ids=np.concatenate([row.input_ids for row in rows]) if rows else np.zeros(0, np.int32),
            starts=starts,
            positions=np.array([row.positions for row in rows], np.int32).reshape(-1, len(POSITIONS)),
            second=np.array([row.second for row in rows], np.int32),
            targets=np.array([row.targets for row in rows], np.int64).reshape(-1, heads),
        )


def pad_batch(
    rows: Sequence[Features], pad_id: int, token_types: bool, length: int | None = None
) -> dict[str, np.ndarray]:
    """Return the model's inputs for some rows, int64, padded to the longest of them or to `length`.

    Shape: input_ids, attention_mask, token_type_ids (batch, length); positions (batch, 4).
    """
    lengths = np.array([len(row.input_ids) for row in rows])
    ids = np.full((len(rows), length or lengths.max()), pad_id, np.int64)
    for line, row in enumerate(rows):
        ids[line, : lengths[line]] = row.input_ids
    column = np.arange(ids.shape[1])
    inside = column < lengths[:, None]
    positions = np.array([row.positions for row in rows], np.int64)
    batch = {"input_ids": ids, "attention_mask": inside.astype(np.int64), "positions": positions}
    if token_types:
        second = np.array([row.second for row in rows])
        batch["token_type_ids"] = (inside & (column >= second[:, None])).astype(np.int64)
    return batch


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around one segment, or around two."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def of(cls, tokenizer: Any, pair: bool) -> Frame:
        """Probe the tokenizer with a sentence, or a pair.

        Raises:
            MtlReError: the tokens of the probe do not occur between its special tokens.
        """
        texts = ("a", "b") if pair else ("a",)
        probe = tokenizer(*texts)["input_ids"]
        first, *rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        begin = _find(probe, first, 0)
        end = begin + len(first)
        if not rest:
            return cls(tuple(probe[:begin]), (), tuple(probe[end:]))
        again = _find(probe, rest[0], end)
        return cls(tuple(probe[:begin]), tuple(probe[end:again]), tuple(probe[again + len(rest[0]) :]))


def _find(sequence: list[int], part: list[int], start: int) -> int:
    for index in range(start, len(sequence) - len(part) + 1):
        if sequence[index : index + len(part)] == part:
            return index
    raise MtlReError("this tokenizer rewrites text when it adds special tokens; such tokenizers are not supported")


class Featurizer:
    """Turn examples into features for one tokenizer and one marker scheme.

    Args:
        tokenizer: a fast Hugging Face tokenizer (offsets are needed).
        taxonomy: gives the targets.
        scheme: a name of `markers.MARKERS`.
        query: append `markers.question` as a second segment.
        max_length: tokens of a row at most, special tokens included.
        types: entity types that may occur; their marker pieces are checked at once.

    Raises:
        MtlReError: the tokenizer is not a fast one, or does not know a marker piece.
    """

    def __init__(
        self, tokenizer: Any, taxonomy: Taxonomy, scheme: str, query: bool, max_length: int, types: Sequence[str]
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise MtlReError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
        self.tokenizer, self.taxonomy, self.scheme = tokenizer, taxonomy, scheme
        self.query, self.max_length, self.types = query, max_length, frozenset(types)
        self.frame = Frame.of(tokenizer, pair=query)
        self.typed = markers.names_types(scheme)
        check_known(tokenizer, scheme, types)

    def table(self, examples: Iterable[Example], reject: Reject | None = None) -> FeatureTable:
        """Return the features of all examples, in order.

        Args:
            examples: validated rows.
            reject: called for a row that does not fit, which is then left out; None: raise.

        Raises:
            MtlReError: a row does not fit and `reject` is None.
        """
        rows = [row for _, row in self.stream(examples, reject)]
        return FeatureTable.from_rows(rows, len(self.taxonomy.heads))

    def unknown_share(self, table: FeatureTable) -> float:
        """Return the share of unknown tokens ([UNK]) among those of a table's sentences, markers not counted."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or not len(table.ids):
            return 0.0
        of_text = ~np.isin(table.ids, list(self._added_ids - {unknown}))
        return float(np.mean(table.ids[of_text] == unknown)) if of_text.any() else 0.0

    @cached_property
    def _added_ids(self) -> set[int]:
        """Ids of the tokens that are no text: the special tokens around it and the pieces of the markers."""
        pieces = [f" {piece}" for piece in markers.pieces(self.scheme, sorted(self.types))]
        marks = self.tokenizer(pieces, add_special_tokens=False)["input_ids"]
        return {*self.frame.before, *self.frame.between, *self.frame.after, *(id for ids in marks for id in ids)}

    def stream(self, examples: Iterable[Example], reject: Reject | None = None) -> Iterator[tuple[Example, Features]]:
        """Yield each example that fits with its features, in order; `READ_AHEAD` rows are tokenised at once."""
        numbered = enumerate(examples)
        while chunk := list(islice(numbered, READ_AHEAD)):
            yield from self._chunk(chunk, reject)

    def _chunk(self, chunk: Sequence[tuple[int, Example]], reject: Reject | None) -> Iterator[tuple[Example, Features]]:
        marked: list[tuple[int, Example, markers.Marked]] = []
        for number, example in chunk:
            with _named(number, example, reject):
                self._check_types(example)
                text = markers.mark(example.sentence, example.subject, example.object, self.scheme)
                marked.append((number, example, text))
        if not marked:
            return
        texts = {text: place for place, text in enumerate(dict.fromkeys(text.text for _, _, text in marked))}
        coded = encode_with_offsets(self.tokenizer, list(texts))
        questions: list[list[int]] = [[]] * len(marked)
        if self.query:
            asked = [markers.question(example.subject, example.object) for _, example, _ in marked]
            questions = encode_with_offsets(self.tokenizer, asked)["input_ids"]
        for index, (number, example, text) in enumerate(marked):
            with _named(number, example, reject):
                ids, offsets = (coded[key][texts[text.text]] for key in ("input_ids", "offset_mapping"))
                yield example, self._features(example, text, ids, offsets, questions[index])

    def _features(
        self,
        example: Example,
        marked: markers.Marked,
        ids: list[int],
        offsets: list[tuple[int, int]],
        question: list[int],
    ) -> Features:
        levitated = self.scheme == markers.LEVITATED
        find = _covered if levitated else _tokens
        subject, object_ = (
            find(offsets, marked.subject, "subject_entity"),
            find(offsets, marked.object, "object_entity"),
        )
        behind = self._marks(example) if levitated else []
        budget = self.max_length - self.frame.size - len(question) - len(behind)
        outer, other = sorted([subject, object_], key=lambda span: (span[0], -span[1]))
        kept = markers.fit_length(len(ids), outer, other, budget)
        frame, sentence = self.frame, [ids[index] for index in kept]
        position = {index: len(frame.before) + rank for rank, index in enumerate(kept)}
        second = len(frame.before) + len(sentence) + len(frame.between)
        whole = [*frame.before, *sentence, *frame.between, *question, *frame.after, *behind]
        targets = self.taxonomy.targets(example.label)
        return Features(
            input_ids=np.array(whole, np.int32),
            positions=np.array(
                [position[token] for start, stop in (subject, object_) for token in (start, stop - 1)], np.int32
            ),
            second=second if self.query else len(whole),
            targets=np.array([targets[head.name] for head in self.taxonomy.heads], np.int64),
        )

    def _marks(self, example: Example) -> list[int]:
        """Ids of the four tokens that stand behind the sentence under `levitated`."""
        pieces = [*markers.typed_special("subject", example.subject.type)]
        pieces += markers.typed_special("object", example.object.type)
        ids: list[int] = self.tokenizer.convert_tokens_to_ids(pieces)
        if unknown := [
            piece for piece, id in zip(pieces, ids, strict=True) if id in (None, self.tokenizer.unk_token_id)
        ]:
            raise RowError("type", f"the marker {unknown[0]} is not in this checkpoint's vocabulary; train it again")
        return ids

    def _check_types(self, example: Example) -> None:
        """Raise for an entity type that training never saw, for a typed scheme would mark it with untrained pieces."""
        if self.typed:
            for role, entity in (("subject", example.subject), ("object", example.object)):
                if entity.type not in self.types:
                    known = ", ".join(sorted(self.types))
                    raise RowError(f"{role}_entity.type", f"{entity.type!r} is unknown to this model (known: {known})")


@contextmanager
def _named(number: int, example: Example, reject: Reject | None) -> Iterator[None]:
    """Give a RowError its row: hand both to `reject`, or raise a `MtlReError` that names it."""
    try:
        yield
    except RowError as error:
        if reject is None:
            raise MtlReError(f"{example.where}: {error}") from error
        reject(number, example, error)


def _tokens(offsets: Sequence[tuple[int, int]], span: tuple[int, int], field: str) -> tuple[int, int]:
    """Return the token range [first, stop) of a character range that begins and ends with a marker."""
    covering = [index for index, (start, stop) in enumerate(offsets) if start <= span[0] < stop]
    if covering:
        first = covering[-1]  # a lone `▁` may have the offsets of the `@` behind it, as XLM-R's does
        ending = [index for index in range(first, len(offsets)) if offsets[index][0] < span[1] <= offsets[index][1]]
        if ending:
            return first, ending[-1] + 1
    raise RowError(field, "the tokenizer lost its marker; the text around it is not tokenisable")


def _covered(offsets: Sequence[tuple[int, int]], span: tuple[int, int], field: str) -> tuple[int, int]:
    """Return the token range [first, stop) of all tokens that hold a character of a range."""
    inside = [index for index, (start, stop) in enumerate(offsets) if start < span[1] and span[0] < stop]
    if not inside:
        raise RowError(field, "the tokenizer drops all of its characters")
    return inside[0], inside[-1] + 1


def encode_with_offsets(tokenizer: Any, texts: list[str]) -> Any:
    """Return `input_ids` and `offset_mapping` (characters [start, stop)) of texts, without special tokens."""
    return tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def check_known(tokenizer: Any, scheme: str, types: Sequence[str]) -> None:
    """Check that the tokenizer knows every marker piece.

    Raises:
        MtlReError: it does not; the message names the pieces, and schemes to use instead.
    """
    unknown = tokenizer.unk_token_id
    bad = []
    for piece in markers.pieces(scheme, types):
        ids = tokenizer(f" {piece}", add_special_tokens=False)["input_ids"]
        if not ids or (unknown is not None and unknown in ids):
            bad.append(piece)
    if bad:
        raise MtlReError(
            f"data.markers: {scheme} writes {' '.join(bad)}, which this tokenizer does not know; "
            f"use one of {', '.join(sorted(markers.ADDS_TOKENS))}, which add their own tokens"
        )


def add_marker_tokens(tokenizer: Any, scheme: str, types: Sequence[str]) -> int:
    """Add the pieces of a scheme of `ADDS_TOKENS` to the tokenizer as special tokens; return how many were new."""
    if scheme not in markers.ADDS_TOKENS:
        return 0
    return int(tokenizer.add_special_tokens({"additional_special_tokens": markers.pieces(scheme, types)}))
