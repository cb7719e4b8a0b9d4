"""Mixture designs: their points, runs and seeds, what a study file may say of them, and the plan."""

import itertools
import math

import numpy as np
import pytest
import yaml

from mtl_re.cli import main
from mtl_re.config import AblateConfig
from mtl_re.errors import MtlReError
from mtl_re.study import workers
from mtl_re.study.cell_process import Outcome
from mtl_re.study.cell_queue import CellQueue
from mtl_re.study.design import (
    DesignOptions,
    assign_blocks,
    block_contrasts,
    d_efficiency,
    d_optimal,
    make_design,
    space_filling,
    support_points,
)
from mtl_re.study.mixture import Region, compositions, distinct, point_name, products, replicated, term_names, terms
from mtl_re.study.study_file import load_study
from mtl_re.study.workers import Worker, ablate

HEADS = ("coarse", "org", "per")
WHOLE = Region.bounded(HEADS, {})
CUT = Region.bounded(HEADS, {"coarse": (0.1, 0.6), "org": (0.1, 0.7)})
FIVE = Region.bounded(tuple("abcde"), {})
KINDS = ("simplex-lattice", "simplex-centroid", "space-filling")


def rows(points):
    return sorted(tuple(np.round(point, 4).tolist()) for point in points)


# ---- Scheffé's polynomials and the region --------------------------------------------------------------------------


def test_the_terms_of_the_three_models():
    point = np.array([[0.5, 0.3, 0.2]])
    assert terms(point, "linear").tolist() == [[0.5, 0.3, 0.2]]
    assert terms(point, "quadratic")[0, 3:].tolist() == pytest.approx([0.15, 0.1, 0.06])
    assert terms(point, "special-cubic")[0, -1] == pytest.approx(0.03)
    assert term_names(HEADS, "special-cubic")[-1] == "coarse × org × per"
    assert [len(products(4, model)) for model in ("linear", "quadratic", "special-cubic")] == [4, 10, 14]


def test_lattices_have_the_textbook_numbers_of_points():
    for heads, degree in ((3, 2), (3, 3), (4, 2), (5, 3)):
        points = compositions(degree, heads)
        assert len(points) == math.comb(heads + degree - 1, degree)
        assert (points.sum(axis=1) == degree).all()
        assert len(distinct(points)) == len(points)
    assert len(WHOLE.grid()) == 5151


def test_corners_and_faces_of_a_region_that_upper_bounds_cut():
    assert CUT.high == (0.6, 0.7, 0.8)
    corners = [(0.1, 0.1, 0.8), (0.1, 0.7, 0.2), (0.3, 0.7, 0), (0.6, 0.1, 0.3), (0.6, 0.4, 0)]
    assert rows(CUT.corners()) == sorted(corners)
    assert len(CUT.centroids()) == 5 + 5 + 1
    assert len(Region.bounded(tuple("abcd"), {}).centroids()) == 15
    assert CUT.inside(CUT.uniform(200, np.random.default_rng(0))).all()
    assert WHOLE.simplex
    assert not CUT.simplex


def test_pseudocomponents_put_the_corners_at_one():
    region = Region.bounded(HEADS, {"coarse": (0.2, 1.0), "org": (0.1, 1.0)})
    assert region.high == pytest.approx((0.9, 0.8, 0.7))
    assert region.pseudo(region.corners()) == pytest.approx(np.eye(3))
    assert region.actual(region.pseudo(region.grid(50))) == pytest.approx(region.grid(50))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"fine": (0, 1)}, "no head is called 'fine'; the heads are coarse, org, per"),
        ({"org": (0.5, 0.2)}, r"bounds: org: \[0.5, 0.2\]"),
        ({"org": (0.6, 1), "per": (0.5, 1)}, "the lower bounds sum to 1.1"),
        ({"coarse": (0, 0.3), "org": (0, 0.3), "per": (0, 0.3)}, "the upper ones to 0.9"),
    ],
)
def test_bounds_that_leave_no_room_are_named(bounds, message):
    with pytest.raises(MtlReError, match=message):
        Region.bounded(HEADS, bounds)


