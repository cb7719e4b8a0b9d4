"""Predictions → files: contest submission (.csv), .jsonl, .parquet.

A file appears whole or not at all: rows go to a temporary name beside it, which is read back and checked (row count,
ids in order, finite probabilities that sum to 1, known labels), and only then is it renamed. On the way rows are bytes
(`encode`): a CSV's or a JSON line each, so that whoever collects them in parts can keep the parts on disk. Nothing
holds more than a chunk of rows (parquet: one row group) in memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.files import whole_file
from mtl_re.taxonomy import KLUE, LABEL_ORDERS, Taxonomy

SUFFIXES = (".csv", ".jsonl", ".parquet")
CSV_HEADER = ("id", "pred_label", "probs")
_GROUP = 4096  # rows of a parquet row group
_CHUNK = 1024  # rows that are encoded at once


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
        MtlReError: unknown suffix, the place cannot be written, or the file fails its own check.
    """
    check_suffix(path)
    order = order or label_order(None, taxonomy, path.suffix)
    digest = IdDigest()
    rows = iter(predictions)

    def chunks() -> Iterator[bytes]:
        while chunk := list(islice(rows, _CHUNK)):
            for prediction in chunk:
                digest.add(prediction.id)
            yield encode(chunk, path.suffix, order)

    publish(chunks(), path, taxonomy, order, lambda: [(digest.count, digest.hexdigest())])
    return digest.count


def publish(
    chunks: Iterable[bytes],
    path: Path,
    taxonomy: Taxonomy,
    order: Sequence[str],
    expected: Callable[[], Iterable[tuple[int, str]]],
) -> None:
    """Put encoded rows into a file that appears whole and checked, or not at all.

    Args:
        chunks: what `encode` made of the rows, in order.
        path, taxonomy, order: as for `write_predictions`.
        expected: called when all is written; number and `IdDigest` of the rows, by runs of rows.

    Raises:
        MtlReError: the place cannot be written, or the file fails its check; an old file stands.
    """
    with whole_file(path) as partial:
        with _SINKS[path.suffix](partial, taxonomy, order) as sink:
            for chunk in chunks:
                sink.add(chunk)
        check_file(partial, path.suffix, order, expected())


def check_suffix(path: Path) -> None:
    """Raise MtlReError unless predictions can be written in this form."""
    if path.suffix not in SUFFIXES:
        raise MtlReError(f"{path}: unknown kind of output {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")


