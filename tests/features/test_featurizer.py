"""Positions point at marker tokens whatever the tokenizer, the scheme, the text and the length."""

import unicodedata

import numpy as np
import pytest
from conftest import MAX_LENGTH, SCHEME, TAXONOMIES, TYPES, sample_examples, scratch_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError, RowError
from mtl_re.features import featurizer as features
from mtl_re.features import markers
from mtl_re.features.featurizer import POSITIONS, FeatureTable, Featurizer, Frame
from mtl_re.features.markers import ADDS_TOKENS, LEVITATED, MARKERS
from mtl_re.taxonomy import IGNORE

TAXONOMY = TAXONOMIES["klue-hierarchical"]


def row(sentence: str, subject: str, object_: str, types=("PER", "ORG"), label=None) -> Example:
    """An example; `subject` and `object_` are words of the sentence, of which the first occurrence counts."""

    def entity(word: str, kind: str) -> Entity:
        start = sentence.index(word)
        return Entity(word, start, start + len(word) - 1, kind)

    return Example("made", sentence, entity(subject, types[0]), entity(object_, types[1]), label)


AWKWARD = {
    "particles": row("이순신은 조선의 장군이다.", "이순신", "조선"),
    "object first": row("조선의 이순신은 장군이다.", "이순신", "조선"),
    "at both ends": row("이순신은 장군, 나라는 조선", "이순신", "조선"),
    "the whole sentence": row("가나", "가", "나"),
    "adjacent": row("대표이순신조선소속", "이순신", "조선"),
    "inside a word": row("비이순신파와 친조선파", "이순신", "조선"),
    "spaces inside": row("그 이 순 신 은 조 선 의 장군", "이 순 신", "조 선"),
    "NFD": row(
        unicodedata.normalize("NFD", "이순신은 조선의 장군이다."),
        *(unicodedata.normalize("NFD", word) for word in ("이순신", "조선")),
    ),
    "combining mark behind": row("Cafe\u0301 조선e\u0301 장군", "Cafe", "조선e"),
    "emoji": row("😀이순신👩‍👩‍👧은 조선🇰🇷의 장군😀", "이순신", "조선🇰🇷"),
    "marker signs": row("@ * 사람 * 김 @ 은 # ^ 단체 ^ @이순신@ # 와 #조선# 을", "@이순신@", "#조선#"),
    "only signs": row("a @ b # c ^ * d", "@", "#"),
    "marker tokens": row("<subj> 가 </subj> <O:ORG> 이순신 <S:PER> 조선 </S:PER>", "이순신", "조선"),
    "tabs and wide spaces": row("이순신\t은\u3000조선\u00a0의 장군", "이순신", "조선"),
    "unknown letters": row("ꙮ 이순신ꙮ ∰조선∰ 의", "이순신ꙮ", "∰조선"),
    "hanja": row("이순신(李舜臣)은 조선(朝鮮)의 장군", "李舜臣", "朝鮮"),
}
"""Rows that have broken position arithmetic somewhere."""


def byte_level(texts: list[str], scheme: str):
    """A RoBERTa-like tokenizer: byte-level BPE and `<s> a </s></s> b </s>`."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    features.add_marker_tokens(made, scheme, TYPES)
    return made


def sentence_piece(texts: list[str], scheme: str, whole: bool = True):
    """An XLM-R-like tokenizer: unigram pieces over `▁`, which knows `▁@` as one piece, or only as `▁` and `@`."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    pieces = [f"▁{piece}" for piece in markers.pieces(scheme, TYPES)] if whole else []
    scores = [(piece, -1.0 - number / 1000) for number, piece in enumerate([*specials, *pieces, "▁", *letters])]
    core = Tokenizer(models.Unigram(list(dict(scores).items()), unk_id=3))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    features.add_marker_tokens(made, scheme, TYPES)
    return made


FAMILIES = ("wordpiece", "byte level", "sentence piece", "sentence piece, split", "ko-mini")


