"""Law 7.6: a run that was killed, stopped or crashed and then resumed is the uninterrupted run, bit for bit."""

import errno
import gc
import json
import os
import shutil
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from distributed_worker import (
    assert_same_run,
    assert_same_tensors,
    copy_run,
    last_checkpoint,
    lines,
    make_config,
    rows_file,
    run_child,
    score_by_step,
    shrink,
    start_child,
    weights,
)

from mtl_re.cli import main
from mtl_re.errors import MtlReError
from mtl_re.scoring import evaluation
from mtl_re.training import checkpoint, loop
from mtl_re.training import train as train_module
from mtl_re.training.train import train

EVERY = {"train.save_every": 1, "train.keep": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("rows") / "train.json")


@pytest.fixture(scope="module")
def reference(rows, tmp_path_factory):
    """Uninterrupted runs by options; not to be changed."""
    made = {}

    def run(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                shrink(patch)
                score_by_step(patch, options.pop("scores", {}))
                run_dir = tmp_path_factory.mktemp("reference") / "run"
                made[key] = train(make_config({"data.train": str(rows), "train.run_dir": str(run_dir)} | options))
        return made[key]

    return run


@pytest.fixture
def job(rows, tmp_path):
    """Options of a run in `tmp_path/run`."""
    return {"data.train": str(rows), "train.run_dir": str(tmp_path / "run")}


def resume(job, **options):
    return train(make_config(job | {"train.resume": "auto"} | options))


class Crash(BaseException):
    """Nothing in the package catches this."""


def crash(job, step, **options):
    """Run until just before a step's update and die there, in this process."""
    real = train_module.step

    def dying(run, state, *rest):
        if state.step == step:
            raise Crash
        real(run, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "step", dying)
        try:
            train(make_config(job | options))
        except Crash:
            gc.collect()  # the lock goes with the last reference to the run
        else:
            raise AssertionError("the run ended before it could crash")


def stop(job, step, **options):
    """Run until a step and leave as after a signal: a checkpoint of that moment stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == step)
        train(make_config(job | options))
    gc.collect()


# ---- crashes and stops in this process -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4, 5, 7])
@pytest.mark.slow
def test_crash_then_resume(job, tmp_path, reference, step):
    crash(job, step, **EVERY)
    assert_same_run(resume(job, **EVERY), reference(**EVERY))


@pytest.mark.parametrize(("step", "saved"), [pytest.param(3, 0, marks=pytest.mark.slow), (6, 4)])
def test_crash_between_checkpoints_replays_the_steps(job, tmp_path, reference, step, saved):
    crash(job, step)
    assert lines(tmp_path / "run")[-1]["step"] == step > saved
    assert_same_run(resume(job), reference())


@pytest.mark.parametrize("step", [2, 4, 6])
@pytest.mark.slow
def test_stop_then_resume(job, reference, step):
    stop(job, step)
    assert_same_run(resume(job), reference())


def test_stopped_twice_in_one_epoch(job, reference):
    stop(job, 1)
    stop(job | {"train.resume": "auto"}, 3)
    assert_same_run(resume(job), reference())


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_stopped_inside_a_window_of_the_log(job, reference, step):
    """The sums behind the next line of metrics.jsonl are part of the state."""
    options = {"tracking.log_every": 3, "train.batch_size": 4, "train.accumulate": 2}
    stop(job, step, **options)
    assert_same_run(resume(job, **options), reference(**options))


def test_crash_inside_a_window_of_the_log_and_an_average(job, reference):
    options = EVERY | {"tracking.log_every": 3, "eval.every": 2, "train.ema": 0.9}
    crash(job, 5, **options)
    assert_same_run(resume(job, **options), reference(**options))


@pytest.mark.slow
def test_only_one_checkpoint_kept(job, reference):
    options = {"train.save_every": 1, "train.keep": 1}
    crash(job, 5, **options)
    run_dir = resume(job, **options)
    assert_same_run(run_dir, reference(**options))
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000008"]


def test_leftover_of_a_write_that_was_killed(job, tmp_path, reference):
    crash(job, 5, **EVERY)
    leftover = tmp_path / "run" / "checkpoints" / ".partial-step-000005"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    run_dir = resume(job, **EVERY)
    assert_same_run(run_dir, reference(**EVERY))
    assert not list(run_dir.glob("**/.partial-*"))


def test_line_cut_short_by_a_kill_is_dropped(job, tmp_path, reference):
    crash(job, 6)
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert_same_run(resume(job), reference())


def test_best_model_before_the_crash_is_kept(job, reference, monkeypatch):
    def script(*scores):
        left = list(scores)
        monkeypatch.setattr(evaluation, "selection_score", lambda *arguments: left.pop(0))

    options = {"train.epochs": 3}
    script(50.0, 20.0, 30.0)
    whole = reference(**options, **{"train.keep": 5})
    script(50.0, 20.0)
    crash(job, 9, **options)
    script(30.0)
    run_dir = resume(job, **options)
    assert_same_tensors(weights(run_dir), weights(whole))
    assert json.loads((run_dir / "valid_metrics.json").read_text())["step"] == 4


@pytest.mark.slow
def test_workers_may_change_on_resume(job, reference):
    crash(job, 5, **EVERY)
    assert_same_run(resume(job, **EVERY, **{"train.workers": 2}), reference(**EVERY))


@pytest.mark.slow
def test_saving_more_often_may_change_on_resume(job, reference):
    crash(job, 5)
    run_dir = resume(job, **{"train.save_every": 3, "train.keep": 7})
    assert_same_tensors(weights(run_dir), weights(reference()))
    assert lines(run_dir) == lines(reference())


@pytest.mark.slow
def test_split_of_a_step_may_change_on_resume(job, reference, capsys):
    """The checkpoint keeps the rows of a step, so other batch sizes go on with the same steps."""
    crash(job, 5, **EVERY)
    run_dir = resume(job, **EVERY, **{"train.batch_size": 4})
    assert "a step keeps its 8 rows; batch_size × accumulate × processes is 4 now" in capsys.readouterr().err
    logged = lines(run_dir, "train")
    assert [line["labelled_rows"] for line in logged] == [
        line["labelled_rows"] for line in lines(reference(**EVERY), "train")
    ]
    assert last_checkpoint(run_dir).path.name == "step-000008"


@pytest.mark.slow
def test_weight_zero_and_resume(job, reference):
    options = EVERY | {"loss.weights": {"org": 0.0}}
    crash(job, 5, **options)
    assert_same_run(resume(job, **options), reference(**options))


# ---- a run that has ended ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"eval.every": 100}, {"train.max_steps": 6}, {"data.valid_fraction": 0.0})
        ),
    ],
    ids=str,
)
def test_resuming_a_finished_run_changes_nothing(reference, job, tmp_path, options):
    before = reference(**options)
    copy_run(before, tmp_path / "run")
    after = resume(job, **options)
    assert lines(after) == lines(before)
    assert_same_tensors(weights(after), weights(before))
    one, other = last_checkpoint(after), last_checkpoint(before)
    assert one.state == other.state
    assert_same_tensors(one.tensors["model"], other.tensors["model"])


@pytest.mark.parametrize(
    "longer",
    [{"train.epochs": 2}, pytest.param({"train.max_steps": 8}, marks=pytest.mark.slow)],
    ids=["epochs", "steps"],
)
def test_a_lengthened_run_under_a_constant_rate_is_the_long_run(job, reference, longer):
    constant = {"optim.schedule": "constant", "optim.warmup": 0.0}
    train(make_config(job | constant | {"train.epochs": 1}))
    run_dir = resume(job, **constant, **{"train.epochs": 1} | longer)
    whole = reference(**constant, **{"train.epochs": 2})
    assert_same_tensors(last_checkpoint(run_dir).tensors["optimizer"], last_checkpoint(whole).tensors["optimizer"])
    assert_same_tensors(weights(run_dir), weights(whole))
    assert lines(run_dir) == lines(whole)
    assert resume(job, **constant, **{"train.epochs": 1} | longer) == run_dir  # finished again: nothing is said


def test_a_lengthened_run_says_what_becomes_of_the_rate(job, capsys):
    train(make_config(job | {"train.epochs": 1}))
    capsys.readouterr()
    run_dir = resume(job, **{"train.epochs": 2})
    said = capsys.readouterr().err
    assert "this run was finished at step 4 and is lengthened to 8 steps" in said
    assert "goes on at 0.571 of its peak (0 before), where the linear schedule of 8 steps stands" in said
    rates = [line["lr"] for line in lines(run_dir) if line["kind"] == "train"]
    assert rates[4:] == pytest.approx([(4 - done) / 7 * 1e-3 for done in range(4)])  # 1 step of warmup, 7 down


@pytest.mark.parametrize(("step", "epochs"), [(8, 1), (3, 3)], ids=["a shorter run", "one that was not finished"])
def test_only_a_finished_run_can_be_lengthened(job, step, epochs):
    train(make_config(job)) if step == 8 else stop(job, step, **EVERY)
    with pytest.raises(
        MtlReError, match=r"train\.epochs \(2 then, \d now\); only a run that reached its last step can go on"
    ):
        resume(job, **EVERY, **{"train.epochs": epochs})


def test_finished_checkpoint_knows_of_the_last_evaluation(reference):
    state = last_checkpoint(reference(**{"eval.every": 100})).state["state"]
    assert (state["evaluated_step"], state["best_step"]) == (8, 8)


def test_resuming_an_early_stopped_run_trains_no_further(job, monkeypatch):
    options = {"train.epochs": 9, "train.early_stop": 1}
    left = [10.0, 5.0, 99.0, 1.0, 1.0]
    monkeypatch.setattr(evaluation, "selection_score", lambda *arguments: left.pop(0))
    run_dir = train(make_config(job | options))
    before = lines(run_dir)
    assert before[-1]["step"] == 8
    resume(job, **options)
    assert lines(run_dir) == before


# ---- kills of another process --------------------------------------------------------------------------------------


KILLS = [
    ["mtl_re.training.train.step", 1, "before"],
    ["mtl_re.training.train.step", 6, "after"],
    ["mtl_re.training.metrics_log.MetricsLog.write", 4, "after"],
    ["mtl_re.training.train.evaluate_now", 2, "before"],
    ["mtl_re.training.train.evaluate_now", 1, "after"],
    ["mtl_re.files.publish_folder", 1, "before"],
    ["mtl_re.files.publish_folder", 2, "after"],
    ["mtl_re.training.checkpoint.save", 2, "before"],
    ["mtl_re.training.checkpoint.save", 3, "after"],
    ["mtl_re.training.checkpoint.save_file", 5, "after"],
    ["mtl_re.training.checkpoint._write", 5, "before"],
    ["mtl_re.files.sync", 20, "before"],
    ["mtl_re.training.checkpoint.whole_names", 3, "before"],
    ["os.rename", 1, "before"],
    ["os.rename", 2, "after"],
    ["os.rename", 4, "before"],
    ["os.rename", 5, "after"],
    ["os.rename", 6, "after"],
    ["shutil.rmtree", 7, "after"],
    ["mtl_re.training.train._conclude", 1, "before"],
    ["mtl_re.files.write_json", 1, "before"],
]


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: f"{kill[0]}-{kill[1]}-{kill[2]}")
def test_killed_at_any_point(job, tmp_path, reference, kill):
    options = {"train.save_every": 2, "train.keep": 2, "eval.every": 2}
    options["scores"] = {"2": 10.0, "4": 20.0, "6": 15.0, "8": 30.0}
    best = [line["best"] for line in lines(reference(**options), "valid")]
    assert best == [True, True, False, True]  # so that one model is put in another's place
    log = tmp_path / "log"
    assert run_child(job | options | {"kill": kill}, log) == -signal.SIGKILL, log.read_text()
    assert run_child(job | options | {"train.resume": "auto"}, log) == 0, log.read_text()
    assert_same_run(tmp_path / "run", reference(**options))
    assert not list((tmp_path / "run").glob("**/.partial-*")) + list((tmp_path / "run").glob("**/.old-*"))


@pytest.mark.slow
def test_killed_again_and_again(job, tmp_path, reference):
    options = {"train.save_every": 1, "train.keep": 1, "train.resume": "auto"}
    for kill in (
        ["mtl_re.training.train.step", 3, "after"],
        ["mtl_re.training.checkpoint.save_file", 4, "before"],
        ["os.rename", 2, "after"],
    ):
        assert run_child(job | options | {"kill": kill}, tmp_path / "log") == -signal.SIGKILL
    assert run_child(job | options, tmp_path / "log") == 0
    assert_same_run(tmp_path / "run", reference(**{"train.save_every": 1, "train.keep": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_from_outside_at_a_random_moment(job, tmp_path, reference, workers):
    """And resumed at once: nothing of the dead process may hold the run directory."""
    options = {"train.save_every": 1, "train.workers": workers}
    moment = torch.randint(1, 8, (), generator=torch.Generator().manual_seed(time.monotonic_ns() % 2**32)).item()
    child = start_child(job | options | {"sleep": 0.2}, tmp_path / "log")
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not metrics.exists() or len(metrics.read_text().splitlines()) < moment:
        assert child.is_alive(), (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    code = run_child(job | options | {"train.resume": "auto"}, tmp_path / "log")
    assert code == 0, f"killed after line {moment}: {(tmp_path / 'log').read_text()}"
    assert_same_run(tmp_path / "run", reference(**{"train.save_every": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_saves_and_exits_with_0(job, tmp_path, reference, number):
    log = tmp_path / "log"
    assert run_child(job | {"signal": [int(number), "mtl_re.training.train.step", 3]}, log) == 0, log.read_text()
    said = log.read_text()
    assert "stopped by a signal after step 3; go on with --train.run_dir " in said
    assert f"{job['train.run_dir']} --train.resume auto" in said
    assert last_checkpoint(tmp_path / "run").path.name == "step-000003"
    assert not (tmp_path / "run" / "valid_metrics.json").exists()
    assert run_child(job | {"train.resume": "auto"}, log) == 0, log.read_text()
    assert_same_run(tmp_path / "run", reference())


# ---- what a run may not be resumed with ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_run(rows, tmp_path_factory):
    """Not to be changed."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        stop({"data.train": str(rows), "train.run_dir": str(run_dir)}, 5, **EVERY)
    return run_dir


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return copy_run(stopped_run, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train.seed": 1}, ["options train"]),
        ({"train.epochs": 3}, ["options train"]),
        ({"loss.weights": {"coarse": 2.0}, "optim.warmup": 0.5}, ["options loss", "options optim"]),
        ({"model.dropout": 0.2}, ["options model"]),
        ({"eval.metric": "auprc"}, ["options eval"]),
        ({"data.max_length": 64}, ["options data"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_changed_options_are_refused_by_name(job, stopped, options, named):
    with pytest.raises(MtlReError, match="cannot go on, because these have changed since") as caught:
        resume(job, **EVERY, **options)
    for name in named:
        assert name in str(caught.value)
    assert "optim" in str(caught.value) or not any("optim" in name for name in options)


def test_moved_rows_are_the_same_rows(job, stopped, tmp_path, reference):
    path = tmp_path / "elsewhere.json"
    path.write_bytes(Path(job["data.train"]).read_bytes())
    assert_same_run(resume(job | {"data.train": str(path)}, **EVERY), reference(**EVERY))


def test_refused_resume_leaves_the_run_as_it_was(job, stopped):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    with pytest.raises(MtlReError, match="cannot go on"):
        resume(job, **EVERY, **{"optim.lr": 2e-3})
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


def test_weights_of_equal_ratio_are_the_same_options(job, stopped, reference):
    run_dir = resume(job, **EVERY, **{"loss.weights": {"coarse": 5, "org": 5, "per": 5}})
    assert_same_run(run_dir, reference(**EVERY))


def test_the_runs_own_config_resumes_it(job, tmp_path, reference, capsys):
    """config.yaml is what a user has at hand."""
    stop(job, 5, **EVERY)
    config = tmp_path / "run" / "config.yaml"
    code = main(["train", "--config", str(config), "--train.resume", "auto"])
    assert code == 0, capsys.readouterr().err.splitlines()[-1]
    assert_same_run(tmp_path / "run", reference(**EVERY))
    assert yaml.safe_load(config.read_text())["loss"]["weights"]["coarse"] == 1.0


def test_a_checkpoint_may_be_named(job, stopped, reference):
    """An older one too: what came after it is forgotten."""
    named = stopped / "checkpoints" / "step-000003"
    run_dir = train(make_config(job | EVERY | {"train.resume": str(named)}))
    assert_same_run(run_dir, reference(**EVERY))


def test_a_named_checkpoint_implies_its_run(rows, stopped, reference):
    named = stopped / "checkpoints" / "step-000005"
    run_dir = train(make_config({"data.train": str(rows), "train.resume": str(named)} | EVERY))
    assert run_dir == stopped
    assert_same_run(run_dir, reference(**EVERY))


def test_a_named_checkpoint_that_is_missing_writes_nothing(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MtlReError, match="step-000999"):
        train(make_config({"data.train": str(rows), "train.resume": "runs/typo/checkpoints/step-000999"}))
    assert not list(tmp_path.rglob("*.yaml")) + list(tmp_path.rglob("*.json"))


def test_auto_needs_a_run(rows):
    with pytest.raises(MtlReError, match=r"auto needs train\.run_dir"):
        train(make_config({"data.train": str(rows), "train.resume": "auto"}))


def test_auto_without_a_run_starts_one(job, reference, capsys):
    assert_same_run(resume(job), reference())
    assert "starting anew" in capsys.readouterr().err


# ---- damaged checkpoints -------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.safetensors", flip),
        pytest.param("model.safetensors", lambda path: os.truncate(path, 1000), marks=pytest.mark.slow),
        pytest.param("state.json", lambda path: path.unlink(), marks=pytest.mark.slow),
        pytest.param("manifest.json", lambda path: path.unlink(), marks=pytest.mark.slow),
    ],
    ids=["bit flip", "truncated", "missing state", "missing manifest"],
)
def test_damaged_newest_is_passed_over(job, stopped, reference, capsys, name, damage):
    damage(stopped / "checkpoints" / "step-000005" / name)
    assert_same_run(resume(job, **EVERY), reference(**EVERY))
    said = capsys.readouterr().err
    assert "passed over" in said
    assert "step-000005" in said
    assert "going on from" in said
    assert "step-000004" in said


def test_after_damage_to_all_the_new_run_can_be_resumed(job, stopped, reference, capsys):
    """The damaged ones are of later steps: they must not push the new ones out."""
    for path in (stopped / "checkpoints").iterdir():
        flip(path / "state.json")
    options = EVERY | {"train.resume": "auto"}
    crash(job, 2, **options)
    assert "starting anew" in capsys.readouterr().err
    assert_same_run(resume(job, **options), reference(**EVERY))
    assert "step-000002" in capsys.readouterr().err


# ---- the run directory ---------------------------------------------------------------------------------------------


def test_directory_of_another_run_is_refused(job, stopped):
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(MtlReError, match=r"holds a run; add --train\.resume auto"):
        train(make_config(job | EVERY))
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_without_checkpoints_is_not_begun_anew(job, reference, tmp_path):
    """Its checkpoints were removed to free the disk, or are all damaged: its model and log stay as they are."""
    run_dir = copy_run(reference(**EVERY), tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(MtlReError, match="holds a finished run and no whole checkpoint to go on from"):
        resume(job, **EVERY, **{"train.epochs": 3, "optim.lr": 1e-4})
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_stopped_run_s_model_is_not_replaced_by_one_of_other_options(job, reference, tmp_path):
    run_dir = copy_run(reference(**EVERY), tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "valid_metrics.json").unlink()
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(MtlReError, match=r"model trained under other options or on other rows \(options optim\.lr\)"):
        resume(job, **EVERY, **{"optim.lr": 1e-4})
    rows = json.loads(Path(job["data.train"]).read_text(encoding="utf-8"))
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(rows[:-1]), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"on other rows \(training rows, validation rows\)"):
        resume(job, **EVERY, **{"data.train": str(fewer)})
    (run_dir / "manifest.json").rename(tmp_path / "manifest.json")
    with pytest.raises(MtlReError, match=r"\(options optim\.lr\)"):
        resume(job, **EVERY, **{"optim.lr": 1e-4})
    (tmp_path / "manifest.json").rename(run_dir / "manifest.json")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert_same_run(resume(job, **EVERY), reference(**EVERY))  # the same options make the same model again


def test_a_checkpoint_that_the_system_cannot_read_is_not_passed_over(job, stopped, monkeypatch):
    """The disk or the network may be back in a moment."""
    before = (stopped / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(checkpoint, "digest", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(MtlReError, match="passing over it would lose its steps"):
        resume(job, **EVERY)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_goes_on_in_its_own_run(job, reference, tmp_path):
    """Elsewhere its steps would be written over another run's, and its best model would be missing."""
    other = copy_run(reference(**EVERY), tmp_path / "other")
    named = str(other / "checkpoints" / "step-000007")
    before = (other / "metrics.jsonl").read_bytes()
    with pytest.raises(MtlReError, match=r"train\.run_dir: .*run, but train\.resume names a checkpoint of .*other"):
        resume(job, **{"train.resume": named})
    assert not (tmp_path / "run").exists()
    shutil.copytree(named, tmp_path / "backup" / "step-000007")
    with pytest.raises(MtlReError, match="does not lie in a run"):
        resume(job, **{"train.resume": str(tmp_path / "backup" / "step-000007")})
    assert (other / "metrics.jsonl").read_bytes() == before


def test_a_named_checkpoint_forgets_what_came_after_it(job, reference, tmp_path, capsys):
    """Later checkpoints would be gone on from, or gone back to; a later best model would stand for this run's."""
    scores = {str(step): float(step) for step in range(1, 9)}
    options = EVERY | {"eval.every": 1, "train.keep": 8}
    run_dir = copy_run(reference(**options, scores=scores), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:  # nothing reaches step 3's score again
        score_by_step(patch, {str(step): -float(step) for step in range(1, 9)})
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == 5)
        resume(job, **options, **{"train.resume": str(run_dir / "checkpoints" / "step-000003")})
        gc.collect()
        assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == [
            f"step-00000{step}" for step in range(1, 6)
        ]
        patch.undo()
        score_by_step(patch, {str(step): -float(step) for step in range(1, 9)})
        shrink(patch)
        resume(job, **options)
    assert "model/ was of a step that this run has not taken" in capsys.readouterr().err
    assert json.loads((run_dir / "valid_metrics.json").read_text())["step"] == 8
    assert_same_tensors(weights(run_dir), last_checkpoint(run_dir).tensors["model"])


@pytest.mark.parametrize("name", ["evaluate_now", "save_training"])
def test_a_kill_at_the_very_end_writes_no_line_twice(job, reference, monkeypatch, name):
    """After the last evaluation and before or after the checkpoint that knows of it."""
    options = EVERY | {"train.max_steps": 6}
    real = getattr(train_module, name)

    def dying(run, state, *rest):
        real(run, state, *rest)
        if state.step == 6:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(train_module, name, dying)
        with pytest.raises(Crash):
            train(make_config(job | options))
    gc.collect()
    assert_same_run(resume(job, **options), reference(**options))


@pytest.mark.slow
def test_two_runs_on_one_directory_are_refused(job, tmp_path):
    child = start_child(job | {"sleep": 0.5}, tmp_path / "log")
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "run" / "config.yaml").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        with pytest.raises(MtlReError, match="in use by another training process"):
            resume(job)
    finally:
        child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("where", ["a file", "under a file", "/proc"])
def test_directory_that_cannot_be_written(job, tmp_path, where):
    (tmp_path / "file").write_text("")
    place = {"a file": tmp_path / "file", "under a file": tmp_path / "file" / "run", "/proc": "/proc/run"}[where]
    with pytest.raises(MtlReError, match=r"train\.run_dir: .* cannot be written"):
        train(make_config(job | {"train.run_dir": str(place)}))


def test_read_only_directory(job, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o555)
    if os.access(tmp_path / "run", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(MtlReError, match="cannot be written"):
        train(make_config(job))
