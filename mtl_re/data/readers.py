"""Bytes → raw rows: a path, a hub data set or the embedded sample becomes an iterator of field maps.

Enters: a DATA argument. Leaves: `RawRow`s whose fields are unchecked (`validation` says what they must be), in constant
memory for every format that people write by the row. Text is UTF-8, or UTF-16 or CP949 as Korean Excel writes them (a
note says so). A fault of the whole file raises `MtlReError` when it is reached, in one line; a fault
of one row (a line that is not JSON, a wrong number of columns) travels in `RawRow.fault`, so that the caller decides
whether to stop or to count it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, Literal

from mtl_re.config import SampleConfig
from mtl_re.data.json_rows import read_json, read_jsonl
from mtl_re.data.raw_rows import CHUNK, RawRow, Stream, fault, one_line
from mtl_re.data.table_rows import read_csv, read_parquet
from mtl_re.encodings import SNIFFED, encoding_of, tell_encoding
from mtl_re.errors import MtlReError

SAMPLE_SPLITS: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")


class NoRowsError(MtlReError):
    """A source that can be read holds no rows."""


def read_rows(spec: str, kind: str | None = None, any_columns: bool = False) -> Iterator[RawRow]:
    """Yield the rows of DATA.

    Args:
        spec: a path (.json, .jsonl, .csv, .tsv, .parquet, each also .gz), `hub:DATASET/CONFIG:SPLIT` or
            `sample:train|valid|test`.
        kind: the format of a file whose suffix does not say it, as a suffix.
        any_columns: whether the columns of a table may have other names than those of rows.

    Raises:
        MtlReError: the source cannot be read (where and why, in one line).
        NoRowsError: it holds no rows.
    """
    read = _read_hub if spec.startswith("hub:") else _read_sample if spec.startswith("sample:") else None
    empty = True
    for row in _read_file(spec, kind, any_columns) if read is None else read(spec):
        empty = False
        yield row
    if empty:
        raise NoRowsError(one_line(f"{spec}: holds no rows; expected at least one"))


def file_digest(spec: str) -> str:
    """Return the SHA-256 of DATA: of a file's bytes, or of the rows as JSON where there is no file.

    Raises:
        MtlReError: the source cannot be read.
    """
    digest = hashlib.sha256()
    if spec.startswith(("hub:", "sample:")):
        for row in read_rows(spec):
            digest.update(json.dumps(row.fields, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()
    with _faults_of(spec), _open_regular(spec) as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


# ---- files -------------------------------------------------------------------------------------------------------


def _read_file(source: str, kind: str | None, any_columns: bool) -> Iterator[RawRow]:
    name = os.path.basename(source).lower()
    kind = kind or os.path.splitext(name.removesuffix(".gz"))[1]
    if kind not in FORMATS:
        if not os.path.exists(source) and source.count("/") == 1 and not kind:
            raise fault(source, f"no such file; for a data set of the hub write hub:{source}:train")
        _open_regular(source).close()  # that a file is missing is the more useful message
        known = ", ".join(FORMATS)
        other = "; `mtl-re convert --from semeval` reads SemEval's text" if kind == ".txt" else ""
        raise fault(source, f"unknown file type {kind or name!r}; expected {known}, each also with .gz after it{other}")
    with _open_regular(source) as file:
        stream = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
        with stream, _faults_of(source, stream):
            if kind == ".parquet":
                yield from read_parquet(source, stream)
                return
            with _text(source, stream) as text:
                reader = TEXT_FORMATS[kind]
                yield from read_csv(source, text, any_columns) if reader is read_csv else reader(source, text)


def _open_regular(source: str) -> IO[bytes]:
    """Open a regular file; a pipe or device could block for ever or never end."""
    try:
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            raise fault(source, "is a directory; expected a file")
        if not stat.S_ISREG(mode):
            raise fault(source, "is not a regular file; copy its content to one")
        return open(source, "rb")
    except FileNotFoundError:
        hint = "give a path, hub:DATASET/CONFIG:SPLIT or sample:" + "|".join(SAMPLE_SPLITS)
        raise fault(source or "''", f"no such file; {hint}") from None
    except OSError as error:
        raise fault(source, f"cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a null byte in the path
        raise fault(repr(source), f"cannot be opened ({error})") from error


@contextmanager
def _faults_of(source: str, stream: Stream | None = None) -> Iterator[None]:
    """Turn what reading can raise into one line; `stream` gives the position of a byte that is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        # The block that failed to decode ends at the stream's position.
        where = (stream.tell() if stream is not None else len(error.object)) - len(error.object) + error.start
        hint = "save the file as UTF-8 (in Excel: `CSV UTF-8`; Korean Windows writes CP949 otherwise)"
        raise fault(source, f"byte {where} is not {error.encoding.upper()} ({error.reason}); {hint}") from error
    except gzip.BadGzipFile as error:
        raise fault(source, f"is not sound gzip ({error}); if it is not compressed, drop the .gz") from error
    except EOFError as error:
        raise fault(source, "is cut short (the gzip stream has no end); copy or download it again") from error
    except zlib.error as error:
        raise fault(source, f"is damaged ({error}); copy or download it again") from error
    except OSError as error:
        raise fault(source, f"cannot be read ({error.strerror or error})") from error


