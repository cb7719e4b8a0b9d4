"""The logits of a finished cell on the rows that it is scored on, and their decoding in each of the study's ways.

The logits of every head are computed once and cached in the run directory (`logits-*.npz`). Gates, priors, type
restriction and compositions of several networks are then arithmetic. Test rows are read here alone: checked before the
first training, scored for the report. A cell whose weights are gone (removed for their size, or left on another
machine) still counts through its cached logits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch

from mtl_re.config import OnBadRow, ReadingConfig
from mtl_re.data.splits import check_unchanged, load_splits, without_rejected
from mtl_re.data.unicode_form import composed
from mtl_re.errors import MtlReError
from mtl_re.features.markers import names_types
from mtl_re.files import WEIGHTS, digest, read_json, whole_file
from mtl_re.model.network import split_heads
from mtl_re.scoring.calibration_fits import fit_temperatures
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoded, decode
from mtl_re.scoring.evaluation import gold_indices
from mtl_re.scoring.metrics import Floats, Indices
from mtl_re.study.study import Cell, Study, StudyDecoding, data_options, read_splits
from mtl_re.taxonomy import Taxonomy

if TYPE_CHECKING:
    from mtl_re.data.validation import Example


@dataclass(frozen=True)
class CellLogits:
    """The output of a checkpoint on rows, before decoding.

    Attributes:
        logits: By head, (rows, classes of the head) float32.
        gold: (rows,) indices into `taxonomy.labels`.
        subjects: (rows,) entity types of the subjects.
        trained: (groups,) shares of the coarse classes in training, in taxonomy order; None if they are unknown.
        rows: Digest of the rows; cells are compared on equal rows only.
        fitted: Temperatures by head, fitted on the cell's own validation rows; empty where nothing needs them. Those
            that `mtl-re calibrate` stores in a checkpoint do not count: the cells of a study are decoded alike.
    """

    logits: Mapping[str, np.ndarray]
    gold: Indices
    subjects: Sequence[str]
    taxonomy: Taxonomy
    trained: Sequence[float] | None
    rows: str
    fitted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DecodedCell:
    """A cell's rows under one decoding.

    Attributes:
        gold: (rows,) indices into `taxonomy.labels`.
        rows: Digest of the rows.
    """

    gold: Indices
    decoded: Decoded
    rows: str

    @property
    def probs(self) -> Floats:
        """(rows, labels) float64."""
        return np.asarray(self.decoded.probs)

    @property
    def labels(self) -> Indices:
        """(rows,) predicted labels, by the gate of the decoding."""
        return np.asarray(self.decoded.labels)

    @property
    def taxonomy(self) -> Taxonomy:
        """The labels and heads of the cell's model."""
        return self.decoded.taxonomy

    @property
    def scored_alike(self) -> tuple[object, ...]:
        """What cells must share for their scores to be compared: rows, labels, which label means no relation."""
        return self.rows, tuple(self.taxonomy.labels), self.taxonomy.no_relation

    @property
    def prior(self) -> str:
        """What was applied to the coarse prior, as text."""
        if self.decoded.shares is None:
            return "none"
        shares = ", ".join(f"{share:.4f}" for share in self.decoded.shares)
        return f"em: {shares}" if self.decoded.decoding.prior == "em" else shares


def decode_cell(cell: CellLogits, decoding: StudyDecoding) -> DecodedCell:
    """Decode a cell's logits (`scoring.decoding.decode`).

    Raises:
        MtlReError: The decoding shifts the prior, and the checkpoint does not know the one it was trained under.
    """
    decoded = decode(
        {name: torch.from_numpy(part) for name, part in cell.logits.items()},
        cell.taxonomy,
        decoding,
        temperatures=cell.fitted if decoding.calibrate else {},
        trained=cell.trained,
        subjects=cell.subjects,
    )
    return DecodedCell(cell.gold, decoded, cell.rows)


def vote(members: Sequence[DecodedCell]) -> DecodedCell:
    """Return the soft vote of several models on the same rows: the mean of their probabilities.

    Raises:
        MtlReError: The models differ in rows or labels.
    """
    if len({member.scored_alike for member in members}) != 1:
        raise MtlReError(
            "a vote needs models that were scored on the same rows, with the same labels (`test` in a study)"
        )
    parts = [member.decoded for member in members]
    probs = torch.stack([part.probs for part in parts]).mean(0)
    heads = torch.stack([part.probs if part.unrestricted is None else part.unrestricted for part in parts]).mean(0)
    first = members[0]
    return replace(first, decoded=Decoded(probs, first.taxonomy, first.decoded.decoding, unrestricted=heads))