class IdDigest:
    """Counts and hashes ids as they pass, so that their order can be compared without keeping them."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        for id in ids:
            self.add(id)

    def add(self, id: str) -> None:
        self.count += 1
        self._hash.update(f"{len(id)}:{id}".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


# ---- rows as bytes -----------------------------------------------------------------------------------------------


def encode(predictions: Iterable[Prediction], suffix: str, order: Sequence[str]) -> bytes:
    """Rows in the form in which they are collected: lines of a .csv without its header, else JSON lines.

    Raises:
        MtlReError: probabilities that no file may hold, with the row's id: the model is at fault.
    """
    known = set(order)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for prediction in predictions:
        probs = [prediction.probs[label] for label in order]
        if fault := _fault_of(prediction.label, probs, known):
            raise MtlReError(
                f"prediction of row {prediction.id}: {fault}; the checkpoint or the arithmetic is at fault"
            )
        if suffix == ".csv":
            writer.writerow([prediction.id, prediction.label, str(probs)])
        else:
            record = prediction.record() | {"probs": dict(zip(order, probs, strict=True))}
            text.write(json.dumps(record, ensure_ascii=False) + "\n")
    return text.getvalue().encode()


class _TextSink(AbstractContextManager["_TextSink"]):
    """A file of lines: the encoded rows as they are."""

    def __init__(self, path: Path, taxonomy: Taxonomy, order: Sequence[str]) -> None:
        self._file = path.open("wb")
        if path.suffix == ".csv":
            self._file.write((",".join(CSV_HEADER) + "\n").encode())

    def add(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError) if kind else nullcontext():  # what failed first is what is told
            self._file.close()


class _ParquetSink(AbstractContextManager["_ParquetSink"]):
    """Row groups of a fixed size, however the rows come."""

    def __init__(self, path: Path, taxonomy: Taxonomy, order: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        self._schema = _parquet_schema(list(taxonomy.groups), order)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._records: list[dict[str, Any]] = []

    def add(self, chunk: bytes) -> None:
        for line in chunk.split(b"\n")[:-1]:
            self._records.append({"gold": None, **json.loads(line)})
            if len(self._records) == _GROUP:
                self._write()

    def _write(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._records, self._schema))
        self._records = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write()
        self._writer.close()


def _parquet_schema(coarse: Sequence[str], order: Sequence[str]) -> Any:
    import pyarrow as pa

    def shares(names: Sequence[str]) -> Any:
        return pa.struct([(name, pa.float64()) for name in names])

    texts = [(name, pa.string()) for name in ("gold", "id", "label")]
    return pa.schema([*texts, ("score", pa.float64()), ("coarse", shares(coarse)), ("probs", shares(order))])


_SINKS: dict[str, Callable[[Path, Taxonomy, Sequence[str]], _TextSink | _ParquetSink]] = {
    ".csv": _TextSink,
    ".jsonl": _TextSink,
    ".parquet": _ParquetSink,
}


# ---- checking ----------------------------------------------------------------------------------------------------


def check_submission(path: Path, order: Sequence[str], rows: int, ids: str) -> None:
    """Read a submission back and make sure a contest server would take it.

    Args:
        rows: expected rows. ids: `IdDigest.hexdigest` of the ids in input order.

    Raises:
        MtlReError: naming the row and column at fault.
    """
    check_file(path, ".csv", order, [(rows, ids)])


def check_file(path: Path, suffix: str, order: Sequence[str], expected: Iterable[tuple[int, str]]) -> None:
    """Read a file of predictions back: labels, probabilities, number of rows, ids in order.

    Args:
        suffix: its kind (its name may be a temporary one).
        expected: number and `IdDigest` of the rows, by runs of rows.

    Raises:
        MtlReError: naming the row and column at fault.
    """
    known, wanted, seen, wrong = set(order), 0, 0, False
    rows = _READERS[suffix](path)
    for count, ids in expected:
        digest = IdDigest()
        for id, label, probs in islice(rows, count):
            digest.add(id)
            _check_row(f"{path.name}:{seen + digest.count}", label, probs, known)
        seen, wanted = seen + digest.count, wanted + count
        wrong = wrong or digest.hexdigest() != ids
    for _, label, probs in rows:
        seen += 1
        _check_row(f"{path.name}:{seen}", label, probs, known)
    if wrong or seen != wanted:
        raise MtlReError(f"{path.name}: {seen} rows were written for {wanted}, or their ids are out of order")


def _check_row(where: str, label: str, probs: Sequence[float], known: set[str]) -> None:
    if fault := _fault_of(label, probs, known):
        raise MtlReError(f"{where}: {fault}")


def _fault_of(label: str, probs: Sequence[float], known: set[str]) -> str | None:
    """What is wrong with a row of an output, if anything."""
    if label not in known:
        return f"pred_label: {label!r} is not one of the {len(known)} labels"
    if len(probs) != len(known) or not all(math.isfinite(p) and 0 <= p <= 1 + 1e-9 for p in probs):
        return f"probs: expected {len(known)} finite probabilities"
    if abs(sum(probs) - 1) > 1e-6:
        return f"probs: they sum to {sum(probs)}, not 1"
    return None


Row = tuple[str, str, Sequence[float]]
"""Id, predicted label and probabilities, as read back."""


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != CSV_HEADER:
            raise MtlReError(f"{path.name}: header is {reader.fieldnames}, expected {list(CSV_HEADER)}")
        for row in reader:
            yield row["id"], row["pred_label"], _listed(row["probs"])


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            yield row["id"], row["label"], list(row["probs"].values())


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=_CHUNK, columns=["id", "label", "probs"]):
            for row in batch.to_pylist():
                yield row["id"], row["label"], list(row["probs"].values())


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
}


def _listed(text: str | None) -> list[float]:
    """The numbers of a `probs` cell; empty if it is not a list of numbers (`nan` and `inf` are read as such)."""
    inside = (text or "").strip()
    if not (inside.startswith("[") and inside.endswith("]")):
        return []
    try:
        return [float(part) for part in inside[1:-1].split(",")]
    except ValueError:
        return []
