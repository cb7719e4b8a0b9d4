"""The queue of a study's cells, shared by all workers: what waits, runs or is finished, and how a cell is retried.

Each cell is one trial in Optuna's database (in a search each arm, with all its seeds). A running trial has a heartbeat;
Optuna fails a trial whose heartbeat has stopped and queues a copy of it (`RetryHeartbeatStaleTrialCallback`), whose
training resumes from the checkpoint, because the run directory is the same. A failed trial without a reason was
interrupted with its worker and is queued again as well; one with a reason (its training failed, or something else than
the study stopped or killed it) is queued again only by `--retry`. Interrupted cells are taken before those that have
never begun: a study that runs a few hours a day finishes cells instead of beginning all of them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mtl_re.errors import MtlReError
from mtl_re.files import make_directory
from mtl_re.study.study import Cell, Range, Study, check_cell

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

BEAT = 10
"""Seconds between two heartbeats of a running trial."""
GRACE = 60
"""Seconds without a heartbeat after which a trial's worker is taken for dead."""
BUSY = 60
"""Seconds that a process waits for another's write to an SQLite database."""


@dataclass
class Progress:
    """How a study stands: its trials by key in each state, in the order in which they are taken."""

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
        """Return the state of the whole study in one line, with an estimate of the time left."""
        total = sum(len(getattr(self, part.name)) for part in fields(self))
        text = f"study {name}: {len(self.done)}/{total} done, {len(self.running)} running, {len(self.failed)} failed"
        if self.pruned:
            text += f", {len(self.pruned)} pruned"
        seconds = [trial.user_attrs["seconds"] for trial in self.done.values() if trial.user_attrs.get("seconds")]
        if seconds and self.open:
            # a running trial is half done on average
            left = sum(seconds) / len(seconds) * (len(self.waiting) + len(self.running) / 2)
            text += f", about {duration(left / max(len(self.running), 1))} left"
        return text


