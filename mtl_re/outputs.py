"""Which files a command may write: never one of its inputs, and no file of somebody else's.

Enters: the paths that a command's options name. Leaves: nothing, or the fault. A command notes the SHA-256 of what it
has written (`remember`, in the cache directory), so that it may run twice; a file that was changed since, or that is of
somebody else, stays unless `--overwrite` is given. Files that workers on several machines write carry their note beside
them (`sign`). Where there is no note (another machine, an emptied cache), a form that nobody else writes counts as ours
(`OURS`); submissions, triples, label maps and sample rows have none. An input is refused as an output under any option:
by its path, by a link, or by another name of the same inode.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtl_re.errors import MtlReError
from mtl_re.files import cache_dir, check_replaceable, digest, read_json, same_file, write_json, write_text

MARK = "mtl-re"
"""What pictures of this package carry in their metadata."""
WRITTEN_BY = "Written by mtl-re."
"""The last line of a report."""
PREDICTION_KEYS = {"id", "label", "score", "coarse", "probs"}


def check_outputs(outputs: Mapping[str, str | Path], inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse outputs that would destroy something.

    Args:
        outputs: option → the file or directory that it names.
        inputs: the files that the command reads (see `input_files`).

    Raises:
        MtlReError: two outputs are the same file; an output is an input, or no file; or an existing file is not ours
            and `overwrite` is off.
    """
    seen: dict[str, Path] = {}
    for option, given in outputs.items():
        path = Path(given)
        for other in inputs:
            if same_file(path, other):
                what = f"--{option} {given} is an input of this command ({other}); it would be replaced"
                raise MtlReError(f"{what}: name another file")
        if twin := [other for other, file in seen.items() if same_file(path, file)]:
            raise MtlReError(f"--{twin[0]} and --{option} name the same file, {given}; name two")
        seen[option] = path
        try:
            check_replaceable(path)
        except MtlReError as error:
            raise MtlReError(f"--{option}: {error}") from error
        if not overwrite and path.is_file() and not is_ours(path):
            whose = "was changed since mtl-re wrote it" if _noted(path) else "this command did not write it"
            what = f"--{option} {given} exists, and {whose}"
            raise MtlReError(f"{what}: name another file, or give --overwrite to replace it")


def check_directory(
    option: str, folder: str | Path, names: Iterable[str], inputs: Sequence[Path], overwrite: bool
) -> None:
    """Apply `check_outputs` to the files of these names in a directory.

    Raises:
        MtlReError: as `check_outputs`, or the path is a file.
    """
    if Path(folder).is_file():
        raise MtlReError(f"--{option} {folder} is a file; name a directory")
    for path in sorted({Path(folder) / name for name in names if "*" not in name} | set(files_in(folder, names))):
        check_outputs({option: path}, inputs, overwrite)


def check_new_folder(folder: Path, overwrite: bool, report: str, result: str, source: str, role: str) -> None:
    """Refuse a directory that a command would write as a whole.

    Args:
        overwrite: whether an older result may be replaced.
        report: name of a file that only such a result has. result: what one is called.
        source: what the command reads. role: what that is called.

    Raises:
        MtlReError: it is a file, holds `source`, or is neither empty nor an older result that may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise MtlReError(f"{folder}: is a file; give a directory")
    if Path(source).exists() and folder.resolve() in {Path(source).resolve(), *Path(source).resolve().parents}:
        raise MtlReError(f"{folder}: holds the {role}; give another directory")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise MtlReError(f"{folder}: is not empty; give another directory, or --overwrite to replace it as a whole")
    if not (folder / report).is_file():
        raise MtlReError(f"{folder}: is not {result} (it has no {report}); --overwrite replaces only those")


def files_in(folder: str | Path, names: Iterable[str]) -> list[Path]:
    """Return the files of a directory that have these names, or fit these patterns."""
    return sorted({path for name in names for path in Path(folder).glob(name)})


CHECKPOINT_FILES = ("config.json", "model*.safetensors*", "tokenizer*", "vocab*", "special_tokens_map.json", "*.onnx*")
"""What a command reads of a checkpoint's directory."""


