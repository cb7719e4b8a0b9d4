"""Scores against scikit-learn, counts by hand, and resamples against plain recomputation."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import auc, f1_score, precision_recall_curve

from mtl_re.errors import MtlReError
from mtl_re.scoring import metrics
from mtl_re.taxonomy import KLUE, Taxonomy

TAXONOMY = Taxonomy.from_prefixes()
SMALL = Taxonomy.from_prefixes(["no_relation", "org:a", "org:b", "per:a", "per:b"])
NO_NONE = Taxonomy.from_prefixes(["org:a", "org:b", "per:a", "per:b"])


def draw(seed, rows=200, classes=30, decimals=None, empty=()):
    """Gold (N,), probabilities (N, L) that lean to gold, and their argmax; `empty` classes have no gold row."""
    generator = np.random.default_rng(seed)
    gold = generator.choice([c for c in range(classes) if c not in empty], size=rows)
    probs = generator.dirichlet(np.full(classes, 0.3), size=rows)
    probs[np.arange(rows), gold] += generator.random(rows) * 0.5
    probs /= probs.sum(axis=1, keepdims=True)
    if decimals is not None:
        probs = probs.round(decimals)
    return gold, probs, probs.argmax(axis=1)


def official_auprc(gold, probs, weights=None):
    """KLUE-baseline's definition, through scikit-learn; (L,) in %."""
    areas = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No positive class")
        for label in range(probs.shape[1]):
            precision, recall, _ = precision_recall_curve(gold == label, probs[:, label], sample_weight=weights)
            areas.append(100 * auc(recall, precision))
    return np.array(areas)


def official_f1(gold, pred, labels, average, weights=None):
    return 100 * f1_score(gold, pred, labels=labels, average=average, sample_weight=weights, zero_division=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed, decimals, weighted):
    gold, probs, pred = draw(seed, rows=30 + 50 * seed, decimals=decimals, empty=(3, 29))
    weights = np.random.default_rng(seed).integers(0, 4, len(gold)) * 0.7 if weighted else None
    assert metrics.micro_f1(gold, pred, TAXONOMY, weights) == pytest.approx(
        official_f1(gold, pred, range(1, 30), "micro", weights), abs=1e-9
    )
    official = official_auprc(gold, probs, weights)
    np.testing.assert_allclose(metrics.auprc_by_class(gold, probs, weights), official)
    assert metrics.auprc(gold, probs, weights) == pytest.approx(official.mean())
    occurring = sorted((set(gold) | set(pred)) - {0})
    if not weighted:  # a label whose rows all weigh nothing still "occurs" for scikit-learn
        assert metrics.macro_f1(gold, pred, TAXONOMY) == pytest.approx(official_f1(gold, pred, occurring, "macro"))


def test_integer_weights_equal_repeated_rows():
    gold, probs, pred = draw(1, decimals=1)
    times = np.random.default_rng(1).integers(0, 4, len(gold))
    rows = np.repeat(np.arange(len(gold)), times)
    for score, given in [(metrics.micro_f1, pred), (metrics.macro_f1, pred), (metrics.accuracy, pred)]:
        extra = () if score is metrics.accuracy else (TAXONOMY,)
        weighted = score(gold, given, *extra, weights=times.astype(float))
        assert weighted == pytest.approx(score(gold[rows], given[rows], *extra))
    assert metrics.auprc(gold, probs, times.astype(float)) == pytest.approx(metrics.auprc(gold[rows], probs[rows]))


def test_degenerate_cases():
    gold, probs = np.zeros(4, dtype=int), np.full((4, 5), 0.2)
    assert metrics.micro_f1(gold, gold, SMALL) == 0.0
    assert metrics.macro_f1(gold, gold, SMALL) == 0.0
    np.testing.assert_allclose(metrics.auprc_by_class(gold, probs), [100, 50, 50, 50, 50])
    # One class, all scores tied: the only points are (0, 1) and (1, share of positives).
    assert metrics.auprc_by_class(np.array([0, 1, 1, 1]), np.full((4, 2), 0.5))[0] == pytest.approx(62.5)
    assert metrics.micro_f1(np.array([0, 1]), np.array([0, 1]), NO_NONE) == 100.0
    many = np.full(1000, 4, dtype=np.int8)  # 4 * 30 + 4 does not fit int8 twice over
    assert metrics.confusion_counts(many, many, 100)[4, 4] == 1000


