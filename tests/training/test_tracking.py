"""What a run leaves behind: metrics.jsonl across resumes, the manifest, and the trackers as views of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from distributed_worker import lines, make_config, rows_file, shrink
from wandb_file import read_run

from mtl_re.config import TrackingConfig
from mtl_re.training import tracking
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.tracking import Answers, Trackers, flatten, git_state, manifest
from mtl_re.training.train import train


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


# ---- metrics.jsonl -------------------------------------------------------------------------------------------------


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_log_appends_lines(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", 0)
    log.write({"step": 1, "text": "관계"})
    log.write({"step": 2})
    assert steps(tmp_path / "m.jsonl") == [1, 2]
    assert "관계" in (tmp_path / "m.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(("resumed", "kept"), [(0, []), (1, [1]), (2, [1, 2, 2]), (9, [1, 2, 2, 3, 4])])
def test_resume_drops_what_lies_behind_the_step(tmp_path, resumed, kept):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 2, 3, 4)))
    MetricsLog(path, resumed)
    assert steps(path) == kept


@pytest.mark.parametrize("tail", ['{"step": 2, "lo', '{"step": 2', "garbage", "[1]", "{}", "\n"])
def test_line_cut_by_a_kill_is_dropped(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n' + tail)
    log = MetricsLog(path, 5)
    log.write({"step": 6})
    assert steps(path) == [1, 6]


def test_a_failing_disk_does_not_lose_the_log(tmp_path, monkeypatch):
    """The lines before the resumed step are the only record of what was trained."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    class Killed(BaseException):
        pass

    real = type(path).write_text

    def killed(self, text, **named):
        real(self, "", **named)
        raise Killed

    monkeypatch.setattr(type(path), "write_text", killed)
    with suppress(Killed):
        MetricsLog(path, 1)
    monkeypatch.undo()
    assert steps(path)[:1] == [1]


# ---- flatten and manifest ------------------------------------------------------------------------------------------


def test_flatten():
    nested = {"a": {"b": {"c": 1.5}, "d": [1, 2]}, "e": None, "f": True, "g": "text", 3: 4}
    assert flatten(nested) == {"a/b/c": 1.5, "a/d": "[1, 2]", "e": "None", "f": True, "g": "text", "3": 4}
    assert flatten({}) == {}


def test_manifest_holds_no_environment(monkeypatch):
    secret = "s3cr3t-of-the-environment"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANY_OTHER"):
        monkeypatch.setenv(name, secret)
    written = manifest({"train": {}}, 1, 2, "no", "cpu")
    assert secret not in json.dumps(written)
    assert set(written) == {"command", "git", "versions", "hardware", "data", "seed"}
    assert written["hardware"]["processes"] == 2


def test_manifest_outside_a_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None
    monkeypatch.setenv("PATH", "")
    assert git_state() is None


def test_git_state_names_commit_and_dirt(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    state = git_state()
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "new").write_text("")
    assert git_state()["dirty"] is True


# ---- wandb: offline or not -----------------------------------------------------------------------------------------


