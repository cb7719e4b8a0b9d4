"""Sentences → entities, by a token-classification model of transformers: `mtl-re extract --entities ner:MODEL`.

Enters: sentences. Leaves: `Entity`s with exact character spans, in order and apart from each other. The model
tags pieces of the tokenizer, not words: a Korean word is often an entity and a particle (세종대왕 + 은), so
entities are read piece by piece (`spans_of`), as KLUE-NER's characters are tagged, and a model should tag
every piece. Sentences beyond the model's length are read in overlapping windows. Which of the model's types
stands for which type here is a map (`entity_types.yaml`).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForTokenClassification

from mtl_re.data.unicode_form import composed, composed_borders
from mtl_re.data.validation import Entity, encodable, shown
from mtl_re.errors import MtlReError, tell
from mtl_re.features.collate import sorted_batches
from mtl_re.features.featurizer import Frame, encode_with_offsets
from mtl_re.files import read_yaml
from mtl_re.model.device import autocast, default_device, resolve_precision
from mtl_re.model.encoders import is_own, load_pretrained, position_room

TYPES_FILE = Path(__file__).with_name("entity_types.yaml")
DEFAULT_LENGTH = 512
"""Tokens of a window where neither the model nor its tokenizer names a limit."""
MAX_OVERLAP = 128
"""Tokens that two windows share at most; a token in the middle of them has 64 tokens of context on either side."""

Place = Literal["begin", "inside", "end", "single"]
_PLACES: dict[str, Place] = {
    "B": "begin",
    "I": "inside",
    "M": "inside",
    "E": "end",
    "L": "end",
    "S": "single",
    "U": "single",
}
_PREFIX = re.compile(r"(?P<place>[BIMELSU])[-_](?P<type>.+)")
_SUFFIX = re.compile(r"(?P<type>.+)[-_](?P<place>[BIMELSU])")
_OUTSIDE = re.compile(r"[oO]|-|_|\[.*\]|<.*>|")
"""Labels of no entity: `O`, Naver's `-`, and special tokens that some label sets list (`[PAD]`)."""

Types = Mapping[str, str | None]
"""A model's entity type → ours; None: its entities are left out on purpose."""


class Tag(NamedTuple):
    """What a label says of a piece: where it stands in an entity, and the entity's type (None: in no entity)."""

    place: Place
    type: str | None


OUTSIDE = Tag("single", None)


def read_types(path: str | None) -> dict[str, str | None]:
    """Return the map from a model's entity types to ours, of a YAML file or (None) the package's own.

    Raises:
        MtlReError: The file cannot be read, or a key or value is no name.
    """
    file = TYPES_FILE if path is None else Path(path)
    types = read_yaml(file)
    for key, value in types.items():
        if not isinstance(key, str) or not key.strip():
            raise MtlReError(f"{file}: the key {shown(key)} is no text; put it in quotes, such as 'NO': NOH")
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise MtlReError(f"{file}: {key} is {shown(value)}; expected an entity type such as PER, or null")
    if not types:
        raise MtlReError(f"{file}: holds no type; expected lines such as PS: PER")
    return types


def read_tags(labels: Sequence[str]) -> list[Tag]:
    """Return what each label of a set means: `B-PS` (any of B I E S, L U, M), `PS-B`, or plain `PS`, by the whole set.

    A plain `PS` says no more than that the piece is of this type, so neighbours of one type are one entity.
    """
    named = [label for label in labels if not _OUTSIDE.fullmatch(label)]
    pattern: re.Pattern[str] | None = None
    for candidate in (_PREFIX, _SUFFIX):
        found = [match for match in map(candidate.fullmatch, named) if match]
        # `S-OIL` alone makes no scheme: each has a label that begins an entity, or one that goes on with it.
        if 2 * len(found) > len(named) and {match["place"] for match in found} & {"B", "I"}:
            pattern = candidate
            break
    tags = []
    for label in labels:
        match = pattern.fullmatch(label) if pattern is not None else None
        if _OUTSIDE.fullmatch(label):
            tags.append(OUTSIDE)
        else:
            tags.append(Tag("inside", label) if match is None else Tag(_PLACES[match["place"]], match["type"]))
    return tags


