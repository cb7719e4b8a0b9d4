"""Triples → a graph, and the graph → a picture in which nothing overlaps."""

import random
import re
import unicodedata

import numpy as np
import pytest

from mtl_re.page.document_rendering import PICTURES
from mtl_re.page.graph import Arrow, Graph, Node, graph_of, relation_lines, shortened, svg_of, text_width
from mtl_re.page.graph_layout import Links, arrange
from mtl_re.taxonomy import KLUE

KINDS = {"PER": 0, "ORG": 1, "LOC": 2}
NURI, HAN, MIN, SEOUL = ("누리전자", "ORG"), ("한라희", "PER"), ("민가온", "PER"), ("서울", "LOC")


def row(subject, relation: str, object, score: float = 0.9, place: int = 0) -> dict:
    """A row of the table; `place` is where its sentence begins."""
    return {
        "subject": subject[0],
        "relation": relation,
        "object": object[0],
        "score": score,
        "subject_type": subject[1],
        "object_type": object[1],
        "subject_start": place,
        "object_start": place + 10,
    }


# ---- the graph -----------------------------------------------------------------------------------------------------


def test_an_entity_of_several_sentences_is_one_node():
    apart = unicodedata.normalize("NFD", NURI[0])
    rows = [row(NURI, "org:founded_by", HAN, 0.6), row((apart, "ORG"), "org:place_of_headquarters", SEOUL, 0.8, 30)]
    rows.append(row(("누리전자", "POH"), "org:product", HAN, 0.5, 60))  # another type: another thing
    graph = graph_of(rows)
    assert graph.nodes == (Node(*NURI), Node(*HAN), Node(*SEOUL), Node("누리전자", "POH"))
    assert [(arrow.subject, arrow.object, arrow.score) for arrow in graph.arrows] == [
        (0, 2, 0.8),
        (0, 1, 0.6),
        (3, 1, 0.5),
    ]


def test_relations_of_a_pair_share_an_arrow():
    rows = [row(NURI, "org:founded_by", HAN, 0.6), row(NURI, "org:top_members/employees", HAN, 0.9, 20)]
    rows += [row(NURI, "org:founded_by", HAN, 0.7, 40), row(HAN, "per:employee_of", NURI, 0.5)]
    (there, back) = graph_of(rows).arrows
    assert there.relations == (("org:top_members/employees", 0.9), ("org:founded_by", 0.7))
    assert back == Arrow(there.object, there.subject, (("per:employee_of", 0.5),))
    assert not there.both


def test_the_same_relation_both_ways_is_one_arrow_with_two_heads():
    rows = [
        row(HAN, "per:spouse", MIN, 0.6, 9),
        row(MIN, "per:spouse", HAN, 0.8, 50),
        row(HAN, "per:title", SEOUL, 0.7),
    ]
    spouses, title = graph_of(rows).arrows
    assert (spouses.relations, spouses.both, title.both) == ((("per:spouse", 0.8),), True, False)
    picture = svg_of(graph_of(rows), KINDS, 560, "ko", "x")
    assert (picture.count("marker-end"), picture.count("marker-start")) == (2, 1)


def test_the_surest_arrows_are_drawn():
    rows = [row((f"이름{number}", "PER"), "per:title", SEOUL, number / 10) for number in range(8)]
    graph = graph_of(rows, 3)
    assert [arrow.score for arrow in graph.arrows] == [0.7, 0.6, 0.5]
    assert {node.word for node in graph.nodes} == {"이름7", "이름6", "이름5", "서울"}


def test_an_entity_related_to_its_own_name_has_no_arrow():
    assert graph_of([row(NURI, "org:alternate_names", NURI)]) == Graph((), ())


# ---- words ---------------------------------------------------------------------------------------------------------


def test_widths():
    assert text_width("한글") == text_width(unicodedata.normalize("NFD", "한글")) == 2
    assert text_width("ab") == pytest.approx(1.2)
    assert shortened("가나다라마", 5) == "가나다라마"
    assert shortened("가나다라마바", 5) == "가나다라…"
    assert shortened("가\n나", 5) == "가 나"


