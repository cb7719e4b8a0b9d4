"""One cell of a study as a training process: start, watch, stop, and what came of it.

The process is `python -m mtl_re train` (or the launcher's), resuming whatever stands in the run directory. It inherits
the job's lock, so a job counts as alive until its training has ended; and it is told to stop (SIGTERM: it saves a
checkpoint) when its worker dies, however that dies. What came of it is read from the run directory, not from memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mtl_re.errors import MtlReError

TICK = 0.3
"""Seconds between two looks at a running cell."""
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        kind: `stopped`: this worker was told to stop; the cell can go on later.
        score: the best selection score in %; None without validation rows.
        seconds: of training in this process. reason: of a failure, in one line.
    """

    kind: Literal["done", "failed", "pruned", "stopped"]
    score: float | None = None
    seconds: float | None = None
    reason: str | None = None


def run_cell(
    run_dir: Path,
    config: Path,
    launch: str,
    group: str,
    log: Path,
    lock: IO[str],
    alive: Callable[[], bool],
    handle: Any = None,
) -> Outcome:
    """Train a cell to its end.

    Args:
        config: the cell's options, as `mtl-re train --config` reads them.
        launch: words before `-m mtl_re` (`accelerate launch ...`); empty: this Python.
        group: of the run, for the trackers.
        log: what the process says is appended here.
        lock: the job's lock, handed on to the process.
        alive: called at every look; False asks the process to stop.
        handle: Optuna's trial to prune by (None: no pruning).
    """
    began = time.monotonic()
    if not finished(run_dir):
        command = [*(shlex.split(launch) or [sys.executable]), "-m", "mtl_re", "train", "--config", str(config)]
        command += ["--train.run_dir", str(run_dir), "--train.resume", "auto", "--tracking.group", group]
        with log.open("ab") as output:
            offset = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C reaches the worker, which then asks the process to stop
                preexec_fn=stop_with_parent,
            )
            asked = _watch(process, run_dir, alive, handle)
        if not finished(run_dir) or asked == "pruned":
            if asked is not None:
                return Outcome(asked, best_score(run_dir), time.monotonic() - began)
            return Outcome("failed", None, time.monotonic() - began, _reason(process.returncode, log, offset))
    return Outcome("done", best_score(run_dir), round(time.monotonic() - began, 1))


def _watch(
    process: subprocess.Popen[bytes], run_dir: Path, alive: Callable[[], bool], handle: Any
) -> Literal["stopped", "pruned"] | None:
    """Wait for the process; why it was asked to stop, if it was."""
    asked: Literal["stopped", "pruned"] | None = None
    reported = 0
    while process.poll() is None:
        if not alive() and asked is None:
            asked = "stopped"
            process.send_signal(signal.SIGTERM)
        if handle is not None and asked is None:
            scores = selection_scores(run_dir)
            for step, score in scores[reported:]:
                handle.report(score, step)
            if len(scores) > reported and handle.should_prune():
                asked = "pruned"
                process.send_signal(signal.SIGTERM)
            reported = len(scores)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TICK)
    return asked


def finished(run_dir: Path) -> bool:
    """Whether a run has come to its end: its report is the last thing it writes."""
    return (run_dir / "report" / "report.md").is_file()


def selection_scores(run_dir: Path) -> list[tuple[int, float]]:
    """(step, score in %) of each evaluation so far, from metrics.jsonl."""
    found = []
    with contextlib.suppress(OSError):
        for text in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line being written
                line = json.loads(text)
                if line.get("kind") == "valid":
                    found.append((int(line["step"]), float(line["selection"])))
    return found


def best_score(run_dir: Path) -> float | None:
    """The score of the model that the run kept."""
    return max((score for _, score in selection_scores(run_dir)), default=None)


def _reason(code: int, log: Path, offset: int) -> str:
    """The last line that names an error, else the last line, of what a failed process said."""
    with log.open("rb") as file:
        file.seek(offset)
        text = file.read()[-100_000:].decode("utf-8", errors="replace")
    lines = [line.strip() for part in text.splitlines() for line in part.split("\r") if line.strip()]
    named = [line for line in lines if "error:" in line.lower()]
    said = (named or lines or ["it said nothing"])[-1].removeprefix("mtl-re: error: ")[:500]
    if code == 0:
        said = "stopped by a signal before its end"
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{said} ({how}; all of it: {log})"


# ---- life and death ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[IO[str] | None]:
    """Hold a lock file; None if it is taken and `wait` is off. The system frees it when every holder has ended.

    Raises:
        MtlReError: the file cannot be made.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise MtlReError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file


def stop_with_parent() -> None:
    """In a child before it starts: ask the system to send it SIGTERM when its parent dies (Linux only)."""
    if _LIBC is not None:
        parent = os.getppid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