@pytest.fixture
def no_wandb(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def refuse(address, timeout=None):
    raise OSError("no network in this test")


def test_without_a_key_wandb_is_offline(no_wandb, monkeypatch):
    monkeypatch.setattr(tracking.socket, "create_connection", lambda *rest, **named: pytest.fail("asked the network"))
    assert "no key" in tracking._wandb_offline()


def test_with_a_key_but_no_network_wandb_is_offline(no_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(tracking.socket, "create_connection", refuse)
    assert "api.wandb.ai cannot be reached" in tracking._wandb_offline()
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.mine:8080")
    assert "wandb.mine cannot be reached" in tracking._wandb_offline()


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
def test_key_in_a_netrc_counts(no_wandb, monkeypatch, tmp_path, name):
    path = tmp_path / ".netrc"
    path.write_text("machine api.wandb.ai login user password kkk\n")
    path.chmod(0o600)
    monkeypatch.setattr(tracking.socket, "create_connection", refuse)
    assert "cannot be reached" in tracking._wandb_offline()
    path.write_text("machine")
    assert "no key" in tracking._wandb_offline()


def test_the_users_mode_is_left_alone(no_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking._wandb_offline() is None


def test_no_trackers_do_nothing(tmp_path):
    trackers = Trackers(None, TrackingConfig(), tmp_path, {})
    trackers.log({"a": 1}, 1)
    trackers.charts(ANSWERS, 1)
    trackers.finish({}, 1, True)
    assert not list(tmp_path.iterdir())


ANSWERS = Answers(
    labels=["no_relation", "org:members", "per:title", "per:spouse"],
    coarse={"no_relation": "no_relation", "org:members": "org", "per:title": "per", "per:spouse": "per"},
    gold=np.array([0, 0, 2, 3, 3]),
    predicted=np.array([0, 1, 3, 3, 3]),
    probs=np.array([[0.7, 0.1, 0.1, 0.1], [0.3, 0.4, 0.2, 0.1], [0, 0, 0.4, 0.6], [0, 0, 0.1, 0.9], [0, 0, 0.5, 0.5]]),
)
"""No row is org:members."""


class FakeRun:
    def __init__(self):
        self.logged, self.artifacts = {}, []

    def log(self, values, step):
        self.logged |= values

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)


class FakeAccelerator:
    is_main_process = True

    def __init__(self):
        self.run, self.logged, self.ended, self.started = FakeRun(), [], False, None
        self.trackers = [self]

    def init_trackers(self, project, config, init_kwargs):
        self.started = (project, config, init_kwargs)

    def log(self, values, step):
        self.logged.append((values, step))

    def get_tracker(self, name, unwrap):
        assert unwrap
        return self.run

    def finish(self):
        self.ended = True


def wandb_to(accelerator, run_dir, **options):
    return Trackers(
        accelerator, TrackingConfig(trackers=["wandb"], project="mine", **options), run_dir, {"a": {"b": None}}
    )


def test_wandb_gets_numbers_and_scores(no_wandb, tmp_path, capsys):
    accelerator = FakeAccelerator()
    trackers = wandb_to(accelerator, tmp_path / "run", group="study/arm")
    project, config, options = accelerator.started
    assert (project, config) == ("mine", {"a/b": "None"})
    identity = {"id": (tmp_path / "run" / "wandb_id.txt").read_text().strip(), "resume": "allow"}
    where = {"dir": str(tmp_path / "run"), "name": "run", "group": "study/arm", "mode": "offline"}
    assert options["wandb"] == where | identity
    again = FakeAccelerator()
    wandb_to(again, tmp_path / "run")
    assert again.started[2]["wandb"]["id"] == identity["id"]  # a resumed run goes on in the same one
    said = capsys.readouterr().err
    assert "kept offline under" in said
    assert str(tmp_path / "run" / "wandb") in said
    trackers.log({"kind": "train", "loss": {"coarse": 1.0}}, 3)
    assert accelerator.logged[-1] == ({"loss/coarse": 1.0}, 3)
    trackers.finish({"micro_f1": 50.0, "selection": 40.0, "coarse": {"accuracy": 80.0}, "per_label": {"a": 1}}, 9, True)
    assert accelerator.logged[-1] == (
        {"final/micro_f1": 50.0, "final/selection": 40.0, "final/coarse/accuracy": 80.0},
        9,
    )
    assert accelerator.ended


def test_wandb_charts_count_classes_and_labels(no_wandb, tmp_path):
    """wandb's curves take their columns for the classes that occur: without the missing label's they would be wrong."""
    accelerator = FakeAccelerator()
    wandb_to(accelerator, tmp_path).charts(ANSWERS, 9)
    charts = accelerator.run.logged
    coarse = {(row[0], row[1]): row[2] for row in charts["confusion/coarse"].table.data}
    assert coarse[("no_relation", "no_relation")] == coarse[("no_relation", "org")] == 1
    assert coarse[("per", "per")] == 3
    labels = {(row[0], row[1]): row[2] for row in charts["confusion/labels"].table.data}
    assert labels[("per:title", "per:spouse")] == 1
    assert labels[("per:spouse", "per:spouse")] == 2
    assert sum(labels.values()) == 5
    curves: dict[str, list] = {}
    for name, precision, recall in charts["precision-recall"].table.data:
        curves.setdefault(name, []).append((recall, precision))
    assert set(curves) == {"no_relation", "per:title", "per:spouse"}
    assert dict(curves["no_relation"])[1.0] == 1.0  # both of its rows stand above all others
    assert dict(curves["per:title"])[1.0] == 0.5  # the row that says 0.5 is wrong, the one with 0.4 right


@pytest.mark.parametrize(("wanted", "finished"), [(True, True), (False, True), (True, False)])
def test_model_goes_as_an_artifact(no_wandb, tmp_path, wanted, finished):
    run_dir = tmp_path / "관계 run"
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "config.json").write_text("{}")
    accelerator = FakeAccelerator()
    wandb_to(accelerator, run_dir, artifact=wanted).finish({"micro_f1": 50.0, "ci": {}}, 9, finished)
    assert len(accelerator.run.artifacts) == (wanted and finished)
    for artifact in accelerator.run.artifacts:
        assert (artifact.name, artifact.type) == ("---run-model", "model")
        assert artifact.metadata == {"micro_f1": 50.0}
        assert set(artifact.manifest.entries) == {"config.json"}


def test_a_dashboard_that_fails_does_not_end_the_training(no_wandb, tmp_path, capsys, monkeypatch):
    def fail(*rest, **named):
        raise OSError("no room\nleft")

    (tmp_path / "model").mkdir()
    accelerator = FakeAccelerator()
    trackers = wandb_to(accelerator, tmp_path)
    accelerator.run.log = accelerator.run.log_artifact = fail
    trackers.charts(ANSWERS, 9)
    trackers.finish({}, 9, True)
    said = capsys.readouterr().err
    assert "trackers: charts could not be sent (no room left)" in said
    assert "trackers: the model could not be sent (no room left)" in said
    assert accelerator.ended


def test_figures_that_cannot_be_sent_do_not_end_the_training(no_wandb, tmp_path, capsys, monkeypatch):
    """The service of wandb has died: metrics.jsonl has the figures, and the run goes on."""

    def fail(*rest, **named):
        raise BrokenPipeError(32, "Broken pipe")

    accelerator = FakeAccelerator()
    trackers = wandb_to(accelerator, tmp_path)
    monkeypatch.setattr(accelerator, "log", fail)
    for tracker in accelerator.trackers:
        monkeypatch.setattr(tracker, "finish", fail)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step)
    trackers.finish({}, 2, True)
    said = capsys.readouterr().err
    assert said.count("trackers: figures could not be sent") == 1
    assert "trackers: the end of the run could not be sent" in said


