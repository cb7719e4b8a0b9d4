"""How many sentences a second are scored whole, all pairs of their entities, with levitated and with default markers?

    python experiments/pairs_speed.py ENCODER DATA --entities 2 3 5 8 12 --output speed.json

Sentences are DATA's; each gets as many entities as asked for: its two and further words of it, with types drawn from
DATA's. Both networks have the same encoder and new heads (speed does not depend on them). The schemes take turns within
each repeat, and the ratio of a repeat is taken before the mean, so that a slow moment of the machine falls on both.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mtl_re.config import ReadingConfig
from mtl_re.data.loading import load_examples
from mtl_re.data.validation import Entity, Example
from mtl_re.features.markers import TYPE_WORDS
from mtl_re.model.encoders import load_encoder
from mtl_re.model.network import MtlReConfig, from_encoder
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.triples import candidates
from mtl_re.taxonomy import Taxonomy

SCHEMES = {"default": ("typed_punct_ko", "cls_markers"), "levitated": ("levitated", "cls_markers_both")}
TAXONOMY = Taxonomy.from_prefixes()


def entities_of(row: Example, number: int, kinds: list[str], chance: random.Random) -> list[Entity] | None:
    """Return so many entities of a row's sentence that do not overlap; None if it has too few words."""
    found = [row.subject, row.object]
    words = [(match.start(), match.end() - 1) for match in re.finditer(r"\w{2,}", row.sentence)]
    chance.shuffle(words)
    for start, end in words:
        if len(found) == number:
            break
        if all(end < other.start or other.end < start for other in found):
            found.append(Entity(row.sentence[start : end + 1], start, end, chance.choice(kinds)))
    return found if len(found) == number else None


def pairs_of(rows: list[Example], number: int, sentences: int, seed: int) -> tuple[list[list[Example]], float]:
    """Return the pairs of each of so many sentences, and the mean number of pairs."""
    chance = random.Random(f"{seed}-{number}")
    kinds = [entity.type for row in rows for entity in (row.subject, row.object)]
    made: list[list[Example]] = []
    for row in chance.sample(rows, len(rows)):
        entities = entities_of(row, number, kinds, chance)
        pairs = [] if entities is None else candidates(row.sentence, entities, TAXONOMY)[0]
        if pairs:
            made.append(pairs)
        if len(made) == sentences:
            break
    return made, statistics.mean(map(len, made))


def predictor_of(encoder: str, scheme: str, pooling: str, batch_size: int, precision: str) -> Predictor:
    """Return a predictor around an encoder with new heads."""
    network, tokenizer = load_encoder(encoder, scheme, list(TYPE_WORDS), 256, 0)
    config = MtlReConfig(
        taxonomy=TAXONOMY.to_dict(),
        markers=scheme,
        pooling=pooling,
        entity_types=list(TYPE_WORDS),
        max_input_length=256,
    )
    model = from_encoder(network, config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Predictor.from_pretrained(folder, batch_size=batch_size, precision=precision)


def seconds(predictor: Predictor, sentences: list[list[Example]]) -> float:
    """Return the time that scoring all pairs takes."""
    rows = [pair for pairs in sentences for pair in pairs]
    began = time.perf_counter()
    predictor.probabilities(rows)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("data")
    parser.add_argument("--entities", type=int, nargs="+", default=[2, 3, 5, 8, 12])
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    rows = list(load_examples(options.data, TAXONOMY, "error", ReadingConfig())[0])
    predictors = {
        name: predictor_of(options.encoder, *scheme, options.batch_size, options.precision)
        for name, scheme in SCHEMES.items()
    }
    figures: dict[str, Any] = {"encoder": Path(options.encoder).name, "precision": options.precision, "counts": {}}
    for number in options.entities:
        sentences, pairs = pairs_of(rows, number, options.sentences, options.seed)
        for predictor in predictors.values():
            seconds(predictor, sentences[:2])
        ratios, rates = [], {name: [] for name in predictors}
        for repeat in range(options.repeats):
            order = list(predictors.items())[:: -1 if repeat % 2 else 1]
            taken = {name: seconds(predictor, sentences) for name, predictor in order}
            ratios.append(taken["default"] / taken["levitated"])
            for name, value in taken.items():
                rates[name].append(len(sentences) / value)
        figures["counts"][number] = {
            "sentences": len(sentences),
            "pairs": round(pairs, 2),
            "ratio": round(statistics.mean(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
            "sentences_per_s": {name: round(statistics.mean(values), 2) for name, values in rates.items()},
        }
        print(number, figures["counts"][number], file=sys.stderr)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
