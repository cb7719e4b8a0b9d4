"""The encoder under levitated markers (`features.levitated`): who sees whom, and at which position each token stands.

Enters: sequences of a text and the markers of its pairs. Leaves: their last hidden states. The encoder must take
position ids and an attention mask over pairs of tokens, and know positions by these ids alone; `FAMILIES` names the
model types for which a test shows that pairs scored together and one by one agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_re.errors import MtlReError
from mtl_re.features.levitated import TEXT

FAMILIES = {"bert": False, "electra": False, "modernbert": False, "roberta": True, "xlm-roberta": True}
"""Model types, and whether their position ids count from the padding id + 1 or from 0."""


def check_family(encoder: Any) -> None:
    """Raise MtlReError unless an encoder can run levitated markers."""
    if encoder.config.model_type not in FAMILIES:
        why = "it must take position ids and an attention mask over pairs of tokens"
        if "deberta" in encoder.config.model_type:
            why = "DeBERTa's relative positions come from where tokens stand, not from position ids"
        known = ", ".join(FAMILIES)
        raise MtlReError(f"data.markers: levitated does not run on {encoder.config.model_type} ({why}); use {known}")


def first_position(config: Any) -> int:
    """Return the id of the first position of a text."""
    return int(config.pad_token_id) + 1 if FAMILIES[config.model_type] else 0


def visible(pairs: Tensor) -> Tensor:
    """Return which tokens a token sees: the text, and its own pair's markers.

    Shapes: pairs (sequences, length), see `features.levitated.pad_pairs`; result (sequences, 1, length, length) bool.
    """
    keys = pairs[:, None, None, :]
    return (keys == TEXT) | (keys == pairs[:, None, :, None])


def near(position_ids: Tensor, window: int) -> Tensor:
    """Return which tokens lie in the sliding window of a token, by position id: (sequences, 1, length, length) bool."""
    return (position_ids[:, None, None, :] - position_ids[:, None, :, None]).abs() < window


def levitated_states(encoder: Any, input_ids: Tensor, pairs: Tensor, position_ids: Tensor, **types: Tensor) -> Tensor:
    """Return the last hidden states (sequences, length, dim). Padding sees the text, so that no row sees nothing."""
    config = encoder.config
    allowed = visible(pairs)
    masks: Any = _mask(encoder, allowed)
    if config.model_type == "modernbert":
        local = allowed & near(position_ids, int(config.sliding_window) + 1)
        masks = {"full_attention": masks, "sliding_attention": _mask(encoder, local)}
    hidden: Tensor = encoder(
        input_ids=input_ids, attention_mask=masks, position_ids=position_ids + first_position(config), **types
    ).last_hidden_state
    return hidden


def _mask(encoder: Any, allowed: Tensor) -> Tensor:
    """Return a mask in the form that the encoder's attention takes: bool, or added to the scores."""
    if encoder.config._attn_implementation != "eager":
        return allowed
    return torch.zeros_like(allowed, dtype=encoder.dtype).masked_fill_(~allowed, torch.finfo(encoder.dtype).min)


def pair_states(hidden: Tensor, positions: Tensor) -> Tensor:
    """Return the states that a pooling may read: the text's first token and the pair's four markers.

    Shapes: hidden (sequences, length, dim); positions (rows, 5), see `pad_pairs`; result (rows, 5, dim).
    """
    columns = torch.cat([torch.zeros_like(positions[:, :1]), positions[:, 1:]], dim=1)
    return hidden[positions[:, :1], columns]
