"""The response surface: published numbers, and that tests, bands and regions keep their word if the truth is known."""

import math

import numpy as np
import pytest

from mtl_re.errors import MtlReError
from mtl_re.study import power
from mtl_re.study.confirmation import observable, predicted_difference
from mtl_re.study.design import Design, DesignOptions, block_contrasts, make_design
from mtl_re.study.mixture import Region, terms
from mtl_re.study.mixture_runs import ArmBeside, RunTable
from mtl_re.study.optimum import find_optimum, slices
from mtl_re.study.power import POWER, detectable, dome, slope
from mtl_re.study.surface import Surface, pooled_sd
from mtl_re.study.surface_report import _beside, _coefficients, compare_beside

HEADS = ("coarse", "org", "per")
WHOLE = Region.bounded(HEADS, {})
YARN = {
    (1, 0, 0): (11.0, 12.4),
    (0.5, 0.5, 0): (15.0, 14.8, 16.1),
    (0, 1, 0): (8.8, 10.0),
    (0, 0.5, 0.5): (10.0, 9.7, 11.8),
    (0, 0, 1): (16.8, 16.0),
    (0.5, 0, 0.5): (17.7, 16.4, 16.6),
}
"""Elongation of polymer yarn at each blend (Cornell, Experiments with Mixtures, ch. 2)."""


def yarn(model="quadratic") -> Surface:
    points = np.array([blend for blend, values in YARN.items() for _ in values], dtype=float)
    return Surface(WHOLE, model, points, np.array([value for values in YARN.values() for value in values]))


def design(runs=24, replicates=2, blocks=(), kind="simplex-lattice") -> Design:
    return make_design(DesignOptions(kind, runs, replicates, block_seeds=blocks), WHOLE)


def peaked(points, peak=(0.4, 0.3, 0.3), height=4.0):
    """A true quadratic surface."""
    return height * (1 - ((points - np.array(peak)) ** 2).sum(axis=1))


def simulated(plan: Design, truth, number: int, sd=1.0, model="quadratic") -> Surface:
    generator = np.random.default_rng([7, number])
    values = truth + sd * generator.normal(size=len(plan.points))
    if plan.blocks is not None:
        values += 3 * generator.normal(size=plan.blocks.max() + 1)[plan.blocks]
    return Surface(WHOLE, model, plan.points, values, plan.blocks)


def within(rate: float, nominal: float, trials: int) -> bool:
    """Whether a rate lies within three Monte-Carlo standard errors of its nominal value."""
    return abs(rate - nominal) <= 3 * math.sqrt(nominal * (1 - nominal) / trials)


# ---- published numbers ---------------------------------------------------------------------------------------------


def test_the_yarn_of_cornell_is_reproduced():
    surface = yarn()
    published = [11.7, 9.4, 16.4, 19.0, 11.4, -9.6]
    assert [coefficient.value for coefficient in surface.coefficients] == pytest.approx(published, abs=0.05)
    assert [coefficient.name for coefficient in surface.coefficients][3] == "coarse × org"
    assert surface.sd == pytest.approx(0.854, abs=0.0005)
    assert surface.fit.bse[:6] == pytest.approx([0.604] * 3 + [2.608] * 3, abs=0.0005)
    assert surface.weights_matter.degrees == (5, 9)
    assert surface.weights_matter.f == pytest.approx(35.20, abs=0.01)
    assert surface.r_squared == pytest.approx(0.9514, abs=0.0001)
    assert surface.pure_error == pytest.approx(0.854, abs=0.0005)
    assert surface.lack_of_fit is None  # six blends, six coefficients


def test_the_linear_surface_of_the_yarn_lacks_fit():
    linear, quadratic = yarn("linear"), yarn()
    test = linear.lack_of_fit
    assert test.degrees == (3, 9)
    assert test.f == pytest.approx(quadratic.beyond(linear).f)  # what it lacks is what the quadratic surface adds
    assert test.p < 0.001