def compose(parts: Mapping[str, CellLogits]) -> CellLogits:
    """Compose one model of several: the logits and fitted temperature of each head are those of the part named for it.

    Args:
        parts: By head; all are on the same rows and have the same heads. The training prior is the root head's.

    Raises:
        MtlReError: A head has no part, or the parts differ in rows or heads.
    """
    first = next(iter(parts.values()))
    heads = [head.name for head in first.taxonomy.heads]
    if sorted(parts) != sorted(heads):
        raise MtlReError(f"composition: the heads are {heads}, given were {sorted(parts)}")
    for head, part in parts.items():
        if part.taxonomy.heads != first.taxonomy.heads or part.rows != first.rows:
            raise MtlReError(f"composition: the network for {head} has other heads or was scored on other rows")
    calibrated = all(head in parts[head].fitted for head in heads)
    return replace(
        first,
        logits={head: parts[head].logits[head] for head in heads},
        fitted={head: parts[head].fitted[head] for head in heads} if calibrated else {},
        trained=parts[first.taxonomy.root.name].trained,
    )


# ---- from a run directory ------------------------------------------------------------------------------------


def cell_logits(study: Study, cell: Cell) -> CellLogits:
    """Return a finished cell's logits on the study's test rows, or without any on the cell's own validation rows.

    Raises:
        MtlReError: The cell left no model, or the rows cannot be read.
    """
    run_dir = study.run_dir(cell)
    if study.test is None:
        return _logits(run_dir, cell, "valid", valid_rows(cell, run_dir))
    on_test = _logits(run_dir, cell, "test", test_rows(study.test, cell))
    if not study.calibrates or not cell.options.data.validated:
        return on_test
    held_out = valid_rows(cell, run_dir)
    logits = _logits(run_dir, cell, "valid", held_out).logits
    labels = [example.label for example in held_out]
    return replace(on_test, fitted=fit_temperatures(logits, labels, on_test.taxonomy))


def _logits(run_dir: Path, cell: Cell, which: str, examples: Sequence[Example]) -> CellLogits:
    """Return the cached logits if they are of this model and these rows, else compute and cache them."""
    weights = run_dir / "model" / WEIGHTS
    cache = run_dir / f"logits-{which}.npz"
    mark = {"rows": _digest(examples)}
    if weights.is_file():
        mark["model"] = digest(weights)
    logits = _cached(cache, mark, examples)
    if logits is None:
        if "model" not in mark:
            raise MtlReError(
                f"{run_dir}: holds neither a model nor logits of these rows; was this cell trained on another machine?"
            )
        logits = _computed(run_dir, examples, cell, mark["rows"])
        _cache(cache, mark, logits)
    if not weights.is_file():
        return logits
    stored = read_json(run_dir / "model" / "config.json")
    return replace(logits, trained=stored.get("training_prior"))


def _computed(run_dir: Path, examples: Sequence[Example], cell: Cell, rows: str) -> CellLogits:
    model = ComposedModel.load(str(run_dir / "model"))
    logits = model.logits(examples, cell.options.eval.batch_size)
    return CellLogits(
        logits={name: part.numpy() for name, part in split_heads(logits, model.taxonomy).items()},
        gold=gold_indices(examples, model.taxonomy),
        subjects=[example.subject.type for example in examples],
        taxonomy=model.taxonomy,
        trained=model.root.config.training_prior,
        rows=rows,
    )


def _cache(path: Path, mark: Mapping[str, str], cell: CellLogits) -> None:
    about = {"taxonomy": cell.taxonomy.to_dict(), "trained": cell.trained}
    text = json.dumps({**about, "mark": mark}, ensure_ascii=False)
    with whole_file(path, shared=True) as partial:
        np.savez(partial, about=np.array(text), **{f"head {name}": part for name, part in cell.logits.items()})  # type: ignore[arg-type]


