"""Weightings: sums, exact restoring, and the direction in which each one moves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mtl_re.errors import MtlReError, entry
from mtl_re.training.weighting import WEIGHTINGS

HEADS = ("coarse", "org", "per")


def losses(step: int) -> dict[str, float]:
    """Falling losses of different sizes; at every seventh step a head without rows."""
    values = {"coarse": 1.1 * 0.97**step, "org": 2.4 * 0.99**step, "per": 2.9 * 0.995**step}
    return {name: value for name, value in values.items() if step % 7 or name != "org"}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_factors_are_positive_and_sum_to_the_number_of_heads(name: str) -> None:
    weighting = WEIGHTINGS[name](HEADS, 3)
    for step in range(40):
        factors = weighting.factors(step)
        assert tuple(factors) == HEADS
        assert min(factors.values()) > 0
        assert math.isclose(sum(factors.values()), 3, rel_tol=1e-9)
        weighting.update(losses(step), losses(step + 1))
        if step % 10 == 9:
            weighting.end_epoch()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("cut", [1, 13, 25])
def test_a_restored_weighting_goes_on_exactly(name: str, cut: int) -> None:
    def advance(weighting: object, steps: range) -> list[dict[str, float]]:
        seen = []
        for step in steps:
            seen.append(weighting.factors(step))  # type: ignore[attr-defined]
            weighting.update(losses(step), losses(step + 1))  # type: ignore[attr-defined]
            if step % 10 == 9:
                weighting.end_epoch()  # type: ignore[attr-defined]
        return seen

    whole = WEIGHTINGS[name](HEADS, 3)
    expected = advance(whole, range(40))[cut:]
    first = WEIGHTINGS[name](HEADS, 3)
    advance(first, range(cut))
    second = WEIGHTINGS[name](HEADS, 3)
    second.restore(json.loads(json.dumps(first.state())))
    assert advance(second, range(cut, 40)) == expected


def test_uncertainty_favours_the_small_loss_and_settles_at_its_optimum() -> None:
    weighting = WEIGHTINGS["uncertainty"](HEADS, 0)
    for _ in range(3000):
        weighting.update({"coarse": 0.5, "org": 1.0, "per": 2.0}, None)
    factors = weighting.factors(0)  # the optimum of exp(-s)·L + s is exp(-s) = 1 / L
    expected = np.array([2, 1, 0.5]) * 3 / 3.5
    assert np.allclose(list(factors.values()), expected, rtol=0.02)


def test_dwa_favours_the_head_that_learns_slowest() -> None:
    weighting = WEIGHTINGS["dwa"](HEADS, 0)
    for epoch in range(2):
        assert set(weighting.factors(0).values()) == {1.0}
        weighting.update({"coarse": 1.0 - 0.5 * epoch, "org": 1.0, "per": 1.0 - 0.1 * epoch}, None)
        weighting.end_epoch()
    ratios = np.exp(np.array([0.5, 1.0, 0.9]) / 2)
    assert np.allclose(list(weighting.factors(0).values()), 3 * ratios / ratios.sum())


def test_rlw_is_a_pure_function_of_seed_and_step() -> None:
    one, other, third = (WEIGHTINGS["rlw"](HEADS, seed) for seed in (1, 1, 2))
    assert one.factors(5) == other.factors(5)
    assert one.factors(5) != one.factors(6)
    assert one.factors(5) != third.factors(5)
    mean = np.mean([list(one.factors(step).values()) for step in range(4000)], axis=0)
    assert np.allclose(mean, 1, atol=0.03)


def test_famo_takes_weight_from_the_head_that_falls_fastest() -> None:
    weighting = WEIGHTINGS["famo"](HEADS, 0)
    for _ in range(30):
        weighting.update(dict.fromkeys(HEADS, 1.0), {"coarse": 0.5, "org": 0.9, "per": 0.99})
    factors = weighting.factors(0)
    assert factors["coarse"] < factors["org"] < factors["per"]
    with pytest.raises(ValueError, match="after"):
        weighting.update(dict.fromkeys(HEADS, 1.0), None)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(MtlReError, match=r"'nash'; expected one of fixed, uncertainty"):
        entry("loss.weighting", "nash", WEIGHTINGS)
