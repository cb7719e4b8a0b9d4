"""Train a token-classification model on the entity spans of KLUE-RE's rows, for `mtl-re extract --entities ner:DIR`.

    python experiments/train_ner.py ../shared/encoders/ko-mini ../shared/klue-re/klue-re-v1.1_train.json.gz DIR

KLUE-RE marks two entities a row and no others: a sentence of two rows has three or four known spans, most have two. So
the annotation is incomplete. Precision here is a lower bound (a span that nobody marked counts as wrong), and recall is
over the marked spans alone; over all entities of a sentence both are unknown.

Tokens outside the known spans may therefore belong to entities. `--outside SHARE` says how they are trained: 1 takes
all of them as O; a smaller share draws so many of them as O anew in every step and leaves the others out of the loss
(Li, Liu and Shi 2021, arXiv 2012.05426, draw negatives likewise).

A piece that holds the end of a name and the particle behind it (##왕은) hides the entity's border: no tag can spell it.
`--cut SHARE` takes such pieces out of a WordPiece vocabulary, so that the tokenizer writes shorter ones.

Sentences are held out by a hash: a tenth as test, a twentieth as tune, on which both were chosen (`--report tune`). DIR
becomes a directory of transformers, with `figures.json` beside the weights.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForTokenClassification
from transformers.utils import logging

from mtl_re.config import ReadingConfig
from mtl_re.data.loading import load_examples
from mtl_re.data.unicode_form import composed
from mtl_re.data.validation import Entity, Example
from mtl_re.features.markers import TYPE_WORDS
from mtl_re.files import same_file
from mtl_re.model.device import autocast
from mtl_re.model.encoders import load_pretrained
from mtl_re.predict.ner import EntityFinder
from mtl_re.taxonomy import IGNORE, Taxonomy

KINDS = list(TYPE_WORDS)
LABELS = ["O", *(f"{place}-{kind}" for kind in KINDS for place in "BI")]

Known = dict[str, list[Entity]]
"""Sentence → its known entities, in order, none of which overlap."""


def known_entities(rows: Sequence[Example]) -> tuple[Known, int]:
    """Return the entities of each sentence, all its rows together, and how many spans overlap a longer one.

    A tag cannot stand for two entities, so of overlapping spans the longest is kept, and of two types of one span the
    more frequent.
    """
    votes: dict[str, Counter[tuple[int, int, str]]] = defaultdict(Counter)
    for row in rows:
        votes[row.sentence].update((entity.start, entity.end, entity.type) for entity in (row.subject, row.object))
    known, dropped = {}, 0
    for sentence, spans in votes.items():
        kept: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans, key=lambda span: (span[0] - span[1], -spans[span], span)):
            if all(end < other[0] or other[1] < start for other in kept):
                kept.append((start, end, kind))
            else:
                dropped += 1
        known[sentence] = [Entity(sentence[start : end + 1], start, end, kind) for start, end, kind in sorted(kept)]
    return known, dropped


def part_of(sentence: str) -> str:
    """Return the part that a sentence belongs to, `test`, `tune` or `train`, by its hash alone."""
    place = int.from_bytes(hashlib.sha256(composed(sentence).encode()).digest()[:4], "big") % 20
    return "test" if place < 2 else "tune" if place == 2 else "train"


def targets_of(entities: Sequence[Entity], offsets: Sequence[tuple[int, int]], sentence: str) -> list[int]:
    """Return the label of each piece: that of its first visible character; IGNORE for a piece that has none."""
    labels = [0] * len(sentence)
    for entity in entities:
        labels[entity.start] = LABELS.index(f"B-{entity.type}")
        for place in range(entity.start + 1, entity.end + 1):
            labels[place] = LABELS.index(f"I-{entity.type}")
    targets, before = [], -1
    for start, stop in offsets:
        visible = [place for place in range(start, stop) if not sentence[place].isspace()]
        if not visible:
            targets.append(IGNORE)
            continue
        # A further piece of the character that begins an entity (bytes of an emoji) goes on with it.
        targets.append(labels[visible[0]] + (visible[0] == before and labels[visible[0]] % 2))
        before = visible[0]
    return targets


def without_cut_pieces(tokenizer: Any, known: Known, share: float) -> Any:
    """Return the tokenizer without the pieces that borders of entities cut in more than a share of their uses there.

    Single characters stay, so no text becomes unknown; ids stay, so the rows of the embedding table do too.
    """
    uses, cut = Counter[str](), Counter[str]()
    coded = tokenizer.backend_tokenizer.encode_batch(list(known), add_special_tokens=False)
    for entities, encoding in zip(known.values(), coded, strict=True):
        for entity in entities:
            for piece, (start, stop) in zip(encoding.tokens, encoding.offsets, strict=True):
                if start <= entity.end and stop > entity.start:
                    uses[piece] += 1
                    cut[piece] += start < entity.start or stop > entity.end + 1
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "WordPiece":
        raise SystemExit(f"--cut: {state['model']['type']} vocabularies are not handled; give --cut 1")
    gone = {
        piece
        for piece, count in cut.items()
        if count > 1 and count > share * uses[piece] and len(piece.removeprefix("##")) > 1
    } - set(tokenizer.all_special_tokens)
    state["model"]["vocab"] = {piece: id for piece, id in state["model"]["vocab"].items() if piece not in gone}
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(state)).model
    print(f"{len(gone)} pieces taken out of the vocabulary", file=sys.stderr)
    return tokenizer


def batches_of(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield row numbers without end, in batches of like length, every row once before any comes again."""
    while True:
        order = rng.permutation(len(lengths))
        pools = [order[start : start + 32 * size] for start in range(0, len(order), 32 * size)]
        ordered = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
        batches = [pool[start : start + size] for pool in ordered for start in range(0, len(pool), size)]
        yield from (batches[number] for number in rng.permutation(len(batches)))