def duration(seconds: float) -> str:
    """Return `2 h 05 min`, `7 min` or `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"


class CellQueue:
    """A study's trials in Optuna's database."""

    def __init__(self, study: Study) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = study
        for name in ("cells", "logs"):
            make_directory(study.output / name)
        pruner = optuna.pruners.MedianPruner() if study.pruner == "median" else optuna.pruners.NopPruner()
        with self._locked(), _experimental():
            self._retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
            self.storage = open_storage(study, self._retry)
            self.trials = optuna.create_study(
                study_name=study.name,
                storage=self.storage,
                load_if_exists=True,
                direction="maximize",
                pruner=pruner,
            )

    def _locked(self) -> FileLock:
        """Let one worker at a time look and choose: on SQLite, Optuna may hand a waiting trial to two processes."""
        return FileLock(self.study.output / "queue.lock")

    @property
    def planned(self) -> dict[str, Cell | None]:
        """Keys of the study's trials in the order in which they are taken; None where a sampler chooses the arm."""
        if self.study.search is None:
            return {cell.key: cell for cell in self.study.cells()}
        return {f"trial-{number:04d}": None for number in range(self.study.search.trials)}

    def counted(self) -> dict[str, FrozenTrial]:
        """Return the trial that counts for each key: a finished one, else the oldest alive, else the newest failed.

        A key has several trials after a retry, or if two machines without a common disk queued it at the same time.
        """
        trials = sorted(self.trials.get_trials(deepcopy=False), key=_rank)
        return {trial.user_attrs["job"]: trial for trial in trials if trial.user_attrs.get("job")}

    def progress(self) -> Progress:
        """Return how the study stands."""
        progress, counted = Progress(), self.counted()
        states: dict[str, dict[str, Any]] = {"COMPLETE": progress.done, "RUNNING": progress.running}
        states |= {"FAIL": progress.failed, "PRUNED": progress.pruned, "WAITING": progress.waiting}
        for key in self.planned:
            trial = counted.get(key)
            waits = trial is None or _interrupted(trial)
            states["WAITING" if waits else trial.state.name][key] = trial  # type: ignore[union-attr] # None waits
        return progress

    def enqueue(self, retry_failed: bool = False) -> None:
        """Queue every cell that has no trial, and again those whose trial was interrupted or, if asked for, has failed.

        Raises:
            MtlReError: A cell of the same name has run or waits with other options.
        """
        with self._locked():
            self._enqueue(retry_failed)

    def _enqueue(self, retry_failed: bool = False) -> None:
        self._fail_silent()
        counted = self.counted()
        searched: tuple[str, ...] = () if self.study.search is None else self._search_digests()
        again = []
        for key, cell in self.planned.items():
            trial = counted.get(key)
            digests = (cell.digest,) if cell else searched
            if trial is None:
                attributes = {"job": key, "digest": digests[0]} | ({"arm": cell.arm, "seed": cell.seed} if cell else {})
                self.trials.enqueue_trial({}, user_attrs=attributes)
            elif trial.user_attrs.get("digest") not in digests:
                raise MtlReError(
                    f"{key}: its options have changed since the study began in {self.study.output}; give the changed "
                    "arm another name, or the study another output"
                )
            elif _interrupted(trial) or (retry_failed and trial.state.name == "FAIL"):
                again.append(trial)
        for trial in again:
            self._retry(self.trials, trial)
        if again:
            self._requeue_untouched()

    def _requeue_untouched(self) -> None:
        """Move the trials that have never begun to the end of the queue, which Optuna takes in order of number."""
        from optuna.trial import TrialState

        study_id = self.storage.get_study_id_from_name(self.study.name)
        for trial in self.trials.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            if "begun" in trial.user_attrs:
                continue
            attributes = dict(trial.user_attrs)
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):  # else a worker has just taken it
                self.storage.set_trial_user_attr(trial_id, "job", None)
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                self.trials.enqueue_trial({}, user_attrs=attributes)

    def _search_digests(self) -> tuple[str, str]:
        """Return the digest of a search's options with its lists of choices, which Optuna stores by their numbers; and
        that of the options alone, which older versions kept."""
        assert self.study.search is not None
        lists = {name: axis for name, axis in self.study.search.axes.items() if isinstance(axis, list)}
        digest = self.study.cell("search", {}, self.study.seeds[0]).digest
        return digest if not lists else hashlib.sha256(f"{digest}{lists!r}".encode()).hexdigest(), digest

    def _fail_silent(self) -> None:
        """Fail the trials whose workers are dead."""
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        with _experimental():
            fail_stale_trials(self.trials)
        # Optuna overlooks a trial without any heartbeat: killed as it began, or of a version that sent none.
        long_ago = datetime.now() - timedelta(seconds=GRACE)
        for trial in self.trials.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if trial.user_attrs.get("begun") != trial.number and trial.datetime_start < long_ago:  # type: ignore[operator] # it runs
                self.trials.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def take(self, run: Callable[[str, Trial], float]) -> bool:
        """Run the next waiting trial under a heartbeat and record what comes of it.

        Args:
            run: Is called with the trial's key and Optuna's handle, and returns the trial's value. Raises TrialPruned,
                or MtlReError for a failure; the user attribute `reason` says whether the cell was at fault.

        Returns:
            Whether there was one.
        """
        with ExitStack() as choosing:
            choosing.enter_context(self._locked())
            self._enqueue()
            if not self.progress().waiting:
                return False

            def objective(trial: Trial) -> float:
                key = trial.user_attrs.get("job")
                if key not in self.planned or self.counted()[key].number != trial.number:
                    trial.set_user_attr("job", None)  # the study file lost it, or another trial counts for this key
                    raise MtlReError(f"{key}: set aside")
                trial.set_user_attr("begun", trial.number)
                trial.set_user_attr("reason", None)
                choosing.close()
                return run(key, trial)

            try:
                self.trials.optimize(objective, n_trials=1, catch=(MtlReError,))
            except ValueError as error:
                # Another worker took this one for dead (the machine slept, say), and its trial for failed.
                if "Cannot tell a" not in str(error):
                    raise
        return True

    def cells(self, key: str, trial: Trial) -> tuple[Cell, ...]:
        """Return the cells of a trial. In a search the sampler chooses their arm, unless the trial is a retried one.

        Raises:
            MtlReError: The options that the sampler chose are wrong.
        """
        from optuna.samplers import RandomSampler, TPESampler

        if (cell := self.planned[key]) is not None:
            return (cell,)
        search = self.study.search
        assert search is not None
        number = trial.number  # a sampler for each trial: workers that start alike do not choose alike
        tpe = search.sampler == "tpe"
        self.trials.sampler = TPESampler(seed=number, constant_liar=True) if tpe else RandomSampler(seed=number)
        settings = {name: _suggest(trial, name, axis) for name, axis in search.axes.items()}
        trial.set_user_attr("settings", settings)
        cells = tuple(self.study.cell(key, settings, seed) for seed in self.study.seeds)
        check_cell(self.study, cells[0])
        return cells


