"""`model.encoder` → an encoder and its tokenizer: from the hub, from a directory, or made from the training text.

`scratch:tiny` and its larger sizes train a WordPiece vocabulary on the text at hand and make a ModernBERT with random
weights: nothing is downloaded. `train` takes the bare encoder, `adapt` the same with its masked-LM head. Weights are
always loaded as fp32; mixed precision is the training loop's matter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
)

from mtl_re import files
from mtl_re.errors import MtlReError, first_line, tell
from mtl_re.features.featurizer import add_marker_tokens
from mtl_re.features.markers import LEVITATED, ROLES, TYPE_WORDS, typed_punct, typed_punct_ko, typed_special
from mtl_re.model.network import MtlReConfig, MtlReModel, load

SCRATCH = "scratch:"
SCRATCH_SIZES: dict[str, dict[str, Any]] = {
    size: {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "global_attn_every_n_layers": 1,
        "attention_dropout": 0.1,
        "mlp_dropout": 0.1,
        "embedding_dropout": 0.1,
    }
    for size, width, layers, heads, inner in (
        ("tiny", 128, 2, 4, 256),
        ("mini", 384, 4, 6, 768),
        ("small", 512, 8, 8, 1024),
        ("base", 768, 12, 12, 1152),
    )
}
"""`base` has ModernBERT-base's width and BERT-base's depth."""
_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_encoder(
    name: str,
    scheme: str,
    types: Sequence[str],
    max_length: int,
    seed: int,
    own: tuple[MtlReModel, Any] | None = None,
    marker_init: str = "random",
) -> tuple[Any, Any]:
    """A pretrained encoder (fp32, on CPU) and its tokenizer, the marker tokens of a special scheme added to both.

    Args:
        own: what `own_checkpoint` gave for the name, where the caller has it already.
        marker_init: `type_words` gives new tokens of `levitated` the vectors of words.

    Raises:
        MtlReError: neither a directory nor a hub id that can be reached, or it cannot hold `max_length` tokens.
    """
    if (own := own or own_checkpoint(name)) is not None:
        encoder, tokenizer, missing = own[0].encoder, own[1], list[str]()
    else:
        encoder, tokenizer, missing = load_pretrained(name, AutoModel)
    if missing := [key for key in missing if not key.startswith("pooler.")]:
        raise MtlReError(f"model.encoder: {name}'s weights do not fit its config (missing {', '.join(missing[:3])})")
    _check_room(name, encoder, max_length)
    known = len(tokenizer)
    if add_marker_tokens(tokenizer, scheme, types) or known > encoder.get_input_embeddings().num_embeddings:
        torch.manual_seed(seed)  # the new rows of the table are random
        _make_rows(encoder, known, len(tokenizer))
        if scheme == LEVITATED and marker_init == "type_words":
            _start_from_words(encoder, tokenizer, types, known)
    return encoder, tokenizer


def _make_rows(encoder: Any, known: int, wanted: int) -> None:
    """Give the embedding table `wanted` rows, random ones from row `known` on.

    Many a table is longer than its tokenizer (multilingual-e5-small's by 35 rows, others are padded to a multiple of
    64): new tokens fall on rows that stood for nothing, and these are drawn anew as well.
    """
    spare = range(known, min(wanted, encoder.get_input_embeddings().num_embeddings))
    encoder.resize_token_embeddings(wanted, mean_resizing=False)
    if spare:
        rows = encoder.get_input_embeddings().weight.data[spare.start : spare.stop]
        rows.normal_(0.0, getattr(encoder.config, "initializer_range", 0.02))


@torch.no_grad()
def _start_from_words(encoder: Any, tokenizer: Any, types: Sequence[str], known: int) -> None:
    """Give the marker tokens of `levitated` the mean vectors of what `typed_punct_ko` would write in their place: a
    start of its pieces before the entity, an end of the type's word and the piece behind it.

    Args:
        known: pieces that the tokenizer had before; their rows of the embedding table are left alone.
    """
    table = encoder.get_input_embeddings().weight
    for role, kind in product(ROLES, types):
        named = kind in TYPE_WORDS
        start, end = (typed_punct_ko if named else typed_punct)(role, kind)
        words = (start, f"{TYPE_WORDS[kind] if named else kind.lower()} {end}")
        for token, text in zip(typed_special(role, kind), words, strict=True):
            row = int(tokenizer.convert_tokens_to_ids(token))
            ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
            if row >= known and ids:
                table[row] = table[ids].mean(0)


def is_own(name: str) -> bool:
    """Return whether a name is a run or checkpoint of mtl-re, by its config alone."""
    folders = [Path(name) / "model", Path(name)]
    for config in (folder / "config.json" for folder in folders if (folder / "config.json").is_file()):
        try:
            return bool(json.loads(config.read_text(encoding="utf-8")).get("model_type") == MtlReConfig.model_type)
        except (OSError, ValueError, AttributeError):
            return False  # whoever loads it says what is wrong
    return False


def own_checkpoint(name: str) -> tuple[MtlReModel, Any] | None:
    """Return model and tokenizer if a name is a run or checkpoint of mtl-re; None for any other encoder.

    Raises:
        MtlReError: it is one, and cannot be loaded.
    """
    return load(name) if is_own(name) else None


def load_masked_lm(name: str, max_length: int, seed: int = 0) -> tuple[Any, Any]:
    """A pretrained encoder with its masked-LM head (fp32, on CPU) and its tokenizer.

    Where an encoder ships without such a head (e5, sentence-transformers) it gets a new one, tied to its embeddings;
    one line says so.

    Args:
        seed: of a new head.

    Raises:
        MtlReError: as `load_encoder`; or the head is there in part, or the tokenizer has no mask token.
    """
    if is_own(name):
        raise MtlReError(
            f"model.encoder: {name} is a trained relation model, which has no masked-LM head to go on with"
        )
    torch.manual_seed(seed)  # transformers draws the weights that the files do not hold
    network, tokenizer, missing = load_pretrained(name, AutoModelForMaskedLM)
    if missing:
        network = _with_new_head(name, network, missing, seed)
    _check_room(name, network, max_length)
    if tokenizer.mask_token_id is None:
        raise MtlReError(f"model.encoder: {name}'s tokenizer has no mask token")
    return network, tokenizer


def head_is_missing(network: Any, missing: Sequence[str]) -> bool:
    """Return whether the parameters that a masked LM's files do not hold are its head, the whole of it and no more.

    A decoder that is tied to the embeddings is not of the head.
    """
    encoder = {id(parameter) for parameter in network.base_model.parameters()}
    named = network.named_parameters(remove_duplicate=False)
    return set(missing) == {key for key, parameter in named if id(parameter) not in encoder}


def _with_new_head(name: str, network: Any, missing: Sequence[str], seed: int) -> Any:
    """Return a network whose new head is tied to the embeddings, or raise if more, or less, than a head is missing."""
    if not head_is_missing(network, missing):
        raise MtlReError(
            f"model.encoder: {name}'s weights do not fit its config (missing {', '.join(missing[:3])}); "
            "a masked-LM head is made anew only where the whole of it is missing and nothing else"
        )
    if not network.config.tie_word_embeddings:
        torch.manual_seed(seed)
        network = load_pretrained(name, AutoModelForMaskedLM, tie_word_embeddings=True)[0]
    tell(f"{name} has no masked-LM head: it gets a new one, tied to its embeddings (optim.head_lr is its rate)")
    return network


def load_pretrained(name: str, kind: Any, option: str = "model.encoder", **options: Any) -> tuple[Any, Any, list[str]]:
    """Return a model of an auto class (fp32, on CPU), its tokenizer, and the parameters that the files do not hold.

    Args:
        option: what messages call the name.
        options: handed to `from_pretrained` of the model.

    Raises:
        MtlReError: neither a directory nor a hub id that can be reached, or its files are at fault.
    """
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise MtlReError(f"{option}: {name} has no config.json; give a model's directory or a hub id")
    files.check_weights(Path(name))  # of one that `adapt` wrote
    options = {"trust_remote_code": False, "dtype": torch.float32, "output_loading_info": True} | options
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # or transformers offers to run it
        model, info = kind.from_pretrained(name, **options)
    except Exception as error:  # the hub, the file system and the parsers each raise their own kinds
        raise MtlReError(f"{option}: {name} cannot be loaded ({first_line(error)})") from error
    return model, tokenizer, sorted(info["missing_keys"])


def position_room(config: Any) -> int | None:
    """Return how many tokens an encoder has positions for; None where its config sets no limit."""
    room: int | None = getattr(config, "max_position_embeddings", None)
    if room is None or room <= 0:
        return None
    if config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        room -= config.pad_token_id + 1  # their positions start behind the padding index
    return room


def _check_room(name: str, encoder: Any, max_length: int) -> None:
    room = position_room(encoder.config)
    if room is not None and max_length > room:
        what = f"{max_length} tokens, but {name} has positions for {room}"
        raise MtlReError(f"data.max_length: {what}; --data.max_length {room} fits")


def scratch_tokenizer(texts: Sequence[str], scheme: str, types: Sequence[str], vocabulary: int = 6000) -> Any:
    """A cased WordPiece tokenizer trained on these texts.

    Args:
        texts: marked sentences, so that every marker piece is seen.
        scheme, types: their special tokens are added.
        vocabulary: pieces at most.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers import models as pieces

    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    core = Tokenizer(pieces.WordPiece(scratch_vocabulary(words, vocabulary), unk_token=_SPECIALS["unk_token"]))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer = splitter
    core.decoder = decoders.WordPiece()
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **_SPECIALS)
    add_marker_tokens(tokenizer, scheme, types)
    return tokenizer


