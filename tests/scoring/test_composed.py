"""ComposedModel: one network or one a head, and what decoding does between logits and labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sample_examples, tiny_model

from mtl_re.config import CalibrateConfig, EvaluateConfig
from mtl_re.data.readers import file_digest
from mtl_re.errors import MtlReError
from mtl_re.model.network import load
from mtl_re.scoring import calibration_fits, gating, metrics
from mtl_re.scoring.calibrate import calibrate, reliability
from mtl_re.scoring.composed import ComposedModel, parse_compose
from mtl_re.scoring.decoding import Decoding
from mtl_re.scoring.evaluation import evaluate, gold_indices
from mtl_re.taxonomy import Taxonomy

PRIOR = [0.3, 0.3, 0.4]


@pytest.fixture(scope="module")
def three(tokenizer):
    return [tiny_model(tokenizer, seed, training_prior=PRIOR) for seed in range(3)]


@pytest.fixture(scope="module")
def rows():
    return sample_examples("valid", 60)


def test_composed_logits_are_each_heads_own(three, tokenizer, rows):
    composed = ComposedModel(
        {name: (model, tokenizer) for name, model in zip(("coarse", "org", "per"), three, strict=True)}
    )
    alone = [ComposedModel.of(model, tokenizer).logits(rows, 16) for model in three]
    found = composed.logits(rows, 16)
    assert np.array_equal(found[:, :3], alone[0][:, :3])
    assert np.array_equal(found[:, 3:14], alone[1][:, 3:14])
    assert np.array_equal(found[:, 14:], alone[2][:, 14:])


def test_one_network_three_times_is_that_network(three, tokenizer, rows):
    once = ComposedModel.of(three[0], tokenizer)
    assert np.array_equal(
        once.logits(rows, 16),
        ComposedModel(dict.fromkeys(("coarse", "org", "per"), (three[0], tokenizer))).logits(rows, 16),
    )


def test_heads_must_fit(three, tokenizer):
    pair = (three[0], tokenizer)
    with pytest.raises(MtlReError, match="the heads are coarse, org, per; given were coarse, org"):
        ComposedModel({"coarse": pair, "org": pair})
    other = tiny_model(tokenizer, taxonomy=Taxonomy.from_prefixes(("no_relation", "a:x", "a:y")).to_dict())
    with pytest.raises(MtlReError, match="different labels"):
        ComposedModel({"coarse": pair, "org": (other, tokenizer), "per": pair})


def test_compose_text():
    assert parse_compose(["coarse=a", "org=b=c"]) == {"coarse": "a", "org": "b=c"}
    for bad in (["coarse"], ["=a"], ["coarse="], ["coarse=a", "coarse=b"]):
        with pytest.raises(MtlReError, match="HEAD=CKPT"):
            parse_compose(bad)


def test_restriction_rules_out_the_other_branch_and_nothing_else(three, tokenizer, rows):
    model = ComposedModel.of(three[0], tokenizer)
    logits = model.logits(rows, 16)
    plain, typed = (model.decode(logits, rows, Decoding(restrict=kind)).probs for kind in ("none", "subject_type"))
    labels = model.taxonomy.labels
    for row, example in enumerate(rows):
        other = "per:" if example.subject.type == "ORG" else "org:"
        out = np.array([label.startswith(other) for label in labels])
        assert (typed[row, out] == 0).all()
        kept = plain[row, ~out] / plain[row, ~out].sum()
        assert np.allclose(typed[row, ~out], kept, atol=1e-12)


def test_restriction_of_a_type_no_class_takes_leaves_no_relation():
    taxonomy = Taxonomy.from_prefixes()
    probs = torch.full((1, 30), 1 / 30, dtype=torch.float64)
    found = gating.restrict(probs, taxonomy, ["LOC"])
    assert found[0, 0] == 1
    assert found.sum() == 1
    certain = torch.zeros(1, 30, dtype=torch.float64)
    certain[0, 5] = 1.0  # nothing is left: the row stays as it was
    assert torch.equal(gating.restrict(certain, taxonomy, ["LOC"]), certain)


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_threshold_against_a_plain_loop(gate):
    taxonomy = Taxonomy.from_prefixes()
    probs = np.random.default_rng(0).dirichlet(np.full(30, 0.2), 200)
    groups = np.array(taxonomy.group_of_label)
    for threshold in (0.0, 0.3, 0.8, 1.01):
        found = gating.labels(torch.from_numpy(probs), taxonomy, gate, threshold).numpy()
        for row, label in zip(probs, found, strict=True):
            relations = row.copy()
            relations[0] = -1
            if gate == "hard":
                org, per = row[groups == 1].sum(), row[groups == 2].sum()
                relations[groups != (1 if org >= per else 2)] = -1
            assert label == (relations.argmax() if 1 - row[0] >= threshold else 0)


def test_applied_names_what_was_applied(three, tokenizer, rows):
    model = ComposedModel.of(three[0], tokenizer)
    logits = model.logits(rows, 16)
    assert model.decode(logits, rows, Decoding()).applied() == {
        "prior": "none",
        "temperatures": {},
        "restrict": "none",
        "threshold": None,
    }
    said = model.decode(logits, rows, Decoding("soft", "em", "subject_type", 0.4)).applied()
    assert said["prior"].startswith("em (estimated from these rows without their labels): 0.")
    assert (said["restrict"], said["threshold"]) == ("subject_type", 0.4)


# ---- calibrate -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ckpt(three, tokenizer, tmp_path):
    three[0].save_pretrained(tmp_path / "ckpt")
    tokenizer.save_pretrained(tmp_path / "ckpt")
    return str(tmp_path / "ckpt")


@pytest.fixture
def data(rows, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row.to_row() for row in rows], ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_calibrate_stores_what_evaluate_then_names(ckpt, data, tmp_path, monkeypatch):
    """The network is random, whose best temperature is infinite; what is fitted is told here."""
    fits = {"coarse": 2.0, "org": 0.5, "per": 1.5}
    monkeypatch.setattr(calibration_fits, "fit_temperatures", lambda logits, labels, taxonomy: dict(fits))
    options = CalibrateConfig(data=data, unlabelled=data, output=str(tmp_path / "out"))
    result = calibrate(ckpt, options)
    assert result["temperatures"] == fits
    assert result["before"]["nll"] != result["after"]["nll"]
    assert sum(result["rows_by_head"].values()) > result["n"] == result["rows_by_head"]["coarse"]
    assert sum(result["prior"]["target"]) == pytest.approx(1)
    assert (tmp_path / "out" / "reliability.png").stat().st_size > 1000
    model, _ = load(ckpt)
    assert model.config.temperatures == result["temperatures"]
    scored = evaluate(ckpt, EvaluateConfig(data=data, resamples=0))
    assert scored["temperatures"] == pytest.approx(result["temperatures"])
    assert scored["threshold"] is None
    stored = evaluate(ckpt, EvaluateConfig(data=data, resamples=0, threshold="stored"))
    assert stored["threshold"] == result["threshold"]["value"]
    seen = []
    monkeypatch.setattr(calibration_fits, "fit_temperatures", lambda logits, *_: seen.append(logits) or dict(fits))
    again = calibrate(ckpt, options)
    assert again["before"] == result["before"]  # from the raw logits, not on top of what is stored


def test_a_head_whose_rows_show_no_temperature_keeps_1(ckpt, data, capsys):
    """Of the random network no head's do: told, and nothing is divided."""
    result = calibrate(ckpt, CalibrateConfig(data=data))
    assert set(result["temperatures"].values()) == {1.0}
    assert result["before"] == result["after"]
    assert capsys.readouterr().err.count("keeps temperature 1") == 3


