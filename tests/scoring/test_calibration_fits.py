"""Fits of temperature, prior and threshold on data whose truth is known."""

import numpy as np
import pytest

from mtl_re.errors import MtlReError
from mtl_re.scoring import calibration_fits, metrics
from mtl_re.taxonomy import IGNORE, Taxonomy

TAXONOMY = Taxonomy.from_prefixes()


def draw(probs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return (probs.cumsum(axis=1) > generator.random((len(probs), 1))).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 11)) * 2
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gold = draw(probs, generator)
    gold[::3] = IGNORE
    assert calibration_fits.fit_temperature(logits * temperature, gold) == pytest.approx(temperature, rel=0.03)


def test_few_rows_show_no_temperature() -> None:
    """One right row alone would ask for a temperature of 0, and the head would be sure of everything."""
    logits, right = np.tile([2.0, 0.0, -1.0], (100, 1)), np.zeros(100, int)
    assert calibration_fits.fit_temperature(logits, np.full(100, IGNORE)) is None
    assert calibration_fits.fit_temperature(logits, right) is None  # all right: it falls to the lower bound
    assert calibration_fits.fit_temperature(logits, right + 2) is None  # all wrong: to the upper one
    mixed = np.where(np.arange(100) < 80, 0, 1)
    assert calibration_fits.fit_temperature(logits, mixed) is not None
    assert calibration_fits.fit_temperature(logits, np.where(np.arange(100) < 71, IGNORE, mixed)) is None
    fitted = calibration_fits.fit_temperatures(
        {"coarse": np.zeros((3, 3)), "org": np.zeros((3, 11)), "per": np.zeros((3, 18))},
        ["no_relation"] * 3,
        Taxonomy.from_prefixes(),
    )
    assert fitted == {"coarse": 1.0, "org": 1.0, "per": 1.0}


def test_em_and_bbse_find_the_same_shift() -> None:
    generator = np.random.default_rng(1)
    centres = np.eye(3) * 2

    def rows(shares: list[float], count: int) -> tuple[np.ndarray, np.ndarray]:
        gold = generator.choice(3, size=count, p=shares)
        scores = (centres[gold] + generator.normal(size=(count, 3))) @ centres.T + np.log(trained)
        posterior = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return gold, posterior

    trained, target = [0.3, 0.3, 0.4], [0.6, 0.15, 0.25]
    gold, seen = rows(trained, 20_000)
    _, shifted = rows(target, 20_000)
    by_em = calibration_fits.em_prior(shifted, trained)
    by_bbse = calibration_fits.bbse_prior(seen.argmax(axis=1), gold, shifted.argmax(axis=1), 3)
    assert np.allclose(by_em, target, atol=0.02)
    assert np.allclose(by_bbse, target, atol=0.02)
    assert sum(by_bbse) == pytest.approx(1)


def test_bbse_refuses_a_class_that_is_never_there() -> None:
    with pytest.raises(MtlReError, match="singular"):
        calibration_fits.bbse_prior(np.array([0, 1]), np.array([0, 1]), np.array([0, 1]), 3)


def test_the_threshold_is_the_best_of_all_by_the_official_score() -> None:
    generator = np.random.default_rng(2)
    probs = generator.dirichlet(np.full(30, 0.3), size=300)
    gold = draw(probs, generator)
    gold[::2] = 0
    best = probs[:, 1:].argmax(axis=1) + 1
    found = calibration_fits.fit_threshold(probs, gold, best, TAXONOMY, resamples=20)

    def score(threshold: float) -> float:
        return metrics.micro_f1(gold, np.where(1 - probs[:, 0] >= threshold, best, 0), TAXONOMY)

    assert found.f1 == pytest.approx(score(found.value))
    assert found.f1 == pytest.approx(max(score(value) for value in 1 - probs[:, 0]))
    assert found.interval[0] <= found.interval[1]


def test_the_threshold_follows_the_weights() -> None:
    generator = np.random.default_rng(3)
    gold = np.repeat([0, 5], 400)
    related = np.clip(generator.normal(np.where(gold == 5, 0.6, 0.4), 0.15), 0.01, 0.99)
    probs = np.zeros((800, 30))
    probs[:, 0], probs[:, 5] = 1 - related, related
    best = np.full(800, 5)
    even = calibration_fits.fit_threshold(probs, gold, best, TAXONOMY, resamples=0)
    rare = calibration_fits.fit_threshold(probs, gold, best, TAXONOMY, np.where(gold == 0, 8.0, 1.0), resamples=0)
    assert rare.value > even.value
    repeated = np.repeat(np.arange(800), np.where(gold == 0, 8, 1))
    again = calibration_fits.fit_threshold(probs[repeated], gold[repeated], best[repeated], TAXONOMY, resamples=0)
    assert rare.value == pytest.approx(again.value)
