"""A finished cell → its logits on the rows it is scored on, kept beside it; readings of them are arithmetic.

Every head's logits of every cell are computed once and kept (`logits-*.npz` in the run directory). Gates, priors,
type restriction and compositions of several networks then cost nothing, and the test rows are read by nothing else.
A cell whose weights are gone (removed for their size, or left on another machine) still counts through its logits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from mtl_re.config import Gate
from mtl_re.data.splits import load_splits
from mtl_re.errors import MtlReError
from mtl_re.files import WEIGHTS
from mtl_re.model.network import split_heads
from mtl_re.scoring import gating
from mtl_re.scoring.calibration import fit_temperatures
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import decode
from mtl_re.scoring.metrics import Floats, Indices
from mtl_re.study.plan import Cell, Study, StudyReading, checked_config
from mtl_re.taxonomy import Taxonomy

if TYPE_CHECKING:
    from mtl_re.data.validation import Example


@dataclass(frozen=True)
class CellLogits:
    """What a checkpoint says about rows, before any reading.

    Attributes:
        logits: head → (rows, classes) float32. gold: (rows,) indices into `taxonomy.labels`.
        subjects: (rows,) entity types of the subjects.
        trained: shares of the coarse classes in training, in taxonomy order.
        temperatures: by head, as the checkpoint has them.
        fitted: by head, from the cell's own validation rows; empty if no reading of the study asks for them.
        rows: digest of the rows; what is compared must agree in it.
    """

    logits: Mapping[str, np.ndarray]
    gold: Indices
    subjects: Sequence[str]
    taxonomy: Taxonomy
    trained: Sequence[float] | None
    temperatures: Mapping[str, float]
    rows: str
    fitted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """Rows as a reading sees them.

    Attributes:
        gold: (rows,). probs: (rows, labels) float64. hard, soft: (rows,) labels under each gate; `labels` is the one
            that the reading counts.
        prior: what was done to the coarse prior, in words. rows: digest of the rows.
        temperatures: by head, as applied.
    """

    gold: Indices
    probs: Floats
    hard: Indices
    soft: Indices
    reading: StudyReading
    taxonomy: Taxonomy
    prior: str
    rows: str
    temperatures: Mapping[str, float]

    @property
    def labels(self) -> Indices:
        """(rows,) predicted labels."""
        return self.hard if self.reading.gate == "hard" else self.soft


def read(cell: CellLogits, reading: StudyReading) -> Read:
    """Probabilities and labels: temperatures, then the reading (`decoding.decode`), then both gates.

    Raises:
        MtlReError: a prior is asked for, and the checkpoint does not know the one it was trained under.
    """
    taxonomy, said = cell.taxonomy, "none"
    logits = {name: torch.from_numpy(part) for name, part in cell.logits.items()}
    temperatures = cell.fitted if reading.calibrate else cell.temperatures
    decoded = decode(logits, taxonomy, reading, temperatures=temperatures, trained=cell.trained, subjects=cell.subjects)
    if decoded.shares is not None:
        said = f"{'em: ' if reading.prior == 'em' else ''}{', '.join(f'{share:.4f}' for share in decoded.shares)}"
    probs, hard, soft = (part.numpy() for part in (decoded.probs, decoded.hard, decoded.soft))
    return Read(cell.gold, probs, hard, soft, reading, taxonomy, said, cell.rows, temperatures)


def vote(reads: Sequence[Read]) -> Read:
    """The soft vote of several models on the same rows: mean probabilities, then both gates.

    Raises:
        MtlReError: they differ in rows or labels.
    """
    if len({(read.rows, tuple(read.taxonomy.labels)) for read in reads}) != 1:
        raise MtlReError(
            "a vote needs models that were scored on the same rows, with the same labels (`test` in a study)"
        )
    probs = np.mean([read.probs for read in reads], axis=0)
    hard, soft = _both_gates(torch.from_numpy(probs), reads[0].taxonomy)
    return replace(reads[0], probs=probs, hard=hard, soft=soft, prior="of each member", temperatures={})


def _both_gates(probs: torch.Tensor, taxonomy: Taxonomy) -> tuple[Indices, Indices]:
    hard, soft = (gating.labels(probs, taxonomy, gate).numpy() for gate in get_args(Gate))
    return hard, soft


def compose(parts: Mapping[str, CellLogits]) -> CellLogits:
    """One model out of several: the logits (and temperature) of each head from the part named for it.

    Args:
        parts: head → cell, all on the same rows and with the same heads. The training prior is the root head's.

    Raises:
        MtlReError: a head without a part, or parts that differ in rows or heads.
    """
    first = next(iter(parts.values()))
    heads = [head.name for head in first.taxonomy.heads]
    if sorted(parts) != sorted(heads):
        raise MtlReError(f"composition: the heads are {heads}, given were {sorted(parts)}")
    for head, part in parts.items():
        if part.taxonomy.heads != first.taxonomy.heads or part.rows != first.rows:
            raise MtlReError(f"composition: the network for {head} has other heads or was scored on other rows")
    return replace(
        first,
        logits={head: parts[head].logits[head] for head in heads},
        temperatures={head: parts[head].temperatures.get(head, 1.0) for head in heads},
        fitted={head: parts[head].fitted[head] for head in heads if head in parts[head].fitted},
        trained=parts[first.taxonomy.root.name].trained,
    )


# ---- from a run directory ------------------------------------------------------------------------------------


def cell_logits(study: Study, cell: Cell) -> CellLogits:
    """A finished cell's logits: on the study's test rows, or without any on the cell's own validation rows.

    Raises:
        MtlReError: the cell left no model, or the rows cannot be read.
    """
    folder = study.run_dir(cell)
    if study.test is None:
        return _logits(folder, cell, "valid", valid_rows(cell))
    found = _logits(folder, cell, "test", labelled_rows(study.test, _heads(cell)))
    if not study.calibrates or not checked_config(cell.config).data.validated:
        return found
    aside = valid_rows(cell)
    logits = _logits(folder, cell, "valid", aside).logits
    return replace(found, fitted=fit_temperatures(logits, [example.label for example in aside], found.taxonomy))


def _logits(folder: Path, cell: Cell, which: str, examples: Sequence[Example]) -> CellLogits:
    """Logits of rows: those kept beside the cell if they are of its model and of these rows, else computed and kept."""
    weights = folder / "model" / WEIGHTS
    rows = _digest(examples)
    cache = folder / f"logits-{which}.npz"
    mark = {"rows": rows}
    if weights.is_file():
        mark["model"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    found = _cached(cache, mark, examples)
    if found is None:
        if "model" not in mark:
            raise MtlReError(
                f"{folder}: holds neither a model nor logits of these rows; was this cell trained on another machine?"
            )
        found = _computed(folder, examples, cell, rows)
        _keep(cache, mark, found)
    return found


def _computed(folder: Path, examples: Sequence[Example], cell: Cell, rows: str) -> CellLogits:
    model = ComposedModel.load(str(folder / "model"))
    logits = model.logits(examples, checked_config(cell.config).eval.batch_size)
    return CellLogits(
        logits={name: part.numpy() for name, part in split_heads(logits, model.taxonomy).items()},
        gold=_gold(examples, model.taxonomy),
        subjects=[example.subject.type for example in examples],
        taxonomy=model.taxonomy,
        trained=model.root.config.training_prior,
        temperatures=model.temperatures,
        rows=rows,
    )


def _keep(path: Path, mark: Mapping[str, str], cell: CellLogits) -> None:
    about = {"taxonomy": cell.taxonomy.to_dict(), "trained": cell.trained, "temperatures": dict(cell.temperatures)}
    text = json.dumps({**about, "mark": mark}, ensure_ascii=False)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    with partial.open("wb") as file:
        np.savez(file, about=np.array(text), **{f"head {name}": part for name, part in cell.logits.items()})  # type: ignore[arg-type]
    os.replace(partial, path)


def _cached(path: Path, mark: Mapping[str, str], examples: Sequence[Example]) -> CellLogits | None:
    """What was kept, if it is of these rows and, where the model is there, of this model."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        about: dict[str, Any] = json.loads(str(kept["about"]))
        if {**about["mark"], **mark} != about["mark"]:
            return None
        names = [name for name in kept.files if name.startswith("head ")]
        logits = {name.removeprefix("head "): kept[name].astype(np.float32) for name in names}
    taxonomy = Taxonomy.from_dict(about["taxonomy"])
    subjects = [example.subject.type for example in examples]
    gold = _gold(examples, taxonomy)
    return CellLogits(logits, gold, subjects, taxonomy, about["trained"], about["temperatures"], mark["rows"])


