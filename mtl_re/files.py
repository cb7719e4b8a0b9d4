"""Files that appear whole or not at all: JSON, folders by rename, fsync, and the SHA-256 seal beside a model's weights.

A writer builds under a temporary name, flushes to the disk, and renames; a kill or a full disk leaves the old file or
the new one, never half of either.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mtl_re.errors import MtlReError

_ASIDE = ".old-"
WEIGHTS, WEIGHTS_SEAL = "model.safetensors", "model.safetensors.sha256"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once or not at all.

    Raises:
        MtlReError: the place cannot be written.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise MtlReError(f"{path}: cannot be written ({error.strerror})") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The map that a YAML file holds.

    Raises:
        MtlReError: it cannot be read, or holds no map.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def seal_weights(folder: Path) -> None:
    """Write the SHA-256 of a model's weights beside them, as `sha256sum --check` reads it."""
    (folder / WEIGHTS_SEAL).write_text(f"{digest(folder / WEIGHTS)}  {WEIGHTS}\n", encoding="ascii")


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
    """fsync a file, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