def test_prediction_r_squared_is_that_of_leaving_whole_points_out():
    surface = yarn("linear")
    ours, mean = 0.0, 0.0
    for point in np.unique(surface.points, axis=0):
        out = (surface.points == point).all(axis=1)
        rest = Surface(WHOLE, "linear", surface.points[~out], surface.values[~out])
        ours += ((surface.values[out] - rest.predict(point)) ** 2).sum()
        mean += ((surface.values[out] - surface.values[~out].mean()) ** 2).sum()
    assert surface.prediction_r_squared == pytest.approx(1 - ours / mean)
    assert yarn().prediction_r_squared is None  # six blends, six coefficients: without a blend there is no surface


def test_prediction_r_squared_leaves_points_out_of_blocks_too():
    """Of one run a point the surface predicts each run from the others, and so does the mean of the run's block."""
    plan = design(24, 1, (1, 2, 3))
    values = peaked(plan.points) + np.random.default_rng(0).normal(size=24)
    surface = Surface(WHOLE, "quadratic", plan.points, values, plan.blocks)
    squares = [0.0, 0.0]
    for point in np.unique(plan.points, axis=0):
        out = (plan.points == point).all(axis=1)
        rest = Surface(WHOLE, "quadratic", plan.points[~out], values[~out], plan.blocks[~out])
        predicted = rest.run_columns(plan.points[out], plan.blocks[out]) @ rest.fit.params
        contrasts = block_contrasts(plan.blocks, 24)
        columns = np.concatenate([np.ones((24, 1)), contrasts], axis=1)
        mean = columns[out] @ np.linalg.lstsq(columns[~out], values[~out], rcond=None)[0]
        squares = [squares[0] + ((values[out] - predicted) ** 2).sum(), squares[1] + ((values[out] - mean) ** 2).sum()]
    assert surface.prediction_r_squared == pytest.approx(1 - squares[0] / squares[1])


def test_a_region_bounded_below_changes_coefficients_and_nothing_else():
    plan = make_design(DesignOptions("simplex-lattice", 24), Region.bounded(HEADS, dict.fromkeys(HEADS, (0.1, 1.0))))
    values = peaked(plan.points) + np.random.default_rng(1).normal(size=24)
    inside, outside = (Surface(region, "quadratic", plan.points, values) for region in (plan.region, WHOLE))
    assert inside.predict(plan.points) == pytest.approx(outside.predict(plan.points))
    assert inside.weights_matter.f == pytest.approx(outside.weights_matter.f)
    corner = plan.region.corners()[0]
    assert inside.coefficients[0].value == pytest.approx(inside.predict(corner)[0])


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_runs_that_tell_no_surface_are_refused():
    points = np.repeat(WHOLE.corners(), 3, axis=0)
    with pytest.raises(MtlReError, match="9 runs at 3 different points tell no quadratic surface"):
        Surface(WHOLE, "quadratic", points, np.arange(9.0))
    with pytest.raises(MtlReError, match="not finite"):
        Surface(WHOLE, "linear", points, np.array([np.nan, *range(8)]))


def test_scores_that_are_all_equal_have_no_tests():
    surface = Surface(WHOLE, "quadratic", design().points, np.full(24, 50.0))
    assert (surface.weights_matter.f, surface.r_squared, surface.prediction_r_squared) == (None, None, None)
    assert find_optimum(surface, 20).not_worse(WHOLE.grid(50)).all()


# ---- rates over simulated studies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(), pytest.param((1, 2, 3), marks=pytest.mark.slow)], ids=["own seeds", "blocks"])
def test_the_global_test_keeps_its_level_when_weights_do_not_matter(blocks):
    plan = design(24, 2, blocks)
    tests = [simulated(plan, np.zeros(24), number).weights_matter for number in range(600)]
    assert tests[0].degrees == (5, 18 if not blocks else 16)
    assert within(np.mean([test.p < 0.05 for test in tests]), 0.05, 600)


