r"""Which splitter finds the sentences of Korean documents: plain rule, ours, pysbd, kss, kiwipiepy?

    python experiments/sentence_splitting.py KLUE_RE_TRAIN --splitter kiwi \
        --packages VENV/lib/python3.11/site-packages --output figures.json
    python experiments/sentence_splitting.py KLUE_RE_TRAIN --table --output figures.json

Documents are 2 to 8 distinct sentences of KLUE-RE's train split, joined; the joints are the gold boundaries. `sound`
takes sentences that the plain rule does not divide and that end in a final form with its full stop, so every other
boundary is wrong; `all` takes any, so some of the boundaries counted as wrong are right. The candidate library lies in
a directory of its own (`--packages`), put behind the environment's. Each call adds its splitter to the figures.
`--judged` also scores boundaries inside of KLUE's sentences that were judged by hand (sentence's guid and place).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import site
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Split = Callable[[str], list[int]]
"""A text → where its second and later sentences begin."""
PLAIN = re.compile(r"[.!?…。]+[\"'”’)\]」』》〉]*\s+|\s*[\r\n]+\s*")
VARIANTS = {  # name: (sentences, joint, without the final mark, share of documents' parts that are quotations)
    "sound, blank": ("sound", " ", False, 0.0),
    "sound, line break": ("sound", "\n", False, 0.0),
    "sound, no blank": ("sound", "", False, 0.0),
    "sound, no final mark": ("sound", " ", True, 0.0),
    "sound, quotations": ("sound", " ", False, 0.5),
    "all, blank": ("all", " ", False, 0.0),
    "all, line break": ("all", "\n", False, 0.0),
}


def plain() -> Split:
    return lambda text: [match.end() for match in PLAIN.finditer(text) if match.end() < len(text)]


def ours() -> Split:
    from mtl_re.predict.sentences import sentence_ranges

    return lambda text: [start for start, _ in sentence_ranges(text)[1:]]


def pysbd() -> Split:
    import pysbd

    segmenter = pysbd.Segmenter(language="en", clean=False, char_span=True)

    def split(text: str) -> list[int]:
        return starts_of(text, [text[span.start : span.end] for span in segmenter.segment(text)])

    return split


def kss() -> Split:
    import kss

    def split(text: str) -> list[int]:
        return starts_of(text, kss.split_sentences(text, backend="pecab", num_workers=1))

    return split


def kiwi() -> Split:
    from kiwipiepy import Kiwi

    model = Kiwi(num_workers=1)
    model.split_into_sents("준비.")
    return lambda text: [one.start for one in model.split_into_sents(text, return_sub_sents=False)[1:]]


def kiwi_lines() -> Split:
    whole = kiwi()

    def split(text: str) -> list[int]:
        found: list[int] = []
        for line in re.finditer(r"[^\r\n]+", text):
            found.extend(line.start() + place for place in (0, *whole(line[0])))
        return found[1:]

    return split


SPLITTERS = {"plain": plain, "ours": ours, "pysbd": pysbd, "kss": kss, "kiwi": kiwi, "kiwi_lines": kiwi_lines}


def starts_of(text: str, parts: list[str]) -> list[int]:
    """Return where parts other than the first begin, found by their characters that are not blank.

    A library that changes the text is thus forgiven blanks, not characters.
    """
    places = [place for place, character in enumerate(text) if not character.isspace()]
    starts, count = [], 0
    for part in parts:
        if 0 < count < len(places):
            starts.append(places[count])
        count += sum(not character.isspace() for character in part)
    if count != len(places):
        raise ValueError(f"the splitter returned {count} characters that are not blank, of {len(places)}")
    return starts


def sentences_of(data: str) -> list[dict[str, Any]]:
    """Return KLUE-RE's distinct sentences, each with its first row's guid and spans."""
    with gzip.open(data, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        spans = [(row[key]["start_idx"], row[key]["end_idx"]) for key in ("subject_entity", "object_entity")]
        found.setdefault(
            row["sentence"].strip(), {"guid": row["guid"], "text": row["sentence"].strip(), "spans": spans}
        )
    return list(found.values())


def documents(
    sentences: list[dict[str, Any]], variant: str, number: int, seed: int
) -> list[tuple[str, list[int], list[tuple[int, int]]]]:
    """Return documents: their text, where their second and later sentences begin, and the entity spans."""
    kind, joint, bare, quoted = VARIANTS[variant]
    if kind == "sound":
        sentences = [one for one in sentences if not plain()(one["text"]) and re.search(r"[다요까죠]\.\Z", one["text"])]
    chance, made = random.Random(seed), []
    for _ in range(number):
        text, starts, spans = "", [], []
        for _ in range(chance.randint(2, 8)):
            if text:
                text += joint
                starts.append(len(text))
            inside = chance.sample(sentences, 2 if chance.random() < quoted else 1)
            text += "“" if len(inside) == 2 else ""
            for index, one in enumerate(inside):
                text += " " if index else ""
                spans += [(len(text) + start, len(text) + end) for start, end in one["spans"]]
                text += one["text"].rstrip(".!?") if bare else one["text"]
            text += "”라고 그는 말했다." if len(inside) == 2 else ""
        made.append((text, starts, spans))
    return made


def score(split: Split, made: list[tuple[str, list[int], list[tuple[int, int]]]]) -> dict[str, float]:
    """Return the scores and the speed of a splitter."""
    began = time.perf_counter()
    found, failed = [], 0
    for text, _, _ in made:
        try:
            found.append(set(split(text)))
        except ValueError:
            found.append(set())
            failed += 1
    taken = time.perf_counter() - began
    right = sum(len(places & set(gold)) for places, (_, gold, _) in zip(found, made, strict=True))
    said, gold = sum(map(len, found)), sum(len(gold) for _, gold, _ in made)
    # Two spans a sentence, in order: a sentence counts once.
    cut = sum(
        any(first < place <= last for place in places for first, last in spans[index : index + 2])
        for places, (_, _, spans) in zip(found, made, strict=True)
        for index in range(0, len(spans), 2)
    )
    number = sum(len(spans) // 2 for _, _, spans in made)
    precision, recall = right / max(said, 1), right / gold
    return {
        "documents": len(made),
        "sentences": number,
        "precision": round(100 * precision, 2),
        "recall": round(100 * recall, 2),
        "f1": round(200 * precision * recall / max(precision + recall, 1e-9), 2),
        "cut": round(100 * cut / number, 3),
        "per_s": round(number / taken),
        "failed": failed,
    }


def judged_score(split: Split, sentences: list[dict[str, Any]], judged: dict[str, dict[str, bool]]) -> dict[str, float]:
    """Return precision and recall over the places inside of sentences that were judged by hand."""
    text = {one["guid"]: one["text"] for one in sentences}
    right = wrong = missed = 0
    for guid, places in judged.items():
        found = set(split(text[guid]))
        right += sum(int(place) in found for place, true in places.items() if true)
        missed += sum(int(place) not in found for place, true in places.items() if true)
        wrong += sum(int(place) in found for place, true in places.items() if not true)
        if odd := found - set(map(int, places)):
            print(f"{guid}: places {sorted(odd)} were not judged", file=sys.stderr)
    precision, recall = right / max(right + wrong, 1), right / (right + missed)
    return {
        "sentences": len(judged),
        "right": right,
        "wrong": wrong,
        "missed": missed,
        "f1": round(200 * precision * recall / max(precision + recall, 1e-9), 2),
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["| documents | splitter | n | precision | recall | F1 | entity cut, % of sentences | sentences/s |"]
    lines.append("| :-- | :-- | --: | --: | --: | --: | --: | --: |")
    for variant in VARIANTS:
        for name, values in figures.items():
            one = values["variants"][variant]
            cells = [f"{one['documents']:,}", *(f"{one[key]:.2f}" for key in ("precision", "recall", "f1", "cut"))]
            lines.append(f"| {variant} | {name} | {' | '.join(cells)} | {one['per_s']:,} |")
    lines += ["", "| splitter | import and load, s | judged by hand: right | wrong | missed | F1 |"]
    lines.append("| :-- | --: | --: | --: | --: | --: |")
    for name, values in figures.items():
        hand = values.get("judged", {})
        cells = [str(hand.get(key, "")) for key in ("right", "wrong", "missed", "f1")]
        lines.append(f"| {name} | {values['load_s']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--splitter", choices=SPLITTERS)
    parser.add_argument("--packages", help="directory that holds the splitter's library")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judged", type=Path, help="places judged by hand, as JSON: guid → place → right or wrong")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    figures = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if options.splitter:
        if options.packages:
            site.addsitedir(options.packages)
        began = time.perf_counter()
        split = SPLITTERS[options.splitter]()
        split("준비가 되었다. 이제 잰다.")
        load = time.perf_counter() - began
        sentences = sentences_of(options.data)
        variants = {
            name: score(split, documents(sentences, name, options.documents, options.seed)) for name in VARIANTS
        }
        figures[options.splitter] = {"load_s": round(load, 2), "seed": options.seed, "variants": variants}
        if options.judged:
            judged = json.loads(options.judged.read_text(encoding="utf-8"))
            figures[options.splitter]["judged"] = judged_score(split, sentences, judged)
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.table:
        print(table(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
