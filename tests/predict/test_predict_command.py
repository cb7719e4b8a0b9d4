"""`mtl-re predict` survives: interrupted anywhere, taken up by one process or several, its output is the same bytes."""

import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch
from conftest import sample_examples
from distributed_worker import launch_environment, launcher
from tqdm import tqdm

from mtl_re import cli
from mtl_re.config import PredictConfig, parse_shares
from mtl_re.errors import MtlReError
from mtl_re.model.network import load
from mtl_re.predict import predict as predict_run
from mtl_re.predict.parts import PartFiles
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.process_group import ProcessGroup
from mtl_re.scoring import composed

ROWS, WINDOW, WINDOWS = 23, 5, 5
SUFFIXES = [".csv", ".jsonl", ".parquet"]
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows as a file."""
    path = tmp_path_factory.mktemp("inputs") / "data.json"
    return written(path, [example.to_row() for example in sample_examples("valid", ROWS)])


def written(path, rows):
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def loaded(saved):
    return load(str(saved))


@pytest.fixture
def run(loaded, saved, rows, tmp_path, monkeypatch):
    """Predict the rows into `tmp_path/out<suffix>`; gives the output's path."""
    monkeypatch.setattr(composed, "load", lambda path: loaded)

    def call(suffix=".jsonl", checkpoints=(str(saved),), **options):
        out = tmp_path / f"out{suffix}"
        settings = {"data": str(rows), "output": str(out), "window": WINDOW, "batch_size": 4} | options
        predict_run.predict(checkpoints, PredictConfig(**settings))
        return out

    return call


@pytest.fixture(scope="module")
def whole(saved, rows, tmp_path_factory):
    """The bytes of an uninterrupted prediction, by suffix."""
    place = tmp_path_factory.mktemp("whole")
    found = {}
    for suffix in SUFFIXES:
        out = place / f"out{suffix}"
        predict_run.predict([str(saved)], PredictConfig(str(rows), str(out), window=WINDOW, batch_size=4))
        found[suffix] = out.read_bytes()
    return found


class Kill(BaseException):
    """An end that nothing foresees."""


def interrupt(patch, windows, error=Kill):
    """Let so many windows be predicted, then raise (None: never); gives the sizes of those that were."""
    predicted, real = [], Predictor.predict

    def counting(self, examples, tick):
        if len(predicted) == windows:
            raise error
        predicted.append(len(examples))
        return real(self, examples, tick)

    patch.setattr(Predictor, "predict", counting)
    return predicted


def test_rows_are_read_a_window_at_a_time(run, monkeypatch):
    """Once to look at them all, then again as they are needed: memory does not grow with the input."""
    read, seen, job = [0], [], predict_run.PredictionJob
    rows, answer = job.rows, job.answer

    def counted(self):
        read[0] = 0
        for row in rows(self):
            read[0] += 1
            yield row

    def watched(self, given, tick):
        seen.append(read[0])
        return answer(self, given, tick)

    monkeypatch.setattr(job, "rows", counted)
    monkeypatch.setattr(job, "answer", watched)
    run()
    assert len(seen) > 3
    assert all(count <= (number + 1) * WINDOW for number, count in enumerate(seen)), seen


@pytest.fixture
def stopped(run):
    """Begin a prediction that ends after so many windows."""

    def call(suffix=".jsonl", windows=3, **options):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, windows)
            with pytest.raises(Kill):
                run(suffix, **options)

    return call


@pytest.fixture
def resumed(run):
    """Take a prediction up; gives the output and the sizes of the windows that were predicted."""

    def call(suffix=".jsonl", **options):
        with pytest.MonkeyPatch.context() as patch:
            predicted = interrupt(patch, None)
            return run(suffix, resume=True, **options), predicted

    return call


def names(path):
    return sorted(entry.name for entry in path.iterdir())


# ---- interrupted and taken up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("windows", [1, 4])
def test_resumed_output_is_the_uninterrupted_one(stopped, resumed, whole, tmp_path, capsys, suffix, windows):
    stopped(suffix, windows)
    assert f"{windows * WINDOW} finished rows are kept; the same command with --resume" in capsys.readouterr().err
    assert not (tmp_path / f"out{suffix}").exists()
    out, predicted = resumed(suffix)
    assert out.read_bytes() == whole[suffix]
    assert len(predicted) == WINDOWS - windows, "finished windows are not predicted again"
    assert names(tmp_path) == [out.name]


