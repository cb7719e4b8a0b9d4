"""One cell of a study as a training process: start, watch, stop, and what came of it.

The process is `python -m mtl_re train` (or the launcher's) and resumes whatever the run directory holds. When its
worker dies, however that happens, it is asked to stop (SIGTERM: it saves a checkpoint). Its outcome is read from the
run directory, not from memory, so a cell that finished elsewhere is known here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtl_re.files import locked
from mtl_re.training.metrics_log import Line, read_log

TICK = 0.3
"""Seconds between two looks at a running cell."""
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        kind: `stopped`: this worker was told to stop; the cell can go on later.
        score: Best selection score in %; None without validation rows.
        seconds: Of training in this process.
        reason: Of a failure, in one line.
    """

    kind: Literal["done", "failed", "pruned", "stopped"]
    score: float | None = None
    seconds: float | None = None
    reason: str | None = None


def run_cell(
    run_dir: Path, config: Path, launch: str, group: str, log: Path, wanted: Callable[[], bool], trial: Any = None
) -> Outcome:
    """Train a cell to its end.

    Args:
        config: File with the cell's options.
        launch: Words before `-m mtl_re train` (empty: this Python).
        group: Of the experiment tracker.
        log: File to which the process's output is appended.
        wanted: Is asked at every look; False asks the process to stop.
        trial: Optuna's trial to prune by (None: no pruning).
    """
    began = time.monotonic()
    while not finished(run_dir) and in_use(run_dir):  # by a training whose worker is dead or was taken for dead
        if not wanted():
            return Outcome("stopped")
        time.sleep(TICK)
    if not finished(run_dir):
        command = [*(shlex.split(launch) or [sys.executable]), "-m", "mtl_re", "train", "--config", str(config)]
        command += ["--train.run_dir", str(run_dir), "--train.resume", "auto", "--tracking.group", group]
        with log.open("ab") as output:
            offset = output.tell()
            process = start_process(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            asked = _watch(process, run_dir, wanted, trial)
        if asked == "pruned" or not finished(run_dir):
            if asked is not None:
                return Outcome(asked, best_score(run_dir), time.monotonic() - began)
            return Outcome("failed", None, time.monotonic() - began, _reason(process.returncode, log, offset))
    return Outcome("done", best_score(run_dir), round(time.monotonic() - began, 1))


def _watch(
    process: subprocess.Popen[bytes], run_dir: Path, wanted: Callable[[], bool], trial: Any
) -> Literal["stopped", "pruned"] | None:
    """Wait for the process; return why it was asked to stop, if it was."""
    asked: Literal["stopped", "pruned"] | None = None
    reported = 0
    while process.poll() is None:
        if not wanted() and asked is None:
            asked = "stopped"
            process.send_signal(signal.SIGTERM)
        if trial is not None and asked is None:
            scores = selection_scores(run_dir)
            for step, score in scores[reported:]:
                trial.report(score, step)
            if len(scores) > reported and trial.should_prune():
                asked = "pruned"
                process.send_signal(signal.SIGTERM)
            reported = len(scores)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TICK)
    return asked


# ---- what a run directory tells ----------------------------------------------------------------------------------


def finished(run_dir: Path) -> bool:
    """Return whether a run has come to its end: its report is the last file it writes."""
    return (run_dir / "report" / "report.md").is_file()


def in_use(run_dir: Path) -> bool:
    """Return whether a training process holds the run directory."""
    with locked(run_dir / ".lock") as held:
        return held is None


def selection_scores(run_dir: Path) -> list[tuple[int, float]]:
    """Return (step, score in %) of each evaluation so far, from metrics.jsonl."""
    return [(int(line["step"]), float(line["selection"])) for line in _evaluations(run_dir)]


def best_score(run_dir: Path) -> float | None:
    """Return the score of the model that the run kept: the best one's, or with an untrained head the last one's."""
    return next((float(line["selection"]) for line in reversed(_evaluations(run_dir)) if line["best"]), None)


def _evaluations(run_dir: Path) -> list[Line]:
    path = run_dir / "metrics.jsonl"
    return [line for line in read_log(path) if line["kind"] == "valid"] if path.is_file() else []


def _reason(code: int, log: Path, offset: int) -> str:
    """Return the last line of a failed process's output that names an error, else the last line."""
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


# ---- processes that end with their parent --------------------------------------------------------------------------


def start_process(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a process apart from the terminal: Ctrl-C reaches its parent, which then asks it to stop.

    On Linux the system sends it SIGTERM if its parent dies. Elsewhere it runs to its end.
    """
    before = _stop_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, start_new_session=True, preexec_fn=before, **streams)


def _stop_with_parent() -> None:
    """Ask the system, in a child before it starts, to send it SIGTERM when its parent dies."""
    parent = os.getppid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
