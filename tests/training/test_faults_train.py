"""Kills at moments that `test_resume` does not reach, SIGKILL by the dozen, and what a refused resume names."""

import gc
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_worker import assert_same_run, lines, make_config, rows_file, run_child, shrink

from mtl_re.errors import MtlReError
from mtl_re.training import loop
from mtl_re.training import train as train_module
from mtl_re.training.train import train

EVERY = {"train.save_every": 1, "train.keep": 3}
SCRIPT = Path(__file__).parents[1].joinpath("kill_runs.py")


class CrashError(BaseException):
    """Nothing in the package catches this."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture
def go(tmp_path):
    rows = rows_file(tmp_path / "rows.json")

    def start(name="run", **options):
        return train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / name)} | options))

    return start


def crash(go, name, attribute, call, **options):
    """Die in this process before the call-th call of a function of `train`."""
    real, calls = getattr(train_module, attribute), [0]

    def dying(*arguments):
        calls[0] += 1
        if calls[0] == call:
            raise CrashError
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, attribute, dying)
        with pytest.raises(CrashError):
            go(name, **options)
    gc.collect()  # the lock goes with the last reference to the run


def stop(go, name, step, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == step)
        go(name, **options)
    gc.collect()


def test_crash_inside_gradient_accumulation(go):
    """Between two backward passes of one step: half a gradient must not survive."""
    options = EVERY | {"train.batch_size": 2, "train.accumulate": 4}
    whole = go("whole", **options)
    crash(go, "run", "_forward", 19, **options)  # the third of four passes of step 5
    assert_same_run(go("run", **options, **{"train.resume": "auto"}), whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_stops_in_a_late_epoch(go, workers):
    """Twice in one epoch, the third, and at its end."""
    options = {"train.epochs": 4, "train.workers": workers}
    whole = go("whole", **options)
    stop(go, "run", 9, **options)
    for step in (11, 12):
        stop(go, "run", step, **options, **{"train.resume": "auto"})
    assert_same_run(go("run", **options, **{"train.resume": "auto"}), whole)


@pytest.mark.slow
def test_keep_one_after_a_leftover(go, tmp_path):
    options = {"train.save_every": 1, "train.keep": 1}
    whole = go("whole", **options)
    crash(go, "run", "step", 4, **options)
    for name in (".partial-step-000003", ".partial-step-000004"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
        (tmp_path / "run" / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    run_dir = go("run", **options, **{"train.resume": "auto"})
    assert_same_run(run_dir, whole)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000008"]


def test_a_changed_option_is_named_with_both_values(go):
    crash(go, "run", "step", 3, **EVERY)
    with pytest.raises(MtlReError, match=r"options optim\.lr \(0\.001 then, 0\.002 now\)") as caught:
        go("run", **EVERY, **{"train.resume": "auto", "optim.lr": 2e-3})
    assert "optim.warmup" not in str(caught.value)


def test_changed_rows_are_named_with_their_file(go, tmp_path):
    """One label is enough."""
    crash(go, "run", "step", 3, **EVERY)
    made = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    made[0]["label"] = "per:title" if made[0]["label"] != "per:title" else "per:origin"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"training rows \(data\.train: .*other\.json\)"):
        go("run", **EVERY, **{"train.resume": "auto", "data.train": str(other)})


@pytest.mark.slow
def test_the_log_is_not_split_at_odd_line_ends(go, tmp_path):
    """U+2028 and its like are no line ends in JSON; a name may hold one."""
    stop(go, "run", 5, **EVERY)
    log = tmp_path / "run" / "metrics.jsonl"
    kept = [json.loads(line) | {"note": "a\u2028b\x85c"} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
    run_dir = go("run", **EVERY, **{"train.resume": "auto"})
    text = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["step"] for line in text if line and b'"train"' in line] == list(range(1, 9))


@pytest.mark.slow
def test_the_lock_dies_with_its_process(go, tmp_path):
    """Resumed at once after SIGKILL, loader workers still alive."""
    job = {"data.train": str(tmp_path / "rows.json"), "train.run_dir": str(tmp_path / "run"), "train.workers": 2}
    kill = {"kill": ["mtl_re.training.train.step", 3, "after"]}
    assert run_child(job | EVERY | kill, tmp_path / "log") == -signal.SIGKILL
    run_dir = go("run", **EVERY, **{"train.resume": "auto", "train.workers": 2})
    assert lines(run_dir)[-1]["step"] == 8


@pytest.mark.slow
def test_sixty_kills_at_random_moments(tmp_path):
    """A share of the command's thousand, over trainings and predictions of every kind."""
    call = [sys.executable, str(SCRIPT), "--kills", "60", "--seed", "1", "--output", str(tmp_path / "figures.json")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["survived"] == figures["kills"] >= 60


@pytest.mark.slow
def test_the_kills_find_a_resume_that_forgets(tmp_path):
    """Random states that are not put back: the runs must be found to differ."""
    (tmp_path / "forgetful.py").write_text(
        "import sys, kill_runs, torch\n"
        "torch.set_rng_state = lambda state: None\n"
        "sys.exit(kill_runs.main(['--kills', '25']))\n"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    call = [sys.executable, str(tmp_path / "forgetful.py")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "NOT THE SAME" in done.stderr