def _rank(trial: FrozenTrial) -> tuple[int, int]:
    """Return which of a key's trials counts: the greatest."""
    order = {"COMPLETE": 3, "PRUNED": 3, "RUNNING": 2, "WAITING": 2, "FAIL": 1}[trial.state.name]
    return order, trial.number if order == 1 else -trial.number


def _interrupted(trial: FrozenTrial) -> bool:
    return trial.state.name == "FAIL" and not trial.user_attrs.get("reason")


def _suggest(trial: Trial, key: str, axis: list[Any] | Range) -> Any:
    if isinstance(axis, list):  # Optuna stores scalars only, so a choice is stored by its number
        return axis[trial.suggest_categorical(key, list(range(len(axis))))]
    if axis.whole:
        return trial.suggest_int(key, int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return trial.suggest_float(key, axis.low, axis.high, log=axis.log, step=axis.step)


def searched_arms(study: Study) -> dict[str, dict[str, Any]]:
    """Return the arms that a search has chosen so far, by name; none for a study whose arms are written out."""
    if study.search is None:
        return {}
    trials = sorted(CellQueue(study).counted().items())
    return {key: trial.user_attrs["settings"] for key, trial in trials if "settings" in trial.user_attrs}


# ---- the database ------------------------------------------------------------------------------------------------


def open_storage(study: Study, retry: Callable[[Any, FrozenTrial], None]) -> RDBStorage:
    """Open Optuna's database: the study file's `storage` (an SQLAlchemy URL), else SQLite in the output directory.

    Workers on several machines need a database server, or a disk that all of them lock alike.

    Raises:
        MtlReError: It cannot be opened, or the search was begun by a version that kept a journal.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import NullPool

    file = study.output / "study.db"
    journal = study.output / "study.journal"
    if study.storage is None and study.search and journal.exists() and not file.exists():
        fault = f"{journal}: holds a search of an older version, whose choices cannot be continued"
        raise MtlReError(f"{fault}; give the study another output, or finish it with the version that began it")
    url = study.storage or f"sqlite:///{file.as_posix()}"
    options = {"connect_args": {"timeout": BUSY}, "poolclass": NullPool} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(
            url, options, heartbeat_interval=BEAT, grace_period=GRACE, heartbeat_stale_trial_callback=retry
        )
    except Exception as error:  # a driver's own exceptions
        text = " ".join(str(error).split())[:300]
        raise MtlReError(f"storage: {url.split('@')[-1]} cannot be opened ({text})") from error


def _experimental() -> Any:
    """Silence Optuna's notes that heartbeats may change in a later version."""
    from optuna.exceptions import ExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=ExperimentalWarning)
