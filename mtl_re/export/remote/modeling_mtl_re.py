"""The network of mtl-re for `AutoModel.from_pretrained(DIR, trust_remote_code=True)`: torch and transformers alone.

Enters: token ids and the four positions of the two marked entities. Leaves: logits by head; `answer` makes
probabilities and labels of them. `mtl_re_input` beside this file turns sentences into input. Written by `mtl-re export`
(Apache-2.0); a second copy of `mtl_re.model.network`, held equal to the first by a test over all poolings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

if int(transformers.__version__.split(".")[0]) < 5:  # older ones read the configs of some encoders in part, in silence
    raise ImportError("this model needs transformers 5 or later")


class MtlReConfig(PretrainedConfig):
    """See `mtl_re.model.network.MtlReConfig`; values that only prediction with mtl_re reads stay in `kwargs`."""

    model_type = "mtl_re"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        taxonomy: dict[str, Any] | None = None,
        pooling: str = "markers",
        dropout: float = 0.1,
        gate: str = "hard",
        temperatures: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.taxonomy = encoder or {}, taxonomy or {}
        self.pooling, self.dropout, self.gate, self.temperatures = pooling, dropout, gate, temperatures or {}
        self.head_layers, self.gate_evidence = kwargs.pop("head_layers", 0), kwargs.pop("gate_evidence", "coarse")
        super().__init__(**kwargs)


def _first(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden[:, 0]


def _states(*columns: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The tokens at these columns of `positions`, side by side."""

    def part(hidden: Tensor, positions: Tensor) -> Tensor:
        index = positions[:, list(columns)].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index).flatten(1)

    return part


