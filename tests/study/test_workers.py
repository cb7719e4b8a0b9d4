"""Studies: what a study file may say, and that workers share its cells whatever becomes of them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from fake_launch import Played
from optuna.trial import TrialState

from mtl_re.config import AblateConfig
from mtl_re.data import sample
from mtl_re.errors import MtlReError
from mtl_re.study import cell_process, cell_queue, workers
from mtl_re.study.cell_queue import CellQueue
from mtl_re.study.study import StudyDecoding, shares_of, trained_heads
from mtl_re.study.study_file import grid_name, load_study
from mtl_re.study.workers import Worker, ablate

FAKE = Path(__file__).parents[1].joinpath("fake_launch.py")
STUDIES = Path(__file__).resolve().parents[2] / "experiments" / "ablations"
BASE = {"data": {"train": "sample:train", "limit": 100}, "model": {"encoder": "scratch:tiny"}}


@pytest.fixture
def real_processes():
    """For a test whose cells must be processes of their own; others play them."""


@pytest.fixture
def write(tmp_path, monkeypatch, request):
    """write(**keys) → path of a study file with two arms and two seeds, its output in tmp_path."""
    monkeypatch.setattr(workers, "POLL", 0.2)
    monkeypatch.setattr(cell_process, "TICK", 0.05)
    if "real_processes" not in request.fixturenames:
        monkeypatch.setattr(cell_process, "start_process", Played)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def make(**keys):
        study = {"name": "s", "base": "base.yaml", "arms": {"a": {}, "b": {"optim.lr": 0.01}}, "seeds": [1, 2]}
        study |= {"output": str(tmp_path / "out")} | keys
        path = tmp_path / "study.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in study.items() if value is not None}, sort_keys=False)
        )
        return path

    return make


def launcher(tmp_path: Path, behaviour: str) -> str:
    return f"{sys.executable} {FAKE} {behaviour} {tmp_path / 'log'}"


def events(tmp_path: Path, kind: str) -> list[str]:
    lines = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    return sorted(line.split()[1] for line in lines if line.startswith(kind))


def work(path: Path, launch: str) -> CellQueue:
    """One worker in this process, to the end."""
    queue = CellQueue(load_study(path))
    Worker(queue, launch).work()
    return queue


def start(path: Path, launch: str) -> subprocess.Popen:
    """One worker in a process of its own."""
    code = (
        "import sys; from mtl_re.study import cell_queue, workers; workers.POLL, cell_queue.BEAT, cell_queue.GRACE = "
        "0.2, 1, 3; workers.work_on(*sys.argv[1:])"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(path), launch], env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for(condition, seconds=90.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


CELLS = ["a-s1", "a-s2", "b-s1", "b-s2"]


# ---- the file ------------------------------------------------------------------------------------------------------


AXES = {"arms": None, "axes": {"optim.lr": [0.1, 0.2]}}
SEARCH = {"arms": None, "axes": {"optim.lr": {"low": 0.001, "high": 0.1, "log": True}}, "trials": 3}
PARTS = {"c": {"loss.weights": {"coarse": 1, "org": 0, "per": 0}}, "f": {"model.heads": "flat"}, "a": {}}

WRONG = {
    "unknown key": ({"arm": 1}, "study: unknown key 'arm'; the keys are name"),
    "no base": ({"base": "other.yaml"}, r"other\.yaml: cannot be read \(No such file"),
    "both": ({"axes": {"optim.lr": [1]}}, "either arms or axes"),
    "neither": ({"arms": None}, "either arms or axes"),
    "no arms": ({"arms": {}}, "arms: is empty"),
    "arm name": ({"arms": {"a/b": {}}}, "arms: 'a/b'"),
    "arm is a list": ({"arms": {"a": [1]}}, "arms: a: expected a map"),
    "config key": ({"arms": {"a": {"optim.speed": 1}}}, "arm a: .*speed"),
    "group": ({"arms": {"a": {"optimizer.lr": 1}}}, "arm a: .*optimizer"),
    "type": ({"arms": {"a": {"train.epochs": "many"}}}, "arm a: .*epochs"),
    "bound": ({"arms": {"a": {"train.epochs": 0}}}, "arm a: .*epochs"),
    "bound of the second arm": ({"arms": {"a": {}, "b": {"train.epochs": 0}}}, "arm b: .*epochs"),
    "bound of the second seed": ({"seeds": [1, -1]}, "arm a: .*seed"),
    "registry": ({"arms": {"a": {"model.pooling": "maximum"}}}, "arm a: model.pooling: 'maximum'"),
    "weighting": ({"arms": {"a": {"loss.weighting": "magic"}}}, "arm a: loss.weighting: 'magic'"),
    "head": ({"arms": {"a": {"loss.weights": {"fine": 1}}}}, "arm a: loss.weights: no head is called 'fine'"),
    "owned": ({"arms": {"a": {"train.seed": 1}}}, "arm a: train.seed: the study sets this itself"),
    "overrides": ({"overrides": {"optim": {"speed": 1}}}, "arm a: .*speed"),
    "data": ({"overrides": {"data": {"train": "nowhere.json"}}}, "data.train: nowhere.json is not a file"),
    "test": ({"test": "nowhere.json"}, "test: nowhere.json is not a file"),
    "leak": ({"test": "sample:train"}, "data.train: sample:train is also test"),
    "leak under another name": (
        {"test": "train.json", "overrides": {"data": {"valid": "./train.json"}}},
        "is also test, on which no cell may train",
    ),
    "seeds": ({"seeds": [1, 1]}, r"seeds: \[1, 1\]"),
    "no seeds": ({"seeds": None}, "seeds: is missing"),
    "seed type": ({"seeds": ["one"]}, "seeds: "),
    "composed head": ({"arms": PARTS, "composed": {"x": {"coarse": "c"}}}, r"x: names heads \['coarse'\]"),
    "composed arm": ({"composed": {"x": {"coarse": "z"}}}, "composed: x: coarse: there is no arm 'z'"),
    "composed untrained": (
        {"arms": PARTS, "composed": {"x": {"coarse": "a", "org": "c", "per": "a"}}},
        "composed: x: org: arm 'c' gives this head the weight 0",
    ),
    "composed name": ({"composed": {"a": {"coarse": "a"}}}, "composed: a: an arm has this name"),
    "baseline": ({"baseline": "c"}, "baseline: there is no arm 'c'"),
    "baseline reading": ({"baseline": "a/soft"}, "baseline: there is no reading 'soft'"),
    "reading key": ({"readings": {"x": {"gates": "hard"}}}, "readings: x: unknown key 'gates'"),
    "gate": ({"readings": {"x": {"gate": "wide"}}}, "readings: x: gate: 'wide'"),
    "prior": ({"readings": {"x": {"prior": "flat"}}}, "readings: x: prior: 'flat'"),
    "shares": ({"readings": {"x": {"prior": [0.5, 0.1, 0.1]}}}, "readings: x: prior: .*sum to 1"),
    "calibrate": ({"readings": {"x": {"calibrate": "yes"}}}, "readings: x: calibrate: 'yes'; expected true or false"),
    "calibrate on scored rows": ({"readings": {"x": {"calibrate": True}}}, "it needs test"),
    "calibrate on nothing": (
        {"readings": {"x": {"calibrate": True}}, "test": "sample:test", "overrides": {"data.valid_fraction": 0}},
        "readings: calibrate needs an arm with validation rows",
    ),
    "trials of arms": ({"trials": 3}, "trials: belongs to a search"),
    "range without trials": (SEARCH | {"trials": None}, "trials: is missing"),
    "range": (SEARCH | {"axes": {"optim.lr": {"low": 2, "high": 1}}}, "low 2 and high 1"),
    "range key": (SEARCH | {"axes": {"optim.lr": {"low": 1, "high": 2, "base": 2}}}, "unknown key 'base'"),
    "log": (SEARCH | {"axes": {"optim.lr": {"low": 0, "high": 1, "log": True}}}, "with log, low must be above 0"),
    "range end": (SEARCH | {"axes": {"optim.lr": {"low": 0.1, "high": 7.0}}}, "optim.lr: 7.0 is out of range"),
    "search unscored": (SEARCH | {"overrides": {"data.valid_fraction": 0}}, "needs validation rows"),
    "sampler": (SEARCH | {"sampler": "grid"}, "sampler: 'grid'"),
    "shares of other classes": (
        {"readings": {"x": {"prior": [0.6, 0.4]}}},
        r"readings: x: prior: 2 shares for 3 coarse classes \(no_relation, org, per\)",
    ),
    "nothing to score": ({"arms": {"a": {"data.valid_fraction": 0}}}, "arm a: has no validation rows to be scored on"),
    "other rows than the baseline": (
        {"arms": {"a": {}, "b": {"data.limit": 50}}, "baseline": "a"},
        r"arm b: its validation rows are not the baseline's \(they differ in data.limit\); set test",
    ),
    "pruner": ({"pruner": "hyperband"}, "pruner: 'hyperband'"),
    "pruner of arms": ({"pruner": "median"}, "it would drop an arm's bad seeds"),
    "pruner of seeds": (SEARCH | {"pruner": "median", "seeds": [1, 2]}, "is for a search with one seed"),
    "repeated value": (AXES | {"axes": {"optim.lr": [0.1, 0.1]}}, "two points of the grid"),
    "name": ({"name": "a b"}, "name: 'a b'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_is_named_before_anything_runs(write, tmp_path, case):
    keys, message = WRONG[case]
    with pytest.raises(MtlReError, match=message):
        ablate(write(**keys), AblateConfig(launch=launcher(tmp_path, "quick")))
    assert not (tmp_path / "out").exists()


def test_arms_and_seeds_make_cells(write):
    study = load_study(write(overrides={"train": {"epochs": 1}, "loss": {"weights": {"coarse": 2}}}))
    assert [cell.key for cell in study.cells()] == ["a-s1", "b-s1", "a-s2", "b-s2"]
    assert {cell.config["train"]["seed"] for cell in study.cells()} == {1, 2}
    assert all(cell.config["train"]["epochs"] == 1 for cell in study.cells())
    assert study.cells()[1].config["optim"] == {"lr": 0.01}
    assert shares_of(study, {}) == {"coarse": 0.5, "org": 0.25, "per": 0.25}
    assert shares_of(study, {"loss.weighting": "rlw"}) is None
    assert study.readings == {"hard": StudyDecoding()}


def test_axes_make_a_grid(write):
    weights = [{"coarse": 1, "org": 0}, {"coarse": 2, "org": 1}]
    study = load_study(write(arms=None, axes={"loss.weights": weights, "optim.lr": [1.0e-3, 2.0e-3]}, seeds=[7]))
    assert list(study.arms) == [f"weights={weight},lr={rate}" for weight in ("1-0", "2-1") for rate in (0.001, 0.002)]
    assert len(study.cells()) == 4
    assert trained_heads(study, "weights=1-0,lr=0.001") == ["coarse", "per"]


def test_grid_names_fit_a_file_system():
    assert grid_name({"data.train": "a/b c.json"}) == "train=a_b_c.json"
    assert grid_name({"a.x": 1, "b.x": 2}) == "a.x=1,b.x=2"
    assert len(grid_name({"a": "y" * 500})) < 100


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_right(path, shared, monkeypatch, tmp_path):
    """In a checkout in which the commands that their first lines name have been given."""
    (tmp_path / "shared").symlink_to(shared)
    held_out = tmp_path / "checkout" / "runs" / "hold-out"
    held_out.mkdir(parents=True)
    by_class = tmp_path / "checkout" / "runs" / "by-class"
    by_class.mkdir()
    for made in (held_out / "train", held_out / "test", by_class / "org", by_class / "per"):
        made.with_suffix(".json").write_text("[]")
    monkeypatch.chdir(tmp_path / "checkout")
    study = load_study(path)
    assert len(study.cells()) >= 6  # two arms, three seeds


def test_there_are_shipped_studies():
    assert {path.stem for path in STUDIES.glob("*.yaml")} >= {"hierarchy", "weights-screen", "weights-final", "smoke"}


# ---- running -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real_processes")
def test_one_worker_runs_every_cell_and_a_second_time_none(write, tmp_path):
    path = write()
    queue = work(path, launcher(tmp_path, "quick"))
    assert events(tmp_path, "begin") == CELLS
    progress = queue.progress()
    assert sorted(progress.done) == CELLS
    assert progress.done["b-s1"].value == 53 - 0.0
    assert progress.done["b-s1"].user_attrs["arm"] == "b"
    work(path, launcher(tmp_path, "quick"))
    assert events(tmp_path, "begin") == CELLS


def test_new_arms_and_seeds_may_be_added_but_options_may_not_change(write, tmp_path):
    work(write(), launcher(tmp_path, "quick"))
    work(write(arms={"a": {}, "b": {"optim.lr": 0.01}, "c": {}}, seeds=[1, 2, 3]), launcher(tmp_path, "quick"))
    assert len(events(tmp_path, "begin")) == 9
    with pytest.raises(MtlReError, match="b-s1: its options have changed"):
        work(write(arms={"a": {}, "b": {"optim.lr": 0.02}}), launcher(tmp_path, "quick"))


def test_a_failed_cell_is_recorded_and_the_others_go_on(write, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr("mtl_re.study.report.write_report", lambda *given: reports.append(given))
    path = write()
    with pytest.raises(
        MtlReError, match=r"2 of the study's cells failed .*a-s1: the moon is not .* \(exit code 1; all"
    ):
        ablate(path, AblateConfig(launch=launcher(tmp_path, "fail:a")))
    assert events(tmp_path, "end") == ["b-s1", "b-s2"]
    assert len(reports) == 1
    with pytest.raises(MtlReError, match="2 of the study's cells failed"):
        ablate(path, AblateConfig(launch=launcher(tmp_path, "quick")))
    assert events(tmp_path, "end") == ["b-s1", "b-s2"]  # not again, unless asked
    ablate(path, AblateConfig(launch=launcher(tmp_path, "quick"), retry=True))
    assert events(tmp_path, "end") == CELLS


def test_where_all_cells_fail_the_reasons_are_told(write, tmp_path):
    path = write()
    told = r"4 of the study's cells failed \(--retry runs them again\): a-s1: the moon"
    for launch in ("fail:", "quick"):  # the second time nothing runs: failed cells wait to be asked for
        with pytest.raises(MtlReError, match=told):
            ablate(path, AblateConfig(launch=launcher(tmp_path, launch)))


def test_other_choices_of_a_search_are_another_search(write, tmp_path):
    """Optuna stores a choice by its number, which would name another value of a changed list."""
    axes = {"arms": None, "axes": {"optim.lr": [0.01, 0.02]}, "trials": 2, "seeds": [1]}
    work(write(**axes), launcher(tmp_path, "quick"))
    changed = axes | {"axes": {"optim.lr": [0.03, 0.02]}}
    with pytest.raises(MtlReError, match="its options have changed since the study began"):
        CellQueue(load_study(write(**changed))).enqueue()
    CellQueue(load_study(write(**axes | {"trials": 3}))).enqueue()


def test_test_rows_are_read_as_the_cells_read_theirs_and_before_any_training(write, tmp_path, monkeypatch):
    made = sample.rows("test", 30, 0)
    for row in made:
        for role in ("subject_entity", "object_entity"):
            row[role]["end_idx"] += 1
    (tmp_path / "test.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr("mtl_re.study.report.write_report", lambda *given: Path("report.md"))
    (tmp_path / "train.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    keys = {"test": str(tmp_path / "test.json")}
    with pytest.raises(MtlReError, match="spell their words if spans are read with --span_ends exclusive"):
        ablate(write(**keys), AblateConfig(launch=launcher(tmp_path, "quick")))
    assert events(tmp_path, "begin") == []
    overrides = {"data.span_ends": "exclusive", "data.train": str(tmp_path / "train.json")}
    ablate(write(overrides=overrides, **keys), AblateConfig(launch=launcher(tmp_path, "quick")))
    assert events(tmp_path, "end") == CELLS


def test_test_rows_without_a_label_are_named_before_any_training(write, tmp_path):
    made = sample.rows("test", 3, 0)
    made[1]["label"] = None
    (tmp_path / "test.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"test\.json.*2.* has no label"):
        ablate(write(test=str(tmp_path / "test.json")), AblateConfig(launch=launcher(tmp_path, "quick")))
    assert events(tmp_path, "begin") == []


def test_entity_types_of_test_rows_that_no_arm_has_trained_on_are_named_before_any_training(write, tmp_path):
    made = sample.rows("train", 30, 0)
    (tmp_path / "train.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    made[2]["object_entity"]["type"] = "AFW"
    (tmp_path / "test.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    keys = {"test": str(tmp_path / "test.json")}
    data = {"data.train": str(tmp_path / "train.json"), "data.markers": "typed_punct"}
    launch = AblateConfig(launch=launcher(tmp_path, "quick"))
    told = r"test\.json:3 .*object_entity\.type: 'AFW' occurs in no training row of arm .*, whose markers name types"
    with pytest.raises(MtlReError, match=told):
        ablate(write(overrides=data, **keys), launch)
    assert events(tmp_path, "begin") == []


def test_failures_are_told_where_the_finished_cells_make_no_report(write, tmp_path):
    """Half of a composition scores nothing; why the other half failed must be said all the same."""
    arms = {"c": {"loss.weights": {"coarse": 1, "org": 0, "per": 0}}, "f": {"loss.weights": {"coarse": 0}}}
    path = write(arms=arms, seeds=[1], composed={"x": {"coarse": "c", "org": "f", "per": "f"}}, test="sample:test")
    told = "1 of the study's cells failed .*f-s1: the moon is not .*; and there is no report: "
    with pytest.raises(MtlReError, match=told):
        ablate(path, AblateConfig(launch=launcher(tmp_path, "fail:f")))
    assert events(tmp_path, "end") == ["c-s1"]


def test_the_score_of_a_cell_is_that_of_the_model_it_kept(tmp_path):
    """With an untrained head the last model is kept, whatever its score."""
    lines = [{"kind": "valid", "step": step, "selection": score, "best": True} for step, score in ((1, 60), (2, 50))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "val')
    assert cell_process.selection_scores(tmp_path) == [(1, 60.0), (2, 50.0)]
    assert cell_process.best_score(tmp_path) == 50.0
    lines[1]["best"] = False
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cell_process.best_score(tmp_path) == 60.0


def test_a_report_without_a_study_is_somebody_else_s(write, tmp_path):
    (tmp_path / "out" / "report").mkdir(parents=True)
    (tmp_path / "out" / "report" / "report.md").write_text("mine")
    with pytest.raises(MtlReError, match="out holds a report, and no cells of a study; name another directory"):
        ablate(write(), AblateConfig(launch=launcher(tmp_path, "quick")))
    assert (tmp_path / "out" / "report" / "report.md").read_text() == "mine"


def test_a_launcher_that_is_not_there_is_named_first(write):
    with pytest.raises(MtlReError, match="--launch: 'warp' is not a program"):
        ablate(write(), AblateConfig(launch="warp drive"))


def test_a_run_directory_with_other_options_is_not_taken_over(write, tmp_path):
    work(write(), launcher(tmp_path, "quick"))
    (tmp_path / "out" / "study.db").unlink()
    queue = work(write(arms={"a": {}, "b": {"optim.lr": 0.02}}), launcher(tmp_path, "quick"))
    assert sorted(queue.progress().failed) == ["b-s1", "b-s2"]
    assert "holds a run with other options" in queue.progress().failed["b-s1"].user_attrs["reason"]


def test_a_database_may_hold_several_studies(write, tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    queue = work(write(storage=url), launcher(tmp_path, "quick"))
    assert sorted(queue.progress().done) == CELLS
    other = CellQueue(load_study(write(name="other", storage=url)))
    other.enqueue()
    assert sorted(other.progress().waiting) == CELLS
    assert not (tmp_path / "out" / "study.db").exists()


def test_two_trials_of_a_cell_count_once(write, tmp_path):
    queue = CellQueue(load_study(write()))
    queue.enqueue()
    for key in CELLS:  # as when two machines without a common disk enqueue at the same moment
        digest = queue.counted()[key].user_attrs["digest"]
        queue.trials.enqueue_trial({}, user_attrs={"job": key, "digest": digest})
    Worker(queue, launcher(tmp_path, "quick")).work()
    assert events(tmp_path, "begin") == CELLS


@pytest.mark.parametrize("keys", [{}, {"arms": None, "axes": {"optim.lr": [0.01, 0.02]}, "trials": 4}])
def test_interrupted_cells_are_taken_before_those_that_never_began(write, keys):
    queue = CellQueue(load_study(write(**keys)))
    order = list(queue.planned)
    taken = []

    def stopped(key, trial):
        taken.append(key)
        raise MtlReError("stopped")

    def done(key, trial):
        taken.append(key)
        trial.set_user_attr("reason", None)
        return 1.0

    queue.enqueue()
    assert queue.take(stopped)
    queue.enqueue()  # the command of another day
    assert queue.take(done)
    assert queue.take(stopped)
    while queue.take(done):
        pass
    assert taken == [order[0], order[0], order[1], order[1], *order[2:]]
    assert list(queue.progress().done) == order


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_taken_up(write, tmp_path, monkeypatch):
    """Optuna's own check passes over trials without a heartbeat: these, and those of the versions that sent none."""
    queue = CellQueue(load_study(write()))
    queue.enqueue()
    with pytest.warns(UserWarning, match="Heartbeat"):
        assert queue.trials.ask().user_attrs["job"] == "a-s1"
    queue.enqueue()
    assert sorted(queue.progress().running) == ["a-s1"]  # it may live
    monkeypatch.setattr(cell_queue, "GRACE", 0)
    Worker(queue, launcher(tmp_path, "quick")).work()
    assert events(tmp_path, "begin") == CELLS
    assert sorted(queue.progress().done) == CELLS


