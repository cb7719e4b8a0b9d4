"""Rows of triples → a graph, and the graph → an SVG picture.

Enters: rows as `extract` writes them. Leaves: SVG whose words the browser draws with its own fonts, so Hangul is right
wherever the page is. Two entities are one node if word and type are equal, in whatever sentences they stand. Relations
of an ordered pair share an arrow; a pair whose relations are the same in both directions (spouses) has one arrow with
two heads. The picture keeps to what can be read: the surest relations, and the caller says how many are missing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtl_re.data.unicode_form import composed
from mtl_re.page.graph_layout import Arrangement, Links, arrange
from mtl_re.page.rendering import escaped
from mtl_re.page.translations import GLOSSES, TYPES, Language
from mtl_re.predict.document_triples import Row

COLOURS = 8
"""Colours of entity types in the stylesheet, used in turn."""
WORD_FONT, TYPE_FONT, LABEL_FONT = 14, 11, 12
"""Sizes of letters in pixels, as in the stylesheet."""
LONGEST_WORD, LONGEST_LINE = 16.0, 9.5
"""Widths, in letters of Hangul, at which a name is cut and a relation's name breaks."""
NARROW_WORD = 8.0
BEND = 22.0
"""Pixels by which each of two opposite arrows leaves the straight line."""
Size = tuple[float, float]


@dataclass(frozen=True)
class Node:
    """An entity: its word in composed form, and its type."""

    word: str
    type: str


@dataclass(frozen=True)
class Arrow:
    """Relations between two nodes.

    Attributes:
        subject, object: Numbers of the nodes. relations: Relation → its best score, the surest first.
        both: The same relations hold in the other direction too.
    """

    subject: int
    object: int
    relations: tuple[tuple[str, float], ...]
    both: bool = False

    @property
    def score(self) -> float:
        """The best score of its relations."""
        return self.relations[0][1]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of the text, and arrows, the surest first."""

    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]


def graph_of(rows: Sequence[Row], most: int | None = None) -> Graph:
    """Return the graph of rows, of its `most` surest arrows (None: of all)."""
    scores: dict[tuple[Node, Node], dict[str, float]] = {}
    places: dict[Node, int] = {}
    for row in rows:
        ends = []
        for side in ("subject", "object"):
            node = Node(composed(str(row[side])), str(row[f"{side}_type"]))
            start = int(row[f"{side}_start"])
            places[node] = min(places.get(node, start), start)
            ends.append(node)
        if ends[0] != ends[1]:
            found = scores.setdefault((ends[0], ends[1]), {})
            relation = str(row["relation"])
            found[relation] = max(found.get(relation, 0.0), float(row["score"]))
    merged: list[tuple[Node, Node, dict[str, float], bool]] = []
    for (subject, object), relations in scores.items():
        back = scores.get((object, subject), {})
        both = back.keys() == relations.keys()
        if both and places[subject] > places[object]:
            continue  # the other direction's arrow has both heads
        best = {name: max(score, back.get(name, 0.0)) if both else score for name, score in relations.items()}
        merged.append((subject, object, best, both))
    merged.sort(key=lambda one: -max(one[2].values()))
    merged = merged[:most]
    nodes = sorted({node for one in merged for node in one[:2]}, key=lambda node: (places[node], node.word, node.type))
    number = {node: place for place, node in enumerate(nodes)}
    arrows = [
        Arrow(number[one], number[other], tuple(sorted(best.items(), key=lambda pair: -pair[1])), both)
        for one, other, best, both in merged
    ]
    return Graph(tuple(nodes), tuple(arrows))


# ---- the picture ---------------------------------------------------------------------------------------------------


def text_width(text: str) -> float:
    """Return how wide a text is, in letters of Hangul; system fonts differ by a few hundredths."""
    return sum(
        0.0 if unicodedata.combining(sign) else 1.0 if unicodedata.east_asian_width(sign) in "WF" else 0.6
        for sign in composed(text)
    )


def shortened(text: str, longest: float) -> str:
    """Return a text that is at most so wide, its end replaced by `…` where it is longer."""
    text = " ".join(text.split())
    if text_width(text) <= longest:
        return text
    while text and text_width(text) > longest - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def relation_lines(label: str, language: Language) -> list[str]:
    """Return a relation's name in the picture, in lines: what it means where the page's language has a word for it,
    else the label without its coarse class, which the subject's type shows."""
    name = GLOSSES[language].get(label)
    if name is not None:
        return [name]
    lines = [""]
    for part in re.findall(r"[^_/]+/?|[_/]", label.rpartition(":")[2] or label):
        if lines[-1] and text_width(lines[-1] + part) > LONGEST_LINE:
            lines.append("")
        lines[-1] += " " if part == "_" else part
    return [shortened(line, LONGEST_WORD) for line in lines if line.strip()] or [label]


