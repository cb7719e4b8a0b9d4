"""Decoding: the order of its steps, and what `--threshold stored` applies or refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TAXONOMIES, sample_examples, tiny_model

from mtl_re.config import CalibrateConfig, EvaluateConfig, ExportConfig, PredictConfig
from mtl_re.errors import MtlReError
from mtl_re.export.export import export
from mtl_re.model.network import load
from mtl_re.predict.predict import predict
from mtl_re.scoring import gating
from mtl_re.scoring.calibrate import calibrate
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding, decode, decoding_of
from mtl_re.scoring.evaluation import evaluate

PRIOR, SHARES = "0.8,0.1,0.1", [0.8, 0.1, 0.1]


@pytest.fixture(scope="module")
def rows():
    return sample_examples("valid", 60)


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps([row.to_row() for row in rows], ensure_ascii=False), encoding="utf-8")
    return str(path)


@pytest.fixture
def ckpt(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = tiny_model(tokenizer, 0, training_prior=[0.3, 0.3, 0.4])
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.mul_(40)
    model.save_pretrained(tmp_path / "ckpt")
    tokenizer.save_pretrained(tmp_path / "ckpt")
    return str(tmp_path / "ckpt")


def labels_of(path):
    return [json.loads(line)["label"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_order_is_temperatures_prior_restriction_threshold_gate():
    taxonomy = TAXONOMIES["klue-hierarchical"]
    generator = torch.Generator().manual_seed(0)
    logits = {head.name: torch.randn(50, len(head.classes), generator=generator) for head in taxonomy.heads}
    subjects, trained = ["ORG", "PER"] * 25, [0.3, 0.3, 0.4]
    decoding = Decoding("soft", PRIOR, "subject_type", 0.3)
    found = decode(logits, taxonomy, decoding, temperatures={"coarse": 2.0}, trained=trained, subjects=subjects)
    probs = gating.product({name: part.double() for name, part in logits.items()}, taxonomy, {"coarse": 2.0})
    probs = gating.restrict(gating.shift_prior(probs, taxonomy, SHARES, trained), taxonomy, subjects)
    assert found.probs.dtype == torch.float64
    assert torch.equal(found.probs, probs)
    assert torch.equal(found.labels, gating.labels(probs, taxonomy, "soft", 0.3))
    assert torch.equal(found.hard, gating.labels(probs, taxonomy, "hard", 0.3))


# ---- the stored threshold ------------------------------------------------------------------------------------------


def test_the_stored_threshold_comes_with_the_prior_it_was_fitted_under(ckpt, data, rows, tmp_path):
    fitted = calibrate(ckpt, CalibrateConfig(data=data, prior=PRIOR))["threshold"]
    assert fitted["prior"] == SHARES
    config = load(ckpt)[0].config
    assert (config.relation_threshold, config.relation_threshold_prior) == (fitted["value"], SHARES)
    model = ComposedModel.load(ckpt)
    logits = model.logits(rows, 16)
    whole = model.decode(logits, rows, Decoding("hard", PRIOR, threshold=fitted["value"]))
    half = model.decode(logits, rows, Decoding("hard", threshold=fitted["value"]))
    assert not torch.equal(whole.labels, half.labels), "the prior makes a difference on these rows"

    path = tmp_path / "p.jsonl"
    options = EvaluateConfig(data=data, resamples=0, threshold="stored", predictions=str(path))
    result = evaluate(ckpt, options)
    assert labels_of(path) == [model.taxonomy.labels[label] for label in whole.labels]
    assert (result["prior"], result["threshold"]) == ("0.8,0.1,0.1 (stored with the threshold)", fitted["value"])
    predict([ckpt], PredictConfig(data=data, output=str(tmp_path / "q.jsonl"), threshold="stored"))
    assert labels_of(tmp_path / "q.jsonl") == labels_of(path)
    named = evaluate(ckpt, EvaluateConfig(data=data, resamples=0, threshold="stored", prior=PRIOR))
    assert {**named, "prior": None} == {**result, "prior": None}


def test_a_threshold_fitted_without_a_prior_is_applied_without_one(ckpt, data):
    fitted = calibrate(ckpt, CalibrateConfig(data=data))["threshold"]
    assert fitted["prior"] == load(ckpt)[0].config.relation_threshold_prior == []
    result = evaluate(ckpt, EvaluateConfig(data=data, resamples=0, threshold="stored"))
    assert (result["prior"], result["threshold"]) == ("none", fitted["value"])


def stored(threshold=0.4, prior=None, gate="hard"):
    return SimpleNamespace(gate=gate, relation_threshold=threshold, relation_threshold_prior=prior)


@pytest.mark.parametrize(
    ("configs", "prior", "restrict", "message"),
    [
        ([stored(None)], "none", "none", "this checkpoint holds none"),
        ([stored(prior=SHARES)], "0.6,0.2,0.2", "none", "fitted under the prior 0.8,0.1,0.1"),
        ([stored(prior=SHARES)], "em", "none", "fitted under the prior 0.8,0.1,0.1"),
        ([stored(prior=[])], PRIOR, "none", "fitted under the prior none"),
        ([stored(prior=[])], "none", "subject_type", "fitted without --restrict"),
        ([stored(), stored(0.5)], "none", "none", "one threshold"),
        ([stored(prior=SHARES), stored(prior=[])], "none", "none", "one threshold"),
    ],
)
def test_what_cannot_be_applied_whole_is_refused(configs, prior, restrict, message):
    with pytest.raises(MtlReError, match=f"--threshold stored: .*{message}"):
        decoding_of(configs, prior, "stored", restrict=restrict)
    assert decoding_of(configs, prior, "none", restrict=restrict) == Decoding("hard", prior, restrict)


def test_the_same_prior_may_be_named_again_rounded():
    exact = [0.5963, 0.17034, 0.23336]
    found = decoding_of([stored(prior=exact)], "0.596,0.170,0.233", "stored")
    assert found == Decoding("hard", "0.5963,0.17034,0.23336", "none", 0.4)


def test_a_checkpoint_of_an_older_version_does_not_know_the_prior_and_this_is_said(capsys):
    assert decoding_of([stored()], PRIOR, "stored", "soft") == Decoding("soft", PRIOR, "none", 0.4)
    assert "does not record the prior" in capsys.readouterr().err


def test_every_command_refuses_a_threshold_that_is_not_stored(ckpt, data, tmp_path):
    for call in (
        lambda: evaluate(ckpt, EvaluateConfig(data=data, threshold="stored")),
        lambda: predict([ckpt], PredictConfig(data=data, output=str(tmp_path / "p.csv"), threshold="stored")),
        lambda: export(ckpt, str(tmp_path / "out"), ExportConfig(onnx=True, threshold="stored")),
    ):
        with pytest.raises(MtlReError, match="this checkpoint holds none; `mtl-re calibrate` fits one"):
            call()
    assert not (tmp_path / "p.csv").exists()


def test_a_graph_holds_the_prior_of_the_stored_threshold(ckpt, data):
    calibrate(ckpt, CalibrateConfig(data=data, prior=PRIOR))
    config = load(ckpt)[0].config
    assert decoding_of([config], "none", "stored") == Decoding("hard", "0.8,0.1,0.1", "none", config.relation_threshold)
    assert np.isclose(sum(config.relation_threshold_prior), 1)
