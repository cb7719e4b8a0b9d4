"""EM finds the shares of a set of rows whose posteriors are calibrated, from nothing but the posteriors."""

import numpy as np
import pytest

from mtl_re.errors import MtlReError
from mtl_re.scoring.calibration_fits import em_prior


def posteriors(truth, trained, rows: int = 20_000, spread: float = 1.5, seed: int = 0):
    """Rows drawn under `truth` from one Gaussian a class; posteriors of a classifier made under `trained`."""
    generator = np.random.default_rng(seed)
    centres = np.eye(len(truth)) * spread
    gold = generator.choice(len(truth), size=rows, p=truth)
    points = centres[gold] + generator.standard_normal((rows, len(truth)))
    density = np.exp(-0.5 * ((points[:, None] - centres) ** 2).sum(-1))
    joint = density * np.asarray(trained)
    return joint / joint.sum(axis=1, keepdims=True), np.bincount(gold, minlength=len(truth)) / rows


@pytest.mark.parametrize(
    ("truth", "trained"),
    [
        ((0.596, 0.17, 0.234), (0.294, 0.32, 0.386)),
        ((0.294, 0.32, 0.386), (0.294, 0.32, 0.386)),
        ((0.02, 0.9, 0.08), (1 / 3, 1 / 3, 1 / 3)),
        ((0.7, 0.3), (0.2, 0.8)),
    ],
    ids=["KLUE-RE dev", "no shift", "far", "two classes"],
)
def test_em_finds_the_true_shares(truth, trained):
    coarse, share = posteriors(truth, trained)
    naive = np.abs(coarse.mean(axis=0) - share).max()
    found = em_prior(coarse, trained)
    assert sum(found) == pytest.approx(1)
    np.testing.assert_allclose(found, share, atol=0.02)
    if truth != trained:
        assert np.abs(np.array(found) - share).max() < naive / 4


def test_sure_posteriors_are_counted():
    coarse = np.eye(3)[[0, 0, 0, 1, 2, 2, 0, 0]]
    np.testing.assert_allclose(em_prior(coarse, [0.2, 0.3, 0.5]), [5 / 8, 1 / 8, 2 / 8])


def test_rows_that_say_nothing_leave_the_prior():
    trained = [0.2, 0.3, 0.5]
    np.testing.assert_allclose(em_prior(np.tile(trained, (10, 1)), trained), trained)


def test_the_estimate_is_a_fixed_point():
    trained = np.array([0.3, 0.3, 0.4])
    coarse, _ = posteriors((0.6, 0.1, 0.3), trained, rows=500)
    found = np.array(em_prior(coarse, trained))
    joint = coarse * found / trained
    np.testing.assert_allclose((joint / joint.sum(axis=1, keepdims=True)).mean(axis=0), found, atol=1e-6)


def test_a_class_that_training_never_saw():
    with pytest.raises(MtlReError, match="no training row"):
        em_prior(np.full((4, 2), 0.5), [1.0, 0.0])
