"""A study's report: its arithmetic, and that its intervals keep their word where the truth is known."""

import csv
import importlib
import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mtl_re import figures
from mtl_re.cli import main
from mtl_re.config import SampleConfig
from mtl_re.data import sample
from mtl_re.data.loading import load_examples, write_rejected
from mtl_re.data.readers import file_digest
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError
from mtl_re.scoring import significance
from mtl_re.scoring.decoding import Decoded
from mtl_re.scoring.metrics import auprc, micro_f1
from mtl_re.scoring.significance import paired_bootstrap
from mtl_re.study import arm_statistics, cell_logits, report_heading, scored_arms
from mtl_re.study import pictures as ablation_pictures
from mtl_re.study import report as ablation_report
from mtl_re.study.arm_statistics import Difference, cell_metrics, compare, draws, holm_adjusted
from mtl_re.study.cell_logits import CellLogits, DecodedCell, compose, decode_cell, vote
from mtl_re.study.mixture import ternary
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.study.study import Cell, Study, StudyDecoding
from mtl_re.study.study_file import load_study
from mtl_re.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_dict({"groups": {"none": ["no_relation"], "a": ["a:1", "a:2"], "b": ["b:1", "b:2"]}})
LABELS = len(TAXONOMY.labels)
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
HEADS = {head.name: len(head.classes) for head in TAXONOMY.heads}


def as_read(gold, labels, rows="rows"):
    probs = np.full((len(gold), LABELS), 0.1)
    probs[np.arange(len(gold)), labels] = 0.6
    return DecodedCell(gold, Decoded(torch.from_numpy(probs), TAXONOMY, StudyDecoding()), rows)


def predict(generator, gold, skill):
    """Labels that are right with probability `skill` (a number, or one a row), else drawn from all."""
    return np.where(generator.random(len(gold)) < skill, gold, generator.integers(LABELS, size=len(gold)))


def golds(generator, rows):
    return generator.choice(LABELS, rows, p=[0.4, 0.15, 0.15, 0.15, 0.15])


def expected_f1(skill, shares):
    """Micro-F1 of `predict` as its rows become many."""
    related = 1 - shares[0]
    hits = sum(share * (skill + (1 - skill) / LABELS) for share in shares[1:])
    predicted = (
        related * (skill + (1 - skill) * (LABELS - 1) / LABELS) + shares[0] * (1 - skill) * (LABELS - 1) / LABELS
    )
    return 100 * 2 * hits / (predicted + related)


SHARES = [0.4, 0.15, 0.15, 0.15, 0.15]
TRUTH = expected_f1(0.75, SHARES) - expected_f1(0.65, SHARES)


# ---- intervals -----------------------------------------------------------------------------------------------------


def simulated(number, rows, seeds, skills, seed_sd=0.0, same_rows=None, resamples=200):
    """Differences of two arms of known skill on fresh rows (or on given ones)."""
    generator = np.random.default_rng(number)
    gold = golds(generator, rows) if same_rows is None else same_rows
    arms = []
    for skill in skills:
        arms.append(
            {
                seed: as_read(gold, predict(generator, gold, np.clip(skill + seed_sd * generator.normal(), 0, 1)))
                for seed in range(seeds)
            }
        )
    return {d.score: d for d in compare(("b", "hard", "a/hard"), arms[1], arms[0], resamples)}


def covered(interval, truth):
    return interval[0] <= truth <= interval[1]


@pytest.mark.slow
def test_the_interval_over_rows_covers_a_known_effect_at_its_nominal_rate():
    """Fresh rows every time, trainings that differ only in their rows' noise."""
    found = [simulated(number, 300, 2, (0.65, 0.75))["micro_f1"] for number in range(200)]
    rate = np.mean([covered(difference.rows_ci, TRUTH) for difference in found])
    assert 0.90 <= rate <= 0.985, rate
    assert abs(np.mean([difference.difference for difference in found]) - TRUTH) < 0.6


@pytest.mark.slow
def test_the_interval_over_seeds_covers_a_known_effect_at_its_nominal_rate():
    """The same rows every time, trainings whose skill varies; the truth is the mean over very many trainings."""
    gold = np.repeat(np.arange(LABELS), [120, 45, 45, 45, 45])
    found = [simulated(number, 300, 5, (0.65, 0.75), 0.03, gold, 1)["micro_f1"] for number in range(200)]
    truth = np.mean([difference.difference for difference in found])
    assert abs(truth - TRUTH) < 0.7
    rate = np.mean([covered(difference.seeds_ci, truth) for difference in found])
    assert 0.91 <= rate <= 0.985, rate


@pytest.mark.slow
def test_two_arms_of_equal_skill_are_seldom_called_different():
    found = [holm_adjusted(list(simulated(number, 200, 5, (0.7, 0.7)).values())) for number in range(100)]
    verdicts = [difference.verdict for pair in found for difference in pair if difference.score == "micro_f1"]
    assert verdicts.count("no difference shown") >= 94


def test_a_large_effect_is_called_by_its_sign():
    up, down = (holm_adjusted(list(simulated(1, 600, 5, skills).values())) for skills in ((0.4, 0.9), (0.9, 0.4)))
    assert {difference.verdict for difference in up} == {"better"}
    assert {difference.verdict for difference in down} == {"worse"}


