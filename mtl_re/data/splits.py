"""Config → training and validation examples: loaded, split by sentence, and kept apart.

Enters: the options of `data`. Leaves: `Splits`. One sentence carries several rows, so rows are split by sentence and
guarded by sentence and spans. A row's side is a pure function of rows, seed and options: a run's config gives the run's
split again, and `without_rejected` the rows that the run used.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtl_re.config import Config
from mtl_re.data import spool
from mtl_re.data.loading import load_examples
from mtl_re.data.readers import file_digest
from mtl_re.data.unicode_form import composed
from mtl_re.data.validation import BadRow, Example
from mtl_re.errors import MtlReError
from mtl_re.files import read_json
from mtl_re.taxonomy import Taxonomy


@dataclass
class Splits:
    """The examples of a run.

    Attributes:
        bad: rows that cannot be used. overlap: number of training rows dropped because they are validation rows too.
        unknown: share of the training text's tokens that the tokenizer does not know.
    """

    train: Sequence[Example]
    valid: Sequence[Example]
    bad: list[BadRow] = field(default_factory=list)
    overlap: int = 0
    unknown: float = 0.0


def load_splits(config: Config, taxonomy: Taxonomy) -> Splits:
    """Load, validate and split the training and validation rows.

    Raises:
        MtlReError: `data.train` is not set, a row is bad under `on_bad_row: error` or unlabelled, no row is left, or
            training and validation rows overlap by half.
    """
    options = config.data
    if not options.train:
        raise MtlReError("data.train is not set; give a file, hub:DATASET/CONFIG:SPLIT or sample:train")
    train, bad = load_examples(options.train, taxonomy, options.on_bad_row, options)
    rows = Splits(train, [], list(bad))
    if options.limit is not None and options.limit < len(train):
        chosen = np.random.default_rng(options.split_seed).permutation(len(train))[: options.limit]
        rows.train = spool.select(train, np.sort(chosen))
    if options.valid is not None:
        rows.valid, bad = load_examples(options.valid, taxonomy, options.on_bad_row, options)
        rows.bad += bad
        rows.train, rows.overlap = drop_overlap(rows.train, rows.valid, options.on_overlap)
    elif options.fold is not None:
        rows.train, rows.valid = split_by_fold(rows.train, options.fold, options.split_seed)
    elif options.valid_fraction > 0:
        rows.train, rows.valid = split_by_sentence(rows.train, options.valid_fraction, options.split_seed)
    for name, examples in (("data.train", rows.train), ("data.valid", rows.valid)):
        if missing := [example for example in examples if example.label is None]:
            raise MtlReError(f"{name}: {len(missing)} rows have no label, the first is {missing[0].where}")
    if not rows.train:
        raise MtlReError(f"data.train: {options.train} leaves no training rows")
    if options.valid is not None and not rows.valid:
        raise MtlReError(f"data.valid: {options.valid} holds no rows")
    return rows


def without_rejected(examples: Sequence[Example], run_dir: Path) -> Sequence[Example]:
    """Return the examples that a run used: those not listed in its `rejected.jsonl`.

    Loading and splitting again give a run's rows but for those that its featurizer rejected (too long for
    `data.max_length`); which these are is recorded in the run, so neither its tokenizer nor its model is needed.

    Raises:
        MtlReError: the list cannot be read.
    """
    path = run_dir / "rejected.jsonl"
    if not path.is_file():
        return examples
    try:
        listed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rejected = {(bad["source"], bad["row"]) for bad in listed}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MtlReError(f"{path}: cannot be read ({error}); train the run again") from error
    used = [row for row, example in enumerate(examples) if (example.file, example.row) not in rejected]
    return spool.select(examples, np.array(used, np.int64)) if len(used) < len(examples) else examples


def split_by_sentence(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return training and validation rows: about `fraction` of the rows for validation, no sentence on both sides.

    Every 1/fraction-th row in the order of `_Sentences` is held out, with its whole sentence. Both sides so have like
    shares of labels and of sentences with many rows, the number of rows is off by less than the rows of one sentence,
    and a row's side does not depend on the order of rows.

    Raises:
        MtlReError: the rows have one sentence only, so there is nothing to split.
    """
    if fraction == 0:
        return examples, []
    sentences = _Sentences.of(examples, seed)
    if len(sentences.sizes) < 2:
        what = f"{len(examples)} row(s) over {len(sentences.sizes)} sentence(s)"
        raise MtlReError(f"{what} cannot be split; give data.valid")
    chosen: list[int] = []
    owed = 0.0
    for sentence, size in enumerate(sentences.sizes):
        owed += fraction * size
        if owed >= size / 2 and len(chosen) < len(sentences.sizes) - 1:
            owed -= size
            chosen.append(sentence)
    return sentences.parted(examples, chosen or [len(sentences.sizes) - 1])


