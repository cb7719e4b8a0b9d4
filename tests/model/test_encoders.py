"""Encoders from a directory or from nothing: same text, same vocabulary; and what cannot be loaded is named."""

import json
import tracemalloc

import pytest
import torch
from conftest import MAX_LENGTH, SCHEME, TYPES, scratch_tokenizer, small_config, vocabulary_texts
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.features.featurizer import check_known
from mtl_re.features.markers import ADDS_TOKENS, MARKERS
from mtl_re.model import encoders
from mtl_re.model.encoders import load_encoder, scratch_encoder

each_scheme = pytest.mark.parametrize("scheme", MARKERS)


# ---- scratch:tiny --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_make_the_same_vocabulary(elsewhere):
    """The `tokenizers` trainer breaks ties by hash order: a run could be neither repeated nor resumed."""
    texts = vocabulary_texts()
    here = encoders.scratch_tokenizer(texts, SCHEME, TYPES, 1000)
    there, ids = json.loads((elsewhere / "tokenizer.json").read_text(encoding="utf-8"))
    assert sorted(here.get_vocab().items()) == [tuple(entry) for entry in there]
    assert here(texts)["input_ids"] == ids


def test_the_order_of_texts_does_not_matter():
    texts = ["가나다 라마", "라마 바사", "가나다 바사", "나다 라"]
    made = [encoders.scratch_tokenizer(order, "special", TYPES).get_vocab() for order in (texts, texts[::-1])]
    assert made[0] == made[1]


@each_scheme
def test_every_marker_is_known(examples, scheme):
    tokenizer = scratch_tokenizer(examples, scheme)
    check_known(tokenizer, scheme, TYPES)
    if scheme in ADDS_TOKENS:
        for piece in markers.pieces(scheme, TYPES):
            assert tokenizer.convert_ids_to_tokens(tokenizer(piece, add_special_tokens=False)["input_ids"]) == [piece]


def test_training_text_has_no_unknown_piece(examples, tokenizer):
    for example in examples:
        ids = tokenizer(example.sentence)["input_ids"]
        assert tokenizer.unk_token_id not in ids, example.sentence
        assert "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(example.sentence.split())


