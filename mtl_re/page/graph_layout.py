"""Boxes and labelled arrows between them → places where no two of them overlap, if there are any.

Enters: sizes in pixels. Leaves: centres of boxes, arrows as quadratic Bézier curves, centres of labels, and the height
that they need at a given width. The first places are those of Kamada and Kawai (1989), by networkx: distances in the
picture follow those in the graph. They are turned and stretched in several ways, boxes are pushed apart, every label
takes the free place on its arrow, and the arrangement with the fewest faults wins. Equal input gives equal places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

MARGIN = 8.0
GAP = 16.0
"""Pixels between two boxes at least."""
SHORTEST = 26.0
"""Pixels of an arrow that must be seen beside its label."""
HEIGHTS = (140.0, 200.0, 280.0, 380.0, 500.0, 640.0, 800.0, 1000.0)
TURNS = 10
"""Ways to turn the first places."""
TRIALS, STEP = 120, 60.0
"""Random moves of single boxes afterwards, and the pixels of the first ones."""
ASIDE = 0.4
"""Part of its bend by which an arrow's ends stand aside of the middles of its boxes."""
NEAR = 13.0
"""Pixels between two arrow ends at one box below which they look like one."""
STEPS = 25
"""Points by which a curve is seen."""
LABEL_PLACES = np.array([0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74])
APART = 1.8
"""Distance, in arrows, at which parts of the graph are held that no arrow joins."""
OVERLAP_COST, CROSSING_COST, PIXELS_A_CROSSING = 10.0, 1.0, 220.0
"""An overlap is worse than any crossing; a crossing is as bad as a picture higher by so many pixels."""


@dataclass(frozen=True)
class Links:
    """The arrows to be drawn.

    Attributes:
        first, second: (links,), the numbers of their boxes, which differ.
        labels: (links, 2), the sizes of their labels.
        bend: (links,), how far each leaves the straight line, in pixels, to its left.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    labels: Points
    bend: Points


@dataclass(frozen=True)
class Arrangement:
    """Where everything stands, in pixels.

    Attributes:
        centres: (boxes, 2). curves: (links, 3, 2): start, control point and end. labels: (links, 2), centres.
        height: Of the picture. overlaps: Pairs of things that overlap all the same. cost: What the search made least.
    """

    centres: Points
    curves: Points
    labels: Points
    height: float
    overlaps: int
    cost: float


def arrange(boxes: Points, links: Links, width: float) -> Arrangement:
    """Return the best arrangement that is found in a picture of such a width.

    Args:
        boxes: (boxes, 2), width and height of each.
        links: At least one.
    """
    first = _first_places(len(boxes), links)
    best: Arrangement | None = None
    for height in HEIGHTS:
        if best is not None and best.cost < height / PIXELS_A_CROSSING:
            break  # a higher picture costs more, however free of faults it is
        for angle in np.pi * np.arange(TURNS) / TURNS:
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            made = _arranged(_fitted(first @ turn.T, boxes, width, height), boxes, links, width)
            best = made if best is None or made.cost < best.cost else best
    assert best is not None
    return _mended(best, boxes, links, width)


def _first_places(count: int, links: Links) -> Points:
    """Return (boxes, 2) places by distances in the graph."""
    import networkx as nx

    graph: Any = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(zip(links.first.tolist(), links.second.tolist(), strict=True))
    near = dict(nx.all_pairs_shortest_path_length(graph))
    distances = {one: {other: near[one].get(other, APART) for other in range(count)} for one in range(count)}
    places = nx.kamada_kawai_layout(graph, dist=distances)
    return np.array([places[number] for number in range(count)], float)


def _mended(best: Arrangement, boxes: Points, links: Links, width: float) -> Arrangement:
    """Move single boxes by random steps, and keep every step that makes the arrangement better."""
    random = np.random.default_rng(0)
    for trial in range(TRIALS):
        if best.cost <= best.height / PIXELS_A_CROSSING:
            break  # no fault is left
        centres = best.centres.copy()
        step = STEP * (1 - trial / TRIALS) + 10
        centres[random.integers(len(boxes))] += random.normal(0, step, 2)
        made = _arranged(_apart(centres, boxes, width), boxes, links, width)
        best = made if made.cost < best.cost else best
    return best


def _fitted(places: Points, boxes: Points, width: float, height: float) -> Points:
    """Stretch places over the picture."""
    low, high = places.min(0), places.max(0)
    shares = np.where(high - low > 1e-6, (places - low) / np.maximum(high - low, 1e-6), 0.5)
    room = np.maximum(np.array([width, height]) - 2 * MARGIN - boxes, 0)
    return _apart(MARGIN + boxes / 2 + shares * room, boxes, width)


def _apart(centres: Points, boxes: Points, width: float) -> Points:
    """Push boxes apart that overlap, inside the picture's width; what does not fit goes up or down."""
    reach = (boxes[:, None] + boxes[None]) / 2 + GAP
    least = MARGIN + boxes[:, 0] / 2
    order = np.sign(np.arange(len(boxes))[:, None] - np.arange(len(boxes)))  # of two at one place, the first goes up
    for _ in range(80):
        centres[:, 0] = np.clip(centres[:, 0], least, np.maximum(width - least, least))
        apart = centres[:, None] - centres[None]
        space = reach - np.abs(apart)
        clash = (space[..., 0] > 0.5) & (space[..., 1] > 0.5) & (order != 0)
        if not clash.any():
            break
        axis = (space[..., :1] > space[..., 1:]) == np.array([False, True])
        push = np.where(axis & clash[..., None], np.where(apart == 0, order[..., None], np.sign(apart)) * space, 0)
        centres = centres + push.sum(1) * 0.4
    return centres


