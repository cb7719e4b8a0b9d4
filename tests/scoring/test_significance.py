"""Paired statistics: exact values, arms that do not differ, effects of known size, and files that do not fit."""

import itertools
import json
import math

import numpy as np
import pytest
from conftest import sample_examples

from mtl_re.config import CompareConfig
from mtl_re.errors import MtlReError
from mtl_re.scoring import metrics, significance
from mtl_re.scoring.writers import Prediction, write_predictions
from mtl_re.taxonomy import Taxonomy

LABELS = ["no_relation", "org:a", "org:b", "per:a"]
TAXONOMY = Taxonomy.from_prefixes(LABELS)


def arm(generator, gold, strength):
    """Probabilities (N, 4) that lean to gold by `strength`, and their argmax."""
    probs = generator.dirichlet(np.ones(4), size=len(gold))
    probs[np.arange(len(gold)), gold] += strength * generator.random(len(gold))
    probs /= probs.sum(axis=1, keepdims=True)
    return probs.argmax(axis=1), probs


def two_arms(seed, rows, strength_a, strength_b):
    generator = np.random.default_rng(seed)
    gold = generator.integers(4, size=rows)
    (pred_a, probs_a), (pred_b, probs_b) = arm(generator, gold, strength_a), arm(generator, gold, strength_b)
    return gold, pred_a, pred_b, probs_a, probs_b


def test_identical_arms_do_not_differ():
    gold, pred, _, probs, _ = two_arms(0, 200, 0.5, 0.5)
    found = significance.paired_bootstrap(gold, pred, pred, probs, probs, TAXONOMY, resamples=200)
    expected = {"difference": 0.0, "ci": [0.0, 0.0], "p": 1.0}
    assert found == {"micro_f1": expected, "auprc": expected}


def test_difference_is_b_minus_a_and_swaps_sign():
    gold, pred_a, pred_b, probs_a, probs_b = two_arms(1, 400, 0.3, 1.0)
    found = significance.paired_bootstrap(gold, pred_a, pred_b, probs_a, probs_b, TAXONOMY, resamples=300)
    f1 = metrics.micro_f1(gold, pred_b, TAXONOMY) - metrics.micro_f1(gold, pred_a, TAXONOMY)
    assert found["micro_f1"]["difference"] == pytest.approx(f1)
    area = metrics.auprc(gold, probs_b) - metrics.auprc(gold, probs_a)
    assert found["auprc"]["difference"] == pytest.approx(area)
    assert found["micro_f1"]["p"] == pytest.approx(2 / 301)  # no resample on the other side
    assert 0 < found["micro_f1"]["ci"][0] < f1 < found["micro_f1"]["ci"][1]
    swapped = significance.paired_bootstrap(gold, pred_b, pred_a, probs_b, probs_a, TAXONOMY, resamples=300)
    assert swapped["auprc"]["ci"] == pytest.approx([-x for x in reversed(found["auprc"]["ci"])])
    assert swapped["auprc"]["p"] == found["auprc"]["p"]


def test_pairing_is_narrower_than_two_intervals():
    """Arms that agree on most rows share the luck of the draw; the same resample for both cancels it."""
    gold, pred_a, _, probs_a, _ = two_arms(2, 500, 0.6, 0.6)
    pred_b, probs_b = pred_a.copy(), probs_a.copy()
    pred_b[:10] = gold[:10]
    paired = significance.paired_bootstrap(gold, pred_a, pred_b, probs_a, probs_b, TAXONOMY, resamples=400)
    alone = metrics.bootstrap_intervals(gold, pred_a, probs_a, TAXONOMY, resamples=400)["micro_f1"]
    low, high = paired["micro_f1"]["ci"]
    assert high - low < 0.5 * (alone[1] - alone[0])
    assert paired["auprc"] == {"difference": 0.0, "ci": [0.0, 0.0], "p": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_known_effect_is_covered_at_the_nominal_rate(strength):
    """200 draws of 300 rows from a population whose true difference is known (0 in the first case)."""
    gold, pred_a, pred_b, probs_a, probs_b = two_arms(3, 100_000, 0.5, strength)
    truth = {
        "micro_f1": metrics.micro_f1(gold, pred_b, TAXONOMY) - metrics.micro_f1(gold, pred_a, TAXONOMY),
        "auprc": metrics.auprc(gold, probs_b) - metrics.auprc(gold, probs_a),
    }
    generator, covered, small = np.random.default_rng(4), dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for seed in range(200):
        rows = generator.integers(len(gold), size=300)
        arrays = (array[rows] for array in (gold, pred_a, pred_b, probs_a, probs_b))
        found = significance.paired_bootstrap(*arrays, TAXONOMY, resamples=200, seed=seed)
        for name, entry in found.items():
            covered[name] += entry["ci"][0] <= truth[name] <= entry["ci"][1]
            small[name] += entry["p"] < 0.05
    assert all(180 <= count <= 199 for count in covered.values()), covered
    if strength == 0.5:
        assert all(count <= 20 for count in small.values()), small
    else:
        assert all(count >= 60 for count in small.values()), small


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # all of one sign: the smallest five pairs can give
        ([-1, 2, 3, 4, 5], 4 / 32),
        ([0.1, 0.2, -0.3], 1.0),  # sums to nothing, but for rounding
        ([0, 0, 0], 1.0),
        ([1], 1.0),
        ([1, -1, 1, 1], 10 / 16),  # |sum| >= 2 by ten of sixteen
    ],
)
def test_permutation_test_is_exact(differences, p):
    found = significance.permutation_test(differences)
    assert found["p"] == p
    assert found["smallest_p"] == 2 / 2 ** len(differences)
    assert found["exact"]
    assert found["mean"] == pytest.approx(np.mean(differences))