def test_identical_arms_show_no_difference():
    generator = np.random.default_rng(0)
    gold = golds(generator, 200)
    arm = {seed: as_read(gold, predict(generator, gold, 0.7)) for seed in range(5)}
    for difference in holm_adjusted(compare(("b", "hard", "a"), dict(arm), arm, 300)):
        assert (difference.difference, difference.rows_ci, difference.seeds_ci) == (0.0, (0.0, 0.0), (0.0, 0.0))
        found = (difference.rows_p, difference.seeds_p, difference.seeds_t_p)
        assert {*found, difference.rows_holm, difference.seeds_holm, difference.seeds_t_holm} == {1.0}
        assert difference.verdict == "no difference shown"


def test_one_seed_is_the_paired_bootstrap_and_never_a_verdict():
    generator = np.random.default_rng(3)
    gold = golds(generator, 150)
    a, b = predict(generator, gold, 0.3), predict(generator, gold, 0.9)
    ours, base = as_read(gold, b), as_read(gold, a)
    found = {d.score: d for d in compare(("b", "hard", "a"), {1: ours}, {1: base}, 400)}
    reference = paired_bootstrap(gold, a, b, base.probs, ours.probs, TAXONOMY, 400)
    for score, values in reference.items():
        assert found[score].difference == pytest.approx(values["difference"])
        assert found[score].rows_ci == pytest.approx(values["ci"])
        assert found[score].rows_p == pytest.approx(values["p"])
        assert found[score].seeds_ci is None
        assert found[score].verdict == "no difference shown"


def test_seeds_with_their_own_rows_are_resampled_apart():
    generator = np.random.default_rng(5)
    ours, base = {}, {}
    for seed in range(2):
        gold = golds(generator, 120)
        ours[seed], base[seed] = (as_read(gold, predict(generator, gold, s), rows=f"{seed}") for s in (0.8, 0.5))
    apart = compare(("b", "hard", "a"), ours, base, 300)[0]
    streams = [draws(part[seed], 300, seed)[1][0] for part in (ours, base) for seed in range(2)]
    by_hand = (streams[0] + streams[1] - streams[2] - streams[3]) / 2
    assert apart.rows_ci == pytest.approx(np.quantile(by_hand, [0.025, 0.975]))
    with pytest.raises(MtlReError, match="different rows"):
        compare(("b", "hard", "a"), {0: ours[0]}, {0: base[1]}, 10)
    with pytest.raises(MtlReError, match="no finished seed in common"):
        compare(("b", "hard", "a"), {0: ours[0]}, {1: base[1]}, 10)


def test_scores_that_leave_out_other_labels_are_not_compared():
    generator = np.random.default_rng(6)
    gold = golds(generator, 40)
    one = as_read(gold, predict(generator, gold, 0.8))
    other = replace(one, decoded=replace(one.decoded, taxonomy=replace(one.taxonomy, no_relation=None)))
    with pytest.raises(MtlReError, match="labels without a relation"):
        compare(("b", "hard", "a"), {0: one}, {0: other}, 10)
    with pytest.raises(MtlReError, match="a vote needs models"):
        vote([one, other])


def test_five_seeds_say_what_they_cannot_reach():
    difference = simulated(1, 100, 5, (0.3, 0.9))["micro_f1"]
    assert (difference.seeds, difference.seeds_p, difference.smallest_p) == (5, 0.0625, 0.0625)


def test_holm_runs_over_the_comparisons_of_one_score():
    values = {"rows_ci": (0.0, 1.0), "seeds_ci": (0.1, 1.0), "seeds_sd": 0.5, "seeds_p": 0.5, "smallest_p": 0.06}
    found = [
        Difference(arm, "hard", "a", score, 5, 1.0, rows_p=p, seeds_t_p=t, **values)
        for score, pairs in (("micro_f1", ((0.01, 0.02), (0.04, 0.03))), ("auprc", ((0.2, 0.001), (0.02, 0.03))))
        for arm, (p, t) in zip("bc", pairs, strict=True)
    ]
    result = holm_adjusted(found)
    assert [d.rows_holm for d in result] == pytest.approx([0.02, 0.04, 0.2, 0.04])
    assert [d.seeds_t_holm for d in result] == pytest.approx([0.04, 0.04, 0.002, 0.03])
    assert [d.verdict for d in result] == ["better", "better", "no difference shown", "better"]
    # of two comparisons in a score; half an SD of 1
    assert {d.seeds_detectable for d in result} == {0.5 * significance.detectable_mean(5, 2)}


@pytest.mark.parametrize(
    ("rows_holm", "seeds_t_holm", "verdict"),
    [
        (0.001, 0.04, "better"),
        (0.001, 0.06, "no difference shown"),  # though its own interval excludes 0: it is one of many
        (0.2, 0.04, "no difference shown"),
    ],
)
def test_a_difference_is_shown_over_rows_and_over_seeds_or_not_at_all(rows_holm, seeds_t_holm, verdict):
    values = {"rows_ci": (0.5, 1.5), "rows_p": 0.001, "seeds_ci": (0.1, 2.0), "seeds_sd": 0.5, "seeds_t_p": 0.03}
    values |= {"seeds_p": 0.06, "smallest_p": 0.06, "rows_holm": rows_holm, "seeds_t_holm": seeds_t_holm}
    assert Difference("b", "hard", "a", "micro_f1", 5, 1.0, **values).verdict == verdict