def test_killed_again_and_again(run, resumed, whole, tmp_path):
    for _ in range(WINDOWS - 1):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, 1)
            with pytest.raises(Kill):
                run(resume=True)
    out, predicted = resumed()
    assert (out.read_bytes(), predicted) == (whole[".jsonl"], [ROWS % WINDOW])


def test_parts_cut_anywhere_are_predicted_again(stopped, resumed, whole, tmp_path):
    """Where a kill could not leave one, but a file system may."""
    stopped(windows=1)
    part = PartFiles(tmp_path / "out.jsonl").path(0)
    content = part.read_bytes()
    lines = content.split(b"\n")
    sealed, described = len(lines[0]) + 1, len(lines[0]) + len(lines[1]) + 2
    for cut in [0, 1, sealed - 1, sealed, sealed + 9, described - 1, described, described + 1, len(content) - 1, None]:
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(content[:cut])
        (part.parent / ".partial-0").write_bytes(content[:90])  # this is what a kill leaves
        out, predicted = resumed()
        assert out.read_bytes() == whole[".jsonl"], cut
        assert len(predicted) == WINDOWS - (cut is None), cut
        assert names(tmp_path) == [out.name]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "another's place", "all gone"])
def test_damaged_parts_are_predicted_again(stopped, resumed, whole, tmp_path, damage):
    stopped()
    parts = PartFiles(tmp_path / "out.jsonl")
    content, left = bytearray(parts.path(1).read_bytes()), 3
    if damage == "flipped":
        content[-9] ^= 1
        parts.path(1).write_bytes(content)
    elif damage == "cut":
        parts.path(1).write_bytes(content[:-7])
    elif damage == "gone":
        parts.path(1).unlink()
    elif damage == "another's place":
        parts.path(1).rename(parts.path(4))
    else:
        parts.remove()
        left = WINDOWS
    out, predicted = resumed()
    assert (out.read_bytes(), len(predicted)) == (whole[".jsonl"], left)
    assert names(tmp_path) == [out.name]


def test_a_flipped_bit_of_a_part_is_found_out(stopped, resumed, whole, tmp_path):
    """Also where it changes no more than which window a part speaks of."""
    stopped()
    parts, chance = PartFiles(tmp_path / "out.jsonl"), random.Random(0)
    contents = {path: path.read_bytes() for path in parts.directory.iterdir()}
    part = parts.path(2)
    head = len(b"".join(contents[part].splitlines(keepends=True)[:2]))
    places = [contents[part].index(b'"window": 2') + 10, *(chance.randrange(head) for _ in range(12))]
    places += [chance.randrange(len(contents[part])) for _ in range(4)]
    for place in places:
        parts.directory.mkdir(exist_ok=True)
        for path, content in contents.items():
            path.write_bytes(content)
        flipped = bytearray(contents[part])
        flipped[place] ^= 1 << (0 if place == places[0] else chance.randrange(8))  # window 2 becomes window 3
        part.write_bytes(flipped)
        out, predicted = resumed()
        assert out.read_bytes() == whole[".jsonl"], place
        assert len(predicted) == WINDOWS - 2, place
        out.unlink()


def test_a_part_that_is_damaged_before_the_merge_is_not_published(run, resumed, whole, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    real = predict_run.publish

    def publish(*arguments):
        part = PartFiles(out).path(3)
        part.write_bytes(part.read_bytes()[:-1] + b"?")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predict_run, "publish", publish)
        message = fault_of(run)
    assert message == f"{PartFiles(out).path(3)}: is missing or damaged; --resume predicts its rows again"
    assert out.read_text() == "old"
    _, predicted = resumed()
    assert (out.read_bytes(), len(predicted)) == (whole[".jsonl"], 1)


