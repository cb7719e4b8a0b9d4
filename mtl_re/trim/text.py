"""The text of a cut: read as `adapt` reads its own, tokenised, counted, and a part set aside.

Enters: the sources of `--text`, `--held_out` and `--keep`, in any form of `adapt.text`, and the whole tokenizer.
Leaves: `Read`. Texts are streamed and count as often as they stand there; only held-out ones are kept in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.adapt.text import Text, hold_out, read_texts
from mtl_re.config import TrimConfig
from mtl_re.data.documents import digest_of
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError
from mtl_re.trim.choice import Use, named_ids, set_apart
from mtl_re.trim.vocabulary import Vocabulary

_CHUNK = 1024  # texts tokenised at once
FIRST = 8
"""Counted texts that are kept, for a check where none are held out."""


@dataclass
class Read:
    """The text of a run.

    Attributes:
        use: What the counted texts use. held_out: Texts that were not counted.
        sources: Name, number of texts and SHA-256 of each counted source. first: The first counted texts.
    """

    use: Use
    held_out: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def read_all(tokenizer: Any, options: TrimConfig) -> Read:
    """Count the pieces and characters of the text, and set held-out texts aside.

    Raises:
        MtlReError: A source cannot be read, or there is no text to count.
    """
    share = options.held_out if isinstance(options.held_out, float | int) else 0.0
    size = max(tokenizer.get_vocab().values()) + 1
    plain, apart = np.zeros(size, np.int64), np.zeros(size, np.int64)
    found = Read(Use(plain))
    reject = found.bad.append if options.on_bad_row == "skip" else None
    for spec in options.text:
        count = 0
        for chunk in _chunks(read_texts(spec, reject, "--on_bad_row")):
            counted, aside = hold_out(chunk, share, options.split_seed)
            found.held_out += [text.text for text in aside]
            plain += _counts(tokenizer, [text.text for text in counted], size)
            apart += _counts(tokenizer, [set_apart(text.text, text.spans) for text in counted], size)
            found.use.characters.update(Counter("".join(text.text for text in counted)))
            found.first += [text.text for text in counted[: FIRST - len(found.first)]]
            count += len(counted)
        found.sources.append({"text": spec, "texts": count, "sha256": digest_of(spec)})
    if not found.first:
        raise MtlReError(f"--text: {', '.join(options.text)}: there is no text to count pieces of")
    found.use.pieces = np.maximum(plain, apart)
    if isinstance(options.held_out, str):
        found.held_out = [text.text for text in read_texts(options.held_out, reject, "--on_bad_row")]
    return found


def _chunks(texts: Iterator[Text]) -> Iterator[list[Text]]:
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk


def _counts(tokenizer: Any, texts: Sequence[str], size: int) -> np.ndarray:
    ids = [index for text in coded(tokenizer, texts) for index in text]
    return np.bincount(np.array(ids, np.int64), minlength=size)


def coded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, without special tokens."""
    if not texts:
        return []
    settings = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **settings)["input_ids"]
    return ids


def wanted_ids(vocabulary: Vocabulary, tokenizer: Any, options: TrimConfig, bad: list[BadRow]) -> set[int]:
    """Return the ids that `--keep` asks for; bad rows that may be left out are added to `bad`."""
    reject = bad.append if options.on_bad_row == "skip" else None
    wanted: set[int] = set()
    for name in options.keep:
        if name.startswith(("hub:", "sample:")) or Path(name).exists():
            for chunk in _chunks(read_texts(name, reject, "--on_bad_row")):
                texts = [form for text in chunk for form in (text.text, set_apart(text.text, text.spans))]
                wanted.update(index for ids in coded(tokenizer, texts) for index in ids)
        else:
            wanted |= named_ids(vocabulary, name)
    return wanted
