"""Stop signals are noted here, and answered where the work is.

A training or adaptation ends its step, saves a checkpoint and leaves (`training.loop.Loop.fit`, which covers the steps;
a signal during the last evaluation ends the process, and the newest checkpoint stands). A prediction keeps its finished
windows (`predict.windows`). A study asks its trainings to stop (`study.workers`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SAME_REQUEST = 10.0
"""Seconds in which further SIGTERMs are the first one again: a scheduler sends it to all processes, and each parent
passes it on to its children, whose checkpoint a second one must not cut short."""


@contextmanager
def stop_signals(interrupt: bool = False) -> Iterator[list[int]]:
    """Catch SIGTERM and SIGINT inside the block, which gives the list of those received; a second one acts as usual,
    but for a SIGTERM within `SAME_REQUEST` of the first signal.

    Outside the main thread (a notebook's, a study's worker thread) signals are left alone and the list stays empty.

    Args:
        interrupt: SIGTERM raises KeyboardInterrupt as Ctrl-C does, and a second signal (launchers send several) is
            ignored, so that it does not disturb the clean-up.
    """
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}
    noted: list[float] = []

    def note(number: int, frame: Any) -> None:
        if noted and number == signal.SIGTERM:
            if time.monotonic() - noted[0] > SAME_REQUEST:
                signal.signal(number, before[signal.SIGTERM])
                os.kill(os.getpid(), number)
            return
        noted.append(time.monotonic())
        received.append(number)
        for signum, handler in before.items():
            if interrupt:
                signal.signal(signum, signal.SIG_IGN)
            elif signum == signal.SIGINT:
                signal.signal(signum, handler)
        if interrupt:
            raise KeyboardInterrupt

    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            before[signum] = signal.signal(signum, note)
    except ValueError:  # not the main thread
        before.clear()
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
