"""Every option, as typed dataclasses: one for each group of `train` and `adapt`, one for each other command.

The text under a field is its `--help`. Types and ranges are checked here, before anything heavy is imported; names that
a registry holds (`loss.kind`, `model.pooling`, ...) are checked against the registry by the command. This file imports
no torch, so that `mtl-re --help` is quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal

from mtl_re.errors import MtlReError

Gate = Literal["hard", "soft"]
Precision = Literal["auto", "no", "fp16", "bf16"]
OnBadRow = Literal["error", "skip"]
LabelOrder = Literal["klue", "boostcamp"]
Restrict = Literal["none", "subject_type"]
Backend = Literal["torch", "onnx", "onnx-int8"]


def within(low: float, high: float, default: Any) -> Any:
    """Return a dataclass field whose number, or numbers in a list or map, `Options` checks to lie in a range."""
    given = {"default_factory": default.copy} if isinstance(default, list | dict) else {"default": default}
    return field(**given, metadata={"range": (low, high)})


class Options:
    """Options whose ranges are checked when they are made; `group` stands before their names in messages."""

    _group = ""

    def __init_subclass__(cls, group: str = "") -> None:
        if group:
            cls._group = f"{group}."

    def __post_init__(self) -> None:
        for option in fields(self):  # type: ignore[arg-type] # every subclass is a dataclass
            if (limits := option.metadata.get("range")) is not None:
                _check_range(f"{self._group}{option.name}", getattr(self, option.name), *limits)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_range(f"{name}.{key}", inner, low, high)
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not low <= number <= high:  # False for NaN as well
            raise MtlReError(f"{name}: {number} is out of range; expected {low} to {high:g}")


@dataclass(kw_only=True)
class ReadingConfig(Options):
    """How rows are read that are not written as KLUE-RE's are."""

    span_ends: Literal["inclusive", "exclusive"] = "inclusive"
    """Whether an entity's end (`end_idx` of a row, `end` in a document) is its last character, as in KLUE-RE, or the
    one behind it."""
    first_character: Literal[0, 1] = 0
    """Number of a sentence's first character."""
    normalise: Literal["none", "nfc"] = "none"
    """`nfc`: compose characters that are written in parts (Hangul as macOS writes it, NFD), and map the spans."""


