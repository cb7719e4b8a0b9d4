"""Where a coarse prior is estimated: never from the labels of the rows that are then scored.

Saerens, Latinne & Decaestecker 2002 ("Adjusting the outputs of a classifier to new a priori probabilities"): EM on
unlabelled rows for the class shares under which the classifier's posteriors are consistent. It presumes calibrated
posteriors; on uncalibrated ones it overshoots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_re.errors import MtlReError


def em_prior(coarse: np.ndarray, trained: Sequence[float], rounds: int = 1000, tolerance: float = 1e-8) -> list[float]:
    """Class shares of a set of unlabelled rows.

    Args:
        coarse: (rows, groups) posteriors under the training prior.
        trained: (groups,) the training prior.

    Returns:
        The estimated shares, summing to 1.

    Raises:
        MtlReError: a class that training never saw.
    """
    old = np.asarray(trained, float)
    if (old <= 0).any():
        raise MtlReError("prior: a coarse class had no training row, so its share cannot be estimated")
    share = old.copy()
    for _ in range(rounds):
        joint = coarse * (share / old)
        updated = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(updated - share).max() < tolerance:
            break
        share = updated
    return [float(value) for value in updated / updated.sum()]
