"""The encoder over one stream of tokens instead of a padded rectangle, on a CPU.

All rows of a forward pass lie one after the other, as in ModernBERT's unpadding (Warner et al. 2024, arXiv 2412.13663):
the linear layers, which are nearly all of the work, see one long matrix without padding, whatever the lengths. Only
attention must know the rows: its states are moved into blocks of rows of like length, padded to the longest of them
(cut where padding and calls cost least), and back. What comes out is what a padded pass gives, to rounding.

On a GPU a call costs more than the padding it saves; there, and for encoders whose attention is their own
(DeBERTa's relative positions), passes stay rectangles.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mtl_re.features.collate import like_length
from mtl_re.model.cpu.dropout import dropped

NAME = "mtl_re_unpadded"
AFTER_PADDING = {"bert": False, "electra": False, "modernbert": False, "roberta": True, "xlm-roberta": True}
"""Encoders that take a stream, and whether they count positions from the id after the padding's or from 0."""
BLOCK_COST = 64
"""What one more block of attention costs, in tokens' worth of its time."""
BLOCK_STEP = 16
"""Blocks are as long as a multiple of this: the kernels like it, and there are fewer shapes to keep kernels for."""
STREAM_STEP = 32
"""Streams are filled up to a multiple of this: matrix kernels and memory are kept for every length that occurs."""


class Way(NamedTuple):
    """Where the rows of a matrix go.

    Attributes:
        source: (n,) for every place the row that comes there. empty: places that no row comes to; they become 0.
    """

    source: Tensor
    empty: Tensor


class Block(NamedTuple):
    """Rows that attention takes together: how many, how long, and which tokens are real, (rows, length); None: all."""

    rows: int
    length: int
    real: Tensor | None


class _Move(torch.autograd.Function):
    """Rows of a matrix to other places. No row goes to two, so the gradient is the way back: torch's own gradient of an
    index is a sum over it, one row at a time."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, there: Way, back: Way) -> Tensor:
        ctx.back = back
        return _moved(matrix, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _moved(gradients[0], ctx.back), None, None


def _moved(matrix: Tensor, way: Way) -> Tensor:
    return matrix.index_select(0, way.source).index_fill_(0, way.empty, 0)


def _way(source: np.ndarray) -> Way:
    """From rows, -1 where none comes."""
    return Way(torch.from_numpy(np.maximum(source, 0)), torch.from_numpy(np.flatnonzero(source < 0)))


def _inverse(source: np.ndarray, rows: int) -> np.ndarray:
    """For every row of the source the place it goes to, -1 if to none."""
    places = np.full(rows, -1, np.int64)
    real = np.flatnonzero(source >= 0)
    places[source[real]] = real
    return places


class Layout:
    """Where the tokens of a pass lie: in the rectangle, in the stream, in the blocks of attention.

    Args:
        lengths: (rows,) real tokens. width: of the rectangle, which may be more than the longest row.
    """

    def __init__(self, lengths: np.ndarray, width: int) -> None:
        self.lengths, self.width = lengths, width
        self.tokens = stream_tokens(lengths)
        self.starts = np.cumsum(lengths) - lengths
        real = np.arange(width) < lengths[:, None]
        self.places = np.full(self.tokens, -1, np.int64)  # in the rectangle; the fill at the end has none
        self.places[: int(lengths.sum())] = np.flatnonzero(real)
        self._heads: dict[int, tuple[Way, Way]] = {}

    @cached_property
    def rectangle(self) -> Way:
        """Stream to rectangle."""
        return _way(_inverse(self.places, len(self.lengths) * self.width))

    @cached_property
    def stream(self) -> Way:
        """Rectangle to stream."""
        return _way(self.places)

    @cached_property
    def padded(self) -> np.ndarray:
        """(rows,) lengths in steps of `BLOCK_STEP`."""
        return -(-self.lengths // BLOCK_STEP) * BLOCK_STEP

    @cached_property
    def parts(self) -> list[np.ndarray]:
        """Rows of every block."""
        order = np.argsort(self.padded, kind="stable")
        return like_length(order, self.padded[order], len(order), BLOCK_COST)

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks, in their order."""
        found = []
        for part in self.parts:
            length = int(self.padded[part].max())
            real = np.arange(length) < self.lengths[part][:, None]
            found.append(Block(len(part), length, None if real.all() else torch.from_numpy(real)))
        return found

    def ways(self, heads: int) -> tuple[Way, Way]:
        """From (tokens × heads) to (blocks × rows × heads × length), and back."""
        if heads not in self._heads:
            head = np.arange(heads)[:, None]
            sources = []
            for part, block in zip(self.parts, self.blocks, strict=True):
                column = np.arange(block.length)
                token = np.where(column < self.lengths[part][:, None], self.starts[part][:, None] + column, -1)
                source = token[:, None, :] * heads + head  # (rows, heads, length)
                sources.append(np.where(token[:, None, :] < 0, -1, source).reshape(-1))
            source = np.concatenate(sources)
            self._heads[heads] = _way(source), _way(_inverse(source, self.tokens * heads))
        return self._heads[heads]