@pytest.fixture(scope="module")
def make(examples, request):
    """(family, scheme) → tokenizer, each made once."""
    made = {}

    def tokenizer_of(family: str, scheme: str = SCHEME):
        if (family, scheme) not in made:
            seen = [*examples, *(one for name, one in AWKWARD.items() if name != "unknown letters")]
            texts = [markers.mark(one.sentence, one.subject, one.object, scheme).text for one in seen]
            texts += [" ".join(markers.pieces(scheme, TYPES))] * 20
            if family == "wordpiece":
                made[family, scheme] = scratch_tokenizer(seen, scheme)
            elif family == "ko-mini":
                tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue("ko_mini"))
                features.add_marker_tokens(tokenizer, scheme, TYPES)
                made[family, scheme] = tokenizer
            elif family == "byte level":
                made[family, scheme] = byte_level(texts, scheme)
            else:
                made[family, scheme] = sentence_piece(texts, scheme, whole=family == "sentence piece")
        return made[family, scheme]

    return tokenizer_of


def marker_text(tokenizer, token: int) -> str:
    """A token's text, without the signs of the beginning of a word."""
    return tokenizer.convert_ids_to_tokens(int(token)).lstrip("▁Ġ")


def check_positions(tokenizer, scheme: str, example: Example, found: features.Features) -> None:
    """Every position holds the marker piece it is meant to hold, in the order in which the entities stand."""
    ids = found.input_ids
    assert ((found.positions > 0) & (found.positions < min(found.second, len(ids) - 1))).all()
    for role, entity, (start, end) in (
        ("subject", example.subject, found.positions[:2]),
        ("object", example.object, found.positions[2:]),
    ):
        before, after = MARKERS[scheme](role, entity.type)
        assert marker_text(tokenizer, ids[start]) == before.split()[0], role
        assert marker_text(tokenizer, ids[end]) == after.split()[-1], role
        assert start < end
    first, second = sorted((found.positions[:2].tolist(), found.positions[2:].tolist()))
    assert first[1] < second[0]
    assert (found.positions[0] < found.positions[2]) == (example.subject.start < example.object.start)


each_scheme = pytest.mark.parametrize("scheme", [name for name in MARKERS if name != LEVITATED])
each_family = pytest.mark.parametrize("family", FAMILIES)
each_query = pytest.mark.parametrize("query", [False, True], ids=["one segment", "query"])


# ---- positions -----------------------------------------------------------------------------------------------------


@each_family
@each_scheme
@each_query
def test_positions_hold_the_markers_in_awkward_text(make, family, scheme, query):
    tokenizer = make(family, scheme)
    featurizer = Featurizer(tokenizer, TAXONOMY, scheme, query, 512, TYPES)
    for name, example in AWKWARD.items():
        found = featurizer.table([example])[0]
        try:
            check_positions(tokenizer, scheme, example, found)
        except AssertionError as error:
            raise AssertionError(f"{name}: {tokenizer.convert_ids_to_tokens(found.input_ids.tolist())}") from error


@each_family
def test_nothing_is_lost_or_added_when_it_fits(make, family, examples):
    tokenizer = make(family)
    table = Featurizer(tokenizer, TAXONOMY, SCHEME, False, 512, TYPES).table(examples)
    for number, example in enumerate(examples):
        text = markers.mark(example.sentence, example.subject, example.object, SCHEME).text
        assert table[number].input_ids.tolist() == tokenizer(text)["input_ids"]
        assert table[number].second == len(table[number].input_ids)


@each_family
def test_the_query_is_framed_as_the_tokenizer_frames_pairs(make, family, examples):
    tokenizer = make(family)
    table = Featurizer(tokenizer, TAXONOMY, SCHEME, True, 512, TYPES).table(examples[:10])
    for number, example in enumerate(examples[:10]):
        text = markers.mark(example.sentence, example.subject, example.object, SCHEME).text
        asked = markers.question(example.subject, example.object)
        found = table[number]
        assert found.input_ids.tolist() == tokenizer(text, asked)["input_ids"]
        tail = tokenizer(asked, add_special_tokens=False)["input_ids"]
        assert found.input_ids[found.second : found.second + len(tail)].tolist() == tail
        types = tokenizer(text, asked, return_token_type_ids=True)["token_type_ids"]
        if any(types):  # the family has segments: the second one starts where we say
            assert types.index(1) == found.second


# ---- law 5: every length -------------------------------------------------------------------------------------------


