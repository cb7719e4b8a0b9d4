"""Packed sequences: the encoder runs over the tokens of all rows in one sequence, without padding, on a CPU.

The rows of a forward pass follow one another, as in ModernBERT's unpadding (Warner et al. 2024, arXiv 2412.13663): the
linear layers, which are nearly all of the work, see one long matrix without padding, whatever the rows' lengths. Only
attention must know where rows begin and end: its states are moved into blocks of rows of similar length, each padded to
its longest row (blocks are cut where padding plus calls cost least), and back. The result equals that of a padded batch
up to rounding.

Batches stay padded on a GPU, where a further call is thought to cost more than the padding it saves (not measured), in
compiled encoders, and in model types that are not in `levitated.FAMILIES` (DeBERTa's relative positions, for one).
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
from mtl_re.features.levitated import PADDING
from mtl_re.model.cpu.dropout import dropped
from mtl_re.model.levitated import FAMILIES, first_position, near, visible

PACKED_ATTENTION = "mtl_re_packed"
BLOCK_COST = 64
"""Cost of one more attention block, in tokens whose attention takes as long."""
BLOCK_STEP = 16
"""Block lengths are multiples of this: kernels prefer it, and fewer shapes occur for which kernels are cached."""
PACKED_STEP = 32
"""Packed sequences are filled up to a multiple of this: matrix kernels and memory are cached for each length."""


class Moves(NamedTuple):
    """Which row of one matrix each row of another is copied from.

    Attributes:
        source: (n,) for each target row its source row. empty: target rows without a source; they become 0.
    """

    source: Tensor
    empty: Tensor


class Block(NamedTuple):
    """Rows that attention computes together: their number, padded length, and which tokens are real.

    Attributes:
        real: (rows, length) bool; None if none is padding.
        seen: (rows, 1, length, length) bool, who sees whom under levitated markers; None: every token sees its row.
        positions: (rows, length) position ids of levitated markers, for a sliding window; else None.
    """

    rows: int
    length: int
    real: Tensor | None
    seen: Tensor | None = None
    positions: Tensor | None = None


class _Move(torch.autograd.Function):
    """Move the rows of a matrix. No row has two targets, so the gradient is the reverse move; torch's own gradient of
    indexing would be a sum over the index, one row at a time."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, there: Moves, back: Moves) -> Tensor:
        ctx.back = back
        return _moved(matrix, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _moved(gradients[0], ctx.back), None, None


def _moved(matrix: Tensor, moves: Moves) -> Tensor:
    return matrix.index_select(0, moves.source).index_fill_(0, moves.empty, 0)


def _moves(source: np.ndarray) -> Moves:
    """Return the moves from source rows, -1 where there is none."""
    return Moves(torch.from_numpy(np.maximum(source, 0)), torch.from_numpy(np.flatnonzero(source < 0)))


def _inverse(source: np.ndarray, rows: int) -> np.ndarray:
    """Return for each of `rows` source rows its target row, -1 if it has none."""
    targets = np.full(rows, -1, np.int64)
    real = np.flatnonzero(source >= 0)
    targets[source[real]] = real
    return targets


class Layout:
    """Where the tokens of a forward pass lie: in the padded batch, in the packed sequence, in the attention blocks.

    Args:
        lengths: (rows,) number of real tokens. width: of the padded batch, which may exceed the longest row.
        pairs, position_ids: (rows, width) of levitated markers (None: every token sees its whole row).
    """

    def __init__(
        self, lengths: np.ndarray, width: int, pairs: Tensor | None = None, position_ids: Tensor | None = None
    ) -> None:
        self.lengths, self.width = lengths, width
        self.pairs, self.position_ids = pairs, position_ids
        self.tokens = packed_tokens(lengths)
        self.starts = np.cumsum(lengths) - lengths
        real = np.arange(width) < lengths[:, None]
        self.positions = np.full(self.tokens, -1, np.int64)  # in the flattened batch; the fill at the end has none
        self.positions[: int(lengths.sum())] = np.flatnonzero(real)
        self._heads: dict[int, tuple[Moves, Moves]] = {}

    @cached_property
    def unpack(self) -> Moves:
        """From the packed sequence to the flattened padded batch."""
        return _moves(_inverse(self.positions, len(self.lengths) * self.width))

    @cached_property
    def pack(self) -> Moves:
        """From the flattened padded batch to the packed sequence."""
        return _moves(self.positions)

    @cached_property
    def padded(self) -> np.ndarray:
        """(rows,) lengths rounded up to multiples of `BLOCK_STEP`."""
        return -(-self.lengths // BLOCK_STEP) * BLOCK_STEP

    @cached_property
    def parts(self) -> list[np.ndarray]:
        """Row numbers of each block."""
        order = np.argsort(self.padded, kind="stable")
        return like_length(order, self.padded[order], len(order), BLOCK_COST)

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks, in the order of `parts`."""
        blocks = []
        for part in self.parts:
            length = int(self.padded[part].max())
            real = np.arange(length) < self.lengths[part][:, None]
            block = Block(len(part), length, None if real.all() else torch.from_numpy(real))
            if self.pairs is not None and self.position_ids is not None:
                chosen = torch.from_numpy(part)
                pairs, positions = (_cut(values[chosen], length, PADDING) for values in (self.pairs, self.position_ids))
                block = block._replace(seen=visible(pairs), positions=positions)
            blocks.append(block)
        return blocks

    def moves(self, heads: int) -> tuple[Moves, Moves]:
        """Return the moves from (tokens × heads) to (blocks × rows × heads × length), and back."""
        if heads not in self._heads:
            head = np.arange(heads)[:, None]
            sources = []
            for part, block in zip(self.parts, self.blocks, strict=True):
                column = np.arange(block.length)
                token = np.where(column < self.lengths[part][:, None], self.starts[part][:, None] + column, -1)
                source = token[:, None, :] * heads + head  # (rows, heads, length)
                sources.append(np.where(token[:, None, :] < 0, -1, source).reshape(-1))
            source = np.concatenate(sources)
            self._heads[heads] = _moves(source), _moves(_inverse(source, self.tokens * heads))
        return self._heads[heads]


def _cut(values: Tensor, length: int, fill: int) -> Tensor:
    """Return (rows, width) values cut or filled to (rows, length)."""
    return F.pad(values[:, :length], (0, max(0, length - values.shape[1])), value=fill)


def packed_tokens(lengths: np.ndarray) -> int:
    """Return the length of the packed sequence of rows of these lengths, its fill included."""
    return -(-int(lengths.sum()) // PACKED_STEP) * PACKED_STEP


def use_packed_attention(encoder: Any) -> bool:
    """Switch an encoder on a CPU to packed sequences if its model type allows it.

    Returns:
        Whether it was switched; from then on only `packed_states` may call it.
    """
    if encoder.config.model_type not in FAMILIES:
        return False
    encoder.set_attn_implementation(PACKED_ATTENTION)
    return True


def packed_states(
    encoder: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    pairs: Tensor | None = None,
) -> Tensor:
    """Return the last hidden states, computed without the padding.

    Args:
        encoder: one that `use_packed_attention` has switched.
        input_ids, attention_mask, token_type_ids: (rows, length), padded on the right.
        position_ids, pairs: (rows, length) of levitated markers.

    Returns:
        (rows, length, dim); 0 at padded positions.
    """
    lengths, width = attention_mask.numpy().astype(bool).sum(axis=1), attention_mask.shape[1]
    layout = Layout(lengths, width, pairs, position_ids)
    config, source = encoder.config, layout.pack.source
    places = source % width if position_ids is None else position_ids.reshape(-1)[source]
    options: dict[str, Any] = {}
    if config.model_type != "modernbert":  # it takes no segment ids; the others' default buffer is too short
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        options["token_type_ids"] = types.reshape(-1)[source][None]
    hidden = encoder(
        input_ids=input_ids.reshape(-1)[source][None],
        position_ids=places[None] + first_position(config),
        layout=layout,
        **options,
    ).last_hidden_state[0]
    return _Move.apply(hidden, layout.unpack, layout.pack).unflatten(0, attention_mask.shape)


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
    """Compute attention within each row, block by block; 0 for the fill of the packed sequence.

    Shapes: query, key, value (1, heads, tokens, dim of a head); result (1, tokens, heads, dim of a head).
    """
    assert layout is not None
    heads, dim = query.shape[1], query.shape[3]
    there, back = layout.moves(heads)
    sizes = [block.rows * heads * block.length for block in layout.blocks]
    moved = (_Move.apply(states[0].transpose(0, 1).reshape(-1, dim), there, back) for states in (query, key, value))
    parts = zip(*(states.split(sizes) for states in moved), strict=True)
    attend = F.scaled_dot_product_attention if query.dtype == torch.float32 else _products
    results = []
    for block, states in zip(layout.blocks, parts, strict=True):
        q, k, v = (part.unflatten(0, (block.rows, heads, block.length)) for part in states)
        mixed = attend(q, k, v, attn_mask=_allowed(block, sliding_window), dropout_p=dropout, scale=scaling)
        results.append(mixed.reshape(-1, dim))
    return _Move.apply(torch.cat(results), back, there).unflatten(0, (1, -1, heads)), None


def _products(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, scale: float | None
) -> Tensor:
    """Compute softmax(q·k) · v as two matrix products, for bf16: at the length of a sentence torch's fused kernel, made
    for long rows, takes three to four times as long (forward and backward; in fp32 they are equally fast).

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
    mixed = torch.bmm(dropped(scores.softmax(-1), dropout_p), v)
    return mixed.unflatten(0, (rows, heads))


def _allowed(block: Block, window: int | None) -> Tensor | None:
    """Return which keys a query may see, broadcastable to (rows, heads, queries, keys); None: all."""
    if block.seen is not None and block.positions is not None:
        return block.seen if window is None else block.seen & near(block.positions, window) | _itself(block)
    real = None if block.real is None else block.real[:, None, None, :]
    if window is None or block.length <= window:
        return real
    position = torch.arange(block.length)
    apart = (position[:, None] - position).abs()
    return apart < window if real is None else (apart < window) & real | _itself(block)


def _itself(block: Block) -> Tensor:
    """Return a mask by which every token sees itself: padding that sees nothing would give 0 / 0."""
    return torch.eye(block.length, dtype=torch.bool)


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, _attention)
