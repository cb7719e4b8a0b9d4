"""`mtl-re export`: a directory that works without this package, and that appears whole or not at all."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    ENCODERS,
    MAX_LENGTH,
    SCHEME,
    TAXONOMIES,
    TYPES,
    sample_examples,
    scratch_tokenizer,
    small_model,
    tiny_model,
)
from huggingface_hub import ModelCard
from safetensors import SafetensorError

from mtl_re import cli
from mtl_re.config import ExportConfig
from mtl_re.errors import MtlReError
from mtl_re.export import export, input_maker, model_card, shipped_code
from mtl_re.export.remote import modeling_mtl_re as remote
from mtl_re.features import featurizer as features
from mtl_re.features.collate import Collator
from mtl_re.model import network as model
from mtl_re.model.network import join_heads
from mtl_re.model.pooling import POOLINGS, Pooling
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring import composed, gating
from mtl_re.scoring.decoding import Decoding, decode
from mtl_re.taxonomy import Taxonomy
from mtl_re.training import checkpoint

SECRETS = re.compile(rb"/(?:tmp|work|root|home|Users|opt|usr|var|dev)/")
"""Beginnings of absolute paths as a training machine has them."""


def shipped(ours: model.MtlReModel) -> remote.MtlReModel:
    """The shipped network with our weights."""
    theirs = remote.MtlReModel(remote.MtlReConfig(**ours.config.to_dict()))
    assert set(theirs.state_dict()) == set(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def batch(takes_types: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 50, (4, 12), generator=generator)
    mask = (torch.arange(12) < torch.tensor([12, 9, 11, 10])[:, None]).long()
    given = {"input_ids": ids, "attention_mask": mask, "positions": torch.tensor([[1, 3, 5, 8], [6, 8, 2, 3]] * 2)}
    return given | ({"token_type_ids": (torch.arange(12) > 6).long().expand(4, 12)} if takes_types else {})


# ---- the shipped network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_shipped_network_has_every_pooling(pooling):
    ours = small_model("bert", pooling=pooling)
    given = batch(ours.takes_types)
    with torch.inference_mode():
        expected, found = ours(**given), shipped(ours)(**given)
    assert list(expected) == list(found)
    for name, logits in expected.items():
        assert torch.equal(logits, found[name]), name


@pytest.mark.parametrize("settings", [{"head_layers": 2}, {"gate_evidence": "fine"}])
@pytest.mark.parametrize("name", TAXONOMIES)
def test_the_shipped_network_has_the_same_heads(name, settings):
    ours = small_model("bert", taxonomy=TAXONOMIES[name].to_dict(), **settings)
    given = batch(ours.takes_types)
    with torch.inference_mode():
        expected, found = ours(**given), shipped(ours)(**given)
    for head, logits in expected.items():
        assert torch.equal(logits, found[head]), head


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_shipped_network_takes_every_encoder(kind):
    ours = small_model(kind, taxonomy=TAXONOMIES["yaml-hierarchical"].to_dict())
    given = batch(ours.takes_types)
    theirs = shipped(ours)
    assert theirs.takes_types == ours.takes_types
    with torch.inference_mode():
        for name, logits in ours(**given).items():
            assert torch.equal(logits, theirs(**given)[name]), name


@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("name", TAXONOMIES)
def test_the_shipped_answer_is_the_gates(name, gate):
    taxonomy = TAXONOMIES[name]
    temperatures = {head.name: 0.5 + place for place, head in enumerate(taxonomy.heads)}
    ours = small_model("bert", taxonomy=taxonomy.to_dict(), gate=gate, temperatures=temperatures)
    generator = torch.Generator().manual_seed(1)
    logits = {head.name: torch.randn(200, len(head.classes), generator=generator) for head in taxonomy.heads}
    probabilities, labels = shipped(ours).answer(logits)
    expected = gating.product({name: one.double() for name, one in logits.items()}, taxonomy, temperatures)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-12)
    assert torch.equal(labels, gating.labels(expected, taxonomy, gate))
    if len(taxonomy.heads) > 1:  # the two gates must be told apart by these logits
        assert not torch.equal(gating.labels(expected, taxonomy, "hard"), gating.labels(expected, taxonomy, "soft"))


def test_a_pooling_without_counterpart_is_refused(tmp_path, saved, monkeypatch):
    monkeypatch.delitem(remote.POOLINGS, "markers")
    with pytest.raises(MtlReError, match=r"pooling 'markers' has no counterpart in remote/modeling_mtl_re\.py"):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig())
    monkeypatch.setitem(remote.POOLINGS, "markers", (3, []))
    with pytest.raises(MtlReError, match="no counterpart"):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig())
    assert not list(tmp_path.iterdir())
    assert isinstance(POOLINGS["markers"], Pooling)


# ---- the directory -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory) -> Path:
    """The tiny model as an exported directory without graphs; read only."""
    folder = tmp_path_factory.mktemp("export") / "out"
    export.export(str(saved), str(folder), ExportConfig())
    return folder


def test_our_own_loader_takes_the_directory(exported, saved, tiny, examples):
    loaded, _ = model.load(str(exported))
    for name, weight in tiny[0].state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    expected = Predictor.from_pretrained(str(saved), device="cpu").predict(examples)
    assert Predictor.from_pretrained(str(exported), device="cpu").predict(examples) == expected


def test_our_own_loader_runs_none_of_its_code(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    Predictor.from_pretrained(str(tmp_path / "out"), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_what_lies_in_the_directory(exported, tiny):
    names = {file.name for file in exported.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"),
        *("export.json", "modeling_mtl_re.py", "mtl_re_input", "model.safetensors.sha256"),
    }
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModel"] == "modeling_mtl_re.MtlReModel"
    report = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    assert report["parameters"] == model.parameter_count(tiny[0])
    assert (exported / "model.safetensors").stat().st_mode == (exported / "config.json").stat().st_mode


def test_no_path_of_this_machine_in_any_file(exported):
    files = [file for file in exported.rglob("*") if file.is_file()]
    assert len(files) > 12
    for file in files:
        if file.suffix != ".safetensors":
            assert not SECRETS.search(file.read_bytes()), file.name


def test_a_path_in_the_checkpoint_is_refused(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "ckpt")
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text(encoding="utf-8"))
    config["encoder"]["note"] = f"{Path.cwd()}/encoders/mine"
    (tmp_path / "ckpt" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"config\.json: names .* of this machine"):
        export.export(str(tmp_path / "ckpt"), str(tmp_path / "out"), ExportConfig())
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt"}


def test_the_folders_of_a_machine_may_be_called_as_ours(tmp_path, monkeypatch):
    """`/data` is a usual mount; `mtl_re/data/` stands in the code that is shipped."""
    (tmp_path / "loading.py").write_text("# mtl_re/data/loading.py")
    export.refuse_machine_paths(tmp_path, ["/data/run1"])
    (tmp_path / "config.json").write_text('{"name": "/data/run1"}')
    with pytest.raises(MtlReError, match=r"config\.json: names /data/"):
        export.refuse_machine_paths(tmp_path, ["/data/run1"])


def test_the_card_says_what_was_applied_and_what_heads_there_are(tmp_path, saved):
    scores = {"n": 9, "micro_f1": 50.0, "auprc": 40.0, "gate_mode": "hard", "prior": "none", "restrict": "subject_type"}
    (tmp_path / "m.json").write_text(json.dumps(scores | {"threshold": 0.25, "temperatures": {"coarse": 1.5}}))
    export.export(str(saved), str(tmp_path / "out"), ExportConfig(metrics=str(tmp_path / "m.json")))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "hard gate, prior none, restricted by subject_type, threshold 0.25, temperatures coarse 1.5" in card
    assert "gated heads" in card
    flat = small_model("bert", taxonomy=Taxonomy.from_prefixes(layout="flat").to_dict())
    text = model_card._what(flat, model_card.Known())
    assert "a flat head" in text
    assert "p(coarse)" not in text


@pytest.mark.parametrize("options", [{"prior": "0.6,0.2,0.2"}, {"threshold": "stored"}])
def test_what_only_a_graph_applies_needs_one(options):
    with pytest.raises(MtlReError, match="is applied inside an ONNX graph, and none is written; add --onnx"):
        ExportConfig(**options)
    ExportConfig(onnx=True, **options)


def test_only_an_older_export_is_overwritten(tmp_path, saved):
    place = tmp_path / "out"
    place.mkdir()
    export.export(str(saved), str(place), ExportConfig())  # an empty directory is as good as none
    (place / "more.txt").write_text("x", encoding="utf-8")
    with pytest.raises(MtlReError, match=r"not empty.*--overwrite"):
        export.export(str(saved), str(place), ExportConfig())
    export.export(str(saved), str(place), ExportConfig(overwrite=True))
    assert not (place / "more.txt").exists()
    (place / "export.json").unlink()
    with pytest.raises(MtlReError, match="not an exported directory"):
        export.export(str(saved), str(place), ExportConfig(overwrite=True))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(MtlReError, match="is a file"):
        export.export(str(saved), str(tmp_path / "file"), ExportConfig())


def test_an_export_is_not_replaced_by_itself(tmp_path, exported):
    shutil.copytree(exported, tmp_path / "out")
    with pytest.raises(MtlReError, match="holds the checkpoint"):
        export.export(str(tmp_path / "out"), str(tmp_path / "out"), ExportConfig(overwrite=True))
    export.export(str(exported), str(tmp_path / "again"), ExportConfig())
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_a_fault_leaves_the_old_directory_and_nothing_else(tmp_path, saved, exported, monkeypatch):
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("old", encoding="utf-8")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_code", full)
    with pytest.raises(MtlReError, match=r"cannot be written.*No space left"):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig(overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("owner", ["model", "tokenizer"])
def test_a_full_disk_is_told_as_one(tmp_path, saved, monkeypatch, owner):
    """safetensors and tokenizers raise kinds of their own, which name no place."""
    real = export.load

    def loaded(ckpt):
        pair = real(ckpt)

        def full(*arguments, **named):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        pair[0 if owner == "model" else 1].save_pretrained = full
        return pair

    monkeypatch.setattr(export, "load", loaded)
    with pytest.raises(MtlReError, match=r"out: cannot be written \(Error while serializing.*No space left"):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_the_renames_loses_no_export(tmp_path, saved, exported, monkeypatch, rename):
    """The old one then stands aside; the same command again puts the new one in its place and clears up."""
    shutil.copytree(exported, tmp_path / "out")
    old = (tmp_path / "out" / "export.json").read_bytes()
    real, calls = os.rename, []

    class KillError(BaseException):
        pass

    def dying(*places):
        real(*places)
        calls.append(places)
        if len(calls) == rename:
            raise KillError

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying)
        with pytest.raises(KillError):
            export.export(str(saved), str(tmp_path / "out"), ExportConfig(overwrite=True))
    assert (tmp_path / ".old-out" / "export.json").read_bytes() == old
    assert (tmp_path / "out").exists() == (rename == 2)
    export.export(str(saved), str(tmp_path / "out"), ExportConfig(overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_command(tmp_path, saved, capsys):
    assert cli.main(["export", str(saved), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    assert cli.main(["export", str(saved), str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["export", str(saved), str(tmp_path / "two"), "--average", "last:2"]) == 1
    assert "is not a run directory" in capsys.readouterr().err
    assert cli.main(["export", str(saved), str(tmp_path / "two"), "--prior", "0.9,0.9"]) == 2


# ---- averaging ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, tiny, saved) -> Path:
    """A run directory with checkpoints of three steps, whose weights are 1, 2 and 6 times the tiny model's."""
    shutil.copytree(saved, tmp_path / "run" / "model")
    for step, factor in ((10, 1.0), (20, 2.0), (30, 6.0)):
        weights = {name: tensor * factor for name, tensor in tiny[0].state_dict().items()}
        checkpoint.save(tmp_path / "run" / "checkpoints", step, {"model": weights}, {}, keep=3)
    return tmp_path / "run"


