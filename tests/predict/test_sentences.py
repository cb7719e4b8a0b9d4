"""Sentences of a document: ranges that are exact on any text, and boundaries where a Korean reader puts them."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_re.data.validation import MAX_SENTENCE
from mtl_re.errors import MtlReError
from mtl_re.predict import sentences
from mtl_re.predict.sentences import looks_wrapped, sentence_ranges

CASES = [  # a bar stands for a boundary
    "김하늘은 부산에서 태어났다.| 지금은 대전에 산다.",
    "정말 왔을까?| 아무도 모른다!| 그날 밤…| 비가 왔다。| 끝.",
    "그는 “나는 간다. 너는 남아라.”라고 말했다.| 모두 조용했다.",
    '대표는 "값을 내린다. 곧 알린다."고 했다.| 주가는 올랐다.',
    "그녀는 '늦었다. 가자.'며 일어섰다.| 문이 닫혔다.",
    "“이제 끝났다.”| 그는 돌아섰다.",
    "“이제 끝났다.” 라고 그는 말했다.| 비가 왔다.",
    "한빛전자(대표 이산. 본사 수원)는 새 공장을 지었다.| 직원은 300명이다.",
    "원주율은 3.14이고 성장률은 2.5%였다.| 둘 다 맞다.",
    "조지 W. 부시와 B.B. 킹이 만났다.| Dr. 최도 있었다.",
    "행사는 2011. 6. 27. 서울에서 열렸다.| 비용은 No. 1이었다.",
    "1. 머리말|\n2. 맺음말",
    "회사는 커졌다.|그러나 빚도 늘었다.|2020년에 팔렸다.",
    "주소는 www.example.com이다.| 누리집은 열려 있다.",
    "그는 다른 나라로 갔다| 그리고 돌아오지 않았다",
    "우간다 대통령이 왔습니다| 르완다 총리도 왔습니다",
    "왔다 보니 좋았다",
    "모두 “이겼다 끝났다” 외쳤다| 밤이 깊었다",
    "마침표가 없는 제목|\n첫 문장이다.| 둘째 문장이다.",
    "줄이 바뀐다.|\r\n또 바뀐다|\r\n\r\n\t끝",
    "기뻤다!!!| 🎉🎉 다음 날도 왔다.| 👨‍👩‍👧 가족이 모였다.",
    '닫지 않은 "따옴표가 있다.| 이 줄은 나뉜다.|\n다음 줄은 괜찮다.| 정말이다.',
]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("case", CASES)
def test_boundaries_stand_where_a_reader_puts_them(case, form):
    case = unicodedata.normalize(form, case)
    text = case.replace("|", "")
    assert [text[start:stop] for start, stop in sentence_ranges(text)] == [part.strip() for part in case.split("|")]


@pytest.mark.parametrize("text", ["", " ", "\n", " \t\r\n\u3000 \u2028"])
def test_a_blank_text_has_no_sentence(text):
    assert sentence_ranges(text) == []


def test_a_boundary_inside_an_entity_is_dropped():
    text = "그룹 잔나비. 소곡집은 2020년에 나왔다. 모두 좋아했다.\n끝이다."
    start = text.index("잔나비")
    assert next(text[slice(*one)] for one in sentence_ranges(text)) == "그룹 잔나비."
    name = (start, start + len("잔나비. 소곡집") - 1)
    assert [text[slice(*one)] for one in sentence_ranges(text, [name, (0, 1)])] == [
        "그룹 잔나비. 소곡집은 2020년에 나왔다.",
        "모두 좋아했다.",
        "끝이다.",
    ]
    over_the_line = (text.index("좋아"), text.index("끝이"))
    assert [text[slice(*one)] for one in sentence_ranges(text, [over_the_line, name])][1:] == [
        "모두 좋아했다.\n끝이다."
    ]


def test_an_entity_that_ends_at_a_boundary_drops_nothing():
    text = "부른 곡은 간다. 그리고 섰다."  # “간다.” and “그리”
    assert len(sentence_ranges(text, [(6, 8), (10, 11)])) == 2


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((-1, 0), "does not lie in the text"),
        ((0, 5), r"span 0\.\.5 does not lie in the text \(0\.\.4"),
        ((2, 1), "does not lie in the text"),
        ((2, 3), "begins or ends with a blank"),
        ((1, 2), "begins or ends with a blank"),
    ],
)
def test_a_span_that_is_none_is_refused(span, message):
    with pytest.raises(MtlReError, match=message):
        sentence_ranges("가다 온다", [span])


def check(text: str, spans: list[tuple[int, int]], longest: int) -> None:
    """Assert the laws of `sentence_ranges`."""
    ranges = sentence_ranges(text, spans)
    covered: list[int] = []
    for start, stop in ranges:
        assert start < stop
        assert not text[start].isspace()
        assert not text[stop - 1].isspace()
        covered.extend(range(start, stop))
        inside = [span for span in spans if start <= span[0] < stop]
        # Spans that overlap hold together; where none lies in a sentence, its length has a limit.
        assert stop - start <= longest or inside
    assert covered == sorted(set(covered))
    assert {place for place, sign in enumerate(text) if not sign.isspace()} <= set(covered)
    for first, last in spans:
        assert sum(start <= first and last < stop for start, stop in ranges) == 1


WRAPPED = [
    "한라희는 강릉에서 태어나 자랐고 지금은 누리전자의",
    "대표이다. 누리전자는 2001년 봄에 세워진 회사로 본사",
    "는 원주에 있다. 그 회사의 첫 사장은 한라희의 오빠인",
    "한가람이었는데, 그는 2010년에 자리에서 물러나 고향",
    "으로 돌아갔다. 지금은 강릉에서 작은 서점을 하면서",
    "글을 쓰고 있으며, 그의 첫 책은 내년 봄에 나온다.",
    "",
    "다음 문단이다.",
]


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n  "])
def test_hard_wrapped_lines_are_joined_within_a_paragraph(end):
    text = end.join(WRAPPED)
    found = [text[start:stop] for start, stop in sentence_ranges(text, joined=True)]
    assert [one.split()[0] for one in found] == ["한라희는", "누리전자는", "그", "지금은", "다음"]
    assert all(one.endswith(".") for one in found)
    assert len(sentence_ranges(text)) > 7
    assert looks_wrapped(text)


def test_what_is_not_hard_wrapped():
    assert not looks_wrapped("\n".join(f"{number}번째 문장은 여기에서 끝이 나는 문장이다." for number in range(20)))
    assert not looks_wrapped("\n\n".join(WRAPPED[:6]))  # paragraphs of a line each
    assert not looks_wrapped("\n".join(f"이름{number} 값" for number in range(20)))  # a list
    assert not looks_wrapped("")


SIGNS = "가다했요고 .!?…。\"'“”‘’()「」\t\n\r\u2028\u3000aZ.1 \u1112\u1161\u11bb\u1103\u1161\u0301😀\u200d🏽\ud800\x00"
TEXTS = st.text(SIGNS, max_size=60) | st.text(max_size=40) | st.lists(st.sampled_from(CASES)).map(" ".join)


def spans_of(text: str, most: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Return a strategy for spans whose ends are not blank."""
    solid = [place for place, sign in enumerate(text) if not sign.isspace()]
    if not solid:
        return st.just([])
    ends = st.lists(st.sampled_from(solid), min_size=2, max_size=2)
    return st.lists(ends.map(lambda pair: (min(pair), max(pair))), max_size=most)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(TEXTS, st.data())
