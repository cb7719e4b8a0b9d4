"""A run from options to run directory: what it writes, what it keeps, when it stops, and the algebra of a step."""

import gc
import json
import re
import shutil
import time
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import DynamoBackend
from conftest import sample_examples
from distributed_worker import (
    assert_same_run,
    assert_same_tensors,
    last_checkpoint,
    lines,
    make_config,
    rows_file,
    shrink,
    weights,
)
from safetensors.torch import save_file

from mtl_re.data import sample
from mtl_re.data.splits import Splits, digests_of, inputs_of
from mtl_re.errors import MtlReError
from mtl_re.model.network import MtlReModel, load
from mtl_re.scoring import evaluation, gating
from mtl_re.taxonomy import IGNORE, Taxonomy
from mtl_re.training import loop, losses, step_log
from mtl_re.training import resume as resume_module
from mtl_re.training import setup as prepare_module
from mtl_re.training import state as state_module
from mtl_re.training import train as train_module
from mtl_re.training.processes import make_accelerator, overruled_accumulation, overruled_precision
from mtl_re.training.row_warnings import warnings_of
from mtl_re.training.run_dir import claim_run_dir
from mtl_re.training.train import train
from mtl_re.training.weighting import WEIGHTINGS, Uncertainty


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("rows") / "train.json")


@pytest.fixture(scope="module")
def plain_run(rows, tmp_path_factory):
    """A run under `BASE`, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path_factory.mktemp("run") / "a")}))


@pytest.fixture
def go(rows, tmp_path):
    """Train in a directory of its own: go(name="run", **{dotted: value}) → run directory."""

    def start(name="run", **options):
        return train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / name)} | options))

    return start


@pytest.fixture
def no_dropout(monkeypatch):
    shrink(monkeypatch, dropout=False)
    return {"model.dropout": 0.0}


# ---- the run directory ---------------------------------------------------------------------------------------------


def test_run_directory_holds_what_the_contract_names(plain_run):
    found = {path.name for path in plain_run.iterdir() if not path.name.startswith(".")}
    assert found == {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "valid_metrics.json",
    }
    assert not list(plain_run.glob("**/.partial*")) + list(plain_run.glob("**/.old*"))
    assert {path.name for path in (plain_run / "checkpoints").iterdir()} == {"step-000004", "step-000008"}
    model = {path.name for path in (plain_run / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= model
    assert "model.safetensors.sha256" in model
    assert not [path for path in plain_run.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]


@pytest.mark.slow
def test_report_is_written_last(rows, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real encoder and the real report
    run_dir = train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / "run")}))
    kinds = {path.suffix for path in (run_dir / "report").iterdir()}
    assert {".md", ".png"} <= kinds


def test_config_is_resolved(plain_run, rows):
    written = yaml.safe_load((plain_run / "config.yaml").read_text(encoding="utf-8"))
    expected = make_config({"data.train": str(rows), "train.run_dir": str(plain_run)}).to_dict()
    expected["loss"]["weights"] = {"coarse": 1.0, "org": 1.0, "per": 1.0}
    assert written == expected


def test_manifest(plain_run, rows):
    manifest = json.loads((plain_run / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest) == {"command", "git", "versions", "hardware", "data", "seed"}
    assert manifest["seed"] == 42
    assert manifest["hardware"]["processes"] == 1
    assert manifest["hardware"]["precision"] == "no"
    assert {"python", "torch", "transformers", "accelerate", "mtl-re"} <= set(manifest["versions"])
    data = manifest["data"]
    assert data["train"]["source"] == str(rows)
    assert re.fullmatch("[0-9a-f]{64}", data["train"]["sha256"])
    assert data["train"]["rows"] + data["valid"]["rows"] == 40
    assert sum(data["train"]["labels"].values()) == data["train"]["rows"] == 32
    assert data["rejected"] == data["dropped_overlap"] == 0


def test_metrics_lines(plain_run):
    trained, scored = lines(plain_run, "train"), lines(plain_run, "valid")
    assert [line["step"] for line in trained] == list(range(1, 9))
    assert [line["step"] for line in scored] == [4, 8]
    for line in trained:
        assert set(line["loss"]) == set(line["weights"]) == set(line["labelled_rows"]) == {"coarse", "org", "per"}
        assert line["labelled_rows"]["coarse"] == 8
        assert line["lr"] > 0
        assert line["grad_norm"] > 0
        assert line["epoch"] == pytest.approx(line["step"] / 4)
    assert {"micro_f1", "auprc", "gate", "coarse", "selection", "best"} <= set(scored[0])
    text = (plain_run / "metrics.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in text
    first = json.loads(text.splitlines()[0])
    assert first["rows_per_s"] > 0
    assert first["tokens_per_s"] > 0


def test_valid_metrics_are_those_of_the_kept_model(plain_run):
    metrics = json.loads((plain_run / "valid_metrics.json").read_text(encoding="utf-8"))
    scored = lines(plain_run, "valid")
    best = max(scored, key=lambda line: (line["selection"], -line["step"]))
    assert metrics["step"] == best["step"]
    assert metrics["micro_f1"] == pytest.approx(best["micro_f1"])
    assert metrics["auprc"] == pytest.approx(best["auprc"])
    assert metrics["ci"]["micro_f1"] is not None


def test_rates_count_the_time_of_all_their_rows(go, monkeypatch):
    """A window that spans an epoch's end and an evaluation: its rows over its own time, no more."""
    real = train_module.step

    def slow(*arguments):
        time.sleep(0.04)
        real(*arguments)

    monkeypatch.setattr(train_module, "step", slow)
    run_dir = go(**{"tracking.log_every": 1000})
    (line,) = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines() if '"train"' in x]
    assert line["rows_per_s"] <= 64 / (8 * 0.04)  # 8 steps of 8 rows