def test_a_worker_that_was_taken_for_dead_goes_on(write, tmp_path, monkeypatch):
    """Its trial is failed and queued again by another; the cell trains once all the same."""
    queue = CellQueue(load_study(write()))
    run_cell = workers.run_cell

    def slept(run_dir, *given):
        if run_dir.name == "a-s1" and not run_dir.joinpath("report").exists():
            queue.trials.tell(queue.counted()["a-s1"].number, state=TrialState.FAIL)
        return run_cell(run_dir, *given)

    monkeypatch.setattr(workers, "run_cell", slept)
    Worker(queue, launcher(tmp_path, "quick")).work()
    assert events(tmp_path, "begin") == CELLS
    assert sorted(queue.progress().done) == CELLS


def test_a_cell_waits_for_the_training_that_still_runs_in_its_directory(write, tmp_path, capsys):
    """As where no system signal ended a dead worker's training: what that leaves is taken, not trained again."""
    study = load_study(write(arms={"a": {}}, seeds=[1]))
    queue, run_dir = CellQueue(study), study.run_dir(study.cells()[0])
    run_dir.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from mtl_re.files import locked\n"
        "with locked((folder := Path(sys.argv[1])) / '.lock'): print('held', flush=True); sys.stdin.read()\n"
        "(folder / 'report').mkdir(); (folder / 'report' / 'report.md').write_text('done')"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.read(4) == b"held"
    threading.Timer(0.5, holder.stdin.close).start()
    Worker(queue, launcher(tmp_path, "quick")).work()
    holder.wait()
    holder.stdout.close()
    assert events(tmp_path, "begin") == []
    assert sorted(queue.progress().done) == ["a-s1"]
    assert "a-s1 waits: " in capsys.readouterr().err