def test_recovering_leaves_sound_parts_and_nothing_else(stopped, tmp_path):
    stopped()
    parts = PartFiles(tmp_path / "out.jsonl")
    contents = [parts.path(window).read_bytes() for window in range(3)]
    parts.path(3).write_bytes(contents[1])
    (parts.directory / ".partial-2").write_bytes(b"half a p")
    part, rows = parts.load(0)
    assert part.fingerprint["window"] == WINDOW
    assert len(rows.splitlines()) == part.rows == part.read == WINDOW
    assert parts.recover(part.fingerprint, False) == {0: 5, 1: 5, 2: 5}
    assert names(parts.directory) == ["0", "1", "2"]
    assert [parts.path(window).read_bytes() for window in range(3)] == contents
    assert parts.rows() == 15


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (os, "replace"), (PartFiles, "write")])
def test_disk_that_fails_at_any_call(run, resumed, whole, tmp_path, monkeypatch, owner, name):
    """The first, second, third ... call fails until none does: the old output stands, and the rows done are kept."""
    real, out, number, message = getattr(owner, name), tmp_path / "out.jsonl", 0, "-"
    while message:
        number, calls = number + 1, []
        out.write_text("old")

        def failing(*arguments, number=number, calls=calls):
            calls.append(arguments)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, failing)
            message = fault_of(run)
        if message:
            places = (out, *map(PartFiles(out).path, range(WINDOWS)))
            assert message in [f"{place}: cannot be written (No space left on device)" for place in places]
            assert out.read_text() == "old" or (name == "fsync" and number == len(calls) == 2 * WINDOWS + 2)
            resumed()
        assert out.read_bytes() == whole[".jsonl"]
        assert names(tmp_path) == [out.name]
    assert number > {"fsync": 2 * WINDOWS + 2, "replace": WINDOWS + 1, "write": WINDOWS}[name], (
        "calls that were made to fail"
    )


@pytest.mark.parametrize(("share", "left"), [(0.05, WINDOWS), (0.6, 0)], ids=["in a part", "in the output"])
def test_disk_that_is_full_in_the_middle_of_a_write(run, resumed, whole, tmp_path, share, left):
    """A limit on the size of files, set in a process of its own: half a file reaches the disk."""
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    pipe, end = multiprocessing.Pipe(duplex=False)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(len(whole[".jsonl"]) * share), resource.RLIM_INFINITY))
        end.send(fault_of(run))

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join(60)
    place = PartFiles(out).path(0) if left else out
    assert pipe.recv() == f"{place}: cannot be written (File too large)"
    assert out.read_text() == "old"
    assert len(PartFiles(out).windows()) == WINDOWS - left
    found, predicted = resumed()
    assert found.read_bytes() == whole[".jsonl"]
    assert len(predicted) == left
    assert names(tmp_path) == [out.name]


def fault_of(run, *arguments, **options):
    """The message of a run that fails; empty if it does not."""
    try:
        run(*arguments, **options)
    except MtlReError as error:
        return str(error)
    return ""


def test_other_outputs_are_not_taken_up(stopped, run, tmp_path, saved, whole):
    """Whatever the bytes depend on; the text names it, and the rows done stay."""
    stopped()
    parts = PartFiles(tmp_path / "out.jsonl")
    before = {path.name: path.read_bytes() for path in parts.directory.iterdir()}
    others = {
        "window": {"window": 6},
        "batch_size": {"batch_size": 3},
        "gate": {"gate": "soft"},
        "restrict": {"restrict": "subject_type"},
        "label order": {"label_order": "boostcamp"},
        "precision": {"precision": "bf16"},
        "data": {"data": "sample:valid"},
        "checkpoint 2": {"checkpoints": [str(saved)] * 2},
        "checkpoint 1": {"checkpoints": [], "compose": [f"{head}={saved}" for head in ("coarse", "org", "per")]},
    }
    for name, options in others.items():
        message = fault_of(run, resume=True, **options)
        if name == "checkpoint 1":  # the same network for each head is the same prediction
            assert message == ""
            continue
        assert "--resume: the rows so far were predicted otherwise" in message, name
        assert f"({name} was " in message
        assert message.count(" was ") == 1, message
        assert {path.name: path.read_bytes() for path in parts.directory.iterdir()} == before
    assert (tmp_path / "out.jsonl").read_bytes() == whole[".jsonl"]


def test_another_network_is_another_checkpoint(stopped, run, loaded, monkeypatch):
    stopped()
    with torch.no_grad():
        bias = next(iter(loaded[0].heads.values())).bias
        bias += 1
        try:
            assert "(checkpoint 1 was " in fault_of(run, resume=True)
        finally:
            bias -= 1


