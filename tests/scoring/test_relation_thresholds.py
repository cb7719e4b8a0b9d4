"""Thresholds fitted to a precision: the rule on known tables, its laws, and their way through a checkpoint."""

import json

import numpy as np
import pytest
import torch
from conftest import sample_examples, tiny_model
from scipy.stats import binomtest

from mtl_re.config import CalibrateConfig, ExportConfig
from mtl_re.errors import MtlReError
from mtl_re.export.export import export
from mtl_re.model.network import THRESHOLD_KEYS, load
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring import calibration_fits
from mtl_re.scoring.calibrate import calibrate
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding
from mtl_re.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_dict({"groups": [["none", ["none"]], ["some", ["a", "b", "c"]]], "no_relation": "none"})
PRIOR, SHARES = "0.8,0.1,0.1", [0.8, 0.1, 0.1]


def fit(rows, target, weights=None):
    """Fit on (label of the best relation, score, right or not) of rows; a wrong row has the gold label none."""
    best = np.array([TAXONOMY.labels.index(label) for label, _, _ in rows])
    scores, right = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    gold = np.where(right, best, 0)
    return calibration_fits.fit_relation_thresholds(best, scores, gold, TAXONOMY, target, weights)


def ladder(label, right, high=1.0, low=0.5):
    """Return rows of falling scores."""
    return [(label, score, ok) for score, ok in zip(np.linspace(high, low, len(right)), right, strict=True)]


def test_a_relation_of_right_rows_gets_its_lowest_score_and_a_wrong_one_never_comes():
    found = fit(ladder("a", [True] * 100) + ladder("b", [False] * 100), 0.9)
    assert found.relations["a"] == (0.5, "own", 100, 100, 1.0)
    assert found.relations["b"] == (None, "never", 100, 0, None)
    assert set(found.relations) == {"a", "b", "c"}


def test_the_threshold_lies_between_the_last_row_kept_and_the_next():
    rows = ladder("a", [True] * 60 + [False] * 60)
    scores = [score for _, score, _ in rows]
    value, by, _, kept, precision = fit(rows, 0.9).relations["a"]
    assert by == "own"
    assert value == pytest.approx((scores[kept - 1] + scores[kept]) / 2)
    bound = [binomtest(min(n, 60), n, alternative="greater").proportion_ci(0.95, "exact").low for n in range(1, 121)]
    assert kept == max(n for n in range(1, 121) if bound[n - 1] >= 0.9)
    assert precision == pytest.approx(60 / kept)


@pytest.mark.parametrize(("rows", "by"), [(28, "never"), (29, "pooled"), (30, "own")])
def test_thirty_right_rows_show_a_precision_of_nine_tenths(rows, by):
    """28 right rows show too little even together; 29 show it as the only rows there are, but not by themselves."""
    assert fit(ladder("a", [True] * rows), 0.9).relations["a"].by == by


def test_few_rows_take_the_threshold_of_all_and_raise_it_where_they_contradict_it():
    many = ladder("a", [True] * 200)
    assert fit([*many, ("b", 0.7, True)], 0.9).relations["b"].by == "pooled"
    assert fit(many, 0.9).relations["c"] == (0.5, "pooled", 0, 0, None)
    value, by, _, kept, _ = fit([*many, ("b", 0.9, True), ("b", 0.7, False)], 0.9).relations["b"]
    assert (by, kept) == ("pooled", 1)
    assert 0.7 < value < 0.9
    value, by, _, kept, precision = fit([*many, ("b", 0.7, False)], 0.9).relations["b"]
    assert (by, kept, precision) == ("pooled", 0, None)
    assert 0.7 < value < 0.7001
    assert fit([*many, ("b", 1.0, False)], 0.9).relations["b"] == (None, "never", 1, 0, None)


def test_rows_of_one_score_fall_on_one_side():
    rows = [("a", 0.8, True)] * 50 + [("a", 0.6, True), ("a", 0.6, False)] * 30
    found = fit(rows, 0.9).relations["a"]
    assert (found.kept, found.precision) == (50, 1.0)