def test_ranges_hold_the_text_and_keep_spans_whole(text, data):
    spans = data.draw(spans_of(text, 4))
    check(text, spans, MAX_SENTENCE)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(TEXTS, st.data(), st.integers(1, 12))
def test_a_long_sentence_is_cut_and_keeps_its_spans(text, data, longest):
    spans = data.draw(spans_of(text, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "MAX_SENTENCE", longest)
        check(text, spans, longest)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=4))
def test_a_sentence_does_not_depend_on_the_paragraphs_around_it(cases):
    paragraphs = [case.replace("|", "") for case in cases]
    apart = [one[start:stop] for one in paragraphs for start, stop in sentence_ranges(one)]
    text = "\n".join(paragraphs)
    assert [text[start:stop] for start, stop in sentence_ranges(text)] == apart


def test_where_a_long_sentence_is_cut():
    words = "낱말 " * 9000
    assert [stop - start for start, stop in sentence_ranges(words)] == [MAX_SENTENCE, 26998 - MAX_SENTENCE]
    assert sentence_ranges("가" * (MAX_SENTENCE + 1)) == [(0, MAX_SENTENCE), (MAX_SENTENCE, MAX_SENTENCE + 1)]
    apart = "x" + unicodedata.normalize("NFD", "가" * MAX_SENTENCE)
    assert all(apart[start] in "x\u1100" for start, _ in sentence_ranges(apart))  # no syllable is torn
    whole = (5, MAX_SENTENCE + 5)
    assert sentence_ranges("가" * (2 * MAX_SENTENCE), [whole])[:2] == [(0, 5), (5, MAX_SENTENCE + 6)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "그는 “간다. 온다.”라고 했다. ",
        "가",
        ".",
        "( ",
        '"',
        "다. ",
        "\n",
        " ",
        "했다 ",
        ".)",
        "“가. ",
        "다.가",
        "가\u0301",
    ],
)
def test_a_document_of_a_million_characters_is_cut(unit):
    text = (unit * 1_000_000)[:1_000_000]
    spans = [(place, place) for place in range(0, len(text), 50) if not text[place].isspace()]
    sentence_ranges(text, spans)  # 0.1 to 2 s each; a quadratic step would take minutes
