"""Triples of one sentence: which pairs are asked about, what the score is, and whose fault an error is."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import TAXONOMIES, YAML_MAP

from mtl_re import cli
from mtl_re.config import ExtractConfig
from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError
from mtl_re.predict import triples
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding
from mtl_re.taxonomy import Taxonomy

SENTENCE = "한라희는 누리전자의 대표이고 강릉에서 1999년에 태어났다."
ENTITIES = [(0, 2, "PER"), (5, 8, "ORG"), (16, 17, "LOC"), (21, 25, "DAT")]


@pytest.fixture(scope="module")
def predictor(tiny) -> Predictor:
    return Predictor([ComposedModel.of(*tiny)])


def test_every_ordered_pair_whose_subject_may_be_one(predictor):
    found = predictor.extract(SENTENCE, ENTITIES, threshold=0)
    assert {triple.subject.type for triple in found} == {"PER", "ORG"}
    assert len({(triple.subject, triple.object) for triple in found}) == len(found) == 2 * 3
    assert found[0].subject.word == SENTENCE[found[0].subject.start : found[0].subject.end + 1]


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_a_pair_gives_its_most_probable_relation(tiny, gate):
    predictor = Predictor([ComposedModel.of(*tiny)], Decoding(gate=gate))
    for triple in predictor.extract(SENTENCE, ENTITIES, threshold=0):
        row = Predictor([ComposedModel.of(*tiny)]).predict([Example("1", SENTENCE, triple.subject, triple.object)])[0]
        relations = {label: p for label, p in row.probs.items() if label != "no_relation"}
        best = max(relations, key=relations.__getitem__)
        assert triple.relation == best
        assert triple.score == pytest.approx(relations[best], abs=1e-6)


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_the_gate_does_not_hide_a_more_probable_relation(tiny, monkeypatch, gate):
    """Class org has 0.4 in all, 0.036 a label; of per one label has 0.38; below threshold 0.5 the gate would decide."""
    predictor = Predictor([ComposedModel.of(*tiny)], Decoding(gate=gate))
    labels = predictor.taxonomy.labels
    probs = np.zeros((1, len(labels)))
    probs[0, [label.startswith("org:") for label in labels]] = 0.4 / 11
    probs[0, labels.index("per:title")], probs[0, labels.index("no_relation")] = 0.38, 0.22
    monkeypatch.setattr(predictor, "probabilities", lambda rows: probs.repeat(len(rows), 0))
    assert {(t.relation, t.score) for t in predictor.extract(SENTENCE, ENTITIES, 0.3)} == {("per:title", 0.38)}


def test_threshold_and_order(predictor):
    every = predictor.extract(SENTENCE, ENTITIES, threshold=0)
    assert [triple.score for triple in every] == sorted((triple.score for triple in every), reverse=True)
    # Rows of another order make other batches, whose floats differ in the last bits: scores are compared as such.
    gaps = [one.score - next_.score for one, next_ in itertools.pairwise(every)]
    assert min(gaps) > 1e-5
    assert same_triples(predictor.extract(SENTENCE, ENTITIES, threshold=every[2].score - 1e-6), every[:3])
    assert same_triples(predictor.extract(SENTENCE, ENTITIES, threshold=every[2].score + 1e-6), every[:2])
    assert same_triples(predictor.extract(SENTENCE, ENTITIES[::-1], threshold=0), every)
    assert predictor.extract(SENTENCE, ENTITIES, threshold=1) == []


def same_triples(made, expected):
    """Equal pairs and relations in the same order, with scores equal up to rounding."""
    assert [replace(triple, score=0.0) for triple in made] == [replace(triple, score=0.0) for triple in expected]
    assert [triple.score for triple in made] == pytest.approx([triple.score for triple in expected], abs=1e-6)
    return True


def test_equal_scores_are_ordered_by_place(predictor, monkeypatch):
    monkeypatch.setattr(
        predictor, "probabilities", lambda rows: Predictor.probabilities(predictor, rows)[:1].repeat(len(rows), 0)
    )
    found = predictor.extract(SENTENCE, ENTITIES, threshold=0)
    places = [(triple.subject.start, triple.object.start) for triple in found]
    assert places == sorted(places)


def test_all_pairs_are_scored_at_once(predictor, monkeypatch):
    calls = []
    inner = predictor.probabilities
    monkeypatch.setattr(predictor, "probabilities", lambda rows: calls.append(len(rows)) or inner(rows))
    predictor.extract(SENTENCE, ENTITIES)
    assert calls == [6]


def test_nested_entities_are_a_pair_and_crossing_ones_are_none(predictor):
    entities = [(5, 8, "ORG"), (5, 6, "ORG"), (6, 9, "ORG"), (0, 2, "PER")]
    spans = {
        ((triple.subject.start, triple.subject.end), (triple.object.start, triple.object.end))
        for triple in predictor.extract(SENTENCE, entities, threshold=0)
    }
    assert {((5, 8), (5, 6)), ((5, 6), (5, 8))} <= spans
    assert not {((5, 8), (6, 9)), ((6, 9), (5, 8)), ((5, 6), (6, 9))} & spans
    _, left = triples.candidates(SENTENCE, entities, predictor.taxonomy)
    assert left == {"their spans cross or are the same": 4}
    assert triples.explain_left_out([*entities], left) == [
        "4 ordered pair(s) not scored: their spans cross or are the same"
    ]
    assert triples.explain_left_out(entities[:1], {}) == ["a single entity: a relation needs two"]
    assert predictor.extract(SENTENCE, [], threshold=0) == []


def test_the_forms_of_an_entity_are_one(predictor):
    maps = [{"start": start, "end": end, "type": kind} for start, end, kind in ENTITIES]
    whole = [Entity(SENTENCE[start : end + 1], start, end, kind) for start, end, kind in ENTITIES]
    assert same_triples(predictor.extract(SENTENCE, maps, 0), predictor.extract(SENTENCE, whole, 0))
    assert same_triples(predictor.extract(SENTENCE, ENTITIES, 0), predictor.extract(SENTENCE, whole, 0))


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ((0, 99, "PER"), r"entities\[1\]: span 0..99 does not lie"),
        ((-1, 2, "PER"), r"entities\[1\]: span -1..2"),
        ((3, 2, "PER"), r"entities\[1\]: span 3..2"),
        ((0.0, 2, "PER"), r"entities\[1\].start: expected a whole number"),
        ((True, 2, "PER"), r"entities\[1\].start: expected a whole number"),
        ((0, 2, ""), r"entities\[1\].type: expected an entity type"),
        ((4, 4, "PER"), r"entities\[1\]: characters 4..4 are blank"),
        ((0, 2), r"entities\[1\]: expected an Entity"),
        ({"start": 0, "end": 2}, r"entities\[1\]: keys \['type'\] are missing"),
        ({"start": 0, "end": 2, "type": "PER", "typo": 1}, r"entities\[1\]: keys \['typo'\]"),
        (Entity("한라", 0, 2, "PER"), r"entities\[1\].word: '한라', but characters 0..2 are '한라희'"),
        ((5, 8, "ORG"), r"entities\[1\]: '누리전자' \(5..8 ORG\) is listed twice"),
        ((0, 2, "ROBOT"), "'한라희' .*ROBOT.* is unknown to this model"),
    ],
)
def test_an_error_names_the_entity(predictor, bad, text):
    with pytest.raises(MtlReError, match=text):
        predictor.extract(SENTENCE, [(5, 8, "ORG"), bad], threshold=0)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_the_threshold_is_a_probability(predictor, threshold):
    with pytest.raises(MtlReError, match="threshold"):
        predictor.extract(SENTENCE, ENTITIES, threshold)


def test_each_relation_may_have_its_own_threshold(predictor):
    every = predictor.extract(SENTENCE, ENTITIES, threshold=0)
    relations = [label for label in predictor.taxonomy.labels if label != "no_relation"]
    for one in every:
        given = dict.fromkeys(relations) | {one.relation: one.score - 1e-6}
        kept = [other for other in every if other.relation == one.relation and other.score >= one.score - 1e-6]
        assert same_triples(predictor.extract(SENTENCE, ENTITIES, given), kept)
    with pytest.raises(MtlReError, match="threshold: none is given for 'per:title'"):
        predictor.extract(SENTENCE, ENTITIES, {label: 0.5 for label in relations if label != "per:title"})
    with pytest.raises(MtlReError, match=r"threshold: 1\.5"):
        predictor.extract(SENTENCE, ENTITIES, dict.fromkeys(relations, 1.5))
    with pytest.raises(MtlReError, match="threshold: 'none'; expected a probability"):
        predictor.extract(SENTENCE, ENTITIES, "none")


def test_the_threshold_itself_is_kept():
    taxonomy = TAXONOMIES["klue-hierarchical"]
    keep = triples.keeps(taxonomy, 0.5)
    assert [keep(1, score) for score in (0.49, 0.5, 0.51)] == [False, True, True]
    of_each = dict.fromkeys(taxonomy.labels, 0.2) | {taxonomy.labels[2]: None}
    assert [triples.keeps(taxonomy, of_each)(label, 0.3) for label in (1, 2, 3)] == [True, False, True]


def test_the_command_takes_stored_thresholds_or_says_how_to_get_them(saved, capsys):
    call = ["extract", str(saved), "--sentence", SENTENCE, "--entity", "한라희:PER", "--entity", "누리전자:ORG"]
    assert cli.main([*call, "--threshold", "stored"]) == 1
    assert "`mtl-re calibrate CKPT --precision 0.9` fits them" in capsys.readouterr().err
    nothing = ExtractConfig(SENTENCE, ["한라희:PER"], threshold="stored")
    assert triples.render_triples([], nothing) == "no relation reaches its stored threshold"


def test_a_sentence_must_be_text(predictor):
    with pytest.raises(MtlReError, match="sentence: expected text"):
        predictor.extract(None, ENTITIES)
    with pytest.raises(MtlReError, match="sentence: half a surrogate pair"):
        predictor.extract("가 나 \ud83d", [(0, 0, "PER"), (2, 2, "PER")])


def test_subject_types_follow_the_taxonomy():
    assert triples.subject_types(TAXONOMIES["klue-flat"]) == {"ORG", "PER"}
    assert triples.subject_types(TAXONOMIES["yaml-hierarchical"]) is None  # `located` says nothing of its subjects
    assert triples.subject_types(TAXONOMIES["no-none-flat"]) is None
    pairs, _ = triples.candidates("a b c", [(0, 0, "X"), (2, 2, "Y"), (4, 4, "X")], TAXONOMIES["yaml-hierarchical"])
    assert len(pairs) == 6


def test_an_empty_list_of_subject_types_means_any():
    given = yaml.safe_load(YAML_MAP)
    assert triples.subject_types(Taxonomy.from_dict({**given, "subject_types": {"treats": ["DRUG"]}})) is None
    every = {name: ["DRUG"] for name in ("treats", "harms", "located")}
    assert triples.subject_types(Taxonomy.from_dict({**given, "subject_types": every})) == {"DRUG"}
    any_of_one = Taxonomy.from_dict({**given, "subject_types": every | {"harms": []}})
    assert triples.subject_types(any_of_one) is None
    assert len(triples.candidates("a b c", [(0, 0, "X"), (2, 2, "DRUG"), (4, 4, "X")], any_of_one)[0]) == 6


@pytest.mark.parametrize(
    ("kind", "likely"),
    [
        ("PERSON", "PER"),
        ("per", "PER"),
        ("Organization", "ORG"),
        ("사람", "PER"),
        ("LOK", "LOC"),
        ("날짜", "DAT"),
        ("X", None),
    ],
)
def test_an_unknown_type_is_an_error_that_names_the_likely_one(predictor, kind, likely):
    with pytest.raises(MtlReError, match=r"entities\[1\]: .*is unknown to this model \(known: DAT, LOC, ") as caught:
        predictor.extract(SENTENCE, [ENTITIES[0], (*ENTITIES[1][:2], kind)])
    assert str(caught.value).endswith(f"did you mean {likely}?") is (likely is not None)


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "text", "expected"),
    [
        ("세종은 조선의 왕", "조선:LOC", Entity("조선", 4, 5, "LOC")),
        ("왕 왕", "왕@2:POH", Entity("왕", 2, 2, "POH")),
        ("😀 왕", "왕:POH", Entity("왕", 2, 2, "POH")),
        ("비율 3:1 이다", "3:1:NOH", Entity("3:1", 3, 5, "NOH")),
        ("주소 a@1 이다", "a@1:POH", Entity("a@1", 3, 5, "POH")),
        ("*한 (별)", "(별):POH", Entity("(별)", 3, 5, "POH")),
    ],
)
def test_an_entity_is_found_in_the_sentence(sentence, text, expected):
    assert triples.find_entity(sentence, text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("왕:POH", "occurs 2 times in the sentence; say which: 왕@0:POH, 왕@2:POH"),
        ("왕@1:POH", "'왕@1' does not occur in the sentence"),
        ("비:POH", "does not occur"),
        ("왕", "expected WORD:TYPE"),
        (":POH", "expected WORD:TYPE"),
        ("왕:", "expected WORD:TYPE"),
    ],
)
def test_an_entity_that_is_not_found(text, fault):
    with pytest.raises(MtlReError, match=fault):
        triples.find_entity("왕 왕", text)


def test_the_command_prints_what_extract_returns(saved, predictor, capsys):
    words = ["한라희:PER", "누리전자:ORG", "강릉:LOC"]
    call = ["extract", str(saved), "--sentence", SENTENCE, "--threshold", "0"]
    call += [part for word in words for part in ("--entity", word)]
    assert cli.main([*call, "--format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = predictor.extract(SENTENCE, ENTITIES[:3], 0)
    assert [(line["subject"]["word"], line["relation"], line["object"]["start"]) for line in lines] == [
        (triple.subject.word, triple.relation, triple.object.start) for triple in expected
    ]
    assert [line["score"] for line in lines] == pytest.approx([triple.score for triple in expected], abs=1e-5)


def test_text_output_and_a_usage_fault(capsys):
    made = triples.Triple(Entity("왕", 0, 0, "PER"), "per:title", Entity("나라", 2, 3, "LOC"), 0.5, 0.7)
    options = ExtractConfig("왕", ["왕:PER"])
    assert triples.render_triples([made], options) == "0.500\t왕 (0..0)\tper:title\t나라 (2..3)"
    assert triples.render_triples([], options) == "no relation scores 0.5 or more"
    assert cli.main(["extract", "x", "--sentence", "왕 왕", "--entity", "왕:PER"]) == 1
    assert "occurs 2 times" in capsys.readouterr().err
    assert cli.main(["extract", "x", "--sentence", "왕", "--entity", "왕:PER", "--threshold", "2"]) == 2
