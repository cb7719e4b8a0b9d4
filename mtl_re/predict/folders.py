"""A folder of files in, a folder of files out: which output belongs to which input, and which outputs are finished.

Enters: a folder of rows or documents (or one file), and the output folder. Leaves: a `Unit` a file, the work of one
`windows.WindowJob`, whose output has the name of its input. Beside each finished output lies what it was made of
(`outputs.sign`), by which `--resume` knows it. Lists of rows left out go to a folder of their own, `_rejected`, so that
the outputs are all that a reader of the folder meets: names that begin with `.` or `_` are passed over, here too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from mtl_re.config import ExtractConfig, PredictConfig
from mtl_re.data.readers import FORMATS, file_digest
from mtl_re.data.walk import files_of
from mtl_re.errors import MtlReError
from mtl_re.files import digest, write_json
from mtl_re.outputs import sign, signature, signature_path, signed_files
from mtl_re.predict.parts import PartFiles, compare
from mtl_re.scoring.writers import SUFFIXES

REJECTED = "_rejected"
"""Folder of the lists of rows left out, in the output folder."""


@dataclass(frozen=True)
class Unit:
    """One file of the input and what becomes of it.

    Attributes:
        data: The input. folder: The output folder. name: The output's name in it, which may begin with folders.
        source: The input's name in its own folder, with `/` between folders.
    """

    data: str
    folder: str
    name: str
    source: str

    @property
    def output(self) -> Path:
        """The file to make."""
        return Path(self.folder, self.name)

    @property
    def rejected(self) -> Path:
        """Where the rows left out are listed, if there are any."""
        return Path(self.folder, REJECTED, f"{self.name}.rejected.jsonl")


def units_of(options: PredictConfig | ExtractConfig) -> list[Unit]:
    """Return the units of a command in the order of their paths, which are absolute.

    Raises:
        MtlReError: There is no file of rows, two files would have one output, or a path is none of a folder.
    """
    data, folder = os.path.abspath(options.data or ""), os.path.abspath(options.output or "")
    _check_places(options.data or "", data, folder)
    units: dict[str, Unit] = {}
    for relative, path in _files(data, (*FORMATS, ".txt") if isinstance(options, ExtractConfig) else FORMATS):
        stem, suffix = os.path.splitext(relative.removesuffix(".gz"))
        form = options.ray.format or ("parquet" if suffix.lower() == ".parquet" else "jsonl")
        unit = Unit(path, folder, f"{stem}.{form}", Path(relative).as_posix())
        if (twin := units.setdefault(unit.name, unit)) is not unit:
            what = f"--data {options.data}: the outputs of {twin.data} and {path} would both be {unit.output}"
            raise MtlReError(f"{what}; rename one, or move it into a folder of its own")
    return list(units.values())


def _check_places(given: str, data: str, folder: str) -> None:
    """Raise MtlReError unless rows and output are places on a disk, apart from each other, and the output a folder."""
    if given.startswith(("hub:", "sample:")):
        raise MtlReError(f"--data {given}: --engine ray reads a folder or a file; write the rows into files first")
    if os.path.isfile(folder) or os.path.splitext(folder)[1] in SUFFIXES:
        raise MtlReError(
            f"--output {folder}: --engine ray writes a folder, one file for each input file; name a folder"
        )
    real = [os.path.realpath(path) for path in (data, folder)]
    if os.path.isdir(data) and os.path.commonpath(real) in real:
        raise MtlReError(f"--output {folder}: lies in the input folder, or holds it ({data}); name another folder")


def _files(data: str, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Return (path in the folder, path) of every file that can be read; tell on stderr how many cannot.

    Raises:
        MtlReError: There is none, or a folder cannot be read.
    """
    if not os.path.isdir(data):
        return [(os.path.basename(data), data)]
    packed = tuple(f"{kind}.gz" for kind in kinds if kind != ".txt")  # text is read as it is
    found = files_of(data, lambda name: name.endswith((*kinds, *packed)), "rows")
    if not found:
        raise MtlReError(f"--data {data}: holds no file of rows ({', '.join(kinds)})")
    return found


def output_names(options: PredictConfig | ExtractConfig) -> tuple[str, ...]:
    """Return the names of all files that a command may write in its output folder; none where the output is a file.

    Raises:
        MtlReError: As `units_of`.
    """
    if options.engine != "ray":
        return ()
    units = units_of(options)
    paths = [path for unit in units for path in (unit.output, unit.rejected)]
    return tuple(escape(os.path.relpath(path, units[0].folder)) for path in paths)


# ---- finished ones -------------------------------------------------------------------------------------------------


def made_of(fingerprint: Mapping[str, Any], options: PredictConfig | ExtractConfig) -> dict[str, Any]:
    """Return what an output depends on, on whichever machine it is made.

    Of a job's fingerprint this leaves the kind of device out, and takes the precision that was asked for, which a
    device may resolve in its own way.
    """
    return _without(fingerprint, "device") | {"precision": options.precision, "window": options.window}


def note_finished(unit: Unit, made: Mapping[str, Any], **counts: int) -> None:
    """Sign a finished output and its list of rows left out, with what the output was made of and its counts.

    Raises:
        MtlReError: A note cannot be written.
    """
    if unit.rejected.is_file():
        sign(unit.rejected)
    else:
        signature_path(unit.rejected).unlink(missing_ok=True)
    sign(unit.output, made=dict(made), counts=counts)


def counts_of(unit: Unit, made: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the counts of an output that is finished, as it was written, and made of these; None for any other."""
    noted = signature(unit.output)
    if noted is None or noted.get("made") != made or not unit.output.is_file():
        return None
    counts: dict[str, int] = noted["counts"]
    return counts if digest(unit.output) == noted["sha256"] else None


def strays(units: Sequence[Unit]) -> list[Path]:
    """Return the outputs in the folder that are no unit's: their inputs were removed, renamed or moved since."""
    folder, own = Path(units[0].folder), {unit.output for unit in units}
    signed = (path for path in signed_files(folder) if path.relative_to(folder).parts[0] != REJECTED)
    return [path for path in signed if path not in own]


def forget(unit: Unit) -> int:
    """Let a finished output count as ours, but no longer as finished; and remove the parts of an unfinished one.

    Returns:
        The number of input rows in these parts.

    Raises:
        MtlReError: The note cannot be written.
    """
    noted = signature(unit.output)
    if noted is not None and "made" in noted:
        write_json(signature_path(unit.output), {"sha256": noted["sha256"]})
    parts = PartFiles(unit.output)
    rows = parts.rows()
    parts.remove()
    return rows


def check_begun(unit: Unit, made: Mapping[str, Any]) -> None:
    """Compare what an output, or the parts of one, were made of with what is wanted now.

    An input that was changed since is no fault: its output is made again, and parts of that are removed.

    Args:
        made: As `made_of` gives it; it need not have the input's digest.

    Raises:
        MtlReError: They differ; the message names in what.
    """
    noted = (signature(unit.output) or {}).get("made")
    if noted is not None:
        compare(unit.output, _without(noted, "data"), _without(made, "data"))
    parts = PartFiles(unit.output)
    if (begun := parts.fingerprint()) is not None:
        apart = ("data", "device", "precision")  # the latter two are compared where the work goes on
        compare(unit.output, _without(begun, *apart), _without(made, *apart))
        if begun.get("data") != file_digest(unit.data):
            parts.remove()


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
