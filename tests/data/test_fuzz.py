"""Hostile text and rows: nothing but `MtlReError` comes out of readers, markers and the tokenizer path.

A share of what `fuzz.py` runs by the hundred thousand, and hypothesis on the parts by themselves.
"""

import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from fuzz_records import MAKERS, converted, documents
from fuzz_rows import (
    PIECES,
    TAXONOMY,
    TYPES,
    WRITERS,
    Made,
    TokenCheck,
    check_file,
    damaged,
    make_file,
    scratch_tokenizers,
    shows,
    structured,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtl_re.data import tool_records
from mtl_re.data.loading import parsed
from mtl_re.data.validation import Entity, Example, parse_row
from mtl_re.errors import MtlReError, RowError
from mtl_re.features import markers

QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def tokens():
    return TokenCheck(scratch_tokenizers())


@pytest.mark.parametrize("kind", WRITERS)
def test_made_rows_through_a_reader(tmp_path, tokens, kind):
    counts = structured(tmp_path, kind, 200, seed=1, tokens=tokens, batch=50)
    assert counts["rows"] == 200
    assert min(counts["accepted"], counts["refused"]) > 30, counts


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files(tmp_path, kind):
    assert sum(damaged(tmp_path, kind, 40, seed=1).values()) > 40


@pytest.mark.slow
def test_the_command(tmp_path):
    script = Path(__file__).parents[1].joinpath("fuzz.py")
    call = [sys.executable, str(script), "--rows", "3000", "--records", "1000", "--files", "200"]
    call += ["--output", str(tmp_path / "figures.json")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows in all"] == 3000 * len(WRITERS) + 1000 * (len(MAKERS) + 1)


@pytest.mark.parametrize("name", MAKERS)
def test_made_records_through_a_converter(tmp_path, name):
    counts = converted(tmp_path, name, 150, seed=1, batch=50)
    assert counts["rows"] == 150
    assert min(counts["accepted"], counts["reasons"]) > 15, counts


def test_made_documents(tmp_path):
    counts = documents(tmp_path, 300, seed=1, batch=50)
    assert min(counts["accepted"], counts["refused"]) > 50, counts


def test_the_fuzzer_sees_a_converter_that_shifts_a_span(tmp_path, monkeypatch):
    monkeypatch.setattr(tool_records, "_whole", lambda value: int(float(value)) + (value == 7))
    with pytest.raises(AssertionError, match="became something else"):
        converted(tmp_path, "doccano", 100, seed=1)


def test_the_fuzzer_sees_rows_that_no_command_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(tool_records, "parse_row", lambda *arguments: None)
    with pytest.raises(AssertionError):
        converted(tmp_path, "korre", 2000, seed=1)


def test_the_fuzzer_sees_a_lost_row(tmp_path, monkeypatch):
    """Or all of the above would pass on anything."""
    path, rows, numbers = make_file(tmp_path, ".jsonl", 50, random.Random(3))
    with pytest.raises(AssertionError, match="rows read of"):
        check_file(path, [*rows, Made({}, False)], [*numbers, 99])


def test_the_fuzzer_sees_a_row_wrongly_accepted(tmp_path):
    path, rows, numbers = make_file(tmp_path, ".jsonl", 50, random.Random(3))
    with pytest.raises(AssertionError, match="accepted"):
        check_file(path, [Made(made.row, False) for made in rows], numbers)


# ---- hypothesis ----------------------------------------------------------------------------------------------------

TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["guid", "id", "sentence", "subject_entity", "object_entity", "label", "source", "x"])
ENTITIES = st.dictionaries(st.sampled_from(["word", "start_idx", "end_idx", "type", "x"]), VALUES, max_size=5)


@QUICK
@given(st.dictionaries(FIELDS, VALUES | ENTITIES | ENTITIES.map(repr), max_size=7))
def test_any_row_is_an_example_or_a_row_error(fields):
    try:
        found = parse_row(fields, TAXONOMY)
    except RowError as error:
        named = bool(error.field and error.reason)
    else:
        named = parse_row(found.to_row(), TAXONOMY) == found
    assert named


@QUICK
@pytest.mark.parametrize("kind", [*WRITERS, ".json.gz", ".csv.gz"])
@given(content=st.binary(max_size=200) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_rows_or_one_line(tmp_path, kind, content):
    path = tmp_path / f"any{kind}"
    path.write_bytes(content)
    try:
        list(parsed(str(path), TAXONOMY))
    except MtlReError as error:
        refusal = str(error)
    else:
        refusal = str(path)
    assert len(refusal.splitlines()) == 1
    assert str(path) in refusal


@st.composite
def examples(draw):
    """Sound examples out of awkward text; spans anywhere, also side by side and at the edges."""
    before, first, between, second, after = draw(
        st.tuples(TEXT, TEXT.filter(shows), TEXT, TEXT.filter(shows), TEXT).filter(
            lambda parts: _encodes("".join(parts))
        )
    )
    sentence = before + first + between + second + after
    one = Entity(first, len(before), len(before + first) - 1, draw(st.sampled_from(TYPES)))
    start = len(before + first + between)
    two = Entity(second, start, start + len(second) - 1, draw(st.sampled_from(TYPES)))
    subject, object_ = draw(st.permutations([one, two]))
    return Example("1", sentence, subject, object_, draw(st.sampled_from(TAXONOMY.labels)))


def _encodes(text):
    return not any("\ud800" <= character <= "\udfff" for character in text)


@QUICK
@given(examples(), st.sampled_from(list(markers.MARKERS)))
def test_marked_words_can_be_read_back(example, scheme):
    marked = markers.mark(example.sentence, example.subject, example.object, scheme)
    spans = [(entity.start, entity.end) for entity in (example.subject, example.object)]
    assert markers.unmark(marked) == (example.sentence, *spans)


@QUICK
@given(example=examples())
def test_tokens_hold_both_entities_or_the_row_is_named(tokens, example):
    for number in range(len(tokens.made)):
        tokens([example], number)


def test_composed_and_decomposed_hangul_are_told_apart():
    """Offsets are Python characters of the text as it stands; nothing is normalised behind the reader's back."""
    composed = "한글은 서울에"
    decomposed = unicodedata.normalize("NFD", composed)
    row = {
        "sentence": decomposed,
        "subject_entity": {"word": decomposed[:6], "start_idx": 0, "end_idx": 5, "type": "POH"},
        "object_entity": {"word": "서울", "start_idx": 10, "end_idx": 13, "type": "LOC"},
    }
    with pytest.raises(RowError, match=r"object_entity\.word"):
        parse_row(row, TAXONOMY)
    row["object_entity"]["word"] = unicodedata.normalize("NFD", "서울")[:4]
    row["object_entity"] |= {"start_idx": decomposed.index(row["object_entity"]["word"])}
    row["object_entity"] |= {"end_idx": row["object_entity"]["start_idx"] + 3}
    assert parse_row(row, TAXONOMY).sentence == decomposed


def test_a_sentence_of_a_megabyte_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"sentence": "가" * 1_000_000}) + "\n")
    ((_, bad),) = parsed(str(path), TAXONOMY)
    assert "1,000,000 characters" in str(bad)
    assert len(str(bad)) < 200 + len(os.fspath(path))