def _mean(start: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean over the tokens from column `start` of `positions` to the next column, both included."""

    def part(hidden: Tensor, positions: Tensor) -> Tensor:
        place = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (place >= positions[:, start, None]) & (place <= positions[:, start + 1, None])
        weight = inside.to(hidden.dtype) / inside.sum(1, keepdim=True)
        return torch.einsum("bl,bld->bd", weight, hidden)

    return part


POOLINGS: dict[str, tuple[int, list[Callable[[Tensor, Tensor], Tensor]]]] = {
    "cls": (1, [_first]),
    "markers": (2, [_states(0, 2)]),
    "cls_markers": (3, [_first, _states(0, 2)]),
    "markers_both": (4, [_states(0, 1, 2, 3)]),
    "cls_markers_both": (5, [_first, _states(0, 1, 2, 3)]),
    "mean": (2, [_mean(0), _mean(2)]),
    "cls_mean": (3, [_first, _mean(0), _mean(2)]),
}
"""Name → width in states, and the parts that are laid side by side."""


class MtlReModel(PreTrainedModel):
    """Shared encoder, pair layer, a classifier for each head."""

    config_class = MtlReConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: MtlReConfig) -> None:
        super().__init__(config)
        values = dict(config.encoder)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        dim, (width, self.parts) = int(self.encoder.config.hidden_size), POOLINGS[config.pooling]
        dropout = nn.Dropout(config.dropout)
        self.pair = nn.Sequential(dropout, nn.Linear(width * dim, dim), nn.GELU(), nn.Dropout(config.dropout))
        groups, labels = config.taxonomy["groups"], config.taxonomy["labels"]
        self.flat = config.taxonomy["layout"] == "flat"
        self.root = "label" if self.flat else "coarse"
        fine = {} if self.flat else {name: len(members) for name, members in groups if len(members) > 1}
        sizes = {self.root: len(labels) if self.flat else len(groups), **fine}
        self.fine = list(fine)
        self.heads = nn.ModuleDict({name: self._head(dim, size) for name, size in sizes.items()})
        takes = "token_type_ids" in inspect.signature(self.encoder.forward).parameters
        self.takes_types = takes and int(getattr(self.encoder.config, "type_vocab_size", 0) or 0) > 1
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pairs: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits by head.

        Shapes: input_ids, attention_mask, token_type_ids (batch, length); positions (batch, 4): the tokens of the
        subject's first and last marker piece, then the object's; result by head (batch, classes of the head), fp32.
        Where the markers stand behind the text (`levitated`), several pairs share a sequence: position_ids, pairs
        (sequences, length), 0 in `pairs` for the text, -1 for padding; positions (batch, 5): the sequence, four tokens.
        """
        options: dict[str, Any] = {"attention_mask": attention_mask}
        if self.takes_types and token_type_ids is not None:
            options["token_type_ids"] = token_type_ids
        if pairs is not None and position_ids is not None:
            options |= self._levitated(pairs, position_ids)
        hidden = self.encoder(input_ids=input_ids, **options).last_hidden_state
        if pairs is not None:
            hidden = hidden[positions[:, :1], positions * (torch.arange(5, device=hidden.device) > 0)]
            positions = torch.arange(1, 5, device=hidden.device).expand(hidden.shape[0], 4)
        pair = self.pair(torch.cat([part(hidden, positions) for part in self.parts], dim=-1))
        logits = {name: head(pair).float() for name, head in self.heads.items()}
        if self.config.gate_evidence == "fine" and not self.flat:
            logits["coarse"] = logits["coarse"] + self._evidence(logits)
        return logits

    def _head(self, dim: int, size: int) -> nn.Module:
        layers, rate = self.config.head_layers, self.config.dropout
        hidden = [module for _ in range(layers) for module in (nn.Linear(dim, dim), nn.GELU(), nn.Dropout(rate))]
        return nn.Sequential(*hidden, nn.Linear(dim, size)) if hidden else nn.Linear(dim, size)

    def _evidence(self, logits: dict[str, Tensor]) -> Tensor:
        """The log-mean-exp of each coarse class's fine logits, 0 without a fine head: (batch, coarse classes)."""
        none = torch.zeros_like(logits["coarse"][:, 0])
        columns = [
            logits[name].logsumexp(-1) - math.log(len(members)) if name in self.fine else none
            for name, members in self.config.taxonomy["groups"]
        ]
        return torch.stack(columns, dim=-1)

    def _levitated(self, pairs: Tensor, position_ids: Tensor) -> dict[str, Any]:
        """Who sees whom: all the text, and a pair's markers each other; and where the tokens stand."""
        config = self.encoder.config
        seen = (pairs[:, None, None, :] == 0) | (pairs[:, None, None, :] == pairs[:, None, :, None])
        masks: Any = self._mask(seen)
        if config.model_type == "modernbert":
            apart = (position_ids[:, None, None, :] - position_ids[:, None, :, None]).abs()
            local = self._mask(seen & (apart <= config.sliding_window))
            masks = {"full_attention": masks, "sliding_attention": local}
        after_padding = config.model_type in ("roberta", "xlm-roberta")
        return {"attention_mask": masks, "position_ids": position_ids + (config.pad_token_id + 1) * after_padding}

    def _mask(self, seen: Tensor) -> Tensor:
        if self.encoder.config._attn_implementation != "eager":
            return seen
        return torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, torch.finfo(self.dtype).min)

    def answer(self, logits: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities (batch, labels) in the order of `config.id2label`, and labels (batch,) by the model's gate."""
        scale, taxonomy = self.config.temperatures, self.config.taxonomy
        log_p = {name: (scores.double() / scale.get(name, 1.0)).log_softmax(-1) for name, scores in logits.items()}
        root = log_p[self.root]
        if self.flat:
            return root.exp(), root.argmax(-1)
        columns, owner = {}, {}
        for place, (name, members) in enumerate(taxonomy["groups"]):
            for rank, label in enumerate(members):
                columns[label] = root[:, place] + (log_p[name][:, rank] if len(members) > 1 else 0.0)
                owner[label] = place
        probabilities = torch.stack([columns[label] for label in taxonomy["labels"]], dim=-1).exp()
        if self.config.gate == "soft":
            return probabilities, probabilities.argmax(-1)
        groups = torch.tensor([owner[label] for label in taxonomy["labels"]], device=root.device)
        shut = groups != root.argmax(-1, keepdim=True)
        return probabilities, probabilities.masked_fill(shut, -1.0).argmax(-1)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, 0.02)
            module.bias.zero_()
