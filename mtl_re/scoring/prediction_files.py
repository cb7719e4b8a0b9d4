"""Files of predictions → rows: what `compare`, `errors`, `cooccurrence` and `vote` read.

Enters: .jsonl or .parquet as `writers` writes them, or a contest submission (.csv), whose list of probabilities has no
names: their order is the contest's, or the one that is given. Leaves: one map a row (`id`, `label`, `probs` by label,
`gold` where the file has it) and where it stands, checked by `parsed_row`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.data.raw_rows import parquet_rows
from mtl_re.data.validation import Example
from mtl_re.encodings import file_encoding
from mtl_re.errors import MtlReError, tell
from mtl_re.scoring.metrics import Floats
from mtl_re.scoring.writers import CSV_HEADER
from mtl_re.taxonomy import LABEL_ORDERS, Taxonomy

CONTEST = LABEL_ORDERS["boostcamp"]
COMPARED = 100
"""Rows of a submission by which the order of its probabilities is checked."""
SUM_ERROR = 0.02
"""How far a row's probabilities may be from adding up to 1: submissions are often rounded."""

Row = dict[str, Any]


def prediction_rows(path: Path, order: Sequence[str] = CONTEST) -> Iterator[tuple[str, Row]]:
    """Yield ("file:row", row) of each prediction; blank lines are skipped.

    Args:
        path: .csv, .parquet, or anything else as .jsonl.
        order: labels of a submission's probabilities.

    Raises:
        MtlReError: The file cannot be read as what its suffix says.
    """
    reader = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _json_rows)
    number = 0
    try:
        for number, row in reader(path, order):
            yield f"{path}:{number}", row
    except csv.Error as error:
        raise MtlReError(f"{path}: after row {number}: not CSV ({error})") from error
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise MtlReError(f"{path}: cannot be read as UTF-8 text ({what})") from error


