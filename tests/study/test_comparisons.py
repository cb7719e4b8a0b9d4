"""What a study compares with its baseline, and what `--plan` says that its seeds can show."""

import pytest

from mtl_re.scoring.significance import detectable_mean
from mtl_re.study.comparisons import comparisons, planned_names
from mtl_re.study.plan_text import plan_text
from mtl_re.study.study_file import load_study

STUDY = """
name: made
base: base.yaml
arms:
  plain: {}
  other: {data.valid_fraction: 0.2}
  coarse-only: {loss.weights: {coarse: 1, org: 0, per: 0}}
  fine-only: {loss.weights: {coarse: 0, org: 1, per: 1}}
composed:
  separate: {coarse: coarse-only, org: fine-only, per: fine-only}
seeds: [1, 2, 3]
test: sample:test
readings:
  hard: {gate: hard}
  soft: {gate: soft}
  em: {prior: em}
  fitted: {prior: em, calibrate: true}
"""


@pytest.fixture
def write(tmp_path):
    """A study of these arms with a baseline, under base options."""

    def written(baseline, base="data: {train: 'sample:train', valid_fraction: 0}", text=STUDY):
        (tmp_path / "base.yaml").write_text(f"{base}\nmodel: {{encoder: 'scratch:tiny'}}\n", encoding="utf-8")
        path = tmp_path / "study.yaml"
        path.write_text(f"{text}\nbaseline: {baseline}\noutput: {tmp_path / 'out'}\n", encoding="utf-8")
        return load_study(path)

    return written


def test_arms_that_lend_a_head_and_readings_that_cannot_be_fitted_are_not_compared(write):
    names = planned_names(write("plain"))
    readings = ("hard", "soft", "em")
    assert names == [
        *(("plain", reading) for reading in readings),
        *(("other", reading) for reading in (*readings, "fitted")),  # it alone has rows held out
        *(("separate", reading) for reading in readings),
    ]
    held_out = planned_names(write("plain", "data: {train: 'sample:train', valid_fraction: 0.5}"))
    assert len(held_out) == 3 * 4


def test_each_reading_is_compared_with_the_same_reading_of_the_baseline(write):
    study = write("plain")
    found = comparisons(study, planned_names(study))
    assert [(one.entry, one.base) for one in found] == [
        ((arm, reading), ("plain", reading)) for arm in ("other", "separate") for reading in ("hard", "soft", "em")
    ]
    # the soft gate leaves the probabilities as they are
    assert ["auprc" in one.scores for one in found] == [True, False, True] * 2


def test_a_baseline_with_a_reading_is_compared_with_all_and_with_its_own_others(write):
    study = write("plain/hard")
    found = {one.entry: one for one in comparisons(study, planned_names(study))}
    assert {one.base for one in found.values()} == {("plain", "hard")}
    assert len(found) == 3 + 4 + 3 - 1
    assert found["plain", "soft"].scores == ("micro_f1",)  # the baseline's own probabilities
    assert found["plain", "em"].scores == found["other", "hard"].scores == ("micro_f1", "auprc")


def test_nothing_is_compared_with_a_baseline_that_is_not_there(write):
    study = write("plain")
    assert comparisons(study, [("other", "hard"), ("plain", "soft")]) == []


def test_a_plan_makes_nothing(write, tmp_path):
    database = f"storage: sqlite:///{tmp_path / 'shared.db'}\n"
    for text in (STUDY, STUDY + database):
        assert "Hours: unknown" in plan_text(write("plain/hard", text=text), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.yaml", "study.yaml"]


def test_the_plan_says_what_so_many_seeds_can_show(write):
    text = plan_text(write("plain/hard"), 1)
    assert "True difference from plain/hard that 3 paired seeds show with power 80 %" in text
    assert (
        f": {detectable_mean(3, 9):.2f} in micro-F1 (9 comparisons), {detectable_mean(3, 6):.2f} in AUPRC (6 comp"
        in text
    )
    alone = plan_text(write("plain", text=STUDY.replace("[1, 2, 3]", "[1]")), 1)
    assert "One seed shows no difference between arms, however large." in alone