def test_wandb_without_validation_rows_ends_well(no_wandb, tmp_path):
    accelerator = FakeAccelerator()
    wandb_to(accelerator, tmp_path).finish({}, 9, True)
    assert accelerator.ended


# ---- real trackers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_holds_the_same_figures(tmp_path, monkeypatch):
    """Its files lie in the run directory, whatever the working directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    rows = rows_file(tmp_path / "rows.json")
    run_dir = tmp_path / "runs" / "one"
    train(make_config({"data.train": str(rows), "train.run_dir": str(run_dir), "tracking.trackers": ["tensorboard"]}))
    files = list(run_dir.rglob("events.out.tfevents.*"))
    assert files, f"not in the run directory but in {list(tmp_path.rglob('events.out.tfevents.*'))}"
    scalars, tags, pictures = {}, set(), {}
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= set(events.Tags()["tensors"])
        for tag in events.Tags()["images"]:
            image = events.Images(tag)[0]
            pictures[tag] = (image.width, image.height)
        for tag in events.Tags()["scalars"]:
            scalars[tag] = {event.step: event.value for event in events.Scalars(tag)}
    for line in lines(run_dir, "train"):
        assert scalars["loss/coarse"][line["step"]] == pytest.approx(line["loss"]["coarse"], rel=1e-5)
    for line in lines(run_dir, "valid"):
        assert scalars["valid/auprc"][line["step"]] == pytest.approx(line["auprc"], rel=1e-5)
    scores = json.loads((run_dir / "valid_metrics.json").read_text(encoding="utf-8"))
    (final,) = scalars["final/auprc"].values()
    assert final == pytest.approx(scores["auprc"], rel=1e-5)
    supported = {label for label, row in scores["per_label"].items() if row["support"]}
    assert {tag.removeprefix("precision-recall/") for tag in tags if tag.startswith("precision-recall/")} == supported
    assert set(pictures) == {"confusion/coarse", "confusion/labels"}
    assert all(min(size) > 400 for size in pictures.values())
    (written,) = run_dir.rglob("hparams.yml")
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(written.read_text(encoding="utf-8")) == flatten(config)


def wandb_training(folder, options):
    """Command and environment of a training in `folder/run` with the real wandb, which knows no key."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = {
        "data.train": rows_file(folder / "rows.json"),
        "data.max_length": 96,
        "model.encoder": "scratch:tiny",
        "train.run_dir": folder / "run",
        "train.precision": "no",
        "tracking.trackers": '["wandb"]',
        "tracking.log_every": 1,
        "tracking.group": "study/arm",
    } | options
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mtl_re", "train", *arguments], environment


