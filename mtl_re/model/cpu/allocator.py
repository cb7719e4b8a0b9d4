"""Which memory allocator this process runs on, and whether another would help.

glibc's gives memory back and takes it again at every step, and each time the system maps its pages anew: an eighth of
a small encoder's step on one machine, half of it on another. An allocator can only be chosen before a process starts,
so a run says once how.
"""

from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path

KEEPS_PAGES = ("jemalloc", "tcmalloc", "mimalloc")
WORTH_IT = 5_000_000
"""Parameters from which a step's memory is large enough for the allocator to matter."""
_MAPS = Path("/proc/self/maps")


def hint(device: str, parameters: int) -> str | None:
    """What to say to someone who starts a training, or None where nothing is to be gained.

    Args:
        device: type of the device, as torch calls it.
        parameters: of the model.
    """
    if device != "cpu" or parameters < WORTH_IT or not sys.platform.startswith("linux") or _in_use() != "glibc":
        return None
    found = ctypes.util.find_library("jemalloc")
    setting = f"LD_PRELOAD={found or 'libjemalloc.so.2'} MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1"
    install = "" if found else " (Debian: apt-get install libjemalloc2)"
    return f"hint: jemalloc makes steps on a CPU faster; start with {setting}{install}"


def _in_use() -> str:
    """Name of the allocator that the process has loaded; glibc if no other is."""
    try:
        loaded = _MAPS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    return next((name for name in KEEPS_PAGES if name in loaded), "glibc")
