"""Tokenised rows kept between runs, found again by content: the same rows under the same settings are read, not made.

The key covers every row and all that turns it into features (tokenizer, markers, query, length, entity types, heads):
there is nothing to invalidate. A file appears by rename: two processes that make it at once write the same bytes. A
cache that cannot be written or read is no fault; the rows are tokenised instead. Where: `$MTL_RE_CACHE`, else
`~/.cache/mtl-re`. Tables are mapped into memory, not read into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, TYPE_CHECKING

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.features.featurizer import FeatureTable, Featurizer, Reject

if TYPE_CHECKING:
    from mtl_re.data.validation import Example

VERSION = 1
"""Part of the key: raise it whenever the same rows and settings give other features."""
SMALL = 2000
"""Fewer rows than this are tokenised faster than their cache is worth."""
CHUNK = 4096
"""Rows tokenised before they are laid on the disk."""


def folder() -> Path:
    """Where tables are kept."""
    return Path(os.environ.get("MTL_RE_CACHE") or Path.home() / ".cache" / "mtl-re")


def cached_table(featurizer: Featurizer, examples: Sequence[Example], reject: Reject | None = None) -> FeatureTable:
    """`featurizer.table(examples, reject)`, from the cache if it is there.

    Rows that `reject` would be told of are not cached with a table: such data is tokenised each time.
    """
    if len(examples) < SMALL:
        return featurizer.table(examples, reject)
    path = folder() / f"{key(featurizer, examples)}.npz"
    if (found := _read(path)) is not None and len(found) == len(examples):
        return found
    table = _laid_out(featurizer, examples, reject)
    if len(table) < len(examples):
        return table
    _write(path, table)
    return _read(path) or table


def _laid_out(featurizer: Featurizer, examples: Sequence[Example], reject: Reject | None) -> FeatureTable:
    """`featurizer.table(examples, reject)`, chunk by chunk into files without a name.

    Raises:
        MtlReError: they cannot be written.
    """
    rows = (features for _, features in featurizer.stream(examples, reject))
    parts = iter(lambda: FeatureTable.from_rows(list(islice(rows, CHUNK)), len(featurizer.taxonomy.heads)), None)
    first = next(parts)
    if len(first) < CHUNK:
        return first
    try:
        with ExitStack() as files:
            columns = {f.name: files.enter_context(TemporaryFile(prefix="mtl-re-table-")) for f in fields(FeatureTable)}
            shapes = dict.fromkeys(columns, 0)
            part, tokens = first, 0
            while len(part):
                for name, file in columns.items():
                    array = getattr(part, name)
                    if name == "starts":
                        array = array[1:] + tokens if tokens else array
                    file.write(np.ascontiguousarray(array).data)
                    shapes[name] += len(array)
                tokens, part = tokens + len(part.ids), next(parts)
            for file in columns.values():
                file.flush()
            return FeatureTable(
                **{
                    name: np.memmap(
                        file, getattr(first, name).dtype, "r", shape=(shapes[name], *getattr(first, name).shape[1:])
                    )
                    for name, file in columns.items()
                }
            )
    except OSError as error:
        what = f"the tokenised rows cannot be written ({error.strerror or error})"
        raise MtlReError(f"{gettempdir()}: {what}; set TMPDIR to a place with room") from error


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
    """A table whose bytes have been checked against their sums, mapped into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
            members = {entry.filename.removesuffix(".npy"): entry.header_offset for entry in archive.infolist()}
        with path.open("rb") as file:
            return FeatureTable(**{field.name: _mapped(file, members[field.name]) for field in fields(FeatureTable)})
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile):
        return None  # RuntimeError: one flipped bit makes a zip file an encrypted one, or one of another version


def _mapped(file: IO[bytes], offset: int) -> np.ndarray:
    """The array of a member that is stored in a zip file as it is, at the offset of the member's header."""
    file.seek(offset)
    name, extra = struct.unpack("<26x2H", file.read(30))  # the lengths of what follows the header
    file.seek(offset + 30 + name + extra)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", file.tell(), shape)


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
