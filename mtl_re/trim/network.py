"""An encoder's weights with the rows of some pieces only.

Enters: an encoder as the hub ships it, with its masked-LM head where it has one, and the ids to keep. Leaves: the same
network with fewer rows in its embeddings, its decoder and the decoder's bias. A parameter that two modules share is cut
once and stays shared; everything else is untouched, so that hidden states of kept pieces are the same bits. RoBERTa's
position ids count from the padding id: `fixed_rows` says which pieces must keep their ids for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel, AutoModelForMaskedLM

from mtl_re.errors import MtlReError
from mtl_re.model.encoders import head_is_missing, is_own, load_pretrained


def load_source(name: str) -> tuple[Any, Any]:
    """Return an encoder (fp32, on CPU), with its masked-LM head where it ships one, and its tokenizer.

    A pooler, which nothing here uses, is there only where the files hold one, and no masked-LM head.

    Raises:
        MtlReError: it cannot be loaded, or is a trained relation model, or its files lack weights.
    """
    network, tokenizer = _loaded(name)
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()  # files are mapped; where a weight begins in one can change last bits
    return network, tokenizer


def _loaded(name: str) -> tuple[Any, Any]:
    """With its head if the files hold one, else bare."""
    if is_own(name):
        raise MtlReError(f"trim: {name} is a trained relation model; cut its encoder first, then train")
    if _knows_masked_lm(name):
        network, tokenizer, missing = load_pretrained(name, AutoModelForMaskedLM, "trim")
        if not missing:
            return network, tokenizer
        if not head_is_missing(network, missing):
            raise MtlReError(f"trim: {name}'s weights do not fit its config (missing {', '.join(missing[:3])})")
        del network
    network, tokenizer, missing = load_pretrained(name, AutoModel, "trim")
    if lost := [key for key in missing if not key.startswith("pooler.")]:
        raise MtlReError(f"trim: {name}'s weights do not fit its config (missing {', '.join(lost[:3])})")
    if missing:
        network.pooler = None
    return network, tokenizer


def _knows_masked_lm(name: str) -> bool:
    try:
        return type(AutoConfig.from_pretrained(name, trust_remote_code=False)) in MODEL_FOR_MASKED_LM_MAPPING
    except Exception:  # whatever is wrong: `load_pretrained` says it
        return False


def fixed_rows(network: Any) -> int:
    """Return how many first ids must stay as they are: all up to the padding id where positions count from it, else
    none.

    Such families (RoBERTa, XLM-R, MPNet) give their table of positions a padding index.
    """
    table = network.get_input_embeddings()
    others = (module for module in network.modules() if isinstance(module, nn.Embedding) and module is not table)
    padding = [module.padding_idx for module in others if module.padding_idx is not None]
    return max(padding) + 1 if padding else 0


def config_ids(network: Any) -> set[int]:
    """Return the ids that an encoder's config names (padding, mask, ends) and its embeddings hold."""
    rows = network.get_input_embeddings().num_embeddings
    named = (value for key, value in network.config.to_dict().items() if key.endswith("_token_id"))
    return {index for index in named if isinstance(index, int) and 0 <= index < rows}


@torch.no_grad()
def cut_network(network: Any, kept: Mapping[int, int]) -> None:
    """Cut embeddings, decoder and its bias to some rows, in place, and give the config's ids their new values.

    Args:
        kept: id → new id, from 0 without gaps.
    """
    table = network.get_input_embeddings()
    before = table.num_embeddings
    rows = torch.tensor(sorted(kept, key=kept.__getitem__))
    cut = {
        id(parameter): nn.Parameter(parameter[rows].clone(), parameter.requires_grad)
        for parameter in _by_vocabulary(network, table, before)
    }
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in cut:
                setattr(module, name, cut[id(parameter)])
        for size in ("num_embeddings", "out_features"):
            if getattr(module, size, None) == before and id(getattr(module, "weight", None)) in map(id, cut.values()):
                setattr(module, size, len(rows))
    if table.padding_idx is not None:
        table.padding_idx = kept.get(table.padding_idx)
    _renumber_config(network.config, kept, len(rows))


def _by_vocabulary(network: Any, table: nn.Embedding, rows: int) -> list[nn.Parameter]:
    """Return the parameters with a row for each piece: the embeddings, and of the head its decoder and biases."""
    found: dict[int, nn.Parameter] = {id(table.weight): table.weight}  # type: ignore[dict-item] # it is one
    inside = {id(parameter) for parameter in network.base_model.parameters()}
    decoder = network.get_output_embeddings()
    for name, parameter in network.named_parameters():
        of_head = id(parameter) not in inside and parameter.shape[0] == rows
        if of_head and (
            (parameter.dim() == 1 and name.endswith("bias")) or parameter is getattr(decoder, "weight", None)
        ):
            found[id(parameter)] = parameter
    return list(found.values())


def _renumber_config(config: Any, kept: Mapping[int, int], rows: int) -> None:
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(config, key, kept.get(value, value))  # one that was no row before is none now
    config.vocab_size = rows


def narrowest(network: Any) -> torch.dtype:
    """Return the smallest type that holds every weight of a network as it is: what its files held, most likely."""
    for kind in (torch.bfloat16, torch.float16):
        if all(torch.equal(parameter.to(kind).float(), parameter) for parameter in network.parameters()):
            return kind
    return torch.float32
