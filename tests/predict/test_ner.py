"""Entities by a token-classification model: tags → spans, windows, and laws over whole models of several families."""

import unicodedata
from itertools import pairwise

import pytest
import torch
from conftest import enliven, small_config
from families import FAMILIES, make_family
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification

from mtl_re.data.unicode_form import compose_spans, composed, is_decomposed
from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError
from mtl_re.features.markers import TYPE_WORDS
from mtl_re.predict.ner import MAX_OVERLAP, OUTSIDE, EntityFinder, Tag, read_tags, read_types, spans_of, windows_of
from mtl_re.predict.triples import entity_at

KINDS = ("bert", "xlm-roberta", "deberta-v2", "modernbert")
"""WordPiece, two of SentencePiece with their normalisers, byte-level BPE."""
LABELS = ["O", "B-PS", "I-PS", "B-LC", "I-LC"]


PLACED = ["B-P", "I-P", "E-P", "S-P", "B-L", "I-L", "O"]


def tags(text: str) -> list[Tag]:
    """`B-PS I-PS O` → tags, whatever the scheme."""
    return read_tags(text.split())


def cut(text: str) -> list[tuple[int, int]]:
    """Offsets of one piece a character."""
    return [(place, place + 1) for place in range(len(text))]


def words(entities: list[Entity]) -> list[tuple[str, int, str]]:
    return [(entity.word, entity.start, entity.type) for entity in entities]


# ---- labels → tags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O B-PS I-PS", [None, ("begin", "PS"), ("inside", "PS")]),
        ("O B-PS I-PS E-PS S-PS", [None, ("begin", "PS"), ("inside", "PS"), ("end", "PS"), ("single", "PS")]),
        ("O B-PS I-PS L-PS U-PS", [None, ("begin", "PS"), ("inside", "PS"), ("end", "PS"), ("single", "PS")]),
        ("O B_PS M_PS E_PS", [None, ("begin", "PS"), ("inside", "PS"), ("end", "PS")]),
        ("- PS-B PS-I", [None, ("begin", "PS"), ("inside", "PS")]),
        ("O PS LC", [None, ("inside", "PS"), ("inside", "LC")]),
        ("O S-OIL PS LC OG", [None, *(("inside", kind) for kind in ("S-OIL", "PS", "LC", "OG"))]),
        ("O I-WORK_OF_ART B-WORK_OF_ART", [None, ("inside", "WORK_OF_ART"), ("begin", "WORK_OF_ART")]),
        ("[PAD] [CLS] <pad> O B-PS I-PS", [None, None, None, None, ("begin", "PS"), ("inside", "PS")]),
        ("O B-PS I-PS MISC", [None, ("begin", "PS"), ("inside", "PS"), ("inside", "MISC")]),
    ],
)
def test_labels_are_read_by_the_scheme_of_their_set(labels, expected):
    assert tags(labels) == [OUTSIDE if tag is None else Tag(*tag) for tag in expected]


# ---- tags → spans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-P I-P O B-L I-L", "ab de"),
        ("B-P B-P I-P O O", "a bc"),
        ("O I-P I-P O O", "bc"),  # inside without a beginning
        ("B-P I-L I-L O O", "a bc"),  # another type opens a new entity
        ("B-P I-P E-P I-P O", "abc d"),  # ended: what follows is another
        ("B-P E-P S-P S-P E-P", "ab c d e"),
        ("S-P I-P O O B-P", "a b e"),
        ("O O O O O", ""),
        ("O B-P I-P I-P I-P", "bcde"),
    ],
)
def test_spans_of_schemes_with_places(labels, expected):
    by_label = dict(zip(PLACED, read_tags(PLACED), strict=True))
    apart = [(2 * place, 2 * place + 1) for place in range(5)]
    found = spans_of([by_label[label] for label in labels.split()], apart, "a b c d e")
    assert [entity.word.replace(" ", "") for entity in found] == expected.split()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-P B-P B-P O O", "세종대"),  # one word's pieces, as a model that learnt of first pieces only tags them
        ("B-P B-P O B-P B-P", "세종 왕은"),  # a piece outside ends it: a particle, say
        ("B-P B-L B-L I-L O", "세 종대왕"),
        ("B-P I-P B-P O O", "세종대"),
        ("B-P E-P B-P E-P O", "세종 대왕"),  # ends that are told are believed
        ("S-P S-P O O O", "세 종"),
    ],
)
def test_pieces_of_one_word_that_each_begin_are_one_entity(labels, expected):
    by_label = dict(zip(PLACED, read_tags(PLACED), strict=True))
    found = spans_of([by_label[label] for label in labels.split()], cut("세종대왕은"), "세종대왕은")
    assert [entity.word for entity in found] == expected.split()