def test_an_export_is_not_calibrated_under_its_graph(ckpt, data):
    (Path(ckpt) / "model.onnx").write_bytes(b"")
    with pytest.raises(MtlReError, match=r"is an export, whose model\.onnx would keep the old temperatures"):
        calibrate(ckpt, CalibrateConfig(data=data))
    assert calibrate(ckpt, CalibrateConfig(data=data, store=False))["stored"] is False


def test_shares_are_checked_before_rows_are_read(ckpt):
    for command, options in ((calibrate, CalibrateConfig), (evaluate, EvaluateConfig)):
        with pytest.raises(MtlReError, match="2 shares for 3 coarse classes"):
            command(ckpt, options(data="no-such-file.json", prior="0.6,0.4"))


def test_thresholds_are_fitted_under_the_target_prior(ckpt, data, rows, monkeypatch):
    """Temperatures first, then the prior, rows weighted to its shares; without the weights other values come out."""
    shares, passed, real = [0.7, 0.1, 0.2], [], calibration_fits.fit_relation_thresholds
    monkeypatch.setattr(
        calibration_fits, "fit_relation_thresholds", lambda *given: (passed.append(given), real(*given))[1]
    )
    options = CalibrateConfig(data=data, store=False, prior="0.7,0.1,0.2", unlabelled=None, precision=0.02)
    found = calibrate(ckpt, options)
    model = ComposedModel.load(ckpt)
    model.root.config.temperatures = found["temperatures"]
    taxonomy, gold = model.taxonomy, gold_indices(rows, model.taxonomy)
    logits = model.logits(rows, 128)
    decoded = model.decode(logits, rows, Decoding(model.config.gate, "0.7,0.1,0.2"))
    best = gating.labels(decoded.probs, taxonomy, model.config.gate, threshold=-1.0).numpy()
    weights = metrics.prior_weights(gold, taxonomy, shares)
    fitted, plain = (
        calibration_fits.fit_threshold(decoded.probs.numpy(), gold, best, taxonomy, each) for each in (weights, None)
    )
    assert found["threshold"]["value"] == pytest.approx(fitted.value)
    assert (fitted.value, fitted.f1) != pytest.approx((plain.value, plain.f1))
    relations, scores = (part.numpy() for part in gating.best_relation(decoded.probs, taxonomy))
    ((*arrays, _, wanted, given),) = passed
    assert wanted == 0.02
    for one, other in zip((*arrays, given), (relations, scores, gold, weights), strict=True):
        assert np.allclose(one, other)