@pytest.mark.parametrize(("count", "factor", "steps"), [(1, 6.0, [30]), (2, 4.0, [20, 30]), (3, 3.0, [10, 20, 30])])
def test_averaging_is_the_mean_of_the_last_checkpoints(run, tiny, count, factor, steps):
    loaded, _ = model.load(str(run))
    assert export.average_checkpoints(loaded, run / "checkpoints", count) == steps
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, tiny[0].state_dict()[name] * factor, rtol=1e-6, atol=1e-7)


def test_an_averaged_export_forgets_what_was_fitted_to_the_best_model(run, tmp_path):
    path = run / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"temperatures": {"coarse": 2.0}, "relation_threshold": 0.4}), encoding="utf-8")
    (run / "valid_metrics.json").write_text('{"n": 9, "micro_f1": 77.7, "auprc": 66.6}', encoding="utf-8")
    export.export(str(run), str(tmp_path / "best"), ExportConfig())
    export.export(str(run), str(tmp_path / "mean"), ExportConfig(average="last:2"))
    best, mean = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("best", "mean"))
    assert (best["temperatures"], best["relation_threshold"]) == ({"coarse": 2.0}, 0.4)
    assert (mean["temperatures"], mean["relation_threshold"]) == ({}, None)
    cards = [(tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("best", "mean")]
    assert "77.7" in cards[0]
    assert "77.7" not in cards[1]
    assert "steps 20, 30" in cards[1]


def test_averaging_says_what_is_missing(run, saved):
    loaded, _ = model.load(str(saved))
    with pytest.raises(MtlReError, match=r"holds 3 checkpoint.*last:4 needs 4; train with --train\.keep 4"):
        export.average_checkpoints(loaded, run / "checkpoints", 4)
    (run / "checkpoints" / "step-000020" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(MtlReError, match=r"step-000020.*damaged"):
        export.average_checkpoints(loaded, run / "checkpoints", 2)
    for option in ("3", "last:0", "last:-1", "best:2", "last:"):
        with pytest.raises(MtlReError, match="expected last:K"):
            export.export(str(run), str(run.parent / "out"), ExportConfig(average=option))


# ---- the model card ----------------------------------------------------------------------------------------------


def written(path: Path, values: dict) -> str:
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def test_the_card_carries_scores_as_the_hub_expects_them(tmp_path, saved):
    scores = {"n": 3882, "micro_f1": 43.21, "auprc": 33.54, "ci": {"micro_f1": [41.0, 45.2], "auprc": [30.7, 37.8]}}
    metrics = written(tmp_path / "m.json", scores | {"gate_mode": "hard", "prior": "none"})
    rate = written(tmp_path / "c.json", {"rate": 0.3125, "low": 0.29, "high": 0.335, "n": 1600, "threshold": None})
    options = ExportConfig(metrics=metrics, metrics_data="KLUE-RE dev-open", cooccurrence=rate)
    export.export(str(saved), str(tmp_path / "out"), options)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["f1"].metric_value == 43.21
    assert found["auprc"].metric_value == 33.54
    assert {result.dataset_name for result in found.values()} == {"KLUE-RE dev-open"}
    head = card.data.to_dict()["model-index"][0]["results"][0]
    assert head["task"]["type"] == "text-classification"
    assert head["metrics"][0]["value"] == 43.21
    text = card.text
    assert "43.2 [41.0, 45.2]" in text
    assert "31.2 % [29.0, 33.5] of 1600 annotated unrelated pairs, as predicted" in text
    assert "CC BY-SA 4.0" in text
    assert "Apache-2.0" in text


def test_the_card_of_a_klue_run_names_its_data_without_its_path(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "run" / "model")
    source = {"source": "/data/me/klue-re-v1.1_train.json", "rows": 32470}
    written(tmp_path / "run" / "manifest.json", {"data": {"train": source}})
    config = "model: {encoder: klue/roberta-large}\noptim: {lr: 2.0e-5}\ntrain: {run_dir: /data/me/run, seed: 7}\n"
    (tmp_path / "run" / "config.yaml").write_text(config, encoding="utf-8")
    export.export(str(tmp_path / "run"), str(tmp_path / "out"), ExportConfig())
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.datasets) == ("cc-by-sa-4.0", ["klue"])
    assert card.data.base_model == "klue/roberta-large"
    assert "32470 of klue-re-v1.1_train.json" in card.text
    assert "| `train.seed` | 7 |" in card.text
    assert "/data/me" not in card.content
    export.export(str(tmp_path / "run" / "model"), str(tmp_path / "again"), ExportConfig())
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == card.content


def test_the_licence_of_unknown_rows_is_not_guessed(tmp_path, saved, exported):
    assert ModelCard.load(exported / "README.md").data.license == "other"
    export.export(str(saved), str(tmp_path / "out"), ExportConfig(licence="cc-by-4.0"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "Weights: cc-by-4.0." in card.text


def test_the_card_says_what_was_not_measured(exported):
    card = ModelCard.load(exported / "README.md")
    assert not card.data.eval_results
    assert "Not measured for these weights" in card.text
    assert "the rate was not measured" in card.text


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("metrics", {"n": 3}, "--metrics: .* no number under 'micro_f1', 'auprc'"),
        ("cooccurrence", {"rate": 31.0, "low": 29.0, "high": 33.0, "n": 9}, "must be shares of 1"),
        ("cooccurrence", {"rate": "a"}, "no number under 'rate'"),
        ("metrics", [1], "expected a JSON object"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, saved, option, values, message):
    path = written(tmp_path / "given.json", values)
    with pytest.raises(MtlReError, match=message):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig(**{option: path}))
    with pytest.raises(MtlReError, match="no such file"):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig(**{option: str(tmp_path / "none.json")}))


# ---- the hub -----------------------------------------------------------------------------------------------------


class Hub:
    """Stands for `HfApi`: notes the calls, and what was in the folder at that moment."""

    calls: list = []  # noqa: RUF012 - shared with the test on purpose
    fault: Exception | None = None
    public = False
    deleted: list = []  # noqa: RUF012

    def create_repo(self, name, private, exist_ok):
        Hub.calls.append(("create", name, private, exist_ok))
        if Hub.fault is not None:
            raise Hub.fault
        return f"https://hub/{name}"

    def repo_info(self, name):
        return SimpleNamespace(private=not Hub.public)

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        Hub.deleted = delete_patterns
        Hub.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_pushing(tmp_path, saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    export.export(str(saved), str(tmp_path / "out"), ExportConfig(push_to_hub="me/re", private=True))
    created, uploaded = Hub.calls
    assert created == ("create", "me/re", True, True)
    assert uploaded[:2] == ("upload", "me/re")
    assert {"README.md", "config.json", "model.safetensors", "modeling_mtl_re.py", "mtl_re_input"} <= set(uploaded[2])
    names = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    kept = [name for name in names if not any(fnmatch(name, pattern) for pattern in Hub.deleted)]
    assert kept == ["README.md"]  # of an earlier export nothing else stays, and nothing of the user's goes
    assert all(
        any(fnmatch(name, pattern) for pattern in Hub.deleted) for name in ("model.onnx", "model.int8.onnx.data")
    )
    assert not any(fnmatch("LICENSE", pattern) for pattern in Hub.deleted)
    monkeypatch.setattr(Hub, "public", True)
    with pytest.raises(MtlReError, match="this repository is public already"):
        export.export(str(saved), str(tmp_path / "three"), ExportConfig(push_to_hub="me/re", private=True))
    monkeypatch.setattr(Hub, "fault", OSError("401 Client Error\nno token"))
    with pytest.raises(MtlReError, match=r"me/re: 401 Client Error no token; .* is complete, push it again"):
        export.export(str(saved), str(tmp_path / "two"), ExportConfig(push_to_hub="me/re"))
    assert (tmp_path / "two" / "README.md").is_file()


# ---- sentences to input, without torch or transformers ---------------------------------------------------------------


def test_the_input_package_is_closed_and_light():
    sources = shipped_code.input_sources()
    assert {
        "export/input_maker.py",
        "features/featurizer.py",
        "features/markers.py",
        "taxonomy.py",
        "errors.py",
    } <= set(sources)
    assert {"data/validation.py", "data/__init__.py"} <= set(sources)
    for name, text in sources.items():
        assert not re.search(r"(?m)^\s*(from|import) mtl_re\b", text), name
        top = set(re.findall(r"(?m)^(?:from|import) (\w+)", text))
        assert top <= sys.stdlib_module_names | {"numpy", "mtl_re_input"}, name


def assert_same_input(folder: Path, examples) -> None:
    """Both ways make the same features, and the same batches."""
    ours, tokenizer = model.load(str(folder))
    table = composed.featurizer_of(ours, tokenizer).table(examples)
    maker = input_maker.InputMaker(folder)
    seen = 0
    collate = Collator(table, tokenizer.pad_token_id, True, levitated=ours.levitated)
    for rows, made in maker.batches(examples, 16, token_types=True):
        expected = collate(np.arange(seen, seen + len(rows)))
        assert set(made) == set(expected) - {"targets"}
        for name, array in made.items():
            assert np.array_equal(array, expected[name].numpy()), name
        seen += len(rows)
    assert seen == len(examples)


def test_the_input_maker_makes_what_the_featurizer_makes(exported, examples):
    assert_same_input(exported, examples)


@pytest.mark.parametrize(
    ("scheme", "query"), [("special", False), ("typed_special", True), ("entity_punct", True), ("levitated", False)]
)
def test_the_input_maker_under_every_kind_of_marking(tmp_path, scheme, query, examples):
    tokenizer = scratch_tokenizer(examples, scheme)
    made = tiny_model(tokenizer, markers=scheme, query=query, max_input_length=40)  # short: the cut is taken too
    for part in (made, tokenizer):
        part.save_pretrained(tmp_path)
    assert_same_input(tmp_path, examples)


def test_the_input_maker_on_real_rows(shared, ko_mini, tmp_path):
    from transformers import AutoTokenizer

    from mtl_re.data.loading import load_examples

    path = shared / "klue-re" / "klue-re-v1.1_dev-open.json.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    tokenizer = AutoTokenizer.from_pretrained(ko_mini)
    config = model.MtlReConfig(markers=SCHEME, entity_types=TYPES, max_input_length=MAX_LENGTH)
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = load_examples(str(path), Taxonomy.from_prefixes())[0][:400]
    maker = input_maker.InputMaker(tmp_path)
    ours = features.Featurizer(tokenizer, maker.taxonomy, SCHEME, False, MAX_LENGTH, TYPES).table(rows)
    theirs = maker.featurizer.table(rows)
    assert np.array_equal(ours.ids, theirs.ids)
    assert np.array_equal(ours.positions, theirs.positions)


def test_the_input_maker_names_what_is_missing(tmp_path, exported):
    with pytest.raises(MtlReError, match=r"holds no config\.json of an exported model"):
        input_maker.InputMaker(tmp_path)
    shutil.copy(exported / "config.json", tmp_path)
    with pytest.raises(MtlReError, match="holds no tokenizer"):
        input_maker.InputMaker(tmp_path)


# ---- another machine ---------------------------------------------------------------------------------------------


def elsewhere(code: str, folder: Path, *blocked: str) -> subprocess.CompletedProcess:
    """Run code where neither mtl_re nor any of `blocked` can be imported: no site hooks, another home."""
    packages = sysconfig.get_paths()["purelib"]
    forbid = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    start = f"import sys\nsys.path.append({packages!r})\n{forbid}try:\n import mtl_re\nexcept ImportError: pass\n"
    start += "else: raise SystemExit('mtl_re is here')\n"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    call = [sys.executable, "-I", "-S", "-c", start + code]
    return subprocess.run(call, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


LOAD = """
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
torch.set_num_threads(1)
given = np.load("given.npz")
def run(place, name):
    model = AutoModel.from_pretrained(place, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert AutoConfig.from_pretrained(place, trust_remote_code=True).model_type == "mtl_re"
    with torch.inference_mode():
        logits = model(**{key: torch.from_numpy(given[key]) for key in given.files})
    probabilities, labels = model.answer(logits)
    ids = tokenizer("대한민국의 수도는 서울이다.")["input_ids"]
    np.savez(name, side=torch.cat(list(logits.values()), -1).numpy(), labels=labels.numpy(), ids=np.array(ids))
    return model, tokenizer
model, tokenizer = run("EXPORTED", "first.npz")
for part in (model, tokenizer): part.save_pretrained("saved again")
run("saved again", "second.npz")
"""


@pytest.mark.slow
def test_a_fresh_environment_gives_the_same_logits(exported, tiny, examples, table, tmp_path):
    ours, tokenizer = tiny
    given = Collator(table, tokenizer.pad_token_id, ours.takes_types)(np.arange(20))
    np.savez(tmp_path / "given.npz", **{name: part.numpy() for name, part in given.items() if name != "targets"})
    done = elsewhere(LOAD.replace("EXPORTED", str(exported)), tmp_path, "einops", "jsonargparse")
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        logits = ours(**{name: part for name, part in given.items() if name != "targets"})
    expected = join_heads(logits, ours.taxonomy).numpy()
    labels = decode(logits, ours.taxonomy, Decoding(ours.config.gate)).labels.numpy()
    for name in ("first.npz", "second.npz"):
        there = np.load(tmp_path / name)
        np.testing.assert_allclose(there["side"], expected, rtol=0, atol=1e-6)
        assert np.array_equal(there["labels"], labels)
        assert there["ids"].tolist() == tokenizer("대한민국의 수도는 서울이다.")["input_ids"]
    assert (tmp_path / "saved again" / "modeling_mtl_re.py").is_file()


@pytest.mark.slow
def test_the_cards_program_runs_elsewhere(exported, tiny, tmp_path):
    rows = sample_examples("test", 8)
    text = "\n".join(json.dumps(row.to_row(), ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    card = (exported / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("DIR", str(exported))
    done = elsewhere(code, tmp_path, "einops", "jsonargparse")
    assert done.returncode == 0, done.stderr
    expected = [(one.id, one.label) for one in Predictor([composed.ComposedModel.of(*tiny)]).predict(rows)]
    assert done.stdout.splitlines()[-1] == str(expected)


def test_a_card_names_no_local_directory_as_a_model_of_the_hub():
    """`encoders/mine` looks like a hub id once the directory is gone."""
    known = model_card.Known(options={"model": {"encoder": "encoders/mine"}})
    assert model_card._hub_encoder(known) == "encoders/mine"
    known.local_encoder = True
    assert model_card._hub_encoder(known) is None