def _cached(path: Path, mark: Mapping[str, str], examples: Sequence[Example]) -> CellLogits | None:
    """Return the cached logits if they are of these rows and, where the model still exists, of this model."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about: dict[str, Any] = json.loads(str(file["about"]))
            names = [name for name in file.files if name.startswith("head ")]
            logits = {name.removeprefix("head "): file[name].astype(np.float32) for name in names}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):  # none yet, or damaged
        return None
    if {**about["mark"], **mark} != about["mark"]:
        return None
    taxonomy = Taxonomy.from_dict(about["taxonomy"])
    subjects = [example.subject.type for example in examples]
    gold = gold_indices(examples, taxonomy)
    return CellLogits(logits, gold, subjects, taxonomy, about["trained"], mark["rows"])


def test_rows(spec: str, cell: Cell) -> tuple[Example, ...]:
    """Return the rows of `test`, read as a cell reads its own: spans, normalisation, what becomes of a bad row.

    Raises:
        MtlReError: The file cannot be read, or a row is bad.
    """
    data = cell.options.data
    return _labelled_rows(spec, _heads(cell), data.span_ends, data.first_character, data.normalise, data.on_bad_row)


def check_test_rows(study: Study) -> None:
    """Read the test rows as every arm reads them.

    Raises:
        MtlReError: The file cannot be read, or a row is bad, has no label, has one that an arm's label set lacks, or
            has an entity of a type that the arm's markers name and its training rows lack.
    """
    arms = {cell.arm: cell for cell in study.cells()} if study.test is not None else {}
    for cell in arms.values():
        rows = test_rows(str(study.test), cell)
        gold_indices(rows, Taxonomy.from_option(_heads(cell)))
        if not rows:
            raise MtlReError(f"test: {study.test} has no rows")
        if names_types(cell.options.data.markers) and cell.options.model.init is None:
            _check_types(rows, cell)


def _check_types(rows: Sequence[Example], cell: Cell) -> None:
    known = _trained_types(data_options(cell.config), _heads(cell))
    for row in rows:
        for role, entity in (("subject", row.subject), ("object", row.object)):
            if entity.type not in known:
                what = f"{role}_entity.type: {entity.type!r} occurs in no training row of arm {cell.arm}, whose markers"
                cure = "leave such rows out of the file, or take markers without types"
                raise MtlReError(f"test: {row.where}: {what} name types; {cure}")


@lru_cache(maxsize=4)
def _labelled_rows(
    spec: str,
    heads: str,
    ends: Literal["inclusive", "exclusive"],
    first: Literal[0, 1],
    normalise: Literal["none", "nfc"],
    on_bad_row: OnBadRow,
) -> tuple[Example, ...]:
    from mtl_re.data.loading import load_examples

    reading = ReadingConfig(span_ends=ends, first_character=first, normalise=normalise)
    examples, _ = load_examples(spec, Taxonomy.from_option(heads), on_bad_row, reading)
    return tuple(examples)


def shared_rows(study: Study, cells: Sequence[Cell]) -> tuple[int, int]:
    """Count the test rows that are among the rows which cells trained or selected on.

    Returns:
        Those that share sentence and spans, and those that share the sentence, with such a row.

    Raises:
        MtlReError: The rows cannot be read again, or a file has changed since.
    """
    assert study.test is not None
    test = test_rows(study.test, cells[0])
    keys, sentences = {row.key for row in test}, {composed(row.sentence) for row in test}
    read_keys, read_sentences = set[Any](), set[str]()
    for cell in {_source(cell): cell for cell in cells}.values():
        check_unchanged(study.run_dir(cell))
        everything = replace(cell.options.data, valid_fraction=0.0, fold=None)  # rows that were selected on count
        config = replace(cell.options, data=everything)
        rows = load_splits(config, Taxonomy.from_option(config.model.heads))
        for row in chain(rows.train, rows.valid):
            read_keys |= keys & {row.key}
            read_sentences |= sentences & {composed(row.sentence)}
    return sum(row.key in read_keys for row in test), sum(composed(row.sentence) in read_sentences for row in test)


def _source(cell: Cell) -> tuple[Any, ...]:
    """Return what decides which rows a cell reads, however it splits them."""
    data = cell.options.data
    rows = (data.train, data.valid, data.limit, data.split_seed, data.on_bad_row)
    return *rows, data.span_ends, data.first_character, data.normalise


def valid_rows(cell: Cell, run_dir: Path) -> Sequence[Example]:
    """Return the validation rows of a cell: split off again as its training did, without those that it rejected.

    Raises:
        MtlReError: There are none, or the file that they were split off has changed since.
    """
    check_unchanged(run_dir)
    rows = without_rejected(_split_off(data_options(cell.config), _heads(cell)), run_dir)
    if not rows:
        raise MtlReError(f"{cell.key}: no validation rows to score, and the study names no test rows")
    return rows


@lru_cache(maxsize=2)
def _split_off(options: str, heads: str) -> tuple[Example, ...]:
    return tuple(read_splits(options, heads).valid)


@lru_cache(maxsize=16)
def _trained_types(options: str, heads: str) -> frozenset[str]:
    rows = read_splits(options, heads).train
    return frozenset(entity.type for row in rows for entity in (row.subject, row.object))


def _heads(cell: Cell) -> str:
    return str(cell.config.get("model", {}).get("heads", "hierarchical"))


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.key, example.subject.type, example.object.type, example.label)).encode())
    return digest.hexdigest()