def split_by_fold(examples: Sequence[Example], fold: str, seed: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return training and validation rows: one of K folds for validation; no sentence is in two folds.

    Sentences go, in the order of `_Sentences`, to the fold with the fewest rows so far, so that folds have like sizes,
    labels and sentences with many rows.

    Args:
        fold: `k/K`, k from 1 to K.

    Raises:
        MtlReError: there are fewer sentences than folds.
    """
    number, folds = map(int, fold.split("/"))
    sentences = _Sentences.of(examples, seed)
    if len(sentences.sizes) < folds:
        raise MtlReError(f"data.fold: {len(sentences.sizes)} sentence(s) cannot be split into {folds} folds")
    rows, members = [0] * folds, [list[int]() for _ in range(folds)]
    for sentence, size in enumerate(sentences.sizes):
        fewest = rows.index(min(rows))
        rows[fewest] += size
        members[fewest].append(sentence)
    return sentences.parted(examples, members[number - 1])


@dataclass(frozen=True)
class _Sentences:
    """The sentences of some rows, ordered by number of rows (most first), rarest label, hash of seed and sentence.

    Attributes:
        sizes: number of rows of each sentence. place_of_row: (rows,) position of each row's sentence in that order.
    """

    sizes: list[int]
    place_of_row: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example], seed: int) -> _Sentences:
        """Order the sentences of the rows; only digests of them are held in memory."""
        labels, digests = list[str](), np.empty((len(examples), 2), ">u8")
        for row, example in enumerate(examples):
            text = f"{seed}\n{composed(example.sentence)}".encode("utf-8", "surrogatepass")
            digests[row] = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), ">u8")
            labels.append(example.label or "")
        counts = Counter(labels)
        rarity = {label: rank for rank, label in enumerate(sorted(counts, key=lambda label: (counts[label], label)))}
        hashes, sentence_of_row, sizes = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
        sentence_of_row = sentence_of_row.reshape(-1)
        rarest = np.full(len(sizes), len(rarity))
        np.minimum.at(rarest, sentence_of_row, [rarity[label] for label in labels])
        order = np.lexsort((hashes[:, 1], hashes[:, 0], rarest, -sizes)) if len(sizes) else np.arange(0)
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return cls(sizes[order].tolist(), places[sentence_of_row])

    def parted(self, examples: Sequence[Example], held_out: list[int]) -> tuple[Sequence[Example], Sequence[Example]]:
        """Return the rows of all other sentences and those of the sentences held out, each in their order."""
        inside = np.isin(self.place_of_row, held_out)
        return spool.select(examples, np.flatnonzero(~inside)), spool.select(examples, np.flatnonzero(inside))


def drop_overlap(
    train: Sequence[Example], valid: Sequence[Example], mode: Literal["drop", "error"] = "drop"
) -> tuple[Sequence[Example], int]:
    """Return the training rows without those that share sentence and spans with a validation row, and their number.

    Raises:
        MtlReError: rows overlap and `mode` is `error`, or half of either side is in the other: then the evaluation rows
            themselves were given for training.
    """
    train_keys, valid_keys = _key_digests(train), _key_digests(valid)
    distinct = [len(np.unique(keys)) for keys in (train_keys, valid_keys)]
    inside = np.isin(train_keys, valid_keys)
    shared = len(np.unique(train_keys[inside]))
    if shared and 2 * shared >= min(distinct):
        what = f"{shared:,} of {distinct[1]:,} distinct validation rows are among the {distinct[0]:,}"
        raise MtlReError(f"data: {what} of training: this is training on the evaluation rows; give other ones")
    if shared and mode == "error":
        first = train[int(np.flatnonzero(inside)[0])]
        what = f"{shared:,} training row(s) are validation rows too, the first is {first.where}"
        raise MtlReError(f"data: {what}; remove them, or set data.on_overlap drop")
    return spool.select(train, np.flatnonzero(~inside)) if shared else train, int(inside.sum())


def _key_digests(examples: Sequence[Example]) -> np.ndarray:
    """Return (rows,) digests of 16 bytes, equal where `Example.key` is."""
    digests = (hashlib.blake2b(repr(example.key).encode(), digest_size=16).digest() for example in examples)
    return np.frombuffer(b"".join(digests), "S16") if len(examples) else np.zeros(0, "S16")


def digests_of(run: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that a run read its rows from, by their name; none where it left no manifest."""
    return _row_digests(data_record(run))


def inputs_of(run: Path) -> dict[str, str]:
    """Return the SHA-256 of all local files that a run began from, by their name: those of its rows, and its encoder's
    weights, label set and class weights (which versions of before 2026-12 did not note)."""
    described = data_record(run)
    return _row_digests(described) | described.get("inputs", {})


def data_record(run: Path) -> dict[str, Any]:
    """Return what a run's manifest says of its data; nothing where there is no manifest."""
    path = run / "manifest.json"
    return dict(read_json(path)["data"]) if path.is_file() else {}


def _row_digests(described: Mapping[str, Any]) -> dict[str, str]:
    parts = (described[name] for name in ("train", "valid") if described)
    return {part["source"]: part["sha256"] for part in parts if part["sha256"] is not None}


def check_unchanged(run: Path) -> None:
    """Check that a run's rows can be split again as its training split them.

    Raises:
        MtlReError: a file is no longer the one that its manifest names: most rows that would be held out of it now
            were trained on.
    """
    for source, digest in digests_of(run).items():
        if digest != file_digest(source):
            what = f"{source} has changed since the run {run} was trained on it"
            cure = "name other labelled rows (--data, or `test` in a study)"
            raise MtlReError(f"{what}, so the rows that it held out are not known; {cure}")