def test_permutation_test_sees_through_rounding():
    """Tenths tie on paper and not in binary; tenfold, as integers, they tie in both."""
    for seed in range(100):
        whole = np.random.default_rng(seed).integers(-9, 20, size=6)
        assert significance.permutation_test(whole / 10)["p"] == significance.permutation_test(whole)["p"]


def test_permutation_test_agrees_with_an_enumeration_and_with_random_flips():
    values = np.random.default_rng(0).normal(0.4, 1, size=12)
    flipped = np.array(list(itertools.product([1, -1], repeat=12))) @ values
    expected = np.mean(abs(flipped) >= abs(values.sum()) - 1e-12)
    assert significance.permutation_test(values)["p"] == pytest.approx(expected)
    many = np.random.default_rng(1).normal(0.3, 1, size=40)
    drawn = significance.permutation_test(many)
    flipped = np.random.default_rng(2).choice([1, -1], size=(20_000, 40)) @ many
    assert not drawn["exact"]
    assert drawn == significance.permutation_test(many)
    assert drawn["p"] == pytest.approx(np.mean(abs(flipped) >= abs(many.sum())), abs=0.01)
    assert drawn["smallest_p"] == 2 / (significance.DRAWS + 1)


def test_seed_interval_is_students():
    found = significance.seed_interval([70.0, 71.0, 72.0, 71.5, 70.5])
    assert found["mean"] == pytest.approx(71)
    assert found["sd"] == pytest.approx(0.7905694)
    assert found["ci"] == pytest.approx([71 - 0.98162, 71 + 0.98162], abs=1e-4)  # 2.7764 * sd / sqrt(5)
    assert significance.seed_interval([70.0]) == {"n": 1, "mean": 70.0, "sd": None, "ci": None}


def test_t_test_is_the_interval_said_as_a_p():
    values = [0.3, 1.2, -0.1, 0.9, 0.6]
    found = significance.t_test(values)
    assert found == pytest.approx(0.06275, abs=5e-6)  # t = 2.558 on 4 degrees of freedom
    assert significance.t_test([-value for value in values]) == found
    low, high = significance.seed_interval(values, level=1 - found)["ci"]
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)
    assert significance.t_test([5.0]) == significance.t_test([0.0, 0.0]) == 1.0
    assert significance.t_test([2.0, 2.0]) == 0.0


def test_detectable_differences_are_those_of_power_tables():
    # Cohen's d of a two-sided paired t test at 5 % with power 80 %, as G*Power and statsmodels give it
    for pairs, size in ((3, 3.26404), (5, 1.68200), (10, 0.99600)):
        assert significance.detectable_mean(pairs) == pytest.approx(size, abs=1e-4)
    assert significance.detectable_mean(1) == math.inf
    low, high = significance.sd_factors(5)  # sqrt(4 / 11.143) and sqrt(4 / 0.4844), chi-squared tables
    assert (low, high) == pytest.approx((0.599, 2.874), abs=1e-3)


@pytest.mark.parametrize(("pairs", "comparisons"), [(3, 13), (5, 6)])
def test_a_detectable_difference_is_shown_in_four_studies_of_five(pairs, comparisons):
    studies = np.random.default_rng(0).normal(significance.detectable_mean(pairs, comparisons), size=(600, pairs))
    shown = sum(significance.t_test(study.tolist()) * comparisons < significance.LEVEL for study in studies)
    assert shown / len(studies) == pytest.approx(significance.POWER, abs=3 * math.sqrt(0.8 * 0.2 / len(studies)))


