"""Advice on the memory allocator that this process runs on.

glibc's allocator returns memory to the system and requests it again at every step, and each time the system maps its
pages anew: an eighth of a small encoder's step on one machine, half of it on another. What it keeps lies scattered over
a heap that grows for some hundreds of steps; `release_free_memory` returns that, once for each logged line. jemalloc
with its default decay holds pages back for some seconds, which is enough. With its decay turned off it never returns
any: packed sequences come in many lengths, so the pages of every tensor size accumulate, by over 100 MB a step for a
12-layer encoder. An allocator can only be chosen before a process starts, so a run gives this advice at its start.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
WORTH_IT = 5_000_000
"""Number of parameters from which a step's memory is large enough for the allocator to matter."""
_MAPS = Path("/proc/self/maps")
_NO_DECAY = re.compile(r"(dirty|muzzy)_decay_ms:-1\b")


def allocator_hint(device: str, parameters: int) -> str | None:
    """Return what to tell someone who starts a training run; None where the allocator is fine as it is.

    Args:
        device: type of the device, as torch calls it.
        parameters: number of parameters of the model.
    """
    if device != "cpu" or not sys.platform.startswith("linux"):
        return None
    allocator = _loaded_allocator()
    if allocator == "jemalloc" and _NO_DECAY.search(os.environ.get("MALLOC_CONF", "")):
        return (
            "hint: MALLOC_CONF turns jemalloc's decay off, so memory grows with every step; start without MALLOC_CONF"
        )
    if allocator != "glibc" or parameters < WORTH_IT:
        return None
    library = ctypes.util.find_library("jemalloc")
    install = "" if library else " (Debian: apt-get install libjemalloc2)"
    return f"hint: jemalloc makes steps on a CPU faster; start with LD_PRELOAD={library or 'libjemalloc.so.2'}{install}"


def release_free_memory() -> None:
    """Return the free pages inside glibc's heap to the system (malloc_trim); do nothing under another allocator."""
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux") or _loaded_allocator() != "glibc":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none


def _loaded_allocator() -> str:
    """Return the name of the allocator that the process has loaded: glibc if no other is, unknown without /proc."""
    try:
        maps = _MAPS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    return next((name for name in OTHER_ALLOCATORS if name in maps), "glibc")