def _arranged(centres: Points, boxes: Points, links: Links, width: float) -> Arrangement:
    """Draw the arrows between placed boxes, place their labels, and count what is wrong."""
    curves = _curves(centres, boxes, links)
    seen = _points(curves, np.linspace(0, 1, STEPS))
    places, room = _points(curves, LABEL_PLACES), links.labels[:, None, 0] / 2
    places[..., 0] = np.clip(places[..., 0], room, np.maximum(width - room, room))
    labels, overlaps = _labels(centres, boxes, places, links.labels)
    under_label = ~_outside(seen[:, :, None], labels, links.labels, 0.0)  # (links, steps, labels)
    shown = 1 - np.diagonal(under_label.mean(1))  # the share of each arrow that its own label leaves to be seen
    length = np.hypot(*(seen[:, 1:] - seen[:, :-1]).sum(1).T)
    overlaps += _through(seen, links, centres, boxes) + int((shown * length < SHORTEST).sum())
    crossed = under_label.any(1) & ~np.eye(len(labels), dtype=bool)
    top = float(min((centres - boxes / 2)[:, 1].min(), (labels - links.labels / 2)[:, 1].min(), seen[..., 1].min()))
    bottom = max((centres + boxes / 2)[:, 1].max(), (labels + links.labels / 2)[:, 1].max(), seen[..., 1].max())
    height, shift = float(bottom) - top + 2 * MARGIN, np.array([0.0, MARGIN - top])
    unclear = _crossings(seen) + int(crossed.sum()) + _meeting(curves, links)
    cost = OVERLAP_COST * overlaps + CROSSING_COST * unclear
    cost += height / PIXELS_A_CROSSING
    return Arrangement(centres + shift, curves + shift, labels + shift, height, overlaps, cost)


def _labels(centres: Points, boxes: Points, places: Points, labels: Points) -> tuple[Points, int]:
    """Return each label's centre, one of its `places` (links, places, 2), and how many pairs of things overlap."""
    taken, sizes, count = np.concatenate([centres, labels]), np.concatenate([boxes, labels]), len(centres)
    for number, (label, near) in enumerate(zip(labels, places, strict=True), start=count):
        free = _overlaps(near, label, taken[:number], sizes[:number]).sum(1)
        taken[number] = near[int(free.argmin())]
    clash = _overlaps(taken, sizes, taken, sizes)
    return taken[count:], int(np.triu(clash, 1).sum())