@pytest.mark.parametrize(
    ("label", "language", "lines"),
    [
        ("org:founded_by", "ko", ["설립자"]),
        ("org:founded_by", "en", ["founded by"]),
        ("org:top_members/employees", "en", ["top members/", "employees"]),
        ("cures", "ko", ["cures"]),
        ("_", "ko", ["_"]),
        ("a:", "ko", ["a:"]),
    ],
)
def test_the_names_of_relations(label, language, lines):
    assert relation_lines(label, language) == lines


# ---- the picture ---------------------------------------------------------------------------------------------------


def company() -> list[dict]:
    """Triples as four sentences of eight entities give them."""
    found = [(NURI, "org:founded", ("2003년", "DAT")), (NURI, "org:founded_by", HAN), (HAN, "per:employee_of", NURI)]
    found += [(NURI, "org:place_of_headquarters", SEOUL), (NURI, "org:top_members/employees", HAN)]
    found += [(HAN, "per:title", ("대표", "POH")), (HAN, "per:spouse", MIN), (MIN, "per:spouse", HAN)]
    found += [(MIN, "per:title", ("소설가", "POH")), (MIN, "per:place_of_birth", ("부산", "LOC"))]
    return [row(*triple, score=0.9 - number / 50, place=number) for number, triple in enumerate(found)]


def boxes_of(picture: str) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of every box and every label's ground."""
    numbers = r'x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"'
    found = [tuple(map(float, match)) for match in re.findall(rf"<rect {numbers}", picture)]
    return [(x, y, x + width, y + height) for x, y, width, height in found]


def overlapping(boxes) -> int:
    """Pairs of boxes that share more than a pixel."""
    pairs = [(one, other) for number, one in enumerate(boxes) for other in boxes[:number]]
    return sum(min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1 for a, b in pairs)


@pytest.mark.parametrize("language", ["ko", "en"])
@pytest.mark.parametrize("name", PICTURES)
def test_nothing_overlaps_and_all_is_inside(name, language):
    width, most = PICTURES[name]
    graph = graph_of(company(), most)
    picture = svg_of(graph, KINDS, width, language, name)
    boxes = boxes_of(picture)
    assert len(boxes) == len(graph.nodes) + len(graph.arrows) == 16
    assert overlapping(boxes) == 0
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', picture)[1])
    assert min(min(box[:2]) for box in boxes) >= 0
    assert max(box[2] for box in boxes) <= width
    assert max(box[3] for box in boxes) <= height + 1
    assert picture == svg_of(graph, KINDS, width, language, name)


def test_a_crowd_is_drawn_too():
    """No free place for all: nothing is lost, and boxes stay apart."""
    random.seed(1)
    names = [(f"이름이길다{number}", "PER") for number in range(14)]
    rows = [row(*random.sample(names, 1), random.choice(KLUE[1:]), names[0], 0.5, n) for n in range(10)]
    rows += [row(one, random.choice(KLUE[1:]), random.choice(names), random.random(), 99) for one in names * 3]
    graph = graph_of(rows, 20)
    picture = svg_of(graph, KINDS, 330, "en", "x")
    assert picture.count('class="re-arrow"') == 20
    assert overlapping(boxes_of(picture)[20:]) == 0


def test_strangers_words_stay_text():
    hostile = "</text><script>hit()</script>${x}"
    picture = svg_of(graph_of([row((hostile, "<b>"), "<i>:a", HAN)]), {}, 560, "ko", "x")
    assert not re.search(r"<(script|b|i)\b", picture)
    assert "${" not in picture
    assert "&lt;script" in picture


def test_arrows_end_at_the_boxes():
    boxes = np.array([[60.0, 40.0], [60.0, 40.0], [80.0, 40.0]])
    links = Links(np.array([0, 1]), np.array([1, 2]), np.array([[30.0, 15.0], [30.0, 15.0]]), np.array([0.0, 20.0]))
    placed = arrange(boxes, links, 400)
    assert placed.overlaps == 0
    for number, pair in enumerate([(0, 1), (1, 2)]):
        for end, box in zip((0, 2), pair, strict=True):
            away = np.abs(placed.curves[number, end] - placed.centres[box]) - boxes[box] / 2
            assert 0 <= away.max() < 12
