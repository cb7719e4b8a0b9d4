"""`model.encoder` → an encoder and its tokenizer: from the hub, from a directory, or made from the training text.

`scratch:tiny` trains a WordPiece vocabulary on the marked training sentences and makes a small BERT with random
weights: nothing is downloaded. Weights are always loaded as fp32; mixed precision is the training loop's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from mtl_re.errors import MtlReError
from mtl_re.features import add_marker_tokens
from mtl_re.model import first_line

SCRATCH = "scratch:"
SCRATCH_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
}
_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_encoder(name: str, scheme: str, types: Sequence[str], max_length: int, seed: int) -> tuple[Any, Any]:
    """A pretrained encoder (fp32, on CPU) and its tokenizer, the marker tokens of a special scheme added to both.

    Raises:
        MtlReError: neither a directory nor a hub id that can be reached, or it cannot hold `max_length` tokens.
    """
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise MtlReError(f"model.encoder: {name} has no config.json; give an encoder's directory or a hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        encoder = AutoModel.from_pretrained(name, dtype=torch.float32)
    except Exception as error:  # the hub, the file system and the parsers each raise their own kinds
        raise MtlReError(f"model.encoder: {name} cannot be loaded ({first_line(error)})") from error
    _check_room(name, encoder, max_length)
    if add_marker_tokens(tokenizer, scheme, types) or len(tokenizer) > encoder.get_input_embeddings().num_embeddings:
        torch.manual_seed(seed)  # the new rows of the table are random
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return encoder, tokenizer


def _check_room(name: str, encoder: Any, max_length: int) -> None:
    room = getattr(encoder.config, "max_position_embeddings", None)
    if room is None or room <= 0:
        return
    if encoder.config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        room -= encoder.config.pad_token_id + 1  # their positions start behind the padding index
    if max_length > room:
        raise MtlReError(f"data.max_length: {max_length} tokens, but {name} has positions for {room}")


def scratch_tokenizer(texts: Sequence[str], scheme: str, types: Sequence[str], vocabulary: int = 6000) -> Any:
    """A cased WordPiece tokenizer trained on these texts.

    Args:
        texts: marked sentences, so that every marker piece is seen.
        scheme, types: their special tokens are added.
        vocabulary: pieces at most.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import models as pieces

    core = Tokenizer(pieces.WordPiece(unk_token=_SPECIALS["unk_token"]))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=list(_SPECIALS.values()), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **_SPECIALS)
    add_marker_tokens(tokenizer, scheme, types)
    return tokenizer


def scratch_encoder(name: str, tokenizer: Any, max_length: int, seed: int) -> Any:
    """A BERT of a named size with random weights, for a given tokenizer.

    Raises:
        MtlReError: there is no such size.
    """
    size = name.removeprefix(SCRATCH)
    if size not in SCRATCH_SIZES:
        raise MtlReError(f"model.encoder: {name!r}; expected {SCRATCH}{f' or {SCRATCH}'.join(SCRATCH_SIZES)}")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        **SCRATCH_SIZES[size],
    )
    return BertModel(config, add_pooling_layer=False)