def test_ids_are_dense_and_special_tokens_stand_first(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
    assert [vocabulary[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == list(range(5))
    assert tokenizer.pad_token_id == 0


def test_the_vocabulary_has_its_size_and_frequent_pieces_come_first():
    texts = [f"나라{number % 7} 사람{number % 3}은 갔다" for number in range(200)]
    small, large = (encoders.scratch_tokenizer(texts, "entity_punct", TYPES, size) for size in (60, 6000))
    assert len(small) <= 60 < len(large)
    assert large.tokenize("사람") == ["사람"]


def test_case_and_composition_are_kept(examples):
    tokenizer = encoders.scratch_tokenizer(["NASA nasa 나사 é"] * 3, "entity_punct", TYPES)
    assert tokenizer.tokenize("NASA nasa 나사 é") == ["NASA", "nasa", "나사", "é"]


def test_a_very_long_word_is_no_burden():
    """A row may have 20,000 characters without a space; pieces of all its beginnings would take gigabytes."""
    texts = ["가나다라마바사" * 600, "가나 다라"]
    tracemalloc.start()
    encoders.scratch_tokenizer(texts, "entity_punct", TYPES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB for {sum(map(len, texts))} characters"


def test_the_tokenizer_survives_saving(tokenizer, examples, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    sentences = [example.sentence for example in examples]
    assert again(sentences)["input_ids"] == tokenizer(sentences)["input_ids"]
    assert again(sentences, sentences)["input_ids"] == tokenizer(sentences, sentences)["input_ids"]


def test_a_scratch_encoder_is_a_function_of_its_seed(tokenizer):
    first, again, other = (scratch_encoder("scratch:tiny", tokenizer, 64, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_scratch_encoder_reads_rows_of_the_longest_length(tokenizer):
    encoder = scratch_encoder("scratch:tiny", tokenizer, MAX_LENGTH, 0).eval()
    ids = torch.full((1, MAX_LENGTH), len(tokenizer) - 1)
    assert torch.isfinite(encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state).all()


def test_an_unknown_size_lists_the_known_ones(tokenizer):
    with pytest.raises(MtlReError, match=r"model\.encoder: 'scratch:huge'; expected scratch:tiny"):
        scratch_encoder("scratch:huge", tokenizer, 64, 0)


# ---- from a directory ----------------------------------------------------------------------------------------------


def directory(place, tokenizer, kind: str = "bert", **options):
    """An encoder's directory, as the hub would give it."""
    torch.manual_seed(5)
    encoder = AutoModel.from_config(small_config(kind, vocab_size=len(tokenizer), **options))
    encoder.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return encoder


def test_weights_and_tokenizer_are_loaded(tokenizer, tmp_path):
    original = directory(tmp_path, tokenizer)
    encoder, own = load_encoder(str(tmp_path), SCHEME, TYPES, 64, 0)
    assert own.get_vocab() == tokenizer.get_vocab()
    for name, tensor in original.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_half_precision_weights_become_fp32(tokenizer, tmp_path):
    directory(tmp_path, tokenizer).bfloat16().save_pretrained(tmp_path)
    encoder, _ = load_encoder(str(tmp_path), SCHEME, TYPES, 64, 0)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("scheme", sorted(ADDS_TOKENS))
def test_special_markers_get_rows_of_their_own(tokenizer, tmp_path, scheme):
    original = directory(tmp_path, tokenizer)
    before = original.get_input_embeddings().weight
    pieces = markers.pieces(scheme, TYPES)
    tables = []
    for seed in (1, 1, 2):
        encoder, own = load_encoder(str(tmp_path), scheme, TYPES, 64, seed)
        table = encoder.get_input_embeddings().weight
        assert len(own) == len(table) == len(before) + len(pieces)
        assert torch.equal(table[: len(before)], before)
        assert own.convert_tokens_to_ids(pieces) == list(range(len(before), len(table)))
        tables.append(table)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("spare", [0, 35, 64])
def test_markers_begin_as_told_where_the_table_is_longer_than_the_tokenizer(tokenizer, tmp_path, spare):
    """multilingual-e5-small's has 35 rows more, others are padded: new tokens fall on rows that stand for nothing."""
    torch.manual_seed(5)
    AutoModel.from_config(small_config("bert", vocab_size=len(tokenizer) + spare)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = AutoModel.from_pretrained(tmp_path).get_input_embeddings().weight[: len(tokenizer)]
    drawn, own = load_encoder(str(tmp_path), markers.LEVITATED, TYPES, 64, 1)
    started, _ = load_encoder(str(tmp_path), markers.LEVITATED, TYPES, 64, 1, marker_init="type_words")
    tables = [encoder.get_input_embeddings().weight for encoder in (drawn, started)]
    assert all(len(table) == len(own) and torch.equal(table[: len(before)], before) for table in tables)
    leftover = AutoModel.from_pretrained(tmp_path).get_input_embeddings().weight[len(tokenizer) :]
    assert not any(torch.equal(row, tables[0][len(before) + at]) for at, row in enumerate(leftover[:20]))
    start, end = markers.typed_punct_ko("subject", "PER")
    for token, text in zip(markers.typed_special("subject", "PER"), (start, f"사람 {end}"), strict=True):
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        assert torch.equal(tables[1][own.convert_tokens_to_ids(token)], before[ids].mean(0)), text


def test_ko_mini_loads(ko_mini):
    encoder, tokenizer = load_encoder(ko_mini, SCHEME, TYPES, 256, 0)
    assert encoder.config.vocab_size == len(tokenizer) == 16_000
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    check_known(tokenizer, SCHEME, TYPES)


@pytest.mark.parametrize(("kind", "room"), [("bert", 40), ("roberta", 38)])
def test_positions_that_do_not_suffice(tokenizer, tmp_path, kind, room):
    """RoBERTa's positions start behind its padding index: two fewer than its table has."""
    options = {"pad_token_id": 1} if kind == "roberta" else {}
    directory(tmp_path, tokenizer, kind, max_position_embeddings=40, **options)
    load_encoder(str(tmp_path), SCHEME, TYPES, room, 0)
    with pytest.raises(MtlReError, match=rf"data\.max_length: {room + 1} tokens, but .* has positions for {room}"):
        load_encoder(str(tmp_path), SCHEME, TYPES, room + 1, 0)


def test_a_directory_without_a_config(tmp_path):
    with pytest.raises(MtlReError, match=r"has no config\.json; give a model's directory or a hub id"):
        load_encoder(str(tmp_path), SCHEME, TYPES, 64, 0)


def test_a_damaged_directory(tokenizer, tmp_path):
    directory(tmp_path, tokenizer)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MtlReError, match="cannot be loaded") as refused:
        load_encoder(str(tmp_path), SCHEME, TYPES, 64, 0)
    assert "\n" not in str(refused.value)


def test_weights_of_another_model_are_an_error_and_not_a_random_encoder(tokenizer, tmp_path):
    directory(tmp_path, tokenizer)
    path = tmp_path / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(MtlReError, match="weights"):
        load_encoder(str(tmp_path), SCHEME, TYPES, 64, 0)


def test_a_directory_without_a_pooler_is_whole(tokenizer, tmp_path):
    """Masked-LM checkpoints carry a language-model head and no pooler: neither matters here."""
    directory(tmp_path, tokenizer)
    made = AutoModelForMaskedLM.from_config(small_config("bert", vocab_size=len(tokenizer)))
    made.save_pretrained(tmp_path)
    encoder, _ = load_encoder(str(tmp_path), SCHEME, TYPES, 64, 0)
    table = made.get_input_embeddings().weight
    assert torch.equal(encoder.get_input_embeddings().weight, table)
