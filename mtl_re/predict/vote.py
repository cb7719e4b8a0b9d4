"""`mtl-re vote`: a weighted soft vote over files of predictions.

Enters: predictions (.jsonl, .parquet) and contest submissions (.csv) of the same rows. Leaves: one such file, with the
weighted mean of the probabilities and the label that the gate picks of it. No model is loaded: the members may come
from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtl_re.config import Gate, VoteConfig
from mtl_re.errors import MtlReError
from mtl_re.scoring import gating
from mtl_re.scoring.prediction_files import check_labels, parsed_row, prediction_rows
from mtl_re.scoring.writers import Prediction, check_suffix, label_order, write_predictions
from mtl_re.taxonomy import Taxonomy


def vote_files(files: Sequence[str], taxonomy: Taxonomy, options: VoteConfig) -> int:
    """Write the vote and return the number of its rows.

    Args:
        files: with the same ids in the same order.
        taxonomy: the labels; every file must have exactly these.

    Raises:
        MtlReError: a file cannot be read or is malformed (file and row are named), the files do not hold the same rows,
            or the number of weights is not that of the files.
    """
    weights = vote_shares(options.weights, len(files))
    output = Path(options.output)
    check_suffix(output)
    order = label_order(options.label_order, taxonomy, output.suffix)
    read = label_order(options.label_order, taxonomy, ".csv")  # of submissions among the files
    voted = _voted([Path(file) for file in files], weights, taxonomy, read, options.gate)
    return write_predictions(voted, output, taxonomy, order)


def vote_shares(weights: str | None, members: int) -> np.ndarray:
    """Return the weights of a vote's members, such as `2,1`, scaled to sum to 1; None: equal. Shape: (members,).

    Raises:
        MtlReError: their number is another, or one is not positive and finite.
    """
    if weights is None:
        return np.full(members, 1 / members)
    try:
        given = np.array([float(part) for part in weights.split(",")])
    except ValueError as error:
        raise MtlReError(f"--weights: {weights!r}; expected numbers such as 2,1") from error
    if len(given) != members:
        raise MtlReError(f"--weights: {len(given)} weight(s) for {members} members of the vote; give one each")
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise MtlReError(f"--weights: {weights}; expected finite numbers above 0")
    return given / given.sum()


def _agreed_gold(lines: Sequence[tuple[str, dict[str, Any]]], index: Mapping[str, int]) -> str | None:
    """Return the gold label of a row that those files give which have any."""
    given = [(where, row["gold"]) for where, row in lines if row.get("gold") is not None]
    for where, gold in given:
        if gold not in index:
            raise MtlReError(f"{where}: gold: {gold!r} is not one of the {len(index)} labels")
        if gold != given[0][1]:
            raise MtlReError(f"{where}: gold: {gold!r}, but {given[0][0]} has {given[0][1]!r}")
    return None if not given else str(given[0][1])


def _voted(
    paths: Sequence[Path], weights: np.ndarray, taxonomy: Taxonomy, read: Sequence[str], gate: Gate
) -> Iterator[Prediction]:
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    for number, lines in enumerate(zip_longest(*(prediction_rows(path, read) for path in paths)), start=1):
        if None in lines:
            ended, there = paths[lines.index(None)], next(line for line in lines if line is not None)
            raise MtlReError(f"{there[0]}: id: {there[1].get('id')!r} has no counterpart; {ended} ends before it")
        if number == 1:
            for where, row in lines:
                check_labels(where, row, taxonomy)
        rows = [parsed_row(line, index, ()) for line in lines]
        for (where, _), (id, _, _) in zip(lines, rows, strict=True):
            if id != rows[0][0]:
                what = f"{id!r}, but {lines[0][0]} has {rows[0][0]!r}"
                raise MtlReError(f"{where}: id: {what}; all files must hold the same rows in the same order")
        probs = weights @ np.stack([values for _, _, values in rows])
        probs = probs / probs.sum()
        gold = _agreed_gold(lines, index)
        label = int(gating.labels(torch.from_numpy(probs)[None], taxonomy, gate))
        yield Prediction.of(rows[0][0], probs, label, taxonomy, gold)
