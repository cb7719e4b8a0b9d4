"""Processes that work side by side on one job without speaking at every step: who they are, how they agree and end.

Enters: the launcher's environment (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ...). Leaves: a `Ranks`, by which one rank
decides for all, pieces of work are claimed, and a fault of one ends all of them with its cause named. All of it goes
through the launcher's key-value store: no collective, so a fast rank may be hours ahead of a slow one, and no rank
waits for one that is gone. A process alone runs the same code on a store of its own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from mtl_re.errors import MtlReError

T = TypeVar("T")
_BEAT = 0.5  # seconds between two signs of life
_PATIENCE = 60.0  # seconds without one after which a rank is taken for dead
_GRACE = 3.0  # seconds in which a rank that was told to stop waits for the others' last words
_REACH = timedelta(seconds=60)  # for an answer of the store

_calls = 0  # jobs of this process; every rank counts alike, so that keys of two jobs differ


class Ranks:
    """This process among its like; a context manager around the common work.

    Attributes:
        rank: 0 decides and speaks. size: processes in all. device: where this one computes (None: its free choice).
    """

    def __init__(self) -> None:
        global _calls
        _calls += 1
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.device = _device() if self.size > 1 else None
        store = _launcher_store() if self.size > 1 else distributed.HashStore()
        prefix = f"mtl-re/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_calls}"
        self._store = distributed.PrefixStore(prefix, store)
        self._rows = 0
        self._over = threading.Event()
        self._seen: dict[int, tuple[bytes, float]] = {}  # rank → last sign of life, and when it was first seen

    def __enter__(self) -> Ranks:
        if self.size > 1:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Leave together; a fault is told to the others, and one that came from elsewhere is named here.

        Raises:
            MtlReError: another rank's fault, where this one was only told to stop.
        """
        try:
            if error is None:
                self._leave()
                return
            with suppress(MtlReError):  # a store that is gone must not hide what happened first
                if isinstance(error, Exception):
                    text = str(error) if isinstance(error, MtlReError) else f"{type(error).__name__}: {error}"
                    self._tell_fault(text)
                self._leave()
            if self.size > 1 and isinstance(error, KeyboardInterrupt):
                self._name_the_cause(error)
        finally:
            self._over.set()

    # ---- agreeing

    def decided(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and give what it returned (JSON values) to every rank."""
        if self.rank == 0:
            result = work()
            self._set("decided", json.dumps(result))
            return result
        self._wait_for("decided")
        decided: T = json.loads(self._get("decided"))
        return decided

    def claim(self) -> int:
        """The next piece of work that no rank has claimed: 0, 1, 2, ..."""
        return self._asked(lambda: int(self._store.add("claimed", 1))) - 1

    def done(self, rows: int) -> int:
        """Note that this rank has finished so many rows in all; the sum over all ranks.

        Raises:
            MtlReError: another rank failed, or has given no sign of life.
        """
        self._rows = rows
        self.check()
        others = (self._last_beat(rank) for rank in range(self.size) if rank != self.rank)
        return rows + sum(int(beat.split()[1]) for beat in others if beat)

    def meet(self, place: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until every rank has come here."""
        self._set(f"{place}/{self.rank}", "")
        for rank in range(self.size):
            self._wait_for(f"{place}/{rank}", meanwhile)

    def check(self) -> None:
        """Raise MtlReError if another rank failed or has given no sign of life."""
        if self._has("fault"):
            raise MtlReError(self._get("fault"))
        watched = range(1, self.size) if self.rank == 0 else range(1)
        for rank in watched:
            beat, now = self._last_beat(rank), time.monotonic()
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = (beat, now)
            elif now - self._seen[rank][1] > _PATIENCE and not self._has(f"left/{rank}"):
                raise MtlReError(self._dead(rank, f"has given no sign of life for {_PATIENCE:.0f} s"))

    # ---- ending

    def _leave(self) -> None:
        """Say that this rank goes; rank 0, which may hold the store, goes last."""
        self._set(f"left/{self.rank}", "")
        if self.rank == 0:
            self._until(lambda: all(self._has(f"left/{rank}") for rank in range(self.size)), _GRACE)

    def _tell_fault(self, text: str) -> None:
        whose = f"process {self.rank} of {self.size}: " if self.rank else ""
        self._asked(lambda: self._store.compare_set("fault", "", whose + text))

    def _name_the_cause(self, error: KeyboardInterrupt) -> None:
        """A launcher stops all when one has ended: find out whether that is what happened."""
        before = {rank: self._last_beat(rank) for rank in range(self.size) if rank != self.rank}

        def silent() -> list[int]:
            return [r for r in before if not self._has(f"left/{r}") and self._last_beat(r) == before[r]]

        self._until(lambda: self._has("fault") or not silent(), _GRACE)
        if self._has("fault"):
            raise MtlReError(self._get("fault")) from error
        if dead := silent():
            raise MtlReError(self._dead(dead[0], "was killed, or ended without a word")) from error

    def _dead(self, rank: int, what: str) -> str:
        text = f"process {rank} of {self.size} {what}; all were stopped"
        if rank == 0 and self.rank == 1:  # whoever speaks for all is gone
            print(f"mtl-re: error: {text}", file=sys.stderr)
        return text

    # ---- the store

    def _beat(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                self._store.set(f"beat/{self.rank}", f"{number} {self._rows}")
            except RuntimeError:  # the store is gone: the main thread hears of it at its next question
                return
            self._over.wait(_BEAT)

    def _last_beat(self, rank: int) -> bytes:
        return self._get(f"beat/{rank}").encode() if self._has(f"beat/{rank}") else b""

    def _wait_for(self, key: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        while not self._has(key):
            self.check()
            meanwhile()
            time.sleep(_BEAT / 5)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(_BEAT / 5)

    def _has(self, key: str) -> bool:
        return self._asked(lambda: bool(self._store.check([key])))

    def _get(self, key: str) -> str:
        return self._asked(lambda: bytes(self._store.get(key)).decode())

    def _set(self, key: str, value: str) -> None:
        self._asked(lambda: self._store.set(key, value))

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except RuntimeError as error:  # torch's DistError is one
            raise MtlReError(f"the launcher's store does not answer ({error}); did the first process end?") from error


def _launcher_store() -> Any:
    """The store that the launcher has set up for its processes.

    Raises:
        MtlReError: there is none.
    """
    try:
        store, _, _ = next(iter(distributed.rendezvous("env://", timeout=_REACH)))
        return store
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise MtlReError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes do not meet ({text})") from error


def _device() -> str:
    """Each process of a machine has its own GPU while there are enough."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"} or not torch.cuda.is_available():
        return "cpu"
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return f"cuda:{number}"
