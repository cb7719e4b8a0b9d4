"""Scores on rare and on frequent relations: their groups, their arithmetic, and what the report says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtl_re.scoring.decoding import Decoded
from mtl_re.scoring.metrics import auprc_by_class, micro_f1
from mtl_re.study import pictures
from mtl_re.study.cell_logits import DecodedCell
from mtl_re.study.label_frequency import LabelScores, frequency_section, label_groups
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.study.study import Study, StudyDecoding
from mtl_re.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_dict({"groups": {"none": ["no_relation"], "a": ["a1", "a2", "a3"], "b": ["b1", "b2", "b3"]}})
GOLD = np.repeat(np.arange(7), [40, 2, 3, 10, 12, 30, 31])
"""no_relation 40 times, then two rare, two middling and two frequent relations."""


def study(baseline):
    return Study("made", {}, (1, 2), {"flat": {}, "joint": {}}, baseline=baseline)


def cell(wrong, seed=0):
    """Right everywhere but on rows of the labels `wrong`, which are called no_relation."""
    labels = np.where(np.isin(GOLD, wrong), 0, GOLD)
    probs = np.full((len(GOLD), 7), 0.02)
    probs[np.arange(len(GOLD)), labels] = 0.88
    probs += 1e-4 * np.random.default_rng(seed).random(probs.shape)
    return DecodedCell(GOLD, Decoded(torch.from_numpy(probs), TAXONOMY, StudyDecoding()), "rows")


def test_groups_have_equally_many_relations_from_rare_to_frequent():
    support = np.bincount(GOLD, minlength=7).astype(float)
    assert [part.tolist() for part in label_groups(support, TAXONOMY)] == [[1, 2], [3, 4], [5, 6]]
    shuffled = support[[0, 6, 3, 1, 5, 2, 4]]
    assert [part.tolist() for part in label_groups(shuffled, TAXONOMY)] == [[3, 5], [2, 6], [4, 1]]
    assert label_groups(np.where(support == 2, 0, support), TAXONOMY) == []  # five relations with rows are too few


def test_all_relations_together_have_the_official_f1():
    one = cell([2, 5])
    scores, related = LabelScores.of(one), np.arange(1, 7)
    assert scores.f1(related) == pytest.approx(micro_f1(GOLD, one.labels, TAXONOMY))
    assert scores.auprc(related) == pytest.approx(auprc_by_class(GOLD, one.probs)[1:].mean())
    assert [scores.f1(np.array([label])) for label in (1, 2)] == [100.0, 0.0]


def test_the_section_says_where_an_arm_differs(tmp_path):
    # label 2 is lost in the baseline's second seed, label 5 in both seeds of the arm
    base = ScoredArm("flat", "hard", {1: cell([]), 2: cell([2])}, {})
    arm = ScoredArm("joint", "hard", {1: cell([5]), 2: cell([5])}, {})
    text = "\n".join(frequency_section(study(("flat", None)), [base, arm], tmp_path))
    assert "rare: 2 labels of 2 to 3 rows; middle: 2 labels of 10 to 12 rows; frequent: 2 labels of 30 to 31" in text
    flat, joint = (next(line for line in text.splitlines() if line.startswith(f"| {name}")) for name in ("flat", "joi"))
    # rare: 100 and 4 / 7 of the rows' F1; frequent: 62 / 92
    assert [part.strip() for part in flat.split("|")[2:5]] == ["78.6", "100.0", "100.0"]
    cells = [part.strip().replace("\\", "") for part in joint.split("|")[2:5]]
    assert cells[0].startswith("100.0 (+21.4 [")
    assert cells[1:] == ["100.0 (+0.0 [+0.0, +0.0])", "67.4 (-32.6 [-32.6, -32.6])"]
    assert "![F1 of each relation" in text
    assert (tmp_path / "labels.png").is_file()


def test_without_a_baseline_nothing_is_compared(tmp_path):
    text = "\n".join(frequency_section(study(None), [ScoredArm("flat", "hard", {1: cell([])}, {})], tmp_path))
    assert "| flat/hard | 100.0 | 100.0 | 100.0 |" in text
    assert "baseline" not in text
    assert not list(tmp_path.iterdir())


def test_arms_of_different_label_sets_are_not_divided(tmp_path):
    other = Taxonomy.from_dict({"groups": {"none": ["no_relation"], "all": [f"r{number}" for number in range(6)]}})
    right = cell([])
    cells = {1: right}, {1: replace(right, decoded=replace(right.decoded, taxonomy=other))}
    entries = [ScoredArm(arm, "hard", part, {}) for arm, part in zip(("flat", "joint"), cells, strict=True)]
    assert frequency_section(study(None), entries, tmp_path) == []


def test_the_picture_has_a_panel_for_each_arm_and_a_line_for_each_label(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        pictures, "label_differences", lambda arms, labels, path: drawn.update(arms=arms, labels=labels)
    )
    base = ScoredArm("flat", "hard", {1: cell([]), 2: cell([2])}, {})
    soft = ScoredArm("flat", "soft", {1: cell([]), 2: cell([2])}, {})
    arm = ScoredArm("joint", "hard", {1: cell([5]), 2: cell([5])}, {})
    made = replace(study(("flat", "hard")), readings={"hard": StudyDecoding(), "soft": StudyDecoding("soft")})
    frequency_section(made, [base, soft, arm], tmp_path)
    assert drawn["labels"] == ["b3 (31)", "b2 (30)", "b1 (12)", "a3 (10)", "a2 (3)", "a1 (2)"]
    assert {name: values.tolist() for name, values in drawn["arms"].items()} == {
        "joint/hard": [[0, -100, 0, 0, 0, 0], [0, -100, 0, 0, 100, 0]]
    }