def test_plain_tags_join_neighbours_of_one_type():
    found = spans_of(tags("PS PS LC O PS"), cut("abcde"), "abcde")
    assert words(found) == [("ab", 0, "PS"), ("c", 2, "LC"), ("e", 4, "PS")]


@pytest.mark.parametrize(
    ("text", "offsets", "labels", "expected"),
    [
        # SentencePiece's pieces begin with the blank before them
        ("나 조지 해리슨", [(0, 1), (1, 4), (4, 8)], "O B-PS I-PS", [("조지 해리슨", 2, "PS")]),
        # a lone ▁ can open an entity, not end, retype or extend one
        ("가 나 다", [(0, 0), (0, 1), (1, 1), (2, 3), (4, 5)], "B-PS I-PS O I-PS O", [("가 나", 0, "PS")]),
        ("가 나", [(0, 1), (2, 2), (2, 3)], "B-PS B-PS I-PS", [("가", 0, "PS"), ("나", 2, "PS")]),
        ("가 나", [(0, 1), (1, 2), (2, 3)], "B-PS I-LC I-PS", [("가 나", 0, "PS")]),
        ("가 나", [(0, 1), (1, 2), (2, 3)], "B-PS I-PS O", [("가", 0, "PS")]),
        ("가 나", [(0, 1), (1, 2), (2, 3)], "O B-PS O", []),
        # the bytes of one character: the first decides
        ("😀왕", [(0, 1), (0, 1), (0, 1), (1, 2)], "B-PS O B-PS I-PS", [("😀왕", 0, "PS")]),
        ("가😀", [(0, 2), (1, 2), (1, 2)], "O B-PS I-PS", []),
        # a character that no piece holds, inside and behind
        ("가\u200b나\u200b", [(0, 1), (2, 3)], "B-PS I-PS", [("가\u200b나", 0, "PS")]),
        ("\u3000가\xa0", [(0, 3)], "B-PS", [("가", 1, "PS")]),
        ("", [], "", []),
    ],
)
def test_spans_of_what_tokenizers_do(text, offsets, labels, expected):
    known = dict(zip(LABELS, read_tags(LABELS), strict=True))
    assert words(spans_of([known[label] for label in labels.split()], offsets, text)) == expected


TEXTS = st.text(st.sampled_from("가나a 　\u200b😀\u0301é"), max_size=12)


@st.composite
def tagged(draw):
    """Text, pieces whose starts do not fall (some empty, some sharing characters), and any tags."""
    text = draw(TEXTS)
    places = st.integers(0, len(text))
    pieces = draw(st.lists(st.tuples(places, st.integers(0, 3)), max_size=10).map(sorted))
    offsets = [(start, min(len(text), start + size)) for start, size in pieces]
    kinds = st.sampled_from(read_tags(PLACED))
    return text, offsets, draw(st.lists(kinds, min_size=len(offsets), max_size=len(offsets)))