# ---- designs -------------------------------------------------------------------------------------------------------


def test_a_number_of_points_that_a_textbook_design_has_gives_that_design():
    lattice = support_points("simplex-lattice", WHOLE, 6, "quadratic")
    assert rows(lattice) == rows(compositions(2, 3) / 2)
    assert rows(support_points("simplex-lattice", WHOLE, 10, "quadratic")) == rows(compositions(3, 3) / 3)
    centroid = support_points("simplex-centroid", WHOLE, 7, "quadratic")
    assert rows(centroid) == rows(WHOLE.centroids())
    assert len(support_points("simplex-centroid", FIVE, 31, "quadratic")) == 31


@pytest.mark.parametrize("region", [WHOLE, CUT, FIVE], ids=["whole", "cut", "five heads"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_runs_is_met_exactly(kind, region):
    least = len(products(len(region.names), "quadratic"))
    for runs, replicates in ((2 * least + 3, 2), (least + 4, 1), (3 * least + 1, 3)):
        plan = make_design(DesignOptions(kind, runs, replicates), region)
        counts = np.bincount(replicated(plan.points))
        assert len(plan.runs) == runs
        assert len(counts) == runs // replicates
        assert counts.min() == replicates
        assert (np.abs(plan.points - np.clip(plan.points, region.low, region.high)) < 1e-3).all()
        assert len({run.seed for run in plan.runs}) == runs
        assert plan.points.sum(axis=1) == pytest.approx(1)
        assert d_efficiency(plan.points, region, "quadratic") > (8 if kind == "space-filling" else 55)


@pytest.mark.parametrize(("model", "runs", "replicates"), [("linear", 19, 5), ("linear", 23, 6), ("quadratic", 69, 10)])
def test_more_runs_left_over_than_points_are_all_planned(model, runs, replicates):
    plan = make_design(DesignOptions("simplex-lattice", runs, replicates, model=model), WHOLE)
    assert len(plan.runs) == runs
    assert np.bincount(replicated(plan.points)).min() >= replicates


def test_points_are_taken_away_from_a_design_that_has_too_many():
    """Of the 31 centroids of five heads, 15 are best for a quadratic surface: corners and middles (Kiefer 1961)."""
    points = support_points("simplex-centroid", FIVE, 15, "quadratic")
    assert rows(points) == rows(compositions(2, 5) / 2)


def test_the_exchange_finds_what_trying_all_finds():
    candidates = WHOLE.lattice(4)

    def determinant(points):
        columns = terms(points, "quadratic")
        return np.linalg.det(columns.T @ columns)

    best = max(determinant(candidates[list(some)]) for some in itertools.combinations(range(len(candidates)), 7))
    found = d_optimal(candidates, candidates[:0], 7, WHOLE, "quadratic")
    assert determinant(found) == pytest.approx(best)


def test_d_efficiency_is_one_for_the_lattice_and_known_for_others():
    lattice = compositions(2, 3) / 2
    assert d_efficiency(np.repeat(lattice, 3, axis=0), WHOLE, "quadratic") == pytest.approx(100, abs=0.2)
    assert d_efficiency(np.eye(3), WHOLE, "linear") == pytest.approx(100, abs=0.2)
    assert d_efficiency(np.eye(3), WHOLE, "quadratic") == 0
    unequal = np.concatenate([lattice, lattice[:1]])  # 7 runs, a corner twice: (2 / 7^6)^(1/6) / (1 / 6)
    assert d_efficiency(unequal, WHOLE, "quadratic") == pytest.approx(100 * 2 ** (1 / 6) * 6 / 7, abs=0.2)


def test_space_filling_points_keep_their_distance():
    points = space_filling(WHOLE, 12)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(12)
    random = WHOLE.uniform(12, np.random.default_rng(1))
    assert distance.min() > 2 * (np.linalg.norm(random[:, None] - random[None], axis=2) + 9 * np.eye(12)).min()
    assert distance.min() > 0.15


def test_a_larger_design_keeps_the_runs_of_a_smaller_one():
    small, large = (make_design(DesignOptions("simplex-lattice", 10 * r, r), WHOLE) for r in (1, 3))
    assert {(run.point, run.seed) for run in small.runs} < {(run.point, run.seed) for run in large.runs}


def test_blocks_are_of_equal_size_and_hold_no_point_twice():
    plan = make_design(DesignOptions("simplex-lattice", 25, 2, block_seeds=(5, 6, 7)), WHOLE)
    blocks = plan.blocks
    assert sorted(np.bincount(blocks).tolist()) == [8, 8, 9]
    assert (np.diff(blocks) >= 0).all()  # one after the other
    assert len({(run.point, run.seed) for run in plan.runs}) == 25
    assert {run.seed for run in plan.runs} == {5, 6, 7}
    with pytest.raises(MtlReError, match="a point is run 3 times, but there are 2 blocks"):
        make_design(DesignOptions("simplex-lattice", 18, 3, block_seeds=(1, 2)), WHOLE)


def test_blocks_take_little_from_the_surface():
    plan = make_design(DesignOptions("simplex-lattice", 24, 2, block_seeds=(1, 2, 3)), WHOLE)
    columns = terms(plan.points, "quadratic")

    def information(blocks):
        both = np.concatenate([columns, block_contrasts(blocks)], axis=1)
        return np.linalg.slogdet(both.T @ both)[1]

    shuffles = [np.random.default_rng(n).permutation(plan.blocks) for n in range(200)]
    assert information(plan.blocks) > max(map(information, shuffles))
    assert (assign_blocks(columns, np.arange(24), 0) == 0).all()


def test_points_of_many_heads_have_names_of_their_own():
    heads = [f"head{number}" for number in range(30)]
    names = {point_name(heads, np.eye(30)[number] * 0.5 + 0.5 / 30) for number in range(30)}
    assert len(names) == 30
    assert max(map(len, names)) <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 10}, "10 at 2 replicates are 5 different points, but a quadratic surface of 3 heads has 6 coeff"),
        ({"runs": 6, "replicates": 1}, "runs: 6; .* so at least 8 are needed"),
        ({"runs": 14, "replicates": 1, "model": "special-cubic", "kind": "space-filling"}, None),
    ],
)
def test_runs_that_are_too_few_are_refused(options, message):
    options = DesignOptions(**{"kind": "simplex-lattice"} | options)
    if message is None:
        assert len(make_design(options, WHOLE).runs) == options.runs
    else:
        with pytest.raises(MtlReError, match=message):
            make_design(options, WHOLE)


