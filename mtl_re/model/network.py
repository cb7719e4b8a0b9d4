"""One encoder, one pair vector, one classifier for each head: token ids in, logits by head out, nothing else.

Losses, gating and everything that has an opinion live elsewhere; the config carries what prediction needs (taxonomy,
markers, pooling, gate, temperatures, training prior, lengths), so that a directory of config, weights and tokenizer is
complete. Every order is a list in the config, because `config.json` is written with sorted keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from mtl_re import files
from mtl_re.errors import MtlReError, entry, first_line
from mtl_re.features.levitated import MARKS
from mtl_re.features.markers import LEVITATED
from mtl_re.model.classifier_heads import classifier, with_fine_evidence
from mtl_re.model.levitated import check_family, levitated_states, pair_states
from mtl_re.model.pooling import POOLINGS
from mtl_re.model.trust import CODE_KEYS, check_shapes, checked
from mtl_re.taxonomy import Taxonomy

hf_logging.disable_progress_bar()  # its bars for loading and saving weights would break into ours


THRESHOLD_KEYS = ("relation_thresholds", "relation_thresholds_prior", "precision_target")
"""Keys of config.json that `mtl-re calibrate --precision` writes; other checkpoints lack them."""


class MtlReConfig(PretrainedConfig):
    """What a checkpoint must know.

    Attributes:
        encoder: the encoder's own config as a dict with its `model_type`.
        taxonomy: `Taxonomy.to_dict()`.
        markers, query, max_input_length, entity_types: how rows are written for the model (see `features.Featurizer`).
        pooling: a name of `POOLINGS`. dropout: before the pair layer and the heads.
        head_layers, gate_evidence: see `classifier_heads`; written only where they are not 0 and `coarse`.
        gate: default way to read the label. temperatures: by head, divides logits. training_prior: share of each
            coarse class in the training rows, in taxonomy order (None: unknown). relation_threshold: fitted by
            `mtl-re calibrate`, used only where asked for. relation_threshold_prior: shares of the coarse classes under
            which it was fitted (empty: the training prior; None: not recorded, as by older versions).
        relation_thresholds: relation → least score of its triples, or None where none is ever given; fitted by
            `mtl-re calibrate --precision` to `precision_target`, under the shares `relation_thresholds_prior` (empty:
            the training prior). These three are written only where they were fitted.
    """

    model_type = "mtl_re"
    relation_thresholds: dict[str, float | None] | None = None
    relation_thresholds_prior: list[float] | None = None
    precision_target: float | None = None
    head_layers: int = 0
    gate_evidence: str = "coarse"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        taxonomy: dict[str, Any] | None = None,
        markers: str = "typed_punct_ko",
        query: bool = False,
        entity_types: list[str] | None = None,
        max_input_length: int = 256,
        pooling: str = "markers",
        dropout: float = 0.1,
        gate: str = "hard",
        temperatures: dict[str, float] | None = None,
        training_prior: list[float] | None = None,
        relation_threshold: float | None = None,
        relation_threshold_prior: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder or {}
        self.taxonomy = taxonomy or Taxonomy.from_prefixes().to_dict()
        self.markers, self.query, self.entity_types = markers, query, list(entity_types or [])
        self.max_input_length, self.pooling, self.dropout = max_input_length, pooling, dropout
        self.gate, self.temperatures, self.training_prior = gate, temperatures or {}, training_prior
        self.relation_threshold, self.relation_threshold_prior = relation_threshold, relation_threshold_prior
        labels = Taxonomy.from_dict(self.taxonomy).labels
        kwargs.setdefault("id2label", dict(enumerate(labels)))
        kwargs.setdefault("label2id", {label: index for index, label in enumerate(labels)})
        super().__init__(**kwargs)


class MtlReModel(PreTrainedModel):
    """Shared encoder with the heads of a taxonomy.

    Raises:
        MtlReError: the pooling is unknown or the encoder config is missing.
    """

    config_class = MtlReConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MtlReConfig) -> None:
        super().__init__(config)
        self.taxonomy = Taxonomy.from_dict(config.taxonomy)
        self.encoder = AutoModel.from_config(encoder_config(config), trust_remote_code=False)
        drop_pooler(self.encoder)
        pooling, dim = entry("model.pooling", config.pooling, POOLINGS), int(self.encoder.config.hidden_size)
        self.pool = pooling.function
        self.pair = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(pooling.width * dim, dim), nn.GELU(), nn.Dropout(config.dropout)
        )
        try:
            self.heads = nn.ModuleDict(
                {
                    head.name: classifier(dim, len(head.classes), config.head_layers, config.dropout)
                    for head in self.taxonomy.heads
                }
            )
        except KeyError as error:
            names = [head.name for head in self.taxonomy.heads]
            raise MtlReError(f"model.heads: torch cannot name a module like one of {names}") from error
        self.takes_types = takes_token_types(self.encoder)
        if self.levitated:
            check_family(self.encoder)
        self.encode: Callable[..., Tensor] = padded_states
        self.dropout_samples = 1
        self.post_init()

    @property
    def levitated(self) -> bool:
        """Whether markers stand behind the text, so that the pairs of a text share a sequence."""
        return bool(self.config.markers == LEVITATED)

    @property
    def packed(self) -> bool:
        """Whether passes compute nothing for padding (see `cpu.speed_up`)."""
        return self.encode is not padded_states

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pairs: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits by head.

        Shapes: input_ids, attention_mask, token_type_ids (batch, length); positions (batch, 4), columns of
        `featurizer.POSITIONS`; result by head (batch, classes of the head), fp32. In training mode with
        `dropout_samples` above 1: (dropout_samples · batch, classes), one draw of dropout after the other. With
        levitated markers all inputs are those of `levitated.pad_pairs`: fewer sequences than pairs may come in, and
        padded passes need no attention_mask.
        """
        options = {"token_type_ids": token_type_ids} if self.takes_types and token_type_ids is not None else {}
        if pairs is not None and position_ids is not None:
            options |= {"position_ids": position_ids, "pairs": pairs}
        hidden = self.encode(self.encoder, input_ids, attention_mask, **options)
        if pairs is not None:
            hidden = pair_states(hidden, positions)
            positions = torch.arange(1, 1 + MARKS, device=hidden.device).expand(hidden.shape[0], MARKS)
        pooled = self.pool(hidden, positions)
        if self.training and self.dropout_samples > 1:
            pooled = pooled.repeat(self.dropout_samples, 1)
        pair = self.pair(pooled)
        logits = {name: head(pair).float() for name, head in self.heads.items()}
        return with_fine_evidence(logits, self.taxonomy) if self.config.gate_evidence == "fine" else logits

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # the pair layer and the heads; the encoder initialises itself
            module.weight.normal_(0.0, 0.02)
            module.bias.zero_()


