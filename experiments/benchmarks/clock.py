"""Wall time, CPU time and peak memory of a block in this process; on CUDA the work is waited for."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from experiments.benchmarks.setting import Figures


class Clock:
    """Started and stopped by hand, where a block cannot be: a callback of someone else's loop."""

    def __init__(self) -> None:
        self.figures: Figures = {}
        self._began = (0.0, 0.0)

    def start(self) -> None:
        """Begin, and forget the peak of memory so far."""
        wait()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.figures["start_mb"] = memory("VmRSS")
        self._began = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """End: fill `figures`."""
        wait()
        wall, cpu = self._began
        self.figures |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        self.figures["peak_mb"] = memory("VmHWM")


@contextmanager
def measured() -> Iterator[Figures]:
    """Figures of a block: wall_s, cpu_s (all threads), start_mb, peak_mb (resident)."""
    clock = Clock()
    clock.start()
    yield clock.figures
    clock.stop()


@contextmanager
def own_memory(figures: Figures) -> Iterator[None]:
    """Add own_mb to the figures of a block: resident memory at most that is no mapped file's, looked at every 50 ms."""
    ended, highest = threading.Event(), [memory("RssAnon")]

    def look() -> None:
        while not ended.wait(0.05):
            highest.append(max(highest.pop(), memory("RssAnon")))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        figures["own_mb"] = highest[0]


def wait() -> None:
    """Until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory(field: str) -> float:
    """A figure of /proc/self/status in MB; elsewhere the highest resident size."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