# ---- the study file ------------------------------------------------------------------------------------------------

BASE = {"data": {"train": "sample:train", "limit": 100}, "model": {"encoder": "scratch:tiny"}}
DESIGN = {"kind": "simplex-lattice", "runs": 14}


@pytest.fixture
def write(tmp_path):
    """write(design keys, **keys of the study) → path of a study file."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def make(design=None, **keys):
        study = {"name": "s", "base": "base.yaml", "design": DESIGN | (design or {}), "output": str(tmp_path / "out")}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study | keys, sort_keys=False))
        return path

    return make


def test_the_runs_of_a_design_are_cells(write):
    study = load_study(write(arms={"famo": {"loss.weighting": "famo"}}, seeds=[1, 2]))
    cells = study.cells()
    assert len(cells) == 14 + 2
    assert [cell.key for cell in cells[-2:]] == ["famo-s1", "famo-s2"]
    assert study.other_arms == ["famo"]
    weights = [cell.config["loss"]["weights"] for cell in cells[:14]]
    assert all(sum(values.values()) == pytest.approx(3, abs=1e-3) for values in weights)
    assert min(min(values.values()) for values in weights) == pytest.approx(0.15)  # a head of weight 0 is not trained
    assert len({cell.key for cell in cells}) == 16
    assert cells[0].arm == point_name(HEADS, study.design.runs[0].point)
    assert study.design.options.response == "selection"


def test_blocks_take_the_studys_seeds(write):
    study = load_study(write({"blocks": 2, "runs": 12}, seeds=[7, 8, 9]))
    assert {seed for _, seed in study.runs} == {7, 8}


def test_heads_of_another_taxonomy_are_the_components(write, tmp_path):
    heads = {
        "no_relation": "none",
        "groups": {"none": ["none"], "a": ["a1", "a2"], "b": ["b1", "b2"], "c": ["c1", "c2"]},
    }
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(heads))
    design = {"runs": 24, "bounds": {"coarse": [0.2, 0.7]}}
    study = load_study(write(design, overrides={"model.heads": str(tmp_path / "heads.yaml")}))
    assert study.design.region.names == ("coarse", "a", "b", "c")
    assert study.design.region.low == pytest.approx((0.2, 0.0375, 0.0375, 0.0375))


WRONG = {
    "unknown key": ({"count": 3}, {}, "design: unknown key 'count'; the keys are over, kind"),
    "kind": ({"kind": "box"}, {}, "design: kind: 'box'; expected one of simplex-lattice"),
    "over": ({"over": "optim.lr"}, {}, "design: over: 'optim.lr'; expected one of loss.weights"),
    "runs": ({"runs": "many"}, {}, "design: runs: 'many'; expected a int"),
    "no runs": ({"runs": 0}, {}, "design: runs: 0; at least 1"),
    "too few": ({"runs": 8}, {}, "design: runs: 8 at 2 replicates are 4 different points"),
    "bounds": ({"bounds": {"org": 3}}, {}, r"design: bounds: org: 3; expected \[low, high\]|bounds: org: 3"),
    "bounds of a stranger": ({"bounds": {"fine": [0, 1]}}, {}, "bounds: no head is called 'fine'"),
    "model": ({"model": "cubic"}, {}, "design: model: 'cubic'"),
    "response": ({"response": "loss"}, {}, "design: response: 'loss'"),
    "no selection": (
        {"response": "selection"},
        {"overrides": {"data.valid_fraction": 0}, "test": "sample:test"},
        "resp",
    ),
    "sd": ({"sd": -1}, {}, "design: sd: -1; expected a number above 0"),
    "sd file": ({"sd": "nowhere.csv"}, {}, r"design: sd: .*nowhere\.csv is no scores\.csv"),
    "blocks": ({"blocks": 3}, {"seeds": [1, 2]}, "design: blocks: 3; expected 2 to 2"),
    "moving base": ({}, {"overrides": {"loss.weighting": "rlw"}}, "design: its runs keep their weights, but base"),
    "flat": ({}, {"overrides": {"model.heads": "flat"}}, "a mixture needs two components"),
    "axes": ({}, {"axes": {"optim.lr": [1]}}, "axes: a design makes its own arms"),
    "name": ({}, {"arms": {"coarse=5,org=5,per=90": {}}, "seeds": [1]}, "the design has a point of this name"),
    "confirm key": ({}, {"confirm": {"epochs": 3}}, "confirm: unknown key 'epochs'"),
    "confirm option": ({}, {"confirm": {"overrides": {"optim.speed": 1}}}, "confirm: arm optimum: .*speed"),
    "confirm test": ({}, {"confirm": {"test": "nowhere.json"}}, "confirm: test: nowhere.json is not a file"),
    "confirm leak": ({}, {"confirm": {"test": "sample:train"}}, "confirm: .*is also test"),
    "confirm head": ({}, {"confirm": {"baseline": {"fine": 1}}}, "confirm: arm baseline: .*'fine'"),
    "confirm seed": ({}, {"arms": {"a": {}}, "seeds": [10001]}, "confirm: seed 10001 is one of the study's own"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_design_is_named_before_anything_runs(write, tmp_path, case):
    design, keys, message = WRONG[case]
    with pytest.raises(MtlReError, match=message):
        ablate(write(design, **keys), AblateConfig(plan=True))
    assert not (tmp_path / "out").exists()


def test_confirm_without_a_design_is_refused(write):
    path = write()
    study = yaml.safe_load(path.read_text()) | {"arms": {"a": {}}, "seeds": [1]}
    del study["design"]
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(MtlReError, match="has no design, so there is no optimum to confirm"):
        ablate(path, AblateConfig(confirm=2))
    path.write_text(yaml.safe_dump(study | {"confirm": {}}))
    with pytest.raises(MtlReError, match="confirm: belongs to a design"):
        load_study(path)


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_a_plan_prints_design_power_and_hours_and_trains_nothing(write, tmp_path, capsys):
    path = write(
        {"sd": 2, "seconds_per_step": 90, "runs": 20},
        arms={"rlw": {"loss.weighting": "rlw"}},
        seeds=[1],
        confirm={"overrides": {"train.epochs": 6}},
    )
    assert main(["ablate", str(path), "--plan"]) == 0
    text = capsys.readouterr().out
    assert "20 runs at 10 points, each with its own seed" in text
    assert text.count("| 1 |") + text.count("| 2 |") >= 20
    assert "D-efficiency: linear" in text
    assert "SD of a run: 2.00 points, as the study file states." in text
    assert "a dome over the middle | F(3, 14) |" in text
    assert "21 cells, 0 of them finished. Beside the design: rlw, seeds 1." in text
    # 90 training rows of 100, 32 a step, three epochs: 9 steps of 90 s, 21 times
    assert "Time left: 4 h 44 min for one worker, 14 min a cell (9 steps at 90 s, as the study file states)." in text
    assert "Each pair of --confirm: 2 × 18 steps, 54 min at that pace." in text
    assert not (tmp_path / "out").exists()


def test_a_plan_takes_the_sd_from_earlier_scores(write, tmp_path):
    scores = "arm,reading,micro_f1,selection\na,hard,1,10\na,hard,1,12\nb,hard,1,30\nb,hard,1,32\na,soft,1,90\n"
    (tmp_path / "scores.csv").write_text(scores)
    text = ablate(write({"sd": "scores.csv"}), AblateConfig(plan=True))
    assert f"SD of a run: {math.sqrt(2):.2f} points, of runs of one arm in scores.csv" in text
    assert "Hours: unknown until one cell has finished; or give `design.seconds_per_step`." in text


def test_a_plan_measures_hours_by_finished_cells(write, monkeypatch):
    path = write()
    study = load_study(path)
    queue = CellQueue(study)
    queue.enqueue()
    monkeypatch.setattr(workers, "run_cell", lambda *given: Outcome("done", 50.0, 600.0))
    Worker(queue).work()
    kept = study.run_dir(study.cells()[0]) / "report"
    kept.mkdir()
    (kept / "report.md").write_text("done")
    text = ablate(path, AblateConfig(plan=True, workers=2))
    assert "14 cells, 1 of them finished" in text
    assert "1 h 05 min for 2 workers, 10 min a cell (the mean of 14 finished cells)." in text


def test_a_full_simplex_is_allowed_and_its_cliff_is_named(write):
    text = ablate(write({"bounds": {head: [0, 1] for head in HEADS}}), AblateConfig(plan=True))
    assert "Some runs give a head no weight" in text
    assert "| coarse=100,org=0,per=0 | 3.000 | 0.000 | 0.000 |" in text