def test_without_resume_it_starts_over_and_says_so(stopped, run, whole, tmp_path, capsys):
    stopped(data="sample:valid")  # other rows, so that any that were kept would show
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        predicted = interrupt(patch, None)
        assert run().read_bytes() == whole[".jsonl"]
    assert len(predicted) == WINDOWS
    assert "15 rows of an interrupted `mtl-re predict` are thrown away" in capsys.readouterr().err


def test_resume_with_nothing_to_resume(resumed, whole, tmp_path):
    out, predicted = resumed()
    assert (out.read_bytes(), len(predicted)) == (whole[".jsonl"], WINDOWS)


def test_progress_counts_the_rows_of_the_earlier_run(stopped, resumed, capsys):
    stopped()
    capsys.readouterr()
    resumed()
    bars = capsys.readouterr().err.strip().split("\r")
    assert "15.0/23.0" in bars[0], "begins where the earlier run ended"
    assert "23.0/23.0" in bars[-1]
    assert "row/s" in bars[-1]


def test_progress_moves_inside_a_window(run, saved, monkeypatch):
    """A window may take minutes; with two members a row is half done after the first."""
    seen, real = [], tqdm.update
    monkeypatch.setattr(tqdm, "update", lambda bar, n=1: (bar.disable or seen.append(n), real(bar, n)))
    run(window=100, batch_size=5)
    assert seen == [5, 5, 5, 5, 3, 0]
    seen.clear()
    run(checkpoints=(str(saved), str(saved)), window=100, batch_size=20)
    assert seen == [10, 1.5, 10, 1.5, 0]


# ---- rows left out -----------------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(tmp_path_factory):
    """Rows 2, 4 and 22 cannot be used: their span, their label; and a subject type that training never saw."""
    made = [example.to_row() for example in sample_examples("valid", ROWS)]
    made[1]["object_entity"]["end_idx"] = 10_000
    made[3]["label"] = "per:friend"
    made[21]["subject_entity"]["type"] = "ZZZ"
    return written(tmp_path_factory.mktemp("spoiled") / "bad.json", made)


