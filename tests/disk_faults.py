"""A disk that fails at every call in turn, the SQLite way, and files that rot: checkpoints and models must stand both.

    python tests/disk_faults.py --mutations 10000

For call 1, 2, 3, ... of one save, until the save passes: that call fails once, or it and all after it fail; then the
old or the new one must be whole, and the next save must pass and leave nothing over. Calls fail where they are made: in
the C library, under a small preloaded library (`LibcDisk`; what Rust writes for safetensors is met too), or in Python's
own functions (`PythonDisk`), where there is no C compiler. Figures go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import builtins
import ctypes
import errno
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol

import safetensors.torch
import torch

from mtl_re import files
from mtl_re.errors import MtlReError
from mtl_re.training import checkpoint

FULL = (errno.ENOSPC, "No space left on device")


class Disk(Protocol):
    """Fails at its `call`-th call while armed, and at all later ones if `lasting`."""

    def arm(self, call: int, lasting: bool) -> None: ...

    def disarm(self) -> int:
        """Back to normal; how many calls were made."""
        ...


# ---- disks ---------------------------------------------------------------------------------------------------------


class PythonDisk:
    """Replaces what Python reaches the disk by; safetensors' writer becomes one of open, two writes and a close."""

    NAMES = ("open", "fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "scandir")

    def __init__(self) -> None:
        self.calls, self.call, self.lasting = 0, 0, False
        self.real: list[tuple[Any, str, Any]] = []

    def arm(self, call: int, lasting: bool) -> None:
        self.calls, self.call, self.lasting = 0, call, lasting
        for name in self.NAMES:
            self._replace(os, name, self._counted(getattr(os, name)))
        for owner in (builtins, io):
            self._replace(owner, "open", self._open)
        self._replace(checkpoint, "save_file", self._save_file)
        import transformers.modeling_utils

        self._replace(transformers.modeling_utils, "safe_save_file", self._save_file)

    def disarm(self) -> int:
        for owner, name, real in reversed(self.real):
            setattr(owner, name, real)
        self.real.clear()
        return self.calls

    def count(self) -> None:
        """One call: it may fail."""
        self.calls += 1
        if self.calls == self.call or (self.lasting and self.calls > self.call):
            raise OSError(*FULL)

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        self.real.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count()
            return real(*arguments, **named)

        return call

    def _open(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        real = next(real for owner, name, real in self.real if owner is io and name == "open")
        self.count()
        opened = real(file, mode, *rest, **named)
        return opened if "r" in mode and "+" not in mode else _Torn(opened, self)

    def _save_file(self, tensors: dict[str, torch.Tensor], filename: Any, metadata: Any = None) -> None:
        content = safetensors.torch.save(tensors, metadata)
        with self._open(filename, "wb") as file:
            file.write(content[: len(content) // 2])
            file.write(content[len(content) // 2 :])


class _Torn:
    """A file whose failing write leaves half of the data behind."""

    def __init__(self, file: Any, disk: PythonDisk) -> None:
        self.file, self.disk = file, disk

    def write(self, data: Any) -> int:
        try:
            self.disk.count()
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>
#include <sys/uio.h>
static int armed, target, lasting, calls;
void fault_arm(int call, int keep) { calls = 0; target = call; lasting = keep; armed = 1; }
int fault_disarm(void) { armed = 0; return calls; }
static int fails(void) {
    if (!armed) return 0;
    calls++;
    if (calls == target || (lasting && calls > target)) { errno = ENOSPC; return 1; }
    return 0;
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, name, parameters, arguments, check) \
    type name parameters { if ((check) && fails()) return -1; return REAL(name) arguments; }
#define OPEN(name, parameters, before) \
    int name parameters { mode_t mode = 0; va_list list; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        if (fails()) return -1; return REAL(name) before; }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))
WRAP(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), fd > 2)
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd > 2)
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), fd > 2)
WRAP(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd > 2)
extern int rename(const char *, const char *);
extern int renameat(int, const char *, int, const char *);
extern int unlink(const char *); extern int unlinkat(int, const char *, int); extern int rmdir(const char *);
extern int mkdir(const char *, mode_t); extern int mkdirat(int, const char *, mode_t);
extern int fsync(int); extern int fdatasync(int);
extern int ftruncate(int, off_t); extern int ftruncate64(int, off64_t);
WRAP(int, fsync, (int fd), (fd), 1)
WRAP(int, fdatasync, (int fd), (fd), 1)
WRAP(int, ftruncate, (int fd, off_t size), (fd, size), 1)
WRAP(int, ftruncate64, (int fd, off64_t size), (fd, size), 1)
WRAP(int, rename, (const char *from, const char *to), (from, to), 1)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), 1)
WRAP(int, unlink, (const char *path), (path), 1)
WRAP(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), 1)
WRAP(int, rmdir, (const char *path), (path), 1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), 1)
WRAP(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), 1)
"""
"""Stands before the C library's functions; Python and Rust both call these."""