def test_lack_of_fit_keeps_its_level_and_finds_a_wrong_form():
    plan = design()
    right = [simulated(plan, peaked(plan.points), number).lack_of_fit.p < 0.05 for number in range(400)]
    assert within(np.mean(right), 0.05, 400)
    wrong = [simulated(plan, 25 * plan.points.prod(axis=1) * 9, n).lack_of_fit.p < 0.05 for n in range(40)]
    assert np.mean(wrong) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(), (1, 2, 3)], ids=["own seeds", "blocks"])
def test_power_is_what_the_plan_promises(blocks):
    plan = design(24, 2, blocks)
    found = {(one.test, one.form): one for one in detectable(plan)}
    assert len(found) == 3
    peak = found["weights matter", "a dome over the middle"]
    truth = 2.0 * peak.size * dome(WHOLE, plan.points)  # the SD is 2
    shown = [simulated(plan, truth, number, sd=2.0).weights_matter.p < 0.05 for number in range(500)]
    assert within(np.mean(shown), POWER, 500)
    curved = found["the surface is curved", "a dome over the middle"]
    truth = curved.size * dome(WHOLE, plan.points)
    fits = [(simulated(plan, truth, n), simulated(plan, truth, n, model="linear")) for n in range(400)]
    assert within(np.mean([full.beyond(plane).p < 0.05 for full, plane in fits]), POWER, 400)


def test_a_slope_is_as_long_as_it_says_and_the_worst_head_counts():
    plan = design(27, 2)
    columns = np.concatenate([terms(plan.points, "quadratic"), block_contrasts(None, 27)], axis=1)
    least = detectable(plan)[0]
    constant, degrees = np.ones((27, 1)), power._degrees(columns, np.ones((27, 1)))
    slopes = [least.size * slope(WHOLE, plan.points, head) for head in range(3)]
    powers = [power._power(degrees, power._noncentrality(constant, truth)) for truth in slopes]
    assert min(powers) == pytest.approx(POWER, abs=1e-6)
    assert np.ptp(slope(WHOLE, WHOLE.corners(), 1)) == 1
    assert dome(WHOLE, WHOLE.corners()).tolist() == pytest.approx([0, 0, 0])


@pytest.mark.slow
def test_intervals_and_bands_cover_at_their_nominal_rate():
    plan, grid = design(), WHOLE.grid(300)
    truth, unit = peaked(grid), np.full((1, 3), 1 / 3)
    point, band, below = [], [], []
    factor = simulated(plan, np.zeros(24), 0).band_factor  # of the design and the degrees of freedom alone
    assert factor == pytest.approx(simulated(plan, peaked(plan.points), 1, sd=3.0).band_factor)
    for number in range(300):
        surface = simulated(plan, peaked(plan.points), number)
        error = np.abs(surface.predict(grid) - truth) / surface.standard_error(grid)
        band.append((error <= factor).all())
        gap = abs(surface.predict(unit)[0] - peaked(unit)[0])
        point.append(gap <= surface.point_factor * surface.standard_error(unit)[0])
        below.append(all(c.low <= v <= c.high for c, v in zip(surface.coefficients, true_coefficients(), strict=True)))
    assert within(np.mean(band), 0.95, 300)
    assert within(np.mean(point), 0.95, 300)
    assert np.mean(below) < 0.95  # six intervals of 95 % each do not hold all at once: the band is no such family
    assert surface.point_factor < factor < math.sqrt(6 * 2.661)  # Scheffé's bound, F(0.95; 6, 18)


def true_coefficients():
    points = WHOLE.grid(100)
    return np.linalg.lstsq(terms(points, "quadratic"), peaked(points), rcond=None)[0]


