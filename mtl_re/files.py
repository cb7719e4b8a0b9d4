"""Files that appear whole or not at all, locks, YAML, JSON and CSV, and the SHA-256 seal beside a model's weights.

A writer builds under a temporary name, flushes to the disk, and renames; a kill or a full disk leaves the old file or
the new one, never half of either. Locks are `filelock`'s, so that every operating system has them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mtl_re.encodings import file_encoding
from mtl_re.errors import MtlReError

PARTIAL, _ASIDE = ".partial-", ".old-"
_PROTECTED: list[Path] = []
WEIGHTS, WEIGHTS_SEAL = "model.safetensors", "model.safetensors.sha256"


# ---- whole or not at all -----------------------------------------------------------------------------------------


def protect(paths: Iterable[Path]) -> None:
    """Name the files that this process reads as input, in place of those named before: nothing replaces them."""
    _PROTECTED[:] = paths


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file: by name, through links, or as two names of one inode."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them does not exist (yet), or is no possible name
        pass
    try:
        return one.resolve() == other.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links
        return one.absolute() == other.absolute()


def file_name(text: str) -> str:
    """Return a text as a file name of at most 100 characters; a longer one ends in its digest, so that two stay two."""
    name = re.sub(r"[^\w.,=+-]", "_", text)
    return name if len(name) <= 100 else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def cache_dir() -> Path:
    """Return where this package keeps what it may lose: `$MTL_RE_CACHE`, else `~/.cache/mtl-re`; of a user without a
    home directory, a directory among the system's temporary ones."""
    if given := os.environ.get("MTL_RE_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "mtl-re"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"mtl-re-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        MtlReError: The file cannot be removed, or is an input (see `protect`).
    """
    _refuse_protected(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _refuse_protected(path: Path) -> None:
    if not os.path.exists(path):
        return
    for given in _PROTECTED:
        if same_file(path, given) or path.resolve() in given.resolve().parents:
            raise MtlReError(f"{path}: is an input of this command ({given}), or holds it; write elsewhere")


def check_replaceable(path: Path) -> None:
    """Refuse what a file cannot take the place of.

    Raises:
        MtlReError: The path is empty, or leads to a directory, a device or a pipe.
    """
    if not path.name:
        raise MtlReError(f"{str(path)!r} is not the name of a file to write")
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a directory" if os.path.isdir(path) else "a device or a pipe, which a file would replace"
        raise MtlReError(f"{path}: cannot be written (is {what}); name a file")


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path with the suffix of `path`; what the block writes there is at `path` when it ends.

    Missing directories are made. After a fault the old file, if any, is as it was and the temporary one is gone. A link
    stays one: the file that it leads to is replaced.

    Args:
        shared: Several processes may write `path` at once; the last one wins. (Otherwise the temporary name is always
            the same, so that what a kill leaves behind is overwritten the next time.)

    Raises:
        MtlReError: The file cannot be written, or is an input (see `protect`), a directory, a device or a pipe.
    """
    _refuse_protected(path)
    check_replaceable(path)
    try:
        final = path.resolve()
        partial = final.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8] + '-' if shared else ''}{final.name}")
    except (OSError, RuntimeError) as error:  # a loop of links
        raise unwritable(path, OSError(str(error))) from error
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        os.replace(partial, final)
        sync(final.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Give an empty directory beside `final`, which takes its place as a whole when the block ends.

    After a fault the old directory, if any, stands where it stood and the new one is gone.

    Raises:
        OSError: The directory cannot be written.
    """
    _refuse_protected(final)
    final = final.resolve()  # a link to a directory on a larger disk stays one
    build = final.with_name(f"{PARTIAL}{final.name}")
    try:
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        yield build
        publish_folder(build, final)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def unwritable(path: Path, error: OSError) -> MtlReError:
    """Return the system's refusal to write a file as a message to the user."""
    return MtlReError(f"{path}: cannot be written ({error.strerror or error})")


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a UTF-8 file through `whole_file`.

    Raises:
        MtlReError: The file cannot be written.
    """
    with whole_file(path, shared) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file through `whole_file`.

    Raises:
        MtlReError: The file cannot be written.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of named values as CSV through `whole_file`; a row may lack some.

    Raises:
        MtlReError: The file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_yaml(path: Path, value: Any) -> None:
    """Write a YAML file through `whole_file`, keys in the order given.

    Raises:
        MtlReError: The file cannot be written.
    """
    write_text(path, yaml.safe_dump(value, allow_unicode=True, sort_keys=False))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the map that a YAML file holds.

    Raises:
        MtlReError: The file cannot be read, or holds no map.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding=file_encoding(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise MtlReError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise MtlReError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise MtlReError(f"{path}: expected a map of keys, found {type(value).__name__}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        MtlReError: The file cannot be read, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MtlReError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
    except ValueError as error:
        raise MtlReError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise MtlReError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


# ---- locks -------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold a lock file, however the process ends; give None if another holds it and `wait` is off.

    Yields:
        The lock's file descriptor. Forked children lose it (so loader workers that outlive a killed run do not keep it
        locked); hand a child `os.dup` of it to keep the lock until that child has ended too.

    Raises:
        MtlReError: The file cannot be made.
    """
    descriptors: list[int] = []
    lock = FileLock(path, blocking=wait, preserve_lock_file=True, on_acquired=descriptors.append)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # filelock would take some faults of the file system for a lock that is held
        with suppress(Timeout):
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield descriptors[0] if descriptors else None
    finally:
        lock.release()


@contextmanager
def being_written(output: Path, lock: Path, command: str) -> Iterator[None]:
    """Hold an output for this process by a lock file, which is gone afterwards.

    Raises:
        MtlReError: Another process holds it, or the lock cannot be made.
    """
    with locked(lock) as held:
        if held is None:
            raise MtlReError(f"{output}: another `mtl-re {command}` is writing it")
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


# ---- weights and directories -------------------------------------------------------------------------------------


def seal_weights(folder: Path) -> None:
    """Write the SHA-256 of a model's weights beside them, as `sha256sum --check` reads it."""
    (folder / WEIGHTS_SEAL).write_text(f"{digest(folder / WEIGHTS)}  {WEIGHTS}\n", encoding="ascii")


def sealed_digest(folder: Path) -> str:
    """Return the SHA-256 that `seal_weights` has noted of a model's weights.

    Raises:
        MtlReError: There is none.
    """
    try:
        return (folder / WEIGHTS_SEAL).read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError) as error:
        raise MtlReError(f"{folder / WEIGHTS_SEAL}: cannot be read ({error})") from error


