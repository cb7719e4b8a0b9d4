"""The law of `trim`: a text whose pieces were all kept has the same pieces and the same hidden states, bit for bit."""

import json
import random
import string

import pytest
import torch
from conftest import small_config
from families import COMMON, FAMILIES, LENGTH, ROWS, make_family, slow_but, texts, unigram
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from mtl_re.config import TrimConfig
from mtl_re.errors import MtlReError
from mtl_re.model import encoders
from mtl_re.trim import network as networks
from mtl_re.trim.trim import cut_tokenizer, hidden_states, trim
from mtl_re.trim.vocabulary import BYTES, Vocabulary, gaps, merged, merges_of

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROLES = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIALS, strict=True))


def fast(core: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of no class of its own, with XLM-R's special tokens around a text."""
    ends = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, cls_token="<s>", sep_token="</s>", **ROLES)


def sentence_piece_bpe():
    """As Llama and Gemma ship it: `▁` for spaces, merges, and bytes for what is no piece."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # while it is trained: no piece holds two words
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[*SPECIALS, *sorted(BYTES)], show_progress=False, limit_alphabet=300
    )
    core.train_from_iterator(texts(), trainer)
    data = json.loads(core.to_str()) | {"pre_tokenizer": None, "added_tokens": []}
    core = Tokenizer.from_str(json.dumps(data))
    core.add_special_tokens(SPECIALS)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast(core)


def unigram_with_bytes():
    """Unigram with byte fallback, an added word, and special tokens in the middle of the vocabulary."""
    pieces = [*unigram([])[:200], *((name, 0.0) for name in SPECIALS), *unigram([])[200:]]
    pieces += [(name, -30.0) for name in sorted(BYTES)]
    core = Tokenizer(models.Unigram(pieces, unk_id=203, byte_fallback=True))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made = fast(core)
    made.add_tokens(["세종대왕"])
    return made


MORE = {
    "sentencepiece-bpe": ("bert", {}, sentence_piece_bpe),
    "unigram-bytes": ("bert", {}, unigram_with_bytes),
}


def encoder_of(name: str, folder) -> str:
    """A family's directory, with random weights and its masked-LM head."""
    if name in FAMILIES:
        return make_family(name, folder)
    kind, options, make = MORE[name]
    tokenizer = make()
    torch.manual_seed(1)
    config = small_config(kind, **options, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Pair:
    """An encoder, and the same trimmed to half of the text."""

    def __init__(self, name: str, folder) -> None:
        self.source, self.trimmed = encoder_of(name, folder / "source"), str(folder / "trimmed")
        text = folder / "text.txt"
        text.write_text("\n".join(row.sentence for row in ROWS[: len(ROWS) // 2]), encoding="utf-8")
        self.report = trim(self.source, self.trimmed, TrimConfig(text=[str(text)], held_out=0.0, min_count=2))
        self.full, self.cut = (AutoTokenizer.from_pretrained(folder) for folder in (self.source, self.trimmed))
        kept = self.cut.get_vocab()
        self.kept = {index: kept[piece] for piece, index in self.full.get_vocab().items() if piece in kept}
        self.networks = [networks.load_source(folder)[0] for folder in (self.source, self.trimmed)]

    def pieces(self, text: str) -> tuple[list[int] | None, list[int]]:
        """The ids that the trimmed tokenizer should give (None: a piece was cut), and those it gives."""
        full, cut = (tokenizer(text)["input_ids"] for tokenizer in (self.full, self.cut))
        return [self.kept[index] for index in full] if set(full) <= self.kept.keys() else None, cut


@pytest.fixture(params=slow_but([*FAMILIES, *MORE], [*COMMON, "sentencepiece-bpe"]), scope="module")
def pair(request, tmp_path_factory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


WORDS = sorted({word for row in ROWS for word in row.sentence.split()})
EXTRA = ["", " ", "  ", ".", "ሀ", "漢", "é", "7", "<mask>", " <s>", "‍", "🙂", "\t", "@ * 사람 *", "세종대왕"]
PARTS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(EXTRA),
    st.text(string.ascii_letters, max_size=4),
    st.text(sorted({character for word in WORDS for character in word}), max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, max_size=12), st.sampled_from(["", " "]))
def test_texts_of_kept_pieces_have_the_same_pieces(pair, parts, between):
    expected, found = pair.pieces(between.join(parts))
    assert expected is None or found == expected


def test_the_law_speaks_of_something(pair):
    """Of real sentences some keep their pieces and others do not; of what was counted twice, all do."""
    outcomes = [pair.pieces(row.sentence) for row in ROWS]
    same = [expected == found for expected, found in outcomes if expected is not None]
    assert all(same)
    assert 5 < len(same) < len(ROWS)
    assert pair.report["pieces"]["after"] < pair.report["pieces"]["before"]


def test_hidden_states_and_logits_are_the_same_bits(pair):
    chosen = [row.sentence for row in ROWS if pair.pieces(row.sentence)[0] is not None][:6]
    states = [
        hidden_states(network, tokenizer, chosen)
        for network, tokenizer in zip(pair.networks, (pair.full, pair.cut), strict=True)
    ]
    assert len(chosen) > 3
    assert torch.equal(*states)
    coded = [tokenizer(chosen, padding=True, return_tensors="pt") for tokenizer in (pair.full, pair.cut)]
    with torch.no_grad():
        full, cut = (
            network(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
            for network, ids in zip(pair.networks, coded, strict=True)
        )
    rows = sorted(pair.kept, key=pair.kept.__getitem__)
    torch.testing.assert_close(full[..., rows], cut, rtol=1e-5, atol=1e-6)  # a smaller product sums in another order


def test_head_ties_and_config_survive(pair):
    full, cut = pair.networks
    rows = len(pair.cut)
    assert cut.config.vocab_size == cut.get_input_embeddings().num_embeddings == rows
    tied = [network.get_output_embeddings().weight is network.get_input_embeddings().weight for network in (full, cut)]
    assert tied == [True, True]
    assert cut.get_output_embeddings().bias.shape == (rows,)
    assert cut.config.pad_token_id == pair.cut.pad_token_id
    names = [{name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} for network in (full, cut)]
    assert names[0].keys() == names[1].keys()
    before = len(pair.full)
    assert {shape[1:] for shape in names[0].values()} == {shape[1:] for shape in names[1].values()}
    assert all(names[1][name] == (rows, *shape[1:]) for name, shape in names[0].items() if shape[0] == before)


def test_special_tokens_are_what_they_were(pair):
    for role in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        assert getattr(pair.cut, role) == getattr(pair.full, role)
        assert getattr(pair.cut, f"{role}_id") == pair.kept[getattr(pair.full, f"{role}_id")]
    assert pair.cut.added_tokens_encoder.keys() == pair.full.added_tokens_encoder.keys()
    frame = [pair.kept[index] for index in pair.full("가", "나")["input_ids"] if index in pair.kept]
    assert frame == pair.cut("가", "나")["input_ids"]


# ---- what the law needs, one piece at a time ------------------------------------------------------------------------


def cut_to(tokenizer, pieces):
    """A tokenizer cut to these pieces and what they need."""
    vocabulary = Vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
    kept = sorted(vocabulary.closed(vocabulary.ids[piece] for piece in pieces))
    return cut_tokenizer(tokenizer, vocabulary, {index: place for place, index in enumerate(kept)})


def plain(model):
    """A tokenizer of a model alone."""
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_bpe_keeps_every_way_to_a_piece():
    """`abc` is made of a+bc where bc comes first, and of ab+c in a word where another merge took the b."""
    pieces = ["<unk>", *"abcd", "bc", "ab", "abc", "cd", "abcd"]
    merges = [("b", "c"), ("a", "bc"), ("a", "b"), ("c", "d"), ("ab", "c"), ("ab", "cd")]
    full = plain(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    cut = cut_to(full, ["abc"])
    assert sorted(cut.get_vocab()) == ["<unk>", "a", "ab", "abc", "b", "bc", "c"]
    assert cut.tokenize("abc ab c bc") == full.tokenize("abc ab c bc")
    vocabulary = Vocabulary(json.loads(full.backend_tokenizer.to_str()))
    assert [merged(vocabulary, *pair) for pair in merges_of(vocabulary)] == ["bc", "abc", "ab", "cd", "abc", "abcd"]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_random_merges_keep_the_law(chance: random.Random):
    """Random merge tables, far from those of a trainer: pieces with several ways to them, merges in any order."""
    pieces, merges = list("abcd"), []
    for _ in range(chance.randrange(5, 40)):
        left, right = chance.choice(pieces), chance.choice(pieces)
        if len(left + right) <= 6 and (left, right) not in merges:
            merges.append((left, right))
            pieces = list(dict.fromkeys([*pieces, left + right]))
    chance.shuffle(merges)
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", *pieces])}
    full = plain(models.BPE(vocabulary, merges, unk_token="<unk>"))
    cut = cut_to(full, chance.sample(pieces, max(1, len(pieces) // 3)))
    kept = cut.get_vocab()
    for _ in range(60):
        text = "".join(chance.choices("abcd", k=chance.randrange(1, 12)))
        found = full.tokenize(text)
        if all(piece in kept for piece in found):
            assert cut.tokenize(text) == found


def test_unigram_keeps_the_lowest_score():
    """The score of an unknown character is the lowest one - 10: without it another segmentation would win."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -25.0), ("ab", -20.0), ("rare", -40.0)]
    full = plain(models.Unigram(pieces, unk_id=0))
    assert "rare" in cut_to(full, ["a", "ab"]).get_vocab()
    assert cut_to(full, ["a", "ab"]).tokenize("ab aba ax") == full.tokenize("ab aba ax")


def test_a_word_that_was_unknown_stays_so_but_for_pieces_that_are_named():
    pieces = ["<unk>", "a", "ab", "##bc", "##b", "c"]
    model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>")
    full = plain(model)
    assert full.tokenize("abc") == ["<unk>"]
    vocabulary = Vocabulary(json.loads(full.backend_tokenizer.to_str()))
    assert gaps(vocabulary, range(len(pieces))) == ["##bc"]  # `##c` is no piece
    assert gaps(vocabulary, [0, 1, 2, 4, 5]) == []
    assert cut_to(full, ["a", "##bc"]).tokenize("abc") == ["a", "##bc"]  # what the note speaks of


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_random_word_pieces_keep_the_law(chance: random.Random):
    """Unknown words included, as long as no kept piece is one of `gaps`."""
    strings = {"".join(chance.choices("abcd", k=chance.randrange(1, 4))) for _ in range(20)}
    pieces = ["<unk>", *sorted({chance.choice(["", "##"]) + text for text in strings})]
    full = plain(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    vocabulary = Vocabulary(json.loads(full.backend_tokenizer.to_str()))
    bending = gaps(vocabulary, range(len(pieces)))
    chosen = [piece for piece in chance.sample(pieces, len(pieces) // 2) if piece not in bending]
    cut = cut_to(full, [*chosen, "<unk>"])
    kept = cut.get_vocab()
    for _ in range(60):
        text = "".join(chance.choices("abcd", k=chance.randrange(1, 9)))
        found = full.tokenize(text)
        if all(piece in kept for piece in found):
            assert cut.tokenize(text) == found


def test_a_model_of_another_kind_is_refused():
    core = plain(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(MtlReError, match="model is WordLevel; only Unigram, WordPiece, BPE can be cut"):
        Vocabulary(json.loads(core.backend_tokenizer.to_str()))


# ---- weights -----------------------------------------------------------------------------------------------------


def test_an_untied_decoder_is_cut_too_and_stays_untied(tmp_path):
    _, _, make = FAMILIES["bert"]
    tokenizer = make()
    torch.manual_seed(3)
    config = small_config("bert", vocab_size=len(tokenizer), tie_word_embeddings=False)
    made = AutoModelForMaskedLM.from_config(config)
    torch.nn.init.normal_(made.get_output_embeddings().bias)
    kept = {index: place for place, index in enumerate(range(0, len(tokenizer), 2))}
    decoder, bias = made.get_output_embeddings().weight.clone(), made.get_output_embeddings().bias.clone()
    networks.cut_network(made, kept)
    made.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again.get_output_embeddings().weight, decoder[::2])
    assert torch.equal(again.get_output_embeddings().bias, bias[::2])
    assert not torch.equal(again.get_input_embeddings().weight, decoder[::2])


def test_the_padding_id_of_roberta_stays_where_positions_count_from(tmp_path):
    """Padding stands third here, and a piece that no text uses before it."""
    core = Tokenizer(models.WordPiece({"<s>": 0, "never": 1, "<pad>": 2, "</s>": 3, "<unk>": 4, "가": 5, "x": 6}))
    core.model.unk_token = "<unk>"
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    config = small_config("roberta", vocab_size=7, pad_token_id=2, max_position_embeddings=LENGTH)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    (tmp_path / "text.txt").write_text("가\n", encoding="utf-8")
    options = TrimConfig(text=[str(tmp_path / "text.txt")], held_out=0.0)
    report = trim(str(tmp_path / "source"), str(tmp_path / "out"), options)
    encoder, cut = encoders.load_encoder(str(tmp_path / "out"), "special", ["PER"], 8, 0)
    assert (encoder.config.pad_token_id, cut.pad_token_id) == (2, 2)
    assert report["kept"]["positions"] == 3
    assert "never" in cut.get_vocab()
    assert "x" not in cut.get_vocab()