def listed(path):
    return [(bad["row"], bad["field"]) for bad in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def test_rows_left_out_are_named_once_over_all_runs(stopped, resumed, spoiled, tmp_path, capsys):
    options = {"data": str(spoiled), "on_bad_row": "skip"}
    stopped(windows=2, **options)
    capsys.readouterr()
    out, predicted = resumed(**options)
    assert predicted == [5, 5, 2]
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [
        example.id for number, example in enumerate(sample_examples("valid", ROWS), start=1) if number not in (2, 4, 22)
    ]
    said = capsys.readouterr().err
    assert said.count("bad rows left out") == 1
    assert f"{spoiled}: 3 bad rows left out, listed in {out}.rejected.jsonl" in said
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.rejected.jsonl"]
    assert listed(tmp_path / "out.jsonl.rejected.jsonl") == [
        (2, "object_entity.end_idx"),
        (4, "label"),
        (22, "subject_entity.type"),
    ]


def test_list_of_rows_left_out_goes_with_its_output(run, spoiled, tmp_path):
    run(data=str(spoiled), on_bad_row="skip")
    run()
    assert names(tmp_path) == ["out.jsonl"]


def test_bad_row_is_told_before_the_work(run, spoiled, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        predicted = interrupt(patch, None)
        assert f"{spoiled}:2: object_entity.end_idx" in fault_of(run, data=str(spoiled))
    assert not predicted
    assert names(tmp_path) == []


def test_run_that_met_a_bad_row_goes_on_without_it(run, resumed, rows, tmp_path, capsys):
    """What only the tokenizer or the model can refuse is met late: rows done are kept, and may be taken up by skip."""
    made = json.loads(rows.read_text(encoding="utf-8"))
    made[21]["subject_entity"]["type"] = "ZZZ"
    late = written(tmp_path / "late.json", made)
    assert "'ZZZ' is unknown to this model" in fault_of(run, data=str(late))
    assert "20 finished rows are kept" in capsys.readouterr().err
    out, predicted = resumed(data=str(late), on_bad_row="skip")
    assert predicted == [2]
    assert len(out.read_text().splitlines()) == ROWS - 1


def test_rows_left_out_are_not_taken_over_by_a_run_that_may_not(stopped, run, rows, tmp_path):
    made = json.loads(rows.read_text(encoding="utf-8"))
    made[1]["subject_entity"]["type"] = "ZZZ"
    early = written(tmp_path / "early.json", made)
    stopped(data=str(early), on_bad_row="skip")
    folder = PartFiles(tmp_path / "out.jsonl").directory
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = fault_of(run, data=str(early), resume=True)
    assert "--resume: 1 finished windows left rows out; give --on_bad_row skip, or start over without" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing finished is lost"


def test_no_usable_row(run, tmp_path, rows):
    made = [row | {"label": "per:friend"} for row in json.loads(rows.read_text(encoding="utf-8"))]
    bad = written(tmp_path / "bad.json", made)
    message = fault_of(run, data=str(bad), on_bad_row="skip")
    assert message.startswith(f"{bad}:1: label: 'per:friend' is not one of the 30 labels")
    assert message.endswith("; none of the 23 rows can be used")
    assert names(tmp_path) == ["bad.json"]


def test_input_that_changes_meanwhile(run, rows, tmp_path, monkeypatch):
    moving = written(tmp_path / "moving.json", json.loads(rows.read_text(encoding="utf-8")))
    real = predict_run.encode_rows

    def encode_rows(*arguments):
        moving.write_text(rows.read_text(encoding="utf-8").replace("}, {", "},\n{"), encoding="utf-8")
        return real(*arguments)

    monkeypatch.setattr(predict_run, "encode_rows", encode_rows)
    assert (
        fault_of(run, data=str(moving))
        == f"{moving}: it was changed while its rows were read; run `mtl-re predict` again"
    )
    assert names(tmp_path) == ["moving.json"]


def test_hub_rows_are_looked_through_once_before_the_work(run, rows, tmp_path, monkeypatch, capsys):
    """Each pass is a download: one checks, counts and hashes them, the other predicts them."""
    passes, real = [], predict_run.parsed

    def parsed(spec, taxonomy, reading):
        passes.append(spec)
        yield from real(str(rows), taxonomy)

    monkeypatch.setattr(predict_run, "parsed", parsed)
    run(data="hub:klue/re:validation")
    assert passes == ["hub:klue/re:validation"] * 2
    assert "23.0/23.0" in capsys.readouterr().err


# ---- places and signals ------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written(run, tmp_path):
    (tmp_path / "out.csv").mkdir()
    assert fault_of(run, ".csv") == f"{tmp_path / 'out.csv'}: cannot be written (it is a directory)"
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out.csv"
    assert f"{output}: cannot be written" in fault_of(run, output=str(output))
    assert names(tmp_path) == ["file", "out.csv"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in fault_of(run, output=str(tmp_path / "locked" / "out.csv"))


def test_two_at_once(run, tmp_path):
    out = tmp_path / "out.jsonl"
    ready, leave = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

    def hold():
        with PartFiles(out).locked():
            ready.set()
            leave.wait(30)

    other = multiprocessing.get_context("fork").Process(target=hold)
    other.start()
    try:
        assert ready.wait(30)
        assert fault_of(run) == f"{out}: another `mtl-re predict` is writing it"
    finally:
        leave.set()
        other.join()
    assert len(run().read_text().splitlines()) == ROWS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_keeps_the_rows_and_says_how_to_go_on(loaded, saved, rows, whole, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(composed, "load", lambda path: loaded)
    out = tmp_path / "out.jsonl"
    command = ["predict", str(saved), "--data", str(rows), "--output", str(out), "--window", "5", "--batch-size", "4"]
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    real, calls = Predictor.predict, []

    def predict(self, examples, tick):
        calls.append(examples)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(self, examples, tick)

    def finished_rows(self):  # asked for on the way out
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher's, on top
        return 10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "predict", predict)
        patch.setattr(PartFiles, "rows", finished_rows)
        assert cli.main(command) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "mtl-re: error: interrupted"
    assert said[-2] == f"{out}: 10 finished rows are kept; the same command with --resume goes on from there"
    assert not out.exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert cli.main([*command, "--resume"]) == 0
    assert out.read_bytes() == whole[".jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "predict"])
def test_closed_pipe(saved, rows, tmp_path, run, command):
    """`| head -1` that has seen enough: exit code 1, no traceback."""
    out = run()
    arguments = {
        "compare": ["compare", str(out), str(out), "--resamples", "10"],
        "predict": ["predict", str(saved), "--data", str(rows), "--output", str(tmp_path / "p.csv")],
    }[command]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        call = [sys.executable, "-m", "mtl_re", *arguments]
        done = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE, text=True, env=launch_environment())
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# ---- several processes -------------------------------------------------------------------------------------------


def together(tmp_path, work, size=2):
    """Run `work(group)` in so many processes that find each other; what each returned, or its fault's text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(size)]

    def one(rank):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank)}
        with (tmp_path / f"stderr-{rank}").open("w") as sys.stderr:
            try:
                with ProcessGroup() as group:
                    pipes[rank][1].send(work(group))
            except MtlReError as error:
                pipes[rank][1].send(str(error))

    processes = [context.Process(target=one, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "a process waits for one that has ended"
    return [pipe.recv() if pipe.poll() else None for pipe, _ in pipes]


def test_one_process_decides_for_all_again_and_again(tmp_path):
    def work(group):
        return [group.from_first(lambda n=n: (n, group.rank, group.size)) for n in range(3)]

    assert together(tmp_path, work, 3) == [[(0, 0, 3), (1, 0, 3), (2, 0, 3)]] * 3


def test_two_jobs_one_after_the_other(tmp_path):
    def work(group):
        group.__exit__()
        with ProcessGroup() as again:
            return again.agreed(lambda: again.rank)

    assert together(tmp_path, work) == [0, 1]


@pytest.mark.parametrize("culprit", [0, 1])
def test_what_cannot_start_on_one_process_starts_on_none(tmp_path, culprit):
    def fail(error):
        raise error

    def work(group):
        return group.agreed(lambda: group.rank == culprit and fail(MtlReError("the model does not fit")))

    ends = together(tmp_path, work)
    assert ends[culprit] == "the model does not fit"
    assert ends[1 - culprit] == f"process {culprit} of 2: the model does not fit"


def test_decision_that_fails_reaches_every_process(tmp_path):
    def work(group):
        return group.from_first(lambda: parse_shares("--prior", "much"))

    first, second = together(tmp_path, work)
    assert first.startswith("--prior: 'much'")
    assert second == f"process 0 of 2: {first}"


def test_process_that_is_killed_before_the_work_ends_the_others(tmp_path):
    def work(group):
        return group.agreed(lambda: group.rank == 1 and os.kill(os.getpid(), signal.SIGKILL))

    told = "process 0 of 2: another process ended before the work started; the launcher names it"
    assert together(tmp_path, work) == [told, None]


def test_fault_in_the_work_is_told_by_its_process(tmp_path):
    def work(group):
        with group.faults_told():
            raise MtlReError(f"row {group.rank} is bad")

    assert together(tmp_path, work) == ["row 0 is bad", "row 1 is bad"]
    assert (tmp_path / "stderr-0").read_text() == ""  # the command line tells it
    assert (tmp_path / "stderr-1").read_text() == "\nmtl-re: error: process 1 of 2: row 1 is bad\n"


def test_processes_that_do_not_meet(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(MtlReError, match="WORLD_SIZE is 2, but the processes do not meet"), ProcessGroup():
        pass


@pytest.mark.parametrize("restarts", [0, 1])
def test_process_that_the_launcher_restarts_goes_on(stopped, run, whole, monkeypatch, restarts):
    stopped()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    with pytest.MonkeyPatch.context() as patch:
        predicted = interrupt(patch, None)
        assert run().read_bytes() == whole[".jsonl"]
    assert len(predicted) == WINDOWS - 3 * restarts


WORKER = """
import os, signal, sys, time
import torch
from tqdm import tqdm

from mtl_re.predict import predict as predict_run
from mtl_re.cli import main
from mtl_re.errors import MtlReError
from mtl_re.predict.predictor import Predictor
torch.set_num_threads(1)
act, rank, window = sys.argv[1].split(":")
real, calls = Predictor.predict, []

def predict(self, examples, tick):
    calls.append(examples)
    if act in {"fail", "kill"} and os.environ["RANK"] == rank and len(calls) == int(window):
        if act == "fail":
            raise MtlReError("row 7 is bad")
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "slow" and os.environ["RANK"] == rank:
        time.sleep(1)
    if act in {"fail", "kill"} and os.environ["RANK"] != rank and len(calls) == 2:
        time.sleep(3600)  # the others cannot finish all before it happens
    return real(self, examples, tick)

Predictor.predict = predict
code = main(sys.argv[2:])
# One write with its own line breaks: the processes share a pipe, and the other's may stand between its two writes.
os.write(1, f"\\nrank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} predicted {len(calls)}\\n".encode())
raise SystemExit(code)
"""


@pytest.fixture
def launched(saved, rows, tmp_path):
    """Predict on several processes under torchrun."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def call(*options, act="count:0:0", processes=2):
        arguments = ["predict", str(saved), "--data", str(rows), "--output", str(tmp_path / "out.jsonl")]
        arguments += ["--window", str(WINDOW), "--batch-size", "4", *options]
        call = [*launcher(processes), str(script), act, *arguments]
        environment = {k: v for k, v in launch_environment().items() if k not in LAUNCHED}
        return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("act", ["count:0:0", "slow:0:0", "slow:1:0"])
def test_two_processes_write_what_one_does(launched, whole, tmp_path, act):
    done = launched(act=act)
    assert done.returncode == 0, done.stderr
    counts = [line for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert sorted(counts) == ["rank 0 of 2 predicted 3", "rank 1 of 2 predicted 2"]
    assert "23.0/23.0" in done.stderr
    assert done.stdout.count(f"23 predictions in {tmp_path / 'out.jsonl'}") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == whole[".jsonl"]
    assert names(tmp_path) == ["out.jsonl", "worker.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "cause", "after"),
    [
        ("fail:1:2", "mtl-re: error: process 1 of 2: row 7 is bad", 1),
        ("fail:0:2", "mtl-re: error: row 7 is bad", 1),
        ("kill:1:2", "Signal 9 (SIGKILL) received", 3),
        ("kill:0:2", "Signal 9 (SIGKILL) received", 3),
    ],
)
def test_rank_that_fails_or_dies_ends_all_and_others_take_it_up(launched, resumed, whole, tmp_path, act, cause, after):
    (tmp_path / "out.jsonl").write_text("old")
    done = launched("--overwrite", act=act)
    assert done.returncode != 0
    assert done.stderr.count(cause) == 1, done.stderr
    assert (tmp_path / "out.jsonl").read_text() == "old"
    if after == 1:
        _, predicted = resumed()
        assert len(predicted) < WINDOWS
    else:
        done = launched("--resume", "--overwrite", processes=3)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == whole[".jsonl"]
    assert names(tmp_path) == ["out.jsonl", "worker.py"]


# ---- kills from outside ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_random_moments(loaded, saved, tmp_path, monkeypatch, suffix):
    """SIGKILL from outside, again and again until one attempt comes through: each time the same bytes."""
    monkeypatch.setattr(composed, "load", lambda path: loaded)
    source = written(tmp_path / "rows.json", [example.to_row() for example in sample_examples("valid", 200)])
    options = {"data": str(source), "window": 3, "batch_size": 3}
    predict_run.predict([str(saved)], PredictConfig(output=str(tmp_path / f"whole{suffix}"), **options))
    out = tmp_path / f"out{suffix}"
    made = PredictConfig(output=str(out), resume=True, **options)
    kills, seconds, generator = 0, 0.8, random.Random(suffix)
    while kills < 5:  # however fast the machine: each output made at one go halves the time given to the next
        before = kills
        while not attempt(saved, made, generator.uniform(0.2, 1) * seconds, tmp_path / "log"):
            kills += 1
            seconds = min(seconds * 1.1, 5)
        if kills == before:
            seconds /= 2
        assert out.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
        out.unlink()
        assert not [name for name in names(tmp_path) if name.startswith(".partial")]


def attempt(saved, options, seconds, log):
    """Predict in a process of its own that is killed after so long; whether it came to its end."""
    child = multiprocessing.get_context("fork").Process(target=quietly, args=(saved, options, log))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), log.read_text()
    return child.exitcode == 0


def quietly(saved, options, log):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    tqdm.set_lock(threading.RLock())  # its default is a semaphore shared over forks, which a killed child may hold
    predict_run.predict([str(saved)], options)
