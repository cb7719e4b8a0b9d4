"""Entities of a token-classification model: tags → spans, and passes over texts of any length."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForTokenClassification

from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError
from mtl_re.predict import ner
from mtl_re.predict.ner import EntityFinder, Tag, read_types, spans_of, tag_of
from tests.conftest import scratch_tokenizer

LABELS = ["O", "B-PS", "I-PS", "B-OG", "I-OG", "B-XX"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("O", (None, False, False)),
        ("B-PS", ("PS", True, False)),
        ("I-PS", ("PS", False, False)),
        ("E-PS", ("PS", False, True)),
        ("S-PS", ("PS", True, True)),
        ("L-PS", ("PS", False, True)),
        ("U-PS", ("PS", True, True)),
        ("PS-B", ("PS", True, False)),
        ("PER_I", ("PER", False, False)),
        ("B-LOC-X", ("LOC-X", True, False)),
        ("PS", ("PS", False, False)),
    ],
)
def test_what_a_label_says(label, expected):
    assert tag_of(label) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-PS I-PS O B-OG", [(0, 1, "PS"), (3, 3, "OG")]),
        ("B-PS B-PS O O", [(0, 0, "PS"), (1, 1, "PS")]),
        ("I-PS I-PS O O", [(0, 1, "PS")]),  # nothing opened it
        ("B-PS I-OG I-OG O", [(0, 0, "PS"), (1, 2, "OG")]),
        ("S-PS S-PS B-OG E-OG", [(0, 0, "PS"), (1, 1, "PS"), (2, 3, "OG")]),
        ("E-PS I-PS O O", [(0, 0, "PS"), (1, 1, "PS")]),  # behind an end a new one begins
        ("PS PS OG O", [(0, 1, "PS"), (2, 2, "OG")]),
        ("O O O O", []),
    ],
)
def test_tags_become_spans(labels, expected):
    tags = [tag_of(label) for label in labels.split()]
    assert spans_of(tags, [(0, 1), (1, 2), (2, 3), (3, 4)], "가나다라") == expected


def test_blanks_do_not_belong_to_an_entity():
    """SentencePiece's pieces may hold the blank before a word."""
    tags = [Tag("PS", True, False), Tag("PS", False, False), Tag("OG", True, False)]
    assert spans_of(tags, [(0, 3), (3, 5), (5, 6)], " 가나 다 ") == [(1, 4, "PS")]


@given(st.text(min_size=1, max_size=30), st.data())
def test_spans_are_apart_in_order_and_whole(text, data):
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    offsets = list(pairwise(borders))
    kinds = st.builds(Tag, st.sampled_from([None, "PS", "OG"]), st.booleans(), st.booleans())
    tags = data.draw(st.lists(kinds, min_size=len(offsets), max_size=len(offsets)))
    spans = spans_of(tags, offsets, text)
    assert all(0 <= start <= end < len(text) for start, end, _ in spans)
    assert all(before[1] < behind[0] for before, behind in pairwise(spans))
    assert all(not text[start].isspace() and not text[end].isspace() for start, end, _ in spans)
    covered = {place for (a, b), tag in zip(offsets, tags, strict=True) if tag.type for place in range(a, b)}
    visible = {place for place in covered if not text[place].isspace()}
    assert visible == {place for start, end, _ in spans for place in range(start, end + 1)} - {
        place for place in range(len(text)) if text[place].isspace()
    }


@pytest.fixture(scope="module")
def finder(examples, tmp_path_factory) -> EntityFinder:
    """A model with random weights; what it finds is arbitrary, and the same whenever it is asked."""
    tokenizer = scratch_tokenizer(examples, "typed_punct_ko")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        initializer_range=0.6,
    )
    folder = tmp_path_factory.mktemp("ner")
    BertForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return EntityFinder.load(str(folder), batch_size=3)


def test_words_and_types(finder, examples):
    texts = [row.sentence for row in examples] + ["", "😀 가나", " "]
    found = finder.find(texts)
    assert len(found) == len(texts)
    entities = [entity for of_text in found for entity in of_text]
    assert len(entities) > 50
    assert {entity.type for entity in entities} == {"PER", "ORG"}  # XX has no type
    for text, of_text in zip(texts, found, strict=True):
        assert all(entity.word == text[entity.start : entity.end + 1] for entity in of_text)
    assert finder.find([]) == []


def test_a_text_is_read_alone_as_among_others(finder, examples):
    texts = [row.sentence for row in examples[:12]]
    assert finder.find(texts) == [finder.find([text])[0] for text in texts]


def test_long_texts_are_read_to_their_end(finder, examples):
    text = " ".join(row.sentence for row in examples[:8])
    ids = finder.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = finder.length - finder.frame.size
    assert finder.length == 48 < len(ids) / 2
    (labels,) = finder._labels([ids])
    overlap = room // 2 if room < 2 * ner.OVERLAP else ner.OVERLAP
    first = finder._pass([ids[:room]])[0]
    second = finder._pass([ids[room - overlap : 2 * room - overlap]])[0]
    assert labels[: room - overlap] == first[: room - overlap]
    assert labels[room : room + 4] == second[overlap : overlap + 4]
    assert max(entity.end for entity in finder.find([text])[0]) > 0.8 * len(text)


def test_a_map_of_ones_own(finder, tmp_path, capsys):
    own = tmp_path / "types.yaml"
    own.write_text("PS: POH\nOG: null\nXX: DAT\n", encoding="utf-8")
    mapped = EntityFinder(finder.model, finder.tokenizer, read_types(str(own)))
    text = "누리전자 한라희 강릉 세종 서울 대표"
    kinds = {entity.type for entity in mapped.find([text, text + " 왕"])[0]}
    assert kinds <= {"POH", "DAT"}
    assert capsys.readouterr().err == ""
    EntityFinder(finder.model, finder.tokenizer, read_types())
    assert "entities of XX are left out; --ner_types" in capsys.readouterr().err
    assert mapped.digest() != finder.digest() == finder.digest()


def test_what_is_refused(finder, tmp_path, saved):
    with pytest.raises(MtlReError, match=r"no entity type is known for this model's tags \['OG', 'PS', 'XX'\]"):
        EntityFinder(finder.model, finder.tokenizer, {"A": "PER"})
    own = tmp_path / "types.yaml"
    own.write_text("PS: 3\n", encoding="utf-8")
    with pytest.raises(MtlReError, match=r"types.yaml: PS: 3; expected TAG: TYPE"):
        read_types(str(own))
    with pytest.raises(MtlReError, match=r"ner:.*nothing: cannot be loaded"):
        EntityFinder.load(str(tmp_path / "nothing"))


def test_an_entity_is_what_the_relation_model_takes(finder):
    assert all(isinstance(entity, Entity) for entity in finder.find(["누리전자 대표 한라희"])[0])