def _json_rows(path: Path, order: Sequence[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding=file_encoding(path)) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise MtlReError(f"{path}:{number}: not JSON ({error.msg}, column {error.colno})") from error
            if not isinstance(row, dict):
                raise MtlReError(f"{path}:{number}: {type(row).__name__}; expected one JSON object a line")
            yield number, row


def _csv_rows(path: Path, order: Sequence[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding=file_encoding(path), newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != CSV_HEADER:
            raise MtlReError(f"{path}: header is {reader.fieldnames}, expected {list(CSV_HEADER)}")
        lists = _csv_lists(path, reader, len(order))
        first = list(islice(lists, COMPARED))
        _check_order(path, first, order)
        for number, row, values in chain(first, lists):
            yield number, {"id": row["id"], "label": row["pred_label"], "probs": dict(zip(order, values, strict=True))}


def _csv_lists(
    path: Path, rows: Iterable[dict[str, str]], labels: int
) -> Iterator[tuple[int, dict[str, str], list[Any]]]:
    """Yield number, cells and probabilities of each row of a submission."""
    for number, row in enumerate(rows, start=1):
        try:
            values = json.loads(row["probs"])
        except (TypeError, ValueError) as error:
            raise MtlReError(f"{path}:{number}: probs: not a list of numbers ({error})") from error
        if not isinstance(values, list) or len(values) != labels:
            found = len(values) if isinstance(values, list) else type(values).__name__
            raise MtlReError(f"{path}:{number}: probs: {found} values; expected {labels}, one a label (see --heads)")
        yield number, row, values


def _check_order(path: Path, rows: Sequence[tuple[int, dict[str, str], list[Any]]], order: Sequence[str]) -> None:
    """Hold the predicted labels against the probabilities: read in another order, those would be other labels'.

    Raises:
        MtlReError: another known order fits, and this one does not.
    """
    sound = [(row["pred_label"], values) for _, row, values in rows if all(type(one) in (int, float) for one in values)]
    if not sound:
        return

    def fit(names: Sequence[str]) -> float:
        return sum(names[values.index(max(values))] == label for label, values in sound) / len(sound)

    given, others = fit(order), {name: fit(one) for name, one in LABEL_ORDERS.items() if set(one) == set(order)}
    better = max(others, key=lambda name: others[name], default=None)
    what = f"pred_label is the most probable label in {100 * given:.0f} % of the first {len(sound)} rows"
    if better is not None and given < 0.5 < 0.8 <= others[better]:
        cure = f"in the order `{better}` in {100 * others[better]:.0f} %; give --label_order {better}"
        raise MtlReError(f"{path}: probs: {what}, {cure}")
    if given < 0.5:
        tell(f"warning: {path}: {what}; are its probabilities in another order than the labels?")


def _parquet_rows(path: Path, order: Sequence[str]) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa

    number = 0
    try:
        for number, row in enumerate(parquet_rows(path), 1):
            yield number, row
    except pa.ArrowException as error:
        raise MtlReError(f"{path}: after row {number}: not sound Parquet ({error})") from error


def label_index(where: str, row: Mapping[str, Any]) -> dict[str, int]:
    """Return label → index of a file, from its first row."""
    probs = row.get("probs")
    if not isinstance(probs, dict) or len(probs) < 2:
        raise MtlReError(f"{where}: probs: {_short(probs)}; expected an object of label: probability")
    return {label: position for position, label in enumerate(probs)}


def check_labels(where: str, row: Mapping[str, Any], taxonomy: Taxonomy) -> None:
    """Raise MtlReError unless a row has a probability for each label of a taxonomy, and its coarse classes, if any."""
    if odd := sorted(label_index(where, row).keys() ^ set(taxonomy.labels)):
        raise MtlReError(f"{where}: probs: {len(odd)} label(s) differ from those of --heads, first {odd[0]!r}")
    coarse = row.get("coarse")
    if isinstance(coarse, dict) and coarse and coarse.keys() != taxonomy.groups.keys():
        what = f"coarse: the classes are {', '.join(coarse)}, those of --heads {', '.join(taxonomy.groups)}"
        raise MtlReError(f"{where}: {what}; give the label set of these predictions with --heads")


def parsed_row(
    line: tuple[str, Mapping[str, Any]], index: Mapping[str, int], labels: Sequence[str] = ("gold", "label")
) -> tuple[str, list[int], Floats]:
    """Return the id, the indices of the fields in `labels`, and the probabilities (L,) of one row.

    Raises:
        MtlReError: A field is missing or at fault.
    """
    where, row = line
    name = row.get("id")
    if not isinstance(name, str | int):
        raise MtlReError(f"{where}: id: {_short(name)}; expected a string or an integer")
    found = []
    for key in labels:
        label = row.get(key)
        if not isinstance(label, str) or label not in index:
            raise MtlReError(f"{where}: {key}: {_short(label)}; expected one of the {len(index)} labels of 'probs'")
        found.append(index[label])
    probs = row.get("probs")
    if not isinstance(probs, dict) or probs.keys() != index.keys():
        odd = sorted(probs.keys() ^ index.keys()) if isinstance(probs, dict) else _short(probs)
        raise MtlReError(f"{where}: probs: {odd} differ from the labels of the first row; every row needs the same")
    for label, value in probs.items():
        if type(value) not in (int, float) or not 0 <= value <= 1 + 1e-6:  # the range is False for NaN as well
            raise MtlReError(f"{where}: probs: {label!r} is {_short(value)}; expected a probability 0-1")
    values = np.array([probs[label] for label in index], dtype=np.float64)
    if abs(total := float(values.sum()) - 1) > SUM_ERROR:
        raise MtlReError(f"{where}: probs: they add up to {1 + total:.4g}; expected probabilities, which add up to 1")
    return str(name), found, values


def with_gold(where: str, row: Mapping[str, Any], number: int, examples: Sequence[Example], data: str) -> Row:
    """Return a prediction with a gold label: its own, or that of the row of DATA with this number.

    Raises:
        MtlReError: there is no such row, or it has another id or label.
    """
    if number >= len(examples):
        raise MtlReError(f"{where}: id: {row.get('id')!r} has no row; {data} ends after {len(examples):,} row(s)")
    example = examples[number]
    gold = example.label if row.get("gold") is None else row["gold"]
    differs = {"id": (str(row.get("id")), example.id), "gold": (gold, example.label or gold)}
    for key, (given, expected) in differs.items():
        if given != expected:
            what = f"{given!r}, but {example.where} has {expected!r}"
            raise MtlReError(f"{where}: {key}: {what}; both must hold the same rows in the same order")
    return {**row, "gold": gold}


class PredictedRows:
    """The rows of DATA beside the predictions that were made of them, in one order.

    Where rows may be left out (`skip`), those without a prediction are passed over: prediction leaves out what does not
    fit into its model's length, which DATA alone does not tell.

    Attributes:
        places: Of the rows that have a prediction.
    """

    def __init__(self, examples: Sequence[Example], data: str, skip: bool) -> None:
        self.examples, self.data, self.skip = examples, data, skip
        self.places: list[int] = []

    def take(self, where: str, row: Mapping[str, Any]) -> Row:
        """Return the next prediction with a gold label (see `with_gold`)."""
        place = self.places[-1] + 1 if self.places else 0
        if self.skip:
            name = str(row.get("id"))
            place = next((at for at in range(place, len(self.examples)) if self.examples[at].id == name), place)
        taken = with_gold(where, row, place, self.examples, self.data)
        self.places.append(place)
        return taken

    def check_end(self, where: str) -> None:
        """Raise MtlReError where the predictions end before DATA does; under `skip`, say how many rows have none, and
        raise it where one of these shares its id with a row that has one.

        Args:
            where: The last prediction.
        """
        missing = sorted(set(range(len(self.examples))) - set(self.places))
        if not missing:
            return
        if not self.skip:
            what = f"the file ends after {len(self.places):,} row(s)"
            raise MtlReError(f"{where}: {what}; {self.examples[missing[0]].where} has no prediction")
        names = {self.examples[place].id for place in self.places}
        for example in (self.examples[place] for place in missing):
            if example.id in names:
                what = f"id {example.id!r} stands in several rows, of which some have no prediction"
                raise MtlReError(f"{example.where}: {what}: which ones, is unknown; give each row its own id")
        tell(f"{self.data}: {len(missing):,} of {len(self.examples):,} rows have no prediction and are left out")


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
