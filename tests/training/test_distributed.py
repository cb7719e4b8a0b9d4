"""Two processes train what one does: the same gradients, the same evaluation, the same ends (laws 7.3 and 7.6).

gloo on CPU, started by torchrun or, faster, as torchrun would. `accelerate launch --cpu --num_processes 2` would start
one process and exit 0, so every run's own count of processes is checked first.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from distributed_worker import (
    assert_same_run,
    assert_same_tensors,
    last_checkpoint,
    launch_environment,
    launcher,
    lines,
    make_config,
    rows_file,
    run_group,
    shrink,
    torchrun,
    weights,
)

from mtl_re.data import sample
from mtl_re.files import locked
from mtl_re.training.train import train

pytestmark = pytest.mark.slow
STILL = {"dropout": False, "model.dropout": 0.0}
"""No dropout: processes draw different masks."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("rows") / "train.json")


@pytest.fixture
def single(monkeypatch, tmp_path):
    """Train in this process what a job says."""

    def run(job):
        job = dict(job)
        shrink(monkeypatch, job.pop("dropout", True))
        return train(make_config(job | {"train.run_dir": str(tmp_path / "single")}))

    return run


def processes(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())["hardware"]["processes"]


def double(job, tmp_path, **options):
    """Train the job on two processes at half the batch size."""
    run_dir = tmp_path / "double"
    halved = job | {"train.batch_size": job["train.batch_size"] // 2, "train.run_dir": str(run_dir)} | options
    assert run_group(halved, tmp_path) == [0, 0], (tmp_path / "log-0").read_text()[-3000:]
    assert processes(run_dir) == 2
    return run_dir


@pytest.mark.parametrize(
    "options",
    [
        {"data.limit": 33, "data.valid_fraction": 0.2},
        {"data.limit": 33, "data.valid_fraction": 0.0},  # 33 rows in steps of 16: the last one is a single row
        {"loss.reduction": "per_head", "train.accumulate": 2, "train.batch_size": 8},
        {
            "loss.rdrop": 1.0,
            "train.ema": 0.9,
            "train.accumulate": 2,
            "train.batch_size": 8,
        },
    ],
    ids=["uneven", "process without rows", "accumulated per head", "techniques"],
)
def test_two_processes_train_what_one_does(rows, tmp_path, single, options):
    job = STILL | {"data.train": str(rows), "train.batch_size": 16} | options
    one, two = single(job), double(job, tmp_path)
    for a, b in zip(lines(one, "train"), lines(two, "train"), strict=True):
        assert a["labelled_rows"] == b["labelled_rows"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    if options.get("data.valid_fraction") == 0.0:
        assert 1 in [line["labelled_rows"]["coarse"] for line in lines(two, "train")]
    else:
        scores = [json.loads((run / "valid_metrics.json").read_text()) for run in (one, two)]
        assert scores[0]["auprc"] == pytest.approx(scores[1]["auprc"], abs=1e-3)
        assert scores[0]["coarse"] == scores[1]["coarse"]
        for a, b in zip(lines(one, "valid"), lines(two, "valid"), strict=True):
            assert a["selection"] == pytest.approx(b["selection"], abs=1e-3)
    for stem in ("model", "optimizer"):
        assert_same_tensors(last_checkpoint(one).tensors[stem], last_checkpoint(two).tensors[stem], 1e-6)
    assert_same_tensors(weights(one), weights(two), 1e-6)


def test_steps_in_which_a_head_has_no_row(tmp_path, single):
    """First rows without any org label, then one org row: a process (and whole steps) without rows for a head."""
    made = [row for row in sample.rows("train", 120) if not row["label"].startswith("org:")][:23]
    made += [row for row in sample.rows("train", 120) if row["label"].startswith("org:")][:1]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    job = STILL | {"data.train": str(path), "data.valid_fraction": 0.0, "train.batch_size": 8}
    one, two = single(job), double(job, tmp_path)
    assert sorted({line["labelled_rows"]["org"] for line in lines(two, "train")}) == [0, 1]
    assert_same_tensors(weights(one), weights(two), 1e-6)


def test_two_processes_resume_bit_for_bit(rows, tmp_path):
    """With dropout: every process gets its own random state back."""
    job = {"data.train": str(rows), "train.batch_size": 8, "train.save_every": 1, "tracking.log_every": 3}
    whole = double(job, tmp_path)
    run_dir = tmp_path / "stopped"
    halved = job | {"train.batch_size": 4, "train.run_dir": str(run_dir)}
    assert 0 not in run_group(halved | {"stop_rank": [1, 6]}, tmp_path)
    assert last_checkpoint(run_dir).path.name == "step-000005"
    assert run_group(halved | {"train.resume": "auto"}, tmp_path) == [0, 0]
    assert_same_run(run_dir, whole)


def test_one_process_may_take_up_a_run_of_two(rows, tmp_path, monkeypatch):
    """The same steps, in more passes; without dropout the same model."""
    job = STILL | {"data.train": str(rows), "train.batch_size": 8, "train.save_every": 1}
    whole = double(job, tmp_path)
    run_dir = tmp_path / "stopped"
    halved = job | {"train.batch_size": 4, "train.run_dir": str(run_dir)}
    assert 0 not in run_group(halved | {"stop_rank": [0, 6]}, tmp_path)
    shrink(monkeypatch, dropout=False)
    train(make_config({k: v for k, v in halved.items() if k != "dropout"} | {"train.resume": "auto"}))
    assert processes(run_dir) == 1
    assert_same_tensors(weights(run_dir), weights(whole), 1e-6)


def test_heads_of_weight_zero_and_checkpointing(rows, tmp_path, single):
    job = STILL | {"data.train": str(rows), "train.batch_size": 16, "train.epochs": 1}
    job |= {"loss.weights": {"org": 0.0}, "train.gradient_checkpointing": True}
    assert_same_tensors(weights(single(job)), weights(double(job, tmp_path)), 1e-6)


def test_two_processes_always_end(rows, tmp_path):
    """Tearing gloo down behind a living DDP module hangs about one run in four."""
    job = {"data.train": str(rows), "train.batch_size": 4, "train.save_every": 1, "tracking.log_every": 3}
    for number in range(8):
        assert run_group(job | {"train.run_dir": str(tmp_path / str(number))}, tmp_path, timeout=60) == [0, 0]


@pytest.mark.parametrize("fault", ["bad rows", "directory", "one rank"])
def test_a_fault_ends_all_processes_soon(rows, tmp_path, fault):
    job = {"data.train": str(rows), "train.run_dir": str(tmp_path / "run")}
    if fault == "bad rows":
        (tmp_path / "bad.json").write_text(json.dumps([{"sentence": "문장"}]))
        job["data.train"] = str(tmp_path / "bad.json")
    elif fault == "directory":
        (tmp_path / "file").write_text("")
        job["train.run_dir"] = str(tmp_path / "file" / "run")
    else:
        job["stop_rank"] = [0, 3]
    began = time.monotonic()
    done = torchrun(job, tmp_path, timeout=120)
    assert done.returncode != 0
    assert time.monotonic() - began < 90
    said = [line for line in done.stderr.splitlines() if line.startswith("mtl-re: error:")]
    if fault != "one rank":
        assert len(said) == 1, done.stderr[-3000:]
        assert {"bad rows": "bad.json:1", "directory": "cannot be written"}[fault] in said[0]


def test_a_run_in_use_is_refused_to_all_processes(rows, tmp_path):
    with locked(tmp_path / "run" / ".lock"):
        codes = run_group({"data.train": str(rows), "train.run_dir": str(tmp_path / "run")}, tmp_path, timeout=60)
    assert 0 not in codes
    assert "in use by another training process" in (tmp_path / "log-0").read_text()


def test_sigterm_to_the_launcher_saves(rows, tmp_path):
    """What a cluster sends before it takes the machine away."""
    run_dir = tmp_path / "run"
    job = {"data.train": str(rows), "train.run_dir": str(run_dir), "train.epochs": 200, "sleep": 0.1}
    job |= {"train.save_every": 10_000}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    worker = str(Path(__file__).parents[1] / "distributed_worker.py")
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [*launcher(), worker, str(path)], env=launch_environment(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + 90
            while not (run_dir / "metrics.jsonl").exists() or len((run_dir / "metrics.jsonl").read_text()) < 500:
                assert time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
                assert child.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.1)
            child.send_signal(signal.SIGTERM)
            child.wait(60)
        finally:
            child.kill()
            child.wait()
    text = (tmp_path / "log").read_text()
    assert "stopped by a signal" in text, text[-3000:]
    assert last_checkpoint(run_dir).state["processes"] == 2


def test_the_command_line_under_a_launcher(rows, tmp_path):
    """As a user starts it; the run directory is printed once."""
    options = {
        "data.train": rows,
        "data.limit": 24,
        "data.max_length": 96,
        "model.encoder": "scratch:tiny",
        "train.run_dir": tmp_path / "run",
        "train.max_steps": 2,
        "train.batch_size": 4,
        "train.precision": "no",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [*launcher(), "-m", "mtl_re", "train", *arguments],
        env=launch_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [str(tmp_path / "run")]
    assert processes(tmp_path / "run") == 2
