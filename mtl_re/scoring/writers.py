"""Predictions → files: contest submission (.csv), .jsonl, .parquet.

A file appears whole or not at all: rows go to a temporary file beside it, which is read back and checked (row count,
ids in order, finite probabilities that sum to 1, known labels), and only then is it renamed. Before that, rows are
lines of CSV or JSON (`encode_rows`), so that parts of an output can be kept on disk. No more than a chunk of rows
(parquet: one row group) is in memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_re.data.raw_rows import parquet_rows
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.files import whole_file
from mtl_re.taxonomy import KLUE, LABEL_ORDERS, Taxonomy

if TYPE_CHECKING:
    from mtl_re.scoring.decoding import Decoded

SUFFIXES = (".csv", ".jsonl", ".parquet")
CSV_HEADER = ("id", "pred_label", "probs")
_GROUP = 4096  # rows of a parquet row group
_CHUNK = 1024  # rows that are encoded at once


@dataclass(frozen=True)
class Prediction:
    """The prediction for one row.

    Attributes:
        id: The row's id. label: The predicted label. score: Its probability. gold: The row's own label, if known.
        coarse: Coarse class → probability. probs: Label → probability, in taxonomy order.
    """

    id: str
    label: str
    score: float
    gold: str | None
    coarse: dict[str, float]
    probs: dict[str, float]

    @classmethod
    def of(cls, id: str, probs: np.ndarray, label: int, taxonomy: Taxonomy, gold: str | None) -> Prediction:
        """Make the prediction from a row's probabilities (labels,) and the index of the predicted label."""
        coarse = dict.fromkeys(taxonomy.groups, 0.0)
        names = list(taxonomy.groups)
        for position, group in enumerate(taxonomy.group_of_label):
            coarse[names[group]] += float(probs[position])
        values = dict(zip(taxonomy.labels, map(float, probs), strict=True))
        return cls(id, taxonomy.labels[label], float(probs[label]), gold, coarse, values)

    def record(self) -> dict[str, Any]:
        """Return the values of a line of predictions .jsonl; `gold` only if known."""
        gold = {} if self.gold is None else {"gold": self.gold}
        return {
            "id": self.id,
            "label": self.label,
            **gold,
            "score": self.score,
            "coarse": self.coarse,
            "probs": self.probs,
        }


def predictions_of(decoded: Decoded, examples: Sequence[Example]) -> Iterator[Prediction]:
    """Yield one prediction a row, in order. Tensors become numbers here."""
    probs, labels = decoded.probs.numpy(), decoded.labels.tolist()
    for row, example in enumerate(examples):
        yield Prediction.of(example.id, probs[row], labels[row], decoded.taxonomy, example.label)


def label_order(option: str | None, taxonomy: Taxonomy, suffix: str) -> tuple[str, ...]:
    """Return the order in which probabilities are written.

    Raises:
        MtlReError: The option names an order of other labels than this model's.
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
        predictions: In the order of the input.
        path: .csv, .jsonl or .parquet; an existing file is replaced once the new one is whole.
        taxonomy: The model's.
        order: Label order of the probabilities (None: `label_order`'s default).

    Raises:
        MtlReError: The suffix is unknown, the file cannot be written, or it fails its check.
    """
    check_suffix(path)
    order = order or label_order(None, taxonomy, path.suffix)
    digest = IdDigest()
    rows = iter(predictions)

    def chunks() -> Iterator[bytes]:
        while chunk := list(islice(rows, _CHUNK)):
            for prediction in chunk:
                digest.add(prediction.id)
            yield encode_rows(chunk, path.suffix, order)

    publish(chunks(), path, taxonomy, order, lambda: [(digest.count, digest.hexdigest())])
    return digest.count


def publish(
    chunks: Iterable[bytes],
    path: Path,
    taxonomy: Taxonomy,
    order: Sequence[str],
    expected: Callable[[], Iterable[tuple[int, str]]],
) -> None:
    """Put encoded predictions into a file that appears whole and checked, or not at all.

    Args:
        chunks: Rows as `encode_rows` returns them, in order.
        path, taxonomy, order: As for `write_predictions`.
        expected: Called when all chunks are written; returns for each run of rows their number and their `IdDigest`.

    Raises:
        MtlReError: The file cannot be written or fails its check; an old file stands.
    """
    with whole_file(path) as partial:
        write_table(chunks, partial, path.suffix, CSV_HEADER, lambda: _parquet_schema(list(taxonomy.groups), order))
        check_file(partial, path.suffix, order, expected())


def write_table(
    chunks: Iterable[bytes], path: Path, suffix: str, header: Sequence[str], schema: Callable[[], Any]
) -> None:
    """Write encoded rows into a new file.

    Args:
        chunks: Lines of a .csv without its header, or JSON lines for the other formats.
        suffix: Names the format (the file may have a temporary name).
        header: Columns of a .csv.
        schema: Returns the pyarrow schema of a .parquet; a column that a row lacks is null.
    """
    with _parquet_sink(path, schema()) if suffix == ".parquet" else _text_sink(path, suffix, header) as add:
        for chunk in chunks:
            add(chunk)