@settings(derandomize=True, deadline=None)
@given(tagged())
def test_spans_are_exact_in_order_and_apart(given_):
    text, offsets, labels = given_
    found = spans_of(labels, offsets, text)
    for entity in found:
        assert entity.word == text[entity.start : entity.end + 1]
        assert all(edge.isprintable() and edge != " " for edge in (entity.word[0], entity.word[-1]))
    for one, other in pairwise(found):
        assert one.end < other.start


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["P", "L", None]), st.integers(1, 4)), max_size=8), st.booleans())
def test_written_tags_are_read_back(parts, with_ends):
    """The inverse: entities, a blank before each → BIO or BIOES tags → the same entities."""
    text, written, expected = "", [], []
    for kind, size in parts:
        text += " " + "가" * size
        written.append(OUTSIDE)
        if kind is None:
            written += [OUTSIDE] * size
            continue
        expected.append((len(written), len(written) + size - 1, kind))
        places = ["begin", *["inside"] * (size - 1)]
        if with_ends:
            places[-1] = "single" if size == 1 else "end"
        written += [Tag(place, kind) for place in places]
    found = spans_of(written, cut(text), text)
    assert [(entity.start, entity.end, entity.type) for entity in found] == expected


# ---- windows -------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 700), st.integers(4, 300))
def test_windows_keep_every_token_once(length, size):
    windows = windows_of(length, size)
    assert [token for window in windows for token in range(window.first, window.last)] == list(range(length))
    for window in windows:
        assert 0 <= window.start <= window.first <= window.last <= window.stop <= length
        assert window.stop - window.start == min(length, size)
        margin = min(size // 4, MAX_OVERLAP) // 2  # context at a border that is not the text's own
        assert window.start == 0 or window.first - window.start >= margin
        assert window.stop == length or window.stop - window.last >= margin


# ---- whole models --------------------------------------------------------------------------------------------------


class Dictated(torch.nn.Module):
    """A model whose labels are given: for each row of tokens, or for each token."""

    def __init__(self, labels, by_row=None, by_token=None, **options):
        super().__init__()
        self.config = small_config("bert", id2label=dict(enumerate(labels)), **options)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.labels, self.by_row, self.by_token, self.shapes = labels, by_row or {}, by_token or {}, []

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        logits = torch.zeros(*input_ids.shape, len(self.labels))
        for line, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
            row = tuple(ids[: sum(mask)])
            wanted = self.by_row.get(row) or [self.by_token.get(token, "O") for token in row]
            for place, label in enumerate(wanted):
                logits[line, place, self.labels.index(label)] = 1
        return type("Output", (), {"logits": logits})


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: FAMILIES[kind][2]() for kind in KINDS}


def dictating(tokenizer, texts, **options):
    """A finder that is told the labels of texts: text → spans (start, end, type) as B- and I-."""
    by_row = {}
    for text, spans in texts.items():
        coded = tokenizer(composed(text), return_offsets_mapping=True)
        borders = [len(composed(text[:place])) for place in range(len(text) + 1)]
        labels = ["O"] * len(coded["input_ids"])
        for start, end, kind in spans:
            inside = [
                place
                for place, (first, stop) in enumerate(coded["offset_mapping"])
                if first < borders[end + 1] and stop > borders[start]
            ]
            labels[inside[0] : inside[-1] + 1] = [f"B-{kind}", *[f"I-{kind}"] * (len(inside) - 1)]
        by_row[tuple(coded["input_ids"])] = labels
    return EntityFinder(Dictated(LABELS, by_row, **options), tokenizer)


SENTENCE = "  이순신은 👩\u200d🔬 Café 서울 특별시  國 에서 났다 "


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_exact_under_every_tokenizer(tokenizers, kind, form):
    text = unicodedata.normalize(form, SENTENCE)
    named = [("이순신은", "PS"), ("👩\u200d🔬", "PS"), ("Café", "LC"), ("서울 특별시", "LC"), ("國", "LC")]
    spans = []
    for word, type_ in named:
        spelled = unicodedata.normalize(form, word)
        spans.append((text.index(spelled), text.index(spelled) + len(spelled) - 1, type_))
    [found] = dictating(tokenizers[kind], {text: spans}).find([text])
    types = {"PS": "PER", "LC": "LOC"}
    assert found == [Entity(text[start : end + 1], start, end, types[type_]) for start, end, type_ in spans]