class LibcDisk:
    """The preloaded library's switch."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.arm_it, self.disarm_it = library.fault_arm, library.fault_disarm

    def arm(self, call: int, lasting: bool) -> None:
        self.arm_it(call, int(lasting))

    def disarm(self) -> int:
        return int(self.disarm_it())


def build_shim(folder: Path) -> Path | None:
    """Compile the library; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, folder / "shim.c", "-ldl"], check=True)
    return library


# ---- what is written, and what must hold afterwards ------------------------------------------------------------------


def small_tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"a": torch.randn(40, 5, generator=generator), "b": torch.arange(seed, seed + 5)},
        "optimizer": {"a//exp_avg": torch.randn(40, 5, generator=generator)},
        "random": {"0/cpu": torch.arange(100, dtype=torch.uint8)},
    }


def same_checkpoint(found: checkpoint.Checkpoint, seed: int) -> bool:
    """Whether it is, bit for bit, what was saved from `seed`."""
    wanted = small_tensors(seed)
    return (
        found.state == {"seed": seed}
        and {k: set(v) for k, v in wanted.items()} == {k: set(v) for k, v in found.tensors.items()}
        and all(
            torch.equal(found.tensors[stem][name], t) for stem, group in wanted.items() for name, t in group.items()
        )
    )


def save_small(folder: Path, step: int, seed: int, keep: int = 1) -> None:
    checkpoint.save(folder, step, small_tensors(seed), {"seed": seed}, keep)


def checkpoint_faults(disk: Disk, folder: Path, step: int, keep: int, old: bool) -> int:
    """Fail every call of one save over a checkpoint of step 1 (if `old`); the number of saves that were tried."""

    def begin(place: Path) -> None:
        if old:
            save_small(place, 1, seed=1)

    def check(place: Path, passed: bool) -> None:
        found, _ = checkpoint.newest(place)
        if found is None:
            assert not old, "no whole checkpoint is left"
            assert not passed, "the save passed and left nothing"
            return
        seed = 2 if passed or not same_checkpoint(found, 1) else 1
        assert same_checkpoint(found, seed), f"{found.path} is neither the old nor the new one"

    def again(place: Path) -> None:
        save_small(place, 3, seed=3, keep=1)
        found, faults = checkpoint.newest(place)
        assert found is not None, "the next save left nothing"
        assert same_checkpoint(found, 3), "the next save did not pass"
        assert not faults, faults
        assert [path.name for path in place.iterdir()] == ["step-000003"], sorted(place.iterdir())

    return _every_call(disk, folder, begin, lambda place: save_small(place, step, 2, keep), check, again)


def model_faults(disk: Disk, folder: Path, parts: tuple[Any, Any]) -> int:
    """The same for publishing a model: (model, tokenizer) over an older one."""
    from mtl_re.training.train import keep_model

    model, tokenizer = parts
    marker = model.config

    def publish(place: Path, number: int) -> None:
        marker.relation_threshold = number / 10  # tells the old one from the new one
        keep_model(SimpleNamespace(run_dir=place, plain_model=model, tokenizer=tokenizer))

    def content(place: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (place / "model").iterdir()}

    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[int, dict[str, bytes]] = {}
    for number in (1, 2, 3):
        (folder / f"wanted-{number}").mkdir()
        publish(folder / f"wanted-{number}", number)
        wanted[number] = content(folder / f"wanted-{number}")

    def begin(place: Path) -> None:
        place.mkdir()
        publish(place, 1)

    def check(place: Path, passed: bool) -> None:
        files.recover(place)  # as a resumed run does
        assert content(place) in ([wanted[2]] if passed else [wanted[1], wanted[2]]), (
            "neither the old nor the new model"
        )

    def again(place: Path) -> None:
        publish(place, 3)
        assert content(place) == wanted[3]
        files.recover(place)
        assert [path.name for path in place.iterdir()] == ["model"], sorted(place.iterdir())

    return _every_call(disk, folder, begin, lambda place: publish(place, 2), check, again)


def _every_call(
    disk: Disk,
    folder: Path,
    begin: Callable[[Path], None],
    save: Callable[[Path], None],
    check: Callable[[Path, bool], None],
    again: Callable[[Path], None],
) -> int:
    tried = 0
    for lasting in (False, True):
        for call in itertools.count(1):
            place = folder / f"{call}-{lasting}"
            place.parent.mkdir(parents=True, exist_ok=True)
            begin(place)
            passed = True
            disk.arm(call, lasting)
            try:
                save(place)
            except MtlReError:
                passed = False
            finally:
                calls = disk.disarm()
            try:
                check(place, passed)
                again(place)
            except Exception as error:
                raise AssertionError(
                    f"call {call} of {calls} failed {'for good' if lasting else 'once'}: {error}"
                ) from error
            tried += 1
            shutil.rmtree(place, ignore_errors=True)
            if calls < call:
                assert passed, "no call failed, and the save did not pass"
                break
    return tried


