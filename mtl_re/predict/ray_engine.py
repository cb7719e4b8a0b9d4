"""`--engine ray`: the files of a folder through a pool of workers, which Ray Data starts, feeds and replaces.

A unit of work is a file of the input (`folders.Unit`). A worker is a Ray actor that loads the models once and runs the
same `windows.WindowJob` on each file that a single process runs, so the bytes are the same; and it leaves the same
parts, so that the worker that follows a killed one goes on inside the file. Scheduling, restarts and repeats are Ray's:
its rows here are units, its results a few counts. Ray repeats without end what kills its worker, so tries are counted
on the disk. A fault of the input comes back as text, for Ray would wrap an exception.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mtl_re.config import ExtractConfig, PredictConfig
from mtl_re.errors import MtlReError, first_line, tell
from mtl_re.files import being_written, protect
from mtl_re.outputs import input_files
from mtl_re.predict.folders import Unit, check_begun, counts_of, forget, made_of, note_finished, strays, units_of
from mtl_re.predict.ray_cluster import check_launch, cluster, pool
from mtl_re.predict.windows import WindowJob
from mtl_re.signals import stop_signals

TRIES = 3
"""Times that a file is begun whose worker dies, before the whole work is given up."""
MAX_NOTES = 20
"""Notes of the workers that are shown."""
MakeJob = Callable[[Unit], WindowJob[Any]]
"""Makes the job of one file."""
LoadJobs = Callable[[str | None], MakeJob]
"""Loads the models onto a device (None: the process's choice) and returns what makes jobs with them; it is pickled on
its way to the workers."""


@dataclass(frozen=True)
class Assignment:
    """What every worker is told.

    Attributes:
        load: Loads the models. options: The command's. made: Suffix of an output → what such an output is made of,
            apart from its input. inputs: Files that nothing may replace. folder: The output folder. workers: Their
            number.
    """

    load: LoadJobs
    options: PredictConfig | ExtractConfig
    made: Mapping[str, Mapping[str, Any]]
    inputs: Sequence[Path]
    folder: str
    workers: int


def run_folder(
    job: type[WindowJob[Any]], load: LoadJobs, options: PredictConfig | ExtractConfig, reads: Sequence[Any]
) -> int:
    """Make all outputs of a folder.

    Args:
        job: What is run on each file; its names stand in messages.
        load: Loads what the options name; its paths are absolute (see `absolute`).
        reads: The values of the options that name inputs, beside the data.

    Returns:
        The number of rows in all outputs.

    Raises:
        MtlReError: Ray is missing or does not answer; options, models or a file are at fault; workers keep dying; or
            `--resume` finds outputs that were made otherwise. Finished outputs stand.
    """
    check_launch()
    units = units_of(options)
    folder = units[0].folder
    with being_written(Path(folder), Path(folder, ".lock"), job.command):
        made = _plan(job.command, load, options, units)
        with cluster(options.ray), stop_signals(interrupt=True):
            workers, reserved = pool(options.ray, len(units))
            assignment = Assignment(load, options, made, input_files(reads), folder, workers)
            return _run(job, assignment, units, reserved)


def absolute(path: str) -> str:
    """Return the name under which a worker finds what lies here at `path`; a hub id is left as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path


# ---- before --------------------------------------------------------------------------------------------------------


def _plan(
    command: str, load: LoadJobs, options: PredictConfig | ExtractConfig, units: Sequence[Unit]
) -> dict[str, Mapping[str, Any]]:
    """Find out what the outputs will be made of, and make ready what stands in the folder.

    The models are loaded here too, on the CPU, so that a fault of theirs or of an option is reported before Ray starts.
    """
    make = load("cpu")
    of_suffix = {unit.output.suffix: unit for unit in units}
    made: dict[str, Mapping[str, Any]] = {}
    for suffix, unit in of_suffix.items():
        made[suffix] = made_of(make(unit).fingerprint(), options)
    for tries in (*map(_tries, units), _loads(units[0].folder)):
        tries.unlink(missing_ok=True)
    if options.resume:
        for unit in units:
            check_begun(unit, made[unit.output.suffix])
    elif lost := sum(map(forget, units)):
        thrown = f"{lost:,} rows of an interrupted `mtl-re {command}` are thrown away"
        tell(f"{units[0].folder}: {thrown} (--resume would keep them)")
    if others := strays(units):
        named = ", ".join(map(str, others[:3])) + (", ..." if len(others) > 3 else "")
        what = f"{len(others):,} outputs are of no file in {options.data} any more"
        tell(f"{units[0].folder}: {what}; remove them, or move them away: {named}")
    return made


# ---- the work ------------------------------------------------------------------------------------------------------


class FileWorker:
    """A Ray actor: loads the models once, and makes the output of one file at each call.

    Nothing is raised: a fault is part of the answer (`fault`, "" for none).
    """

    def __init__(self, assignment: Assignment) -> None:
        self.assignment, self.fault, self.make = assignment, dict[str, Any](), None
        with self._faults("the models"):
            what = "the worker dies while it loads the models"
            with _counted(_loads(assignment.folder), assignment.workers * TRIES, what):
                self.make = assignment.load(None)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make one output.

        Args:
            row: A `Unit`'s fields.

        Returns:
            The unit's data; `rows`, `read`, `left_out`; `fresh`, whether it was made now; `notes`, what was said on
            stderr; and the fault: `fault`, `foreseen`, `trace`.
        """
        unit, notes, result = Unit(**row), io.StringIO(), {"rows": 0, "read": 0, "left_out": 0, "fresh": False}
        if self.make is not None:
            self.fault = {}
            with redirect_stderr(notes), self._faults(unit.data):
                result = self._made(self.make, unit)
        none = {"fault": "", "foreseen": True, "trace": ""}
        return {"data": unit.data, **result, "notes": notes.getvalue(), **none, **self.fault}

    def _made(self, make: MakeJob, unit: Unit) -> dict[str, Any]:
        protect([Path(unit.data), *self.assignment.inputs])
        job = make(unit)
        job.rejected, job.quiet = unit.rejected, True
        job.may_be_empty = self.assignment.options.on_bad_row == "skip"
        made = made_of(job.fingerprint(), self.assignment.options)
        wanted = self.assignment.made[unit.output.suffix]
        if odd := [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]:
            what = "what lies at the paths given is not the same as where the command was started"
            raise MtlReError(f"on {socket.gethostname()} {what} ({', '.join(odd)}); copy it, or share the folder")
        made["data"] = job.digest()
        counts = counts_of(unit, made)
        if counts is not None and not (counts["left_out"] and self.assignment.options.on_bad_row == "error"):
            return {**counts, "fresh": False}
        with _counted(_tries(unit), TRIES, f"{unit.data}: the worker that reads it dies"):
            rows = job.run()
        counts = {"rows": rows, "read": job.read, "left_out": job.left_out}
        note_finished(unit, made, **counts)
        return {**counts, "fresh": True}

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """Keep what is raised in the block as `self.fault`."""
        try:
            yield
        except MtlReError as error:
            self.fault = {"fault": str(error), "foreseen": True}
        except Exception as error:
            text = f"{what}: {type(error).__name__}: {first_line(error)}"
            self.fault = {"fault": text, "foreseen": False, "trace": traceback.format_exc()}


def _tries(unit: Unit) -> Path:
    return unit.output.with_name(f".tries-{unit.output.name}")


def _loads(folder: str) -> Path:
    return Path(folder, ".tries")


@contextmanager
def _counted(file: Path, most: int, what: str) -> Iterator[None]:
    """Count in a file how often a block is begun that a killed process does not end; its size is the number.

    Raises:
        MtlReError: It was begun so many times already.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as tries:
        if tries.tell() >= most:
            what += f", {most} times so far"
            raise MtlReError(
                f"{what}; is there too little memory? Ask for fewer --ray.workers, or a smaller --batch_size"
            )
        tries.write(b".")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _run(job: type[WindowJob[Any]], assignment: Assignment, units: Sequence[Unit], reserved: Mapping[str, Any]) -> int:
    """Give the units to workers, show the progress, and return the number of rows in all outputs.

    Raises:
        MtlReError: A unit is at fault, or its workers keep dying.
    """
    import ray

    rows = 0
    try:
        with _Bar(job, len(units)) as bar:
            for result in _results(assignment, units, reserved):
                bar.add(result)
                if result["fault"]:
                    raise _fault_of(result)
                rows += result["rows"]
    except ray.exceptions.RayError as error:
        raise MtlReError(f"Ray gives up ({first_line(error)}). {_kept(units)}") from error
    except BaseException:
        tell(_kept(units))
        raise
    return rows


def _results(assignment: Assignment, units: Sequence[Unit], reserved: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answer to each unit, as they come. Large files go first, so that none is left alone at the end."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    large_first = sorted(units, key=lambda unit: -os.path.getsize(unit.data))
    rows = ray.data.from_items([asdict(unit) for unit in large_first], override_num_blocks=len(units))
    # One task at a time for each worker, so that no file waits behind a busy one.
    actors = ActorPoolStrategy(size=assignment.workers, max_tasks_in_flight_per_actor=1)
    worker: Any = FileWorker
    yield from rows.map(worker, compute=actors, fn_constructor_args=[assignment], **reserved).iter_rows()


def _fault_of(result: Mapping[str, Any]) -> Exception:
    """Return a worker's fault as it would be raised here: as one of the input, or as one of the program."""
    if result["foreseen"]:
        return MtlReError(result["fault"])
    error = RuntimeError(result["fault"])
    error.__cause__ = RuntimeError(f"in a worker:\n{result['trace']}")
    return error


def _kept(units: Sequence[Unit]) -> str:
    return f"{units[0].folder}: what is finished is kept; the same command with --resume goes on from there"


class _Bar:
    """Progress over the files, with the rows read and their rate; rows of files that were finished before count not."""

    def __init__(self, job: type[WindowJob[Any]], files: int) -> None:
        self._bar = tqdm(total=files, desc=job.command, unit="file", file=sys.stderr)
        self._left_out_name = job.left_out_name
        self._rows, self._left_out, self._notes, self._start = 0, 0, 0, time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *fault: object) -> None:
        self._bar.close()
        if self._left_out:
            tell(f"{self._left_out:,} {self._left_out_name} left out, listed in the folder _rejected of the output")

    def add(self, result: Mapping[str, Any]) -> None:
        """Count one finished file, and show what its worker said."""
        for note in result["notes"].splitlines():
            self._notes += 1
            if self._notes <= MAX_NOTES:
                self._bar.write(note, file=sys.stderr)
        self._left_out += result["left_out"]
        self._rows += result["read"] if result["fresh"] else 0
        rate = self._rows / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{self._rows:,} rows, {rate:,.0f} rows/s", refresh=False)
        self._bar.update(not result["fault"])