@each_family
@each_query
def test_markers_survive_every_length_that_can_hold_them(make, family, query):
    tokenizer = make(family)
    rows = [
        row("먼 옛날 남쪽 바다에서 이순신은 작은 배를 타고 조선의 바다를 지킨 장군이었다고 한다.", "이순신", "조선"),
        AWKWARD["at both ends"],
        AWKWARD["marker signs"],
        AWKWARD["adjacent"],
    ]
    for example in rows:
        whole = Featurizer(tokenizer, TAXONOMY, SCHEME, query, 512, TYPES).table([example])[0]
        entities = whole.positions[1] - whole.positions[0] + whole.positions[3] - whole.positions[2] + 2
        size = len(whole.input_ids)
        least = size - sentence_size(whole, Frame.of(tokenizer, query), query) + entities
        featurizer = Featurizer(tokenizer, TAXONOMY, SCHEME, query, 512, TYPES)
        for length in range(4, size + 2):
            featurizer.max_length = length
            if length < least:
                with pytest.raises(MtlReError, match=rf"take {entities} tokens.* leaves {length - least + entities}$"):
                    featurizer.table([example])
                continue
            found = featurizer.table([example])[0]
            assert len(found.input_ids) == min(length, size)
            check_positions(tokenizer, SCHEME, example, found)
            for at, was in zip(found.positions, whole.positions, strict=True):
                assert found.input_ids[at] == whole.input_ids[was]


def sentence_size(whole: features.Features, frame: Frame, query: bool) -> int:
    """Tokens of the sentence itself in an uncut row."""
    end = whole.second - len(frame.between) if query else len(whole.input_ids) - len(frame.after)
    return end - len(frame.before)


def test_a_cut_entity_keeps_all_of_its_word(make):
    tokenizer = make("wordpiece")
    example = row("가 " * 40 + "이순신 나라" + " 나" * 40 + " 조선 다" + " 라" * 40, "이순신", "조선")
    found = Featurizer(tokenizer, TAXONOMY, SCHEME, False, 40, TYPES).table([example])[0]
    subject = found.input_ids[found.positions[0] : found.positions[1] + 1]
    assert "".join(tokenizer.decode(subject).split()) == "@*사람*이순신@"


def test_a_row_that_cannot_fit_is_named_or_handed_over(make):
    name = " ".join(["이순신"] * 20)
    long = row(f"{name} 조선", name, "조선")
    fine = row("이순신은 조선의 장군", "이순신", "조선")
    featurizer = Featurizer(make("wordpiece"), TAXONOMY, SCHEME, False, 32, TYPES)
    with pytest.raises(MtlReError, match=r"row made: sentence: the two marked entities take \d+ tokens, data.max_len"):
        featurizer.table([fine, long])
    lost = []
    table = featurizer.table([long, fine, long], lambda number, example, error: lost.append((number, example, error)))
    assert len(table) == 1
    assert [(number, example is long) for number, example, _ in lost] == [(0, True), (2, True)]
    assert all(isinstance(error, RowError) and error.field == "sentence" for *_, error in lost)
    assert table[0].input_ids.tolist() == featurizer.table([fine])[0].input_ids.tolist()


# ---- faults --------------------------------------------------------------------------------------------------------