def check_weights(folder: Path) -> None:
    """Compare a model's weights with their seal; a folder without one (of the hub, say) is taken as it is.

    Raises:
        MtlReError: they differ: one flipped bit would give other predictions, in silence.
    """
    try:
        expected = (folder / WEIGHTS_SEAL).read_bytes().split()[:1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise MtlReError(f"{folder / WEIGHTS_SEAL}: not readable ({error.strerror or error})") from error
    if expected != [digest(folder / WEIGHTS).encode()]:
        what = f"{folder / WEIGHTS}: is damaged (its SHA-256 is not that of {WEIGHTS_SEAL})"
        raise MtlReError(f"{what}; copy or train it again, or remove {WEIGHTS_SEAL} if you changed the weights")


def make_directory(path: Path) -> None:
    """Make a directory and its parents.

    Raises:
        MtlReError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def publish_folder(build: Path, final: Path) -> None:
    """Put a finished folder in another's place.

    The old one is moved aside first and removed last; a fault in between puts it back, and after a kill `recover` does.

    Raises:
        OSError: the old folder stands where it stood.
    """
    for file in [*build.rglob("*"), build]:
        sync(file)
    aside = final.with_name(f"{_ASIDE}{final.name}")
    shutil.rmtree(aside, ignore_errors=True)
    moved = final.exists()
    if moved:
        os.rename(final, aside)
    try:
        os.rename(build, final)
    except OSError:
        if moved:
            os.rename(aside, final)
        raise
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back what a killed `publish_folder` had moved aside."""
    for aside in folder.glob(f"{_ASIDE}*"):
        final = aside.with_name(aside.name.removeprefix(_ASIDE))
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with suppress(OSError):  # a disk that still fails: whoever needs the folder will say so
                os.rename(aside, final)


def sync(path: Path) -> None:
    """fsync a file, or a directory's entries where the system can (Windows cannot)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
