"""Decomposed text is seen, compared as if composed, and composed with its spans."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_re.data.unicode_form import Borders, compose_spans, composed, composed_borders, difference, is_decomposed
from mtl_re.errors import RowError

WORD = "한국전력 café"
APART = unicodedata.normalize("NFD", WORD)


def test_what_is_decomposed():
    assert is_decomposed(APART)
    assert composed(APART) == WORD
    assert not is_decomposed(WORD)
    assert not is_decomposed("李 \u0387 \uf9e1")
    assert composed("\uf9e1") == "\uf9e1"  # replaced by NFC, not composed


def test_spans_are_mapped():
    start = APART.index(unicodedata.normalize("NFD", "전력"))
    stop = start + len(unicodedata.normalize("NFD", "전력"))
    assert compose_spans(APART, [(start, stop - 1), (0, 2)]) == (WORD, [(2, 3), (0, 0)])
    assert compose_spans(WORD, [(2, 3)]) == (WORD, [(2, 3)])


@pytest.mark.parametrize("span", [(1, 2), (0, 1), (0, 0), (3, 4)])
def test_a_span_that_cuts_a_character_is_refused(span):
    with pytest.raises(RowError, match="inside a character"):
        compose_spans(APART, [span])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(st.text("가각힣 a金\u1100\u1161\u11a8e\u0301\u0327\uf9e1😀\u3099か", max_size=6), min_size=3, max_size=3)
)
def test_every_span_holds_the_composed_form_of_what_it_held(parts):
    before, inside, behind = (unicodedata.normalize("NFD", part) for part in parts)
    text, span = before + inside + behind, (len(before), len(before) + len(inside) - 1)
    try:
        whole, [(start, end)] = compose_spans(text, [span])
    except RowError:
        return
    assert whole == composed(text)
    if is_decomposed(text) and inside:
        assert unicodedata.normalize("NFC", inside) == whole[start : end + 1]
        assert Borders.of(composed_borders(text)).given_span(start, end) == span


def test_half_of_what_stays_apart_is_the_whole_of_it():
    """x with an accent has no composed form, so its two characters are one cluster of two in either text."""
    assert Borders.of(composed_borders(APART + "x\u0301 y")).given_span(len(WORD), len(WORD)) == (
        len(APART),
        len(APART) + 1,
    )


def test_texts_that_look_the_same_are_told_apart():
    assert "the second is written in decomposed" in difference(WORD, APART)
    assert "the first is written in decomposed" in difference(APART, WORD)
    assert difference(WORD, WORD) == difference(WORD, "다른 말") == ""
