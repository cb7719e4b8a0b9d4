"""Resumable training state on disk: whole or absent, never half.

`checkpoints/step-000120/` holds safetensors files, `state.json` and a `manifest.json` with the size and SHA-256 of
each and of itself, written last. The directory is built under a temporary name, every file is fsynced, then it is
renamed, and only then are older ones pruned; so at every moment at least one good checkpoint is there. (accelerate's
`save_state` prunes first, has no rename and no checksum.)

Nothing here knows what the tensors mean. Of every run they are (`resume.save_run`) the weights, the optimizer's moments
and the random state of each process; state.json has the position (`loop.LoopState`), the number of processes, fp16's
loss scale, and the options and rows that a resumed run must have. A training adds (`state.save_training`) the averaged
weights, what moves the heads' weights, the selection's best score, and the sums since the last logged line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtl_re.errors import MtlReError
from mtl_re.files import PARTIAL, digest, recover, whole_folder

_NAME = re.compile(r"step-(\d{6,})")
MANIFEST, STATE = "manifest.json", "state.json"

# What a damaged file can make the parsers raise:
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: Its directory. tensors: file stem → name → tensor (on CPU). state: JSON values.
    """

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `folder/step-NNNNNN` and prune all but the newest `keep`.

    Args:
        folder: The run's `checkpoints/`.
        step: Optimizer steps taken.
        tensors: File stem → name → tensor, one safetensors file each.
        state: JSON values.

    Raises:
        MtlReError: The disk is full or not writable; older checkpoints stand untouched.
    """
    final = folder / f"step-{step:06d}"
    try:
        for leftover in folder.glob(f"{PARTIAL}*"):  # of a kill
            shutil.rmtree(leftover)
        with whole_folder(final) as build:
            for stem, group in tensors.items():
                contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}
                save_file(contiguous, build / f"{stem}.safetensors")
            _write(build / STATE, json.dumps(state, ensure_ascii=False, indent=1))
            files = {
                file.name: {"size": file.stat().st_size, "sha256": digest(file)} for file in sorted(build.iterdir())
            }
            manifest = {"step": step, "files": files, "sha256": _seal(step, files)}
            _write(build / MANIFEST, json.dumps(manifest, indent=1))
    except (OSError, safetensors.SafetensorError) as error:
        raise MtlReError(f"{final}: checkpoint not written ({error}); older checkpoints are untouched") from error
    with suppress(OSError):  # what cannot be pruned now is pruned behind the next one
        _prune(folder, final, keep)
    return final


def _prune(folder: Path, final: Path, keep: int) -> None:
    found = whole_names(folder)
    later = [path for path in found[: found.index(final)] if not _is_whole(path)]
    for old in later + [path for path in found if path not in later and path != final][keep - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def forget(folder: Path, step: int) -> None:
    """Remove the checkpoints behind a step: of a future that a run which goes on from there will not have."""
    for path in whole_names(folder):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, most: float = math.inf) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, and what was wrong with each newer one.

    Args:
        most: Only those up to this step count.

    Raises:
        MtlReError: The system cannot read one (an error of the disk or the network, which may pass).
    """
    faults: list[str] = []
    recover(folder)
    for path in whole_names(folder):
        if step_of(path) > most:
            continue
        try:
            return read_checkpoint(path), faults
        except MtlReError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                what = "passing over it would lose its steps; try again, or remove it to go on from an older one"
                raise MtlReError(f"{error}; {what}") from error
            faults.append(str(error))
    return None, faults


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after checking every file's size and hash.

    Raises:
        MtlReError: A file, which is named, is missing or damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["sha256"] != _seal(manifest["step"], files):
            raise MtlReError(f"{path}: {MANIFEST} is damaged (its own SHA-256 differs)")
        for name, expected in files.items():
            file = path / name
            if Path(name).name != name or not file.is_file():
                raise MtlReError(f"{path}: {name} is missing")
            if file.stat().st_size != expected["size"] or digest(file) != expected["sha256"]:
                raise MtlReError(f"{path}: {name} is damaged (size or SHA-256 differs from {MANIFEST})")
        if STATE not in files:
            raise MtlReError(f"{path}: {MANIFEST} does not list {STATE}")
        tensors = {Path(name).stem: load_file(path / name) for name in files if name.endswith(".safetensors")}
        return Checkpoint(path, tensors, json.loads((path / STATE).read_text(encoding="utf-8")))
    except _UNREADABLE as error:
        raise MtlReError(f"{path}: not a whole checkpoint ({type(error).__name__}: {error})") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file, on CPU.

    Raises:
        MtlReError: It cannot be read.
    """
    try:
        return load_file(path)
    except _UNREADABLE as error:
        raise MtlReError(f"{path}: not readable ({type(error).__name__}: {error})") from error


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except MtlReError:
        return False
    return True


def whole_names(folder: Path) -> list[Path]:
    """Return the directories that carry a checkpoint's name, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's name says."""
    return int(path.name.removeprefix("step-"))


def _seal(step: int, files: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says: a file that it no longer lists would not be missed otherwise."""
    return hashlib.sha256(json.dumps([step, files], sort_keys=True).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