def scratch_vocabulary(words: Mapping[str, int], size: int) -> dict[str, int]:
    """WordPiece pieces for a word count: all characters in both positions, then the most frequent word beginnings and
    endings, ties by spelling.

    Greedy matching needs no merge order, and Korean words are a stem and particles, so beginnings and endings are the
    pieces worth having. (The `tokenizers` trainer breaks ties by hash order: two runs give two vocabularies.)
    """
    characters = sorted({character for word in words for character in word})
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        if len(word) > 100:  # WordPiece makes such words [UNK], and their parts grow with the square of the length
            continue
        for cut in range(2, len(word) + 1):
            pieces[word[:cut]] += count
        for cut in range(1, len(word) - 1):
            pieces[f"##{word[cut:]}"] += count
    frequent = sorted(
        (piece for piece, count in pieces.items() if count > 1), key=lambda piece: (-pieces[piece], piece)
    )
    alphabet = [*characters, *(f"##{character}" for character in characters)]
    ordered = [*_SPECIALS.values(), *alphabet, *frequent]
    return {piece: index for index, piece in enumerate(ordered[: max(size, len(_SPECIALS) + len(alphabet))])}


def scratch_encoder(name: str, tokenizer: Any, max_length: int, seed: int, kind: Any = ModernBertModel) -> Any:
    """Return a ModernBERT of a named size with random weights, for a given tokenizer.

    Args:
        kind: Its class; `ModernBertForMaskedLM` has a masked-LM head.

    Raises:
        MtlReError: there is no such size.
    """
    size = name.removeprefix(SCRATCH)
    if size not in SCRATCH_SIZES:
        raise MtlReError(f"model.encoder: {name!r}; expected {SCRATCH}{f' or {SCRATCH}'.join(SCRATCH_SIZES)}")
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        **SCRATCH_SIZES[size],
    )
    torch.manual_seed(seed)
    return kind(config)
