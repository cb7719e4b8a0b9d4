"""Steps that would ruin the weights (law: stop, or go back and leave them out, exactly), and fp16's skipped steps."""

import gc
import json
import math

import pytest
import torch
from distributed_worker import assert_same_run, last_checkpoint, lines, make_config, rows_file, shrink, weights

from mtl_re.errors import MtlReError
from mtl_re.training import bad_steps, loop
from mtl_re.training import train as train_module
from mtl_re.training.train import train

BACK = {"train.on_bad_step": "rollback"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture
def go(tmp_path):
    rows = rows_file(tmp_path / "rows.json")

    def start(name="run", **options):
        return train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / name)} | options))

    return start


@pytest.fixture
def poison(monkeypatch):
    """Rows of these steps have a gradient that is not finite (or `value`), whenever they are trained on."""
    real_step, real_clip, now = train_module.step, train_module._clip, {}

    def set_up(*steps, value=float("nan"), when=lambda: True):
        def step(run, state, *rest):
            now["step"] = state.step
            real_step(run, state, *rest)

        def clip(run):
            if now["step"] in steps and when():
                next(run.plain_model.parameters()).grad.view(-1)[0] = value
            return real_clip(run)

        monkeypatch.setattr(train_module, "step", step)
        monkeypatch.setattr(train_module, "_clip", clip)

    return set_up


def test_stop_is_the_default_and_says_how_to_go_on(go, poison, tmp_path):
    poison(5)
    with pytest.raises(MtlReError, match=r"step 6: .*--train\.on_bad_step rollback"):
        go()
    assert last_checkpoint(tmp_path / "run").path.name == "step-000004"


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"train.save_every": 1}, marks=pytest.mark.slow),
        pytest.param({"tracking.log_every": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_rollback_leaves_the_step_out_and_trains_on(go, poison, options, capsys):
    poison(5)
    run_dir = go(**BACK, **options)
    said = capsys.readouterr().err
    assert "went back to" in said
    assert "the rows of step 6 will be left out" in said
    trained = lines(run_dir, "train")
    assert trained[-1]["step"] == 8
    assert trained[-1]["left_out_steps"] == 1
    assert last_checkpoint(run_dir).state["state"]["left_out"] == [5]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_dir).values())
    steps = [line["step"] for line in trained]
    assert steps == sorted(set(steps)), "the log must not tell of the steps that were taken back"
    if options.get("tracking.log_every") is None:
        assert 6 not in steps
        assert {5, 7} <= set(steps)


@pytest.mark.slow
def test_rollback_before_the_first_checkpoint(go, poison):
    poison(0)
    assert last_checkpoint(go(**BACK)).state["state"]["left_out"] == [0]


@pytest.mark.slow
def test_what_came_before_the_bad_step_is_what_it_was(go, poison):
    """Going back and replaying changes nothing up to the bad step."""
    whole = go("whole")
    poison(6)
    back = go("back", **BACK, **{"train.save_every": 2})
    known = {line["step"]: line["loss"] for line in lines(whole, "train")}
    for line in lines(back, "train"):
        if line["step"] < 7:
            assert line["loss"] == known[line["step"]]


def test_a_kill_after_a_rollback_changes_nothing(go, poison, monkeypatch, tmp_path):
    """The bad step is met again, and left out again."""
    poison(5)
    whole = go("whole", **BACK)
    real, killed = train_module.step, []

    class CrashError(BaseException):
        pass

    def dying(run, state, *rest):
        if state.left_out and state.step == 4 and not killed:
            killed.append(True)
            raise CrashError
        real(run, state, *rest)

    monkeypatch.setattr(train_module, "step", dying)
    with pytest.raises(CrashError):
        go("killed", **BACK)
    gc.collect()
    assert_same_run(go("killed", **BACK, **{"train.resume": "auto"}), whole)


def test_a_run_that_stopped_may_go_on_without_the_rows(go, poison):
    """`on_bad_step` may change on resume."""
    poison(5)
    with pytest.raises(MtlReError, match="step 6"):
        go("stopped")
    gc.collect()
    run_dir = go("stopped", **BACK, **{"train.resume": "auto"})
    assert last_checkpoint(run_dir).state["state"]["left_out"] == [5]


@pytest.mark.slow
def test_rollbacks_are_limited(go, poison):
    poison(2, 3, 5)
    with pytest.raises(MtlReError, match=r"train\.max_rollbacks: 2 steps were left out already"):
        go(**BACK, **{"train.max_rollbacks": 2})


@pytest.mark.slow
@pytest.mark.parametrize("factor", [None, 50.0])
def test_a_spike_is_a_bad_step_where_asked_for(go, poison, factor):
    poison(25, value=1e6)
    options = BACK | {"train.epochs": 8, "train.spike": factor}
    state = last_checkpoint(go(**options)).state["state"]
    assert state["left_out"] == ([] if factor is None else [25])
    assert len(state["norms"]) == (0 if factor is None else 31)