def test_prior_weights_give_the_shares():
    gold, _, pred = draw(2, rows=500, classes=5)
    shares = [0.6, 0.17, 0.23]
    weights = metrics.prior_weights(gold, SMALL, shares)
    coarse = np.array(SMALL.group_of_label)[gold]
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(coarse, weights) / len(gold), shares)
    assert metrics.micro_f1(gold, pred, SMALL, weights) != metrics.micro_f1(gold, pred, SMALL)
    with pytest.raises(MtlReError, match="coarse class 'per'"):
        metrics.prior_weights(np.array([0, 1, 2]), SMALL, shares)
    with pytest.raises(MtlReError, match="2 shares for the 3 coarse classes"):
        metrics.prior_weights(gold, SMALL, [0.5, 0.5])


def test_ece_by_hand():
    confidence, correct = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert metrics.ece(confidence, correct, bins=10) == pytest.approx(100 * (0.5 * 0.45 + 0.5 * 0.45))
    assert metrics.ece(np.array([1.0, 0.0]), np.array([True, False])) == 0
    with pytest.raises(MtlReError, match="not logits"):
        metrics.ece(np.array([2.5]), np.array([True]))


@pytest.mark.parametrize("decimals", [None, 1])
def test_resampled_equals_plain_recomputation(decimals):
    gold, probs, pred = draw(3, rows=80, decimals=decimals, empty=(7,))
    score = metrics.Resampled(gold, pred, probs, TAXONOMY)
    (drawn,) = metrics.multiplicities(len(gold), 10, seed=0)
    assert (drawn.sum(axis=0) == len(gold)).all()
    f1, areas = score(drawn)
    vanished, empty = 0, np.setdiff1d(np.arange(30), gold)
    for column, times in enumerate(drawn.T.astype(int)):
        rows = np.repeat(np.arange(len(gold)), times)
        kept = np.union1d(np.unique(gold[rows]), empty)  # an empty class counts 50, as in the score itself
        vanished += 30 - len(kept)
        assert f1[column] == pytest.approx(official_f1(gold[rows], pred[rows], range(1, 30), "micro"))
        assert areas[column] == pytest.approx(official_auprc(gold[rows], probs[rows])[kept].mean())
    assert vanished > 0
    ones = score(np.ones((len(gold), 1)))
    assert ones[0][0] == pytest.approx(metrics.micro_f1(gold, pred, TAXONOMY))
    assert ones[1][0] == pytest.approx(metrics.auprc(gold, probs))


def test_multiplicities_come_in_chunks_that_sum_to_the_resamples():
    chunks = list(metrics.multiplicities(3000, 1000, seed=5))
    assert len(chunks) > 1
    assert sum(chunk.shape[1] for chunk in chunks) == 1000
    together = np.concatenate(chunks, axis=1)
    assert (together.sum(axis=0) == 3000).all()
    assert together.var() == pytest.approx(1, abs=0.02)  # Poisson-like


def test_intervals_hold_the_score_are_seeded_and_narrow_with_rows():
    widths = []
    for rows in (300, 4800):
        gold, probs, pred = draw(4, rows=rows, classes=5)
        found = metrics.bootstrap_intervals(gold, pred, probs, SMALL, resamples=400, seed=1)
        assert found == metrics.bootstrap_intervals(gold, pred, probs, SMALL, resamples=400, seed=1)
        assert found["micro_f1"][0] < metrics.micro_f1(gold, pred, SMALL) < found["micro_f1"][1]
        assert found["auprc"][0] < metrics.auprc(gold, probs) < found["auprc"][1]
        widths.append(found["micro_f1"][1] - found["micro_f1"][0])
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)  # sixteen times the rows
    assert metrics.bootstrap_intervals(gold, pred, probs, SMALL, resamples=0) == {"micro_f1": None, "auprc": None}


