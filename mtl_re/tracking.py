"""Where a run's figures go: metrics.jsonl and manifest.json always, wandb and TensorBoard when asked.

`metrics.jsonl` is the record (one object a line, raw unweighted losses, so that curves of different weights can be
compared); the trackers are views of it. wandb is reached through accelerate's trackers from this file alone, and runs
offline where it has no key or no network: a run never waits for a dashboard.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtl_re.errors import MtlReError

PACKAGES = ("mtl-re", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


class MetricsLog:
    """Appends lines to metrics.jsonl; after a resume it first drops the lines behind the resumed step.

    Raises:
        MtlReError: the file cannot be read or written.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        self.forget(resumed_step)

    def forget(self, step: int) -> None:
        """Drop the lines behind a step, and any that a kill or a full disk cut short."""
        with self._faults():
            text = self.path.read_bytes() if self.path.exists() else b""
            kept = [line + b"\n" for line in text.split(b"\n") if _step(line) <= step] if step else []
            partial = self.path.with_name(f".partial-{self.path.name}")
            partial.write_bytes(b"".join(kept))
            os.replace(partial, self.path)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one object."""
        with self._faults(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{self.path}: cannot be written ({error.strerror or error})"
            raise MtlReError(f"{what}; mend that and go on with --train.resume auto") from error


def _step(line: bytes) -> float:
    """The step of a line; a line cut short by a kill is behind every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def manifest(data: Mapping[str, Any], seed: int, processes: int, precision: str, device: str) -> dict[str, Any]:
    """What one must know to run this again. Environment variables stay out: they hold keys."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_state(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "device": device,
            "processes": processes,
            "precision": precision,
        },
        "data": dict(data),
        "seed": seed,
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has uncommitted changes; None outside a repository."""
    try:
        run = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain"], **run).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(dirty.strip())}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Trackers:
    """accelerate's trackers behind three verbs; does nothing when none was asked for.

    Args:
        accelerator: made with `log_with`.
        names: trackers asked for.
    """

    def __init__(
        self, accelerator: Any, names: Sequence[str], project: str, run_dir: Path, config: Mapping[str, Any]
    ) -> None:
        self.accelerator, self.names, self.run_dir = accelerator, names, run_dir
        if not names:
            return
        options = {"dir": str(run_dir), "name": run_dir.name}
        if "wandb" in names and (reason := _wandb_offline()):
            options["mode"] = "offline"
            self._say(f"wandb: {reason}; this run is kept offline under {run_dir / 'wandb'} (`wandb sync` sends it)")
        accelerator.init_trackers(project, config=flatten(config), init_kwargs={"wandb": options})

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers among `values`, nested names joined by '/'."""
        if self.names:
            numbers = {k: v for k, v in flatten(values).items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=step)

    def finish(self, scores: Mapping[str, Any], step: int) -> None:
        """Send the final scores and the confusion table, if there are any, and close."""
        if not self.names:
            return
        if scores:
            self._send(scores, step)
        self.accelerator.end_training()

    def _send(self, scores: Mapping[str, Any], step: int) -> None:
        self.log({"final": {k: v for k, v in scores.items() if k not in {"per_label", "ci"}}}, step)
        if "wandb" in self.names and self.accelerator.is_main_process:
            confusion = scores["coarse"]["confusion"]
            columns = ["gold", *confusion]
            rows = [[gold, *(row.get(name, 0) for name in confusion)] for gold, row in confusion.items()]
            self.accelerator.get_tracker("wandb").log_table("confusion", columns=columns, data=rows, step=step)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr)


def _wandb_offline() -> str | None:
    """Why wandb should run offline, or None if it can reach its server (or the user set WANDB_MODE)."""
    if os.environ.get("WANDB_MODE"):
        return None
    from netrc import NetrcParseError, netrc

    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    name = host.hostname or "api.wandb.ai"
    try:
        known = netrc().authenticators(name) is not None
    except (OSError, NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        return "no key (WANDB_API_KEY or `wandb login`)"
    try:
        socket.create_connection((name, host.port or 443), timeout=3).close()
    except OSError:
        return f"{name} cannot be reached"
    return None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by '/', lists as text: what every tracker can store."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + str(name)] = value if isinstance(value, int | float | str) else str(value)
    return flat
