"""Mixtures: the region in which weights may lie, and Scheffé's polynomials on it.

Enters: names of components (the heads) and bounds of their proportions. Leaves: points, and the columns of a model.
Proportions sum to 1, so a polynomial in them has no intercept of its own: Scheffé's canonical forms drop the terms that
the sum makes redundant (Scheffé 1958, J. R. Statist. Soc. B 20). Under lower bounds the components are rescaled to
L-pseudocomponents (Kurotori 1966; Cornell, Experiments with Mixtures, 3rd ed. 2002, ch. 3). Their corners are those of
the region unless upper bounds cut these off: then a head's coefficient is the score at weights that nobody tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.files import file_name
from mtl_re.scoring.metrics import Floats

Model = Literal["linear", "quadratic", "special-cubic"]
MODELS: tuple[Model, ...] = get_args(Model)
MOST_COMPONENTS = 8
"""With upper bounds, corners and faces are found by looking at all combinations of bounds."""
GRID_POINTS = 5_151
"""Of a fine grid: three components in steps of one percent of the region."""
CLOSE = 1e-9


# ---- Scheffé's polynomials -----------------------------------------------------------------------------------------


def products(components: int, model: Model) -> list[tuple[int, ...]]:
    """Return the components that are multiplied in each term of a model, such as (0,), (1,), (0, 1)."""
    degree = MODELS.index(model) + 1
    return [term for size in range(1, degree + 1) for term in itertools.combinations(range(components), size)]


def terms(pseudo: Floats, model: Model) -> Floats:
    """Return the columns of a Scheffé model: Σ β_i x_i [+ Σ β_ij x_i x_j [+ Σ β_ijk x_i x_j x_k]].

    Args:
        pseudo: (N, q) pseudocomponents.

    Returns:
        (N, coefficients), in the order of `products`.
    """
    columns = [pseudo[:, list(term)].prod(axis=1) for term in products(pseudo.shape[1], model)]
    return np.stack(columns, axis=1)


def term_names(components: Sequence[str], model: Model) -> list[str]:
    """Return the names of a model's terms, such as `coarse`, `coarse × org`."""
    return [" × ".join(components[index] for index in term) for term in products(len(components), model)]


# ---- the region ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """The proportions that are tried: a simplex, cut by bounds.

    Attributes:
        names: Of the components, at least two.
        low: (q,) least proportion of each.
        high: (q,) greatest proportion of each, no greater than the others' least ones allow.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def bounded(cls, names: Sequence[str], bounds: Mapping[str, tuple[float, float]]) -> Region:
        """Make a region; a component without bounds may have any proportion.

        Raises:
            MtlReError: There are fewer than two components, a name is no component, or no mixture fits the bounds.
        """
        if len(names) < 2:
            raise MtlReError(f"a mixture needs two components or more, but there is one: {', '.join(names)}")
        if unknown := [name for name in bounds if name not in names]:
            raise MtlReError(f"bounds: no head is called {unknown[0]!r}; the heads are {', '.join(names)}")
        low = np.array([bounds.get(name, (0.0, 1.0))[0] for name in names])
        high = np.array([bounds.get(name, (0.0, 1.0))[1] for name in names])
        for name, least, most in zip(names, low, high, strict=True):
            if not 0 <= least < most <= 1:
                raise MtlReError(f"bounds: {name}: [{least:g}, {most:g}]; expected two proportions, 0 ≤ low < high ≤ 1")
        if low.sum() > 1 - 0.01 or high.sum() < 1 + 0.01:
            sums = f"the lower bounds sum to {low.sum():g}, the upper ones to {high.sum():g}"
            raise MtlReError(f"bounds: {sums}; proportions sum to 1, and must have room between the bounds")
        high = np.minimum(high, 1 - low.sum() + low)
        low = np.maximum(low, 1 - high.sum() + high)  # what the others' upper bounds leave as the least
        region = cls(tuple(names), tuple(low.tolist()), tuple(high.tolist()))
        if not region.simplex and len(names) > MOST_COMPONENTS:
            raise MtlReError(f"bounds: upper bounds are possible for at most {MOST_COMPONENTS} heads, not {len(names)}")
        return region

    @property
    def simplex(self) -> bool:
        """Whether only lower bounds cut the region, so that it is a smaller simplex."""
        low, high = np.array(self.low), np.array(self.high)
        return bool((high >= 1 - low.sum() + low - CLOSE).all())

    def pseudo(self, proportions: Floats) -> Floats:
        """Rescale proportions (N, q) to L-pseudocomponents: (x - low) / (1 - Σ low)."""
        low = np.array(self.low)
        return np.asarray((proportions - low) / (1 - low.sum()))

    def actual(self, pseudo: Floats) -> Floats:
        """Do the inverse of `pseudo`."""
        low = np.array(self.low)
        return np.asarray(low + pseudo * (1 - low.sum()))

    def inside(self, proportions: Floats) -> np.ndarray:
        """Return whether each row of (N, q) proportions lies in the region, its edge included."""
        low, high = np.array(self.low), np.array(self.high)
        return np.asarray(((proportions >= low - CLOSE) & (proportions <= high + CLOSE)).all(axis=1))

    def lattice(self, degree: int) -> Floats:
        """Return the points of the {q, degree} simplex-lattice of the pseudocomponents that lie in the region."""
        rows = compositions(degree, len(self.names)) / degree
        points = self.actual(rows)
        return points[self.inside(points)]

    def corners(self) -> Floats:
        """Return the extreme vertices (V, q) (McLean & Anderson 1966, Technometrics 8)."""
        if self.simplex:
            return self.actual(np.eye(len(self.names)))
        found = []
        for free in range(len(self.names)):
            others = [(self.low[i], self.high[i]) for i in range(len(self.names)) if i != free]
            for ends in itertools.product(*others):
                row = np.insert(np.array(ends), free, 1 - sum(ends))
                if self.inside(row[None])[0]:
                    found.append(row)
        return distinct(np.array(found))

    def centroids(self) -> Floats:
        """Return the centroids of all faces: the corners first, the middles of the edges, at last the whole region's.

        Of a simplex of more than `MOST_COMPONENTS` corners only the faces of up to three corners, and the whole.
        """
        corners = self.corners()
        return distinct(np.array([corners[list(members)].mean(axis=0) for members in self._faces(corners)]))

    def _faces(self, corners: Floats) -> list[tuple[int, ...]]:
        """Return the numbers of each face's corners, small faces first."""
        count, size = len(corners), len(self.names)
        if self.simplex:
            sizes = range(1, count + 1) if size <= MOST_COMPONENTS else (1, 2, 3, count)
            return [members for number in sizes for members in itertools.combinations(range(count), number)]
        met = np.concatenate([np.isclose(corners, self.low), np.isclose(corners, self.high)], axis=1)  # (V, 2q)
        found = {
            tuple(np.flatnonzero(met[:, list(bounds)].all(axis=1)).tolist())
            for number in range(size)  # a face is where some bounds are met at once
            for bounds in itertools.combinations(range(2 * size), number)
        }
        return sorted(found - {()}, key=lambda members: (len(members), members))

    def grid(self, most: int = GRID_POINTS) -> Floats:
        """Return a regular grid over the whole region with its corners, of about `most` points before bounds cut it."""
        degree, size = 1, len(self.names)
        while math.comb(degree + size, size - 1) <= most:
            degree += 1
        return distinct(np.concatenate([self.lattice(degree), self.corners()]))

    def uniform(self, count: int, generator: np.random.Generator) -> Floats:
        """Draw (count, q) points evenly from the region; nearly evenly where bounds leave a sliver of the simplex."""
        drawn = self.actual(generator.dirichlet(np.ones(len(self.names)), 50 * count))
        drawn = drawn[self.inside(drawn)]
        if len(drawn) < count:
            corners = self.corners()
            drawn = generator.dirichlet(np.ones(len(corners)), count) @ corners
        return np.asarray(drawn[:count])


def compositions(total: int, parts: int) -> Floats:
    """Return all (N, parts) whole numbers, not negative, that sum to `total`, in lexical order from the last."""
    bars = itertools.combinations(range(total + parts - 1), parts - 1)
    edges = np.array([(-1, *places, total + parts - 1) for places in bars])
    return np.diff(edges, axis=1)[::-1].astype(np.float64) - 1


def distinct(points: Floats) -> Floats:
    """Return the rows without those that repeat an earlier one, in their order."""
    _, first = np.unique(np.round(points, 7), axis=0, return_index=True)
    return points[np.sort(first)]


def replicated(points: Floats) -> np.ndarray:
    """Return the number of the distinct point that each row of (N, q) stands at: (N,), from 0."""
    _, groups = np.unique(np.round(points, 7), axis=0, return_inverse=True)
    return np.asarray(groups).ravel()


# ---- words ---------------------------------------------------------------------------------------------------------


def point_name(heads: Sequence[str], point: Sequence[float]) -> str:
    """Return an arm's name made of percentages, such as `coarse=50,org=25,per=25`."""
    return file_name(",".join(f"{head}={round(100 * part, 2):g}" for head, part in zip(heads, point, strict=True)))


def weights(heads: Sequence[str], point: Sequence[float]) -> dict[str, float]:
    """Return `loss.weights` of proportions: they sum to the number of heads, as a run normalises them."""
    return {head: round(part * len(heads), 4) for head, part in zip(heads, point, strict=True)}


def point_text(heads: Sequence[str], point: Sequence[float] | Floats) -> str:
    """Return proportions in words, such as `coarse 50 %, org 25 %, per 25 %`."""
    return ", ".join(f"{head} {100 * part:.3g} %" for head, part in zip(heads, point, strict=True))


# ---- the triangle of three proportions -----------------------------------------------------------------------------

CORNERS = ((0.5, math.sqrt(3) / 2), (0.0, 0.0), (1.0, 0.0))
"""Corners of the triangle: top, left, right."""


def ternary(shares: Floats) -> Floats:
    """Map shares of three weights, on any scale, to points in the triangle `CORNERS`, one corner for each weight.

    Shape: (N, 3) → (N, 2).

    Raises:
        MtlReError: There are not three columns, or a row has a negative value or sums to 0.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.ndim != 2 or shares.shape[1] != 3 or (shares < 0).any() or not (shares.sum(axis=1) > 0).all():
        raise MtlReError(
            f"ternary: shape {shares.shape}; expected (N, 3) weights, not negative, some above 0 in each row"
        )
    return np.asarray(shares / shares.sum(axis=1, keepdims=True) @ np.array(CORNERS))