def test_the_picture_of_differences_greys_what_is_not_shown(tmp_path, monkeypatch):
    """A picture drawn from the intervals alone would colour what the correction takes back."""
    values = {"rows_ci": (0.5, 1.5), "rows_p": 0.001, "seeds_sd": 0.5, "seeds_t_p": 0.03, "seeds_p": 0.06}
    values |= {"smallest_p": 0.06, "rows_holm": 0.001}
    compared = [
        Difference("shown", "hard", "a", "micro_f1", 5, 1.0, **values, seeds_ci=(0.1, 2.0), seeds_t_holm=0.04),
        Difference("taken", "hard", "a", "micro_f1", 5, 1.0, **values, seeds_ci=(0.1, 2.0), seeds_t_holm=0.06),
        Difference("alone", "hard", "a", "micro_f1", 1, 1.0, **values, seeds_ci=None),
    ]
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: drawn.append(figure))
    monkeypatch.setattr(figures, "whole_file", lambda path: nullcontext(path))
    names = {"micro_f1": "micro-F1", "auprc": "AUPRC"}
    ablation_pictures.differences(compared, names, tmp_path / "differences.png")
    scored, empty = drawn[0].axes
    colours = [line.get_color() for line in scored.lines[1:]]  # behind the line at zero
    first = figures.COLORS[0]
    assert colours == [*[first] * 3, *[figures.GREY] * 3, *[figures.GREY] * 2]
    assert len(empty.lines) == 1
    low, high = scored.get_xlim()
    assert low < 0 < 1.5 < high


def test_a_study_of_null_arms_seldom_gives_a_verdict():
    """Trainings scatter and nothing else differs: over rows each model is surely another, so seeds must hold it back.

    13 arms and their baseline, 3 seeds, as in our screens; with uncorrected intervals over seeds 40 % had a verdict.
    """
    trained = np.random.default_rng(0).normal(size=(150, 14, 3))  # studies, arms, seeds
    shown = 0
    for arms in trained[:, 1:] - trained[:, :1]:
        family = [arm_statistics._difference(("b", "hard", "a"), "micro_f1", d, np.full(999, d.mean())) for d in arms]
        shown += any(d.verdict != "no difference shown" for d in holm_adjusted(family))
    assert shown <= 0.05 * len(trained) + 2 * math.sqrt(0.05 * 0.95 * len(trained))


