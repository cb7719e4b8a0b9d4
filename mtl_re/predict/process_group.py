"""The processes that a launcher (`torchrun`, `accelerate launch`) has started for one prediction, and how they agree.

They agree before the work starts, by torch.distributed: one rank decides for all, and what cannot start on one rank
starts on none. From then on no rank waits for a message of another, so a fast one may end hours before a slow one. A
process that fails or is killed is the launcher's affair: it ends the others, and names the first that failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import distributed

from mtl_re.errors import MtlReError, first_line

T = TypeVar("T")
_START = timedelta(minutes=10)  # until all processes must have met
_DECISION = timedelta(days=7)  # reading through a long input takes its time; a process that ends is noticed at once
_jobs = count()  # of this process; every rank counts alike, so that no job finds what an earlier one left in the store


class ProcessGroup:
    """This process among those of its launcher; a context manager around the common work.

    The backend is gloo even where the model runs on GPUs: only small Python objects are exchanged, and processes may
    share a GPU.

    Attributes:
        rank: 0 decides and publishes. size: Number of processes. device: Where this one computes (None: its choice).
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.device = _device() if self.size > 1 else None
        self._group: Any = None
        self._owned = False

    def __enter__(self) -> ProcessGroup:
        """Meet the other processes.

        Raises:
            MtlReError: They do not meet.
        """
        if self.size == 1:
            return self
        try:
            if not distributed.is_initialized():
                store, rank, size = next(iter(distributed.rendezvous("env://", timeout=_START)))
                store = distributed.PrefixStore(f"mtl-re-predict-{next(_jobs)}", store)
                distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_START)
                self._owned = True
            self._group = distributed.new_group(backend="gloo", timeout=_DECISION)
        except (RuntimeError, ValueError) as error:
            self._leave()
            what = f"WORLD_SIZE is {self.size}, but the processes do not meet ({first_line(error)})"
            raise MtlReError(what) from error
        return self

    def __exit__(self, *fault: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._owned:
            distributed.destroy_process_group()
        elif self._group is not None:
            distributed.destroy_process_group(self._group)

    def agreed(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank and return this rank's result.

        Raises:
            MtlReError: It failed on a rank, which is named unless it is this one; so all ranks raise.
        """
        if self.size == 1:
            return work()
        result: Any = None
        fault: Exception | None = None
        try:
            result = work()
        except Exception as error:
            fault = error
        faults: list[Any] = [None] * self.size
        self._exchanged(lambda: distributed.all_gather_object(faults, fault and _text(fault), self._group))
        if fault is not None:
            raise fault
        for rank, text in enumerate(faults):
            if text is not None:
                raise MtlReError(f"process {rank} of {self.size}: {text}")
        made: T = result
        return made

    def from_first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and return its result, which can be pickled, on every rank.

        Raises:
            MtlReError: It failed; so all ranks raise.
        """
        result = [self.agreed(lambda: work() if self.rank == 0 else None)]
        if self.size > 1:
            self._exchanged(lambda: distributed.broadcast_object_list(result, group_src=0, group=self._group))
        decided: Any = result[0]
        return decided

    @contextmanager
    def faults_told(self) -> Iterator[None]:
        """Print this rank's fault on stderr, because the command line prints only the first process's.

        It begins a line of its own: the first process's progress bar may have left one open.
        """
        try:
            yield
        except Exception as error:
            if self.rank > 0:
                text = " ".join(_text(error).split())
                print(f"\nmtl-re: error: process {self.rank} of {self.size}: {text}", file=sys.stderr, flush=True)
            raise

    def _exchanged(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:  # gloo's connection to a process that has ended
            text = "another process ended before the work started; the launcher names it"
            raise MtlReError(f"process {self.rank} of {self.size}: {text}") from error


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, MtlReError) else f"{type(error).__name__}: {error}"


def _device() -> str:
    """Return this process's device: a GPU of its own while there are enough of them."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"} or not torch.cuda.is_available():
        return "cpu"
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return f"cuda:{number}"