def _curves(centres: Points, boxes: Points, links: Links) -> Points:
    """Return (links, 3, 2): the arrows, each between the edges of its two boxes."""
    start, end = centres[links.first], centres[links.second]
    along = end - start
    left_of = (
        links.bend[:, None] * np.stack([along[:, 1], -along[:, 0]], -1) / np.maximum(np.hypot(*along.T), 1)[:, None]
    )
    middle = (start + end) / 2 + 2 * left_of
    start, end = start + ASIDE * left_of, end + ASIDE * left_of
    whole = np.stack([start, middle, end], 1)
    steps = np.linspace(0, 1, 4 * STEPS)
    points = _points(whole, steps)
    left = _outside(points, centres[links.first][:, None], boxes[links.first][:, None]).argmax(1)
    right = _outside(points, centres[links.second][:, None], boxes[links.second][:, None])[:, ::-1].argmax(1)
    first, last = steps[left][:, None], steps[::-1][right][:, None]

    def blossom(one: Points, other: Points) -> Points:  # Ramshaw: a control point for each two parameters
        outer = (1 - one) * (1 - other) * start + one * other * end
        made: Points = outer + (one * (1 - other) + other * (1 - one)) * middle
        return made

    return np.stack([blossom(first, first), blossom(first, last), blossom(last, last)], 1)


def _outside(points: Points, centre: Points, size: Points, space: float = 2.0) -> Any:
    far = np.abs(points - centre) > size / 2 + space
    return far[..., 0] | far[..., 1]


def _points(curves: Points, steps: Points) -> Points:
    """Return (links, steps, 2): points of quadratic Bézier curves (links, 3, 2)."""
    weights = np.stack([(1 - steps) ** 2, 2 * steps * (1 - steps), steps**2])
    points: Points = np.einsum("cs,lcx->lsx", weights, curves)
    return points


def _overlaps(places: Points, size: Points, others: Points, sizes: Points) -> Any:
    """Return (places, others): whether two boxes come closer than three pixels."""
    size = np.broadcast_to(size, places.shape)
    near = np.abs(places[:, None] - others[None]) < (size[:, None] + sizes[None]) / 2 + 3
    return near[..., 0] & near[..., 1]


def _through(seen: Points, links: Links, centres: Points, boxes: Points) -> int:
    """Count arrows that run through a box that is not theirs."""
    hit = (~_outside(seen[:, :, None], centres, boxes, 4.0)).any(1)  # (links, boxes)
    each = np.arange(len(hit))
    hit[each, links.first] = hit[each, links.second] = False
    return int(hit.sum())


def _meeting(curves: Points, links: Links) -> int:
    """Count pairs of arrow ends at one box that stand so near each other that they look like one."""
    ends, owners = np.concatenate([curves[:, 0], curves[:, 2]]), np.concatenate([links.first, links.second])
    near = np.hypot(*(ends[:, None] - ends[None]).transpose(2, 0, 1)) < NEAR
    return int(np.triu(near & (owners[:, None] == owners), 1).sum())


def _crossings(seen: Points) -> int:
    """Count pairs of arrows that cross, each seen as two straight pieces."""
    corners = seen[:, :: STEPS // 2]
    starts, ends = corners[:, :-1], corners[:, 1:]

    def sides(start: Points, end: Points, point: Points) -> Points:
        one, other = end - start, point - start
        turned: Points = np.sign(one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0])
        return turned

    a, b = starts[:, None, :, None], ends[:, None, :, None]
    c, d = starts[None, :, None, :], ends[None, :, None, :]
    cross = (sides(a, b, c) * sides(a, b, d) < 0) & (sides(c, d, a) * sides(c, d, b) < 0)
    return int(np.triu(cross.any((2, 3)), 1).sum())