def padded_states(
    encoder: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    pairs: Tensor | None = None,
    **types: Tensor,
) -> Tensor:
    """Return the encoder's last hidden states (batch, length, dim) for a padded batch (batch, length)."""
    if pairs is not None and position_ids is not None:
        return levitated_states(encoder, input_ids, pairs, position_ids, **types)
    hidden: Tensor = encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
    return hidden


def encoder_config(config: MtlReConfig) -> PretrainedConfig:
    """The encoder's config object.

    Raises:
        MtlReError: there is none, or transformers does not know its type.
    """
    values = dict(config.encoder)
    kind = values.pop("model_type", None)
    if kind is None:
        raise MtlReError("config.json: 'encoder' holds no 'model_type'; is this an mtl-re checkpoint?")
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError as error:
        raise MtlReError(f"config.json: encoder type {kind!r} is unknown to this transformers version") from error


def drop_pooler(encoder: Any) -> None:
    """Remove the sentence pooler some encoders carry: nothing reads it, and an unused parameter stops DDP."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None


def takes_token_types(encoder: Any) -> bool:
    """Whether the encoder tells segments apart. klue/roberta's tokenizer offers segment ids for a table of size 1."""
    known = "token_type_ids" in inspect.signature(encoder.forward).parameters
    return known and int(getattr(encoder.config, "type_vocab_size", 0) or 0) > 1


