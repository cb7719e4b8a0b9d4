"""`evaluate`: the figures of the contract, from rows to JSON, and what may be done to the prior on the way."""

import json

import numpy as np
import pytest
import torch
from conftest import sample_examples, tiny_model

from mtl_re.config import EvalConfig, EvaluateConfig
from mtl_re.errors import MtlReError
from mtl_re.model import device
from mtl_re.model.network import load, split_heads
from mtl_re.scoring import evaluation, gating, inference, metrics
from mtl_re.scoring.decoding import Decoded, Decoding, decode
from mtl_re.scoring.evaluation import evaluate
from mtl_re.taxonomy import KLUE

KEYS = [
    "n",
    "micro_f1",
    "auprc",
    "macro_f1",
    "accuracy",
    "ci",
    "coarse",
    "gate",
    "fine",
    "errors",
    "disagreement",
    "ece",
    "per_label",
    "gate_mode",
    "prior",
    "empty_classes",
    "temperatures",
    "restrict",
    "threshold",
]
PRIOR = [0.3, 0.3, 0.4]


@pytest.fixture(scope="module")
def ckpt(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("ckpt")
    torch.manual_seed(0)
    model = tiny_model(tokenizer, 0, training_prior=PRIOR)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.mul_(40)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def rows():
    return sample_examples("valid", 40)


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "valid.json"
    path.write_text(json.dumps([row.to_row() for row in rows], ensure_ascii=False), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def result(ckpt, data):
    return evaluate(ckpt, EvaluateConfig(data=data, resamples=50))


def test_keys_are_those_of_the_contract(result):
    assert list(result) == KEYS
    assert set(result["ci"]) == {"micro_f1", "auprc"}
    assert set(result["coarse"]) == {"accuracy", "confusion"}
    assert set(result["gate"]) == {"precision", "recall", "f1"}
    assert set(result["fine"]) == {"org", "per"}
    assert set(result["errors"]) == {"missed", "false_alarm", "wrong_branch", "wrong_label"}
    assert list(result["per_label"]) == list(KLUE)
    assert all(set(v) == {"precision", "recall", "f1", "auprc", "support"} for v in result["per_label"].values())
    assert (result["gate_mode"], result["prior"]) == ("hard", "none")


def test_figures_are_percentages_that_agree(result, rows):
    assert result["n"] == len(rows) == sum(v["support"] for v in result["per_label"].values())
    for name in ("micro_f1", "auprc", "macro_f1", "accuracy", "disagreement", "ece"):
        assert 0 <= result[name] <= 100
    wrong = sum(result["errors"].values())
    assert result["accuracy"] == pytest.approx(100 * (1 - wrong / len(rows)))
    for name in ("micro_f1", "auprc"):
        low, high = result["ci"][name]
        assert 0 <= low <= high <= 100
    assert result["empty_classes"] == [label for label, v in result["per_label"].items() if not v["support"]]


def test_output_file_holds_the_result(ckpt, data, result, tmp_path):
    path = tmp_path / "new" / "m.json"
    evaluate(ckpt, EvaluateConfig(data=data, resamples=50, output=str(path)))
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert [p.name for p in path.parent.iterdir()] == ["m.json"]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_change_nothing(ckpt, data, result, batch_size):
    again = evaluate(ckpt, EvaluateConfig(data=data, resamples=50, batch_size=batch_size))
    for name in ("micro_f1", "accuracy", "errors", "coarse"):
        assert again[name] == result[name]
    assert again["auprc"] == pytest.approx(result["auprc"], abs=1e-3)


def test_gate_is_the_options_then_the_checkpoints(ckpt, data, result, tokenizer, tmp_path):
    soft = evaluate(ckpt, EvaluateConfig(data=data, gate="soft", resamples=0))
    assert soft["gate_mode"] == "soft"
    assert soft["auprc"] == result["auprc"]
    assert soft["disagreement"] == result["disagreement"]
    assert soft["ci"] == {"micro_f1": None, "auprc": None}
    model, _ = load(ckpt)
    model.config.gate = "soft"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert evaluate(str(tmp_path), EvaluateConfig(data=data, resamples=0))["gate_mode"] == "soft"


def test_prior_by_shares(ckpt, data, result):
    shifted = evaluate(ckpt, EvaluateConfig(data=data, prior="0.9,0.05,0.05", resamples=0))
    assert shifted["prior"] == "0.9,0.05,0.05"
    counts = [sum(row["no_relation"] for row in r["coarse"]["confusion"].values()) for r in (result, shifted)]
    assert counts[0] <= counts[1]
    trained = evaluate(ckpt, EvaluateConfig(data=data, prior="0.3,0.3,0.4", resamples=0))
    assert trained["micro_f1"] == result["micro_f1"]


def test_prior_by_em_is_named_and_blind_to_labels(ckpt, data, rows, tmp_path):
    found = evaluate(ckpt, EvaluateConfig(data=data, prior="em", resamples=0, predictions=str(tmp_path / "a.jsonl")))
    assert found["prior"].startswith("em (estimated from these rows without their labels): ")
    shares = [float(text) for text in found["prior"].split(": ")[1].split(",")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    permuted = [row.to_row() | {"label": rows[i - 1].label} for i, row in enumerate(rows)]
    (tmp_path / "permuted.json").write_text(json.dumps(permuted))
    other = evaluate(
        ckpt,
        EvaluateConfig(
            data=str(tmp_path / "permuted.json"), prior="em", resamples=0, predictions=str(tmp_path / "b.jsonl")
        ),
    )
    assert other["prior"] == found["prior"]
    a, b = ([json.loads(x) for x in (tmp_path / n).read_text().splitlines()] for n in ("a.jsonl", "b.jsonl"))
    assert [x["probs"] for x in a] == [x["probs"] for x in b]


def test_prior_needs_a_known_training_prior(ckpt, data, tokenizer, tmp_path):
    model, _ = load(ckpt)
    model.config.training_prior = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for prior in ("em", "0.6,0.2,0.2"):
        with pytest.raises(MtlReError, match="does not record the prior"):
            evaluate(str(tmp_path), EvaluateConfig(data=data, prior=prior))


@pytest.mark.parametrize(
    ("prior", "message"),
    [("0.5,0.5", "3 coarse classes"), ("x", "expected none, em or shares"), ("0.1,0.1,0.1", "sum to 1")],
)
def test_faulty_prior(ckpt, data, prior, message):
    with pytest.raises(MtlReError, match=message):
        evaluate(ckpt, EvaluateConfig(data=data, prior=prior))


def test_unlabelled_row_is_named(ckpt, rows, tmp_path):
    made = [row.to_row() for row in rows]
    made[4]["label"] = None
    (tmp_path / "d.json").write_text(json.dumps(made))
    with pytest.raises(MtlReError, match=rf"d\.json:5 \({rows[4].id}\) has no label"):
        evaluate(ckpt, EvaluateConfig(data=str(tmp_path / "d.json")))


def test_output_that_cannot_be_written(ckpt, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlReError, match="cannot be written"):
        evaluate(ckpt, EvaluateConfig(data=data, resamples=0, output=str(tmp_path / "file" / "m.json")))


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_logits_come_back_in_row_order_and_cover_all_shares(tiny, table):
    model, tokenizer = tiny
    whole = inference.all_logits(model, table, tokenizer.pad_token_id, 64)
    assert whole.shape == (len(table), 32)
    assert whole.dtype == torch.float32
    pieces = torch.full_like(whole, torch.nan)
    for rank in range(3):
        rows, logits = inference.table_logits(model, table, tokenizer.pad_token_id, 5, share=(rank, 3))
        assert pieces[rows].isnan().all()
        pieces[rows] = logits
    assert np.allclose(pieces, whole, atol=1e-5)


def test_more_processes_than_batches(tiny, table):
    model, tokenizer = tiny
    rows, logits = inference.table_logits(model, table, tokenizer.pad_token_id, 1000, share=(1, 2))
    assert (len(rows), logits.shape) == (0, (0, 32))


def test_temperatures_reach_the_probabilities(tiny, table):
    model, tokenizer = tiny
    logits = inference.all_logits(model, table, tokenizer.pad_token_id, 64)
    heads = split_heads(logits, model.taxonomy)
    plain = decode(heads, model.taxonomy, Decoding()).probs
    flat = decode(heads, model.taxonomy, Decoding(), temperatures={"coarse": 1e6, "org": 1e6, "per": 1e6}).probs
    assert np.allclose(plain.sum(dim=1), 1)
    assert np.allclose(gating.coarse(flat, model.taxonomy), 1 / 3, atol=1e-4)
    assert plain.dtype == torch.float64


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "auprc", "accuracy"])
def test_selection_score_matches_the_report(tiny, metric):
    taxonomy = tiny[0].taxonomy
    generator = np.random.default_rng(3)
    gold, probs = generator.integers(0, 30, 200), generator.dirichlet(np.ones(30), 200)
    decoded = Decoded(torch.from_numpy(probs), taxonomy, Decoding("soft"))
    report = evaluation.score_decoded(decoded, gold, resamples=0)
    score = evaluation.selection_score(decoded, gold, EvalConfig(metric=metric, gate="soft"))
    assert score == pytest.approx(report[metric])
    target = [0.6, 0.17, 0.23]
    shifted = evaluation.selection_score(decoded, gold, EvalConfig(metric=metric, gate="soft", target_prior=target))
    weights = metrics.prior_weights(gold, taxonomy, target)
    if metric == "accuracy":
        predicted = probs.argmax(axis=1)
        assert shifted == pytest.approx(100 * (weights * (gold == predicted)).sum() / weights.sum())
    assert shifted != pytest.approx(score)


@pytest.mark.parametrize("option", ["no", "bf16", "auto"])
def test_precision_on_cpu(option):
    found = device.resolve_precision(option, torch.device("cpu"))
    assert found in ({"no", "bf16"} if option == "auto" else {option})


def test_bf16_is_close_to_fp32(tiny, table):
    model, tokenizer = tiny
    full = inference.all_logits(model, table, tokenizer.pad_token_id, 64)
    half = inference.all_logits(model, table, tokenizer.pad_token_id, 64, "bf16")
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.1 * full.abs().max()