def test_holm_known_values():
    # statsmodels.stats.multitest.multipletests(p, method="holm")[1]
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.5, 0.9, 0.6]) == pytest.approx([1, 1, 1])
    assert significance.holm([0.0625]) == [0.0625]
    assert significance.holm([]) == []


def test_mcnemar_by_hand():
    assert significance.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert significance.mcnemar(0, 0) == 1.0
    assert significance.mcnemar(7, 7) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: significance.holm([0.1, float("nan")]), "numbers 0-1"),
        (lambda: significance.permutation_test([]), "at least one"),
        (lambda: significance.seed_interval([1.0, float("inf")]), "finite"),
        (lambda: significance.seed_interval([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: significance.t_test([]), "at least one"),
        (lambda: significance.detectable_mean(0), "pairs: 0"),
        (lambda: significance.detectable_mean(3, 0), "comparisons: 0"),
        (lambda: significance.paired_bootstrap(*two_arms(0, 9, 1, 1), TAXONOMY, resamples=0), "at least 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(MtlReError, match=message):
        call()


# ---- files ---------------------------------------------------------------------------------------------------


def rows_of(gold, pred, probs):
    return [
        {
            "id": f"row-{i}",
            "label": LABELS[pred[i]],
            "gold": LABELS[gold[i]],
            "score": float(probs[i].max()),
            "coarse": {},
            "probs": dict(zip(LABELS, probs[i].tolist(), strict=True)),
        }
        for i in range(len(gold))
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pair(tmp_path):
    gold, pred_a, pred_b, probs_a, probs_b = arrays = two_arms(5, 60, 0.3, 1.0)
    return arrays, rows_of(gold, pred_a, probs_a), rows_of(gold, pred_b, probs_b), tmp_path


def test_compare_files(pair):
    (gold, pred_a, pred_b, probs_a, probs_b), rows_a, rows_b, folder = pair
    for row in rows_b:  # the order of keys says nothing
        row["probs"] = dict(reversed(row["probs"].items()))
    a, b = write(folder / "a.jsonl", rows_a), write(folder / "b.jsonl", rows_b)
    found = significance.compare_files(a, b, CompareConfig(200, 3))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    expected = significance.paired_bootstrap(gold, pred_a, pred_b, probs_a, probs_b, TAXONOMY, resamples=200, seed=3)
    assert {name: found[name] for name in ("micro_f1", "auprc")} == expected
    assert found["a"]["micro_f1"] == metrics.micro_f1(gold, pred_a, TAXONOMY)
    assert found["b"]["auprc"] == metrics.auprc(gold, probs_b)
    assert (found["n"], found["no_relation"]) == (60, "no_relation")
    assert found["only_b_right"] == ((pred_b == gold) & (pred_a != gold)).sum()
    assert found["mcnemar_p"] == significance.mcnemar(found["only_a_right"], found["only_b_right"])
    same = significance.compare_files(a, a, CompareConfig(50))
    assert same["micro_f1"] == same["auprc"] == {"difference": 0.0, "ci": [0.0, 0.0], "p": 1.0}
    assert (same["only_a_right"], same["only_b_right"], same["mcnemar_p"]) == (0, 0, 1.0)


def test_micro_f1_leaves_out_what_the_label_set_calls_no_relation(pair, capsys):
    """`Other`, say: by the map of `--heads`, as `evaluate` and `errors` do; without the map it is told."""
    (gold, pred_a, _, _, _), *arms, folder = pair
    for rows in arms:
        for row in rows:
            for key in ("label", "gold"):
                row[key] = row[key].replace("no_relation", "Other")
            row["probs"] = {label.replace("no_relation", "Other"): value for label, value in row["probs"].items()}
    a, b = (write(folder / f"{name}.jsonl", rows) for name, rows in zip("ab", arms, strict=True))
    heads = folder / "heads.yaml"
    heads.write_text("no_relation: Other\ngroups: {Other: [Other], org: ['org:a', 'org:b'], per: ['per:a']}\n")
    found = significance.compare_files(a, b, CompareConfig(50, heads=str(heads)))
    assert found["no_relation"] == "Other"
    assert found["a"]["micro_f1"] == metrics.micro_f1(gold, pred_a, TAXONOMY)
    assert not capsys.readouterr().err
    assert significance.compare_files(a, b, CompareConfig(50))["no_relation"] is None
    assert "no label is called no_relation, so all 4 count as relations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3].update(id="other"), r"b.jsonl:4: id: 'other', but .*a.jsonl:4 has 'row-3'"),
        (lambda rows: rows.pop(3), r"b.jsonl:4: id: 'row-4', but .*a.jsonl:4 has 'row-3'"),
        (lambda rows: rows.pop(), r"a.jsonl:60: id: 'row-59' has no counterpart; .*b.jsonl ends after 59 row"),
        (lambda rows: rows.append(rows[0]), r"b.jsonl:61: .*a.jsonl ends after 60 row"),
        (lambda rows: rows.clear(), r"a.jsonl:1: .*b.jsonl ends after 0 row"),
        (lambda rows: rows[2].update(gold=LABELS[1 - LABELS.index(rows[2]["gold"])]), r"b.jsonl:3: gold: "),
        (lambda rows: rows[2].pop("gold"), r"b.jsonl:3: gold: missing"),
        (lambda rows: rows[2].update(label="per:z"), r"b.jsonl:3: label: 'per:z'; expected one of the 4"),
        (lambda rows: rows[2].update(label=1), r"b.jsonl:3: label: 1"),
        (lambda rows: rows[2].pop("id"), r"b.jsonl:3: id: missing"),
        (lambda rows: rows[2].pop("probs"), r"b.jsonl:3: probs: missing"),
        (lambda rows: rows[2]["probs"].pop("org:a"), r"b.jsonl:3: probs: \['org:a'\] differ"),
        (lambda rows: rows[2]["probs"].update({"org:a": "0.5"}), r"b.jsonl:3: probs: 'org:a' is '0.5'"),
        (lambda rows: rows[2]["probs"].update({"org:a": float("nan")}), r"b.jsonl:3: probs: 'org:a' is nan"),
        (lambda rows: rows[2]["probs"].update({"org:a": 3.2}), r"'org:a' is 3.2; expected a probability"),
    ],
)
def test_compare_files_names_the_first_row_at_fault(pair, change, message):
    _, rows_a, rows_b, folder = pair
    rows_b[2]["gold"] = rows_a[2]["gold"] = LABELS[0]
    change(rows_b)
    with pytest.raises(MtlReError, match=message):
        significance.compare_files(
            write(folder / "a.jsonl", rows_a), write(folder / "b.jsonl", rows_b), CompareConfig(10)
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1\n', r"b.jsonl:1: not JSON"),
        (b"[1]\n", r"b.jsonl:1: list; expected one JSON object"),
        (b"\xff\xfe\n", r"b.jsonl: cannot be read as UTF-8"),
        (None, r"b.jsonl: cannot be read .*No such file"),
    ],
)
def test_compare_files_refuses_files_that_are_not_jsonl(pair, content, message):
    _, rows_a, _, folder = pair
    b = folder / "b.jsonl"
    if content is not None:
        b.write_bytes(content)
    with pytest.raises(MtlReError, match=message):
        significance.compare_files(write(folder / "a.jsonl", rows_a), b, CompareConfig(10))


def test_compare_files_refuses_empty_files(tmp_path):
    with pytest.raises(MtlReError, match="no rows to compare"):
        significance.compare_files(write(tmp_path / "a.jsonl", []), write(tmp_path / "b.jsonl", []), CompareConfig(10))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_submissions_are_compared_with_gold_labels_from_the_data(tmp_path, suffix):
    taxonomy = Taxonomy.from_option("hierarchical")
    rows = sample_examples("valid", 40)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row.to_row()) + "\n" for row in rows))
    files, probs = [], [np.random.default_rng(seed).dirichlet(np.ones(30), len(rows)) for seed in range(2)]
    for name, values in zip("ab", probs, strict=True):
        made = [
            Prediction.of(row.id, value, int(value.argmax()), taxonomy, None)
            for row, value in zip(rows, values, strict=True)
        ]
        files.append(tmp_path / f"{name}{suffix}")
        write_predictions(made, files[-1], taxonomy)
    result = significance.compare_files(*files, CompareConfig(resamples=50, data=str(tmp_path / "rows.jsonl")))
    gold = np.array([taxonomy.labels.index(row.label) for row in rows])
    for name, values in zip("ab", probs, strict=True):
        assert result[name]["micro_f1"] == pytest.approx(metrics.micro_f1(gold, values.argmax(1), taxonomy))
        assert result[name]["auprc"] == pytest.approx(metrics.auprc(gold, values))
    with pytest.raises(MtlReError, match="gold: missing"):
        significance.compare_files(*files, CompareConfig(resamples=50))
    more = sample_examples("valid", 41)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row.to_row()) + "\n" for row in more))
    with pytest.raises(MtlReError, match=r"ends after 40 row\(s\); .*more\.jsonl:41 .*has no prediction"):
        significance.compare_files(*files, CompareConfig(resamples=50, data=str(tmp_path / "more.jsonl")))
    (tmp_path / "odd.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + '{"sentence": ""}\n')
    odd = CompareConfig(resamples=50, data=str(tmp_path / "odd.jsonl"), on_bad_row="skip")
    assert significance.compare_files(*files, odd)["n"] == 40