def test_rates_after_a_resume_leave_out_what_was_counted_before():
    """On the progress bar too, which once showed all tokens over the time of the last few."""
    shown, written = {}, []
    window = state_module.StepSums(losses={"coarse": 4.0}, counts={"coarse": 2}, rows=30, tokens=3000, norm=1.0)
    run = SimpleNamespace(
        train_table=range(100),
        weights={"coarse": 1.0},
        optimizer=SimpleNamespace(param_groups=[]),
        trackers=SimpleNamespace(log=lambda *arguments: None),
    )
    clock = loop.Clock(rows=20, tokens=2000)
    clock.began -= 10
    log, bar = SimpleNamespace(write=written.append), SimpleNamespace(set_postfix=shown.update)
    step_log.write_window(run, state_module.State(step_rows=8, window=window), log, clock, bar)
    assert written[0]["rows_per_s"] == pytest.approx(1, rel=0.1)
    assert written[0]["tokens_per_s"] == pytest.approx(100, rel=0.1)
    assert float(shown["tok/s"]) == pytest.approx(100, rel=0.1)
    clock.began -= 1
    assert clock.rates(7, 50) == pytest.approx((7, 50), rel=0.1)  # the next window counts whole


def test_head_rate_is_logged_as_the_heads(go):
    run_dir = go(**{"optim.lr": 1e-3, "optim.head_lr": 1e-5, "optim.schedule": "constant", "optim.warmup": 0.0})
    line = lines(run_dir, "train")[-1]
    assert (line["lr"], line["head_lr"]) == (1e-3, 1e-5)