def test_a_study_of_an_older_version_goes_on_by_its_run_directories(write, tmp_path):
    work(write(), launcher(tmp_path, "quick"))
    (tmp_path / "out" / "study.db").rename(tmp_path / "out" / "study.journal")
    assert sorted(work(write(), launcher(tmp_path, "quick")).progress().done) == CELLS
    assert events(tmp_path, "begin") == CELLS


def test_a_search_of_an_older_version_is_refused(write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.journal").touch()
    with pytest.raises(MtlReError, match=r"study\.journal: holds a search of an older version.*another output"):
        CellQueue(load_study(write(**SEARCH)))


def test_a_database_that_cannot_be_opened_is_named(write, tmp_path):
    with pytest.raises(MtlReError, match=r"storage: nowhere://x cannot be opened"):
        CellQueue(load_study(write(storage="nowhere://x")))


@pytest.mark.slow
def test_progress_names_the_time_left(write, tmp_path):
    queue = work(write(), launcher(tmp_path, "slow"))
    more = CellQueue(load_study(write(seeds=[1, 2, 3])))
    more.enqueue()
    assert more.progress().line("s").startswith("study s: 4/6 done, 0 running, 0 failed, about")
    assert queue.progress().line("s") == "study s: 4/4 done, 0 running, 0 failed"
    assert [cell_queue.duration(seconds) for seconds in (7, 130, 7500)] == ["7 s", "2 min", "2 h 05 min"]


# ---- searching -----------------------------------------------------------------------------------------------------


def test_a_search_samples_arms_and_scores_them_over_seeds(write, tmp_path):
    queue = work(write(**SEARCH), launcher(tmp_path, "quick"))
    progress = queue.progress()
    assert sorted(progress.done) == ["trial-0000", "trial-0001", "trial-0002"]
    assert len(events(tmp_path, "end")) == 6
    arms = cell_queue.searched_arms(load_study(write(**SEARCH)))
    rates = [arm["optim.lr"] for arm in arms.values()]
    assert len(set(rates)) == 3
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    for key, trial in progress.done.items():
        assert trial.value == pytest.approx(53 - abs(arms[key]["optim.lr"] - 0.01) * 1000)


def test_a_failed_arm_of_a_search_is_retried_with_the_same_choice(write, tmp_path):
    path = write(**SEARCH | {"seeds": [1]})
    queue = work(path, launcher(tmp_path, "fail:trial-0001"))
    chosen = queue.counted()["trial-0001"].user_attrs["settings"]
    assert sorted(queue.progress().failed) == ["trial-0001"]
    queue.enqueue(retry_failed=True)
    again = work(path, launcher(tmp_path, "quick")).counted()["trial-0001"]
    assert (again.state.name, again.user_attrs["settings"]) == ("COMPLETE", chosen)


def test_a_search_over_choices_and_whole_numbers(write, tmp_path):
    axes = {"optim.schedule": ["linear", "cosine"], "train.epochs": {"low": 1, "high": 4}, "optim.lr": [0.01]}
    work(write(**SEARCH | {"axes": axes, "sampler": "random"}), launcher(tmp_path, "quick"))
    for arm in cell_queue.searched_arms(load_study(write(**SEARCH | {"axes": axes}))).values():
        assert arm["optim.schedule"] in ("linear", "cosine")
        assert type(arm["train.epochs"]) is int


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")
def test_a_hopeless_trial_is_pruned(write, tmp_path):
    """Five trials give the median its footing; later ones at the bad rate score below it at every step."""
    axes = {"optim.lr": [0.01, 0.0101, 0.0102, 0.0103, 0.03]}
    path = write(**SEARCH | {"axes": axes, "trials": 12, "seeds": [1], "sampler": "random", "pruner": "median"})
    queue = work(path, launcher(tmp_path, "watch"))
    progress, trials = queue.progress(), queue.counted()
    pruned = {trials[key].user_attrs["settings"]["optim.lr"] for key in progress.pruned}
    assert 0.03 in pruned
    assert 0.01 not in pruned
    assert len(progress.done) + len(progress.pruned) == 12


# ---- several workers, and death ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_started_together_run_each_cell_once(write, tmp_path):
    path = write(arms={name: {} for name in "abcd"})
    both = [start(path, launcher(tmp_path, "slow")) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    expected = sorted(f"{arm}-s{seed}" for arm in "abcd" for seed in (1, 2))
    assert events(tmp_path, "begin") == expected
    assert events(tmp_path, "end") == expected
    assert sorted(CellQueue(load_study(path)).progress().done) == expected


@pytest.mark.slow
def test_workers_of_one_command_share_the_cells(write, tmp_path, monkeypatch):
    monkeypatch.setattr("mtl_re.study.report.write_report", lambda *given: Path("report.md"))
    ablate(write(), AblateConfig(launch=launcher(tmp_path, "slow"), workers=2))
    assert events(tmp_path, "begin") == CELLS


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_killed_worker_loses_nothing_and_its_cell_is_taken_up(write, tmp_path, how):
    path, launch = write(), launcher(tmp_path, "hang:a-s1")
    first = start(path, launch)
    wait_for(lambda: "a-s1" in events(tmp_path, "begin") and (tmp_path / "out/cells/a-s1/checkpoints").exists())
    second = start(path, launch)
    first.send_signal(how)
    first.wait(30)
    assert second.wait(120) == 0
    assert events(tmp_path, "saved") == ["a-s1"]  # the training was told to stop, and kept its progress
    assert events(tmp_path, "begin") == sorted(["a-s1", *CELLS])
    assert events(tmp_path, "end") == CELLS
    assert sorted(CellQueue(load_study(path)).progress().done) == CELLS