def test_the_prior_is_estimated_from_calibrated_posteriors(ckpt, data, rows):
    found = calibrate(ckpt, CalibrateConfig(data=data, store=False, unlabelled=data))
    model = ComposedModel.load(ckpt)
    model.root.config.temperatures = found["temperatures"]
    decoded = model.decode(model.logits(rows, 128), rows, Decoding(prior="em"))
    assert found["prior"]["target"] == pytest.approx(decoded.shares)


def test_calibrate_can_leave_the_checkpoint_alone(ckpt, data):
    calibrate(ckpt, CalibrateConfig(data=data, store=False, prior="0.6,0.2,0.2"))
    assert load(ckpt)[0].config.temperatures == {}
    with pytest.raises(MtlReError, match="not both"):
        calibrate(ckpt, CalibrateConfig(data=data, prior="0.6,0.2,0.2", unlabelled=data))


def test_without_data_it_takes_the_rows_that_the_run_held_out(ckpt, tmp_path):
    with pytest.raises(MtlReError, match="not the model/ of a run; name labelled rows with --data"):
        calibrate(ckpt, CalibrateConfig())
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "ckpt").rename(run / "model")
    (run / "config.yaml").write_text("data: {train: 'sample:train', valid: 'sample:valid'}\n")
    found = calibrate(str(run), CalibrateConfig(store=False))
    named = calibrate(str(run), CalibrateConfig(data="sample:valid", store=False))
    assert found.pop("data") == f"the rows that {run} held out"
    assert named.pop("data") == "sample:valid"
    assert found == named
    (run / "config.yaml").write_text("data: {train: 'sample:train', valid_fraction: 0}\n")
    with pytest.raises(MtlReError, match="held no rows out"):
        calibrate(str(run), CalibrateConfig())


def test_rows_that_changed_since_the_training_are_not_taken_for_held_out(ckpt, rows, tmp_path):
    """A split of other rows is another split: most of what it holds out was trained on."""
    file = tmp_path / "train.json"
    file.write_text(json.dumps([row.to_row() for row in rows], ensure_ascii=False), encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "ckpt").rename(run / "model")
    (run / "config.yaml").write_text(f"data: {{train: '{file}', valid_fraction: 0.5}}\n")
    described = {"source": str(file), "sha256": file_digest(str(file))}
    split = {"source": f"split of {file}", "sha256": None}
    (run / "manifest.json").write_text(json.dumps({"data": {"train": described, "valid": split}}))
    assert calibrate(str(run), CalibrateConfig(store=False))["n"] > 10
    file.write_text(json.dumps([row.to_row() for row in rows[1:]], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"train\.json has changed since the run .* name other labelled rows"):
        calibrate(str(run), CalibrateConfig(store=False))


def test_calibrate_reads_rows_as_evaluate_does(ckpt, rows, tmp_path):
    made = [row.to_row() for row in rows]
    for row in made:
        for role in ("subject_entity", "object_entity"):
            row[role] = row[role] | {"end_idx": row[role]["end_idx"] + 1}
    (tmp_path / "rows.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    options = CalibrateConfig(data=str(tmp_path / "rows.json"), store=False, span_ends="exclusive")
    assert calibrate(ckpt, options)["n"] == len(rows)


def test_the_rows_that_a_run_held_out_are_without_those_that_its_training_rejected(ckpt, rows, tmp_path):
    made = [row.to_row() for row in rows]
    name = " ".join("김" * 150)  # an entity of 299 characters, longer than the longest input
    sentence = f"{name}은 대한민국의 왕이다."
    entities = {"subject_entity": (0, 298, name), "object_entity": (301, 304, "대한민국")}
    made[7] |= {"sentence": sentence, "label": "no_relation"}
    for role, (start, end, word) in entities.items():
        made[7][role] = made[7][role] | {"start_idx": start, "end_idx": end, "word": word}
    (tmp_path / "valid.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "ckpt").rename(run / "model")
    options = f"train: 'sample:train', valid: '{tmp_path / 'valid.json'}'"
    (run / "config.yaml").write_text(f"data: {{{options}, on_bad_row: skip}}\n")
    assert calibrate(str(run), CalibrateConfig(store=False))["n"] == len(rows) - 1
    (run / "config.yaml").write_text(f"data: {{{options}}}\n")
    with pytest.raises(MtlReError, match=made[7]["guid"]):
        calibrate(str(run), CalibrateConfig(store=False))


def test_reliability_bins():
    confidence = np.array([0.05, 0.06, 0.95, 1.0])
    means, right, counts = reliability(confidence, np.array([True, False, True, True]))
    assert (counts, right) == ([2, 2], [0.5, 1.0])
    assert means == pytest.approx([0.055, 0.975])
    edges, correct = np.array([0.2, 0.21, 0.4, 0.41]), np.array([True, False, True, False])
    means, right, counts = reliability(edges, correct)
    assert counts == [1] * 4  # 3/15 and 6/15 are the upper ends of their bins, as in the ECE of the picture's title
    assert metrics.ece(edges, correct) == pytest.approx(100 * np.abs(np.array(means) - right).mean())