@contextmanager
def _text(source: str, stream: Stream) -> Iterator[io.TextIOWrapper]:
    """Decode UTF-8 with or without a byte order mark, or what `encoding_of` recognises; `stream` stays open."""
    start = b""
    with suppress(EOFError, OSError, zlib.error):  # a damaged file is named where it is read
        start = stream.read(SNIFFED)
    stream.seek(0)
    encoding = encoding_of(start)
    tell_encoding(source, encoding)
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    try:
        yield text
    finally:
        text.detach()


TEXT_FORMATS: dict[str, Callable[[str, io.TextIOWrapper], Iterator[RawRow]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
}
FORMATS = (*TEXT_FORMATS, ".parquet")


# ---- hub and sample ----------------------------------------------------------------------------------------------


def _read_hub(spec: str) -> Iterator[RawRow]:
    """Yield a hub split: `hub:klue/re:train` is data set `klue`, configuration `re`; the first may hold a slash."""
    name, _, split = spec.removeprefix("hub:").partition(":")
    dataset, _, config = name.rpartition("/")
    if not (dataset and config and split):
        raise fault(spec, "expected hub:DATASET/CONFIG:SPLIT, for example hub:klue/re:train")
    import datasets

    number = 0
    try:
        rows = datasets.load_dataset(dataset, config, split=split, streaming=True)
        names = getattr((getattr(rows, "features", None) or {}).get("label"), "names", None)
        for fields in rows:
            number += 1
            yield RawRow(spec, number, _with_label_name(dict(fields), names))
    except Exception as error:  # the hub client raises dozens of kinds: network, name, licence, format
        after = f"after row {number}: " if number else ""
        what = f"{after}the hub data set cannot be read ({type(error).__name__}: {error}); check name and network"
        raise fault(spec, what) from error


def _with_label_name(fields: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Replace the number of a ClassLabel by its name; -1 means unlabelled there."""
    number = fields.get("label")
    if names is not None and number == -1:
        fields["label"] = None
    elif names is not None and isinstance(number, int) and 0 <= number < len(names):
        fields["label"] = names[number]
    return fields


def _read_sample(spec: str) -> Iterator[RawRow]:
    name = spec.removeprefix("sample:")
    split = next((split for split in SAMPLE_SPLITS if split == name), None)
    if split is None:
        raise fault(spec, f"unknown split {name!r}; expected one of {', '.join(SAMPLE_SPLITS)}")
    from mtl_re.data import sample

    config = SampleConfig()
    for number, fields in enumerate(sample.rows(split, getattr(config, split), config.seed), start=1):
        yield RawRow(spec, number, fields)
