"""Which tokens of a text are masked, and what replaces them (Devlin et al. 2019, arXiv 1810.04805).

Enters: a text's words and entities with its tokens' character offsets, as `Units`; a seeded generator. Leaves: the
inputs with masks and the targets. Masks are a pure function of seed, epoch and block: resuming, the number of
processes and the order of batches cannot change them. A unit is masked as a whole or not at all; it is a token, a word
(a run of letters and digits, or one other sign: the same for every tokenizer), or an entity's span.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mtl_re.taxonomy import IGNORE

_WORD = re.compile(r"\w+|[^\w\s]")

UnitKind = Literal["token", "whole_word"]


class Units(NamedTuple):
    """Tokens that are masked together.

    Attributes:
        number: (tokens,) int32, tokens of one number are one unit; -1: never masked.
        entity: (tokens,) bool, whether the unit is an entity's span.
    """

    number: np.ndarray
    entity: np.ndarray


@dataclass(frozen=True)
class MaskRule:
    """How much is masked, and by what.

    Attributes:
        probability: To mask a unit. entities: To mask a unit that is an entity's span.
        mask_id: The mask token. ordinary: (n,) ids of random replacements, no special token among them.
    """

    probability: float
    entities: float
    mask_id: int
    ordinary: np.ndarray


def word_numbers(text: str) -> np.ndarray:
    """Return (characters,) int32, the number of the word that each character belongs to; -1 for space."""
    numbers = np.full(len(text), -1, np.int32)
    for number, word in enumerate(_WORD.finditer(text)):
        numbers[word.start() : word.end()] = number
    return numbers


def text_units(
    text: str, offsets: Sequence[tuple[int, int]], kind: UnitKind, entities: Sequence[tuple[int, int]]
) -> Units:
    """Return the units of one text.

    Args:
        offsets: Characters [start, stop) of each token.
        kind: What an ordinary unit is.
        entities: Characters [start, stop) of spans that are units of their own; where two overlap the later one has
            the tokens they share.
    """
    count = len(offsets)
    number = np.arange(count, dtype=np.int32)
    if kind == "whole_word":
        words = word_numbers(text)
        for token in reversed(range(count)):
            start, stop = offsets[token]
            inside = words[start:stop]
            inside = inside[inside >= 0]
            if len(inside):
                number[token] = inside[0]
            else:  # a lone `▁` goes with the word it begins
                number[token] = number[token + 1] if token + 1 < count else len(text)
    entity = np.zeros(count, bool)
    for index, (start, stop) in enumerate(entities):
        covered = [start < token[1] and token[0] < stop for token in offsets]
        number[covered] = len(text) + count + 1 + index
        entity |= np.array(covered, bool)
    dense = np.unique(number, return_inverse=True)[1]
    return Units(dense.astype(np.int32), entity)


def mask_tokens(
    ids: np.ndarray, units: Units, rule: MaskRule, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask some units: of their tokens 80 % become the mask, 10 % a random token, 10 % stay as they are.

    Args:
        ids: (tokens,) token ids.
        units: of the same tokens.

    Returns:
        Inputs and targets, (tokens,) int64 each; a target is `IGNORE` where the token is not masked.
    """
    count = len(ids)
    draws = generator.random(int(units.number.max(initial=-1)) + 1)
    limit = np.where(units.entity, rule.entities, rule.probability)
    masked = (units.number >= 0) & (draws[units.number] < limit) if len(draws) else np.zeros(count, bool)
    fate, chance = generator.random(count), rule.ordinary[generator.integers(len(rule.ordinary), size=count)]
    inputs = np.where(masked & (fate < 0.8), rule.mask_id, ids)
    inputs = np.where(masked & (fate >= 0.8) & (fate < 0.9), chance, inputs)
    return inputs.astype(np.int64), np.where(masked, ids, IGNORE).astype(np.int64)