@lru_cache(maxsize=4)
def labelled_rows(spec: str, heads: str) -> tuple[Example, ...]:
    """Labelled rows of a DATA.

    Raises:
        MtlReError: they cannot be read, or one has no label.
    """
    from mtl_re.data.validation import load_examples

    examples, _ = load_examples(spec, Taxonomy.from_option(heads), "error")
    return tuple(examples)


def valid_rows(cell: Cell) -> tuple[Example, ...]:
    """The validation rows of a cell, split off again as its training did.

    Raises:
        MtlReError: it had none.
    """
    rows = _split_off(json.dumps(cell.config.get("data", {}), sort_keys=True), _heads(cell))
    if not rows:
        raise MtlReError(f"{cell.key}: no validation rows to score, and the study names no test rows")
    return rows


@lru_cache(maxsize=2)
def _split_off(options: str, heads: str) -> tuple[Example, ...]:
    config = checked_config({"data": json.loads(options), "model": {"heads": heads}})
    return tuple(load_splits(config, Taxonomy.from_option(heads)).valid)


def _heads(cell: Cell) -> str:
    return str(cell.config.get("model", {}).get("heads", "hierarchical"))


def _gold(examples: Sequence[Example], taxonomy: Taxonomy) -> Indices:
    from mtl_re.scoring.evaluation import gold_indices

    return gold_indices(examples, taxonomy)


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.key, example.subject.type, example.object.type, example.label)).encode())
    return digest.hexdigest()
