"""The Ray cluster: one that runs, or workers on this machine; and what each worker may take of it.

Enters: the options `ray`. Leaves: a connection (`cluster`), and the number of workers with the cores or the GPU that
Ray is to reserve for each (`pool`), so that no machine computes with more threads than it has cores: Ray sets a
worker's OMP_NUM_THREADS to its cores, unless the environment sets it. Usage statistics and the dashboard stay off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mtl_re.config import RayConfig
from mtl_re.errors import MtlReError, first_line, tell

CORES = 4
"""Cores of a worker where nobody says how many workers there are to be."""
_OBJECTS = 128 << 20  # bytes of Ray's object store on this machine: units and counts are all that passes through it
_SOCKETS = 72  # bytes of the path from TMPDIR to a socket of Ray; the system allows 103 in all (Linux 107)


def check_launch() -> None:
    """Raise MtlReError if Ray is not installed, or a launcher has started several processes already."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        what = f"--engine ray needs Ray, which cannot be imported here ({first_line(error)})"
        raise MtlReError(f"{what}; pip install -e '.[ray]' in the checkout") from error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MtlReError("--engine ray starts its own workers; leave torchrun or accelerate launch out")


@contextmanager
def cluster(options: RayConfig) -> Iterator[None]:
    """Connect to a cluster, or start workers on this machine; a connection that the program has already is used.

    Raises:
        MtlReError: No cluster answers at the address, or none can be started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False, "object_store_memory": _OBJECTS, "_temp_dir": _short_directory()}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises bare ones too, such as for a machine too busy to start on
        what = "Ray cannot be started" if own else f"--ray.address {address}: no cluster answers"
        raise MtlReError(f"{what} ({first_line(error)})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _short_directory() -> str | None:
    """Return where Ray is to keep its sockets if its own choice is too long a path for them (None: it is not)."""
    own = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or ""
    return "/tmp/ray" if len(os.fsencode(own)) + _SOCKETS > 103 and os.name == "posix" else None


def shares(cores: Sequence[int], workers: int | None, units: int) -> tuple[int, int]:
    """Divide machines between workers, no more of them than there are files.

    Args:
        cores: Of each machine.
        workers: As many as are asked for (None: one for every `CORES` cores of a machine).

    Returns:
        The number of workers, and how many cores each takes: as many as possible with room for all.

    Raises:
        MtlReError: More workers are asked for than there are cores.
    """

    def room(each: int) -> int:
        return sum(number // each for number in cores)

    if room(1) < (workers or 1):
        raise MtlReError(f"--ray.workers {workers or 1}: the cluster has {room(1)} cores; ask for no more workers")
    number = min(units, workers or max(1, room(CORES)))
    return number, max(each for each in range(1, max(cores) + 1) if room(each) >= number)


def pool(options: RayConfig, units: int) -> tuple[int, dict[str, Any]]:
    """Return the number of workers, and what Ray is to reserve for each.

    Raises:
        MtlReError: More are asked for than the cluster has room for.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        if (options.workers or 1) > gpus:
            raise MtlReError(f"--ray.workers {options.workers}: each takes a GPU, and the cluster has {gpus}")
        workers, reserved = min(units, options.workers or gpus), {"num_gpus": 1.0}
        what = "a GPU"
    else:
        workers, cores = shares([int(machine.get("CPU", 0)) for machine in machines], options.workers, units)
        reserved, what = {"num_cpus": float(cores)}, f"{cores} core(s)"
    tell(f"Ray: {units:,} files, {workers} worker(s) with {what} each, {len(machines)} machine(s)")
    return workers, reserved
