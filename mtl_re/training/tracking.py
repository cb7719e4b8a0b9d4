"""What is told of a run besides its `metrics_log`: manifest.json always, wandb and TensorBoard when asked.

The trackers are views of metrics.jsonl. wandb is reached through accelerate's trackers from this file alone, and runs
offline where it has no key or no network: a run never waits for a dashboard.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mtl_re.config import TrackingConfig
from mtl_re.errors import first_line
from mtl_re.figures import FEW_CLASSES, confusion_heat_map, styled
from mtl_re.files import write_text

PACKAGES = ("mtl-re", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def manifest(data: Mapping[str, Any], seed: int, processes: int, precision: str, device: str) -> dict[str, Any]:
    """Return what one must know to run this again. Environment variables stay out: they hold keys."""
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
    """Return the commit of the working directory and whether it has uncommitted changes; None outside a repository."""
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
    """accelerate's trackers behind four verbs; does nothing when none was asked for.

    Args:
        accelerator: made with `log_with`.
        options: which trackers, and how their runs are filed.
        config: of the run, nested, complete.
    """

    def __init__(self, accelerator: Any, options: TrackingConfig, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.accelerator, self.names, self.run_dir = accelerator, options.trackers, run_dir
        self.artifact = options.artifact
        self.told: set[str] = set()
        if not self.names:
            return
        wandb = {"dir": str(run_dir), "name": run_dir.name} | ({"group": options.group} if options.group else {})
        if "wandb" in self.names and accelerator.is_main_process:
            wandb |= {"id": _wandb_id(run_dir), "resume": "allow"}
        if "wandb" in self.names and (reason := _wandb_offline()):
            wandb["mode"] = "offline"
            self._say(f"wandb: {reason}; this run is kept offline under {run_dir / 'wandb'} (`wandb sync` sends it)")
        accelerator.init_trackers(options.project, config=flatten(config), init_kwargs={"wandb": wandb})

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers among `values`, nested names joined by '/'."""
        if self.names:
            numbers = {k: v for k, v in flatten(values).items() if isinstance(v, int | float)}
            with self._forgiven("figures"):
                self.accelerator.log(numbers, step=step)

    def charts(self, answers: Answers, step: int) -> None:
        """Send the confusion of coarse classes and of labels, and each label's precision over recall: as wandb's own
        charts, as TensorBoard's images and precision-recall curves. On the main process only."""
        if "wandb" in self.names:
            with self._forgiven("charts"):
                self._tracker("wandb").log(_wandb_charts(answers), step=step)
        if "tensorboard" in self.names:
            with self._forgiven("charts"):
                writer = self._tracker("tensorboard")
                _tensorboard_confusions(writer, answers, step)
                for index in np.unique(answers.gold):
                    name = f"precision-recall/{answers.labels[index]}"
                    writer.add_pr_curve(name, answers.gold == index, answers.probs[:, index], global_step=step)

    def finish(self, scores: Mapping[str, Any], step: int, finished: bool) -> None:
        """Close; if the run came to its end, first send the final scores, where there are any, and the model."""
        if not self.names:
            return
        if scores:
            self.log({"final": {k: v for k, v in scores.items() if k not in {"per_label", "ci"}}}, step)
        model = self.run_dir / "model"
        sends = "wandb" in self.names and self.artifact and self.accelerator.is_main_process
        if finished and sends and model.is_dir():
            with self._forgiven("the model"):
                self._tracker("wandb").log_artifact(_wandb_artifact(model, scores))
        for tracker in self.accelerator.trackers:  # `end_training` would destroy the process group under DDP as well
            with self._forgiven("the end of the run"):
                tracker.finish()

    def _tracker(self, name: str) -> Any:
        return self.accelerator.get_tracker(name, unwrap=True)

    @contextmanager
    def _forgiven(self, what: str) -> Iterator[None]:
        """Do not lose a training to a dashboard (its service has died, no room for its copy of the model, a read-only
        home); each kind is told once."""
        try:
            yield
        except Exception as error:  # wandb raises its own kinds, and those of the libraries below it
            if what in self.told:
                return
            self.told.add(what)
            self._say(f"trackers: {what} could not be sent ({first_line(error)})")

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr)


@dataclass(frozen=True)
class Answers:
    """A model's answers to validation rows.

    Attributes:
        labels: names, in the order of the columns. coarse: label → its coarse class.
        gold, predicted: (rows,) label indices. probs: (rows, labels).
    """

    labels: Sequence[str]
    coarse: Mapping[str, str]
    gold: np.ndarray
    predicted: np.ndarray
    probs: np.ndarray

    def by_classes(self) -> dict[str, tuple[str, list[str], np.ndarray, np.ndarray]]:
        """Return, for the coarse classes and for the labels, a title, their names, and (rows,) gold and predicted."""
        groups = list(dict.fromkeys(self.coarse[label] for label in self.labels))
        group_of = np.array([groups.index(self.coarse[label]) for label in self.labels])
        return {
            "coarse": ("Coarse classes", groups, group_of[self.gold], group_of[self.predicted]),
            "labels": ("Labels", list(self.labels), self.gold, self.predicted),
        }


def _tensorboard_confusions(writer: Any, answers: Answers, step: int) -> None:
    for kind, (title, names, gold, predicted) in answers.by_classes().items():
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (gold, predicted), 1)
        side = 2.6 + (1.25 if len(names) <= FEW_CLASSES else 0.3) * len(names)
        with styled(side, side - 1) as figure:
            confusion_heat_map(figure.add_subplot(), counts, names, title)
            writer.add_figure(f"confusion/{kind}", figure, step, close=False)


def _wandb_charts(answers: Answers) -> dict[str, Any]:
    from wandb import plot

    confusions = {
        f"confusion/{kind}": plot.confusion_matrix(
            y_true=gold.tolist(), preds=predicted.tolist(), class_names=names, title=title
        )
        for kind, (title, names, gold, predicted) in answers.by_classes().items()
    }
    labels = list(answers.labels)
    seen = np.unique(answers.gold)  # wandb reads its columns as if they were the classes that occur
    curves = plot.pr_curve(
        y_true=np.searchsorted(seen, answers.gold).tolist(),
        y_probas=answers.probs[:, seen].tolist(),
        labels=[labels[index] for index in seen],
        title="Precision over recall",
    )
    return confusions | {"precision-recall": curves}


def _wandb_artifact(model: Path, scores: Mapping[str, Any]) -> Any:
    from wandb import Artifact

    name = re.sub(r"[^\w.-]", "-", f"{model.parent.name[:100]}-model", flags=re.ASCII)  # wandb allows no other signs
    numbers = {k: v for k, v in scores.items() if isinstance(v, int | float)}
    artifact = Artifact(name, type="model", metadata=numbers)
    artifact.add_dir(str(model))
    return artifact


def _wandb_id(run_dir: Path) -> str:
    """Return the id of a run in wandb, kept in the run directory: a resumed run goes on under it."""
    path = run_dir / "wandb_id.txt"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _wandb_offline() -> str | None:
    """Return why wandb should run offline, or None if it can reach its server (or the user set WANDB_MODE)."""
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
    """Return nested names joined by '/', lists as text: what every tracker can store."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + str(name)] = value if isinstance(value, int | float | str) else str(value)
    return flat