def svg_of(graph: Graph, kinds: Mapping[str, int], width: int, language: Language, name: str) -> str:
    """Return the picture of a graph that has arrows.

    Args:
        kinds: Entity type → number of its colour.
        width: In pixels. Its letters have the sizes above where the picture is shown so wide.
        name: What the picture is called; unique in the page, for it becomes part of ids.
    """
    longest = LONGEST_WORD if width >= 500 else NARROW_WORD
    words = [shortened(node.word, longest) for node in graph.nodes]
    types = [TYPES[language].get(node.type, node.type) for node in graph.nodes]
    sizes = [_box(word, kind) for word, kind in zip(words, types, strict=True)]
    lines = [
        [line for relation, _ in arrow.relations for line in relation_lines(relation, language)]
        for arrow in graph.arrows
    ]
    ends = {(arrow.subject, arrow.object) for arrow in graph.arrows}
    links = Links(
        np.array([arrow.subject for arrow in graph.arrows]),
        np.array([arrow.object for arrow in graph.arrows]),
        np.array([_label(said) for said in lines]),
        np.array([BEND if (arrow.object, arrow.subject) in ends else 0.0 for arrow in graph.arrows]),
    )
    placed = arrange(np.array(sizes), links, width)
    paths = [_path(arrow, placed, number, name) for number, arrow in enumerate(graph.arrows)]
    labels = [
        _text(said, placed.labels[number], links.labels[number], arrow, graph)
        for number, (arrow, said) in enumerate(zip(graph.arrows, lines, strict=True))
    ]
    boxes = [
        _node(node, word, kind, sizes[number], placed.centres[number], kinds.get(node.type, 0))
        for number, (node, word, kind) in enumerate(zip(graph.nodes, words, types, strict=True))
    ]
    head = (
        f'<marker id="re-head-{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse" markerUnits="userSpaceOnUse"><path class="re-head" d="M0 0L10 5L0 10z"/></marker>'
    )
    return (
        f'<svg class="re-graph" viewBox="0 0 {width} {placed.height:.0f}" role="img" '
        f'style="max-width:{width}px"><defs>{head}</defs>{"".join([*paths, *labels, *boxes])}</svg>'
    )


def _box(word: str, kind: str) -> Size:
    return max(text_width(word) * WORD_FONT * 1.04, text_width(kind) * TYPE_FONT) + 20, WORD_FONT + TYPE_FONT + 18


def _label(lines: Sequence[str]) -> Size:
    return max(map(text_width, lines)) * LABEL_FONT + 6, len(lines) * (LABEL_FONT + 3) + 4


def _path(arrow: Arrow, placed: Arrangement, number: int, name: str) -> str:
    start, middle, end = (f"{x:.1f} {y:.1f}" for x, y in placed.curves[number])
    tail = f' marker-start="url(#re-head-{name})"' if arrow.both else ""
    return f'<path class="re-arrow" d="M{start}Q{middle} {end}" marker-end="url(#re-head-{name})"{tail}/>'


def _text(lines: Sequence[str], centre: Sequence[float], size: Size, arrow: Arrow, graph: Graph) -> str:
    """Return an arrow's label on a ground of its own, which hides arrows below it."""
    x, y = centre
    sign = "↔" if arrow.both else "→"
    pair = f"{graph.nodes[arrow.subject].word} {sign} {graph.nodes[arrow.object].word}"
    said = ", ".join(f"{relation} {score:.3f}" for relation, score in arrow.relations)
    top = y - size[1] / 2 + 2
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{top + (LABEL_FONT + 3) * (line + 0.82):.1f}">{escaped(text)}</tspan>'
        for line, text in enumerate(lines)
    )
    ground = (
        f'<rect x="{x - size[0] / 2:.1f}" y="{top - 1:.1f}" width="{size[0]:.1f}" height="{size[1] - 2:.1f}" rx="4"/>'
    )
    return f'<g class="re-relation"><title>{escaped(f"{pair}: {said}")}</title>{ground}<text>{spans}</text></g>'


def _node(node: Node, word: str, kind: str, size: Size, centre: Sequence[float], colour: int) -> str:
    x, y = centre
    left, top = x - size[0] / 2, y - size[1] / 2
    return (
        f'<g class="re-node re-kind-{colour}"><title>{escaped(f"{node.word} · {kind}")}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}" rx="9"/>'
        f'<text class="re-word" x="{x:.1f}" y="{top + 20:.1f}">{escaped(word)}</text>'
        f'<text class="re-kind" x="{x:.1f}" y="{top + 36:.1f}">{escaped(kind)}</text></g>'
    )
