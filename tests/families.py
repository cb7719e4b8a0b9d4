"""Encoder families as the hub ships them: tokenizer classes with vocabularies made here, and random weights."""

import math
from collections import Counter
from collections.abc import Container, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import TYPES, sample_examples, small_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    BertTokenizer,
    DebertaV2Tokenizer,
    ElectraTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from mtl_re.features import markers
from mtl_re.features.markers import ADDS_TOKENS, MARKERS
from mtl_re.model import encoders

ROWS = sample_examples("train", 48)
LENGTH = 96


def texts() -> list[str]:
    """Sentences, and every marker that is no token of its own."""
    written = [" ".join(markers.pieces(scheme, TYPES)) for scheme in MARKERS if scheme not in ADDS_TOKENS]
    return [row.sentence for row in ROWS] + 3 * written


def word_piece(kind):
    words = Counter(word for text in texts() for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text))
    return kind(vocab=encoders.scratch_vocabulary(words, 800), do_lower_case=False)


def unigram(specials: list[str]) -> list[tuple[str, float]]:
    """Pieces and log shares for SentencePiece's unigram model, special tokens first. (The `tokenizers` trainer gives
    another vocabulary each time.) No piece joins a space and a sign, so that a lone `▁` is tested too."""
    words = [f"▁{word}" for text in texts() for word in text.split()]
    counts = Counter(
        word[start:stop]
        for word in words
        for start in range(len(word))
        for stop in range(start + 1, min(start + 5, len(word) + 1))
        if word[start:stop] == "▁" or not word[start : start + 2].startswith("▁") or word[start + 1].isalnum()
    )
    single = sorted(piece for piece in counts if len(piece) == 1)
    longer = sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-counts[piece], piece))
    total = sum(counts.values())
    return [(piece, 0.0) for piece in specials] + [
        (piece, math.log(counts[piece] / total)) for piece in [*single, *longer[:400]]
    ]


def xlm_roberta():
    return XLMRobertaTokenizer(vocab=[*unigram(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)])


def deberta_v2():
    return DebertaV2Tokenizer(vocab=unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]), unk_id=3)


def byte_level():
    """As ModernBERT ships it: no class of its own, BERT's special tokens around byte-level pieces."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=names, initial_alphabet=sorted(alphabet), show_progress=False
    )
    core.train_from_iterator(texts(), trainer)
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(roles, names, strict=True)))


FAMILIES = {
    "bert": ("bert", {}, lambda: word_piece(BertTokenizer)),
    "klue-roberta": ("roberta", {"max_position_embeddings": LENGTH + 2}, lambda: word_piece(BertTokenizer)),
    "xlm-roberta": ("xlm-roberta", {"max_position_embeddings": LENGTH + 2, "type_vocab_size": 1}, xlm_roberta),
    "e5": ("bert", {}, xlm_roberta),  # multilingual-e5: BERT's layers under XLM-R's vocabulary
    "electra": ("electra", {}, lambda: word_piece(ElectraTokenizer)),
    "deberta-v2": ("deberta-v2", {"type_vocab_size": 0}, deberta_v2),
    "kf-deberta": ("deberta-v2", {"type_vocab_size": 0}, lambda: word_piece(BertTokenizer)),
    "modernbert": ("modernbert", {"global_attn_every_n_layers": 2, "local_attention": 16}, byte_level),
}
"""Name → model type, its options, tokenizer."""
COMMON = ("bert", "xlm-roberta", "modernbert")
"""One family of each kind of tokenizer: WordPiece, unigram, bytes."""


def slow_but(names: Iterable[str], quick: Container[str]) -> list:
    """Parameters of a test or fixture, of which the `quick` ones belong to the fast set."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def make_family(name: str, folder, length: int = LENGTH) -> str:
    """An encoder's directory with its masked-LM head and random weights, as the hub would give it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file, content in _files(name, length).items():
        Path(folder, file).write_bytes(content)
    return str(folder)


@cache
def _files(name: str, length: int) -> dict[str, bytes]:
    kind, options, make = FAMILIES[name]
    tokenizer = make()
    if "max_position_embeddings" in options:  # RoBERTa's two extra places
        options = options | {"max_position_embeddings": length + 2}
    config = small_config(kind, **options, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(1)
    with TemporaryDirectory() as folder:
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