TRUTHS = {
    "inside": lambda points: peaked(points, height=6),
    "nearly flat": lambda points: peaked(points, height=1.5),
    "on an edge": lambda points: peaked(points, (0.1, 0.0, 0.9), 7),
    "a corner": lambda points: 4 * points[:, 0],
}


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form == "on an edge" else pytest.mark.slow) for form in TRUTHS]
)
def test_the_region_of_the_optimum_covers_and_what_is_called_worse_is_worse(form):
    plan, grid = design(), WHOLE.grid(250)
    truth = TRUTHS[form](grid)
    best, covered, honest, sizes = grid[[truth.argmax()]], [], [], []
    for number in range(30):
        optimum = find_optimum(simulated(plan, TRUTHS[form](plan.points), number), 150, grid)
        covered.append(optimum.region(best)[0])
        called_worse = ~optimum.not_worse(grid)
        honest.append((truth[called_worse] < TRUTHS[form](optimum.point[None])[0] + 1e-9).all())
        sizes.append(optimum.region(grid).mean())
        assert optimum.not_worse(optimum.point[None])[0]
    assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 30)
    assert np.mean(honest) >= 0.95
    assert np.mean(sizes) < {"nearly flat": 0.95}.get(form, 0.3)  # it is no region that covers by holding everything


def test_a_moving_weighting_is_called_better_only_where_it_is():
    plan = design()
    unit, lifted, level = np.full((3, 3), 1 / 3), [], []
    for number in range(200):
        surface = simulated(plan, peaked(plan.points), number)
        noise = np.random.default_rng([9, number]).normal(size=3)
        for bonus, verdicts in ((0.0, level), (4.0, lifted)):
            arm = ArmBeside("famo", True, unit, np.arange(3), {"micro_f1": peaked(unit) + bonus + noise})
            verdicts.append(compare_beside(surface, arm, "micro_f1", 1).verdict)
    assert within(np.mean([verdict != "no difference shown" for verdict in level]), 0.05, 200)
    assert lifted.count("better than the surface there") > 190
    corner = np.eye(3)[[0]]
    inner = Surface(Region.bounded(HEADS, dict.fromkeys(HEADS, (0.1, 1.0))), "linear", plan.points, peaked(plan.points))
    outside = compare_beside(inner, ArmBeside("rlw", True, corner, np.arange(1), {"auprc": np.ones(1)}), "auprc", 1)
    assert outside.verdict.startswith("outside what was tried")


def test_a_block_that_a_moving_weighting_shares_does_not_count_for_it():
    """The first seed is far better for every weighting; so is a moving one there, and no better for it."""
    plan = design(24, 2, (1, 2, 3))
    seeds = np.array([run.seed for run in plan.runs])
    effects = {1: 50.0, 2: 0.0, 3: 0.0}
    noise = np.random.default_rng(0).normal(size=24)
    values = peaked(plan.points) + noise + [effects[seed] for seed in seeds]
    surface = Surface(WHOLE, "quadratic", plan.points, values, seeds)
    unit = np.full((1, 3), 1 / 3)
    for seed, effect in effects.items():
        arm = ArmBeside("dwa", True, unit, np.array([seed]), {"micro_f1": peaked(unit) + effect})
        assert compare_beside(surface, arm, "micro_f1", 1).verdict == "no difference shown"


def test_arms_beside_a_surface_in_blocks_are_compared_in_these_blocks():
    """Seeds differ by 3 points, runs around the surface by 1: another seed is no sign of another weighting."""
    plan = design(24, 2, (1, 2, 3))
    seeds, unit, called = np.array([run.seed for run in plan.runs]), np.full((3, 3), 1 / 3), []
    for number in range(40):
        generator = np.random.default_rng([13, number])
        effects = 3 * generator.normal(size=9)
        values = peaked(plan.points) + generator.normal(size=24) + effects[seeds]
        surface = Surface(WHOLE, "quadratic", plan.points, values, seeds)
        noise = peaked(unit) + generator.normal(size=3)
        arm = ArmBeside("famo", True, unit, np.array([2, 3, 8]), {"micro_f1": noise + effects[[2, 3, 8]]})
        mixed = compare_beside(surface, arm, "micro_f1", 1)
        called.append(mixed.verdict != "no difference shown")
        assert (mixed.runs, mixed.left_out) == (2, (8,))
        assert mixed.measured == pytest.approx(arm.scores["micro_f1"][:2].mean())
    assert within(np.mean(called), 0.05, 40)
    foreign = ArmBeside("rlw", True, unit, np.array([6, 7, 8]), arm.scores)
    alone = compare_beside(surface, foreign, "micro_f1", 1)
    assert (alone.runs, alone.interval, alone.left_out) == (3, None, ())
    assert alone.verdict == "not compared: none of its seeds is a block of the design"
    lines = _beside(HEADS, [mixed, alone], "micro-F1")
    assert any(line.startswith("| rlw") and line.endswith("is a block of the design |") for line in lines)
    assert "Seeds that are no blocks of the design are left out: famo 8." in "\n".join(lines)


