"""What a study has done and has left: one trial a job in Optuna's storage, shared by all its workers.

A job is a cell, or in a search an arm with all its seeds. A waiting trial is claimed by one atomic change of state, on
a plain file as on a database. Where several trials of a job exist (two machines enqueued at once, a retry, a machine
lost), `Book.job_trials` says which one counts, the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_re.errors import MtlReError
from mtl_re.study.cell_process import Outcome, locked
from mtl_re.study.study import Cell, Range, Study, check_cell

if TYPE_CHECKING:
    from optuna import Study as Trials
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class Job:
    """What one trial runs: the cells of one arm that are scored together.

    Attributes:
        key: names the trial and the lock. cells: None for an arm that the sampler has yet to choose.
    """

    key: str
    cells: tuple[Cell, ...] | None


@dataclass
class Board:
    """How a study stands: the keys of its jobs by state, and seconds a finished one took."""

    done: dict[str, FrozenTrial] = field(default_factory=dict)
    running: dict[str, FrozenTrial] = field(default_factory=dict)
    failed: dict[str, FrozenTrial] = field(default_factory=dict)
    pruned: dict[str, FrozenTrial] = field(default_factory=dict)
    waiting: dict[str, FrozenTrial | None] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether something is left to do."""
        return bool(self.waiting or self.running)

    def line(self, name: str) -> str:
        """Progress over the whole study, for the person watching."""
        total = sum(len(getattr(self, part.name)) for part in fields(self))
        text = f"study {name}: {len(self.done)}/{total} done, {len(self.running)} running, {len(self.failed)} failed"
        if self.pruned:
            text += f", {len(self.pruned)} pruned"
        seconds = [trial.user_attrs["seconds"] for trial in self.done.values() if trial.user_attrs.get("seconds")]
        if seconds and self.open:
            # a running job is half done on average
            left = sum(seconds) / len(seconds) * (len(self.waiting) + len(self.running) / 2)
            text += f", about {duration(left / max(len(self.running), 1))} left"
        return text


