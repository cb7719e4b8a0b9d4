"""The directory of a run: chosen, made, and held by one training process at a time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from mtl_re.errors import MtlReError
from mtl_re.files import locked, read_json
from mtl_re.training import checkpoint

WRITTEN = ("config.yaml", "manifest.json", "metrics.jsonl", "valid_metrics.json", "rejected.jsonl", "report", "model")
"""What a run writes besides its checkpoints, which have names of their own."""
ENDS_WITH = ("valid_metrics.json", "report")
"""What a run writes when it has ended."""


def claim_run_dir(option: str | None, resume: str | None, name: str, resources: ExitStack) -> Path:
    """Choose, make and lock the run's directory.

    Args:
        option: `train.run_dir`. resume: `train.resume`.
        name: Of the config, for the default directory.
        resources: Holds the lock.

    Raises:
        MtlReError: The directory holds another run, and `train.resume` is not set or names another run; it holds
            files of something else under names that a run writes, is in use, or cannot be made.
    """
    if resume not in (None, "auto") and not (Path(str(resume)) / checkpoint.MANIFEST).is_file():
        raise MtlReError(f"train.resume: {resume} is no checkpoint; give `auto` or a directory checkpoints/step-NNNNNN")
    if resume not in (None, "auto"):
        run_dir = _run_of(Path(str(resume)), option)
    elif option is not None:
        run_dir = Path(option)
    elif resume == "auto":
        raise MtlReError("train.resume: auto needs train.run_dir, the run to go on with")
    else:
        run_dir = _fresh(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    _refuse_other_files(run_dir)
    try:
        held = resources.enter_context(locked(run_dir / ".lock"))
    except MtlReError as error:
        raise MtlReError(f"train.run_dir: {error}") from error
    if held is None:
        raise MtlReError(f"train.run_dir: {run_dir} is in use by another training process")
    if resume is None and (run_dir / "metrics.jsonl").exists():
        raise MtlReError(f"train.run_dir: {run_dir} holds a run; add --train.resume auto to go on, or name another")
    return run_dir


def _run_of(named: Path, option: str | None) -> Path:
    """Return the run whose checkpoint is named: it goes on in its own directory, where its log and best model are."""
    run_dir = named.absolute().parent.parent
    if named.absolute().parent.name != "checkpoints":
        raise MtlReError(f"train.resume: {named} does not lie in a run; a run has it as RUN/checkpoints/step-NNNNNN")
    if option is not None and Path(option).resolve() != run_dir.resolve():
        what = f"{option}, but train.resume names a checkpoint of {run_dir}"
        raise MtlReError(f"train.run_dir: {what}; leave it out, or copy that run and name the copy's checkpoint")
    return run_dir if option is None else Path(option)


def _refuse_other_files(run_dir: Path) -> None:
    """Raise MtlReError where a run would write over files that no run has written.

    An empty file holds nothing to lose: a run that is killed at once leaves an empty metrics.jsonl, and no config.yaml.
    """
    paths = ((name, run_dir / name) for name in WRITTEN)
    taken = [name for name, path in paths if path.is_dir() or (path.exists() and path.stat().st_size)]
    steps = checkpoint.whole_names(run_dir / "checkpoints")  # a run prunes them
    if not all((step / checkpoint.MANIFEST).is_file() for step in steps):
        taken.append("checkpoints")
    if taken and not _is_run(run_dir):
        what = f"{run_dir} holds {', '.join(taken)}, which this program did not write"
        raise MtlReError(f"train.run_dir: {what}; name another directory")


def _is_run(run_dir: Path) -> bool:
    """Return whether a run has begun here, even if it was killed soon: it writes the lock, an empty metrics.jsonl, then
    config.yaml, then manifest.json, and all else later."""
    config, manifest = run_dir / "config.yaml", run_dir / "manifest.json"
    if config.exists():
        ours = "\ntracking:" in config.read_text(encoding="utf-8", errors="replace")
        return ours and ((run_dir / ".lock").exists() or manifest.exists())
    try:
        return "mtl-re" in read_json(manifest)["versions"]
    except (MtlReError, KeyError, TypeError):
        return False


def _fresh(path: Path) -> Path:
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
