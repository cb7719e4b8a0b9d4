"""`--engine ray` on a cluster of two workers: the single process's bytes, through killed workers and killed drivers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import ray_jobs
from conftest import sample_examples

from mtl_re import cli
from mtl_re.config import ExtractConfig, PredictConfig, RayConfig
from mtl_re.errors import MtlReError
from mtl_re.files import protect
from mtl_re.outputs import signature
from mtl_re.predict import extract as extract_run
from mtl_re.predict import predict as predict_run
from mtl_re.predict import ray_cluster, ray_engine

pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NAMES, ROWS, WINDOW = ("a", "b", "c", "d"), 12, 3
OPTIONS = {"window": WINDOW, "batch_size": 4}


@pytest.fixture(autouse=True)
def nothing_protected():
    yield
    protect([])


@pytest.fixture(scope="module")
def cluster():
    """Two workers' cores, shared by the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        import ray

        places = [str(Path(ray_jobs.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(places))  # the workers import `ray_jobs` too
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 waits for everybody on a busy machine
        real = ray.init
        patch.setattr(ray, "init", lambda address, **settings: real(address, **settings, num_cpus=2))
        with ray_cluster.cluster(RayConfig(address="local")):
            yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of four files."""
    folder = tmp_path_factory.mktemp("in")
    rows = [example.to_row() for example in sample_examples("valid", ROWS * len(NAMES))]
    for number, name in enumerate(NAMES):
        write(folder / f"{name}.jsonl", rows[number * ROWS : (number + 1) * ROWS])
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def single(saved, inputs, tmp_path_factory):
    """The bytes of the single process, by the output's name."""
    place = tmp_path_factory.mktemp("single")
    for name in NAMES:
        out = str(place / f"{name}.jsonl")
        predict_run.predict([str(saved)], PredictConfig(str(inputs / f"{name}.jsonl"), out, **OPTIONS))
    return contents(place)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jsonl"}


@pytest.fixture
def run(saved, inputs, tmp_path):
    """Predict the folder into `tmp_path/out`; gives (rows, window → times it was finished)."""

    def call(fatal="", once=True, ckpt=saved, **options):
        log = tmp_path / "log"
        log.write_text("")
        given = {"data": str(inputs), "output": str(tmp_path / "out"), "engine": "ray", "ray": RayConfig(workers=2)}
        settings = PredictConfig(**given | OPTIONS | options)
        load = partial(ray_jobs.watched, [str(ckpt)], settings, str(log), fatal, once)
        rows = ray_engine.run_folder(predict_run.PredictionJob, load, settings, [str(ckpt)])
        return rows, Counter(log.read_text().splitlines())

    return call


def test_a_killed_worker_changes_no_byte(cluster, run, single, tmp_path):
    rows, finished = run(fatal="b.jsonl")
    assert rows == ROWS * len(NAMES)
    assert contents(tmp_path / "out") == single
    expected = [f"{name}.jsonl {window}" for name in NAMES for window in range(ROWS // WINDOW)]
    assert finished == Counter(expected), "each window once: the next worker goes on inside the file"
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == set(single) | {f".written-{name}.json" for name in single}


def test_a_file_that_kills_each_worker_is_named(cluster, run, single, tmp_path):
    patience = f"{ray_engine.TRIES} times"
    with pytest.raises(MtlReError, match=rf"b\.jsonl: the worker that reads it dies, {patience}"):
        run(fatal="b.jsonl", once=False)
    _, finished = run(resume=True)
    assert contents(tmp_path / "out") == single
    assert set(finished) >= {f"b.jsonl {window}" for window in range(ROWS // WINDOW)}


def test_resume_makes_only_what_is_missing_and_refuses_what_is_other(cluster, run, single, tmp_path, capsys):
    out = tmp_path / "out"
    assert sum(run()[1].values()) == ROWS // WINDOW * len(NAMES)
    (out / "c.jsonl").unlink()
    rows, finished = run(resume=True)
    assert (rows, {line.split()[0] for line in finished}) == (ROWS * len(NAMES), {"c.jsonl"})
    assert contents(out) == single
    with pytest.raises(MtlReError, match=r"--resume: .*gate was hard, is soft"):
        run(resume=True, gate="soft")
    assert contents(out) == single
    assert sum(run()[1].values()) == ROWS // WINDOW * len(NAMES), "without --resume all is made again"


def test_a_bad_row_is_named_or_listed(cluster, saved, inputs, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [json.loads(line) for line in (inputs / "a.jsonl").read_text().splitlines()]
    write(folder / "good.jsonl", rows)
    write(folder / "bad.jsonl", [*rows[:4], rows[4] | {"sentence": ""}])
    words = ["predict", saved, "--data", folder, "--output", tmp_path / "out", "--engine", "ray", "--ray.workers", 1]
    assert cli.main([*map(str, words)]) == 1
    said = capsys.readouterr().err
    assert f"mtl-re: error: {folder / 'bad.jsonl'}:5: sentence" in said
    assert "Traceback" not in said
    assert "--resume goes on" in said
    assert cli.main([*map(str, words), "--resume", "--on_bad_row", "skip"]) == 0
    captured = capsys.readouterr()
    assert f"{len(rows) + 4} predictions in" in captured.out
    assert "1 bad rows left out" in captured.err
    listed = (tmp_path / "out" / "_rejected" / "bad.jsonl.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [5]
    assert cli.main([*map(str, words), "--resume"]) == 1, "a finished file with rows left out is no answer to `error`"


def test_a_vote_into_parquet(cluster, saved, inputs, tmp_path):
    options = {"weights": "2,1", **OPTIONS}
    given = PredictConfig(str(inputs), str(tmp_path / "out"), engine="ray", ray=RayConfig(format="parquet"), **options)
    predict_run.predict([str(saved), str(saved)], given)
    alone = PredictConfig(str(inputs / "d.jsonl"), str(tmp_path / "d.parquet"), **options)
    predict_run.predict([str(saved), str(saved)], alone)
    assert (tmp_path / "out" / "d.parquet").read_bytes() == (tmp_path / "d.parquet").read_bytes()


def test_documents_go_the_same_way(cluster, saved, inputs, tmp_path, capsys):
    folder = shutil.copytree(inputs, tmp_path / "in")
    with (folder / f"{NAMES[0]}.jsonl").open("a") as file:
        print(json.dumps({"id": "blank", "sentence": ""}), file=file)
    options = {"threshold": 0.0, "batch_size": 4, "window": WINDOW, "on_bad_row": "skip"}
    given = ExtractConfig(data=str(folder), output=str(tmp_path / "out"), engine="ray", **options)
    total = extract_run.extract(str(saved), given)
    assert "1 bad documents, sentences or pairs left out" in capsys.readouterr().err
    rows = 0
    for name in NAMES:
        alone = tmp_path / f"{name}.jsonl"
        made = ExtractConfig(data=str(folder / alone.name), output=str(alone), **options)
        rows += extract_run.extract(str(saved), made)
        assert (tmp_path / "out" / alone.name).read_bytes() == alone.read_bytes()
    assert total == rows > 0


def test_resume_after_the_driver_is_killed(saved, inputs, single, tmp_path):
    """A cluster of its own, started by the command, ends with it."""
    out = tmp_path / "out"
    words = ["predict", saved, "--data", inputs, "--output", out, "--engine", "ray", "--window", WINDOW]
    command = [sys.executable, "-m", "mtl_re", *map(str, words), "--batch_size", "4"]
    environment = os.environ | {"RAY_worker_niceness": "0"}
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while driver.poll() is None and not list(out.glob(".written-*.json")):
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.glob("*.jsonl")}
    signed = [name for name in kept if signature(out / name) is not None]
    assert signed
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{ROWS * len(NAMES)} predictions in {out}" in done.stdout
    assert contents(out) == single
    now = {name: ((out / name).stat().st_mtime_ns, (out / name).stat().st_ino) for name in signed}
    assert now == {name: kept[name] for name in signed}, "finished files are not touched"
    assert not Path(out, ".lock").exists()