def train(model: Any, finder: EntityFinder, known: Known, options: argparse.Namespace) -> float:
    """Train in place; return the seconds of a step."""
    rng, tokenizer, frame = np.random.default_rng(options.seed), finder.tokenizer, finder.frame
    coded = tokenizer(list(known), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows, targets = [], []
    for (sentence, entities), ids, offsets in zip(
        known.items(), coded["input_ids"], coded["offset_mapping"], strict=True
    ):
        wanted = targets_of(entities, offsets, sentence)
        rows.append([*frame.before, *ids[: finder.size], *frame.after])
        edges = [IGNORE] * len(frame.before), [IGNORE] * len(frame.after)
        targets.append([*edges[0], *wanted[: finder.size], *edges[1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, options.steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (options.steps - step) / max(1, options.steps - warm))
    )
    batches, began, recent = batches_of(np.array([*map(len, rows)]), options.batch_size, rng), time.perf_counter(), []
    model.train()
    for step in range(options.steps):
        chosen = next(batches)
        longest = max(len(rows[row]) for row in chosen)
        ids = np.full((len(chosen), longest), tokenizer.pad_token_id or 0, np.int64)
        wanted = np.full_like(ids, IGNORE)
        for line, row in enumerate(chosen):
            ids[line, : len(rows[row])], wanted[line, : len(rows[row])] = rows[row], targets[row]
        mask = np.arange(longest) < np.array([len(rows[row]) for row in chosen])[:, None]
        wanted[(wanted == 0) & (rng.random(wanted.shape) >= options.outside)] = IGNORE
        with autocast(finder.device, options.precision):
            logits = model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64))
            ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), torch.from_numpy(wanted).flatten(), ignore_index=IGNORE
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 25 == 0:
            pace = (time.perf_counter() - began) / (step + 1)
            print(
                f"step {step + 1}: loss {np.mean(recent[-25:]):.4f}, {pace:.2f} s a step", file=sys.stderr, flush=True
            )
    model.eval()
    return (time.perf_counter() - began) / options.steps


def scores(found: Sequence[set[Any]], wanted: Sequence[set[Any]]) -> dict[str, float]:
    """Return precision, recall and F1 in percent over sets of spans, all sentences pooled."""
    hits = sum(len(one & other) for one, other in zip(found, wanted, strict=True))
    counts = sum(map(len, found)), sum(map(len, wanted))
    precision, recall = (100 * hits / max(1, count) for count in counts)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    values = {"precision": precision, "recall": recall, "f1": f1}
    return {**{name: round(value, 2) for name, value in values.items()}, "found": counts[0], "marked": counts[1]}


