"""Text → blocks of tokens for masked-language modelling: read, freed of evaluation text, split, packed.

Enters: DATA (rows with entities, or with `text` or `sentence`), a .txt file or a folder of them. Leaves: `Blocks`, flat
arrays. Each line is one text, and a text counts once however often it stands there: the rows of one sentence become
one text with all their entity spans. Whatever shares words with the evaluation sentences is dropped before anything
else sees it, the vocabulary of an encoder from scratch included.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtl_re.adapt.masking import UnitKind, Units, text_units
from mtl_re.config import AdaptConfig
from mtl_re.data.raw_rows import one_line
from mtl_re.data.readers import read_rows
from mtl_re.data.validation import BadRow, encodable, parse_row, shown
from mtl_re.data.walk import files_of
from mtl_re.encodings import file_encoding
from mtl_re.errors import MtlReError, RowError
from mtl_re.features.featurizer import Frame, encode_with_offsets
from mtl_re.taxonomy import Taxonomy

_CHUNK = 1024  # texts tokenised at once
Span = tuple[int, int]


@dataclass(frozen=True)
class Text:
    """One line of text; `spans` are its entities, characters [start, stop)."""

    text: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Texts:
    """The texts of a run, and what was left out on the way."""

    train: list[Text]
    held_out: list[Text]
    bad: list[BadRow]
    read: int
    leaked: int

    @property
    def counts(self) -> dict[str, int]:
        """What the manifest says of them."""
        sizes = {"train": len(self.train), "held_out": len(self.held_out), "rejected_rows": len(self.bad)}
        return {"distinct_texts": self.read, "dropped_as_evaluation_text": self.leaked, **sizes}


# ---- reading -----------------------------------------------------------------------------------------------------


def select_texts(config: AdaptConfig) -> Texts:
    """Read, guard against evaluation text, thin out, and hold out.

    Raises:
        MtlReError: nothing to read, a bad row under `on_bad_row: error`, or no text is left.
    """
    options, bad = config.data, list[BadRow]()
    if not options.train:
        raise MtlReError("data.train is not set; give rows, a .txt file, a folder of .txt or hub:DATASET/CONFIG:SPLIT")
    reject = bad.append if options.on_bad_row == "skip" else None
    found = merged(read_texts(options.train, reject))
    guard = LeakGuard(
        (text.text for spec in config.exclude for text in read_texts(spec, reject, spans=False, hidden=True)),
        options.exclude_words,
    )
    kept = [text for text in found if not guard.leaks(text.text)]
    chosen = kept
    if options.limit is not None and options.limit < len(kept):
        order = np.random.default_rng(options.split_seed).permutation(len(kept))[: options.limit]
        chosen = [kept[index] for index in sorted(order)]
    train, held_out = hold_out(chosen, options.held_out, options.split_seed)
    if not train:
        why = f" ({len(found) - len(kept)} of {len(found)} share words with --exclude)" if found else ""
        raise MtlReError(f"data.train: {options.train} leaves no text to train on{why}")
    return Texts(train, held_out, bad, len(found), len(found) - len(kept))


def read_texts(
    spec: str,
    reject: Callable[[BadRow], object] | None = None,
    option: str = "--data.on_bad_row",
    spans: bool = True,
    hidden: bool = False,
) -> Iterator[Text]:
    """Stream the texts of a file, folder or data set, one a line, as often as they stand there.

    Args:
        reject: called for a row that cannot be used; None: raise.
        option: that leaves such rows out, for the message.
        spans: of a row's entities; without them its sentence is read whatever they are.
        hidden: read a folder's hidden files too: a guard against evaluation text must miss none.
    """
    path = Path(spec)
    if path.is_dir():
        files = files_of(spec, lambda name: name.endswith(".txt"), ".txt", hidden)
        if not files:
            raise MtlReError(f"{spec}: the folder holds no .txt file")
        for _, file in files:
            yield from _lines(Path(file))
    elif path.suffix.lower() == ".txt":
        yield from _lines(path)
    else:
        taxonomy = Taxonomy.from_prefixes()
        for raw in read_rows(spec):
            try:
                if raw.fault is not None:
                    raise raw.fault
                yield from _row_texts(raw.fields, taxonomy, spans)
            except RowError as error:
                bad = BadRow(raw.source, raw.number, error.field, one_line(error.reason))
                if reject is None:
                    raise MtlReError(f"{bad} ({option} skip leaves such rows out)") from error
                reject(bad)


def _lines(path: Path) -> Iterator[Text]:
    try:
        with path.open(encoding=file_encoding(path)) as file:
            for line in file:
                if line.strip():
                    yield Text(line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8: {error.reason} at byte {error.start}"
        raise MtlReError(f"{path}: cannot be read ({reason})") from error


def _row_texts(fields: Mapping[str, Any], taxonomy: Taxonomy, spans: bool) -> Iterator[Text]:
    """Give a relation row's sentence with both spans, whatever its label, or the lines of another row's text."""
    if fields.get("subject_entity") is not None and spans:
        row = parse_row({**fields, "label": None}, taxonomy)
        yield Text(row.sentence, tuple((entity.start, entity.end + 1) for entity in (row.subject, row.object)))
        return
    names = ("sentence", "text") if fields.get("subject_entity") is not None else ("text", "sentence")
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise RowError("text", f"missing (nor is there a sentence); the row has {shown(list(fields))}")
    lines = encodable(fields[name], name).splitlines()
    yield from (Text(line.strip()) for line in lines if line.strip())


def merged(texts: Iterable[Text]) -> list[Text]:
    """Return each text once, in the order of first appearance, with the spans of all its appearances."""
    spans: dict[str, set[Span]] = {}
    for text in texts:
        spans.setdefault(text.text, set()).update(text.spans)
    return [Text(text, tuple(sorted(found))) for text, found in spans.items()]


def hold_out(texts: Sequence[Text], share: float, seed: int) -> tuple[list[Text], list[Text]]:
    """Split off a share of distinct texts. A text's side depends on its hash and the seed, not on the other texts."""

    def place(text: Text) -> float:
        digest = hashlib.blake2b(f"{seed}\n{text.text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    places = [place(text) for text in texts]
    train = [text for text, at in zip(texts, places, strict=True) if at >= share]
    return train, [text for text, at in zip(texts, places, strict=True) if at < share]


# ---- evaluation text ---------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Return the words of a text as far as leakage is concerned: case, punctuation, composition and the number of
    blanks between two words do not count (whether there is one does)."""
    whole = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"\w+", whole) or whole.split()


class LeakGuard:
    """The word sequences of evaluation sentences.

    A text leaks if it shares `size` consecutive words with one of them; a sentence of fewer words is looked for as a
    whole, anywhere in a text, and a text of fewer words in the sentences. So an evaluation sentence never passes, nor a
    line of it where the text is hard-wrapped.
    """

    def __init__(self, sentences: Iterable[str], size: int) -> None:
        self.size, self.sentences = size, [words for sentence in sentences if (words := words_of(sentence))]
        self.known: dict[int, set[str]] = {}
        self.parts: dict[int, set[str]] = {}  # number of words → all runs of so many, made where a text is that short
        for words in self.sentences:
            length = min(size, len(words))
            self.known.setdefault(length, set()).update(_runs(words, length))

    def leaks(self, text: str) -> bool:
        """Return whether a text shares words with an evaluation sentence."""
        words = words_of(text)
        if 0 < len(words) < self.size and " ".join(words) in self._parts(len(words)):
            return True
        return any(run in known for length, known in self.known.items() for run in _runs(words, length))

    def _parts(self, length: int) -> set[str]:
        if length not in self.parts:
            self.parts[length] = {run for words in self.sentences for run in _runs(words, length)}
        return self.parts[length]


def _runs(words: Sequence[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


# ---- blocks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """Inputs of the encoder, special tokens included, as flat arrays.

    Attributes:
        ids: (tokens,) int32. units: of the same tokens, numbered anew in every block.
        starts: (blocks + 1,) int64, where each block begins.
    """

    ids: np.ndarray
    units: Units
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, block: int) -> tuple[np.ndarray, Units]:
        part = slice(self.starts[block], self.starts[block + 1])
        return self.ids[part], Units(self.units.number[part], self.units.entity[part])

    @property
    def lengths(self) -> np.ndarray:
        """(blocks,) tokens of each."""
        return np.diff(self.starts)

    def digest(self) -> str:
        """Return the SHA-256 of everything that training sees."""
        found = hashlib.sha256()
        for array in (self.ids, *self.units, self.starts):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


Piece = tuple[int, int, int]
"""Text, and its tokens [start, stop)."""


def pack(
    lengths: Sequence[int], capacity: int, gap: int, mode: Literal["greedy", "none"] = "greedy"
) -> list[list[Piece]]:
    """Pack texts into blocks, in their order.

    A text joins the block before it where it fits whole; one longer than a block is cut.

    Args:
        lengths: tokens of each text.
        capacity: tokens of a block. gap: tokens between two texts of a block.
        mode: `none`: every block holds (a part of) one text.
    """
    blocks: list[list[Piece]] = []
    used = capacity
    for text, length in enumerate(lengths):
        start = 0
        while start < length:
            rest = length - start
            if mode == "none" or used + gap + rest > capacity:
                blocks.append([])
                used = -gap
            stop = min(length, start + capacity)
            blocks[-1].append((text, start, stop))
            used += gap + stop - start
            start = stop
    return blocks


def make_blocks(texts: Sequence[Text], tokenizer: Any, config: AdaptConfig) -> Blocks:
    """Tokenise texts and pack them into blocks of `data.max_length`.

    Texts in one block are kept apart by the tokenizer's own separator and may attend to each other (as RoBERTa's
    full-sentences inputs do).
    """
    coded = list(_tokenised(texts, tokenizer, config.mask.units, config.mask.entities is not False))
    frame, gap = Frame.of(tokenizer, pair=False), Frame.of(tokenizer, pair=True).between
    capacity = config.data.max_length - frame.size
    blocks = pack([len(ids) for ids, _ in coded], capacity, len(gap), config.data.packing)
    rows = [_joined([_cut(*coded[text], start, stop) for text, start, stop in block], frame, gap) for block in blocks]
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(ids) for ids, _ in rows], out=starts[1:])
    if not rows:
        return Blocks(np.zeros(0, np.int32), Units(np.zeros(0, np.int32), np.zeros(0, bool)), starts)
    units = Units(*(np.concatenate([row[1][part] for row in rows]) for part in range(2)))
    return Blocks(np.concatenate([ids for ids, _ in rows]), units, starts)


def _tokenised(
    texts: Sequence[Text], tokenizer: Any, kind: UnitKind, entities: bool
) -> Iterator[tuple[np.ndarray, Units]]:
    for begin in range(0, len(texts), _CHUNK):
        chunk = texts[begin : begin + _CHUNK]
        coded = encode_with_offsets(tokenizer, [text.text for text in chunk])
        for text, ids, offsets in zip(chunk, coded["input_ids"], coded["offset_mapping"], strict=True):
            spans = text.spans if entities else ()
            yield np.array(ids, np.int32), text_units(text.text, offsets, kind, spans)


def _cut(ids: np.ndarray, units: Units, start: int, stop: int) -> tuple[np.ndarray, Units]:
    return ids[start:stop], Units(units.number[start:stop], units.entity[start:stop])


def _joined(pieces: Sequence[tuple[np.ndarray, Units]], frame: Frame, gap: Sequence[int]) -> tuple[np.ndarray, Units]:
    """Join pieces into one block, separators between and the frame around; units are numbered from 0 without gaps."""
    parts, taken = [_special(frame.before)], 0
    for index, (ids, units) in enumerate(pieces):
        if index:
            parts.append(_special(gap))
        dense = np.unique(units.number, return_inverse=True)[1]
        parts.append((ids, Units(dense + taken, units.entity)))
        taken += int(dense.max()) + 1
    parts.append(_special(frame.after))
    number = np.concatenate([units.number for _, units in parts]).astype(np.int32)
    return np.concatenate([ids for ids, _ in parts]), Units(number, np.concatenate([u.entity for _, u in parts]))


def _special(ids: Sequence[int]) -> tuple[np.ndarray, Units]:
    """Return tokens that are never masked."""
    return np.array(ids, np.int32), Units(np.full(len(ids), -1), np.zeros(len(ids), bool))