def test_where_nothing_is_shown_nothing_is_given():
    for rows in ([], ladder("a", [False] * 40), ladder("a", [True] * 5)):
        found = fit(rows, 0.9)
        assert found.pooled is None
        assert {(one.value, one.by) for one in found.relations.values()} == {(None, "never")}
    assert {one.value for one in fit(ladder("a", [True] * 500), 1.0).relations.values()} == {None}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_laws(seed, weighted):
    """On the fitting rows the precision is reached; a higher target lowers no threshold; order of rows is nothing."""
    rng = np.random.default_rng(seed)
    best, scores = rng.choice([1, 2, 3], 400, p=[0.65, 0.3, 0.05]), rng.beta(3, 1.5, 400).round(2)
    right = rng.random(400) < scores ** (best / 2)
    gold = np.where(right, best, 0)
    weights = np.where(gold == 0, 2.0, 0.6) if weighted else None
    full = np.ones(400) if weights is None else weights
    assert (best == 3).sum() < calibration_fits.SUPPORT <= (best == 2).sum()
    last = dict.fromkeys("abc", -1.0)
    for target in np.linspace(0.3, 1.0, 36):
        found = calibration_fits.fit_relation_thresholds(best, scores, gold, TAXONOMY, target, weights).relations
        for label, one in found.items():
            value = np.inf if one.value is None else one.value
            rows = (best == TAXONOMY.labels.index(label)) & (scores >= value)
            assert rows.sum() == one.kept
            if rows.any():
                assert np.average(right[rows], weights=full[rows]) >= target - 1e-12
            assert value >= last[label]
            last[label] = value
    turned = None if weights is None else weights[::-1]
    one = calibration_fits.fit_relation_thresholds(best, scores, gold, TAXONOMY, 0.6, weights).relations
    other = calibration_fits.fit_relation_thresholds(
        best[::-1], scores[::-1], gold[::-1], TAXONOMY, 0.6, turned
    ).relations
    assert {label: part[:4] for label, part in one.items()} == {label: part[:4] for label, part in other.items()}


def test_the_bound_is_exact_without_weights_and_below_the_precision_with_them():
    rng = np.random.default_rng(0)
    scores, right = rng.random(80), rng.random(80) < 0.8
    bounds = calibration_fits.precision_bounds(scores, right, np.ones(80), 1.0)
    for row in range(80):
        kept = right[scores >= scores[row]]
        exact = binomtest(int(kept.sum()), len(kept), alternative="greater").proportion_ci(0.95, "exact").low
        assert bounds[row] == pytest.approx(exact)
    weights = np.where(right, 0.5, rng.uniform(0.5, 2, 80))
    below = calibration_fits.precision_bounds(scores, right, weights, 2.0)
    for row in range(80):
        kept = scores >= scores[row]
        assert below[row] <= np.average(right[kept], weights=weights[kept])
    assert (below <= bounds + 1e-12).all()


def test_the_rule_holds_its_promise_where_raw_precision_breaks_it():
    """A relation whose precision is 0.85 at every score: a threshold for 0.9 is always a false promise."""
    rng, given = np.random.default_rng(1), 0
    for _ in range(200):
        rows = [("a", score, rng.random() < 0.85) for score in rng.random(40)]
        given += fit(rows, 0.9).relations["a"].value is not None
    assert given / 200 < 0.1


# ---- the command and the checkpoint --------------------------------------------------------------------------------


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
    tiny_model(tokenizer, 0, training_prior=[0.3, 0.3, 0.4]).save_pretrained(tmp_path / "ckpt")
    tokenizer.save_pretrained(tmp_path / "ckpt")
    return str(tmp_path / "ckpt")


def test_what_calibrate_stores_is_read_back_and_exported(ckpt, data, tmp_path, capsys):
    options = CalibrateConfig(data=data, prior=PRIOR, precision=0.05, output=str(tmp_path / "out"))
    result = calibrate(ckpt, options)["precision"]
    assert "--precision 0.05" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["precision"]["target"] == 0.05
    config, values = load(ckpt)[0].config, {label: one["value"] for label, one in result["relations"].items()}
    assert [getattr(config, key) for key in THRESHOLD_KEYS] == [values, SHARES, 0.05]
    export(ckpt, str(tmp_path / "exported"), ExportConfig())
    exported = load(str(tmp_path / "exported"))[0].config
    assert [getattr(exported, key) for key in THRESHOLD_KEYS] == [values, SHARES, 0.05]
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "fitted to a precision of 0.05 on held-out rows (coarse shares: 0.80, 0.10, 0.10)" in card