def input_files(given: Iterable[Any]) -> list[Path]:
    """Return the files that a command reads: of a checkpoint's directory its weights, config and tokenizer, any other
    directory as it is.

    Args:
        given: values of arguments, lists of them, HEAD=CKPT; None, hub ids and samples are passed over.
    """
    found: list[Path] = []
    for value in given:
        if isinstance(value, list | tuple):
            found += input_files(value)
        elif isinstance(value, str | Path) and str(value) and not str(value).startswith(("hub:", "sample:")):
            path = Path(value)
            if not os.path.exists(path) and "=" in str(value):
                path = Path(str(value).partition("=")[2])
            if os.path.isdir(path):
                folder = path / "model" if (path / "model" / "config.json").is_file() else path
                if not (folder / "config.json").is_file():
                    found.append(path)
                found += [file for pattern in CHECKPOINT_FILES for file in folder.glob(pattern)]
            else:
                found.append(path)
    return found


def remember(paths: Iterable[Path]) -> None:
    """Note that this package has written these files as they are now; one that is not there is passed over.

    Where the note cannot be kept (no home directory), the next run asks for `--overwrite`.
    """
    for path in paths:
        with suppress(OSError, MtlReError):
            if path.is_file():
                write_text(_note(path), digest(path), shared=True)


def _note(path: Path) -> Path:
    """Return where the digest of a file is noted."""
    return cache_dir() / "outputs" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def _noted(path: Path) -> list[str]:
    """Return the digests under which a file was noted."""
    found = []
    with suppress(OSError, ValueError):
        found.append(_note(path).read_text(encoding="ascii"))
    if (signed := signature(path)) is not None:
        found.append(str(signed["sha256"]))
    return found


_WRITTEN = ".written-"


def sign(path: Path, **facts: Any) -> None:
    """Note beside a file that this package has written it as it is now, and what is known of it, as JSON values.

    Raises:
        MtlReError: The note cannot be written.
    """
    write_json(signature_path(path), {"sha256": digest(path), **facts})


def signature(path: Path) -> dict[str, Any] | None:
    """Return what `sign` noted of a file, `sha256` first; None where there is no such note, or half of one."""
    with suppress(MtlReError):
        found = read_json(signature_path(path))
        return found if isinstance(found.get("sha256"), str) else None
    return None


def signature_path(path: Path) -> Path:
    """Return where the note of `sign` lies; its name is a hidden one, which readers of a folder pass over."""
    return path.with_name(f"{_WRITTEN}{path.name}.json")


def signed_files(folder: Path) -> list[Path]:
    """Return the files in a folder, and in those below it, beside which `sign` has left a note."""
    notes = folder.rglob(f"{_WRITTEN}*.json")
    files = (note.with_name(note.name.removeprefix(_WRITTEN).removesuffix(".json")) for note in notes)
    return sorted(file for file in files if file.is_file())


def is_ours(path: Path) -> bool:
    """Return whether a file is empty, or as this package wrote it."""
    if path.stat().st_size == 0:
        return True
    if noted := _noted(path):
        return digest(path) in noted
    check = OURS.get(path.suffix.lower())
    try:
        return check is not None and check(path)
    except (OSError, ValueError, KeyError, TypeError):  # not readable as what its suffix says: not ours
        return False


def _is_json(path: Path) -> bool:
    """Metrics, rates and calibrations by their keys."""
    with path.open(encoding="utf-8") as file:
        value = json.loads(file.read(64 << 20))
    signs = ({"micro_f1", "auprc", "coarse"}, {"rate", "thresholds"}, {"temperatures", "before", "after"})
    return any(keys <= set(value) for keys in signs)


def _is_jsonl(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline(16 << 20))
    return set(first) >= PREDICTION_KEYS


def _is_parquet(path: Path) -> bool:
    from pyarrow import parquet

    return set(parquet.read_schema(path).names) >= PREDICTION_KEYS


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(1024)


def _is_report(path: Path) -> bool:
    """Whether the last line says who wrote it."""
    last = path.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
    return last.startswith(WRITTEN_BY)


OURS: dict[str, Callable[[Path], bool]] = {
    ".json": _is_json,
    ".jsonl": _is_jsonl,
    ".parquet": _is_parquet,
    ".png": _is_picture,
    ".md": _is_report,
}
"""Forms that nobody else writes, by suffix."""