def test_intervals_are_the_quantiles_of_the_draws():
    gold, probs, pred = draw(5, rows=300, classes=5)
    score = metrics.Resampled(gold, pred, probs, SMALL)
    pairs = [score(chunk) for chunk in metrics.multiplicities(len(gold), 200, 3)]
    found = metrics.bootstrap_intervals(gold, pred, probs, SMALL, resamples=200, seed=3)
    for name, values in zip(("micro_f1", "auprc"), zip(*pairs, strict=True), strict=True):
        assert found[name] == pytest.approx(np.quantile(np.concatenate(values), [0.025, 0.975]).tolist(), abs=1e-12)


def test_intervals_cover_the_population_score():
    gold, probs, pred = draw(5, rows=100_000, classes=5)
    truth = {"micro_f1": metrics.micro_f1(gold, pred, SMALL), "auprc": metrics.auprc(gold, probs)}
    generator, covered = np.random.default_rng(0), {"micro_f1": 0, "auprc": 0}
    for seed in range(40):
        rows = generator.integers(len(gold), size=400)
        found = metrics.bootstrap_intervals(gold[rows], pred[rows], probs[rows], SMALL, resamples=200, seed=seed)
        for name, (low, high) in found.items():
            covered[name] += low <= truth[name] <= high
    assert all(35 <= count <= 40 for count in covered.values()), covered


REPORT_KEYS = [
    *("n", "micro_f1", "auprc", "macro_f1", "accuracy", "ci", "coarse", "gate", "fine", "errors", "disagreement"),
    *("ece", "per_label", "gate_mode", "prior", "empty_classes"),
]


@pytest.mark.parametrize("layout", ["hierarchical", "flat"])
def test_report_has_the_contract_keys_and_is_json(layout):
    taxonomy = Taxonomy.from_prefixes(layout=layout)
    gold, probs, pred = draw(6, empty=(0, 12))
    found = metrics.all_metrics(gold, probs, pred, pred, "hard", taxonomy, prior="em", resamples=20)
    assert list(found) == REPORT_KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["ci"]) == {"micro_f1", "auprc"}
    assert set(found["coarse"]) == {"accuracy", "confusion"}
    assert set(found["gate"]) == {"precision", "recall", "f1"}
    assert set(found["fine"]) == {"org", "per"}
    assert list(found["per_label"]) == list(KLUE)
    assert all(set(v) == {"precision", "recall", "f1", "auprc", "support"} for v in found["per_label"].values())
    assert found["empty_classes"] == ["no_relation", KLUE[12]]
    assert found["per_label"][KLUE[12]]["auprc"] is None
    assert (found["n"], found["gate_mode"], found["prior"]) == (200, "hard", "em")
    assert sum(entry["support"] for entry in found["per_label"].values()) == 200


def test_report_counts_by_hand():
    #              none      none    org:a   org:a   org:b   per:a   per:a
    gold = np.array([0, 0, 1, 1, 2, 3, 3])
    hard = np.array([0, 1, 1, 2, 0, 1, 3])  # right, false alarm, right, wrong label, missed, wrong branch, right
    soft = np.array([0, 0, 1, 2, 0, 1, 3])
    probs = np.full((7, 5), 0.1)
    probs[np.arange(7), hard] = 0.6
    probs[4, 2] = 0.3  # given org, row 4 is right
    probs[5, 4] = 0.2  # given per, row 5 is wrong
    found = metrics.all_metrics(gold, probs, hard, soft, "hard", SMALL, resamples=5)
    assert found["errors"] == {"missed": 1, "false_alarm": 1, "wrong_branch": 1, "wrong_label": 1}
    assert found["accuracy"] == pytest.approx(100 * 3 / 7)
    assert found["micro_f1"] == pytest.approx(100 * 2 * 2 / (5 + 5))
    assert found["gate"] == pytest.approx({"precision": 80, "recall": 80, "f1": 80})
    assert found["coarse"]["accuracy"] == pytest.approx(100 * 4 / 7)
    assert found["coarse"]["confusion"]["no_relation"] == {"no_relation": 1, "org": 1, "per": 0}
    assert found["coarse"]["confusion"]["per"] == {"no_relation": 0, "org": 1, "per": 1}
    assert found["fine"] == pytest.approx({"org": 100 * 2 / 3, "per": 50.0})
    assert found["disagreement"] == pytest.approx(100 / 7)
    assert found["ece"] == pytest.approx(100 * (0.6 - 3 / 7))
    assert found["per_label"]["org:a"]["precision"] == pytest.approx(100 / 3)
    assert found["per_label"]["org:a"]["recall"] == pytest.approx(50)
    assert found["per_label"]["org:a"]["f1"] == pytest.approx(40)
    assert found["empty_classes"] == ["per:b"]
    by_soft = metrics.all_metrics(gold, probs, hard, soft, "soft", SMALL, resamples=5)
    assert by_soft["errors"]["false_alarm"] == 0
    assert by_soft["fine"] == found["fine"]


