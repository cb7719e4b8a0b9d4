"""`mtl-re trim`: an encoder → the same encoder with only the pieces that a language's text needs.

Enters: an encoder, text, options. Leaves: a directory that `model.encoder` takes: config, weights (the masked-LM head
with them), tokenizer, the report as trim.json and trim.md, and the tokenizer of before for `mtl-re check`. The
directory is read back before it appears: held-out texts whose pieces were all kept must have the same pieces, and up to
eight texts, held-out ones first, the same hidden states, bit for bit; otherwise nothing is written. Anchors:
vocabtrimmer (Ushio et al. 2023, arXiv 2305.15020), TextPruner (Yang et al. 2022, arXiv 2203.15996).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mtl_re import files
from mtl_re.config import TrimConfig
from mtl_re.data.lost_pieces import BEFORE, LostPieces
from mtl_re.errors import MtlReError, first_line, tell
from mtl_re.markdown import write_markdown
from mtl_re.model.encoders import position_room
from mtl_re.model.network import save
from mtl_re.outputs import check_new_folder
from mtl_re.trim.choice import chosen_ids
from mtl_re.trim.network import config_ids, cut_network, fixed_rows, load_source, narrowest
from mtl_re.trim.report import Sizes, describe, markdown
from mtl_re.trim.text import coded, read_all, wanted_ids
from mtl_re.trim.vocabulary import Vocabulary

REPORT = "trim.json"
_CHUNK = 1024  # texts tokenised at once
_STATES, _STATE_LENGTH = 8, 128  # texts whose hidden states are compared, and tokens of each at most
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces")


def trim(encoder: str, folder: str, options: TrimConfig) -> dict[str, Any]:
    """Write an encoder with a smaller vocabulary.

    Args:
        encoder: A directory or a hub id. folder: Where to write.

    Returns:
        The content of its trim.json, and `directory`.

    Raises:
        MtlReError: The encoder, the text or the directory cannot be used, or the cut encoder fails its check.
    """
    final = Path(folder)
    check_new_folder(final, options.overwrite, REPORT, "a result of mtl-re trim", encoder, "encoder that is trimmed")
    network, tokenizer = load_source(encoder)
    source = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = Vocabulary(source)
    read = read_all(tokenizer, options)
    reasons = chosen_ids(
        vocabulary, tokenizer, read.use, options.min_count, wanted_ids(vocabulary, tokenizer, options, read.bad)
    )
    reasons["config"] = config_ids(network) & set(vocabulary.ids.values())
    reasons["positions"] = set(range(fixed_rows(network)))
    kept = _numbered(vocabulary, reasons, network.get_input_embeddings().num_embeddings)
    cut = cut_tokenizer(tokenizer, vocabulary, kept)
    lost = compared(tokenizer, cut, kept, vocabulary.unknown, read.held_out)
    sizes = Sizes.of(network)
    samples = kept_texts(tokenizer, kept, [*read.held_out, *read.first])
    states = hidden_states(network, tokenizer, samples)
    cut_network(network, kept)
    report = describe(encoder, options, vocabulary, kept, reasons, read, lost, (sizes, Sizes.of(network)))
    _write(final, network, cut, (samples, states), source, report)
    if found := report["may_spell_unknown_words"]:
        tell(f"note: {len(found)} kept pieces, {found[0]!r} first, may spell words that were unknown (see trim.md)")
    return report | {"directory": folder}


# ---- the cut -----------------------------------------------------------------------------------------------------


def _numbered(vocabulary: Vocabulary, reasons: Mapping[str, set[int]], rows: int) -> dict[int, int]:
    """Return the ids to keep, closed under the model's law, with their new ids: the same order without gaps.

    Raises:
        MtlReError: A kept piece has no row in the embeddings, or a row that must stay in place no piece.
    """
    known = set(vocabulary.ids.values())
    if reasons["positions"] - known:
        raise MtlReError(
            "trim: positions count from the padding id, and not every id below it is a piece; it stays put"
        )
    kept = sorted(vocabulary.closed(set().union(*reasons.values())))
    if kept[-1] >= rows:
        raise MtlReError(f"trim: the tokenizer has a piece {kept[-1]}, and the embeddings only {rows:,} rows")
    return {index: place for place, index in enumerate(kept)}


def cut_tokenizer(tokenizer: Any, vocabulary: Vocabulary, kept: Mapping[int, int]) -> Any:
    """Return a tokenizer with these pieces only, which runs the same steps.

    It is of no model's own class: those rebuild their steps when they are loaded, some with fixed ids.

    Raises:
        MtlReError: The library gives a piece another id than its row.
    """
    core = Tokenizer.from_str(json.dumps(vocabulary.cut(kept)))
    settings = {name: getattr(tokenizer, name) for name in _SETTINGS if hasattr(tokenizer, name)}
    extra = {"extra_special_tokens": tokenizer.extra_special_tokens} if tokenizer.extra_special_tokens else {}
    made = PreTrainedTokenizerFast(tokenizer_object=core, **tokenizer.special_tokens_map, **extra, **settings)
    given = made.get_vocab()
    wrong = [piece for piece, index in vocabulary.ids.items() if index in kept and given.get(piece) != kept[index]]
    if wrong or len(made) != len(kept):
        raise MtlReError(f"trim: this tokenizer's ids cannot be renumbered ({', '.join(wrong[:3]) or 'added tokens'})")
    return made


def kept_texts(tokenizer: Any, kept: Mapping[int, int], texts: Sequence[str]) -> list[str]:
    """Return the first texts whose pieces were all kept, as many as hidden states are compared of."""
    whole = (text for text in texts if all(index in kept for index in coded(tokenizer, [text])[0]))
    return list(islice(whole, _STATES))


def compared(
    tokenizer: Any, cut: Any, kept: Mapping[int, int], unknown: str | None, texts: Sequence[str]
) -> LostPieces:
    """Return what held-out texts lose.

    Raises:
        MtlReError: A text whose pieces were all kept has other pieces now.
    """
    found = LostPieces()
    for begin in range(0, len(texts), _CHUNK):
        chunk = texts[begin : begin + _CHUNK]
        for text, before, after in zip(chunk, coded(tokenizer, chunk), coded(cut, chunk), strict=True):
            if all(index in kept for index in before) and [kept[index] for index in before] != after:
                raise MtlReError(f"trim: this tokenizer cannot be cut: {text[:80]!r} would have other pieces")
            names = (tokenizer.convert_ids_to_tokens(before), cut.convert_ids_to_tokens(after))
            found.add(text, *names, unknown)
    return found


@torch.no_grad()
def hidden_states(network: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return the last hidden states of padded texts, (texts, tokens, dim) in fp32."""
    if not texts:
        return torch.zeros(0)
    room = min(_STATE_LENGTH, position_room(network.config) or _STATE_LENGTH)
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=room, return_tensors="pt")
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states: Tensor = network.base_model.eval()(**given).last_hidden_state
    return states