def test_a_spike_needs_norms_to_be_measured_against():
    state = train_module.State(norms=[1.0] * (bad_steps._ENOUGH - 1))
    assert not bad_steps._spikes(state, 1e9, 2.0)
    assert bad_steps._spikes(state, 1e10, 2.0)
    assert not bad_steps._spikes(state, 1.9, 2.0)
    assert state.norms[-1] == 1.9


@pytest.mark.slow
def test_resume_with_spikes_watched_is_exact(go, monkeypatch):
    options = {"train.spike": 100.0, "train.epochs": 6}
    whole = go("whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == 22)
        go("stopped", **options)
    gc.collect()
    assert_same_run(go("stopped", **options, **{"train.resume": "auto"}), whole)


# ---- fp16 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_fp16(monkeypatch):
    """A loss scaler on CPU: the arithmetic stays fp32, the overflow logic is fp16's own."""
    real = train_module.prepare_training

    def prepare(config, name, resources):
        run = real(config, name, resources)
        run.accelerator.native_amp = True
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
        run.optimizer.scaler = run.accelerator.scaler
        run.optimizer._accelerate_step_called = False
        run.optimizer._optimizer_original_step_method = run.optimizer.optimizer.step
        from accelerate.optimizer import patch_optimizer_step

        run.optimizer._optimizer_patched_step_method = patch_optimizer_step(run.optimizer, run.optimizer.optimizer.step)
        monkeypatch.setattr(type(run.accelerator), "mixed_precision", "fp16")
        run.precision = "fp16"
        return run

    monkeypatch.setattr(train_module, "prepare_training", prepare)


def overflow(monkeypatch, *steps):
    real, now = train_module._clip, {}
    real_step = train_module.step

    def step(run, state, *rest):
        now["step"] = state.step
        real_step(run, state, *rest)

    def clip(run):
        if now["step"] in steps:
            next(run.plain_model.parameters()).grad.view(-1)[0] = float("inf")
        return real(run)

    monkeypatch.setattr(train_module, "step", step)
    monkeypatch.setattr(train_module, "_clip", clip)


def test_fp16_overflow_is_skipped_and_counted(go, as_fp16, monkeypatch):
    overflow(monkeypatch, 2, 5)
    run_dir = go()
    trained = lines(run_dir, "train")
    assert [line["skipped_steps"] for line in trained] == [0, 0, 1, 1, 1, 2, 2, 2]
    found = last_checkpoint(run_dir).state
    assert found["scaler"]["scale"] == 2.0**14
    assert found["state"]["skipped_in_a_row"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_dir).values())


@pytest.mark.parametrize(
    "weighting", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("uncertainty", "dwa")), "famo"]
)
def test_a_skipped_step_teaches_no_weighting(go, monkeypatch, weighting):
    """Under fp16 the loss itself may overflow: infinite losses would make all weights NaN, for ever."""
    real, skipped = train_module.check_step, []

    def skips(run, state, norm, sums, rows):
        if state.step == 2:
            skipped.append(True)
            for name in sums:
                sums[name] = sums[name] * float("inf")
            return True
        return real(run, state, norm, sums, rows)

    monkeypatch.setattr(train_module, "check_step", skips)
    run_dir = go("run", **{"loss.weighting": weighting, "train.epochs": 3})
    assert skipped
    for line in lines(run_dir, "train"):
        values = [*line["loss"].values(), *line["weights"].values(), line["grad_norm"]]
        assert all(map(math.isfinite, values)), line


@pytest.mark.slow
def test_fp16_that_only_overflows_is_a_bad_step(go, as_fp16, monkeypatch):
    monkeypatch.setattr(bad_steps, "MAX_SKIPPED", 3)
    overflow(monkeypatch, *range(100))
    with pytest.raises(MtlReError, match="step 4: the loss or its gradient is not finite"):
        go()


@pytest.mark.slow
def test_fp16_resumes_with_its_scale(go, as_fp16, monkeypatch):
    overflow(monkeypatch, 2)
    whole = go("whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == 5)
        go("stopped")
    gc.collect()
    assert_same_run(go("stopped", **{"train.resume": "auto"}), whole)


# ---- a log on a bad disk ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_line_without_its_end_is_mended_on_resume(go, tmp_path, monkeypatch):
    """A full disk may keep all of a line but its end; the next one must not be glued to it."""
    whole = go("whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == 5)
        go("stopped")
    gc.collect()
    log = tmp_path / "stopped" / "metrics.jsonl"
    log.write_bytes(log.read_bytes().rstrip(b"\n"))
    assert_same_run(go("stopped", **{"train.resume": "auto"}), whole)
    assert all(json.loads(line) for line in log.read_text().splitlines())