def tokenizer_without(piece: str):
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", *"@*#^"]
    core = Tokenizer(
        models.WordPiece({p: n for n, p in enumerate(p for p in vocabulary if p != piece)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


def test_an_unknown_marker_piece_is_named():
    features.check_known(tokenizer_without("none"), "entity_punct", TYPES)
    features.check_known(tokenizer_without("^"), "entity_punct", TYPES)
    with pytest.raises(
        MtlReError, match=r"entity_punct writes #, which this tokenizer does not know; use one of levitated, special"
    ):
        Featurizer(tokenizer_without("#"), TAXONOMY, "entity_punct", False, 32, TYPES)
    with pytest.raises(MtlReError, match=r"typed_punct writes .*\^"):
        features.check_known(tokenizer_without("^"), "typed_punct", TYPES)


@pytest.mark.parametrize("scheme", sorted(ADDS_TOKENS - {LEVITATED}))
def test_special_schemes_add_one_token_a_piece(scheme):
    tokenizer = tokenizer_without("#")
    before = len(tokenizer)
    pieces = markers.pieces(scheme, TYPES)
    assert features.add_marker_tokens(tokenizer, scheme, TYPES) == len(pieces)
    assert len(tokenizer) == before + len(pieces)
    assert [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces] == [
        [number] for number in range(before, before + len(pieces))
    ]
    assert features.add_marker_tokens(tokenizer, scheme, TYPES) == 0, "a second time adds nothing"


@pytest.mark.parametrize("scheme", sorted(set(MARKERS) - ADDS_TOKENS))
def test_punctuation_schemes_add_nothing(tokenizer, scheme):
    before = len(tokenizer)
    assert features.add_marker_tokens(tokenizer, scheme, TYPES) == 0
    assert len(tokenizer) == before


@each_scheme
def test_a_type_that_training_never_saw(make, scheme):
    featurizer = Featurizer(make("wordpiece", scheme), TAXONOMY, scheme, False, 64, ["PER", "LOC"])
    example = AWKWARD["particles"]
    if not scheme.startswith("typed"):
        assert len(featurizer.table([example])) == 1
        return
    with pytest.raises(MtlReError, match=r"row made: object_entity\.type: 'ORG' is unknown .*known: LOC, PER"):
        featurizer.table([example])


def test_a_type_without_a_korean_word(tokenizer):
    with pytest.raises(MtlReError, match="'EVT' has no Korean word"):
        Featurizer(tokenizer, TAXONOMY, "typed_punct_ko", False, 64, ["PER", "EVT"])


def test_a_slow_tokenizer_is_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(MtlReError, match="Slow gives no character offsets; a fast tokenizer is needed"):
        Featurizer(Slow(), TAXONOMY, SCHEME, False, 64, TYPES)


def test_a_lost_marker_is_a_row_error():
    with pytest.raises(RowError, match="lost its marker"):
        features._tokens([(0, 1), (4, 5)], (2, 5), "subject_entity")
    with pytest.raises(RowError, match="lost its marker"):
        features._tokens([(0, 1), (2, 3)], (2, 5), "subject_entity")


# ---- frames and tables ---------------------------------------------------------------------------------------------


@each_family
@each_query
def test_frame_is_what_the_tokenizer_adds(make, family, query):
    tokenizer = make(family)
    frame = Frame.of(tokenizer, query)
    assert frame.size == tokenizer.num_special_tokens_to_add(pair=query)
    specials = set(tokenizer.all_special_ids)
    assert set(frame.before + frame.between + frame.after) <= specials
    assert bool(frame.between) == query


@pytest.mark.parametrize("name", ["klue-hierarchical", "klue-flat"])
def test_targets_are_those_of_the_taxonomy(tokenizer, examples, name):
    taxonomy = TAXONOMIES[name]
    table = Featurizer(tokenizer, taxonomy, SCHEME, False, MAX_LENGTH, TYPES).table(examples)
    for example, targets in zip(examples, table.targets, strict=True):
        assert targets.tolist() == list(taxonomy.targets(example.label).values())


def test_rows_without_a_label(tokenizer):
    table = Featurizer(tokenizer, TAXONOMY, SCHEME, False, MAX_LENGTH, TYPES).table([AWKWARD["particles"]])
    assert (table.targets == IGNORE).all()


def test_table_gives_rows_back(tokenizer):
    rows = sample_examples("train", 20, seed=3)
    featurizer = Featurizer(tokenizer, TAXONOMY, SCHEME, True, MAX_LENGTH, TYPES)
    streamed = [found for _, found in featurizer.stream(iter(rows))]
    table = FeatureTable.from_rows(streamed, len(TAXONOMY.heads))
    assert len(table) == 20
    assert table.lengths.tolist() == [len(found.input_ids) for found in streamed]
    for number, found in enumerate(streamed):
        for one, other in zip(table[number], found, strict=True):
            np.testing.assert_array_equal(one, other)
    assert table.positions.shape == (20, len(POSITIONS))


def test_an_empty_table(tokenizer):
    table = Featurizer(tokenizer, TAXONOMY, SCHEME, False, MAX_LENGTH, TYPES).table([])
    assert len(table) == len(table.ids) == 0
    assert table.positions.shape == (0, 4)
    assert table.targets.shape == (0, 3)


def test_chunks_do_not_change_rows(tokenizer, examples, table, monkeypatch):
    monkeypatch.setattr(features, "READ_AHEAD", 7)
    again = Featurizer(tokenizer, TAXONOMY, SCHEME, False, MAX_LENGTH, TYPES).table(examples)
    np.testing.assert_array_equal(again.ids, table.ids)
    np.testing.assert_array_equal(again.positions, table.positions)