@pytest.mark.slow
@pytest.mark.parametrize("fraction", ["0.2", "0"])
def test_wandb_run_without_key_or_network(tmp_path, fraction):
    """The real thing in a process of its own: offline, said so, exit 0, and a run on disk."""
    command, environment = wandb_training(tmp_path, {"data.valid_fraction": fraction, "train.max_steps": 2})
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    assert "wandb: no key" in done.stderr
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    run = read_run(file)
    assert (run["name"], run["group"], run["project"]) == ("run", "study/arm", "mtl-re")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert flatten(config).items() <= run["config"].items()
    trained = [line for line in run["history"] if "loss/coarse" in line]
    logged = lines(tmp_path / "run", "train")
    assert [line["_step"] for line in trained] == [line["step"] for line in logged]
    for ours, theirs in zip(logged, trained, strict=True):
        assert {f"loss/{head}": value for head, value in ours["loss"].items()}.items() <= theirs.items()
    artifacts = {name: one for name, one in run["artifacts"].items() if one["type"] == "model"}
    assert set(artifacts) == {"run-model"}
    assert set(artifacts["run-model"]["files"]) == {path.name for path in (tmp_path / "run" / "model").iterdir()}
    charts = {name.removeprefix("_wandb/visualize/") for name in run["config"] if name.startswith("_wandb/visualize/")}
    if fraction == "0":
        assert not charts
        return
    assert charts == {"confusion/coarse", "confusion/labels", "precision-recall"}
    scores = json.loads((tmp_path / "run" / "valid_metrics.json").read_text(encoding="utf-8"))
    assert run["summary"]["final/auprc"] == pytest.approx(scores["auprc"])
    assert run["summary"]["final/selection"] == max(line["selection"] for line in lines(tmp_path / "run", "valid"))
    (table,) = (tmp_path / "run" / "wandb").rglob("coarse_table*.table.json")
    counted = {(gold, predicted): count for gold, predicted, count in json.loads(table.read_text())["data"]}
    for gold, row in scores["coarse"]["confusion"].items():
        assert {name: counted[gold, name] for name in row} == row


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_resumed_training_is_the_same_wandb_run(tmp_path, sent):
    """Offline its parts have one id; of a part that was killed, wandb loses the lines that it had not written yet."""
    command, environment = wandb_training(tmp_path, {"train.max_steps": 40, "train.save_every": 2})
    call = {"env": environment, "cwd": tmp_path, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, **call)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 7:
            assert child.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        child.send_signal(sent)
        child.wait()
        done = subprocess.run([*command, "--train.resume", "auto"], stdout=log, timeout=200, **call)
    said = (tmp_path / "log").read_text()
    assert done.returncode == 0, said[-3000:]
    begun = int(re.search(r"going on from .*/step-(\d+)", said)[1])
    id = (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    first, second = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert first.name.endswith(f"-{id}")
    assert second.name.endswith(f"-{id}")
    steps = {}
    for part in (first, second):
        run = read_run(part / f"run-{id}.wandb")
        assert run.get("id", id) == id
        steps[part] = [line["_step"] for line in run["history"] if "loss/coarse" in line]
    assert steps[second] == list(range(begun + 1, 41))
    if sent == signal.SIGTERM:
        assert steps[first] == list(range(1, begun + 1))


# ---- a sweep ---------------------------------------------------------------------------------------------------------

SWEEP = Path(__file__).parents[2] / "experiments" / "sweeps" / "wandb.yaml"


def test_sweep_starts_trainings_that_the_parser_takes(monkeypatch):
    """The command as wandb's own agent expands it, at both ends of every parameter; the metric is one that we send."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    from mtl_re.cli import build_parser

    sweep = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
    assert sweep["metric"] == {"name": "final/selection", "goal": "maximize"}
    monkeypatch.chdir(SWEEP.parents[2])
    for end in (0, -1):
        values = {}
        for name, axis in sweep["parameters"].items():
            ends = axis.get("values") or ([axis["value"]] if "value" in axis else [axis["min"], axis["max"]])
            values[name] = {"value": ends[end]}
        expanded = create_sweep_command_args({"args": values}) | {"env": ["/usr/bin/env"]}
        words = []
        for word in create_sweep_command(list(sweep["command"])):
            words += expanded[word[2:-1]] if word.startswith("${") else [word]
        assert words[:3] == ["/usr/bin/env", "mtl-re", "train"]
        parsed = build_parser().parse_args(words[2:])
        assert parsed.train.tracking.trackers == ["wandb"]
        assert parsed.train.optim.lr == values["optim.lr"]["value"]
