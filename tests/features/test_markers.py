"""What markers write, that both entities can be read back, and that a cut never loses one."""

import random

import pytest
from conftest import TYPES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError, RowError
from mtl_re.features import markers
from mtl_re.features.markers import LEVITATED, MARKERS, TYPE_WORDS, fit_length, mark

SENTENCE = "이순신은 조선의 장군이다."
PERSON = Entity("이순신", 0, 2, "PER")
STATE = Entity("조선", 5, 6, "ORG")

each_scheme = pytest.mark.parametrize("scheme", [name for name in MARKERS if name != LEVITATED])


# ---- marking -------------------------------------------------------------------------------------------------------

WRITTEN = {
    "typed_punct_ko": "@ * 사람 * 이순신 @ 은 # ^ 단체 ^ 조선 # 의 장군이다.",
    "typed_punct": "@ * per * 이순신 @ 은 # ^ org ^ 조선 # 의 장군이다.",
    "entity_punct": "@ 이순신 @ 은 # 조선 # 의 장군이다.",
    "special": "<subj> 이순신 </subj> 은 <obj> 조선 </obj> 의 장군이다.",
    "typed_special": "<S:PER> 이순신 </S:PER> 은 <O:ORG> 조선 </O:ORG> 의 장군이다.",
}


@each_scheme
def test_what_a_scheme_writes(scheme):
    assert mark(SENTENCE, PERSON, STATE, scheme).text == WRITTEN[scheme]


@each_scheme
def test_the_object_may_come_first(scheme):
    marked = mark(SENTENCE, subject=STATE, object=PERSON, name=scheme)
    assert marked.object[1] <= marked.subject[0]
    assert markers.unmark(marked) == (SENTENCE, (STATE.start, STATE.end), (PERSON.start, PERSON.end))


def crossing_or_equal(one: tuple[int, int], other: tuple[int, int]) -> bool:
    first, second = sorted([one, other])
    return first == second or first[0] < second[0] <= first[1] < second[1]


@st.composite
def pairs(draw):
    """A sentence out of awkward characters, and two spans in it: disjoint, or one inside the other."""
    characters = st.sampled_from("가각나 .,\"'@#*^<>/()\u1100\u1161\u11a8\u0301😀👩‍👩‍👧\t金ａS:")
    sentence = draw(st.text(characters, min_size=2, max_size=30))
    places = st.integers(0, len(sentence) - 1)
    spans = [tuple(sorted(draw(st.tuples(places, places)))) for _ in range(2)]
    if crossing_or_equal(*spans):
        spans = [(0, 0), (len(sentence) - 1, len(sentence) - 1)]
    kinds = st.sampled_from(TYPES)
    subject, object_ = (Entity(sentence[start : end + 1], start, end, draw(kinds)) for start, end in spans)
    return sentence, subject, object_


@each_scheme
@settings(derandomize=True, deadline=None, max_examples=100)
@given(pairs())
def test_nothing_but_markers_and_spaces_is_added(scheme, pair):
    sentence, subject, object_ = pair
    marked = mark(sentence, subject, object_, scheme)
    assert markers.unmark(marked) == (sentence, (subject.start, subject.end), (object_.start, object_.end))
    added = " ".join(marked.text[start:stop] for start, stop in marked.inserted).split()
    written = [
        *MARKERS[scheme]("subject", subject.type),
        *MARKERS[scheme]("object", object_.type),
    ]
    assert sorted(added) == sorted(" ".join(written).split())


NESTED = "서울대학교병원은 크다."
HOSPITAL, CITY, SCHOOL = (
    Entity(NESTED[:stop], 0, stop - 1, kind) for stop, kind in ((7, "ORG"), (2, "LOC"), (5, "ORG"))
)
WARD = Entity("병원", 5, 6, "ORG")


@pytest.mark.parametrize(
    ("subject", "object_", "expected"),
    [
        (HOSPITAL, CITY, "@ # 서울 # 대학교병원 @ 은 크다."),
        (CITY, HOSPITAL, "# @ 서울 @ 대학교병원 # 은 크다."),
        (HOSPITAL, WARD, "@ 서울대학교 # 병원 # @ 은 크다."),
        (HOSPITAL, Entity("대학", 2, 3, "ORG"), "@ 서울 # 대학 # 교병원 @ 은 크다."),
    ],
)
def test_markers_of_nested_entities_nest(subject, object_, expected):
    marked = mark(NESTED, subject, object_, "entity_punct")
    assert marked.text == expected
    assert marked.text[slice(*marked.subject)].startswith("@ ")
    assert marked.text[slice(*marked.subject)].endswith(" @")
    assert marked.text[slice(*marked.object)].startswith("# ")
    assert marked.text[slice(*marked.object)].endswith(" #")


@each_scheme
@settings(derandomize=True, deadline=None, max_examples=60)
@given(pairs())
def test_markers_stand_alone_between_spaces(scheme, pair):
    sentence, subject, object_ = pair
    marked = mark(sentence, subject, object_, scheme)
    for role, kind, (start, stop) in (
        ("subject", subject.type, marked.subject),
        ("object", object_.type, marked.object),
    ):
        before, after = MARKERS[scheme](role, kind)
        inside = marked.text[start:stop]
        assert inside.startswith(before + " ")
        assert inside.endswith(" " + after)
        assert start == 0 or marked.text[start - 1].isspace()
        assert stop == len(marked.text) or marked.text[stop].isspace()


