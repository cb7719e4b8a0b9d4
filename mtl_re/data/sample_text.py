"""The words of the embedded corpus: names and sentence templates, in a training part and a held-out part.

`NAMES[kind]` holds an entity type and two disjoint lists of words (sample_words.yaml); `TRAIN` and `HELD_OUT` are the
templates (text files beside this one). Blank lines separate templates: the sentence, then indented its readings: groups
of a label and the `subject>object` pairs that it holds for, with a comma between groups. A template lists pairs that
are clear from its text alone, the unrelated ones too, so that its words never give the label away. A slot is a kind
and perhaps a number (`{person2}`), after a colon the particle of a word that ends in a consonant (`{person:은}`); `kin`
is a person with the surname of `person`. All text is our own and all people are invented.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import yaml


class Names(NamedTuple):
    """Words of one kind of entity; the held-out ones are shared out between validation and test."""

    type: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def _words(source: str | Mapping[str, Sequence[int]]) -> list[str]:
    """Return the words that a line of sample_words.yaml stands for (its head says how they are written)."""
    if isinstance(source, str):
        sign = next((sign for sign in "×+" if sign in source), None)
        first, _, second = source.partition(sign or "\n")
        blank = " " if sign == "+" else ""
        return [head + blank + tail for tail, head in product(second.split(), first.split())] or first.split()
    [(kind, limits)] = source.items()
    numbers = range(*limits)
    if kind == "date":
        return [f"{year}년 {month}월 {day}일" for year, month, day in product(numbers, range(1, 13), range(1, 29))]
    return [f"{number}년" if kind == "year" else f"{number:,}명" for number in numbers]


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


_READ = yaml.safe_load(_read("sample_words.yaml"))
SHARES: dict[str, float] = _READ["shares"]
"""Percent of KLUE-RE's train rows by label, rounded."""
NAMES: dict[str, Names] = {
    kind: Names(given["type"], *(tuple(chain(*map(_words, given[part]))) for part in ("train", "held_out")))
    for kind, given in _READ["names"].items()
}
TRAIN, HELD_OUT = _read("sample_train.txt"), _read("sample_held_out.txt")
