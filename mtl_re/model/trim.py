"""`mtl-re trim`: an encoder whose vocabulary is cut to the pieces that texts of one language use.

Enters: an encoder (hub id or directory) and text. Leaves: an encoder directory that `model.encoder` takes, with rows of the
embedding (and of a masked-LM head) for the kept pieces only. For every text whose pieces were all kept, tokens and fp32
hidden states are those of the whole encoder, bit for bit. What was lost is stored beside it (`FULL_TOKENIZER`), so that
`mtl-re check --encoder DIR` can say which rows would have been tokenised otherwise.

Vocabulary trimming: Ushio, Zhou & Camacho-Collados 2023 (arXiv 2305.15020).
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from mtl_re import files
from mtl_re.errors import MtlReError, first_line
from mtl_re.features import markers
from mtl_re.model.vocabulary import always_kept, trimmed

FULL_TOKENIZER, REPORT = "full_tokenizer.json.gz", "trim.json"
BATCH = 1000
"""Texts tokenised at once."""
ADAM_BYTES = 16
"""Bytes of a parameter under AdamW in fp32: weight, gradient and two moments."""


@dataclass(frozen=True)
class TrimReport:
    """What trimming did; `trim.json`.

    Attributes:
        pieces, parameters: before and after.
        texts: read. changed: % of held-out texts whose tokens change (None: no held-out text was given).
        changed_expected: % of the texts read that hold a piece no other text of them holds: a leave-one-out estimate of
            `changed` for more text of the same kind.
        megabytes_weights, megabytes_adamw: saved in the weights as stored, and in an fp32 AdamW training's states.
    """

    source: str
    texts: int
    pieces: tuple[int, int]
    parameters: tuple[int, int]
    min_count: int
    changed_expected: float
    held_out: int
    changed: float | None
    megabytes_weights: float
    megabytes_adamw: float

    def __str__(self) -> str:
        before, after = self.pieces
        lines = [
            f"{before:,} → {after:,} pieces ({100 * after / before:.1f} %), counted over {self.texts:,} texts",
            f"{self.parameters[0] / 1e6:.1f} → {self.parameters[1] / 1e6:.1f} M parameters: {self.megabytes_weights:.0f} MB less "
            f"on the disk, {self.megabytes_adamw:.0f} MB less while AdamW trains it in fp32",
            f"tokens change in {self.changed_expected:.2f} % of such texts (estimated by leaving each text out)",
        ]
        if self.changed is not None:
            lines.append(f"tokens change in {self.changed:.2f} % of {self.held_out:,} held-out texts")
        return "\n".join(lines)


def count_pieces(tokenizer: Any, texts: Iterable[str]) -> tuple[Counter[int], Counter[int], int, list[list[int]]]:
    """Occurrences of each id, the number of texts that hold it, the number of texts, and each text's distinct ids."""
    occurrences: Counter[int] = Counter()
    holders: Counter[int] = Counter()
    distinct: list[list[int]] = []
    stream = iter(texts)
    while batch := list(islice(stream, BATCH)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            occurrences.update(ids)
            distinct.append(sorted(set(ids)))
            holders.update(distinct[-1])
    return occurrences, holders, len(distinct), distinct


def needed_by_markers(tokenizer: Any) -> set[int]:
    """Ids of what the marker schemes write: symbols and type words, alone and inside a sentence."""
    kept: set[int] = set()
    for scheme in markers.MARKERS:
        for piece in markers.pieces(scheme, list(markers.TYPE_WORDS)):
            for text in (piece, f" {piece}", f"가{piece}가"):
                kept.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    return kept


def changed_texts(before: Any, after: Any, texts: Iterable[str]) -> tuple[int, int]:
    """Texts that two tokenizers cut into different pieces, and texts in all."""
    changed = total = 0
    stream = iter(texts)
    while batch := list(islice(stream, BATCH)):
        for one, other in zip(*(tokenizer(batch).encodings for tokenizer in (before, after)), strict=True):
            changed += one.tokens != other.tokens
            total += 1
    return changed, total


def trim(
    encoder: str,
    folder: Path,
    texts: Iterable[str],
    min_count: int = 1,
    keep: Sequence[str] = (),
    held_out: Iterable[str] | None = None,
) -> TrimReport:
    """Write the trimmed encoder and its report into a directory.

    Args:
        encoder: hub id or directory.
        folder: a directory that does not exist, or is empty.
        texts: whose pieces are kept where they occur `min_count` times or more.
        keep: further texts, all of whose pieces are kept.
        held_out: texts on which the change of tokens is measured.

    Raises:
        MtlReError: the encoder cannot be loaded, its tokenizer is not of a kind that can be trimmed, or the directory
            cannot be written.
    """
    tokenizer, network = _loaded(encoder)
    occurrences, holders, count, distinct = count_pieces(tokenizer, texts)
    kept = {number for number, times in occurrences.items() if times >= min_count} | needed_by_markers(tokenizer)
    kept.update(number for text in keep for number in tokenizer(text, add_special_tokens=False)["input_ids"])
    source = json.loads(tokenizer.backend_tokenizer.to_str())
    fixed = always_kept(source, tokenizer.pad_token_id)
    made, order = trimmed(source, kept | fixed)
    alone = sum(any(holders[number] == 1 and number not in fixed for number in ids) for ids in distinct)

    before = sum(parameter.numel() for parameter in network.parameters())
    bytes_each = next(network.parameters()).element_size()
    smaller = with_rows(network, order)
    after = sum(parameter.numel() for parameter in smaller.parameters())
    build = folder.with_name(f".partial-{folder.name}")
    try:
        shutil.rmtree(build, ignore_errors=True)
        smaller.save_pretrained(build)
        trimmed_tokenizer = _tokenizer_like(tokenizer, made)
        trimmed_tokenizer.save_pretrained(build)
        with gzip.open(build / FULL_TOKENIZER, "wt", encoding="utf-8") as file:
            file.write(tokenizer.backend_tokenizer.to_str())
        files.seal_weights(build)
        changed, of = (None, 0) if held_out is None else changed_texts(tokenizer, trimmed_tokenizer, held_out)
        report = TrimReport(
            source=encoder,
            texts=count,
            pieces=(len(tokenizer), len(order)),
            parameters=(before, after),
            min_count=min_count,
            changed_expected=100 * alone / max(count, 1),
            held_out=of,
            changed=None if changed is None else 100 * changed / max(of, 1),
            megabytes_weights=(before - after) * bytes_each / 1e6,
            megabytes_adamw=(before - after) * ADAM_BYTES / 1e6,
        )
        files.write_json(build / REPORT, asdict(report))
        files.publish_folder(build, folder)
    except OSError as error:
        raise MtlReError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return report


def with_rows(network: Any, order: Sequence[int]) -> Any:
    """The network with the rows of its vocabulary in `order`: embedding, masked-LM decoder and its bias.

    Args:
        network: an encoder, with or without a masked-LM head.
        order: old id of each new row.

    Returns:
        A new network of the same class; ties between embedding and decoder hold as before.
    """
    rows = network.get_input_embeddings().num_embeddings
    index = torch.tensor(list(order))
    state = network.state_dict()
    vocabulary = {"weight": network.get_input_embeddings().weight.data_ptr()}
    chosen = {}
    for name, tensor in state.items():
        by_row = tensor.dim() > 0 and tensor.shape[0] == rows
        is_table = tensor.data_ptr() == vocabulary["weight"] or name.endswith(
            ("bias", "decoder.weight", "lm_head.weight")
        )
        chosen[name] = tensor[index].clone() if by_row and is_table else tensor
    config = AutoConfig.for_model(**network.config.to_dict())
    config.vocab_size = len(order)
    places = {old: new for new, old in enumerate(order)}
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        if getattr(config, key, None) in places:
            setattr(config, key, places[getattr(config, key)])
    smaller = type(network)(config).to(next(network.parameters()).dtype)
    smaller.load_state_dict(chosen)
    return smaller.eval()


def _loaded(name: str) -> tuple[Any, Any]:
    """Tokenizer and network as stored (their own dtype), with the masked-LM head where the files hold one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        masked = any("MaskedLM" in kind for kind in config.architectures or ())
        kind = AutoModelForMaskedLM if masked else AutoModel
        network = kind.from_pretrained(name, trust_remote_code=False, dtype="auto")
    except Exception as error:  # the hub, the file system and the parsers each raise their own kinds
        raise MtlReError(f"trim: {name} cannot be loaded ({first_line(error)})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise MtlReError(f"trim: {name} has no fast tokenizer (tokenizer.json), which trimming edits")
    return tokenizer, network.eval()


def _tokenizer_like(tokenizer: Any, source: dict[str, Any]) -> Any:
    """A fast tokenizer of this JSON with the special tokens and limits of another."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(source)),
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )
