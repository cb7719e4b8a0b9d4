"""A tokenizer with fewer pieces: the same segmentation wherever every piece of it was kept.

Enters: the JSON of a fast tokenizer (the format of Hugging Face `tokenizers`) and the ids to keep. Leaves: the JSON with
those pieces only, their order unchanged. Per model:

* Unigram (Kudo 2018; XLM-R, e5, DeBERTa-v3): Viterbi over a subset that holds the best segmentation finds it again. The
  score of an unknown piece is taken from the lowest score of the vocabulary, so a piece with that score is kept.
* WordPiece (BERT, ELECTRA): greedy longest match; a longest piece that was kept is still the longest.
* BPE (byte-level and SentencePiece): a kept piece is built by the merges of its own characters, so these merges and the
  pieces between them are kept (`closed_over_merges`). The other merges go; none of them took part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from mtl_re.errors import MtlReError

Json = dict[str, Any]
KINDS = ("Unigram", "WordPiece", "BPE")


def kind_of(tokenizer: Json) -> str:
    """`Unigram`, `WordPiece` or `BPE`.

    Raises:
        MtlReError: the tokenizer's model is of another kind (WordLevel, say).
    """
    kind = tokenizer["model"].get("type") or ("BPE" if "merges" in tokenizer["model"] else "WordPiece")
    if kind not in KINDS:
        raise MtlReError(f"trim: the tokenizer's model is {kind}; expected one of {', '.join(KINDS)}")
    return str(kind)


def pieces_of(tokenizer: Json) -> dict[str, int]:
    """Piece → id, without the added tokens that are no pieces of the model."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def always_kept(tokenizer: Json, pad_id: int | None) -> set[int]:
    """Ids that no trimming may remove: special and added tokens, single characters and bytes, what keeps the score of
    an unknown piece, and all up to the padding token (RoBERTa-like position ids start behind its id).
    """
    kept = {token["id"] for token in tokenizer["added_tokens"]}
    kept |= set(range(0 if pad_id is None else pad_id + 1))
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    for piece, number in pieces_of(tokenizer).items():
        bare = piece.removeprefix(prefix) if prefix and piece != prefix else piece
        if len(bare) == 1 or (piece.startswith("<0x") and piece.endswith(">")):
            kept.add(number)
    if isinstance(model["vocab"], list):
        kept.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
        if model.get("unk_id") is not None:
            kept.add(model["unk_id"])
    elif (unknown := model.get("unk_token")) in model["vocab"]:
        kept.add(model["vocab"][unknown])
    return kept


def closed_over_merges(tokenizer: Json, kept: Collection[int]) -> set[int]:
    """The kept ids of a BPE tokenizer with every piece that the merges of a kept piece pass through."""
    model = tokenizer["model"]
    ranks = {pair: rank for rank, pair in enumerate(map(_pair, model["merges"]))}
    vocabulary, closed = model["vocab"], set(kept)
    names = {number: piece for piece, number in vocabulary.items()}
    for number in kept:
        if number in names:
            closed |= {vocabulary[part] for part in derivation(names[number], ranks) if part in vocabulary}
    return closed


def derivation(piece: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Every piece that stands at some moment while BPE merges the characters of `piece` (Sennrich et al. 2016)."""
    parts, passed = list(piece), set(piece)
    while len(parts) > 1:
        candidates = [
            (ranks[pair], place) for place, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks
        ]
        if not candidates:
            break
        _, place = min(candidates)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        passed.add(parts[place])
    return passed


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """`"a b"` (older files) or `["a", "b"]`."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def trimmed(tokenizer: Json, kept: Collection[int]) -> tuple[Json, list[int]]:
    """The tokenizer with the kept pieces only.

    Returns:
        The new JSON, and the old id of each new id. New ids follow the order of the old ones.
    """
    made = deepcopy(tokenizer)
    order = sorted(closed_over_merges(tokenizer, kept) if kind_of(tokenizer) == "BPE" else set(kept))
    new_id = {old: new for new, old in enumerate(order)}
    model = made["model"]
    if isinstance(model["vocab"], list):
        size = len(model["vocab"])
        model["vocab"] = [model["vocab"][old] for old in order if old < size]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_id[old] for piece, old in model["vocab"].items() if old in new_id}
    if "merges" in model:
        vocabulary = model["vocab"]
        model["merges"] = [
            merge for merge in model["merges"] if {*(pair := _pair(merge)), pair[0] + pair[1]} <= vocabulary.keys()
        ]
    for token in made["added_tokens"]:
        token["id"] = new_id[token["id"]]
    if made.get("post_processor"):
        _renumber(made["post_processor"], new_id)
    return made, order


def _renumber(processor: Json, new_id: Mapping[int, int]) -> None:
    """Put new ids into a post-processor: templates list them, BERT's and RoBERTa's name `cls` and `sep`."""
    for inner in processor.get("processors", []):
        _renumber(inner, new_id)
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new_id[old] for old in token["ids"]]
    for key in ("cls", "sep"):
        if isinstance(processor.get(key), list):
            processor[key] = [processor[key][0], new_id[processor[key][1]]]
