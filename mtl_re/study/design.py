"""Designs of mixture experiments: which weights are trained, how often, and with which seeds.

Enters: a region, the kind of design, the number of runs. Leaves: `Run`s, before anything is trained, and the same ones
every time. A textbook design (Scheffé's {q, m} simplex-lattice, 1958; his simplex-centroid, 1963) fixes its own number
of points; the number asked for is met by the D-optimal choice among them or by D-optimal points beside them (Cornell,
Experiments with Mixtures, 3rd ed. 2002, ch. 2 to 4). A run's own seed depends on its weights and its replicate alone,
so a larger design finds the runs of a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.scoring.metrics import Floats
from mtl_re.study.mixture import Model, Region, distinct, products, terms

Kind = Literal["simplex-lattice", "simplex-centroid", "space-filling"]
ROUNDED = 4
"""Decimals of a proportion."""
SEEDS = (100_000, 1_000_000)
"""Range of the runs' own seeds."""
LEAST_DEGREES = 2
"""Of freedom that a design leaves to the residuals: with one, the region of the optimum covers it in 85 % of studies
(simulated, seven runs of a quadratic surface), not in 95."""
TINY = 1e-9
"""Ridge by which points can be compared while they are still too few (DuMouchel & Jones 1994, Technometrics 36)."""


@dataclass(frozen=True)
class Run:
    """One training of a design.

    Attributes:
        point: (q,) proportions of the loss weights, summing to 1.
        replicate: From 1, among the runs at this point.
        seed: Of the training.
        block: From 0, of the runs that share the seed; None where every run has its own.
    """

    point: tuple[float, ...]
    replicate: int
    seed: int
    block: int | None


@dataclass(frozen=True)
class DesignOptions:
    """What a study file's `design` says.

    Attributes:
        kind: Of the points.
        runs: Trainings in all.
        replicates: Trainings at each point; what is left over after whole replicates repeats points D-optimally.
        model: The surface by which points are chosen and the optimum is named, fixed before anything is trained.
        response: The score whose optimum is looked for.
        block_seeds: Seeds of the blocks; empty: every run has its own seed.
        sd: SD of a run's score around the surface, as stated; None if it is not. sd_source: Where it comes from.
        seconds_per_step: As stated; None if it is not.
    """

    kind: Kind
    runs: int
    replicates: int = 2
    model: Model = "quadratic"
    response: str = "micro_f1"
    block_seeds: tuple[int, ...] = ()
    sd: float | None = None
    sd_source: str = ""
    seconds_per_step: float | None = None


@dataclass(frozen=True)
class Design:
    """A mixture design: its options, region and runs, in the order in which they are trained."""

    options: DesignOptions
    region: Region
    runs: tuple[Run, ...]

    @property
    def points(self) -> Floats:
        """(N, q) proportions of the runs."""
        return np.array([run.point for run in self.runs])

    @property
    def blocks(self) -> np.ndarray | None:
        """(N,) numbers of the runs' blocks; None where every run has its own seed."""
        return np.array([run.block for run in self.runs]) if self.options.block_seeds else None


def make_design(options: DesignOptions, region: Region) -> Design:
    """Make the design that the options ask for.

    Raises:
        MtlReError: The runs are too few for the model, or the replicates too many for the blocks.
    """
    names, blocks = region.names, options.block_seeds
    distinct_points = options.runs // options.replicates
    coefficients = len(products(len(names), options.model))
    what = f"a {options.model} surface of {len(names)} heads has {coefficients} coefficients"
    if distinct_points < coefficients:
        raise MtlReError(
            f"runs: {options.runs} at {options.replicates} replicates are {distinct_points} different points, "
            f"but {what}; give more runs, fewer replicates or a simpler model"
        )
    if options.runs < (needed := coefficients + max(len(blocks) - 1, 0) + LEAST_DEGREES):
        raise MtlReError(f"runs: {options.runs}; {what}, so at least {needed} are needed to see their spread")
    support = support_points(options.kind, region, distinct_points, options.model)
    counts = replicate_counts(support, region, options)
    if blocks and counts.max() > len(blocks):
        raise MtlReError(
            f"a point is run {counts.max()} times, but there are {len(blocks)} blocks, and a second run of a "
            "point with the same seed would be the same run; give more blocks or fewer replicates"
        )
    places = np.repeat(np.arange(len(support)), counts)
    assigned = assign_blocks(terms(region.pseudo(support), options.model)[places], places, len(blocks))
    return Design(options, region, _seeded(support, places, assigned, blocks))


def _seeded(support: Floats, places: np.ndarray, assigned: np.ndarray, seeds: Sequence[int]) -> tuple[Run, ...]:
    """Give each run its replicate and seed; blocks come one after the other, the runs inside in random order."""
    runs, taken = [], set()
    replicate: dict[int, int] = {}
    for place, block in zip(places.tolist(), assigned.tolist(), strict=True):
        replicate[place] = replicate.get(place, 0) + 1
        point = tuple(support[place].tolist())
        seed = seeds[block] if seeds else own_seed(point, replicate[place])
        while not seeds and seed in taken:
            seed += 1
        taken.add(seed)
        runs.append(Run(point, replicate[place], seed, block if seeds else None))
    order = np.random.default_rng(0).permutation(len(runs))
    return tuple(sorted((runs[index] for index in order), key=lambda run: run.block or 0))


def own_seed(point: Sequence[float], replicate: int) -> int:
    """Return the seed of a run, a pure function of its weights and its replicate."""
    text = " ".join(f"{part:.{ROUNDED}f}" for part in (*point, replicate))
    low, high = SEEDS
    return low + int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) % (high - low)


# ---- points --------------------------------------------------------------------------------------------------------


def support_points(kind: Kind, region: Region, count: int, model: Model) -> Floats:
    """Return (count, q) different proportions."""
    if kind == "space-filling":
        points = space_filling(region, count)
    else:
        base, more = (_lattice if kind == "simplex-lattice" else _centroid)(region, count)
        if len(base) > count:
            points = d_optimal(base, base[:0], count, region, model)
        else:
            richest: Model = "special-cubic" if count >= len(products(len(region.names), "special-cubic")) else model
            fresh = distinct(np.concatenate([base, more]))[len(base) :]
            points = np.concatenate([base, d_optimal(fresh, base, count - len(base), region, richest)])
    rounded = np.round(points, ROUNDED)
    if len(distinct(rounded)) < count:
        raise MtlReError(
            f"the region has no {count} different points for a {kind} design; give fewer runs, more replicates "
            "or wider bounds"
        )
    return np.asarray(rounded / rounded.sum(axis=1, keepdims=True))


def _lattice(region: Region, count: int) -> tuple[Floats, Floats]:
    """Return the finest simplex-lattice that has no more points than asked for (at least {q, 2}), and finer ones."""

    def lattice(degree: int) -> Floats:
        return distinct(np.concatenate([region.corners(), region.lattice(degree)]))

    degree = 2
    while len(lattice(degree + 1)) <= count:
        degree += 1
    finer = [lattice(degree + more) for more in (1, 2, 3)]
    return lattice(degree), np.concatenate([region.centroids(), *finer])


def _centroid(region: Region, count: int) -> tuple[Floats, Floats]:
    """Return the simplex-centroid design; beside it its axial points, midway to the corners, and lattices."""
    base = region.centroids()
    axial = (region.corners() + base[-1]) / 2
    finer, degree = [axial], 3
    while sum(map(len, finer)) < 2 * count:
        finer.append(region.lattice(degree))
        degree += 1
    return base, np.concatenate(finer)


def space_filling(region: Region, count: int) -> Floats:
    """Return (count, q) points that lie evenly in the region: the centres of clusters of very many even draws.

    As in Lekivetz & Jones 2015 (Qual. Reliab. Eng. Int. 31), by k-means; no draw is on the edge, so no point is either.
    """
    from scipy.cluster.vq import kmeans2

    draws = region.uniform(400 * count, np.random.default_rng(0))
    start = d_spread(draws, count)
    return np.asarray(kmeans2(draws, start, iter=50, minit="matrix")[0])


def d_spread(points: Floats, count: int) -> Floats:
    """Return `count` of the points, each the farthest from those before it, the first nearest to the middle."""
    chosen = [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return points[chosen]


# ---- D-optimality --------------------------------------------------------------------------------------------------


def d_optimal(
    candidates: Floats, fixed: Floats, count: int, region: Region, model: Model, repeats: bool = False
) -> Floats:
    """Return the `count` candidates that, with the fixed points, make the determinant |X'X| of a model greatest.

    Points are added one by one where the prediction varies most, then exchanged while that helps (Fedorov 1972).

    Args:
        candidates: (C, q). fixed: (F, q), may be none. repeats: Whether a candidate may be taken several times.

    Returns:
        (count, q), in the order of the candidates.
    """
    rows, given = (terms(region.pseudo(points), model) for points in (candidates, fixed))
    information = given.T @ given + TINY * np.eye(rows.shape[1])
    if not repeats:
        count = min(count, len(candidates))
    chosen: list[int] = []
    for _ in range(count):
        gain = _variances(rows, information)
        gain[[] if repeats else chosen] = -np.inf
        chosen.append(int(np.round(gain, 9).argmax()))
        information += np.outer(rows[chosen[-1]], rows[chosen[-1]])
    improved = True
    while improved:
        improved = False
        for place, old in enumerate(chosen):
            without = information - np.outer(rows[old], rows[old])
            gain = _variances(rows, without)
            gain[[] if repeats else [other for other in chosen if other != old]] = -np.inf
            new = int(gain.argmax())
            if gain[new] > gain[old] * (1 + 1e-6):
                chosen[place], improved = new, True
                information = without + np.outer(rows[new], rows[new])
    return candidates[sorted(chosen)]


def _variances(rows: Floats, information: Floats) -> Floats:
    """Return x' (X'X)^-1 x of every row."""
    return np.asarray(np.einsum("ij,ij->i", rows @ np.linalg.pinv(information, hermitian=True), rows))


def replicate_counts(support: Floats, region: Region, options: DesignOptions) -> np.ndarray:
    """Return how often each point is run: `replicates` times, and what is left over once more where it tells most."""
    counts = np.full(len(support), options.replicates)
    left = options.runs - int(counts.sum())
    if left:
        fixed = np.repeat(support, options.replicates, axis=0)
        for extra in d_optimal(support, fixed, left, region, options.model, left > len(support)):
            counts[int(((support - extra) ** 2).sum(axis=1).argmin())] += 1
    return counts


def d_efficiency(points: Floats, region: Region, model: Model) -> float:
    """Return the D-efficiency of runs in %: their |X'X / N|^(1/p) over the greatest that any shares of runs can have.

    The optimum over shares is found on a grid of the region by the multiplicative algorithm (Silvey, Titterington &
    Torsney 1978, Commun. Stat. A 7). On a whole simplex it is the {q, 2} lattice for the quadratic model (Kiefer 1961).
    """
    candidates = distinct(np.concatenate([region.corners(), region.centroids(), region.grid(400), points]))
    rows, mine = (terms(region.pseudo(part), model) for part in (candidates, points))
    shares = np.full(len(rows), 1 / len(rows))
    for _ in range(2_000):
        variances = _variances(rows, rows.T @ (shares[:, None] * rows))
        if variances.max() < rows.shape[1] * 1.001:  # the equivalence theorem (Kiefer & Wolfowitz 1960)
            break
        shares *= variances / rows.shape[1]
    best = np.linalg.slogdet(rows.T @ (shares[:, None] * rows))[1]
    sign, own = np.linalg.slogdet(mine.T @ mine / len(mine))
    return float(100 * np.exp((own - best) / rows.shape[1])) if sign > 0 else 0.0


# ---- blocks --------------------------------------------------------------------------------------------------------


def assign_blocks(rows: Floats, places: np.ndarray, blocks: int) -> np.ndarray:
    """Return the block of each run, such that blocks take as little as can be from the surface.

    Blocks have equal sizes within one run, and no point twice. Runs are exchanged between blocks while the determinant
    of the model with block effects grows.

    Args:
        rows: (N, coefficients) of the model. places: (N,) number of each run's point. blocks: 0 for none.
    """
    assigned = np.zeros(len(places), dtype=np.int64)
    if blocks < 2:
        return assigned
    sizes, taken = np.zeros(blocks, dtype=np.int64), set()
    for index, place in enumerate(places.tolist()):  # runs of one point stand together, so each finds a block
        free = [block for block in range(blocks) if (place, block) not in taken]
        assigned[index] = min(free, key=lambda block: (sizes[block], block))
        taken.add((place, int(assigned[index])))
        sizes[assigned[index]] += 1
    best = _log_determinant(rows, assigned)
    improved = True
    while improved:
        improved = False
        for one, other in ((a, b) for a in range(len(places)) for b in range(a)):
            swapped = assigned.copy()
            swapped[[one, other]] = assigned[[other, one]]
            if assigned[one] == assigned[other] or places[one] == places[other] or _repeats(places, swapped):
                continue
            if (value := _log_determinant(rows, swapped)) > best + 1e-9:
                assigned, best, improved = swapped, value, True
    return assigned


def _repeats(places: np.ndarray, assigned: np.ndarray) -> bool:
    return len(set(zip(places.tolist(), assigned.tolist(), strict=True))) < len(places)


def _log_determinant(rows: Floats, assigned: np.ndarray) -> float:
    columns = np.concatenate([rows, block_contrasts(assigned)], axis=1)
    sign, value = np.linalg.slogdet(columns.T @ columns)
    return float(value) if sign > 0 else -np.inf


def block_contrasts(blocks: np.ndarray | None, count: int = 0) -> Floats:
    """Return (N, blocks - 1) columns of block effects that sum to 0, so that a surface is the mean over the blocks.

    Args:
        blocks: (N,) any labels; None for no blocks.
        count: N, where there are no blocks.
    """
    if blocks is None:
        return np.zeros((count, 0))
    labels, index = np.unique(blocks, return_inverse=True)
    effects = np.concatenate([np.eye(len(labels) - 1), -np.ones((1, len(labels) - 1))])
    return np.asarray(effects[index.ravel()])