@pytest.mark.parametrize("seed", range(3))
def test_error_kinds_sum_to_the_wrong_rows(seed):
    gold, probs, pred = draw(seed, rows=300)
    found = metrics.all_metrics(gold, probs, pred, pred, "soft", TAXONOMY, resamples=0)
    assert sum(found["errors"].values()) == (gold != pred).sum()
    assert found["ci"] == {"micro_f1": None, "auprc": None}


def test_report_without_no_relation_and_with_an_absent_branch():
    gold, probs = np.array([0, 1, 1]), np.full((3, 4), 0.25)
    found = metrics.all_metrics(gold, probs, gold, gold, "hard", NO_NONE, resamples=5)
    assert found["gate"] == {"precision": None, "recall": None, "f1": None}
    assert found["fine"]["per"] is None
    assert found["micro_f1"] == 100.0
    assert found["errors"] == {"missed": 0, "false_alarm": 0, "wrong_branch": 0, "wrong_label": 0}


@pytest.mark.parametrize(
    ("gold", "probs", "message"),
    [
        ([], np.zeros((0, 5)), "at least one row"),
        ([0, 1], np.full((3, 5), 0.2), "3 rows, gold: 2"),
        ([0, 5], np.full((2, 5), 0.2), "expected 0 to 4"),
        ([0, -100], np.full((2, 5), 0.2), "label index -100"),
        ([0, 1], np.full((2, 4), 0.2), r"expected \(N, 5\)"),
        ([0, 1], np.array([[0.2] * 5, [0.2] * 4 + [np.nan]]), "row 1 .*not finite"),
        ([0.0, 1.0], np.full((2, 5), 0.2), "integer label indices"),
    ],
)
def test_report_refuses(gold, probs, message):
    gold = np.array(gold, dtype=None if len(gold) else int)
    with pytest.raises(MtlReError, match=message):
        metrics.all_metrics(gold, probs, gold, gold, "hard", SMALL, resamples=5)


def test_other_refusals():
    gold, probs, pred = draw(0, rows=10, classes=5)
    with pytest.raises(MtlReError, match="'hard' or 'soft'"):
        metrics.all_metrics(gold, probs, pred, pred, "both", SMALL)  # type: ignore[arg-type]
    with pytest.raises(MtlReError, match="pred: 9 rows, gold: 10"):
        metrics.micro_f1(gold, pred[1:], SMALL)
    for weights in (np.ones(9), np.zeros(10), -np.ones(10), np.full(10, np.inf)):
        with pytest.raises(MtlReError, match="weights"):
            metrics.accuracy(gold, pred, weights)


HF_METRIC = """
import json, sys
import evaluate, numpy as np
from mtl_re.hf_metric import KlueReMetric
probs, gold = np.array(json.load(open(sys.argv[1]))["probs"]), json.load(open(sys.argv[1]))["gold"]
for metric in (KlueReMetric(), evaluate.load("mtl_re/hf_metric.py")):
    print(json.dumps(metric.compute(predictions=probs, references=gold)))
"""


@pytest.mark.slow
def test_hf_metric_loads_offline_both_ways(tmp_path):
    gold, probs, pred = draw(8)
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"probs": probs.tolist(), "gold": gold.tolist()}))
    root = Path(__file__).parents[2]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HF_METRIC, str(given)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = {"micro_f1": metrics.micro_f1(gold, pred, TAXONOMY), "auprc": metrics.auprc(gold, probs)}
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected, expected]


@pytest.mark.slow
def test_hf_metric_refuses_other_widths(tmp_path):
    from mtl_re.hf_metric import KlueReMetric

    with pytest.raises(MtlReError, match="29 values; expected 30"):
        KlueReMetric(cache_dir=str(tmp_path)).compute(predictions=[[0.1] * 29], references=[0])
