"""The encoder over one stream of tokens instead of a padded rectangle, on a CPU.

All rows of a forward pass lie one after the other, as in ModernBERT's unpadding (Warner et al. 2024, arXiv 2412.13663):
the linear layers, which are nearly all of the work, see one long matrix with next to no padding in it, whatever the
lengths. Only attention must know the rows. Rows of like length lie together, padded to the longest of them, as a block
that attention takes as a rectangle of its own without a copy; a block costs one more call, so blocks are cut where
padding and calls cost least. What comes out is what a padded pass gives, to rounding.

On a GPU a call costs more than the padding it saves; there, and for encoders whose attention is their own
(DeBERTa's relative positions), passes stay rectangles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mtl_re.collate import like_length

NAME = "mtl_re_unpadded"
AFTER_PADDING = {"bert": False, "electra": False, "modernbert": False, "roberta": True, "xlm-roberta": True}
"""Encoders that take a stream, and whether they count positions from the id after the padding's or from 0."""
BLOCK_COST = 4
"""What one more block costs, in tokens' worth of time (2 to 24 measured alike)."""
STREAM_STEP = 32
"""Streams are filled up to a multiple of this: matrix kernels and memory are kept for every length that occurs."""


class Block(NamedTuple):
    """Rows that lie together in the stream: how many, how long each, and which tokens are real (None: all)."""

    rows: int
    length: int
    real: Tensor | None


def prepare(encoder: Any) -> bool:
    """Switch an encoder to streams, if it can run over them: a known kind, on a CPU, not compiled.

    Returns:
        Whether it was switched; from then on only `encode` may call it.
    """
    compiled = getattr(encoder, "_compiled_call_impl", None) is not None
    if encoder.config.model_type not in AFTER_PADDING or encoder.device.type != "cpu" or compiled:
        return False
    encoder.set_attn_implementation(NAME)
    return True


def encode(encoder: Any, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
    """Last hidden states, computed without the padding.

    Args:
        encoder: one that `prepare` has switched.
        input_ids, attention_mask, token_type_ids: (rows, length), padded on the right.

    Returns:
        (rows, length, dim); at padded places whatever the stream's first token has.
    """
    mask = attention_mask.numpy() != 0
    lengths = mask.sum(axis=1)
    blocks, places, columns = _layout(lengths, mask.shape[1])
    stream = torch.from_numpy(places)  # flat places in the rectangle, in stream order
    config = encoder.config
    first = int(config.pad_token_id) + 1 if AFTER_PADDING[config.model_type] else 0
    options: dict[str, Any] = {}
    if config.model_type != "modernbert":  # its forward knows no segments; the others' own default is too short
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        options["token_type_ids"] = types.reshape(-1)[stream][None]
    hidden = encoder(
        input_ids=input_ids.reshape(-1)[stream][None],
        position_ids=torch.from_numpy(columns)[None] + first,
        blocks=blocks,
        **options,
    ).last_hidden_state[0]
    back = np.zeros(mask.size, np.int64)
    back[places[::-1]] = np.arange(len(places))[::-1]  # a filler repeats a place that its row has already
    return hidden[torch.from_numpy(back)].unflatten(0, mask.shape)


def stream_tokens(lengths: np.ndarray) -> int:
    """Tokens that a pass over rows of these lengths computes, what padding is left included."""
    return len(_layout(lengths, int(lengths.max()))[1])


def _layout(lengths: np.ndarray, width: int) -> tuple[list[Block], np.ndarray, np.ndarray]:
    """Blocks of a stream, and for each of its tokens the flat place in the rectangle and the position in its row.

    Args:
        lengths: (rows,) real tokens. width: of the rectangle, which may be more than the longest row.
    """
    order = np.argsort(lengths, kind="stable")
    blocks, places, columns = [], [], []
    for part in like_length(order, lengths[order], len(order), BLOCK_COST):
        length = int(lengths[part].max())
        column = np.arange(length)
        real = column < lengths[part][:, None]
        blocks.append(Block(len(part), length, None if real.all() else torch.from_numpy(real)))
        places.append((part[:, None] * width + column).reshape(-1))
        columns.append(np.tile(column, len(part)))
    if fill := -sum(map(len, places)) % STREAM_STEP:  # a row of its own that nothing reads
        blocks.append(Block(1, fill, None))
        places.append(np.zeros(fill, np.int64))
        columns.append(np.zeros(fill, np.int64))
    return blocks, np.concatenate(places), np.concatenate(columns)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    blocks: list[Block] | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention inside the rows of every block.

    Shapes: query, key, value (1, heads, tokens, dim of a head); result (1, tokens, heads, dim of a head).
    """
    assert blocks is not None
    sizes = [block.rows * block.length for block in blocks]
    parts = zip(*(states.squeeze(0).split(sizes, dim=1) for states in (query, key, value)), strict=True)
    attend = F.scaled_dot_product_attention if query.dtype == torch.float32 else _products
    results = []
    for block, states in zip(blocks, parts, strict=True):
        q, k, v = (part.unflatten(1, (block.rows, block.length)).transpose(0, 1) for part in states)
        found = attend(q, k, v, attn_mask=_allowed(block, sliding_window), dropout_p=dropout, scale=scaling)
        results.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(results)[None], None


def _products(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, scale: float | None
) -> Tensor:
    """softmax(q·k) · v as two matrix products, for bf16: torch's fused kernel, made for long rows, takes three to four
    times as long over rows of a sentence's length (forward and backward; in fp32 they are alike).

    Shapes: query, key, value, result (rows, heads, length, dim); attn_mask broadcast over (rows, heads, length,
    length).
    """
    rows, heads, length, dim = query.shape
    q, k, v = (states.reshape(rows * heads, length, dim) for states in (query, key, value))
    bias = q.new_zeros(())
    if attn_mask is not None:
        bias = bias.masked_fill(~attn_mask, float("-inf"))
        bias = bias.expand(rows, heads, length, length).reshape(rows * heads, length, length)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=dim**-0.5 if scale is None else scale)
    found = torch.bmm(F.dropout(scores.softmax(-1), dropout_p), v)
    return found.unflatten(0, (rows, heads))


def _allowed(block: Block, window: int | None) -> Tensor | None:
    """Which keys a query may see, to be broadcast over (rows, heads, queries, keys); None: all."""
    real = None if block.real is None else block.real[:, None, None, :]
    if window is None or block.length <= window:
        return real
    place = torch.arange(block.length)
    near = (place[:, None] - place).abs() < window
    return near if real is None else near & real


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