def spans_of(tags: Sequence[Tag], offsets: Sequence[tuple[int, int]], text: str) -> list[Entity]:
    """Return the entities that tagged pieces spell, in order; no two share a character, none begins or ends blank.

    Read leniently, as conlleval does: an inside or end tag goes on with the entity before it if that has its type and
    has not ended; else it opens one. So does a begin tag that follows such an entity without a blank: models that were
    trained on the first piece of each word only (a common default) begin anew at every piece of it. Two neighbours of
    one type in one word are one entity by this. Two exceptions come from tokenizers. A character that several pieces
    share (bytes of an emoji) belongs to the first of them. A piece without a visible character (a lone `▁`) can open an
    entity, but not end, extend or retype one.

    Args:
        tags: One for each piece.
        offsets: Characters [start, stop) of each piece in the text, starts not falling.
    """
    found: list[Entity] = []
    kind: str | None = None  # of the entity that is open
    first: int | None = None
    last = covered = 0

    def close() -> None:
        nonlocal kind, first
        if kind is not None and first is not None:
            found.append(Entity(text[first : last + 1], first, last, kind))
        kind = first = None

    for tag, (start, stop) in zip(tags, offsets, strict=True):
        if start < stop <= covered:
            continue
        visible = [place for place in range(max(start, covered), stop) if _visible(text[place])]
        covered = max(covered, stop)
        joined = first is not None and visible and not any(map(str.isspace, text[last + 1 : visible[0]]))
        begins = tag.place == "single" or (tag.place == "begin" and not joined)
        opens = begins or kind is None or kind != tag.type
        if not visible:
            if tag.type is not None and tag.place in ("begin", "single"):
                close()
                kind = tag.type
            continue
        if opens:
            close()
            kind = tag.type
        if kind is not None:
            if first is None:  # an accent behind a blank opens nothing
                first = next((place for place in visible if not unicodedata.combining(text[place])), None)
            last = visible[-1]
        if tag.place in ("end", "single"):
            close()
    close()
    return found


def _visible(character: str) -> bool:
    return character.isprintable() and character != " "


class Window(NamedTuple):
    """Tokens [start, stop) that the model reads at once, and those [first, last) of them whose tags are kept."""

    start: int
    stop: int
    first: int
    last: int


