"""Config and training rows → a tokenizer and the network that a training starts from.

The encoder comes from the hub, from a directory, or is made of the training text (`model.encoders`); the heads are new,
or those of `model.init`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mtl_re.config import Config
from mtl_re.data.splits import Splits
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.model import encoders
from mtl_re.model.network import MtlReConfig, MtlReModel, from_encoder
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.processes import on_main


def make_model(config: Config, taxonomy: Taxonomy, rows: Splits, accelerator: Accelerator) -> tuple[Any, MtlReModel]:
    """Return a tokenizer and a model with fresh heads."""
    options, seed = config.data, config.train.seed
    types = sorted({entity.type for example in rows.train for entity in (example.subject, example.object)})
    name, own = config.model.encoder, None
    if config.model.init is not None:
        name, own = config.model.init, encoders.own_checkpoint(config.model.init)
        if own is None:
            raise MtlReError(f"model.init: {name} is no run or checkpoint of mtl-re; --model.encoder takes encoders")
        types = sorted({*types, *own[0].config.entity_types})  # what it has learnt to read, it goes on reading
    if name.startswith(encoders.SCRATCH):
        tokenizer = on_main(accelerator, lambda: _scratch_tokenizer(rows.train, options.markers, types))
        encoder = encoders.scratch_encoder(name, tokenizer, options.max_length, seed)
    else:
        encoder, tokenizer = encoders.load_encoder(
            name, options.markers, types, options.max_length, seed, own, config.model.marker_init
        )
    heads: dict[str, Any] = {"head_layers": config.model.head_layers, "gate_evidence": config.model.gate_evidence}
    model_config = MtlReConfig(
        taxonomy=taxonomy.to_dict(),
        markers=options.markers,
        query=options.query,
        entity_types=types,
        max_input_length=options.max_length,
        pooling=config.model.pooling,
        dropout=config.model.dropout,
        gate=config.eval.gate,
        **{name: value for name, value in heads.items() if value != getattr(MtlReConfig, name)},
    )
    torch.manual_seed(seed)
    model = from_encoder(encoder, model_config)
    if own is not None:
        _start_heads(model, own[0], name)
    return tokenizer, model


def _scratch_tokenizer(examples: Sequence[Example], scheme: str, types: Sequence[str]) -> Any:
    texts = [markers.mark(row.sentence, row.subject, row.object, scheme).text for row in examples]
    return encoders.scratch_tokenizer(texts, scheme, types)


def _start_heads(model: MtlReModel, source: MtlReModel, init: str) -> None:
    """Give a model the pair layer and the heads of a checkpoint.

    Raises:
        MtlReError: it has other labels or heads, or another option that gives the same weights another meaning.
    """
    differ = {"labels or heads": source.taxonomy.heads != model.taxonomy.heads}
    for name in ("pooling", "head_layers", "gate_evidence", "markers", "query"):
        differ[name] = getattr(source.config, name) != getattr(model.config, name)
    if other := [name for name, different in differ.items() if different]:
        what = f"{init} has other {' and '.join(other)}"
        cure = f"give its options here, or --model.encoder {init}, which takes its encoder alone, under new heads"
        raise MtlReError(f"model.init: {what}; {cure}")
    model.pair.load_state_dict(source.pair.state_dict())
    model.heads.load_state_dict(source.heads.state_dict())


def check_heads(config: Config, weights: Mapping[str, float]) -> None:
    """Raise MtlReError if an option needs heads that do not exist or, having weight 0, learn nothing."""
    idle = [name for name, weight in weights.items() if weight == 0]
    if idle and config.train.early_stop is not None:
        raise MtlReError(
            f"train.early_stop: loss.weights.{idle[0]} is 0, and labels of an untrained head decide nothing"
        )
    if config.model.gate_evidence == "coarse":
        return
    if len(weights) == 1:
        raise MtlReError("model.gate_evidence: fine needs fine heads; model.heads gives one head alone")
    if idle:
        raise MtlReError(
            f"model.gate_evidence: fine reads all heads; loss.weights.{idle[0]}: 0 would leave one untrained"
        )