# ---- the directory -----------------------------------------------------------------------------------------------


def _write(
    final: Path,
    network: Any,
    tokenizer: Any,
    expected: tuple[Sequence[str], Tensor],
    source: Mapping[str, Any],
    report: dict[str, Any],
) -> None:
    """Write everything, read the encoder back, and compare it with the one of before.

    Raises:
        MtlReError: It cannot be written, or its hidden states are others.
    """
    network.to(narrowest(network))
    try:
        with files.whole_folder(final.absolute()) as build:
            save(network, tokenizer, build)
            (build / BEFORE).write_bytes(gzip.compress(json.dumps(source, ensure_ascii=False).encode(), mtime=0))
            report["compared_hidden_states"] = len(expected[0])
            _check_states(build, *expected)
            files.write_json(build / REPORT, report)
            write_markdown(build / "trim.md", markdown(report))
    except MtlReError:
        raise
    except Exception as error:  # safetensors and tokenizers each raise their own kinds for a full disk
        raise MtlReError(f"{final}: cannot be written ({first_line(error)})") from error


def _check_states(build: Path, texts: Sequence[str], expected: Tensor) -> None:
    network, tokenizer = load_source(str(build))
    if not torch.equal(hidden_states(network, tokenizer, texts), expected):
        raise MtlReError(
            "trim: the cut encoder's hidden states differ from those of the whole one; nothing was written"
        )