def check_suffix(path: Path) -> None:
    """Raise MtlReError unless predictions can be written in the format that the suffix names."""
    if path.suffix not in SUFFIXES:
        raise MtlReError(f"{path}: unknown kind of output {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")


class IdDigest:
    """A count and a hash of ids, by which their order can be compared without keeping them."""

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


def csv_line(values: Sequence[object]) -> str:
    """Return a line of a .csv; a value with a carriage return is quoted, which a reader would take for a row's end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # with this end of line, csv quotes values that hold \r
    return text.getvalue().removesuffix("\r\n") + "\n"


def encode_rows(predictions: Iterable[Prediction], suffix: str, order: Sequence[str]) -> bytes:
    """Return rows as bytes: lines of a .csv without its header, or JSON lines for the other formats.

    Raises:
        MtlReError: Probabilities are not finite or do not sum to 1; the message names the row's id.
    """
    known = set(order)
    text = io.StringIO()
    for prediction in predictions:
        probs = [prediction.probs[label] for label in order]
        if fault := _fault_of(prediction.label, probs, known):
            raise MtlReError(
                f"prediction of row {prediction.id}: {fault}; the checkpoint or the arithmetic is at fault"
            )
        if suffix == ".csv":
            text.write(csv_line([prediction.id, prediction.label, str(probs)]))
        else:
            record = prediction.record() | {"probs": dict(zip(order, probs, strict=True))}
            text.write(json.dumps(record, ensure_ascii=False) + "\n")
    return text.getvalue().encode()


Add = Callable[[bytes], object]
"""Writes encoded rows."""


@contextmanager
def _text_sink(path: Path, suffix: str, header: Sequence[str]) -> Iterator[Add]:
    """Open a file of lines, to which encoded rows are written as they are."""
    file = path.open("wb")
    try:
        if suffix == ".csv":
            file.write((",".join(header) + "\n").encode())
        yield file.write
    except BaseException:
        with suppress(OSError):  # the first fault is the one to report
            file.close()
        raise
    file.close()


@contextmanager
def _parquet_sink(path: Path, schema: Any) -> Iterator[Add]:
    """Open a parquet file with row groups of a fixed size, whatever the size of the chunks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records, absent = list[dict[str, Any]](), dict.fromkeys(schema.names)

    def add(chunk: bytes) -> None:
        for line in chunk.split(b"\n")[:-1]:
            records.append(absent | json.loads(line))
            if len(records) == _GROUP:
                write()

    def write() -> None:
        writer.write_table(pa.Table.from_pylist(records, schema))
        records.clear()

    with pq.ParquetWriter(path, schema) as writer:
        yield add
        write()


def _parquet_schema(coarse: Sequence[str], order: Sequence[str]) -> Any:
    import pyarrow as pa

    def shares(names: Sequence[str]) -> Any:
        return pa.struct([(name, pa.float64()) for name in names])

    texts = [(name, pa.string()) for name in ("gold", "id", "label")]
    return pa.schema([*texts, ("score", pa.float64()), ("coarse", shares(coarse)), ("probs", shares(order))])


# ---- checking ----------------------------------------------------------------------------------------------------


def check_file(path: Path, suffix: str, order: Sequence[str], expected: Iterable[tuple[int, str]]) -> None:
    """Read a file of predictions back: labels, probabilities, number of rows, ids in order.

    Args:
        suffix: Names its format (the file may have a temporary name).
        expected: For each run of rows their number and their `IdDigest`.

    Raises:
        MtlReError: The file is at fault; the message names the row and column.
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
    """Return what is wrong with a row of an output, if anything."""
    if label not in known:
        return f"pred_label: {label!r} is not one of the {len(known)} labels"
    if len(probs) != len(known) or not all(math.isfinite(p) and 0 <= p <= 1 + 1e-9 for p in probs):
        return f"probs: expected {len(known)} finite probabilities"
    if abs(sum(probs) - 1) > 1e-6:
        return f"probs: they sum to {sum(probs)}, not 1"
    return None


OutputRow = tuple[str, str, Sequence[float]]
"""Id, predicted label and probabilities, as read back."""


def _csv_rows(path: Path) -> Iterator[OutputRow]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != CSV_HEADER:
            raise MtlReError(f"{path.name}: header is {reader.fieldnames}, expected {list(CSV_HEADER)}")
        for row in reader:
            yield row["id"], row["pred_label"], _listed(row["probs"])


def _json_rows(path: Path) -> Iterator[OutputRow]:
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            yield row["id"], row["label"], list(row["probs"].values())


def _parquet_rows(path: Path) -> Iterator[OutputRow]:
    for row in parquet_rows(path, ["id", "label", "probs"]):
        yield row["id"], row["label"], list(row["probs"].values())


_READERS: dict[str, Callable[[Path], Iterator[OutputRow]]] = {
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
}


def _listed(text: str | None) -> list[float]:
    """Return the numbers of a `probs` cell (`nan` and `inf` included), or none if it is not a list of numbers."""
    inside = (text or "").strip()
    if not (inside.startswith("[") and inside.endswith("]")):
        return []
    try:
        return [float(part) for part in inside[1:-1].split(",")]
    except ValueError:
        return []