def report(finder: EntityFinder, known: Known, seed: int) -> dict[str, Any]:
    """Return exact-span scores over the known entities of some sentences, with a bootstrap interval over sentences."""
    began = time.perf_counter()
    predicted = finder.find(list(known))
    seconds = time.perf_counter() - began
    found = [{(span.start, span.end, span.type) for span in spans} for spans in predicted]
    wanted = [{(span.start, span.end, span.type) for span in spans} for spans in known.values()]
    rng, draws = np.random.default_rng(seed), []
    table = np.array([(len(one & other), len(one), len(other)) for one, other in zip(found, wanted, strict=True)])
    for _ in range(1000):
        hits, one, other = table[rng.integers(0, len(table), len(table))].sum(0)
        draws.append(200 * hits / (one + other))
    by_type = {
        kind: scores(*([{span for span in spans if span[2] == kind} for spans in side] for side in (found, wanted)))
        for kind in KINDS
    }
    anywhere = scores(*([{span[:2] for span in spans} for spans in side] for side in (found, wanted)))
    both = [len(other - one) == 0 for one, other in zip(found, wanted, strict=True)]
    return {
        "sentences": len(known),
        "typed_spans": scores(found, wanted),
        "f1_interval": [round(float(edge), 2) for edge in np.percentile(draws, (2.5, 97.5))],
        "spans_of_any_type": anywhere,
        "by_type": by_type,
        "found_a_sentence": round(float(np.mean([len(spans) for spans in found])), 2),
        "sentences_with_all_marked_found": round(100 * float(np.mean(both)), 2),
        "pieces_can_spell": round(spellable(finder, known), 2),
        "sentences_per_s": round(len(known) / seconds, 1),
    }


def spellable(finder: EntityFinder, known: Mapping[str, Sequence[Entity]]) -> float:
    """Return the percentage of entities whose borders are borders of pieces: the most that recall can reach."""
    coded = finder.tokenizer(list(known), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    fits = []
    for (sentence, entities), offsets in zip(known.items(), coded["offset_mapping"], strict=True):
        starts = {start + len(sentence[start:stop]) - len(sentence[start:stop].lstrip()) for start, stop in offsets}
        stops = {stop for _, stop in offsets}
        fits += [entity.start in starts and entity.end + 1 in stops for entity in entities]
    return 100 * float(np.mean(fits))


def main() -> int:
    """Train, write DIR and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("data")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit", type=int, help="rows of DATA that are read (default: all)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--outside", type=float, default=0.3, help="share of tokens outside known spans trained as O")
    parser.add_argument("--cut", type=float, default=0.2, help="see above; 1 leaves the vocabulary as it is")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "no"])
    parser.add_argument("--report", default="test", choices=["tune", "test"], help="the part that is scored")
    parser.add_argument("--test", help="another file whose sentences are scored too, at the end")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    logging.set_verbosity_error()  # the head is new, which is meant
    if same_file(options.directory, Path(options.encoder)):
        raise SystemExit(f"{options.directory}: is the encoder; name another directory")
    taxonomy = Taxonomy.from_prefixes()
    rows = list(load_examples(options.data, taxonomy, "error", ReadingConfig())[0])[: options.limit]
    known, dropped = known_entities(rows)
    parts: dict[str, Known] = {"train": {}, "tune": {}, "test": {}}
    for sentence, entities in known.items():
        parts[part_of(sentence)][sentence] = entities
    names = dict(enumerate(LABELS))
    model, tokenizer, _ = load_pretrained(
        options.encoder,
        AutoModelForTokenClassification,
        "encoder",
        id2label=names,
        label2id={label: number for number, label in names.items()},
    )
    if options.cut < 1:
        tokenizer = without_cut_pieces(tokenizer, parts["train"], options.cut)
    finder = EntityFinder(model, tokenizer, {kind: kind for kind in KINDS}, 32, options.precision, options.encoder)
    pace = train(model, finder, parts["train"], options)
    figures: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "spans_dropped_for_overlap": dropped,
        "train_sentences": len(parts["train"]),
        "epochs": round(options.steps * options.batch_size / len(parts["train"]), 2),
        "s_per_step": round(pace, 2),
        options.report: report(finder, parts[options.report], options.seed),
    }
    if options.test:
        others = known_entities(list(load_examples(options.test, taxonomy, "error", ReadingConfig())[0]))[0]
        figures[Path(options.test).name] = report(finder, others, options.seed)
    model.save_pretrained(options.directory)
    tokenizer.save_pretrained(options.directory)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (options.directory / "figures.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
