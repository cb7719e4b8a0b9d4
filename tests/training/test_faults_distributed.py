"""One of several processes dies, or reads something else: all end within a bounded time, with the cause named."""

import json
import os
import signal
import socket
import time

import pytest
from distributed_worker import (
    assert_same_run,
    copy_run,
    last_checkpoint,
    lines,
    make_config,
    rows_file,
    shrink,
    start_child,
)

from mtl_re.data import sample
from mtl_re.training.train import train

pytestmark = pytest.mark.slow
PATIENCE = 90
"""Seconds in which all must have ended; a run of these takes a few."""


@pytest.fixture
def rows(tmp_path):
    return rows_file(tmp_path / "rows.json")


def run_each(jobs, folder):
    """One process for each job, as under torchrun; exit codes and what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(jobs))}
    children = [
        start_child(
            job,
            folder / f"log-{rank}",
            shared | {"ACCELERATE_USE_CPU": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, job in enumerate(jobs)
    ]
    end = time.monotonic() + PATIENCE
    for child in children:
        child.join(max(end - time.monotonic(), 0))
    stuck = [rank for rank, child in enumerate(children) if child.exitcode is None]
    for rank in stuck:
        os.kill(children[rank].pid, signal.SIGKILL)
        children[rank].join()
    said = [(folder / f"log-{rank}").read_text() for rank in range(len(jobs))]
    assert not stuck, f"rank(s) {stuck} had not ended: {[text[-2000:] for text in said]}"
    return [child.exitcode for child in children], said


@pytest.mark.parametrize("dead", [0, 1])
def test_one_process_is_killed_and_the_run_goes_on_with_another_number(rows, tmp_path, monkeypatch, dead):
    job = {
        "data.train": str(rows),
        "train.batch_size": 4,
        "train.save_every": 1,
        "train.run_dir": str(tmp_path / "run"),
    }
    jobs = [job | ({"kill": ["mtl_re.training.train.step", 6, "before"]} if rank == dead else {}) for rank in range(2)]
    codes, said = run_each(jobs, tmp_path)
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] not in (0, None)
    assert "another process of this run has ended" in said[1 - dead], said[1 - dead][-3000:]
    assert last_checkpoint(tmp_path / "run").path.name == "step-000005"
    run_dirs = {count: copy_run(tmp_path / "run", tmp_path / f"on-{count}") for count in (1, 2)}
    shrink(monkeypatch)
    train(make_config(job | {"train.run_dir": str(run_dirs[1]), "train.resume": "auto"}))
    codes, said = run_each([job | {"train.run_dir": str(run_dirs[2]), "train.resume": "auto"}] * 2, tmp_path)
    assert codes == [0, 0], said[0][-2000:]
    (tmp_path / "whole").mkdir()
    assert run_each([job | {"train.run_dir": str(tmp_path / "whole" / "run")}] * 2, tmp_path)[0] == [0, 0]
    assert_same_run(run_dirs[2], tmp_path / "whole" / "run")  # exact with the same number
    for run_dir in run_dirs.values():
        assert [line["step"] for line in lines(run_dir, "train")] == list(range(1, 9))  # metrics go on with any


def test_one_process_reads_a_bad_row(rows, tmp_path):
    made = sample.rows("train", 40)
    made[6]["label"] = "per:friend"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(made))
    job = {"train.run_dir": str(tmp_path / "run")}
    codes, said = run_each([job | {"data.train": str(path)} for path in (rows, bad)], tmp_path)
    assert 0 not in codes
    for text in said:
        assert "process 1 of 2" in text, text[-2000:]
        assert "bad.json:7: label" in text


def test_one_process_reads_other_rows(rows, tmp_path):
    """Every process orders its own copy of the rows: this would train on nonsense, in silence."""
    other = rows_file(tmp_path / "other.json", seed=1)
    job = {"train.run_dir": str(tmp_path / "run"), "data.valid_fraction": 0.0}
    codes, said = run_each([job | {"data.train": str(path)} for path in (rows, other)], tmp_path)
    assert 0 not in codes
    for text in said:
        assert "process 1 of 2 has other training rows than process 0" in text, text[-2000:]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_more_processes_than_rows(rows, tmp_path):
    job = {
        "data.train": str(rows),
        "data.limit": 2,
        "data.valid_fraction": 0.0,
        "train.run_dir": str(tmp_path / "run"),
        "train.batch_size": 1,
    }
    codes, said = run_each([job] * 3, tmp_path)
    assert codes == [0, 0, 0], said[0][-2000:]
    assert [line["labelled_rows"]["coarse"] for line in lines(tmp_path / "run", "train")] == [2, 2]


def test_full_disk_on_the_process_that_writes_ends_all(rows, tmp_path):
    """Rank 0's fault reaches the others, with its text."""
    job = {"data.train": str(rows), "train.run_dir": str(tmp_path / "run"), "train.batch_size": 4}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    codes, said = run_each([job] * 2, tmp_path)
    assert 0 not in codes
    for text in said:
        assert "checkpoint not written" in text, text[-2000:]