def test_draws_are_kept_and_read_again(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    gold = golds(generator, 80)
    rows = as_read(gold, predict(generator, gold, 0.7))
    point, drawn = draws(rows, 50, 0, tmp_path)
    assert point == pytest.approx([micro_f1(gold, rows.labels, TAXONOMY), auprc(gold, rows.probs)])
    monkeypatch.setattr(arm_statistics, "_drawn", None)
    assert np.array_equal(draws(rows, 50, 0, tmp_path)[1], drawn)
    with pytest.raises(TypeError):
        draws(rows, 51, 0, tmp_path)


# ---- readings and compositions -------------------------------------------------------------------------------------


def logits(seed, rows=40, trained=(0.5, 0.25, 0.25), **changes):
    generator = np.random.default_rng(seed)
    parts = {name: generator.normal(size=(rows, classes)).astype(np.float32) for name, classes in HEADS.items()}
    gold = np.arange(rows) % LABELS
    subjects = ["A", "B"] * (rows // 2)
    values = {"rows": "r", "taxonomy": TAXONOMY, "trained": trained} | changes
    return CellLogits(logits=parts, gold=gold, subjects=subjects, **values)


def softmax(values):
    powers = np.exp(values.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_composition_takes_each_head_from_its_network():
    parts = {
        "coarse": logits(1, fitted={"coarse": 2.0, "a": 9.0}),
        "a": logits(2, trained=None, fitted={"a": 1.0}),
        "b": logits(3, fitted={"b": 1.0}),
    }
    whole = compose(parts)
    found = decode_cell(whole, StudyDecoding("soft", calibrate=True))
    coarse = softmax(parts["coarse"].logits["coarse"] / 2)
    fine = {name: softmax(parts[name].logits[name]) for name in ("a", "b")}
    expected = np.concatenate([coarse[:, :1], coarse[:, 1:2] * fine["a"], coarse[:, 2:] * fine["b"]], axis=1)
    assert found.probs == pytest.approx(expected)
    assert np.array_equal(found.decoded.soft, expected.argmax(axis=1))
    branch = coarse.argmax(axis=1)
    by_hand = [0 if c == 0 else 1 + 2 * (c - 1) + fine["ab"[c - 1]][row].argmax() for row, c in enumerate(branch)]
    assert np.array_equal(found.decoded.hard, by_hand)
    assert whole.trained == (0.5, 0.25, 0.25)
    one = logits(4)
    assert np.array_equal(
        decode_cell(compose(dict.fromkeys(HEADS, one)), StudyDecoding()).probs, decode_cell(one, StudyDecoding()).probs
    )


def test_a_composition_of_what_does_not_fit_is_refused():
    with pytest.raises(MtlReError, match="the heads are"):
        compose({"coarse": logits(1), "a": logits(1)})
    with pytest.raises(MtlReError, match="the network for b"):
        compose({"coarse": logits(1), "a": logits(1), "b": replace(logits(1), rows="other rows")})


def test_readings_apply_prior_and_restriction():
    typed = Taxonomy.from_dict({**TAXONOMY.to_dict(), "subject_types": {"a": ["A"], "b": ["B"]}})
    cell = logits(1, taxonomy=typed)
    plain = decode_cell(cell, StudyDecoding("soft"))
    restricted = decode_cell(cell, StudyDecoding("soft", restrict="subject_type"))
    assert (restricted.probs[0::2, 3:] == 0).all()
    assert (restricted.probs[1::2, 1:3] == 0).all()
    assert restricted.probs.sum(axis=1) == pytest.approx(np.ones(40))
    shifted = decode_cell(cell, StudyDecoding("soft", prior="0.8,0.1,0.1"))
    ratio = (np.array([0.8, 0.1, 0.1]) / [0.5, 0.25, 0.25])[[0, 1, 1, 2, 2]]
    expected = plain.probs * ratio
    assert shifted.probs == pytest.approx(expected / expected.sum(axis=1, keepdims=True))
    assert shifted.prior == "0.8000, 0.1000, 0.1000"
    assert decode_cell(cell, StudyDecoding(prior="em")).prior.startswith("em: ")
    assert decode_cell(cell, StudyDecoding("hard")).labels is not plain.labels
    with pytest.raises(MtlReError, match="does not record the prior"):
        decode_cell(logits(1, trained=None), StudyDecoding(prior="em"))


def test_a_restriction_changes_no_accuracy_of_a_head():
    """Half of the rows have a subject whose type rules their gold class out: nothing of its head is left to judge."""
    typed = Taxonomy.from_dict({**TAXONOMY.to_dict(), "subject_types": {"a": ["A"], "b": ["B"]}})
    cells = [logits(seed, taxonomy=typed) for seed in (1, 2)]
    plain, restricted = (
        [decode_cell(cell, StudyDecoding(restrict=kind)) for cell in cells] for kind in ("none", "subject_type")
    )
    for ours, theirs in ((plain[0], restricted[0]), (vote(plain), vote(restricted))):
        ours, theirs = cell_metrics(ours), cell_metrics(theirs)
        assert [ours["fine_a"], ours["fine_b"]] == [theirs["fine_a"], theirs["fine_b"]]
        assert ours["gate_f1"] != theirs["gate_f1"]


def test_a_calibrating_reading_uses_the_fitted_temperatures():
    cell = logits(1, fitted={"coarse": 2.0, "a": 1.0, "b": 0.5})
    by_hand = replace(cell, logits={name: part / np.float32(cell.fitted[name]) for name, part in cell.logits.items()})
    fitted = decode_cell(cell, StudyDecoding("soft", prior="em", calibrate=True))
    assert np.array_equal(fitted.probs, decode_cell(by_hand, StudyDecoding("soft", prior="em")).probs)
    assert decode_cell(cell, StudyDecoding()).decoded.temperatures == {}
    assert fitted.prior != decode_cell(cell, StudyDecoding("soft", prior="em")).prior
    assert fitted.decoded.temperatures == {"coarse": 2.0, "a": 1.0, "b": 0.5}
    other = logits(2, fitted={"coarse": 3.0, "a": 4.0, "b": 6.0})
    assert compose({"coarse": cell, "a": other, "b": cell}).fitted == {"coarse": 2.0, "a": 4.0, "b": 0.5}


def test_metrics_have_one_column_each():
    generator = np.random.default_rng(0)
    gold = golds(generator, 60)
    rows = as_read(gold, predict(generator, gold, 0.6))
    found = cell_metrics(rows)
    assert {"micro_f1", "auprc", "ece", "gate_f1", "fine_a", "fine_b", "error_missed"} <= set(found)
    assert (
        sum(found[f"error_{kind}"] for kind in ("missed", "false_alarm", "wrong_branch", "wrong_label"))
        == (rows.labels != gold).sum()
    )


# ---- the simplex ---------------------------------------------------------------------------------------------------


def test_ternary_coordinates():
    top, left, right = ternary(np.eye(3))
    assert top == pytest.approx([0.5, math.sqrt(3) / 2])
    assert left == pytest.approx([0, 0])
    assert right == pytest.approx([1, 0])
    assert ternary(np.array([[1, 1, 1], [10, 10, 10]])) == pytest.approx(np.array([[0.5, math.sqrt(3) / 6]] * 2))
    for bad in ([[1, 1]], [[0, 0, 0]], [[1, -1, 1]]):
        with pytest.raises(MtlReError, match="ternary"):
            ternary(np.array(bad))


def test_curves_are_averaged_where_all_runs_logged():
    steps, values = ablation_pictures.mean_curve([[(1, 2.0), (2, 4.0)], [(2, 6.0), (3, 1.0)]])
    assert (steps, values) == ([2], [5.0])
    assert ablation_pictures.mean_curve([[(1, 2.0)], [(2, 3.0)]]) == ([], [])


# ---- the whole report ----------------------------------------------------------------------------------------------

STUDY = """
name: made
base: base.yaml
arms:
  unit: {}
  c2: {loss.weights: {coarse: 2}}
  o2: {loss.weights: {org: 2}}
  later: {loss.weights: {per: 2}}
seeds: [1, 2, 3]
readings: {hard: {}, em: {gate: soft, prior: em}}
baseline: unit
test: sample:test
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A study whose cells' logits are made up: c2 is far better than the other arms, and `later` is not finished."""
    taxonomy = Taxonomy.from_prefixes()
    (tmp_path / "base.yaml").write_text("data: {train: 'sample:train'}\nmodel: {encoder: 'scratch:tiny'}\n")
    path = tmp_path / "study.yaml"
    path.write_text(f"{STUDY}\noutput: {tmp_path / 'out'}\n")
    labels = [row["label"] for row in sample.rows("test", 200, 0)]
    gold = np.array([taxonomy.labels.index(label) for label in labels])
    targets = np.array([list(taxonomy.targets(label).values()) for label in labels])

    def given(study, cell):
        generator = np.random.default_rng([cell.seed, len(cell.arm), ord(cell.arm[0])])
        parts = {}
        for column, head in enumerate(taxonomy.heads):
            values = generator.normal(size=(len(gold), len(head.classes))).astype(np.float32)
            known = np.flatnonzero(targets[:, column] >= 0)
            values[known, targets[known, column]] += 4 if cell.arm == "c2" else 2
            parts[head.name] = values
        return CellLogits(parts, gold, ["PER"] * len(gold), taxonomy, (0.3, 0.3, 0.4), "test rows")

    monkeypatch.setattr(scored_arms, "cell_logits", given)
    study = load_study(path)
    for cell in study.cells():
        if cell.arm != "later":
            folder = study.run_dir(cell)
            (folder / "report").mkdir(parents=True)
            (folder / "report" / "report.md").write_text("done\n")
            heads = {"coarse": 1.0, "org": 2.0, "per": 3.0}
            counts = {"coarse": 9, "org": 3, "per": 3}
            lines = [
                {
                    "kind": "train",
                    "step": step,
                    "loss": {h: v / step for h, v in heads.items()},
                    "labelled_rows": counts,
                }
                for step in range(1, 6)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return study


def test_a_report_says_what_it_stands_on(made):
    path = ablation_report.write_report(made, {}, 200)
    text = path.read_text()
    assert "9 of 12 cells are finished; seeds 1, 2, 3." in text
    assert "**Not finished** (left out): later-s1, later-s2, later-s3." in text
    assert "`sample:test` (200 rows), which no cell was given: 0 of its rows are among those that cells trained" in text
    assert "200 bootstrap resamples" in text
    assert "with 3 seeds none of their p can be below 0.25" in text
    assert "best micro_f1 on validation rows" in text
    assert "(4 for micro-F1, 4 for AUPRC;" in text
    assert "the true one lies (95 %) within 0.52 to 6.28 times that with 3 seeds" in text
    assert "| arm/reading | seeds | micro-F1 | AUPRC | ECE | gate F1 |" in text
    lines = [line for line in text.splitlines() if line.startswith("| c2/hard | unit/hard |")]
    assert len(lines) == 2
    with (path.parent / "differences.csv").open(encoding="utf-8") as file:
        size = next(float(row["seeds_detectable"]) for row in csv.DictReader(file) if row["arm"] == "c2")
    assert f"| {size:.2f} | better |" in lines[0]
    assert all("better" in line for line in lines)
    assert all("no difference shown" in line for line in text.splitlines() if line.startswith("| o2/hard | unit/hard"))
    assert {file.name for file in path.parent.iterdir()} == {
        *("report.md", "scores.csv", "summary.csv", "differences.csv"),
        *("scores.png", "differences.png", "errors.png", "labels.png", "weights.png", "ternary.png", "losses.png"),
    }
    with (path.parent / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 2
    assert {row["prior"][:2] for row in rows if row["reading"] == "em"} == {"em"}
    with (path.parent / "differences.csv").open(encoding="utf-8") as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {"better", "no difference shown"}


def test_test_rows_that_cells_have_read_are_counted(tmp_path):
    """Of the same sentences with the same spans, and with others; held-out rows chose the checkpoint, so they count."""
    train = sample.rows("train", 60, 0)
    swapped = train[1] | {"label": "no_relation"}
    swapped |= {"subject_entity": train[1]["object_entity"], "object_entity": train[1]["subject_entity"]}
    known = {row["sentence"] for row in train}
    fresh = [row for row in sample.rows("test", 200, 1) if row["sentence"] not in known][:10]
    for name, rows in (("train", train), ("test", [train[0], swapped, *fresh])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    base = {"data": {"train": str(tmp_path / "train.json"), "valid_fraction": 0.5}}
    arms = {"a": {}, "b": {"data.valid_fraction": 0.2}}
    study = Study("made", base, (1,), arms, test=str(tmp_path / "test.json"), output=tmp_path / "out")
    assert cell_logits.shared_rows(study, study.cells()) == (1, 2)
    done = {(cell.arm, cell.seed): cell for cell in study.cells()}
    assert ": 1 of its rows are among those" in report_heading._shared(study, done)
    (tmp_path / "train.json").unlink()
    assert "were not compared" in report_heading._shared(study, done)


def test_a_report_says_how_each_arm_was_selected_and_on_which_rows():
    base = {"data": {"train": "sample:train", "valid_fraction": 0.2}}
    arms = {"given": {}, "also": {}, "whole": {"data.valid_fraction": 0}, "auprc": {"eval.metric": "auprc"}}
    study = Study("made", base, (1, 2), arms)
    done = {(cell.arm, cell.seed): cell for cell in study.cells()}
    text = report_heading._selection(done)
    assert text.startswith(
        "In given, also the checkpoint with the best micro_f1 on validation rows was kept. In whole "
    )
    assert "In whole nothing was selected: the last model counts. In auprc the checkpoint with the best auprc" in text
    gold = np.zeros(7, int)
    for rows, said in ((("x", "x"), "the same 7 validation rows in all cells"), (("x", "y"), "each cell's validation")):
        decoded = {seed: as_read(gold, gold, rows=name) for seed, name in enumerate(rows, start=1)}
        entries = [ScoredArm("given", "hard", decoded, {})]
        assert said in "\n".join(report_heading.heading(study, done, done, entries, 10))


@pytest.mark.slow
def test_a_report_is_the_same_twice(made):
    folder = ablation_report.write_report(made, {}, 20).parent
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    ablation_report.write_report(made, {}, 20)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_a_study_without_finished_cells_has_no_report(made, tmp_path):
    shutil.rmtree(tmp_path / "out" / "cells")
    with pytest.raises(MtlReError, match="no cell is finished"):
        ablation_report.write_report(made, {}, 20)


def test_an_entry_sums_its_seeds_up():
    entry = ScoredArm("a", "hard", {}, {1: {"micro_f1": 1.0}, 2: {"micro_f1": 3.0, "auprc": 1.0}}, {1: 5.0})
    assert entry.summary["micro_f1"]["mean"] == 2.0
    assert set(entry.summary) == {"micro_f1"}
    assert entry.name == "a/hard"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.py")), ids=lambda path: path.stem)
def test_a_script_of_the_experiments_does_nothing_on_import(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pytest", "--not-an-option"])
    monkeypatch.syspath_prepend(str(path.parent))  # where `python experiments/x.py` looks for its neighbours
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    importlib.import_module(".".join(path.relative_to(EXPERIMENTS.parent).with_suffix("").parts))
    assert capsys.readouterr() == ("", "")


def test_two_arms_are_paired(made, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    from experiments import paired

    study = str(tmp_path / "study.yaml")
    paired.main([study, "c2/hard", "vote:o2/hard", "--resamples", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        [name, score] for name in ("c2/hard", "vote:o2/hard") for score in ("micro_f1", "auprc")
    ]
    assert lines[4].startswith("micro_f1: +")
    with pytest.raises(SystemExit):
        paired.main([study, "c2/wide", "unit/hard"])
    assert "c2/wide: no such arm/reading is finished; there are unit/hard" in capsys.readouterr().err


def test_a_flat_head_is_decoded_class_first(monkeypatch):
    """no_relation is the most probable label, but two labels of org are together more probable."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    from experiments.flat_by_class import ByClass

    flat = Taxonomy.from_option("flat")
    probs = torch.zeros(1, len(flat.labels), dtype=torch.float64)
    first, second = (flat.labels.index(label) for label in ("org:members", "org:founded"))
    probs[0, 0], probs[0, first], probs[0, second] = 0.4, 0.35, 0.25
    decoded = Decoded(probs, flat, StudyDecoding("hard"))
    assert DecodedCell(np.array([0]), decoded, "rows").labels.tolist() == [0]
    assert ByClass(np.array([0]), decoded, "rows").labels.tolist() == [first]


def test_a_composition_is_calibrated_whole_or_not_at_all():
    taxonomy = Taxonomy.from_prefixes()
    logits = {head.name: np.zeros((2, len(head.classes)), np.float32) for head in taxonomy.heads}
    gold = np.zeros(2, np.int64)
    part = CellLogits(logits, gold, ["PER"] * 2, taxonomy, (0.3, 0.3, 0.4), "rows", fitted={"coarse": 2.0})
    others = replace(part, fitted={"org": 3.0, "per": 4.0})
    assert compose({"coarse": part, "org": others, "per": others}).fitted == {"coarse": 2.0, "org": 3.0, "per": 4.0}
    assert compose({"coarse": part, "org": others, "per": replace(others, fitted={})}).fitted == {}


def test_validation_rows_of_a_changed_file_are_not_scored(tmp_path):
    """Split off a file that was edited since, most of them were trained on."""
    file = tmp_path / "train.json"
    file.write_text(json.dumps(sample.rows("train", 60, 0), ensure_ascii=False), encoding="utf-8")
    described = {"source": str(file), "sha256": file_digest(str(file))}
    (tmp_path / "manifest.json").write_text(json.dumps({"data": {"train": described, "valid": {"sha256": None}}}))
    cell = Cell("unit", 1, {}, {"data": {"train": str(file), "valid_fraction": 0.2}})
    assert cell_logits.valid_rows(cell, tmp_path)
    file.write_text(json.dumps(sample.rows("train", 59, 0), ensure_ascii=False), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"train\.json has changed since the run"):
        cell_logits.valid_rows(cell, tmp_path)


def test_a_report_names_cells_that_were_trained_in_another_arithmetic(made):
    """`train.precision: auto` follows the machine of a worker, `--launch` its processes."""
    for cell, precision, device in zip(
        made.cells()[:3], ("bf16", "bf16", "no"), ("cuda:0", "cuda:1", "cpu"), strict=True
    ):
        hardware = {"device": device, "processes": 1, "precision": precision}
        parts = {"train": {"source": "train.json", "sha256": "a"}, "valid": {"source": "", "sha256": None}}
        manifest = made.run_dir(cell) / "manifest.json"
        manifest.write_text(json.dumps({"hardware": hardware, "data": parts}))
    keys = [cell.key for cell in made.cells()[:3]]
    told = f"bf16, 1 process on cuda: {keys[0]}, {keys[1]}; fp32, 1 process on cpu: {keys[2]}."
    assert told in ablation_report.write_report(made, {}, 50).read_text()
    (made.run_dir(made.cells()[2]) / "manifest.json").unlink()
    assert "different arithmetic" not in ablation_report.write_report(made, {}, 50).read_text()


def test_cells_of_different_data_are_not_compared(made):
    for cell, digest in zip(made.cells()[:2], "ab", strict=True):
        parts = {"train": {"source": "train.json", "sha256": digest}, "valid": {"source": "", "sha256": None}}
        (made.run_dir(cell) / "manifest.json").write_text(json.dumps({"data": parts}))
    with pytest.raises(MtlReError, match=r"train\.json was changed between the trainings of unit-s1 and c2-s1"):
        ablation_report.write_report(made, {}, 20)


def test_cells_of_an_encoder_that_was_changed_between_them_are_not_compared(made):
    """As by `mtl-re adapt` into the same directory: the options of the cells are the same text."""
    parts = {"train": {"source": "train.json", "sha256": "a"}, "valid": {"source": "", "sha256": None}}
    for cell, inputs in zip(made.cells()[:3], ({}, {"adapted": "a"}, {"adapted": "b"}), strict=True):
        (made.run_dir(cell) / "manifest.json").write_text(json.dumps({"data": parts | {"inputs": inputs}}))
    with pytest.raises(MtlReError, match="adapted was changed between the trainings of c2-s1 and o2-s1"):
        ablation_report.write_report(made, {}, 20)


def test_the_independent_score_of_a_submission_agrees(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    from experiments.score_submission import ORDER, score

    rows = sample.rows("test", 90, 0)
    (tmp_path / "data.json").write_text(json.dumps([{"guid": row["guid"], "label": row["label"]} for row in rows]))
    probs = np.random.default_rng(0).dirichlet(np.ones(len(ORDER)), len(rows))
    with (tmp_path / "submission.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "pred_label", "probs"])
        writer.writerows([row["guid"], ORDER[p.argmax()], p.tolist()] for row, p in zip(rows, probs, strict=True))
    klue = Taxonomy.from_prefixes()
    columns = [ORDER.index(label) for label in klue.labels]
    gold = np.array([klue.labels.index(row["label"]) for row in rows])
    expected = micro_f1(gold, probs[:, columns].argmax(axis=1), klue), auprc(gold, probs[:, columns])
    assert score(tmp_path / "submission.csv", tmp_path / "data.json") == (90, *map(pytest.approx, expected))


def test_held_out_rows_have_the_shares_asked_for_and_share_no_sentence(tmp_path):
    sample.write(tmp_path, SampleConfig(train=400))
    script = [sys.executable, str(EXPERIMENTS / "hold_out.py"), str(tmp_path / "train.json"), str(tmp_path / "out")]
    subprocess.run([*script, "--shares", "0.5,0.2,0.3"], check=True, capture_output=True)
    klue = Taxonomy.from_prefixes()
    train, test = (load_examples(str(tmp_path / "out" / f"{name}.json"), klue)[0] for name in ("train", "test"))
    groups = [klue.coarse_of(example.label) for example in test]
    shares = [groups.count(group) / len(groups) for group in klue.groups]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    assert not {example.sentence for example in train} & {example.sentence for example in test}
    again = subprocess.run(script, capture_output=True, text=True)
    assert "out/train.json exists, and this command did not write it" in again.stderr
    onto_itself = subprocess.run([*script[:-1], str(tmp_path), "--overwrite"], capture_output=True, text=True)
    assert "is an input of this command" in onto_itself.stderr
    everything = load_examples(str(tmp_path / "train.json"), klue)[0]
    assert {example.key for example in [*train, *test]} < {example.key for example in everything}


def test_each_class_with_a_fine_head_gets_a_file_of_its_rows(tmp_path):
    sample.write(tmp_path, SampleConfig(train=200))
    script = [sys.executable, str(EXPERIMENTS / "split_by_class.py"), str(tmp_path / "train.json")]
    subprocess.run([*script, str(tmp_path / "out")], check=True, capture_output=True)
    klue = Taxonomy.from_prefixes()
    rows = load_examples(str(tmp_path / "train.json"), klue)[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"org.json", "per.json"}
    for name in ("org", "per"):
        written = load_examples(str(tmp_path / "out" / f"{name}.json"), klue)[0]
        assert [one.key for one in written] == [one.key for one in rows if one.label.startswith(f"{name}:")]


def test_cells_that_were_trained_with_other_options_are_no_cells_of_the_study(made):
    """Their scores would stand under the new description."""
    cell = made.cells()[0]
    stored = made.run_dir(cell) / "cell.yaml"
    stored.write_text(cell.text)
    ablation_report.write_report(made, {}, 50)
    stored.write_text(yaml.safe_dump(cell.config | {"optim": {"lr": 0.5}}))
    with pytest.raises(MtlReError, match=f"holds a run with other options than the study file gives {cell.key} now"):
        ablation_report.write_report(made, {}, 50)


def test_arms_with_other_heads_have_no_common_simplex(made, tmp_path, monkeypatch):
    shares = {"unit": {"coarse": 0.5, "org": 0.5}, "c2": {"coarse": 0.4, "a": 0.6}, "o2": {"coarse": 0.3, "org": 0.7}}
    monkeypatch.setattr(ablation_report, "shares_of", lambda study, arm: shares.get(named[id(arm)]))
    named = {id(settings): name for name, settings in made.arms.items()}
    text = ablation_report.write_report(made, {}, 50).read_text()
    assert "## Loss weights" not in text


def test_a_report_of_nothing_scored_leaves_the_old_tables(made, monkeypatch):
    path = ablation_report.write_report(made, {}, 50)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    monkeypatch.setattr(ablation_report, "score_arms", lambda study, done: [])
    with pytest.raises(MtlReError, match=r"no arm has all the cells that its scores need.*; finished are unit-s1"):
        ablation_report.write_report(made, {}, 50)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_report_says_where_so_few_resamples_show_nothing(made):
    assert "**Too few resamples**: with 50 of them" in ablation_report.write_report(made, {}, 50).read_text()
    assert "Too few resamples" not in ablation_report.write_report(made, {}, 500).read_text()


# ---- end to end ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_study_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Two real arms and a composition, trained, reported, and reported again without training."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "base.yaml").write_text(
        "data: {train: 'sample:train', limit: 120, valid_fraction: 0.2, markers: entity_punct, max_length: 128}\n"
        "model: {encoder: 'scratch:tiny', pooling: cls_mean}\ntrain: {epochs: 1}\ntracking: {log_every: 1}\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: real\nbase: base.yaml\narms: {unit: {}, coarse: {loss.weights: {coarse: 1, org: 0, per: 0}}}\n"
        "composed: {both: {coarse: coarse, org: unit, per: unit}}\nseeds: [1]\nbaseline: unit\n"
        f"readings: {{hard: {{}}, typed: {{restrict: subject_type}}, em: {{prior: em, calibrate: true}}}}\n"
        f"test: sample:test\noutput: {tmp_path / 'out'}\n"
    )
    fits = {"coarse": 1.5, "org": 1.2, "per": 0.8}  # the 24 held-out rows would show none
    monkeypatch.setattr(cell_logits, "fit_temperatures", lambda logits, labels, taxonomy: dict(fits))
    assert main(["ablate", str(path), "--resamples", "50"]) == 0
    report = tmp_path / "out" / "report" / "report.md"
    assert capsys.readouterr().out.strip() == str(report)
    text = report.read_text()
    assert "| both/typed |" in text
    assert cell_logits.cell_logits(load_study(path), load_study(path).cells()[0]).fitted == fits
    assert "| em | hard | em | none | coarse 1.50, org 1.20, per 0.80 |" in text
    assert "| coarse/hard |" not in text  # its fine heads are untrained: it only lends its coarse head
    kept = (tmp_path / "out" / "cells" / "unit-s1" / "logits-test.npz").stat().st_mtime_ns
    report.unlink()
    assert main(["ablate", str(path), "--report", "--resamples", "50"]) == 0
    assert report.read_text() == text
    config = tmp_path / "out" / "cells" / "unit-s1" / "model" / "config.json"
    calibrated = json.loads(config.read_text()) | {"temperatures": {"coarse": 9.0, "org": 1.0, "per": 1.0}}
    config.write_text(json.dumps(calibrated))  # as `mtl-re calibrate` leaves it: readings decode all cells alike
    assert main(["ablate", str(path), "--report", "--resamples", "50"]) == 0
    assert report.read_text() == text
    paired = [sys.executable, str(EXPERIMENTS / "paired.py"), str(path), "--resamples", "50"]
    same = subprocess.run([*paired, "vote:unit/hard", "unit/hard"], check=True, capture_output=True, text=True).stdout
    assert "micro_f1: +0.00; over rows +0.00 to +0.00" in same  # the vote of one seed
    voted = subprocess.run([*paired, "unit/hard+both/hard", "unit/hard"], check=True, capture_output=True, text=True)
    assert "unit/hard+both/hard micro_f1" in voted.stdout
    refused = subprocess.run([*paired, "unit/soft", "unit/hard"], capture_output=True, text=True)
    assert "unit/soft: no such arm/reading is finished; there are unit/hard" in refused.stderr
    assert (tmp_path / "out" / "cells" / "unit-s1" / "logits-test.npz").stat().st_mtime_ns == kept
    study = load_study(path)
    (tmp_path / "out" / "cells" / "unit-s1" / "model" / "model.safetensors").unlink()  # its kept logits still count
    whole = cell_logits.cell_logits(study, study.cells()[0])
    assert {name: part.shape for name, part in whole.logits.items()} == {
        "coarse": (300, 3),
        "org": (300, 11),
        "per": (300, 18),
    }
    with pytest.raises(MtlReError, match="neither a model nor logits of these rows"):
        cell_logits.cell_logits(replace(study, test="sample:valid"), study.cells()[0])
    again = kept_and_restored(tmp_path, path)
    assert [line.split("|")[1:3] for line in again.splitlines()] == [line.split("|")[1:3] for line in text.splitlines()]


def kept_and_restored(folder, study):
    """The report of a study whose small files were laid elsewhere and back, all else gone; nothing is trained."""
    script = EXPERIMENTS / "kept_cells.py"
    subprocess.run([sys.executable, str(script), "keep", str(study), str(folder / "kept")], check=True)
    assert not list((folder / "kept").rglob("*.safetensors"))
    shutil.rmtree(folder / "out")
    subprocess.run([sys.executable, str(script), "restore", str(study), str(folder / "kept")], check=True)
    assert main(["ablate", str(study), "--resamples", "50"]) == 0
    assert not (folder / "out" / "cells" / "unit-s1" / "checkpoints").exists()
    return (folder / "out" / "report" / "report.md").read_text()


def test_a_cell_is_scored_on_the_validation_rows_that_its_training_used(tmp_path):
    """Rows too long for `max_length` are rejected after the split, so splitting again does not leave them out."""
    config = {"data": {"train": "sample:train", "valid": "sample:valid", "on_bad_row": "skip"}}
    cell = Cell("unit", 1, {}, config)
    everything = cell_logits.valid_rows(cell, tmp_path)
    bad = [BadRow("sample:valid", 3, "sentence", "too long"), BadRow("sample:train", 5, "sentence", "too long")]
    write_rejected(tmp_path / "rejected.jsonl", bad)
    used = cell_logits.valid_rows(cell, tmp_path)
    assert [row.row for row in used] == [row.row for row in everything if row.row != 3]
    (tmp_path / "rejected.jsonl").write_text("{}\n")
    with pytest.raises(MtlReError, match=r"rejected\.jsonl: cannot be read"):
        cell_logits.valid_rows(cell, tmp_path)
