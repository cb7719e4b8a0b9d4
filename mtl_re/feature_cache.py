"""Tokenised rows kept between runs, found again by content: the same rows under the same settings are read, not made.

The key covers every row and all that turns it into features (tokenizer, markers, query, length, entity types, heads):
there is nothing to invalidate. A file appears by rename: two processes that make it at once write the same bytes. A
cache that cannot be written or read is no fault; the rows are tokenised instead. Where: `$MTL_RE_CACHE`, else
`~/.cache/mtl-re`.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtl_re.errors import RowError
from mtl_re.features import FeatureTable, Featurizer

if TYPE_CHECKING:
    from mtl_re.data import Example

VERSION = 1
"""Part of the key: raise it whenever the same rows and settings give other features."""
SMALL = 2000
"""Fewer rows than this are tokenised faster than their cache is worth."""


def folder() -> Path:
    """Where tables are kept."""
    return Path(os.environ.get("MTL_RE_CACHE") or Path.home() / ".cache" / "mtl-re")


def cached_table(
    featurizer: Featurizer, examples: Sequence[Example], reject: Callable[[Example, RowError], None] | None = None
) -> FeatureTable:
    """`featurizer.table(examples, reject)`, from the cache if it is there.

    Rows that `reject` would be told of are not cached with a table: such data is tokenised each time.
    """
    if len(examples) < SMALL:
        return featurizer.table(examples, reject)
    path = folder() / f"{key(featurizer, examples)}.npz"
    if (found := _read(path)) is not None and len(found) == len(examples):
        return found
    table = featurizer.table(examples, reject)
    if len(table) == len(examples):
        _write(path, table)
    return table


def key(featurizer: Featurizer, examples: Sequence[Example]) -> str:
    """SHA-256 over settings and rows."""
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
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return FeatureTable(**{field.name: stored[field.name] for field in fields(FeatureTable)})
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None  # RuntimeError: one flipped bit makes a zip file an encrypted one, or one of another version


def _write(path: Path, table: FeatureTable) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(table, field.name) for field in fields(FeatureTable)})
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
