"""Texts → their entities, by a token-classification model of transformers.

Enters: sentences. Leaves: `Entity` spans of each, in order and apart, whose types are the relation model's. The label
set of the model is read from its config: tags with a position before or behind the type (`B-PS`, `I-PS`, `E-PS`,
`S-PS`, `PS-B`; Ramshaw & Marcus 1995, and BIOES) or bare types. `spans_of` is as lenient as seqeval's default: an
inside tag whose type differs from the tag before opens an entity, so that every prediction has a reading.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError, tell
from mtl_re.features.featurizer import Frame
from mtl_re.files import read_yaml
from mtl_re.model.device import autocast, default_device, resolve_precision

TYPES = Path(__file__).with_name("entity_types.yaml")
LONGEST = 512
"""Tokens of one pass where neither the tokenizer nor the model says how many it takes."""
OVERLAP = 32
"""Tokens that neighbouring passes over a long text share; each token is read where it is farther from an edge."""
_TAG = re.compile(r"(?:(?P<first>[BIESLUM])[-_](?P<type>.+)|(?P<kind>.+)[-_](?P<last>[BIESLUM]))\Z")
_OPENS, _CLOSES = frozenset("BSU"), frozenset("ESLU")


class Tag(NamedTuple):
    """What a label of the model says of a token: where it stands in an entity, and the entity's type (None: outside).

    Attributes:
        opens: A new entity begins here. closes: It ends here.
    """

    type: str | None
    opens: bool
    closes: bool


def tag_of(label: str) -> Tag:
    """Return what a label says; a bare type neither opens nor closes, so neighbours of one type are one entity."""
    if label in ("O", "o", "", "PAD", "[PAD]", "X"):
        return Tag(None, False, False)
    if (parts := _TAG.match(label)) is None:
        return Tag(label, False, False)
    position = parts["first"] or parts["last"]
    return Tag(parts["type"] or parts["kind"], position in _OPENS, position in _CLOSES)


def read_types(path: str | None = None) -> dict[str, str | None]:
    """Return the map from tags to entity types, of a YAML file or this package's own.

    Raises:
        MtlReError: The file cannot be read, or a value is neither a name nor null.
    """
    source = TYPES if path is None else Path(path)
    types = read_yaml(source)
    for tag, kind in types.items():
        if not isinstance(tag, str) or not (kind is None or (isinstance(kind, str) and kind)):
            raise MtlReError(f"{source}: {tag}: {kind!r}; expected TAG: TYPE, such as PS: PER, or null to leave it out")
    return types


def spans_of(tags: Sequence[Tag], offsets: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int, str]]:
    """Return the entities that the tags of a text's tokens spell.

    Args:
        tags: One a token, in order. offsets: Half-open characters of each token.

    Returns:
        (start, end, type) with inclusive characters, in order, without blanks at their ends and without those that hold
        nothing else.
    """
    found: list[list[Any]] = []  # start, stop, type
    going = False
    for tag, (start, stop) in zip(tags, offsets, strict=True):
        if tag.type is None:
            going = False
            continue
        if going and not tag.opens and found[-1][2] == tag.type:
            found[-1][1] = max(found[-1][1], stop)
        else:
            found.append([start, stop, tag.type])
        going = not tag.closes
    spans: list[tuple[int, int, str]] = []
    for start, stop, kind in found:
        if spans:
            start = max(start, spans[-1][1] + 1)  # pieces of one character may share it
        word = text[start:stop]
        if word.strip():
            first = start + len(word) - len(word.lstrip())
            spans.append((first, first + len(word.strip()) - 1, kind))
    return spans


class EntityFinder:
    """A token-classification model and the types that its tags stand for.

    Args:
        model, tokenizer: Of transformers; the tokenizer is a fast one.
        types: Tag without its position → entity type, or None to leave its entities out.
        batch_size: Passes at once. precision: Arithmetic of the forward pass.

    Raises:
        MtlReError: The tokenizer gives no character offsets, or no tag of the model is in `types`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, types: Mapping[str, str | None], batch_size: int = 32, precision: str = "no"
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise MtlReError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
        self.model, self.tokenizer, self.types = model.eval(), tokenizer, dict(types)
        self.batch_size, self.precision = batch_size, precision
        self.tags = [tag_of(str(model.config.id2label[number])) for number in range(model.config.num_labels)]
        names = sorted({tag.type for tag in self.tags if tag.type is not None})
        unknown = [name for name in names if name not in types]
        if len(unknown) == len(names):
            raise MtlReError(
                f"--entities: no entity type is known for this model's tags {names}; name them in a YAML "
                "file (PS: PER), and give it by --ner_types"
            )
        if unknown:
            tell(f"--entities: entities of {', '.join(unknown)} are left out; --ner_types FILE.yaml can map them")
        self.frame = Frame.of(tokenizer, pair=False)
        limits = [
            tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None) or LONGEST,
            LONGEST,
        ]
        self.length = min(limits)
        if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            self.length = min(self.length, model.config.max_position_embeddings - 2)  # positions count from 2

    @classmethod
    def load(
        cls,
        model: str,
        types: Mapping[str, str | None] | None = None,
        device: str | None = None,
        batch_size: int = 32,
        precision: str = "no",
    ) -> EntityFinder:
        """Load a directory or hub id.

        Raises:
            MtlReError: It cannot be loaded, has no head for tokens, or as the class raises it.
        """
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            network, loaded = AutoModelForTokenClassification.from_pretrained(
                model, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # transformers raises dozens of kinds: network, name, config, weights
            text = " ".join(str(error).split())[:300]
            raise MtlReError(f"--entities ner:{model}: cannot be loaded ({type(error).__name__}: {text})") from error
        if missing := sorted(loaded["missing_keys"]):
            what = f"has no trained head for tokens (missing {', '.join(missing[:3])})"
            raise MtlReError(f"--entities ner:{model}: {what}; give a model for token classification")
        place = default_device() if device is None else torch.device(device)
        network.to(place)
        return cls(
            network, tokenizer, read_types() if types is None else types, batch_size, resolve_precision(precision)
        )

    def digest(self) -> str:
        """Return the SHA-256 of all that the entities depend on."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key != "transformers_version"}
        settings = [config, self.types, self.batch_size, self.precision, self.length]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def find(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Return the entities of each text, in order of their place; they do not overlap.

        A text of more tokens than the model takes is read in passes that overlap.
        """
        if not texts:
            return []
        settings = {"add_special_tokens": False, "return_offsets_mapping": True, "return_attention_mask": False}
        coded = self.tokenizer(list(texts), verbose=False, **settings)
        labels = self._labels(coded["input_ids"])
        found: list[list[Entity]] = []
        for text, offsets, numbers in zip(texts, coded["offset_mapping"], labels, strict=True):
            spans = spans_of([self.tags[number] for number in numbers], offsets, text)
            named = [(start, end, self.types.get(kind)) for start, end, kind in spans]
            found.append([Entity(text[a : b + 1], a, b, kind) for a, b, kind in named if kind is not None])
        return found

    def _labels(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the most probable label of every token of each text."""
        room = self.length - self.frame.size
        overlap = min(OVERLAP, room // 2)
        passes: list[tuple[int, int]] = []  # text, first token
        for number, ids in enumerate(texts):
            passes += [(number, start) for start in range(0, max(len(ids) - overlap, 1), room - overlap)]
        passes.sort(key=lambda one: min(len(texts[one[0]]) - one[1], room))
        labels = [[0] * len(ids) for ids in texts]
        for begin in range(0, len(passes), self.batch_size):
            batch = passes[begin : begin + self.batch_size]
            parts = [list(texts[number][start : start + room]) for number, start in batch]
            for (number, start), predicted in zip(batch, self._pass(parts), strict=True):
                # Of what neighbours share, the first half is read by the pass before, the rest by the one after.
                skip = 0 if start == 0 else overlap // 2
                stop = start + len(predicted)
                keep = len(predicted) - (0 if stop >= len(texts[number]) else overlap - overlap // 2)
                labels[number][start + skip : start + keep] = predicted[skip:keep]
        return labels

    def _pass(self, parts: list[list[int]]) -> list[list[int]]:
        """Return the labels of some token sequences, special tokens added for the pass."""
        frame, pad = self.frame, self.tokenizer.pad_token_id or 0
        longest = max(map(len, parts)) + frame.size
        whole = [[*frame.before, *part, *frame.after] for part in parts]
        ids = torch.tensor([one + [pad] * (longest - len(one)) for one in whole])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in whole])
        device = next(self.model.parameters()).device
        with torch.inference_mode(), autocast(device, self.precision):
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        start = len(frame.before)
        best = logits.float().argmax(-1).cpu().tolist()
        return [row[start : start + len(part)] for row, part in zip(best, parts, strict=True)]
