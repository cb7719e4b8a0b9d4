"""Predictions → files: contest submission (.csv), .jsonl, .parquet.

A file appears whole or not at all: rows go to a temporary name beside it, a submission is read back and checked
(row count, ids in order, 30 finite probabilities that sum to 1, known labels), and only then is it renamed. Nothing
holds more than one row (parquet: one row group) in memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.taxonomy import KLUE, LABEL_ORDERS, Taxonomy

SUFFIXES = (".csv", ".jsonl", ".parquet")
CSV_HEADER = ("id", "pred_label", "probs")
_GROUP = 4096  # rows of a parquet row group


@dataclass(frozen=True)
class Prediction:
    """What the model says of one row.

    Attributes:
        id: the row's. label: predicted. score: its probability. gold: the row's own label, if known.
        coarse: coarse class → probability. probs: label → probability, in taxonomy order.
    """

    id: str
    label: str
    score: float
    gold: str | None
    coarse: dict[str, float]
    probs: dict[str, float]

    @classmethod
    def of(cls, id: str, probs: np.ndarray, label: int, taxonomy: Taxonomy, gold: str | None) -> Prediction:
        """From a row of probabilities (labels,) and the index of the predicted label."""
        coarse = dict.fromkeys(taxonomy.groups, 0.0)
        names = list(taxonomy.groups)
        for position, group in enumerate(taxonomy.group_of_label):
            coarse[names[group]] += float(probs[position])
        values = dict(zip(taxonomy.labels, map(float, probs), strict=True))
        return cls(id, taxonomy.labels[label], float(probs[label]), gold, coarse, values)

    def record(self) -> dict[str, Any]:
        """As a line of predictions .jsonl; `gold` only if known."""
        gold = {} if self.gold is None else {"gold": self.gold}
        return {
            "id": self.id,
            "label": self.label,
            **gold,
            "score": self.score,
            "coarse": self.coarse,
            "probs": self.probs,
        }


def label_order(option: str | None, taxonomy: Taxonomy, suffix: str) -> tuple[str, ...]:
    """Order in which probabilities are written.

    Raises:
        MtlReError: a named order that is not this model's label set.
    """
    if option is None:
        contest = suffix == ".csv" and set(taxonomy.labels) == set(KLUE)
        return LABEL_ORDERS["boostcamp"] if contest else taxonomy.labels
    order = LABEL_ORDERS[option]
    if set(order) != set(taxonomy.labels):
        raise MtlReError(f"--label-order {option}: this model's labels are not KLUE-RE's")
    return order


def write_predictions(
    predictions: Iterable[Prediction], path: Path, taxonomy: Taxonomy, order: Sequence[str] | None = None
) -> int:
    """Write all predictions and return their number.

    Args:
        predictions: in the order of the input.
        path: .csv, .jsonl or .parquet; an existing file is replaced once the new one is whole.
        taxonomy: of the model.
        order: label order of the probabilities (None: `label_order`'s default).

    Raises:
        MtlReError: unknown suffix, the place cannot be written, or the submission fails its own check.
    """
    check_suffix(path)
    order = order or label_order(None, taxonomy, path.suffix)
    partial = path.with_name(f".partial-{path.name}")
    digest = _IdDigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[path.suffix](digest.watch(predictions), partial, order)
        if path.suffix == ".csv":
            check_submission(partial, order, digest.count, digest.hexdigest())
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise MtlReError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return digest.count


def check_suffix(path: Path) -> None:
    """Raise MtlReError unless predictions can be written in this form."""
    if path.suffix not in SUFFIXES:
        raise MtlReError(f"{path}: unknown kind of output {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")


class _IdDigest:
    """Counts and hashes ids as they pass, so that their order can be compared without keeping them."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, id: str) -> None:
        self.count += 1
        self._hash.update(f"{len(id)}:{id}".encode())

    def watch(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            self.add(prediction.id)
            yield prediction

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_csv(predictions: Iterable[Prediction], path: Path, order: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for prediction in predictions:
            writer.writerow([prediction.id, prediction.label, str([prediction.probs[label] for label in order])])


def _write_jsonl(predictions: Iterable[Prediction], path: Path, order: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(_ordered(prediction, order), ensure_ascii=False) + "\n")


def _write_parquet(predictions: Iterable[Prediction], path: Path, order: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, records = None, []
    for prediction in predictions:
        records.append({"gold": None, **_ordered(prediction, order)})
        if writer is None:
            schema = _parquet_schema(list(prediction.coarse), order)
            writer = pq.ParquetWriter(path, schema)
        if len(records) == _GROUP:
            writer.write_table(pa.Table.from_pylist(records, schema))
            records = []
    if writer is None:
        schema = _parquet_schema([], order)
        writer = pq.ParquetWriter(path, schema)
    writer.write_table(pa.Table.from_pylist(records, schema))
    writer.close()


def _parquet_schema(coarse: Sequence[str], order: Sequence[str]) -> Any:
    import pyarrow as pa

    def shares(names: Sequence[str]) -> Any:
        return pa.struct([(name, pa.float64()) for name in names or ("none",)])

    texts = [(name, pa.string()) for name in ("gold", "id", "label")]
    return pa.schema([*texts, ("score", pa.float64()), ("coarse", shares(coarse)), ("probs", shares(order))])


def _ordered(prediction: Prediction, order: Sequence[str]) -> dict[str, Any]:
    return prediction.record() | {"probs": {label: prediction.probs[label] for label in order}}


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}


def check_submission(path: Path, order: Sequence[str], rows: int, ids: str) -> None:
    """Read a submission back and make sure a contest server would take it.

    Args:
        rows: expected rows. ids: `_IdDigest.hexdigest` of the ids in input order.

    Raises:
        MtlReError: naming the row and column at fault.
    """
    seen, known = _IdDigest(), set(order)
    with path.open(encoding="utf-8", newline="") as file:
        for row in _csv_rows(file, path):
            seen.add(row["id"])
            where = f"{path.name}:{seen.count}"
            if row["pred_label"] not in known:
                raise MtlReError(f"{where}: pred_label: {row['pred_label']!r} is not one of the {len(known)} labels")
            probs = _listed(row["probs"])
            if len(probs) != len(order) or not all(math.isfinite(p) and 0 <= p <= 1 + 1e-9 for p in probs):
                raise MtlReError(f"{where}: probs: expected {len(order)} finite probabilities")
            if abs(sum(probs) - 1) > 1e-6:
                raise MtlReError(f"{where}: probs: they sum to {sum(probs)}, not 1")
    if seen.count != rows or seen.hexdigest() != ids:
        raise MtlReError(f"{path.name}: {seen.count} rows were written for {rows}, or their ids are out of order")


def _listed(text: str | None) -> list[float]:
    """The numbers of a `probs` cell; empty if it is not a list of numbers (`nan` and `inf` are read as such)."""
    inside = (text or "").strip()
    if not (inside.startswith("[") and inside.endswith("]")):
        return []
    try:
        return [float(part) for part in inside[1:-1].split(",")]
    except ValueError:
        return []


def _csv_rows(file: IO[str], path: Path) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file)
    if tuple(reader.fieldnames or ()) != CSV_HEADER:
        raise MtlReError(f"{path.name}: header is {reader.fieldnames}, expected {list(CSV_HEADER)}")
    yield from reader