def windows_of(length: int, size: int) -> list[Window]:
    """Return windows over so many tokens, each of at most `size`; every token is kept once, where it stands inmost.

    Neighbours share a quarter of their tokens, at most `MAX_OVERLAP`, or more before the last window, which is a full
    one too.
    """
    if length <= size:
        return [Window(0, length, 0, length)]
    step = size - min(size // 4, MAX_OVERLAP)
    starts = [*range(0, length - size, step), length - size]
    borders = [(after + before + size) // 2 for before, after in pairwise(starts)]
    edges = [0, *borders, length]
    return [Window(start, start + size, *edges[number : number + 2]) for number, start in enumerate(starts)]


class EntityFinder:
    """A token-classification model that finds the entities of sentences.

    Args:
        model: Any `AutoModelForTokenClassification`; its device decides where it runs.
        tokenizer: Its fast tokenizer.
        types: From its entity types to ours (None: `entity_types.yaml`); those the map does not have are named on
            stderr once, and their entities left out.
        batch_size: Windows of one forward pass.
        precision: Arithmetic of the forward pass: `no` (fp32), `bf16`, `fp16` or `auto`.
        name: What messages call the model.

    Raises:
        MtlReError: The tokenizer gives no character offsets, the map knows none of the model's types, or the model
            takes too few tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        types: Types | None = None,
        batch_size: int = 32,
        precision: str = "no",
        name: str = "the model",
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            what = f"{type(tokenizer).__name__} gives no character offsets"
            raise MtlReError(f"ner:{name}: {what}; take a model with a fast tokenizer (tokenizer.json)")
        if batch_size < 1:
            raise MtlReError(f"batch_size: {batch_size}; expected 1 or more")
        self.model, self.tokenizer, self.name, self.batch_size = model.eval(), tokenizer, name, batch_size
        self.device = next(model.parameters()).device
        self.precision = resolve_precision(precision, self.device)
        self.frame = Frame.of(tokenizer, pair=False)
        self.size = _room(model.config, tokenizer) - self.frame.size
        if self.size < 4:
            raise MtlReError(f"ner:{name}: has room for {self.size} tokens of a sentence; 4 or more are needed")
        labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        self.tags = read_tags(labels)
        self.types = self._known(read_types(None) if types is None else types)

    @classmethod
    def load(
        cls,
        model: str,
        types: Types | None = None,
        device: str | None = None,
        batch_size: int = 32,
        precision: str = "no",
    ) -> EntityFinder:
        """Load a directory or a hub id; only safetensors are read, and no code of it is run.

        Args:
            types: See `EntityFinder` and `read_types`.
            device: Name of a torch device (None: the GPU if there is one).

        Raises:
            MtlReError: It cannot be loaded, it is no token-classification model, or as for `EntityFinder`.
        """
        if is_own(model):
            raise MtlReError(f"ner:{model}: is a relation model of mtl-re; give a token-classification model")
        place = default_device() if device is None else _device(device)
        network, tokenizer, missing = load_pretrained(
            model, AutoModelForTokenClassification, "ner", use_safetensors=True
        )
        if missing:
            what = f"has no trained token-classification head (missing {', '.join(missing[:3])})"
            raise MtlReError(f"ner:{model}: {what}; give a model that was trained to tag entities")
        return cls(network.to(place), tokenizer, types, batch_size, precision, model)

    def find(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Return the entities of each text, in order of position; no two of a text overlap.

        Equal texts are read once. A text's entities do not depend on the others, but for rounding where two tags are
        equally probable. Decomposed Hangul is composed for the model; spans are those of the text as given.

        Raises:
            MtlReError: A text is none, or holds half a surrogate pair.
        """
        for number, text in enumerate(texts):
            encodable(text, f"texts[{number}]")
        unique = list(dict.fromkeys(texts))
        if not unique:
            return []
        coded = encode_with_offsets(self.tokenizer, [composed(text) for text in unique])
        found = {}
        for number, (text, tags) in enumerate(zip(unique, self._tags(coded["input_ids"]), strict=True)):
            offsets = self._offsets(text, coded["input_ids"][number], coded["offset_mapping"][number])
            spans = spans_of([self.tags[tag] for tag in tags], offsets, text)
            found[text] = [
                Entity(span.word, span.start, span.end, self.types[span.type])
                for span in spans
                if span.type in self.types
            ]
        return [list(found[text]) for text in texts]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all that the entities follow from: weights, tokenizer, config and map of types."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in _NO_PART}
        total = hashlib.sha256()
        for part in (config, self.types, self.size, self.frame):
            total.update(json.dumps(part, sort_keys=True, default=str).encode())
        total.update(self.tokenizer.backend_tokenizer.to_str().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    def _known(self, types: Types) -> dict[str, str]:
        """Return the part of the map that this model's tags need; name on stderr what the map does not know."""
        own = list(dict.fromkeys(tag.type for tag in self.tags if tag.type is not None))
        plain = {key.upper(): value for key, value in types.items()}
        known = {kind: types.get(kind, plain.get(kind.upper())) for kind in own}
        unknown = [kind for kind in own if kind not in types and kind.upper() not in plain]
        taken = {kind: value for kind, value in known.items() if value is not None}
        if not taken:
            what = f"the map of types knows none of its tags ({', '.join(own) or 'it has none'})"
            raise MtlReError(f"ner:{self.name}: {what}; give --ner_types a YAML file with lines such as {_line(own)}")
        if unknown:
            what = f"entities of type {', '.join(unknown)} are left out, for the map of types does not have them"
            tell(f"ner:{self.name}: {what}; --ner_types FILE.yaml names a type for each, or null")
        return taken

    def _tags(self, rows: Sequence[list[int]]) -> list[list[int]]:
        """Return the most probable label of each token, by its number."""
        tags = [[0] * len(ids) for ids in rows]
        parts = [(row, window) for row, ids in enumerate(rows) if ids for window in windows_of(len(ids), self.size)]
        lengths = np.array([window.stop - window.start for _, window in parts], np.int64)
        for batch in sorted_batches(lengths, self.batch_size):
            chosen = [parts[number] for number in batch]
            best = self._forward([rows[row][window.start : window.stop] for row, window in chosen])
            for line, (row, window) in zip(best, chosen, strict=True):
                kept = line[window.first - window.start : window.last - window.start]
                tags[row][window.first : window.last] = kept.tolist()
        return tags

    def _forward(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Return (rows, tokens of the longest) label numbers; what stands behind a shorter row means nothing."""
        before, after = self.frame.before, self.frame.after
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest + self.frame.size), self.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros_like(ids)
        for line, row in enumerate(rows):
            whole = [*before, *row, *after]
            ids[line, : len(whole)], mask[line, : len(whole)] = whole, 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(
                **{key: torch.from_numpy(value).to(self.device) for key, value in inputs.items()}
            ).logits
        best: np.ndarray = logits.float().argmax(-1).cpu().numpy()
        return best[:, len(before) : len(before) + longest]

    def _offsets(self, text: str, ids: Sequence[int], offsets: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the characters [start, stop) of each piece in the text as it was given, composed or not."""
        # XLM-R's lone `▁` has the offsets of the character behind it, which is another piece's.
        apart = [
            (start, start) if token in self._blanks else (start, stop)
            for token, (start, stop) in zip(ids, offsets, strict=True)
        ]
        if composed(text) == text:
            return apart
        borders = sorted((place, border) for border, place in composed_borders(text).items())
        places = [place for place, _ in borders]
        starts = np.searchsorted(places, [start for start, _ in apart], side="right") - 1
        stops = np.searchsorted(places, [stop for _, stop in apart], side="left")
        return [
            (borders[start][1], borders[start if blank else stop][1])
            for start, stop, blank in zip(starts, stops, (start == stop for start, stop in apart), strict=True)
        ]

    @cached_property
    def _blanks(self) -> frozenset[int]:
        """Ids of the pieces that are SentencePiece's sign for a blank and nothing else."""
        return frozenset(
            number for piece, number in self.tokenizer.get_vocab().items() if piece and not piece.strip("▁")
        )


_NO_PART = frozenset({"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Keys of a config that say where and by what a model was saved; the same model has others elsewhere."""


def _room(config: Any, tokenizer: Any) -> int:
    """Return how many tokens, special ones included, the model takes at once."""
    limits = [position_room(config), getattr(tokenizer, "model_max_length", None)]
    named = [limit for limit in limits if limit is not None and limit < 1_000_000]  # transformers' "unknown" is 1e30
    return min(named, default=DEFAULT_LENGTH)


def _device(name: str) -> torch.device:
    try:
        torch.empty(0, device=(device := torch.device(name)))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MtlReError(f"device {name!r}: not a device of this machine; take cpu, or leave it out") from error
    return device


def _line(kinds: Sequence[str]) -> str:
    return f"{kinds[0] if kinds else 'PS'}: PER"