def stream_tokens(lengths: np.ndarray) -> int:
    """Tokens of the stream over rows of these lengths, its fill included."""
    return -(-int(lengths.sum()) // STREAM_STEP) * STREAM_STEP


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
        (rows, length, dim); 0 at padded places.
    """
    layout = Layout(attention_mask.numpy().astype(bool).sum(axis=1), attention_mask.shape[1])
    config = encoder.config
    first = int(config.pad_token_id) + 1 if AFTER_PADDING[config.model_type] else 0
    place = layout.stream.source
    options: dict[str, Any] = {}
    if config.model_type != "modernbert":  # its forward knows no segments; the others' own default is too short
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        options["token_type_ids"] = types.reshape(-1)[place][None]
    hidden = encoder(
        input_ids=input_ids.reshape(-1)[place][None],
        position_ids=place[None] % layout.width + first,
        layout=layout,
        **options,
    ).last_hidden_state[0]
    return _Move.apply(hidden, layout.rectangle, layout.stream).unflatten(0, attention_mask.shape)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention inside the rows of every block; 0 for the stream's fill.

    Shapes: query, key, value (1, heads, tokens, dim of a head); result (1, tokens, heads, dim of a head).
    """
    assert layout is not None
    heads, dim = query.shape[1], query.shape[3]
    there, back = layout.ways(heads)
    sizes = [block.rows * heads * block.length for block in layout.blocks]
    moved = (_Move.apply(states[0].transpose(0, 1).reshape(-1, dim), there, back) for states in (query, key, value))
    parts = zip(*(states.split(sizes) for states in moved), strict=True)
    attend = F.scaled_dot_product_attention if query.dtype == torch.float32 else _products
    results = []
    for block, states in zip(layout.blocks, parts, strict=True):
        q, k, v = (part.unflatten(0, (block.rows, heads, block.length)) for part in states)
        found = attend(q, k, v, attn_mask=_allowed(block, sliding_window), dropout_p=dropout, scale=scaling)
        results.append(found.reshape(-1, dim))
    return _Move.apply(torch.cat(results), back, there).unflatten(0, (1, -1, heads)), None


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
    found = torch.bmm(dropped(scores.softmax(-1), dropout_p), v)
    return found.unflatten(0, (rows, heads))


def _allowed(block: Block, window: int | None) -> Tensor | None:
    """Which keys a query may see, to be broadcast over (rows, heads, queries, keys); None: all."""
    real = None if block.real is None else block.real[:, None, None, :]
    if window is None or block.length <= window:
        return real
    place = torch.arange(block.length)
    apart = (place[:, None] - place).abs()
    if real is None:
        return apart < window
    return (apart < window) & real | (apart == 0)  # a padded place sees itself: seeing nothing, it would be 0 / 0


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