def test_coefficients_name_a_corner_that_nobody_tried():
    """An upper bound cuts the corner off, so that a head's coefficient is no score that a run came near."""
    bounds = {"coarse": (0.1, 0.8), "org": (0.1, 0.5), "per": (0.1, 0.8)}
    for region, outside in ((WHOLE, ""), (Region.bounded(HEADS, bounds), "org (at most 50 %)")):
        plan = make_design(DesignOptions("simplex-centroid", 24, 2), region)
        text = "\n".join(_coefficients({"micro_f1": Surface(region, "quadratic", plan.points, peaked(plan.points))}))
        if outside:
            assert "least shares (coarse 80 %, org 80 %, per 80 %); the corner lies outside what was tried" in text
            assert f"is extrapolated: {outside}. Of a pair" in text
        else:
            assert "Of a head: the score with all weight on it. Of a pair" in text


@pytest.mark.slow
def test_the_pairs_of_a_confirmation_lie_where_the_surface_says():
    """The optimum is chosen from the same runs, so its predicted gain is too high; the interval pays for that."""
    plan, unit, inside, gains = design(), np.full(3, 1 / 3), [], []
    truth = peaked(plan.points, height=1.0)
    for number in range(80):
        generator = np.random.default_rng([11, number])
        scores = truth + generator.normal(size=24)
        table = RunTable(WHOLE, plan.points, np.arange(24), None, {"micro_f1": scores})
        best = find_optimum(table.surface("micro_f1", "quadratic"), 1, WHOLE.grid(250)).point
        predicted = predicted_difference(table, "micro_f1", "quadratic", best, unit)
        true = peaked(best[None], height=1.0)[0] - peaked(unit[None], height=1.0)[0]
        low, high = observable(predicted, 5)
        assert low < predicted["low"] <= predicted["difference"] <= predicted["high"] < high
        inside.append(low <= true + math.sqrt(2 / 5) * generator.normal() <= high)
        gains.append(predicted["difference"] - true)
    assert np.mean(gains) > 0.3  # the winner's curse
    assert np.mean(inside) >= 0.95


def test_no_surface_is_asked_beyond_its_runs():
    """A slope that rises towards a corner which no run came near: the optimum is among what was tried."""
    plan = design(24, 2, kind="space-filling")
    surface = Surface(
        WHOLE, "quadratic", plan.points, 50 * plan.points[:, 0] + np.random.default_rng(0).normal(size=24)
    )
    assert not surface.tried(np.eye(3)).any()
    assert surface.tried(plan.points).all()
    optimum = find_optimum(surface, 50)
    assert optimum.point[0] == pytest.approx(plan.points[:, 0].max(), abs=0.05)
    assert surface.tried(optimum.point[None])[0]
    assert len(surface.grid(300)) < 0.8 * len(WHOLE.grid(300))


def test_slices_pass_through_the_largest_heads_first():
    assert slices(np.array([0.1, 0.4, 0.2, 0.3])) == [(1, 3, 2), (1, 3, 0), (1, 2, 0), (3, 2, 0)]


def test_the_sd_of_earlier_runs_is_pooled_inside_arms():
    assert pooled_sd([np.array([1.0, 3.0]), np.array([10.0, 10.0, 10.0]), np.array([7.0])]) == pytest.approx(
        math.sqrt(2 / 3)
    )
    assert pooled_sd([np.array([1.0])]) is None