def test_default_run_directories_do_not_collide(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20250101-000000")
    options = {"data.train": str(rows), "train.max_steps": 1, "data.valid_fraction": 0.0}
    made = [train(make_config(options), "mine") for _ in range(2)]
    assert [path.name for path in made] == ["mine-20250101-000000", "mine-20250101-000000-2"]
    assert made[0].parent.name == "runs"


# ---- learning ------------------------------------------------------------------------------------------------------


def test_loss_falls_and_every_head_learns(go):
    options = {"data.valid_fraction": 0.0, "tracking.log_every": 5, "train.save_every": 10_000}
    run_dir = go(**options, **{"train.epochs": 30, "optim.lr": 5e-3})
    logged = lines(run_dir, "train")
    for head in ("coarse", "org", "per"):
        assert logged[-1]["loss"][head] < 0.7 * logged[0]["loss"][head], head


def test_same_seed_trains_the_same_model(plain_run, go):
    assert_same_run(plain_run, go())


def test_another_seed_trains_another_model(plain_run, go):
    other = weights(go(**{"train.seed": 43}))
    assert any(t.shape != other[n].shape or not torch.equal(t, other[n]) for n, t in weights(plain_run).items())


def test_workers_change_nothing(plain_run, go):
    run_dir = go(**{"train.workers": 2})
    assert_same_tensors(weights(plain_run), weights(run_dir))
    assert lines(plain_run) == lines(run_dir)


def test_every_trained_parameter_moves(go, monkeypatch):
    seen = {}
    real = train_module.TrainingLoop.fit

    def remember(loop):
        seen["before"] = {n: p.detach().clone() for n, p in loop.run.plain_model.named_parameters()}
        return real(loop)

    monkeypatch.setattr(train_module.TrainingLoop, "fit", remember)
    after = weights(go(**{"data.valid_fraction": 0.0, "optim.weight_decay": 0.0}))
    stuck = [name for name, before in seen["before"].items() if torch.equal(before, after[name])]
    assert not stuck


def test_scale_of_the_weights_is_immaterial(plain_run, go):
    tens = go("tens", **{"loss.weights": {"coarse": 10, "org": 10, "per": 10}})
    assert_same_tensors(weights(plain_run), weights(tens))
    assert lines(plain_run) == lines(tens)
    assert yaml.safe_load((tens / "config.yaml").read_text())["loss"]["weights"] == {"coarse": 1, "org": 1, "per": 1}


def test_weights_change_what_is_trained(plain_run, go):
    tilted = go(**{"loss.weights": {"coarse": 5.0}})
    assert not torch.equal(weights(plain_run)["heads.org.weight"], weights(tilted)["heads.org.weight"])
    raw = [line["loss"] for line in (lines(plain_run, "train")[0], lines(tilted, "train")[0])]
    assert raw[0] == raw[1]  # logged losses are raw: those of the first step know nothing of the weights
    assert lines(tilted, "train")[0]["weights"]["coarse"] == pytest.approx(15 / 7)


def test_head_of_weight_zero_keeps_its_first_values(go, monkeypatch):
    seen = {}
    real = train_module.TrainingLoop.fit

    def remember(loop):
        seen.update({n: p.detach().clone() for n, p in loop.run.plain_model.heads["org"].named_parameters()})
        return real(loop)

    monkeypatch.setattr(train_module.TrainingLoop, "fit", remember)
    after = weights(go(**{"loss.weights": {"org": 0.0}, "optim.weight_decay": 0.5}))
    assert torch.equal(after["heads.org.weight"], seen["weight"])
    assert torch.equal(after["heads.org.bias"], seen["bias"])


@pytest.mark.parametrize("reduction", ["joint", pytest.param("per_head", marks=pytest.mark.slow)])
def test_rows_that_teach_no_head_are_not_read_and_not_missed(go, no_dropout, monkeypatch, reduction):
    same = no_dropout | {"loss.reduction": reduction, "loss.weights": {"coarse": 0.0, "org": 1.0, "per": 0.0}}
    read, real = [], train_module.own_parts

    def watch(run, rows):
        parts = real(run, rows)
        read.extend(run.train_table.targets[row, 1] != IGNORE for part in parts for row in part)
        return parts

    monkeypatch.setattr(train_module, "own_parts", watch)
    skipped = go("skipped", **same)
    assert len(read) > 5
    assert all(read), "only rows with an org label"
    monkeypatch.setattr(train_module, "own_parts", lambda run, rows: [rows])
    everything = go("everything", **same)
    assert_same_tensors(weights(skipped), weights(everything), 1e-6)
    assert all(set(line["loss"]) == {"org"} for line in lines(skipped, "train"))
    for a, b in zip(lines(skipped, "train"), lines(everything, "train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


@pytest.mark.parametrize("reduction", ["joint", pytest.param("per_head", marks=pytest.mark.slow)])
def test_accumulation_does_not_change_a_step(go, no_dropout, reduction):
    same = no_dropout | {"loss.reduction": reduction, "data.valid_fraction": 0.0, "train.epochs": 1}
    whole = go("whole", **same, **{"train.batch_size": 16, "train.accumulate": 1})  # 40 rows: 16, 16, 8
    split = go("split", **same, **{"train.batch_size": 8, "train.accumulate": 2})
    uneven = go("uneven", **same, **{"train.batch_size": 4, "train.accumulate": 4})
    for other in (split, uneven):
        assert_same_tensors(weights(whole), weights(other), 1e-6)
        for a, b in zip(lines(whole, "train"), lines(other, "train"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["labelled_rows"] == b["labelled_rows"]
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_step_of_one_row(go, no_dropout):
    """33 rows in steps of 32: the last step is one row."""
    same = no_dropout | {"data.valid_fraction": 0.0, "data.limit": 33, "train.epochs": 1}
    whole = go("whole", **same, **{"train.batch_size": 32})
    split = go("split", **same, **{"train.batch_size": 8, "train.accumulate": 4})
    assert [line["labelled_rows"]["coarse"] for line in lines(split, "train")] in ([32, 1], [1, 32])
    assert_same_tensors(weights(whole), weights(split), 1e-6)


def test_gradient_of_a_step_is_that_of_the_mean_loss(go, no_dropout, monkeypatch):
    """Law 7.2 and 7.3 from outside: with unit weights it is the gradient of the NLL over the 30 labels."""
    checked = []
    real = train_module._clip

    def compare(run):
        rows = checked.pop()
        model, table = run.plain_model, run.train_table
        trained = {n: p.grad.clone() for n, p in model.named_parameters()}
        batch = dict(run.collate(rows))
        targets = batch.pop("targets")
        model.zero_grad()
        nll = 0.0
        for column, scores in enumerate(model(**batch).values()):
            known = targets[:, column] != IGNORE
            if known.any():
                picked = scores.log_softmax(-1)[known].gather(1, targets[known, column][:, None])
                nll = nll - picked.sum() / len(rows)
        nll.backward()
        for name, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(trained[name], expected, atol=1e-6), name
            parameter.grad = trained[name]
        assert len(table) == 32
        compare.calls += 1
        return real(run)

    compare.calls = 0
    real_step = train_module.step

    def note(run, state, rows, batches, total):
        checked.append(rows)
        real_step(run, state, rows, batches, total)

    monkeypatch.setattr(train_module, "step", note)
    monkeypatch.setattr(train_module, "_clip", compare)
    go(**no_dropout, **{"train.epochs": 1, "train.batch_size": 4, "train.accumulate": 2})
    assert compare.calls == 4


# ---- techniques behind one option ----------------------------------------------------------------------------------

TECHNIQUES = {
    "rdrop": {"loss.rdrop": 1.0},
    "dropout samples": {"model.dropout_samples": 3},
    "average": {"train.ema": 0.9},
}
each_technique = pytest.mark.parametrize(
    "options",
    [pytest.param(TECHNIQUES[name], marks=() if name == "rdrop" else pytest.mark.slow) for name in TECHNIQUES],
    ids=TECHNIQUES,
)


@each_technique
def test_a_technique_changes_the_training_and_leaves_the_model_as_it_is(plain_run, go, options):
    run_dir = go(**options)
    ours, plain = weights(run_dir), weights(plain_run)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in plain.items()}
    assert any(not torch.equal(ours[name], plain[name]) for name in plain)
    assert_same_run(run_dir, go("again", **options))


@each_technique
def test_a_technique_does_not_know_how_a_step_was_split(go, no_dropout, options):
    same = no_dropout | options | {"data.valid_fraction": 0.0, "train.epochs": 1}
    whole = go("whole", **same, **{"train.batch_size": 16, "train.accumulate": 1})
    split = go("split", **same, **{"train.batch_size": 4, "train.accumulate": 4})
    assert_same_tensors(weights(whole), weights(split), 2e-6)


LEVITATED = {"data.markers": "levitated", "model.pooling": "cls_markers_both"}


def test_with_levitated_markers_too_a_step_may_be_split_in_any_way(go, no_dropout):
    same = no_dropout | LEVITATED | {"data.valid_fraction": 0.0, "train.epochs": 1}
    whole = go("whole", **same, **{"train.batch_size": 16, "train.accumulate": 1})
    split = go("split", **same, **{"train.batch_size": 4, "train.accumulate": 4})
    assert_same_tensors(weights(whole), weights(split), 2e-6)
    twice = go("twice", **same, **{"train.batch_size": 16, "loss.rdrop": 1.0})
    assert_same_tensors(weights(whole), weights(twice), 2e-6)


def test_rdrop_reads_every_pair_in_two_sequences(go, monkeypatch):
    seen, real = [], MtlReModel.forward

    def note(self, *given, **named):
        if self.training:
            seen.append((named["positions"], len(named["pairs"])))
        return real(self, *given, **named)

    monkeypatch.setattr(MtlReModel, "forward", note)
    go(**LEVITATED, **{"train.max_steps": 1, "loss.rdrop": 1.0})
    for positions, sequences in seen:
        first, second = positions.chunk(2)
        assert torch.equal(second[:, 0], first[:, 0] + sequences // 2)
        assert torch.equal(second[:, 1:], first[:, 1:])


@pytest.mark.parametrize("name", ["rdrop", pytest.param("dropout samples", marks=pytest.mark.slow)])
def test_what_lives_on_dropout_does_nothing_without_it(go, no_dropout, name):
    assert_same_tensors(weights(go("plain", **no_dropout)), weights(go("with", **no_dropout, **TECHNIQUES[name])), 1e-6)


def test_the_average_of_the_weights_is_kept_and_the_weights_go_on(go, no_dropout, monkeypatch):
    same = no_dropout | {"data.valid_fraction": 0.0, "train.epochs": 1, "train.batch_size": 8}
    seen, real = [], train_module.step

    def note(run, *arguments):
        if not seen:
            seen.append({name: tensor.clone() for name, tensor in run.plain_model.state_dict().items()})
        real(run, *arguments)
        seen.append({name: tensor.clone() for name, tensor in run.plain_model.state_dict().items()})

    monkeypatch.setattr(train_module, "step", note)
    plain = go("plain", **same)
    steps, seen[:] = list(seen), []
    averaged = go("averaged", **same, **{"train.ema": 0.2, "eval.every": 2})
    expected = steps[0]
    for update, now in enumerate(steps[1:]):
        decay = min(0.2, (1 + update) / (10 + update))
        expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in now.items()}
    assert len(steps) == 6
    assert_same_tensors(weights(averaged), expected, 1e-6)
    assert_same_tensors(weights(plain), steps[-1], 0)
    assert_same_tensors(seen[-1], steps[-1], 0)  # evaluating the average on the way left the weights alone


def test_rdrop_is_trained_and_not_logged(go):
    """Logged losses are raw, so that curves of arms can be compared."""
    run_dirs = [go(name, **{"loss.rdrop": alpha}) for name, alpha in (("weak", 1e-6), ("strong", 100.0))]
    first, second = (lines(run_dir, "train") for run_dir in run_dirs)
    assert first[0]["loss"] == second[0]["loss"]  # same weights, same dropout
    assert first[0]["grad_norm"] != second[0]["grad_norm"]
    assert first[-1]["loss"] != second[-1]["loss"]


def test_a_fold_is_the_validation_rows(go, rows):
    for k in (1, 4):
        run_dir = go(f"fold{k}", **{"data.fold": f"{k}/4", "train.max_steps": 1})
        data = json.loads((run_dir / "manifest.json").read_text())["data"]
        assert data["train"]["rows"] + data["valid"]["rows"] == 40
        assert 5 <= data["valid"]["rows"] <= 15


@pytest.mark.parametrize("heads", ["hierarchical", "flat"])
def test_the_training_prior_is_what_class_weights_make_of_it(go, heads):
    """A balanced loss teaches posteriors of balanced classes: dividing by the rows' own shares would shift them so."""
    run_dir = go(**{"model.heads": heads, "loss.class_weights": "balanced"})
    prior = json.loads((run_dir / "model" / "config.json").read_text())["training_prior"]
    taxonomy = Taxonomy.from_option(heads)
    logged = json.loads((run_dir / "manifest.json").read_text())["data"]["train"]["labels"]
    groups = list(taxonomy.groups)
    classes = [taxonomy.coarse_of(label) for label in logged] if heads == "flat" else groups
    assert prior == pytest.approx([classes.count(group) / len(classes) for group in groups])


def test_validation_rows_that_cannot_be_reweighted_are_told_before_training(go, tmp_path):
    made = [row for row in sample.rows("valid", 60, 0) if row["label"].startswith("per:")]
    (tmp_path / "valid.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    options = {"data.valid": str(tmp_path / "valid.json"), "eval.target_prior": [0.6, 0.17, 0.23]}
    with pytest.raises(MtlReError, match=r"eval\.target_prior: target prior: no row of coarse class 'no_relation'"):
        go(**options)


def test_the_first_token_says_nothing_of_a_levitated_pair(go):
    with pytest.raises(MtlReError, match=r"model\.pooling: cls with levitated markers"):
        go(**{"data.markers": "levitated", "model.pooling": "cls"})


@pytest.mark.parametrize("heads", ["hierarchical", "flat"])
def test_the_training_prior_is_the_coarse_shares_of_the_rows(go, rows, heads):
    labels = [row["label"] for row in json.loads(rows.read_text(encoding="utf-8"))]
    coarse = ["no_relation" if label == "no_relation" else label.split(":")[0] for label in labels]
    run_dir = go(**{"model.heads": heads, "data.valid_fraction": 0.0, "train.max_steps": 1})
    prior = json.loads((run_dir / "model" / "config.json").read_text())["training_prior"]
    assert prior == pytest.approx([coarse.count(group) / len(coarse) for group in ("no_relation", "org", "per")])


def test_a_checkpoint_older_than_an_option_is_resumed_where_the_option_has_its_default(go, plain_run, monkeypatch):
    from mtl_re.training import setup as prepare

    real = prepare.identity

    def older(*arguments):
        return {name: value for name, value in real(*arguments).items() if name != "options loss.rdrop"}

    monkeypatch.setattr(prepare, "identity", older)
    go(**{"train.epochs": 1})
    monkeypatch.setattr(prepare, "identity", real)
    assert go(**{"train.epochs": 1, "train.resume": "auto"}).is_dir()
    with pytest.raises(MtlReError, match=r"options loss.rdrop \(0.0 then, 1.0 now\)"):
        go(**{"train.epochs": 1, "train.resume": "auto", "loss.rdrop": 1.0})


def test_a_dynamo_of_accelerate_s_own_config_is_overruled(monkeypatch):
    """It would wrap the model and put `_orig_mod.` before the name of every weight."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert make_accelerator("no", []).state.dynamo_plugin.backend == DynamoBackend.NO


def test_the_precision_is_that_of_the_device_that_computes(monkeypatch):
    """Two processes on the CPU of a machine with an old GPU: fp16 would have no scaler there."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (7, 0))
    accelerator = make_accelerator("auto", [])
    assert accelerator.device.type == "cpu"
    assert accelerator.mixed_precision in ("no", "bf16")


def test_a_resume_in_another_precision_says_so(go, monkeypatch, capsys):
    real = resume_module.checkpoint.save
    monkeypatch.setattr(
        resume_module.checkpoint,
        "save",
        lambda folder, step, tensors, state, keep: real(
            folder, step, tensors, {**state, "arithmetic": ["cuda", "bf16"]}, keep
        ),
    )
    go(**{"train.epochs": 1})
    go(**{"train.epochs": 2, "train.resume": "auto"})
    assert "this run was on cuda in precision bf16, and is on cpu in no now: going on, but" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_named_before_the_work(go, monkeypatch):
    monkeypatch.setattr("mtl_re.training.processes.find_spec", lambda name: None)
    with pytest.raises(MtlReError, match=r"tracking.trackers: tensorboard is not installed"):
        go(**{"tracking.trackers": ["tensorboard"]})


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"loss.kind": "focal"},
        {"loss.label_smoothing": 0.1},
        {"loss.kind": "focal", "loss.label_smoothing": 0.1, "loss.focal_gamma": 0.5},
        {"loss.reduction": "per_head"},
        {"optim.head_lr": 1e-2},
        {"optim.layer_decay": 0.5},
        {"optim.schedule": "cosine"},
        {"optim.max_grad_norm": 0.0},
        {"model.pooling": "cls"},
        {"data.markers": "special"},
        {"data.query": True},
        {"eval.gate": "soft"},
    ],
    ids=lambda options: " ".join(options),
)
def test_option_changes_the_run(plain_run, go, options):
    run_dir = go(**options)
    assert len(lines(run_dir, "train")) == 8
    if options == {"eval.gate": "soft"}:
        assert load(str(run_dir))[0].config.gate == "soft"
    elif options != {"optim.max_grad_norm": 0.0}:
        before, after = weights(plain_run), weights(run_dir)
        assert set(before) == set(after)
        assert any(t.shape != after[n].shape or not torch.equal(t, after[n]) for n, t in before.items())


def test_gradient_checkpointing_computes_the_same(plain_run, go, monkeypatch):
    real, asked = prepare_module.make_optimizer, []

    def watched(model, options):
        asked.append(model.encoder.is_gradient_checkpointing)
        return real(model, options)

    monkeypatch.setattr(prepare_module, "make_optimizer", watched)
    assert_same_tensors(weights(plain_run), weights(go(**{"train.gradient_checkpointing": True})), 1e-6)
    assert asked == [True]


@pytest.mark.parametrize("options", [{"loss.class_weights": "balanced"}, {"optim.beta2": 0.9}], ids=" ".join)
def test_an_option_that_changes_the_weights(plain_run, go, options):
    before, after = weights(plain_run), weights(go(**options))
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_gradients_are_clipped(go, monkeypatch):
    """To a norm far below what is logged, that of the gradient before."""
    clipped, real = [], train_module._clip

    def watched(run):
        norm = real(run)
        grads = [parameter.grad for parameter in run.plain_model.parameters() if parameter.grad is not None]
        clipped.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        return norm

    monkeypatch.setattr(train_module, "_clip", watched)
    run_dir = go(**{"optim.max_grad_norm": 0.01, "train.max_steps": 3})
    assert clipped == pytest.approx([0.01] * 3, rel=1e-3)
    assert min(line["grad_norm"] for line in lines(run_dir, "train")) > 0.1


def test_the_best_model_is_chosen_by_the_gate_asked_for(go):
    run_dir = go(**{"eval.gate": "soft", "train.max_steps": 2})
    assert json.loads((run_dir / "valid_metrics.json").read_text())["gate_mode"] == "soft"
    assert {line["gate_mode"] for line in lines(run_dir, "valid")} == {"soft"}


def test_moving_weights_reach_the_loss(plain_run, go):
    """Those of a step are the weighting's own, and the model that they train is another one."""
    run_dir = go(**{"loss.weighting": "rlw"})
    heads = ("coarse", "org", "per")
    weighting = WEIGHTINGS["rlw"](heads, 42)
    for line in lines(run_dir, "train"):
        wanted = losses.normalise(weighting.factors(line["step"] - 1), heads)
        assert line["weights"] == pytest.approx(wanted)
    before, after = weights(plain_run), weights(run_dir)
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_weighting_sees_mean_losses_and_survives_a_resume(go, monkeypatch):
    seen, real = [], Uncertainty.update
    monkeypatch.setattr(Uncertainty, "update", lambda self, now, after: (seen.append(now), real(self, now, after)))
    options = {"loss.weighting": "uncertainty", "train.save_every": 1}
    whole = go("whole", **options)
    for line, means in zip(lines(whole, "train"), seen, strict=True):
        assert means == pytest.approx({name: value for name, value in line["loss"].items() if name in means}, rel=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "agreed_to_stop", lambda run, state, stopped: state.step == 5)
        go("cut", **options)
    gc.collect()
    assert_same_run(go("cut", **options, **{"train.resume": "auto"}), whole)


def test_schedule_rises_and_falls_to_the_end(go):
    rates = [line["lr"] for line in lines(go(**{"optim.warmup": 0.25, "train.max_steps": 8}), "train")]
    assert rates == pytest.approx([1e-3 * f for f in (1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])


@pytest.mark.parametrize(("steps", "evaluated"), [(3, [3]), (6, [4, 6])])
def test_max_steps_ends_run_and_schedule(go, steps, evaluated):
    run_dir = go(**{"train.max_steps": steps})
    assert [line["step"] for line in lines(run_dir, "train")] == list(range(1, steps + 1))
    assert [line["step"] for line in lines(run_dir, "valid")] == evaluated
    assert last_checkpoint(run_dir).path.name == f"step-{steps:06d}"


def test_max_steps_may_exceed_the_epochs(go):
    assert lines(go(**{"train.max_steps": 10, "train.epochs": 1}), "train")[-1]["step"] == 10


def test_evaluation_and_saving_by_steps(go):
    run_dir = go(**{"eval.every": 3, "train.save_every": 3, "train.keep": 5})
    assert [line["step"] for line in lines(run_dir, "valid")] == [3, 6, 8]
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["step-000003", "step-000006", "step-000008"]


def test_without_validation_the_last_model_is_kept(go):
    run_dir = go(**{"data.valid_fraction": 0.0})
    assert not lines(run_dir, "valid")
    assert not (run_dir / "valid_metrics.json").exists()
    assert_same_tensors(weights(run_dir), last_checkpoint(run_dir).tensors["model"])


def test_an_untrained_head_chooses_no_model(go, monkeypatch, capsys):
    """Its part in the validation labels is random: the last model is kept, and patience has nothing to go by."""
    left = [3.0, 2.0, 1.0]
    monkeypatch.setattr(evaluation, "selection_score", lambda *arguments: left.pop(0))
    options = {"loss.weights": {"coarse": 0.0}}
    run_dir = go(**options, **{"eval.every": 3})
    assert not left
    assert_same_tensors(weights(run_dir), last_checkpoint(run_dir).tensors["model"])
    assert "coarse has weight 0, so validation scores choose no model" in capsys.readouterr().err
    with pytest.raises(MtlReError, match=r"early_stop: loss\.weights\.coarse is 0"):
        go(name="other", **options, **{"train.early_stop": 1})


def test_flat_heads(go):
    run_dir = go(**{"model.heads": "flat"})
    model, _ = load(str(run_dir))
    assert [head.name for head in model.taxonomy.heads] == ["label"]
    assert set(lines(run_dir, "train")[0]["loss"]) == {"label"}
    assert json.loads((run_dir / "valid_metrics.json").read_text())["disagreement"] == 0


def test_other_heads_are_trained_and_a_run_starts_from_them(go, tmp_path):
    options = {"model.head_layers": 1, "model.gate_evidence": "fine"}
    run_dir = go(**options)
    model, _ = load(str(run_dir))
    assert (model.config.head_layers, model.config.gate_evidence) == (1, "fine")
    with pytest.raises(MtlReError, match=r"model.init: .* has other head_layers"):
        go(**{"model.init": str(run_dir), "train.run_dir": str(tmp_path / "other")})
    same_layers = {"model.head_layers": 1, "model.init": str(run_dir), "train.run_dir": str(tmp_path / "other")}
    with pytest.raises(MtlReError, match=r"model.init: .* has other gate_evidence and markers; give its options here"):
        go(**same_layers, **{"data.markers": "typed_special"})
    again = {"model.init": str(run_dir), "train.run_dir": str(tmp_path / "again"), "optim.lr": 0.0}
    assert_same_tensors(weights(go(**options, **again)), weights(run_dir))


def test_a_run_notes_which_files_it_began_from(go, plain_run, tmp_path):
    heads = tmp_path / "heads.yaml"
    groups: dict[str, list[str]] = {"no_relation": ["no_relation"]}
    for row in sample.rows("train", 200, 0):
        if row["label"] != "no_relation" and row["label"] not in groups.setdefault(row["label"][:3], []):
            groups[row["label"][:3]].append(row["label"])
    heads.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    run_dir = go(**{"model.encoder": str(plain_run), "model.heads": str(heads)})
    noted = inputs_of(run_dir)
    assert set(noted) == {str(plain_run), str(heads), *digests_of(run_dir)}
    assert len(set(noted.values())) == 3
    copy = tmp_path / "copy"
    shutil.copytree(plain_run, copy)
    save_file({"x": torch.zeros(1)}, copy / "model" / "model.safetensors")
    assert prepare_module._inputs(make_config({"model.encoder": str(copy)}))[str(copy)] != noted[str(plain_run)]


def test_a_run_from_another_s_heads_reads_the_entity_types_that_they_learnt(go, plain_run, tmp_path):
    known = load(str(plain_run))[0].config.entity_types
    made = sample.rows("train", 200, 0)
    few = [row for row in made if {row[f"{role}_entity"]["type"] for role in ("subject", "object")} <= {"PER", "ORG"}]
    path = tmp_path / "few.json"
    path.write_text(json.dumps(few, ensure_ascii=False), encoding="utf-8")
    run_dir = go(**{"model.init": str(plain_run), "data.train": str(path)})
    assert load(str(run_dir))[0].config.entity_types == known
    assert len(known) > 2


def test_taxonomy_from_yaml(go, tmp_path):
    labels = sorted({row["label"] for row in sample.rows("train", 40)} - {"no_relation"})
    groups = {"none": ["no_relation"], "one": labels[0::3], "two": labels[1::3], "three": labels[2::3]}
    path = tmp_path / "heads.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}, sort_keys=False), encoding="utf-8")
    run_dir = go(**{"model.heads": str(path)})
    path.unlink()  # the checkpoint needs the file no more
    model, _ = load(str(run_dir))
    assert [head.name for head in model.taxonomy.heads] == ["coarse", "one", "two", "three"]
    confusion = json.loads((run_dir / "valid_metrics.json").read_text())["coarse"]["confusion"]
    assert list(confusion) == list(groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss.kind": "hinge"}, "loss.kind.*cross_entropy, focal"),
        ({"loss.weighting": "wild"}, "loss.weighting"),
        ({"loss.weights": {"label": 2.0}}, "loss.weights.*'label'.*coarse, org, per"),
        ({"loss.weights": {"coarse": 0.0, "org": 0.0, "per": 0.0}}, "all weights are 0"),
        ({"model.pooling": "max"}, "model.pooling.*cls"),
        ({"model.heads": "nowhere.yaml"}, "nowhere.yaml"),
        ({"model.gate_evidence": "fine", "model.heads": "flat"}, "model.gate_evidence: fine needs fine heads"),
        ({"model.gate_evidence": "fine", "loss.weights": {"org": 0}}, "gate_evidence: .*loss.weights.org: 0"),
        ({"model.encoder": "scratch:huge"}, "scratch:tiny"),
        ({"model.encoder": "/nowhere/encoder"}, "model.encoder"),
        ({"data.markers": "stars"}, "markers"),
        ({"data.train": ""}, "data.train is not set"),
        ({"data.train": "/nowhere.json"}, "no such file"),
        ({"data.valid": "/nowhere.json"}, "no such file"),
        ({"train.precision": "fp16"}, "fp16 needs a CUDA device"),
        ({"eval.target_prior": [0.5, 0.5]}, "3 coarse classes"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_faulty_option_is_named(go, tmp_path, options, message):
    with pytest.raises(MtlReError, match=message):
        go(**options)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not lines(tmp_path / "run")


# ---- choosing the model --------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch):
    """Make evaluations return these selection scores in turn."""

    def script(*scores):
        left = list(scores)
        monkeypatch.setattr(evaluation, "selection_score", lambda *arguments: left.pop(0))

    return script


def test_best_model_is_kept_not_the_last(go, scripted, monkeypatch):
    scripted(10.0, 30.0, 20.0)
    kept = {}
    real = train_module.evaluate_now

    def remember(run, state, log):
        real(run, state, log)
        kept[state.step] = {n: t.clone() for n, t in run.plain_model.state_dict().items()}

    monkeypatch.setattr(train_module, "evaluate_now", remember)
    run_dir = go(**{"train.epochs": 3})
    assert_same_tensors(weights(run_dir), kept[8])
    assert [line["best"] for line in lines(run_dir, "valid")] == [True, True, False]
    assert json.loads((run_dir / "valid_metrics.json").read_text())["step"] == 8
    assert_same_tensors(last_checkpoint(run_dir).tensors["model"], kept[12])  # resuming goes on from the last


def test_first_of_equals_is_kept(go, scripted):
    scripted(10.0, 10.0)
    assert json.loads((go() / "valid_metrics.json").read_text())["step"] == 4


def test_early_stop(go, scripted, capsys):
    scripted(10.0, 20.0, 5.0, 20.0, 99.0)
    run_dir = go(**{"train.epochs": 9, "train.early_stop": 2})
    assert [line["step"] for line in lines(run_dir, "valid")] == [4, 8, 12, 16]
    assert "stopped early" in capsys.readouterr().err
    assert json.loads((run_dir / "valid_metrics.json").read_text())["step"] == 8


def test_early_stop_inside_an_epoch(go, scripted):
    scripted(10.0, 5.0, 5.0, 99.0)
    run_dir = go(**{"train.epochs": 9, "train.early_stop": 2, "eval.every": 2})
    assert lines(run_dir)[-1]["step"] == 6
    assert last_checkpoint(run_dir).path.name == "step-000006"


def test_target_prior_weighs_the_selection_only(plain_run, go):
    weighted = go("weighted", **{"eval.target_prior": [0.6, 0.17, 0.23]})
    assert_same_tensors(last_checkpoint(plain_run).tensors["model"], last_checkpoint(weighted).tensors["model"])
    for a, b in zip(lines(plain_run, "valid"), lines(weighted, "valid"), strict=True):
        assert a["micro_f1"] == b["micro_f1"]
        assert a["selection"] == pytest.approx(a["micro_f1"])


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "auprc", "accuracy"])
def test_selection_uses_the_named_metric(go, metric):
    for line in lines(go(**{"eval.metric": metric, "train.epochs": 1}), "valid"):
        assert line["selection"] == pytest.approx(line[metric])


# ---- rows ----------------------------------------------------------------------------------------------------------


def broken(tmp_path, size=40):
    made = sample.rows("train", size)
    made[3]["subject_entity"]["end_idx"] += 500
    made[7]["label"] = "per:friend"
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return path


def test_bad_row_stops_the_run(go, tmp_path):
    with pytest.raises(MtlReError, match=r"broken\.json:4: subject_entity\.end_idx.*1 more bad row"):
        go(**{"data.train": str(broken(tmp_path))})


def test_skipped_rows_are_recorded(go, tmp_path, capsys):
    run_dir = go(**{"data.train": str(broken(tmp_path)), "data.on_bad_row": "skip"})
    rejected = [json.loads(line) for line in (run_dir / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(bad["row"], bad["field"]) for bad in rejected] == [(4, "subject_entity.end_idx"), (8, "label")]
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["data"]["rejected"] == 2
    assert manifest["data"]["train"]["rows"] + manifest["data"]["valid"]["rows"] == 38
    assert "2 bad rows" in capsys.readouterr().err


def test_a_run_that_begins_again_does_not_keep_another_s_rejected_rows(go, tmp_path):
    """Killed before its first checkpoint; then its rows were mended. The report would leave the old ones out."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name, text in ((".lock", ""), ("config.yaml", "data: {}\ntracking: {}\n"), ("rejected.jsonl", "{}\n")):
        (run_dir / name).write_text(text)
    assert not (go(**{"train.resume": "auto"}) / "rejected.jsonl").exists()


def test_rows_too_long_for_the_model_are_bad_rows(go, rows):
    with pytest.raises(MtlReError, match=r"train\.json:\d+ \(sample_train_\d+\): .*on_bad_row skip"):
        go(**{"data.max_length": 16})
    run_dir = go("skipped", **{"data.max_length": 18, "data.on_bad_row": "skip"})
    rejected = [json.loads(line) for line in (run_dir / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rejected
    assert {(bad["source"], bad["field"]) for bad in rejected} == {(str(rows), "sentence")}
    numbers = {bad["row"] for bad in rejected}
    assert len(numbers) == len(rejected)
    assert numbers <= set(range(1, 41))


def test_overlap_is_dropped_and_counted(go, tmp_path, capsys):
    train_rows, valid_rows = sample.rows("train", 40), sample.rows("valid", 12)
    path = tmp_path / "valid.json"
    path.write_text(json.dumps(valid_rows + train_rows[:2]), encoding="utf-8")
    run_dir = go(**{"data.valid": str(path), "train.epochs": 1})
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["data"]["dropped_overlap"] == 2
    assert (manifest["data"]["train"]["rows"], manifest["data"]["valid"]["rows"]) == (38, 14)
    assert "2 training rows" in capsys.readouterr().err
    with pytest.raises(MtlReError, match="2 training row"):
        go("strict", **{"data.valid": str(path), "data.on_overlap": "error"})


def test_training_on_the_evaluation_file_is_refused(go, rows):
    with pytest.raises(MtlReError, match="training on the evaluation rows"):
        go(**{"data.valid": str(rows)})


def test_unlabelled_rows_cannot_train(go, tmp_path):
    made = sample.rows("train", 40)
    made[5]["label"] = 100
    path = tmp_path / "unlabelled.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"1 rows have no label.*sample_train_00005"):
        go(**{"data.train": str(path)})


def test_limit_draws_by_seed(go):
    manifest = json.loads((go(**{"data.limit": 20, "train.epochs": 1}) / "manifest.json").read_text())
    assert manifest["data"]["train"]["rows"] + manifest["data"]["valid"]["rows"] == 20


def test_the_sample_trains_by_name(go):
    run_dir = go(**{"data.train": "sample:train", "data.limit": 24, "train.max_steps": 2})
    assert json.loads((run_dir / "manifest.json").read_text())["data"]["train"]["sha256"]


# ---- a loss that is not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_loss_that_is_not_finite_stops_the_run(go, tmp_path, monkeypatch, value):
    real, asked = train_module.step, []

    def spoil(run, state, rows, batches, total):
        if state.step == 5:
            asked.extend(run.rows.train[row].id for row in rows)
            with torch.no_grad():
                run.plain_model.heads["coarse"].bias[0] = value
        real(run, state, rows, batches, total)

    monkeypatch.setattr(train_module, "step", spoil)
    with pytest.raises(MtlReError, match="step 6: the loss or its gradient is not finite") as caught:
        go()
    for name in asked:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    found = last_checkpoint(tmp_path / "run")
    assert found.path.name == "step-000004"
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors["model"].values())


# ---- the gate ----------------------------------------------------------------------------------------------------


def test_gradients_do_not_depend_on_the_gate(go, monkeypatch):
    """Steps, losses and weightings never decode: without it the same weights are learnt. Validation does decode."""
    options = {"data.valid_fraction": 0.0, "loss.weighting": "famo", "train.ema": 0.5}
    plain = weights(go("plain", **options))

    def refuse(*arguments, **named):
        raise AssertionError("decoding was called")

    for name, value in vars(gating).items():
        if callable(value) and value.__module__ == gating.__name__ and not isinstance(value, type):
            monkeypatch.setattr(gating, name, refuse)
    assert_same_tensors(weights(go("without", **options)), plain)
    with pytest.raises(AssertionError, match="decoding was called"):
        go("validated")


# ---- global counts -------------------------------------------------------------------------------------------------


def test_global_counts_are_of_the_whole_step(plain_run, rows, tmp_path):
    options = {"data.train": str(rows), "train.run_dir": str(tmp_path / "counts"), "train.batch_size": 2}
    with ExitStack() as resources:
        run = prepare_module.prepare_training(make_config(options), "x", resources)
    chosen = np.array([0, 3, 5, 7, 11, 12, 20, 31])
    counts, labelled = train_module.global_counts(run, chosen)
    labels = [run.rows.train[row].label for row in chosen]
    prefix = [label.split(":")[0] for label in labels]
    assert labelled == counts["coarse"] == 8
    assert (counts["org"], counts["per"]) == (prefix.count("org"), prefix.count("per"))
    assert losses.normalise({}, list(counts)) == run.weights


def test_runs_of_one_process_may_differ_in_precision(go):
    for number, precision in enumerate(("no", "bf16", "no")):
        run_dir = go(str(number), **{"train.precision": precision, "train.max_steps": 1})
        hardware = json.loads((run_dir / "manifest.json").read_text())["hardware"]
        assert hardware["precision"] == precision


# ---- what is said before the first step ------------------------------------------------------------------------------


def test_rows_that_teach_little_are_named():
    taxonomy = Taxonomy.from_option("hierarchical")
    heads = [head.name for head in taxonomy.heads]
    rows = sample_examples("train", 200)
    said = warnings_of(Splits([row for row in rows if row.label == "no_relation"], []), taxonomy, heads)
    assert "warning: all training rows have the label no_relation" in said
    assert [f"warning: the head {name} has no training row: it stays untrained" for name in ("org", "per")] == said[:2]
    said = warnings_of(Splits([row for row in rows if not row.label.startswith("org:")], []), taxonomy, heads)
    assert "warning: no training row is of the coarse class org" in said
    said = warnings_of(
        Splits([row for row in rows if row.label != "per:spouse"], rows[:5], unknown=0.2), taxonomy, heads
    )
    assert any("label(s) have no training row: " in text and "per:spouse" in text for text in said)
    assert any("of 5 validation rows share their sentence with a training row" in text for text in said)
    assert "warning: 20.0 % of the training tokens are unknown to the encoder ([UNK])" in said
    assert warnings_of(Splits(rows, []), taxonomy, heads) == []


def test_accelerates_precision_is_not_overruled_in_silence(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert overruled_precision("auto", "bf16") is None
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert overruled_precision("no", "no") is None
    assert (
        "precision is bf16, not accelerate's mixed_precision no: train.precision auto decides"
        in overruled_precision("auto", "bf16")
    )


def test_accelerates_accumulation_neither_divides_the_losses_nor_is_dropped_in_silence(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones((), requires_grad=True)
    make_accelerator("no", []).backward(8 * weight)
    assert weight.grad == 8
    assert "accumulated over 2 batch(es), not accelerate's 4: train.accumulate decides" in overruled_accumulation(2)
    assert overruled_accumulation(4) is None
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    assert overruled_accumulation(2) is None


FOREIGN = {
    "checkpoints of another program": {"checkpoints/step-050000/model.bin": ""},
    "another tool's manifest": {"manifest.json": '{"name": "a web page"}', "model/weights.bin": ""},
    "another program's lock": {".lock": "", "model/weights.bin": ""},
    "another program's log": {".lock": "", "metrics.jsonl": '{"loss": 1}'},
    "another program's config": {".lock": "", "config.yaml": "a: 1", "manifest.json": "{}"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_directory_of_another_program_is_not_taken_for_a_run(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with ExitStack() as resources, pytest.raises(MtlReError, match="which this program did not write"):
        claim_run_dir(str(tmp_path), None, "name", resources)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_a_run_that_was_killed_as_it_began_is_taken_up(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()  # opened before config.yaml is written
    (tmp_path / ".partial-config.yaml").touch()
    with ExitStack() as resources:
        assert claim_run_dir(str(tmp_path), "auto", "name", resources) == tmp_path
