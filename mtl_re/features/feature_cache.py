"""Tokenised rows kept between runs: the same rows under the same settings are mapped into memory, not tokenised again.

Enters: a featurizer and its examples. Leaves: the `FeatureTable` that `Featurizer.table` would return, its arrays
mapped from files. A table is found by content (a digest of every row and of all that turns it into features), so there
is nothing to invalidate. Its directory, one `.npy` a column and their SHA-256 sums, appears by rename: of two processes
that make it at once either may win. A cache that cannot be written or read is no fault; the rows are tokenised instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir

import numpy as np

from mtl_re import files
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.features.featurizer import FeatureTable, Featurizer, Reject

VERSION = 1
"""Part of the key: raise it whenever the same rows and settings give other features."""
SMALL = 2000
"""Fewer rows than this are tokenised faster than their cache is worth."""
CHUNK = 4096
"""Rows that are tokenised in memory before they are written to a file."""
SUMS = "sha256.json"
COLUMNS = tuple(column.name for column in fields(FeatureTable))


def tables_dir() -> Path:
    """Return the directory of all tables."""
    return files.cache_dir() / "tables"


def cached_table(featurizer: Featurizer, examples: Sequence[Example], reject: Reject | None = None) -> FeatureTable:
    """Return `featurizer.table(examples, reject)`, from the cache where it has it.

    A table of which rows were rejected is not cached: `reject` must hear of them each time.

    Raises:
        MtlReError: a row does not fit and `reject` is None, or the tokenised rows fill the disk.
    """
    if len(examples) < SMALL:
        return featurizer.table(examples, reject)
    path = tables_dir() / table_key(featurizer, examples)
    if (cached := _read(path)) is not None and len(cached) == len(examples):
        return cached
    table = _tokenise(featurizer, examples, reject)
    if len(table) < len(examples):
        return table
    _write(path, table)
    return _read(path) or table


def _tokenise(featurizer: Featurizer, examples: Sequence[Example], reject: Reject | None) -> FeatureTable:
    """Return `featurizer.table(examples, reject)`, made chunk by chunk in files without a name."""
    if len(examples) <= CHUNK:
        return featurizer.table(examples, reject)
    empty, tokens = FeatureTable.from_rows([], len(featurizer.taxonomy.heads)), 0
    try:
        with ExitStack() as stack:
            columns = {name: stack.enter_context(TemporaryFile(prefix="mtl-re-table-")) for name in COLUMNS}
            for part in _chunks(featurizer, examples, reject):
                for name, file in columns.items():
                    array = getattr(part, name)
                    if name == "starts" and tokens:
                        array = array[1:] + tokens  # a table begins with one 0
                    file.write(array.tobytes())
                tokens += len(part.ids)
            for file in columns.values():
                file.flush()
            if not tokens:
                return empty
            flat = {name: np.memmap(file, getattr(empty, name).dtype, "r") for name, file in columns.items()}
            return FeatureTable(**{name: flat[name].reshape(-1, *getattr(empty, name).shape[1:]) for name in COLUMNS})
    except OSError as error:
        what = f"the tokenised rows cannot be written ({error.strerror or error})"
        raise MtlReError(f"{gettempdir()}: {what}; set TMPDIR to a directory with room") from error


def _chunks(featurizer: Featurizer, examples: Sequence[Example], reject: Reject | None) -> Iterator[FeatureTable]:
    rows = (features for _, features in featurizer.stream(examples, reject))
    while chunk := list(islice(rows, CHUNK)):
        yield FeatureTable.from_rows(chunk, len(featurizer.taxonomy.heads))


def table_key(featurizer: Featurizer, examples: Sequence[Example]) -> str:
    """Return the SHA-256 of settings and rows."""
    settings = {
        "version": VERSION,
        "tokenizer": featurizer.tokenizer.backend_tokenizer.to_str(),
        "scheme": featurizer.scheme,
        "query": featurizer.query,
        "max_length": featurizer.max_length,
        "types": sorted(featurizer.types),
        "taxonomy": featurizer.taxonomy.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in examples:
        spans = [(entity.start, entity.end, entity.type) for entity in (row.subject, row.object)]
        digest.update(json.dumps([row.sentence, spans, row.label]).encode())
    return digest.hexdigest()


def _read(path: Path) -> FeatureTable | None:
    """Map a table into memory, if it is there and its bytes agree with their sums."""
    try:
        sums = json.loads((path / SUMS).read_text(encoding="utf-8"))
        if any(files.digest(path / f"{name}.npy") != sums[name] for name in COLUMNS):
            return None
        return FeatureTable(**{name: np.load(path / f"{name}.npy", mmap_mode="r") for name in COLUMNS})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, table: FeatureTable) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=path.parent, ignore_cleanup_errors=True) as name:
            partial = Path(name) / path.name  # made anew: a temporary directory itself is its owner's alone
            partial.mkdir()
            for column in COLUMNS:
                np.save(partial / f"{column}.npy", getattr(table, column))
            sums = {column: files.digest(partial / f"{column}.npy") for column in COLUMNS}
            (partial / SUMS).write_text(json.dumps(sums), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)  # a damaged one, or another process's
            os.rename(partial, path)