@dataclass
class DataConfig(ReadingConfig, group="data"):
    """The rows: where they come from, and how one becomes model input."""

    train: str = ""
    """Training rows: a path (.json, .jsonl, .csv, .tsv, .parquet, each also .gz), `hub:DATASET/CONFIG:SPLIT`
    or `sample:train`."""
    valid: str | None = None
    """Validation rows, in the same forms (null: hold `valid_fraction` of the training rows out, by sentence)."""
    valid_fraction: float = within(0, 0.9, 0.1)
    """Share of the training rows that is held out when `valid` is None (0: no validation; the last model is kept)."""
    fold: str | None = None
    """`k/K`: hold out the k-th of K parts of the training rows, by sentence, instead of `valid_fraction`. K runs, each
    with another fold, validate on every row once, and `mtl-re predict RUN1 RUN2 ...` averages their probabilities."""
    max_length: int = within(8, 65536, 256)
    """Longest input in tokens, special tokens included; a longer sentence is cut around its two entities."""
    markers: str = "typed_punct_ko"
    """How the two entities are marked in the text: typed_punct_ko, typed_punct, entity_punct, special,
    typed_special; or behind it: levitated, under which all pairs of a sentence share a forward pass."""
    query: bool = False
    """Append a question about the two entities as a second text segment."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used: `error` stops and names it; `skip` counts it and lists it in rejected.jsonl."""
    on_overlap: Literal["drop", "error"] = "drop"
    """A training row that is a validation row too (same sentence, same spans): `drop` it and count it, or `error`."""
    max_unknown: float = within(0, 1, 0.5)
    """Stop where more than this share of the training text's tokens is unknown to the encoder's vocabulary."""
    limit: int | None = within(1, math.inf, None)
    """Number of rows of `data.train` to use, drawn by `split_seed` (null: all). Validation rows (`valid_fraction`,
    `fold`) are held out of these."""
    split_seed: int = within(0, 2**32 - 1, 42)
    """Seed of `limit` and of the validation split; separate from `train.seed`, so that runs of several seeds share
    rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fold is not None:
            _check_fold(self.fold)
            if self.valid is not None:
                raise MtlReError("data.fold: holds training rows out, but data.valid is set too; give one of them")

    @property
    def validated(self) -> bool:
        """Whether there are rows to choose a model by."""
        return self.valid is not None or self.fold is not None or self.valid_fraction > 0


Evidence = Literal["coarse", "fine"]


@dataclass
class ModelConfig(Options, group="model"):
    """The network: one encoder, a vector for the pair of entities, a classifier for each head."""

    encoder: str = "klue/roberta-large"
    """A hub id, a local directory, a run of mtl-re (its encoder, as trained), or `scratch:tiny|mini|small|base` (a new
    encoder, untrained, whose vocabulary is made from the training text)."""
    init: str | None = None
    """A run or checkpoint of mtl-re to start from, its heads and pair layer included; it takes the place of `encoder`.
    Labels, heads and pooling must be the same (null: new heads)."""
    heads: str = "hierarchical"
    """`hierarchical` (coarse, org and per, from the prefixes of KLUE's labels), `flat` (one head over all labels), or a
    YAML file with a two-level map of labels."""
    pooling: str = "markers"
    """Token states → pair vector: `markers`, the states of both start markers; `markers_both`, of all four; `mean`, the
    means over both marked spans; `cls`, the first token's; `cls_markers`, `cls_markers_both` and `cls_mean`, with the
    first token's in front."""
    marker_init: Literal["random", "type_words"] = "type_words"
    """Vectors with which the marker tokens of `levitated` begin: `type_words`, the means of the words that the default
    markers would write (사람, 단체, ...), or `random`, as the new tokens of the other schemes begin."""
    head_layers: int = within(0, 8, 0)
    """Hidden layers of each head, as wide as the encoder (0: each head is a linear map of the shared pair vector)."""
    gate_evidence: Evidence = "coarse"
    """What a coarse class's logit reads: `coarse`, the coarse head alone; `fine`, the evidence of the class's fine head
    too (its logits' log-mean-exp is added), so that rows of no_relation train the fine heads as well."""
    dropout: float = within(0, 0.9, 0.1)
    """Dropout before and after the hidden layer over the pair vector (the encoder has its own)."""
    dropout_samples: int = within(1, 64, 1)
    """Samples of that dropout for each training row; their losses are averaged (multi-sample dropout, Inoue 2019)."""


@dataclass
class LossConfig(Options, group="loss"):
    """The joint loss. Weights are normalised to sum to the number of heads: only their ratios matter."""

    kind: str = "cross_entropy"
    """Loss of one head on one row: cross_entropy, focal."""
    reduction: Literal["joint", "per_head"] = "joint"
    """`joint`: each head's loss sum is divided by the rows of the step, so that unit weights give the negative
    log-likelihood of the product distribution. `per_head`: it is divided by the rows that have a label for that
    head."""
    weighting: str = "fixed"
    """How the weights of the heads change during training, starting from `weights`: fixed, uncertainty, dwa, rlw,
    famo."""
    weights: dict[str, float] = within(0, 1e6, {})
    """Weight of each head by name: coarse, org, per (a head that is not named: 1; 0: the head is not trained),
    such as `--loss.weights.coarse 2`."""
    class_weights: str = "none"
    """Weights of the classes inside each head's loss: `none`, `balanced` (inverse to their training rows), or a YAML
    file that maps classes to weights (not named: 1). They are scaled to a mean of 1 over the training rows."""
    label_smoothing: float = within(0, 0.9, 0.0)
    """Share of the target probability that is spread evenly over a head's classes."""
    focal_gamma: float = within(0, 10, 2.0)
    """Exponent of the focal loss (Lin et al. 2017); 0 is cross entropy."""
    rdrop: float = within(0, 1000, 0.0)
    """α of R-Drop (Liang et al. 2021): every row passes twice, with different dropout, and α times the symmetric KL
    divergence of each head's two distributions is added to its loss. Takes twice the time (0: off)."""


@dataclass
class OptimConfig(Options, group="optim"):
    """AdamW and its schedule."""

    lr: float = within(0, 1, 2.0e-5)
    """Peak learning rate of the encoder."""
    head_lr: float | None = within(0, 1, None)
    """Peak learning rate of the pair layer and the heads (null: `lr`)."""
    weight_decay: float = within(0, 10, 0.01)
    """Decoupled weight decay; biases and normalisation weights are exempt."""
    beta2: float = within(0, 0.999999, 0.999)
    """Decay of Adam's second moment. A smaller value adapts sooner to gradients that grow; take 0.98 (as RoBERTa) where
    a high learning rate makes runs diverge."""
    warmup: float = within(0, 1, 0.1)
    """Share of all steps over which the learning rate rises from 0 to its peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warmup; linear and cosine end at 0."""
    layer_decay: float = within(0.01, 1, 1.0)
    """Factor on the learning rate for each layer further from the heads (1: none)."""
    max_grad_norm: float = within(0, math.inf, 1.0)
    """Gradients are clipped to this global norm (0: no clipping)."""


@dataclass
class RunConfig(Options, group="train"):
    """What the runs of `train` and of `adapt` have in common."""

    run_dir: str | None = None
    """Directory of the run (null: runs/CONFIG-TIME)."""
    epochs: int = within(1, 100_000, 3)
    """Passes over the training rows, or over the text, each with new masks."""
    batch_size: int = within(1, 1_000_000, 32)
    """Most rows (in `adapt`: blocks of text) of one forward pass on one process. A step takes batch_size × processes ×
    accumulate of them, in passes of similar length."""
    accumulate: int = within(1, 1_000_000, 1)
    """A step takes this many times batch_size rows on each process (gradient accumulation)."""
    precision: Precision = "auto"
    """`auto`: bf16 where the device is fast at it (CUDA compute capability 8.0 or more, a CPU with amx_bf16 or
    avx512_bf16), else fp16 on CUDA, else fp32. `no`: fp32."""
    seed: int = within(0, 2**32 - 1, 42)
    """Seed of the order of the rows, of dropout, masks, and new weights (of the heads, or of a new encoder)."""
    resume: str | None = None
    """`auto`: continue from the newest undamaged checkpoint of `run_dir`, if there is one; or the path of a
    checkpoint. With more `epochs` or `max_steps` a finished run is lengthened, under the schedule of its new length."""
    save_every: int | Literal["epoch"] = within(1, math.inf, "epoch")
    """Write a resumable checkpoint every epoch, or every this many steps."""
    keep: int = within(1, 1_000_000, 2)
    """Number of resumable checkpoints that are kept."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: takes less memory, and about a third more time."""
    max_steps: int | None = within(1, math.inf, None)
    """Stop after this many steps, where the learning-rate schedule then ends (null: `epochs` decides)."""


@dataclass
class TrainConfig(RunConfig):
    """The run."""

    compile: bool = False
    """Compile the encoder with torch.compile."""
    early_stop: int | None = within(1, math.inf, None)
    """Stop after this many evaluations without a better `eval.metric` (null: never)."""
    ema: float = within(0, 0.999999, 0.0)
    """Decay of an exponential moving average of the weights, such as 0.99. The average is evaluated and kept as the
    model, the weights themselves are trained further (0: no average)."""
    workers: int = within(0, 256, 0)
    """Processes that prepare batches ahead of the model (0: the training process does it)."""
    on_bad_step: Literal["stop", "rollback"] = "stop"
    """What to do at a bad step, one whose loss or gradient is not finite or whose gradient spikes (`spike`): `stop` and
    name its rows, or `rollback` to the newest undamaged checkpoint and continue without these rows."""
    spike: float | None = within(1, math.inf, None)
    """A step is bad too when its gradient norm exceeds this many times the median of the last 50 steps, such as 10
    (null: only steps that are not finite are)."""
    max_rollbacks: int = within(0, 1_000_000, 5)
    """Number of bad steps that `on_bad_step: rollback` may leave out in a run; the next one stops it."""


@dataclass
class EvalConfig(Options, group="eval"):
    """Evaluation during training, and how the best model is chosen."""

    every: int | Literal["epoch"] = within(1, math.inf, "epoch")
    """Evaluate every epoch, or every this many steps (and always at the end)."""
    gate: Gate = "hard"
    """How the probabilities are decoded into a label: `hard` takes the most probable coarse class first and the best
    label inside it second, `soft` takes the most probable of all labels. The checkpoint keeps it as its default."""
    metric: Literal["micro_f1", "auprc", "macro_f1", "accuracy"] = "micro_f1"
    """The model with the highest value of this metric on the validation rows is kept."""
    target_prior: list[float] | None = None
    """Shares of the coarse classes (no_relation, org, per) to which the validation rows are re-weighted when the best
    model is chosen. KLUE-RE's dev has about 0.6, 0.17, 0.23, its train 0.29, 0.32, 0.39. null: every row counts
    once."""
    batch_size: int = within(1, 1_000_000, 128)
    """Rows of one forward pass in an evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_prior is not None:
            check_shares("eval.target_prior", self.target_prior)


@dataclass
class TrackingConfig(Options, group="tracking"):
    """Where metrics are sent besides metrics.jsonl, which is always written."""

    trackers: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    """Trackers to use; wandb runs offline where it has no API key or no network, and prints the directory of its
    run."""
    project: str = "mtl-re"
    """Project name in the trackers."""
    group: str | None = None
    """Group of the run in wandb, such as all seeds of an arm (`mtl-re ablate` sets STUDY/ARM; None:
    WANDB_RUN_GROUP)."""
    artifact: bool = True
    """Upload `model/` to wandb at the end, as an artifact named after the run."""
    log_every: int = within(1, math.inf, 20)
    """Steps between two lines of metrics.jsonl."""


@dataclass
class Config:
    """All options of `mtl-re train`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.data.query and self.data.markers == "levitated":
            what = "levitated markers leave the text the same for all pairs, and the question would name one of them"
            raise MtlReError(f"data.query: {what}; leave it out")
        if self.model.pooling == "cls" and self.data.markers == "levitated":
            what = "the first token reads the text alone, which is the same for all pairs of a sentence"
            raise MtlReError(f"model.pooling: cls with levitated markers: {what}; take one that reads the markers")
        if self.train.early_stop is not None and not self.data.validated:
            raise MtlReError("train.early_stop: there are no validation rows to stop by; give data.valid_fraction")

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as written to `config.yaml`."""
        return asdict(self)


@dataclass
class AdaptDataConfig(Options, group="data"):
    """The text to which the encoder is adapted."""

    train: str = ""
    """Rows with entities, or with `text` or `sentence` (a path or `hub:DATASET/CONFIG:SPLIT`, as for `train`), a .txt
    file (one text a line), or a directory of such files (names that begin with `.` or `_` are passed over). A repeated
    text is used once."""
    held_out: float = within(0, 0.9, 0.02)
    """Share of the texts held out of training, on which loss and perplexity are measured (0: none; the last model is
    kept)."""
    max_length: int = within(8, 65536, 256)
    """Tokens of a block, special tokens included; a longer text is cut into several blocks."""
    packing: Literal["greedy", "none"] = "greedy"
    """`greedy`: a block is filled with whole texts as long as they fit. `none`: a block holds one text."""
    exclude_words: int = within(1, 1000, 8)
    """A text is dropped when it shares this many consecutive words with a sentence of `exclude`, or contains the whole
    of a shorter one."""
    limit: int | None = within(1, math.inf, None)
    """Number of texts to use, drawn by `split_seed` (null: all)."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used: `error` stops and names it; `skip` counts it and lists it in rejected.jsonl."""
    split_seed: int = within(0, 2**32 - 1, 42)
    """Seed of `limit` and of the held-out texts."""


@dataclass
class AdaptModelConfig(Options, group="model"):
    """The encoder to adapt."""

    encoder: str = "klue/roberta-large"
    """A hub id or a local directory, or `scratch:tiny|mini|small|base` (a new encoder, whose vocabulary is made from
    the text). One that has no masked-LM head gets a new one, tied to its embeddings."""
    vocabulary: int = within(100, 1_000_000, 16_000)
    """Size of a new encoder's vocabulary (larger where the text has more distinct characters)."""


@dataclass
class MaskConfig(Options, group="mask"):
    """The tokens to predict (Devlin et al. 2019: 80 % are masked, 10 % replaced, 10 % left as they are)."""

    units: Literal["token", "whole_word"] = "whole_word"
    """What is masked as a unit: a token, or a word (a run of letters and digits, or any other single character)."""
    entities: bool | float = within(0, 1, False)
    """Mask the entity spans of relation rows as units: true (with `probability`), or the share of spans to mask."""
    probability: float = within(0.001, 0.9, 0.15)
    """Share of the units that is masked."""


@dataclass
class AdaptTrainConfig(RunConfig):
    """The run of an adaptation."""

    evaluate_every: int | Literal["epoch"] = within(1, math.inf, "epoch")
    """Measure the held-out loss every epoch, or every this many steps (and before the first and after the last)."""


@dataclass
class AdaptConfig:
    """All options of `mtl-re adapt`."""

    data: AdaptDataConfig = field(default_factory=AdaptDataConfig)
    """Text."""
    model: AdaptModelConfig = field(default_factory=AdaptModelConfig)
    """Encoder."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Masks."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW; `head_lr` is the masked-LM head's."""
    train: AdaptTrainConfig = field(default_factory=AdaptTrainConfig)
    """The run."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where metrics are sent."""
    exclude: list[str] = field(default_factory=list)
    """Evaluation sentences (any form of data.train; of a directory hidden files too): texts that share words with them
    are dropped and counted."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as written to `config.yaml`."""
        return asdict(self)


def groups(options: type) -> dict[str, Any]:
    """Return the groups of `options`: the fields that are dataclasses themselves, by name."""
    return {field.name: field.default_factory for field in fields(options) if is_dataclass(field.default_factory)}


GROUPS = groups(Config)


@dataclass
class TrimConfig(Options):
    """Options of `mtl-re trim`."""

    text: list[str]
    """Text of the language: rows (a path or `hub:DATASET/CONFIG:SPLIT`, as for `train`), .txt files (one text a line),
    or directories of such files (names that begin with `.` or `_` are passed over)."""
    keep: list[str] = field(default_factory=list)
    """More to keep whatever `text` uses: files, whose pieces are all kept, or pieces by name (`▁단체` or `단체`)."""
    min_count: int = within(1, math.inf, 1)
    """How often `text` must use a piece for it to be kept."""
    held_out: float | str = within(0, 0.9, 0.02)
    """Text on which the loss is measured: a share of `text`, which is not counted then (0: none), or other text in the
    same forms."""
    split_seed: int = within(0, 2**32 - 1, 42)
    """Seed of the held-out share."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used: `error` stops and names it; `skip` counts it and leaves it out."""
    overwrite: bool = False
    """Replace an earlier result of `mtl-re trim` in DIR."""


@dataclass
class SampleConfig(Options):
    """Options of `mtl-re sample`."""

    train: int = within(1, 1_000_000, 1600)
    """Training rows."""
    valid: int = within(1, 1_000_000, 300)
    """Validation rows."""
    test: int = within(1, 1_000_000, 300)
    """Test rows."""
    seed: int = 0
    """Seed of the corpus: the same seed and sizes give the same rows."""


@dataclass
class CheckConfig(ReadingConfig):
    """Options of `mtl-re check`."""

    encoder: str | None = None
    """An encoder that `mtl-re trim` wrote, or a run that began with one: warn where sentences need pieces of its
    vocabulary that were cut."""


@dataclass
class HeadsConfig:
    """Options of `mtl-re heads`."""

    output: str
    """YAML file to write, which `model.heads` and `--heads` take."""


@dataclass
class ConvertConfig:
    """Options of `mtl-re convert`."""

    output: str
    """File to write, one row a line (.jsonl)."""
    columns: str | None = None
    """For `--from columns`: a YAML file that names the columns. `subject` and `object`, each with `start`, `end` and
    perhaps `type` and `word`; `sentence`, `label`, `id`, `source`; `ends: inclusive|exclusive`; `first: 0|1`, the
    number of a sentence's first character."""
    types: str = ""
    """Entity types to rename, such as `PERSON=PER,ORGANIZATION=ORG`; others stay as they are."""
    no_relation: str = "no_relation,Other,NA"
    """Labels that mean "no relation"; they become `no_relation`."""
    pairs: Literal["related", "all"] = "related"
    """For label-studio and doccano: `all` also makes rows of a text's other ordered pairs, as `no_relation`."""


@dataclass
class RayConfig(Options, group="ray"):
    """The Ray cluster of `--engine ray`, and what it writes."""

    address: str | None = None
    """`auto` or HOST:PORT: a running cluster, this machine being one of it (null: that of RAY_ADDRESS if it is set,
    else workers on this machine, which end with the command)."""
    workers: int | None = within(1, 100_000, None)
    """Worker processes, each of which holds the models and works on one file at a time; they share the cluster's cores
    evenly, or take a GPU each where it has GPUs (null: one for each GPU, or without any one for every four cores)."""
    format: Literal["jsonl", "parquet", "csv"] | None = None
    """Format of the output files (null: parquet for a .parquet file, else jsonl)."""


@dataclass(kw_only=True)
class EngineConfig(Options):
    """Where `predict` and `extract` compute."""

    engine: Literal["local", "ray"] = "local"
    """`ray`: workers of a Ray cluster share the files of a folder: `data` is the folder (or one file), and `output` a
    folder that gets one file for each of them. Needs the extra `ray` (see README)."""
    ray: RayConfig = field(default_factory=RayConfig)
    """The cluster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "local" and self.ray != RayConfig():
            raise MtlReError("ray: these options are without effect; give --engine ray too")


@dataclass(kw_only=True)
class DecodingConfig(ReadingConfig):
    """What `evaluate` and `predict` have in common."""

    gate: Gate | None = None
    """`hard` or `soft` (null: as the first checkpoint was trained, `eval.gate`)."""
    prior: str = "none"
    """Prior of the coarse classes in these rows: `none` (as in training), or shares in taxonomy order
    (`0.6,0.17,0.23`). `mtl-re evaluate` also takes `em`: estimated from these rows without their labels, by EM
    (transductive, and reported as such)."""
    restrict: Restrict = "none"
    """`subject_type`: rule labels out whose coarse class does not take subjects of the row's type."""
    threshold: Literal["none", "stored"] = "none"
    """`stored`: use the relation threshold that `mtl-re calibrate` left in the checkpoint, together with the prior that
    it was fitted under."""
    compose: list[str] | None = None
    """One checkpoint for each head instead of one for all (`--compose coarse=A org=B per=C`)."""
    batch_size: int = within(1, 1_000_000, 128)
    """Rows of one forward pass."""
    precision: Precision = "no"
    """Arithmetic of the forward pass (`no`: fp32)."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used: `error` stops and names it; `skip` counts it and leaves it out (`mtl-re predict` lists
    it in OUTPUT.rejected.jsonl)."""


@dataclass
class EvaluateConfig(DecodingConfig):
    """Options of `mtl-re evaluate`."""

    data: str
    """Labelled rows (for the forms see `data.train` in `mtl-re train --help`)."""
    output: str | None = None
    """Write the metrics to this JSON file (null: print them)."""
    predictions: str | None = None
    """Write the predictions to this file (.jsonl), one line a row."""
    resamples: int = within(0, 1_000_000, 1000)
    """Bootstrap resamples for the intervals (0: no intervals)."""


@dataclass
class PredictConfig(DecodingConfig, EngineConfig):
    """Options of `mtl-re predict`."""

    data: str
    """Rows, with or without labels (for the forms see `data.train` in `mtl-re train --help`)."""
    output: str
    """File to write. .csv: a contest submission (id, pred_label, probs); .jsonl or .parquet: id, label, score, coarse,
    probs."""
    weights: str | None = None
    """Weights of several checkpoints in the mean of their probabilities, such as `2,1,1` (null: equal weights)."""
    label_order: LabelOrder | None = None
    """Label order of the probabilities (null: `boostcamp` in a .csv of KLUE's labels, else the checkpoint's order)."""
    window: int = within(1, 10_000_000, 4096)
    """Consecutive rows that are sorted by length together and written to the disk as one part: memory and the work that
    a kill loses grow with it, not with the input (small windows pad more: by 6 % at 4096, by 21 % at 1024)."""
    resume: bool = False
    """Continue an interrupted prediction of the same rows by the same checkpoints and options; the number of processes
    may be another one."""


@dataclass
class VoteConfig:
    """Options of `mtl-re vote`."""

    output: str
    """File to write: .csv (a contest submission), .jsonl or .parquet, as in `mtl-re predict --output`."""
    weights: str | None = None
    """Weight of each file in the mean, such as `2,1,1` (null: equal weights)."""
    gate: Gate = "soft"
    """How the label is picked from the mean: `soft`: the most probable one, whatever gate the files were written under;
    `hard`: the most probable coarse class first, as `mtl-re predict` does under its hard gate."""
    label_order: LabelOrder | None = None
    """Label order of the probabilities in .csv files, read and written (null: `boostcamp` for KLUE's labels, else that
    of --heads)."""


@dataclass
class AblateConfig(Options):
    """Options of `mtl-re ablate`."""

    workers: int = within(1, 1024, 1)
    """Worker processes on this machine; each trains one cell at a time."""
    launch: str = ""
    """Command before `-m mtl_re train` in each cell, such as `accelerate launch --num_processes 2` (empty: this
    Python)."""
    report: bool = False
    """Train nothing, and write the report from the cells that are finished."""
    plan: bool = False
    """Train nothing, and print what the study would train, what it can show, and how long it takes."""
    confirm: int = within(0, 1_000, 0)
    """Train the optimum of the study's design and the baseline with this many fresh seeds each, and report the
    difference (0: run the study itself)."""
    retry: bool = False
    """Run failed cells again."""
    resamples: int = within(1, 1_000_000, 10_000)
    """Bootstrap resamples of the rows in each comparison."""


@dataclass
class CalibrateConfig(ReadingConfig):
    """Options of `mtl-re calibrate`."""

    data: str | None = None
    """Labelled rows that were not trained on and will not be scored (null: those that the run held out)."""
    prior: str = "none"
    """Prior of the coarse classes for which the threshold is fitted: `none` (as in training), or shares in taxonomy
    order (`0.6,0.17,0.23`)."""
    unlabelled: str | None = None
    """Estimate that prior from these rows by EM, with BBSE as a cross-check (labels, if any, are not used)."""
    precision: float | None = within(0, 1, None)
    """Fit a threshold for each relation as well, such that the triples of `mtl-re extract --threshold stored` have this
    precision on rows like these; other text is promised nothing (null: fit none)."""
    output: str | None = None
    """Directory for calibration.json and the reliability picture."""
    on_bad_row: OnBadRow = "error"
    """A row of `data` that cannot be used: `error` stops and names it; `skip` counts it and leaves it out."""
    store: bool = True
    """Store the temperatures and the thresholds in the checkpoint."""
    batch_size: int = within(1, 1_000_000, 128)
    """Rows of one forward pass."""


@dataclass(kw_only=True)
class JoinedRowsConfig(ReadingConfig):
    """A predictions file, and the rows that were predicted."""

    data: str | None = None
    """The predicted rows, in the same order: for sentences and entity types, and for gold labels where the predictions
    have none (null: report what the predictions alone tell)."""
    heads: str = "hierarchical"
    """The label set, as `model.heads` of `mtl-re train`."""
    label_order: LabelOrder | None = None
    """Label order of the probabilities in .csv files (null: `boostcamp` for KLUE's labels, else that of `heads`)."""
    on_bad_row: OnBadRow = "error"
    """A row of `data` that cannot be used: `error` stops and names it; `skip` leaves it out, as the predictions did."""


@dataclass
class CompareConfig(JoinedRowsConfig):
    """Options of `mtl-re compare`."""

    resamples: int = within(1, 1_000_000, 10_000)
    """Bootstrap resamples of the rows."""
    seed: int = within(0, 2**32 - 1, 0)
    """Seed of the resampling."""


@dataclass
class ErrorsConfig(JoinedRowsConfig):
    """Options of `mtl-re errors`."""

    output: str
    """Directory for errors.md and its pictures."""
    examples: int = within(0, 1000, 5)
    """Example rows for each kind of error, the most confident first (0: none)."""
    resamples: int = within(0, 1_000_000, 1000)
    """Bootstrap resamples for the intervals (0: no intervals)."""


Cut = Literal["split", "joined", "whole"]


@dataclass
class ExtractConfig(ReadingConfig, EngineConfig):
    """Options of `mtl-re extract`."""

    sentence: str | None = None
    """One sentence; its triples are printed."""
    entity: list[str] = field(default_factory=list)
    """An entity of `--sentence`, given once for each: WORD:TYPE, or WORD@START:TYPE where the word occurs several times
    (START counts characters from 0)."""
    data: str | None = None
    """Documents instead of one sentence: rows of `id`, `text` and `entities` (a list of start, end, type and perhaps
    word; spans are inclusive characters) in any form that `mtl-re predict` reads; a .txt file; or a directory of .txt
    files."""
    output: str | None = None
    """The triples of `data`, a row each: .jsonl, .csv or .parquet."""
    entities: str | None = None
    """`ner:MODEL`: find entities where a row has no field `entities` (an empty list says that there are none), by
    this token-classification model of transformers, which should tag every subword of a word, not the first alone."""
    ner_types: str | None = None
    """YAML map from the tags of that model to entity types (null: KLUE's and other usual tags)."""
    sentences: Cut = "split"
    """`split`: cut each document into sentences, and ask only pairs inside of one; `joined`: the same for text whose
    lines are hard-wrapped, where a sentence may go on in the next line of its paragraph; `whole`: a row is one
    sentence."""
    threshold: float | Literal["stored"] = within(0, 1, 0.5)
    """Least probability of a triple's relation, which is the pair's most probable one; `stored`: each relation's own,
    fitted to a precision by `mtl-re calibrate --precision` and applied with the prior that they were fitted under."""
    gate: Gate | None = None
    """Without effect: a triple is the pair's most probable relation, whatever the gate. Accepted so that a script can
    give `predict` and `extract` the same options."""
    prior: str = "none"
    """Prior of the coarse classes: `none` (as in training), or shares in taxonomy order (`0.6,0.17,0.23`)."""
    restrict: Restrict = "none"
    """`subject_type`: rule labels out whose coarse class does not take subjects of the pair's type."""
    batch_size: int = within(1, 1_000_000, 128)
    """Pairs of one forward pass."""
    precision: Precision = "no"
    """Arithmetic of the forward pass (`no`: fp32)."""
    window: int = within(1, 10_000_000, 256)
    """Consecutive documents that are worked on together and written to the disk as one part: memory and the work that a
    kill loses grow with it, not with the input."""
    resume: bool = False
    """Continue an interrupted extraction of the same documents with the same options."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used: `error` stops and names it; `skip` leaves it out and lists it in
    OUTPUT.rejected.jsonl."""
    format: Literal["text", "json"] = "text"
    """Of one sentence's triples. `text`: score, subject, relation and object, separated by tabs; `json`: one object a
    line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sentence is None) == (self.data is None):
            raise MtlReError("extract: give one of --sentence TEXT and --data DOCUMENTS")
        if (self.data is None) != (self.output is None):
            raise MtlReError("extract: --data and --output go together: the triples of documents are written to a file")
        if self.sentence is not None and not self.entity and self.entities is None:
            raise MtlReError("extract: give the sentence's entities: --entity WORD:TYPE ..., or --entities ner:MODEL")
        if self.data is not None and self.entity:
            raise MtlReError("extract: --entity is for --sentence; documents have theirs in the rows")
        if self.sentence is not None and (self.span_ends, self.first_character) != ("inclusive", 0):
            raise MtlReError(
                "extract: --span_ends and --first_character are for the spans of --data; --entity has words"
            )
        if self.engine == "ray" and self.data is None:
            raise MtlReError("extract: --engine ray is for --data; one sentence is extracted here")


@dataclass
class CooccurrenceConfig(JoinedRowsConfig):
    """Options of `mtl-re cooccurrence`."""

    output: str | None = None
    """Write the rates to this JSON file, which `mtl-re export --cooccurrence` takes."""
    threshold: float | None = within(0, 1, None)
    """Count a pair as related when 1 - p(no_relation) reaches this (null: when its predicted label is a relation)."""
    thresholds: list[float] = within(0, 1, [number / 10 for number in range(1, 10)])
    """Further thresholds to report."""


@dataclass
class DemoConfig(Options):
    """Options of `mtl-re demo`."""

    host: str = "127.0.0.1"
    """Address to listen on; the default can only be reached from this machine. The page asks for no password."""
    port: int = within(0, 65_535, 7860)
    """Port to listen on (0: any free port)."""
    max_rows: int = within(1, 10_000_000, 10_000)
    """Most rows of an uploaded file."""
    max_megabytes: float = within(0.001, 10_000, 20.0)
    """Largest size of an uploaded file, in MB."""
    entities: str | None = None
    """`ner:MODEL`: find the entities of a text by this token-classification model of transformers."""
    ner_types: str | None = None
    """YAML map from the tags of that model to entity types (null: KLUE's and other usual tags)."""
    max_characters: int = within(1, 1_000_000, 5_000)
    """Most characters of a text whose triples are asked for."""
    max_pairs: int = within(1, 1_000_000, 1_000)
    """Most pairs of entities that such a text may have; each ordered pair of a sentence is scored."""
    batch_size: int = within(1, 1_000_000, 32)
    """Rows of one forward pass."""


@dataclass
class ExportConfig(Options):
    """Options of `mtl-re export`."""

    onnx: bool = False
    """Write model.onnx, one graph from token ids to probabilities and label, checked against PyTorch."""
    int8: bool = False
    """Write model.int8.onnx too (implies `onnx`); refused where it loses more than `int8_bound` or `int8_changed`
    allow."""
    check_data: str = "sample:valid"
    """Rows on which the graphs are checked, labelled for `int8`. Take held-out rows of the kind the model is for."""
    int8_bound: float = within(0, 100, 1.0)
    """Points of F1 and of AUPRC that int8 may lose on `check_data`."""
    int8_changed: float = within(0, 100, 2.0)
    """Share of `check_data`, in percent, whose predicted label int8 may change."""
    force: bool = False
    """Keep an int8 graph that exceeds the bounds."""
    prior: str = "none"
    """Prior of the coarse classes inside the graph: `none` (as in training), or shares in taxonomy order
    (`0.6,0.17,0.23`)."""
    threshold: Literal["none", "stored"] = "none"
    """`stored`: use the relation threshold that `mtl-re calibrate` left in the checkpoint inside the graph, together
    with the prior that it was fitted under."""
    average: str | None = None
    """`last:3`: export the mean of the weights of the run's last three training checkpoints instead of its best model
    (with `train.ema`, of the weights themselves, not of their moving average)."""
    metrics: str | None = None
    """Scores for the model card: the JSON of `mtl-re evaluate --output`."""
    metrics_data: str | None = None
    """Name of the rows on which `metrics` was measured, such as `KLUE-RE dev` (null: the name of the file)."""
    cooccurrence: str | None = None
    """False-relation rate for the model card: the JSON of `mtl-re cooccurrence --output`."""
    licence: str | None = None
    """Licence of the weights for the model card, as the hub names it, such as `cc-by-4.0` (null: KLUE's where the name
    of the training file contains KLUE, else `other`)."""
    overwrite: bool = False
    """Replace an earlier export in DIR."""
    push_to_hub: str | None = None
    """Upload the directory to this hub repository (NAME or OWNER/NAME), with the token that huggingface_hub has
    stored."""
    private: bool = False
    """Make the hub repository private."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior not in ("none", "em"):
            parse_shares("prior", self.prior)
        graph = self.onnx or self.int8
        for name, value in (("prior", self.prior), ("threshold", self.threshold)):
            if value != "none" and not graph:
                what = f"--{name} {value} is applied inside an ONNX graph, and none is written"
                raise MtlReError(f"{what}; add --onnx, or give --{name} when you predict")


def parse_config(options: Mapping[str, Any]) -> Config:
    """Return the `Config` of nested options, by the parser of `mtl-re train`.

    Raises:
        MtlReError: a key is unknown, or a value is of the wrong type or out of its range.
    """
    from jsonargparse import ArgumentError

    try:
        parsed = _parser().parse_object(deepcopy(dict(options)))  # it converts in place
    except (ArgumentError, TypeError, KeyError) as error:
        raise MtlReError(" ".join(str(error).split())) from error
    return Config(**{name: group(**vars(parsed[name])) for name, group in GROUPS.items()})


@cache
def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for name, group in GROUPS.items():
        parser.add_class_arguments(group, name)
    return parser


def parse_shares(name: str, value: str | Sequence[float]) -> list[float]:
    """Return the shares in `0.6,0.17,0.23`, or in a list as YAML gives it.

    Args:
        name: the option, for the message.

    Raises:
        MtlReError: the shares are not numbers, not positive, or do not sum to 1.
    """
    try:
        shares = [float(part) for part in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError) as error:
        raise MtlReError(f"{name}: {value!r}; expected none, em or shares such as 0.6,0.17,0.23") from error
    check_shares(name, shares)
    return shares


def check_shares(name: str, shares: list[float]) -> None:
    """Raise unless `shares` are positive and sum to 1 (within 0.01)."""
    if not shares or any(not math.isfinite(share) or share <= 0 for share in shares) or abs(sum(shares) - 1) > 0.01:
        raise MtlReError(f"{name}: {shares} must be positive shares that sum to 1")


def _check_fold(fold: str) -> None:
    number, slash, folds = fold.partition("/")
    if not (slash and number.isdecimal() and folds.isdecimal() and int(folds) >= 2 and 1 <= int(number) <= int(folds)):
        raise MtlReError(f"data.fold: {fold!r}; expected k/K such as 1/5, k from 1 to K and at least 2 folds")
