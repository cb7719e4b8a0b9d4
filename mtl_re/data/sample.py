"""The embedded synthetic corpus: Korean sentences with all 30 labels in KLUE-RE's JSON form, made from templates.

Enters: a split's name, a size and a seed. Leaves: rows (`rows`), or the files train.json, valid.json and test.json
(`write`). A template states several facts and lists pairs that are unrelated; a row asks about one pair of it. One
sentence so occurs with several labels and with no_relation, told apart only by the positions of the entities, which a
bag of words does not see. Validation and test use templates and names that are not in train, and share no name with
each other. `sample_text` holds templates and names.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from mtl_re.config import SampleConfig
from mtl_re.data.sample_text import HELD_OUT, NAMES, SHARES, TRAIN
from mtl_re.errors import MtlReError
from mtl_re.files import write_text
from mtl_re.taxonomy import NO_RELATION

Split = Literal["train", "valid", "test"]

SOURCE = "mtl-re-sample"

MIN_SHARE = 1.0
"""Percent that a rare label is raised to, so that a sample of two hundred rows holds every label."""

ATTEMPTS = 100
"""Draws for a row that differs from all others; a split so large that they run out repeats one."""

_SLOT = re.compile(r"\{([a-z_]+)(\d?)(?::(\w+))?\}")
_PARTICLES = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이라는": "라는", "이라고": "라고"}
_FINAL_RIEUL = 8  # index of ㄹ among the 28 finals of a Hangul syllable; 0 is none
_SPOKEN_FINALS = {"1": 8, "7": 8, "8": 8, "L": 8, "R": 8} | dict.fromkeys("036MN", 1)  # 일 칠 팔 엘 알; 영 삼 육 엠 엔


class LabelledPair(NamedTuple):
    """One pair of a template's slots and the label that its sentence gives them."""

    subject: str
    object: str
    label: str


@dataclass(frozen=True)
class Template:
    """A sentence with slots, and the labelled pairs of slots that rows may ask about."""

    text: str
    pairs: tuple[LabelledPair, ...]

    def slots(self) -> tuple[str, ...]:
        """Return the names of the slots, each once; `kin` last, for it is drawn after `person`."""
        names = dict.fromkeys(kind + number for kind, number, _ in _SLOT.findall(self.text))
        return tuple(sorted(names, key=lambda name: name == "kin"))


def parse_templates(block: str) -> tuple[Template, ...]:
    """Parse the templates of a block of text in the form that `sample_text` describes."""
    parsed = []
    for entry in block.strip().split("\n\n"):
        text, *lines = entry.splitlines()
        pairs = []
        for group in " ".join(lines).split(","):
            label, *slots = group.split()
            for subject, object in (two.split(">") for two in slots):
                pairs.append(LabelledPair(subject, object, label))
        parsed.append(Template(text, tuple(pairs)))
    return tuple(parsed)


@cache
def templates(split: Split) -> tuple[Template, ...]:
    """Return the templates of a split; validation and test share theirs, train has its own."""
    return parse_templates(TRAIN if split == "train" else HELD_OUT)


@cache
def names(split: Split) -> dict[str, tuple[str, ...]]:
    """Return kind → words of a split; no word is in two splits."""
    if split == "train":
        return {kind: name.train for kind, name in NAMES.items()}
    return {kind: name.held_out[("valid", "test").index(split) :: 2] for kind, name in NAMES.items()}


# ---- one row -------------------------------------------------------------------------------------------------------


def with_particle(word: str, particle: str) -> str:
    """Append a particle, given in its form after a consonant, in the form that agrees with the word.

    Raises:
        ValueError: the particle is unknown.
    """
    syllable = ord(word[-1]) - ord("가")
    final = syllable % 28 if 0 <= syllable <= ord("힣") - ord("가") else _SPOKEN_FINALS.get(word[-1].upper(), 0)
    if particle not in _PARTICLES:
        raise ValueError(f"particle {particle!r}; expected one of {list(_PARTICLES)}")
    if final == 0 or (particle == "으로" and final == _FINAL_RIEUL):
        return word + _PARTICLES[particle]
    return word + particle


def fill(template: Template, words: Mapping[str, tuple[str, ...]], rng: random.Random) -> dict[str, str]:
    """Draw a different word for every slot."""
    drawn: dict[str, str] = {}
    for slot in template.slots():
        choices = words[_kind(slot)]
        if slot == "kin":
            choices = tuple(name for name in choices if name[0] == drawn["person"][0])
        word = rng.choice(choices)
        while word in drawn.values():
            word = rng.choice(choices)
        drawn[slot] = word
    return drawn