# ---- rot -----------------------------------------------------------------------------------------------------------


def _flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def _take_out(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    del content[start : start + chance.randint(1, 300)]


def _blank(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice((1, 16, 512, 4096)))
    content[start:end] = bytes(end - start)


def _repeat(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    content[start:start] = content[start : start + chance.randint(1, 300)]


def _digit(content: bytearray, chance: random.Random) -> None:
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if places:
        content[chance.choice(places)] = chance.randint(48, 57)


CHANGES = (_flip, _flip, _cut, _take_out, _blank, _repeat, _digit)


def mutate(folder: Path, other: Path, chance: random.Random) -> str:
    """Damage one file of a checkpoint (or a few) in a way that disks and people do; what was done."""
    files = sorted(folder.iterdir())
    file = chance.choice(files)
    kind = chance.random()
    if kind < 0.06:
        file.unlink()
        return f"{file.name} deleted"
    if kind < 0.12:
        second = chance.choice([path for path in files if path != file])
        first, content = file.read_bytes(), second.read_bytes()
        file.write_bytes(content)
        second.write_bytes(first)
        return f"{file.name} and {second.name} swapped"
    if kind < 0.18:
        shutil.copyfile(other / file.name, file)
        return f"{file.name} taken from another checkpoint"
    if kind < 0.2:
        file.rename(folder / f"{file.name}.bak")
        return f"{file.name} renamed"
    change, content = chance.choice(CHANGES), bytearray(file.read_bytes())
    change(content, chance)
    file.write_bytes(content)
    return f"{file.name}:{change.__name__}"


def mutations(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Damage the newest of two checkpoints `count` times; how often that was found, and how often it changed nothing.

    Raises:
        AssertionError: damage was read as if it were sound, or the older checkpoint was not taken instead.
    """
    chance, found_out = random.Random(seed), {"detected": 0, "harmless": 0}
    save_small(folder, 1, seed=1, keep=2)
    save_small(folder, 2, seed=2, keep=2)
    newest, older = folder / "step-000002", folder / "step-000001"
    sound = {path.name: path.read_bytes() for path in newest.iterdir()}
    for number in range(count):
        what = mutate(newest, older, chance)
        found, faults = checkpoint.newest(folder)
        assert found is not None, f"{number}, {what}: no checkpoint at all"
        if found.path == newest:
            assert same_checkpoint(found, 2), f"{number}, {what}: damaged, and taken for sound"
            found_out["harmless"] += 1
        else:
            assert same_checkpoint(found, 1), f"{number}, {what}: the older one is not sound"
            assert "step-000002" in faults[0], f"{number}, {what}: {faults}"
            found_out["detected"] += 1
        for path in newest.iterdir():
            if path.name not in sound:
                path.unlink()
        for name, content in sound.items():
            (newest / name).write_bytes(content)
    return found_out


# ---- the command -----------------------------------------------------------------------------------------------------


def tiny_parts() -> tuple[Any, Any]:
    """A model and a tokenizer as small as they come."""
    from conftest import sample_examples, scratch_tokenizer, small_config

    from mtl_re.model.network import MtlReConfig, MtlReModel

    values = {**small_config("bert").to_dict(), "model_type": "bert"}
    return MtlReModel(MtlReConfig(encoder=values)), scratch_tokenizer(sample_examples("train", 20), "entity_punct")


def all_faults(disk: Disk, folder: Path) -> dict[str, int]:
    """Saves tried under failing calls, by what was saved."""
    return {
        "checkpoint over an older one": checkpoint_faults(disk, folder / "a", step=2, keep=1, old=True),
        "checkpoint, two kept": checkpoint_faults(disk, folder / "b", step=2, keep=2, old=True),
        "checkpoint of the same step": checkpoint_faults(disk, folder / "c", step=1, keep=1, old=True),
        "first checkpoint": checkpoint_faults(disk, folder / "d", step=2, keep=1, old=False),
        "model over an older one": model_faults(disk, folder / "e", tiny_parts()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="disk-faults-") as name:
        folder = Path(name)
        if not os.environ.get("DISK_FAULTS_SHIM") and (library := build_shim(folder)) is not None:
            environment = os.environ | {"LD_PRELOAD": str(library), "DISK_FAULTS_SHIM": "1"}
            return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
        torch.set_num_threads(1)
        disk: Disk = LibcDisk() if os.environ.get("DISK_FAULTS_SHIM") else PythonDisk()
        figures: dict[str, Any] = {"disk": type(disk).__name__, "saves": all_faults(disk, folder)}
        figures["mutations"] = mutations(folder / "rot", options.mutations)
    figures["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        raise SystemExit(main())