def from_encoder(encoder: Any, config: MtlReConfig) -> MtlReModel:
    """A model with new heads around the weights of a pretrained encoder.

    Args:
        encoder: a loaded encoder whose embedding table already has the tokenizer's size.
        config: its `encoder` is overwritten by the encoder's own config.
    """
    values = encoder.config.to_dict()
    for private in ("_name_or_path", "architectures", "transformers_version", *CODE_KEYS):
        values.pop(private, None)  # no path of the training machine in a checkpoint, and nothing that `load` refuses
    values.pop("dtype", None)
    config.encoder = values
    model = MtlReModel(config)
    drop_pooler(encoder)
    missing, unexpected = model.encoder.load_state_dict(encoder.state_dict(), strict=False)
    if missing or unexpected:
        raise MtlReError(f"model.encoder: weights do not fit its config (missing {missing}, unexpected {unexpected})")
    return model


AutoConfig.register(MtlReConfig.model_type, MtlReConfig)
AutoModel.register(MtlReConfig, MtlReModel)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def checkpoint_folder(path: str) -> Path:
    """The CKPT directory that a path means: itself, or the `model/` of a run.

    Raises:
        MtlReError: no checkpoint lies there.
    """
    folder = Path(path)
    found = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    for name in ("config.json", files.WEIGHTS, "tokenizer_config.json"):
        if not (found / name).is_file():
            raise MtlReError(f"{path}: no {name} there; give the model/ folder of a run, or an exported directory")
    return found


def load(path: str) -> tuple[MtlReModel, Any]:
    """Model (eval mode, fp32) and tokenizer of a CKPT directory or hub id. Runs no code and unpickles nothing.

    Raises:
        MtlReError: not a checkpoint of ours, damaged, or asking for what `trust` refuses.
    """
    if not Path(path).exists():
        path = fetch_checkpoint(path)
    path = str(checkpoint_folder(path))
    config, stored = checked(Path(path))
    files.check_weights(Path(path))
    try:
        check_shapes(Path(path), _shapes(config), stored)
        loaded: Any = MtlReModel.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        model, info = loaded
        if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
            raise MtlReError(f"{path}: model.safetensors does not fit config.json ({', '.join(wrong[:3])})")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if len(tokenizer) > (known := model.encoder.get_input_embeddings().num_embeddings):
            raise MtlReError(f"{path}: the tokenizer has {len(tokenizer):,} pieces, the encoder knows {known:,}")
    except MtlReError as error:
        raise error if path in str(error) else MtlReError(f"{path}: {error}") from error
    except Exception as error:  # transformers, safetensors and json each raise their own kinds for a damaged file
        raise MtlReError(f"{path}: not loadable as an mtl-re checkpoint ({first_line(error)})") from error
    model.eval()
    return model, tokenizer


def save(network: Any, tokenizer: Any, folder: Path) -> None:
    """Write a network, the SHA-256 of its weights, and its tokenizer: of an `MtlReModel`, the inverse of `load`."""
    network.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # safetensors makes files that only their owner can read
        file.chmod((folder / "config.json").stat().st_mode)
    files.seal_weights(folder)
    tokenizer.save_pretrained(folder)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a config asks for; none is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in MtlReModel(MtlReConfig(**config)).state_dict().items()}


def fetch_checkpoint(name: str, *graphs: str) -> str:
    """Download a hub id's checkpoint and return its directory: weights, config, tokenizer, and no other file.

    Args:
        graphs: File names of exported graphs to download as well.

    Raises:
        MtlReError: The name is no hub id, or the hub does not give the files.
    """
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise MtlReError(f"{name}: no such checkpoint directory")
    patterns = ["*.json", "*.txt", "*.model", files.WEIGHTS, *(f"{graph}*" for graph in graphs)]
    try:
        return snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # the hub client raises dozens of kinds
        raise MtlReError(f"{name}: not loadable as an mtl-re checkpoint ({first_line(error)})") from error


# ---- logits of all heads in one tensor ---------------------------------------------------------------------------


def join_heads(logits: Mapping[str, Tensor], taxonomy: Taxonomy) -> Tensor:
    """Lay the logits of all heads side by side: by head (batch, classes) → (batch, all heads' classes)."""
    return torch.cat([logits[head.name] for head in taxonomy.heads], dim=-1)


def split_heads(side_by_side: Tensor, taxonomy: Taxonomy) -> dict[str, Tensor]:
    """Return each head's columns (batch, classes): the inverse of `join_heads`."""
    parts = side_by_side.split([len(head.classes) for head in taxonomy.heads], dim=-1)
    return {head.name: part for head, part in zip(taxonomy.heads, parts, strict=True)}