def fill_sentence(template: Template, words: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """Return the sentence, and for each slot the offset of its first occurrence."""
    sentence, end = "", 0
    starts: dict[str, int] = {}
    for match in _SLOT.finditer(template.text):
        kind, number, particle = match.groups()
        slot = kind + number
        sentence += template.text[end : match.start()]
        starts.setdefault(slot, len(sentence))
        sentence += with_particle(words[slot], particle) if particle else words[slot]
        end = match.end()
    return sentence + template.text[end:], starts


def _kind(slot: str) -> str:
    kind = slot.rstrip("0123456789")
    return "person" if kind == "kin" else kind


def _row(template: Template, pair: LabelledPair, words: Mapping[str, str]) -> dict[str, Any]:
    sentence, starts = fill_sentence(template, words)

    def entity(slot: str) -> dict[str, Any]:
        word, start = words[slot], starts[slot]
        return {"word": word, "start_idx": start, "end_idx": start + len(word) - 1, "type": NAMES[_kind(slot)].type}

    return {
        "guid": "",
        "sentence": sentence,
        "subject_entity": entity(pair.subject),
        "object_entity": entity(pair.object),
        "label": pair.label,
        "source": SOURCE,
    }


# ---- a split -------------------------------------------------------------------------------------------------------


def label_counts(size: int) -> dict[str, int]:
    """Return label → rows in a split of `size` rows, apportioned by largest remainder, so that the sum is exact."""
    shares = {label: max(share, MIN_SHARE) for label, share in SHARES.items()}
    exact = {label: size * share / sum(shares.values()) for label, share in shares.items()}
    counts = {label: int(count) for label, count in exact.items()}
    by_remainder = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in by_remainder[: size - sum(counts.values())]:
        counts[label] += 1
    return counts


def rows(split: Split, size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make the rows of one split, a function of the arguments alone.

    A no_relation row takes its sentence from the templates of another label, drawn by share, so that the sentences of
    every label have about the same share of no_relation.

    Raises:
        MtlReError: the split's name is unknown or the size is not positive.
    """
    if split not in get_args(Split):
        raise MtlReError(f"sample: split {split!r}; expected one of {list(get_args(Split))}")
    if size < 1:
        raise MtlReError(f"sample: {size} rows; at least one is needed")
    rng = random.Random(f"{SOURCE} {split} {size} {seed}")
    labels = [label for label, count in label_counts(size).items() for _ in range(count)]
    rng.shuffle(labels)
    seen = set()
    made = []
    for index, label in enumerate(labels):
        for _ in range(ATTEMPTS):
            row = _draw(split, label, rng)
            key = (row["sentence"], row["subject_entity"]["start_idx"], row["object_entity"]["start_idx"])
            if key not in seen:
                break
        seen.add(key)
        made.append(row | {"guid": f"sample_{split}_{index:05d}"})
    return made


def _draw(split: Split, label: str, rng: random.Random) -> dict[str, Any]:
    topic = label
    if label == NO_RELATION:
        related = [name for name in SHARES if name != NO_RELATION]
        topic = rng.choices(related, [max(SHARES[name], MIN_SHARE) for name in related])[0]
    template = rng.choice(_about(split, topic, label))
    pair = rng.choice([pair for pair in template.pairs if pair.label == label])
    return _row(template, pair, fill(template, names(split), rng))


@cache
def _about(split: Split, topic: str, label: str) -> tuple[Template, ...]:
    """Return the templates with pairs of both labels."""
    return tuple(template for template in templates(split) if {topic, label} <= {pair.label for pair in template.pairs})


def write(directory: str | Path, config: SampleConfig) -> list[Path]:
    """Write train.json, valid.json and test.json; a file appears whole or not at all.

    Raises:
        MtlReError: the directory cannot be written.
    """
    sizes: dict[Split, int] = {"train": config.train, "valid": config.valid, "test": config.test}
    paths = []
    for split, size in sizes.items():
        path = Path(directory) / f"{split}.json"
        text = json.dumps(rows(split, size, config.seed), ensure_ascii=False, indent=1)
        try:
            write_text(path, text + "\n", shared=True)
        except MtlReError as error:
            raise MtlReError(f"{error}; choose another directory") from error
        paths.append(path)
    return paths