@pytest.mark.parametrize("kind", KINDS)
@given(
    text=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        st.text(st.sampled_from("왕은\u1112\u1161\u11ab é\u0301\u0323▁😀\n"), max_size=30),
    )
)
@settings(derandomize=True, max_examples=40, deadline=None)
@example(text=" \u0300가")
def test_any_text_gives_exact_spans(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    labels = {token: LABELS[token * 7919 % len(LABELS)] for token in range(len(tokenizer))}
    [found] = EntityFinder(Dictated(LABELS, by_token=labels, max_position_embeddings=12), tokenizer).find([text])
    for entity in found:
        assert entity.word == text[entity.start : entity.end + 1]
        assert entity_at(text, entity, "entity") == entity
    for one, other in pairwise(found):
        assert one.end < other.start
    if is_decomposed(text):  # and none cuts a character that is written in parts
        compose_spans(text, [(entity.start, entity.end) for entity in found])


def test_a_lone_blank_sign_does_not_speak_for_the_character_behind_it(tokenizers):
    """XLM-R gives `▁` the offsets of that character; training that labels visible pieces leaves its tag to chance."""
    tokenizer = tokenizers["xlm-roberta"]
    coded = tokenizer("왕", add_special_tokens=False, return_offsets_mapping=True)
    assert coded["offset_mapping"] == [(0, 1), (0, 1)]
    assert tokenizer.convert_ids_to_tokens(coded["input_ids"])[0] == "▁"
    model = Dictated(LABELS, by_token={coded["input_ids"][1]: "B-PS"})
    assert words(EntityFinder(model, tokenizer).find(["왕"])[0]) == [("왕", 0, "PER")]


def test_entities_inside_words_are_exact(tokenizers):
    """A particle is no part of the entity: what follows the first pieces of a word may be outside."""
    tokenizer, text = tokenizers["bert"], "나는 조선의 왕"
    assert "##의" in tokenizer.tokenize(text)
    [found] = dictating(tokenizer, {text: [(3, 4, "LC")]}).find([text])
    assert words(found) == [("조선", 3, "LOC")]


def test_texts_keep_their_order_and_equal_ones_are_read_once(tokenizers):
    texts = {"조선": [(0, 1, "LC")], "나는 조선의 왕": [(3, 4, "LC")], "": [], " \n": [], "왕 조선": [(0, 0, "PS")]}
    finder = dictating(tokenizers["bert"], {text: spans for text, spans in texts.items() if spans})
    order = ["왕 조선", "", "조선", "나는 조선의 왕", "조선", " \n", "왕 조선"]
    found = finder.find(order)
    assert [[(entity.start, entity.end) for entity in entities] for entities in found] == [
        [span[:2] for span in texts[text]] for text in order
    ]
    assert sum(rows for rows, _ in finder.model.shapes) == 3
    assert finder.find([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_read_to_their_end(tokenizers, kind):
    tokenizer = tokenizers[kind]
    text = "나는 " * 60 + "왕"
    last = dict.fromkeys(tokenizer(" 왕", add_special_tokens=False)["input_ids"], "I-PS")
    model = Dictated(LABELS, by_token=last, max_position_embeddings=16)
    [found] = EntityFinder(model, tokenizer).find([text])
    assert found[-1].end == len(text) - 1
    assert max(length for _, length in model.shapes) == 16


def test_an_entity_over_the_border_of_windows_is_one(tokenizers):
    tokenizer = tokenizers["bert"]
    text = "왕" * 50
    labels = dict.fromkeys(tokenizer(text, add_special_tokens=False)["input_ids"], "I-PS")
    model = Dictated(LABELS, by_token=labels, max_position_embeddings=16)
    [found] = EntityFinder(model, tokenizer).find([text])
    assert words(found) == [(text, 0, "PER")]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """A random token-classification model of a family, as the hub would give it."""
    place = tmp_path_factory.mktemp(request.param)
    kind, options, make = FAMILIES[request.param]
    tokenizer = make()
    options = options | ({"max_position_embeddings": 34} if kind == "xlm-roberta" else {"max_position_embeddings": 32})
    names = dict(enumerate(LABELS))
    config = small_config(
        kind, **options, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, id2label=names
    )
    torch.manual_seed(1)
    enliven(AutoModelForTokenClassification.from_config(config), 5).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def test_entities_do_not_depend_on_the_batch(folder, examples):
    texts = [row.sentence for row in examples[:12]] + [examples[0].sentence * 4]
    alone = EntityFinder.load(folder, device="cpu", batch_size=1)
    expected = [alone.find([text])[0] for text in texts]
    assert sum(map(len, expected)) > 2 * len(texts)
    for size in (1, 3, 32):
        finder = EntityFinder.load(folder, device="cpu", batch_size=size)
        assert finder.find(texts) == expected
        assert finder.find(texts[::-1]) == expected[::-1]
    assert {entity.type for entities in expected for entity in entities} <= {"PER", "LOC"}


def test_the_digest_is_that_of_model_tokenizer_and_map(folder, tmp_path):
    finder = EntityFinder.load(folder, device="cpu")
    digest = finder.digest

    def anew() -> str:
        return EntityFinder(finder.model, finder.tokenizer).digest

    assert EntityFinder.load(folder, device="cpu", batch_size=3).digest == digest
    finder.find(["나는 왕"])
    assert anew() == digest
    finder.model.save_pretrained(tmp_path)
    finder.tokenizer.save_pretrained(tmp_path)
    assert EntityFinder.load(str(tmp_path), device="cpu").digest == digest
    assert EntityFinder.load(folder, {"PS": "PER", "LC": "ORG"}, "cpu").digest != digest
    finder.model.config.id2label[1] = "I-PS"
    assert anew() != digest
    finder.model.config.id2label[1] = "B-PS"
    with torch.no_grad():
        next(finder.model.parameters()).view(-1)[0] += 1
    assert anew() != digest


# ---- types ---------------------------------------------------------------------------------------------------------


def finder_of(tokenizers, labels, types=None):
    return EntityFinder(Dictated(labels), tokenizers["bert"], types, name="NAME")


def test_the_shipped_map_gives_types_that_klue_re_has():
    types = read_types(None)
    assert set(types.values()) == {*TYPE_WORDS, None}
    klue = {kind: types[kind] for kind in ("PS", "LC", "OG", "DT", "TI", "QT")}
    assert klue == {"PS": "PER", "LC": "LOC", "OG": "ORG", "DT": "DAT", "TI": "DAT", "QT": "NOH"}
    assert all(types[kind] == kind for kind in TYPE_WORDS)


def test_types_are_found_whatever_their_case(tokenizers, capsys):
    finder = finder_of(tokenizers, ["O", "B-person", "I-person", "B-Loc"])
    assert finder.types == {"person": "PER", "Loc": "LOC"}
    assert finder_of(tokenizers, ["O", "PS", "Ps"], {"PS": "A", "Ps": "B"}).types == {"PS": "A", "Ps": "B"}
    assert capsys.readouterr().err == ""


def test_unknown_types_are_named_once_and_left_out(tokenizers, capsys):
    tokenizer = tokenizers["bert"]
    label = dict(zip(tokenizer.convert_tokens_to_ids(["조", "선"]), ("B-XX", "B-PS"), strict=True))
    model = Dictated(["O", "B-PS", "I-PS", "B-XX", "I-XX", "B-YY"], by_token=label)
    finder = EntityFinder(model, tokenizer, name="NAME")
    err = capsys.readouterr().err
    assert "ner:NAME: entities of type XX, YY are left out" in err
    assert err.count("\n") == 1
    assert words(finder.find(["조 선"])[0]) == [("선", 2, "PER")]
    assert capsys.readouterr().err == ""


def test_null_leaves_a_type_out_in_silence(tokenizers, capsys):
    finder = finder_of(tokenizers, LABELS, {"PS": "PER", "LC": None})
    assert finder.types == {"PS": "PER"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("labels", "types", "named"),
    [
        (["LABEL_0", "LABEL_1"], None, "LABEL_0, LABEL_1"),
        (["O", "B-NOUN", "B-VERB"], None, "NOUN, VERB"),
        (["O", "B-PS"], {"PS": None}, "PS"),
        (["O"], None, "it has none"),
    ],
)
def test_a_model_without_a_known_type_is_refused(tokenizers, labels, types, named):
    with pytest.raises(
        MtlReError, match=rf"ner:NAME: the map of types knows none of its tags \({named}\).*--ner_types"
    ):
        finder_of(tokenizers, labels, types)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NO: NOH", "in quotes"),
        ("PS: 3", "PS is 3"),
        ("PS: ' '", "PS is ' '"),
        ("[PS]", "expected a map"),
        ("{}", "holds no type"),
        ("a: [", "not YAML"),
    ],
)
def test_faults_of_a_map_are_named(tmp_path, text, said):
    file = tmp_path / "types.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MtlReError, match=said) as fault:
        read_types(str(file))
    assert str(file) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_users_map_replaces_the_shipped_one(tmp_path):
    file = tmp_path / "types.yaml"
    file.write_text("인물: PER\nXX: null\n", encoding="utf-8")
    assert read_types(str(file)) == {"인물": "PER", "XX": None}
    with pytest.raises(MtlReError, match="cannot be read"):
        read_types(str(tmp_path / "none.yaml"))


# ---- faults --------------------------------------------------------------------------------------------------------


def one_line_fault(name: str, **options) -> str:
    with pytest.raises(MtlReError) as fault:
        EntityFinder.load(name, **options)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_models_that_cannot_be_loaded(tmp_path, saved):
    assert f"ner: {tmp_path} has no config.json" in one_line_fault(str(tmp_path))
    assert "cannot be loaded" in one_line_fault(str(tmp_path / "none"))
    assert "relation model of mtl-re" in one_line_fault(str(saved))
    other = make_family("bert", tmp_path / "lm")
    assert "no trained token-classification head (missing classifier" in one_line_fault(other)
    assert "'tpu9': not a device" in one_line_fault(other, device="tpu9")


def test_pickled_weights_are_not_read(tmp_path):
    folder = make_family("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    said = one_line_fault(folder)
    assert "cannot be loaded" in said
    assert "safetensors" in said


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(MtlReError, match="ner:NAME: object gives no character offsets; take a model with a fast"):
        EntityFinder(Dictated(LABELS), object(), name="NAME")


def test_texts_that_are_none(tokenizers):
    finder = finder_of(tokenizers, LABELS)
    with pytest.raises(MtlReError, match=r"texts\[1\]: expected text, found None"):
        finder.find(["왕", None])
    with pytest.raises(MtlReError, match=r"texts\[0\]: half a surrogate pair at character 1"):
        finder.find(["왕\ud83d"])


def test_precision_and_batch_size_are_checked(tokenizers):
    with pytest.raises(MtlReError, match="batch_size: 0"):
        EntityFinder(Dictated(LABELS), tokenizers["bert"], batch_size=0)
    with pytest.raises(MtlReError, match="fp16 needs a CUDA device"):
        EntityFinder(Dictated(LABELS), tokenizers["bert"], precision="fp16")
    with pytest.raises(MtlReError, match="has room for 2 tokens"):
        EntityFinder(Dictated(LABELS, max_position_embeddings=4), tokenizers["bert"])
