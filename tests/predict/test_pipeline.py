"""The transformers pipeline says what `Predictor` says."""

import pytest
from transformers import pipeline

import mtl_re.pipeline
from mtl_re.errors import MtlReError
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding
from tests.conftest import scratch_tokenizer, tiny_model

ROWS = 12


@pytest.fixture(scope="module")
def ask(saved):
    return pipeline("relation-extraction", model=str(saved), device="cpu")


@pytest.fixture(scope="module")
def rows(examples):
    """Rows of different lengths as the pipeline takes them."""
    return [{"sentence": row.sentence, "subject": row.subject, "object": row.object} for row in examples[:ROWS]]


def same(found, expected):
    assert [row["label"] for row in found] == [row.label for row in expected]
    for row, want in zip(found, expected, strict=True):
        assert set(row) == {"label", "score", "coarse", "probs"}
        assert row["score"] == pytest.approx(want.score, abs=1e-5)
        assert row["coarse"] == pytest.approx(want.coarse, abs=1e-5)
        assert list(row["probs"]) == list(want.probs)
        assert row["probs"] == pytest.approx(want.probs, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_it_equals_the_predictor(ask, rows, examples, tiny, batch_size):
    assert len({len(row["sentence"]) for row in rows}) > 3  # batches are padded
    same(ask(rows, batch_size=batch_size), Predictor([ComposedModel.of(*tiny)]).predict(examples[:ROWS]))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_levitated_markers_equal_the_predictor(rows, examples, batch_size):
    tokenizer = scratch_tokenizer(examples, "levitated")
    model = tiny_model(tokenizer, markers="levitated", pooling="cls_markers_both")
    ask = pipeline("relation-extraction", model=model, tokenizer=tokenizer, device="cpu")
    same(ask(rows, batch_size=batch_size), Predictor([ComposedModel.of(model, tokenizer)]).predict(examples[:ROWS]))


def test_one_row_none_and_a_stream(ask, rows, examples, tiny):
    expected = Predictor([ComposedModel.of(*tiny)]).predict(examples[:2])
    same([ask(rows[0])], expected[:1])
    same(list(ask(row for row in rows[:2])), expected)
    assert ask([]) == []


def test_a_reading_may_be_given(ask, rows, examples, tiny):
    reading = Decoding("soft", restrict="subject_type", threshold=0.9)
    expected = Predictor([ComposedModel.of(*tiny)], reading).predict(examples[:ROWS])
    same(ask(rows, gate="soft", restrict="subject_type", threshold=0.9), expected)
    assert [row.label for row in expected] != [row["label"] for row in ask(rows)]


def test_spans_may_be_tuples_or_maps(ask, rows, examples):
    row = examples[0]
    subject = (row.subject.start, row.subject.end, row.subject.type)
    object = {"start": row.object.start, "end": row.object.end, "type": row.object.type}
    assert ask({"sentence": row.sentence, "subject": subject, "object": object}) == ask(rows[0])


def test_left_padding_of_a_tokenizer_is_put_right(tiny, rows):
    model, tokenizer = tiny
    before = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        made = pipeline("relation-extraction", model=model, tokenizer=tokenizer, device="cpu")
        assert [row["label"] for row in made(rows, batch_size=5)] == [row["label"] for row in made(rows)]
    finally:
        tokenizer.padding_side = before


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"sentence": "가 나"}, "row: expected a map of sentence, subject, object"),
        ("가 나", "row: expected a map"),
        ({"sentence": "가 나", "subject": (0, 0, "PER"), "object": (2, 9, "PER")}, r"object: span 2..9 does not lie"),
        ({"sentence": "가 나", "subject": (2, 2, "PER"), "object": (2, 2, "PER")}, "is the same span as the subject"),
        ({"sentence": 3, "subject": (0, 2, "PER"), "object": (2, 2, "PER")}, "sentence: expected text"),
    ],
)
def test_a_bad_row_is_named(ask, row, text):
    with pytest.raises(MtlReError, match=text):
        ask(row)


def test_an_unknown_option_is_named(ask, rows):
    with pytest.raises(
        MtlReError, match=r"unknown option\(s\) \['gates'\]; known are gate, prior, restrict, threshold"
    ):
        ask(rows[0], gates="soft")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prior": "em"}, "prior em is estimated from many rows at once"),
        ({"gate": "HARD"}, "gate: 'HARD'; expected one of hard, soft"),
        ({"restrict": "subject-type"}, "restrict: 'subject-type'; expected one of none, subject_type"),
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(ask, rows, options, text):
    with pytest.raises(MtlReError, match=text):
        ask(rows[0], **options)


def test_the_task_is_registered():
    _, task, _ = mtl_re.pipeline.PIPELINE_REGISTRY.check_task("relation-extraction")
    assert task["impl"] is mtl_re.pipeline.RelationExtractionPipeline