def duration(seconds: float) -> str:
    """`2 h 05 min`, `7 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"


class Book:
    """A study's trials in Optuna's storage, and its jobs."""

    def __init__(self, study: Study) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = study
        for name in ("cells", "locks", "logs"):
            make_folder(study.output / name)
        with locked(study.output / "locks" / ".study", wait=True):  # tables and the study are made once
            self.storage = open_storage(study)
            pruner = optuna.pruners.MedianPruner() if study.pruner == "median" else optuna.pruners.NopPruner()
            self.trials: Trials = optuna.create_study(
                study_name=study.name, storage=self.storage, load_if_exists=True, direction="maximize", pruner=pruner
            )

    @property
    def jobs(self) -> list[Job]:
        """All jobs, in the order in which they are taken."""
        search = self.study.search
        if search is None:
            return [Job(cell.key, (cell,)) for cell in self.study.cells()]
        return [Job(f"trial-{number:04d}", None) for number in range(search.trials)]

    def job_trials(self) -> dict[str, FrozenTrial]:
        """The trial that counts for each job: a finished one, else the oldest that is alive, else the newest fault."""
        found: dict[str, FrozenTrial] = {}
        for trial in self.trials.get_trials(deepcopy=False):
            key = trial.user_attrs.get("job")
            if key is None or trial.user_attrs.get("lost"):
                continue
            if key not in found or _rank(trial) > _rank(found[key]):
                found[key] = trial
        return found

    def board(self) -> Board:
        """How the study stands."""
        board, known = Board(), self.job_trials()
        kinds: dict[str, dict[str, Any]] = {"COMPLETE": board.done, "RUNNING": board.running, "FAIL": board.failed}
        kinds |= {"PRUNED": board.pruned, "WAITING": board.waiting}
        for job in self.jobs:
            trial = known.get(job.key)
            kinds[trial.state.name if trial else "WAITING"][job.key] = trial
        return board

    def enqueue(self, retry: bool = False) -> None:
        """Give every job a trial that has none; with `retry` also those that failed.

        Raises:
            MtlReError: a cell of this name has run, or waits, with other options.
        """
        with locked(self.study.output / "locks" / ".study", wait=True):
            known = self.job_trials()
            for job in self.jobs:
                trial = known.get(job.key)
                digest = job.cells[0].digest if job.cells else self._search_digest()
                if trial is not None and trial.user_attrs.get("digest") != digest:
                    raise MtlReError(
                        f"{job.key}: its options have changed since the study began in {self.study.output}; give the "
                        "changed arm another name, or the study another output"
                    )
                if trial is None or (retry and trial.state.name == "FAIL"):
                    attributes: dict[str, Any] = {"job": job.key, "digest": digest}
                    if job.cells:
                        attributes |= {"arm": job.cells[0].arm, "seed": job.cells[0].seed}
                    self.trials.enqueue_trial({}, user_attrs=attributes)

    def _search_digest(self) -> str:
        return self.study.cell("search", {}, self.study.seeds[0]).digest

    def claim(self, trial: FrozenTrial) -> bool:
        """Take a waiting trial; False if another worker was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            return self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def give_up(self, trial: FrozenTrial) -> None:
        """Put a trial whose worker, on another machine, is dead in the queue anew; only one worker succeeds."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self.storage.set_trial_user_attr(trial._trial_id, "lost", True)
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return
        names = ("job", "digest", "arm", "seed")
        kept: dict[str, Any] = {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
        self.trials.enqueue_trial(dict(trial.params), user_attrs=kept)

    def note(self, trial: FrozenTrial, **attributes: Any) -> None:
        """Write attributes of a trial that is not finished."""
        for name, value in attributes.items():
            self.storage.set_trial_user_attr(trial._trial_id, name, value)

    def tell(self, trial: FrozenTrial, outcome: Outcome) -> None:
        """Finish a trial. Its value is the selection score, 0 where there were no validation rows to score."""
        from optuna.trial import TrialState

        self.note(trial, score=outcome.score, seconds=outcome.seconds, reason=outcome.reason)
        state = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(outcome.kind, TrialState.FAIL)
        values = [outcome.score or 0.0] if outcome.kind == "done" else None
        self.storage.set_trial_state_values(trial._trial_id, state, values)

    def sampled(self, job: Job, trial: FrozenTrial) -> tuple[tuple[Cell, ...], Trial]:
        """The cells of a job, the sampler's choice made if it is open; and Optuna's handle for pruning."""
        import optuna

        search = self.study.search
        if search is not None:
            number = trial.number  # a sampler a trial: workers that start alike do not choose alike
            tpe = search.sampler == "tpe"
            samplers = optuna.samplers
            self.trials.sampler = (
                samplers.TPESampler(seed=number, constant_liar=True) if tpe else samplers.RandomSampler(seed=number)
            )
        handle = optuna.trial.Trial(self.trials, trial._trial_id)
        if search is None:
            return job.cells or (), handle
        settings = {key: _suggest(handle, key, axis) for key, axis in search.axes.items()}
        self.note(trial, settings=settings)
        cells = tuple(self.study.cell(job.key, settings, seed) for seed in self.study.seeds)
        check_cell(self.study, cells[0])
        return cells, handle


def _rank(trial: FrozenTrial) -> tuple[int, int]:
    """Which of a job's trials counts: the greatest."""
    order = {"COMPLETE": 3, "PRUNED": 3, "RUNNING": 2, "WAITING": 2, "FAIL": 1}[trial.state.name]
    return order, trial.number if order == 1 else -trial.number


def _suggest(handle: Trial, key: str, axis: list[Any] | Range) -> Any:
    if isinstance(axis, list):  # Optuna stores scalars only, so choices go by their place
        return axis[handle.suggest_categorical(key, list(range(len(axis))))]
    if axis.whole:
        return handle.suggest_int(key, int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return handle.suggest_float(key, axis.low, axis.high, log=axis.log, step=axis.step)


def searched_arms(study: Study) -> dict[str, dict[str, Any]]:
    """Arms of a search that have been chosen, by name; empty for a study whose arms are written out."""
    if study.search is None:
        return {}
    known = Book(study).job_trials()
    return {key: trial.user_attrs["settings"] for key, trial in sorted(known.items()) if "settings" in trial.user_attrs}


# ---- storage -------------------------------------------------------------------------------------------------


def open_storage(study: Study) -> Any:
    """Optuna's storage: the URL of the study file, else a journal in the output directory.

    Raises:
        MtlReError: it cannot be opened.
    """
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    if study.storage is None:
        path = study.output / "study.journal"
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_journal_lock(path)))
    try:
        return get_storage(study.storage)
    except Exception as error:  # a driver's own exceptions
        text = " ".join(str(error).split())[:300]
        raise MtlReError(f"storage: {study.storage.split('@')[-1]} cannot be opened ({text})") from error


def _journal_lock(path: Path) -> Any:
    """A lock of the journal that the system frees when its holder dies, and that mends a line cut short."""

    class FileLock:  # the interface of Optuna's journal locks
        def acquire(self) -> bool:
            self.held = locked(path.with_name(f".{path.name}.lock"), wait=True)
            self.held.__enter__()
            with path.open("rb+") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
            return True

        def release(self) -> None:
            self.held.__exit__(None, None, None)

    return FileLock()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

    Raises:
        MtlReError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtlReError(f"{folder}: cannot be written ({error.strerror})") from error
