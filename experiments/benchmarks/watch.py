"""Resident memory of a command while it runs, with how far it has come: a child process → samples.

The child's progress bar is the clock: how many steps (or rows) it has taken stands on its stderr, so any command that
shows a bar can be watched, and nothing is added to what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_BAR = re.compile(r"([\d.]+)([kM]?)/[\d.]+[kM]? \[")
_SCALES = {"": 1, "k": 1_000, "M": 1_000_000}


class Sample(NamedTuple):
    """Seconds since the start, steps (or rows) done, resident memory in MB, and its peak so far."""

    seconds: float
    done: int
    resident_mb: float
    peak_mb: float


class Watched(NamedTuple):
    """What came of a command: `ended` is its exit code, or why it was stopped."""

    samples: list[Sample]
    ended: str


def watch(
    command: Sequence[str],
    environment: Mapping[str, str],
    errors: Path,
    every: float = 2.0,
    most_mb: float = float("inf"),
    most_done: float = float("inf"),
) -> Watched:
    """Run a command and sample its memory.

    Args:
        command: what to run. environment: all of it. errors: file that its stderr is written to.
        every: seconds between samples. most_mb, most_done: the command is stopped above this much memory, or after
            this many steps (or rows).
    """
    samples: list[Sample] = []
    with errors.open("wb") as file:
        child = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
        )
        began = time.monotonic()
        try:
            while child.poll() is None:
                time.sleep(every)
                if (memory := resident(child.pid)) is None:
                    continue
                samples.append(Sample(round(time.monotonic() - began, 1), _done(errors), *memory))
                if memory[0] > most_mb:
                    return Watched(samples, f"stopped above {most_mb:,.0f} MB")
                if samples[-1].done >= most_done:
                    return Watched(samples, f"stopped after {samples[-1].done:,}")
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
    return Watched(samples, f"exit code {child.returncode}")


def resident(pid: int) -> tuple[float, float] | None:
    """Resident memory of a process and its peak in MB; None once it has ended."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if line.startswith(("VmRSS", "VmHWM")))
        if len(fields) == 2:
            return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024
    return None


def _done(errors: Path) -> int:
    """Steps (or rows) on the newest progress bar of a file; 0 before the first."""
    with errors.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        bars = _BAR.findall(file.read().decode(errors="replace"))
    return round(float(bars[-1][0]) * _SCALES[bars[-1][1]]) if bars else 0