@pytest.mark.parametrize(
    ("subject", "object_"),
    [
        (Entity("이순신", 0, 2, "PER"), Entity("순신은", 1, 3, "PER")),
        (Entity("순신은", 1, 3, "PER"), Entity("이순신", 0, 2, "PER")),
        (PERSON, Entity("이순신", 0, 2, "PER")),
        (PERSON, Entity("다.", 13, 40, "ORG")),
        (PERSON, Entity("", 6, 5, "ORG")),
        (Entity("이", -1, 0, "PER"), STATE),
    ],
)
def test_spans_that_cross_or_leave_the_sentence(subject, object_):
    with pytest.raises(RowError, match=r"crosses the subject|same span|leaves the sentence"):
        mark(SENTENCE, subject, object_, "entity_punct")


def test_an_unknown_scheme_lists_the_known_ones():
    with pytest.raises(MtlReError, match=r"data\.markers: 'punct'; expected one of typed_punct_ko, .*special"):
        mark(SENTENCE, PERSON, STATE, "punct")


def test_a_type_without_a_korean_word_names_the_way_out():
    with pytest.raises(RowError, match=r"'EVT' has no Korean word .* use typed_punct"):
        mark(SENTENCE, Entity("이순신", 0, 2, "EVT"), STATE, "typed_punct_ko")
    assert "evt" in mark(SENTENCE, Entity("이순신", 0, 2, "EVT"), STATE, "typed_punct").text


@each_scheme
def test_pieces_are_all_that_a_scheme_writes(scheme):
    pieces = markers.pieces(scheme, TYPES)
    assert len(pieces) == len(set(pieces))
    written = {piece for role in ("subject", "object") for kind in TYPES for piece in MARKERS[scheme](role, kind)}
    assert {piece for text in written for piece in text.split()} == set(pieces)
    assert pieces == markers.pieces(scheme, TYPES)  # a fixed order: it becomes the order of added tokens


@each_scheme
def test_roles_can_be_told_apart(scheme):
    for kind in TYPE_WORDS:
        assert MARKERS[scheme]("subject", kind)[0] != MARKERS[scheme]("object", kind)[0]


# ---- the question --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "particle"),
    [("이순신", "과"), ("세종대", "와"), ("NASA", "와"), ("1945", "와"), ("(주)별", "과"), ("별)", "와")],
)
def test_question_takes_the_particle_of_the_subject(word, particle):
    asked = markers.question(Entity(word, 0, len(word) - 1, "ORG"), STATE)
    assert asked == f"이 문장에서 {word}{particle} 조선의 관계는 무엇인가?"


# ---- law 5: cutting ------------------------------------------------------------------------------------------------


@st.composite
def cuts(draw):
    """(length, first, second, budget) with disjoint token ranges in order."""
    points = sorted(draw(st.sets(st.integers(0, 60), min_size=3, max_size=5)))
    begin, stop, *rest = points
    again = rest[0] if len(rest) > 1 else stop  # entities may touch
    first, second = (begin, stop), (again, rest[-1])
    return second[1] + draw(st.integers(0, 40)), first, second, draw(st.integers(-2, 110))


@settings(derandomize=True, deadline=None, max_examples=400)
@given(cuts())
@example((10, (0, 3), (3, 10), 9))
@example((30, (0, 3), (27, 30), 6))
@example((30, (0, 3), (27, 30), 7))
def test_fit_length(case):
    length, first, second, budget = case
    needed = (first[1] - first[0]) + (second[1] - second[0])
    if length > budget and needed > budget:
        with pytest.raises(RowError, match=rf"take {needed} tokens, data.max_length leaves {budget}"):
            fit_length(length, first, second, budget)
        return
    kept = fit_length(length, first, second, budget)
    assert kept == sorted(set(kept)), "ascending, each once"
    assert set(range(*first)) | set(range(*second)) <= set(kept) <= set(range(length))
    assert len(kept) == min(length, budget), "the whole budget is used"


@settings(derandomize=True, deadline=None, max_examples=150)
@given(cuts())
def test_the_middle_is_cut_last_and_nearest_context_stays(case):
    length, first, second, budget = case
    try:
        kept = set(fit_length(length, first, second, budget))
    except RowError:
        return
    outer = [index for index in kept if index < first[0] or index >= second[1]]
    if outer:
        assert set(range(first[1], second[0])) <= kept
        assert kept == set(range(min(kept), max(kept) + 1)), "one piece around the entities"
    gone = set(range(first[1], second[0])) - kept
    assert not gone or gone == set(range(min(gone), max(gone) + 1)), "one hole, in the middle"
    left, right = first[1], second[0]
    if gone:
        assert abs((min(gone) - left) - (right - max(gone) - 1)) <= 1, "both entities keep as much of the middle"


def test_context_is_even_and_what_one_side_leaves_goes_to_the_other():
    assert fit_length(100, (40, 45), (50, 55), 35) == list(range(30, 65))
    assert fit_length(100, (2, 5), (8, 10), 30) == list(range(30))
    assert fit_length(100, (88, 90), (95, 98), 30) == list(range(70, 100))


def test_random_lengths_give_contiguous_context():
    generator = random.Random(0)
    for _ in range(200):
        start = generator.randrange(50)
        first = (start, start + 4)
        second = (start + 4 + generator.randrange(5), start + 12)
        length = second[1] + generator.randrange(50)
        budget = generator.randrange(12, 60)
        kept = fit_length(length, first, second, budget)
        left, right = first[0] - kept[0], kept[-1] + 1 - second[1]
        room_left, room_right = first[0], length - second[1]
        assert abs(left - right) <= 1 or left == room_left or right == room_right


@pytest.mark.parametrize("scheme", ["typed_special", "levitated"])
def test_a_type_of_several_words_is_one_token(scheme):
    """Label Studio and doccano have types such as `Work of Art`."""
    assert markers.pieces(scheme, ["Work of Art"]) == [
        "<S:Work_of_Art>", "</S:Work_of_Art>", "<O:Work_of_Art>", "</O:Work_of_Art>"
    ]  # fmt: skip