def test_a_target_that_is_not_reached_is_said(ckpt, data, capsys):
    result = calibrate(ckpt, CalibrateConfig(data=data, precision=0.99))["precision"]
    assert {one["value"] for one in result["relations"].values()} == {None}
    assert "--precision 0.99 is not shown for any relation: no triple" in capsys.readouterr().err


def test_without_the_option_no_key_is_written_and_old_ones_go(ckpt, data, tmp_path):
    def keys():
        return set(json.loads((tmp_path / "ckpt" / "config.json").read_text(encoding="utf-8")))

    before = keys()
    assert not before & set(THRESHOLD_KEYS)
    assert "precision" not in calibrate(ckpt, CalibrateConfig(data=data))
    plain = (tmp_path / "ckpt" / "config.json").read_bytes()
    assert keys() == before
    calibrate(ckpt, CalibrateConfig(data=data, precision=0.5))
    assert keys() == before | set(THRESHOLD_KEYS)
    calibrate(ckpt, CalibrateConfig(data=data))
    assert (tmp_path / "ckpt" / "config.json").read_bytes() == plain


# ---- stored thresholds of a predictor -------------------------------------------------------------------------------

SENTENCE, ENTITIES = (
    "한라희는 누리전자의 대표이고 강릉에서 1999년에 태어났다.",
    [(0, 2, "PER"), (5, 8, "ORG"), (16, 17, "LOC")],
)


def stored(ckpt, **values):
    model, tokenizer = load(ckpt)
    relations = [label for label in model.taxonomy.labels if label != "no_relation"]
    defaults = dict(zip(THRESHOLD_KEYS, (dict.fromkeys(relations, 0.0), SHARES, 0.9), strict=True))
    for key, value in (defaults | values).items():
        setattr(model.config, key, value)
    return ComposedModel.of(model, tokenizer)


def test_stored_thresholds_come_with_their_prior(ckpt):
    member = stored(ckpt)
    found = Predictor([member]).extract(SENTENCE, ENTITIES, "stored")
    shifted = Predictor([member], Decoding(prior=PRIOR)).extract(SENTENCE, ENTITIES, 0)
    assert found == shifted
    assert found != Predictor([member]).extract(SENTENCE, ENTITIES, 0)
    assert Predictor([member], Decoding(prior=PRIOR)).extract(SENTENCE, ENTITIES, "stored") == found
    relation, values = found[0].relation, dict(member.root.config.relation_thresholds)
    without = Predictor([stored(ckpt, relation_thresholds=values | {relation: None})])
    assert without.extract(SENTENCE, ENTITIES, "stored") == [one for one in found if one.relation != relation]


@pytest.mark.parametrize(
    ("values", "decoding", "message"),
    [
        ({"relation_thresholds": None}, Decoding(), "holds none for single relations; `mtl-re calibrate CKPT --prec"),
        ({"relation_thresholds": {"per:title": 0.5}}, Decoding(), "not those of this checkpoint's relations"),
        ({}, Decoding(prior="0.5,0.3,0.2"), "fitted under the prior 0.8,0.1,0.1"),
        ({}, Decoding(restrict="subject_type"), "fitted without --restrict"),
    ],
)
def test_what_cannot_be_applied_is_refused(ckpt, values, decoding, message):
    with pytest.raises(MtlReError, match=f"--threshold stored: .*{message}"):
        Predictor([stored(ckpt, **values)], decoding).extract(SENTENCE, ENTITIES, "stored")


def test_members_with_other_thresholds_cannot_vote(ckpt):
    members = [stored(ckpt), stored(ckpt, relation_thresholds_prior=[])]
    with pytest.raises(MtlReError, match="these checkpoints hold different ones"):
        Predictor(members).extract(SENTENCE, ENTITIES, "stored")
