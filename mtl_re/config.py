"""Every option, as typed dataclasses: one per group of `train`, one per other command.

The text under a field is its `--help`. Types and bounds are checked here, before anything heavy is imported;
names that a registry owns (`loss.kind`, `model.pooling`, ...) are checked against the registry by the command.
No torch: `mtl-re --help` reads this file and nothing below it.
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


@dataclass
class DataConfig:
    """Rows: where they come from and how a row becomes model input."""

    train: str = ""
    """Training rows: a path (.json, .jsonl, .csv, .parquet, each also .gz), `hub:DATASET/CONFIG:SPLIT` or
    `sample:train`."""
    valid: str | None = None
    """Validation rows, in the same forms. None: split `valid_fraction` off the training rows, by sentence."""
    valid_fraction: float = 0.1
    """Share of the training rows held out when `valid` is None (0: no validation, the last model is kept)."""
    fold: str | None = None
    """`k/K`: hold out the k-th of K parts of the training rows, by sentence, instead of `valid_fraction`. K runs, each
    with another fold, validate on every row once, and `mtl-re predict RUN1 RUN2 ...` lets them vote."""
    max_length: int = 256
    """Longest input in tokens, special tokens included; longer sentences are cut around the two entities."""
    markers: str = "typed_punct_ko"
    """How the two entities are marked: typed_punct_ko, typed_punct, entity_punct, special, typed_special."""
    query: bool = False
    """Append a question about the two entities as a second segment."""
    on_bad_row: OnBadRow = "error"
    """`error`: stop and name the bad rows. `skip`: count them and write them to rejected.jsonl."""
    on_overlap: Literal["drop", "error"] = "drop"
    """Training rows that are validation rows too (same sentence, same spans): `drop` and count them, or `error`."""
    limit: int | None = None
    """Use this many training rows only, drawn by `split_seed` (None: all)."""
    split_seed: int = 42
    """Seed of `limit` and of the validation split; apart from `train.seed`, so that the seeds of a study share rows."""

    def __post_init__(self) -> None:
        _between("data.valid_fraction", self.valid_fraction, 0, 0.9)
        _between("data.max_length", self.max_length, 8, 65536)
        _between("data.split_seed", self.split_seed, 0, 2**32 - 1)
        if self.limit is not None:
            _between("data.limit", self.limit, 1, math.inf)
        if self.fold is not None:
            _check_fold(self.fold)
            if self.valid is not None:
                raise MtlReError("data.fold: holds training rows out, but data.valid is set too; give one of them")

    @property
    def validated(self) -> bool:
        """Whether there are rows to choose a model by."""
        return self.valid is not None or self.fold is not None or self.valid_fraction > 0


@dataclass
class ModelConfig:
    """The network: one encoder, a pair vector, one linear layer a head."""

    encoder: str = "klue/roberta-large"
    """A hub id, a local directory, or `scratch:tiny` (a small encoder and vocabulary made from the training text)."""
    heads: str = "hierarchical"
    """`hierarchical` (from the labels' prefixes), `flat` (one head over all labels), or a YAML file with a two-level
    map."""
    pooling: str = "markers"
    """Token states → pair vector: cls, markers, cls_markers, markers_both, mean, cls_mean."""
    dropout: float = 0.1
    """Dropout before the hidden layer of the pair vector and before the heads (the encoder keeps its own)."""
    dropout_samples: int = 1
    """Draws of that dropout for each training row; the loss is their mean (multi-sample dropout, Inoue 2019)."""

    def __post_init__(self) -> None:
        _between("model.dropout", self.dropout, 0, 0.9)
        _between("model.dropout_samples", self.dropout_samples, 1, 64)


@dataclass
class LossConfig:
    """The joint loss. Weights are normalised to sum to the number of heads: only their ratios matter."""

    kind: str = "cross_entropy"
    """Loss of one head on one row: cross_entropy, focal."""
    reduction: Literal["joint", "per_head"] = "joint"
    """`joint`: every head divides by the rows of the step, so unit weights give the NLL of the product distribution.
    `per_head`: every head divides by its own labelled rows."""
    weighting: str = "fixed"
    """How head weights move during training, starting from `weights`: fixed, uncertainty, dwa, rlw, famo."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each head by name (coarse, org, per; a head not named: 1; 0: the head is not trained at all)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over a head's classes."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss (Lin et al. 2017); 0 is cross entropy."""
    rdrop: float = 0.0
    """α: every row is read twice under other dropout, and α times the symmetric KL divergence of the two answers of
    each head is added to its loss (R-Drop, Liang et al. 2021; twice the time, 0 is off)."""

    def __post_init__(self) -> None:
        _between("loss.label_smoothing", self.label_smoothing, 0, 0.9)
        _between("loss.focal_gamma", self.focal_gamma, 0, 10)
        _between("loss.rdrop", self.rdrop, 0, 1000)
        for name, weight in self.weights.items():
            _between(f"loss.weights.{name}", weight, 0, 1e6)


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 2.0e-5
    """Peak learning rate of the encoder."""
    head_lr: float | None = None
    """Peak learning rate of the pair layer and the heads (None: `lr`)."""
    weight_decay: float = 0.01
    """Decoupled decay; biases and normalisation weights are not decayed."""
    beta2: float = 0.999
    """Decay of Adam's second moment. Smaller ones forget sooner, so that a growing gradient does not meet a rate
    made for smaller ones: 0.98 (as RoBERTa) where a high rate breaks runs."""
    warmup: float = 0.1
    """Share of all steps over which the rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the rate after warmup; linear and cosine end at 0."""
    layer_decay: float = 1.0
    """Factor on the rate for each encoder layer further from the heads (1: none)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm (0: not clipped)."""

    def __post_init__(self) -> None:
        _between("optim.lr", self.lr, 0, 1)
        if self.head_lr is not None:
            _between("optim.head_lr", self.head_lr, 0, 1)
        _between("optim.weight_decay", self.weight_decay, 0, 10)
        _between("optim.beta2", self.beta2, 0, 0.999999)
        _between("optim.warmup", self.warmup, 0, 1)
        _between("optim.layer_decay", self.layer_decay, 0.01, 1)
        _between("optim.max_grad_norm", self.max_grad_norm, 0, math.inf)


@dataclass
class TrainConfig:
    """The run."""

    run_dir: str | None = None
    """Where the run is written (None: runs/CONFIG-TIME)."""
    epochs: int = 3
    """Passes over the training rows."""
    batch_size: int = 32
    """Rows of one forward pass on one process; a step takes batch_size × processes × accumulate rows."""
    accumulate: int = 1
    """Forward passes a step on each process."""
    precision: Precision = "auto"
    """`auto`: bf16 where the device computes it fast (CUDA >= 8.0, CPU with amx_bf16 or avx512_bf16), else fp16 on
    CUDA, else fp32 (`no`)."""
    seed: int = 42
    """Seed of the batch order, the heads' initial weights and dropout."""
    resume: str | None = None
    """`auto`: go on from the newest whole checkpoint of `run_dir`, if there is one; or a checkpoint's path."""
    save_every: int | Literal["epoch"] = "epoch"
    """Write a resumable checkpoint each epoch, or every so many steps."""
    keep: int = 2
    """Resumable checkpoints kept."""
    compile: bool = False
    """Compile the encoder with torch.compile."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    early_stop: int | None = None
    """Stop after this many evaluations without a better `eval.metric` (None: never)."""
    max_steps: int | None = None
    """Stop after this many steps, the schedule ending there too (None: `epochs` decides)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.99: it is what is evaluated and kept, while the
    weights themselves go on learning (0: none)."""
    workers: int = 0
    """Processes that pad batches ahead of the model (0: the training process does)."""
    on_bad_step: Literal["stop", "rollback"] = "stop"
    """A step whose loss or gradient is not finite, or spikes (`spike`): `stop`, or `rollback` to the newest whole
    checkpoint and go on from there without that step's rows."""
    spike: float | None = None
    """A gradient norm above this many times the median of the last 50 steps is a bad step too (None: it is not)."""
    max_rollbacks: int = 5
    """Steps that `on_bad_step: rollback` may leave out; the next bad one stops the run."""

    def __post_init__(self) -> None:
        _between("train.epochs", self.epochs, 1, 100_000)
        _between("train.batch_size", self.batch_size, 1, 1_000_000)
        _between("train.accumulate", self.accumulate, 1, 1_000_000)
        _between("train.seed", self.seed, 0, 2**32 - 1)
        _between("train.keep", self.keep, 1, 1_000_000)
        _between("train.ema", self.ema, 0, 0.999999)
        _between("train.workers", self.workers, 0, 256)
        _between("train.max_rollbacks", self.max_rollbacks, 0, 1_000_000)
        if self.spike is not None:
            _between("train.spike", self.spike, 1, math.inf)
        for name in ("early_stop", "max_steps", "save_every"):
            if isinstance(value := getattr(self, name), int):
                _between(f"train.{name}", value, 1, math.inf)


@dataclass
class EvalConfig:
    """Evaluation during training, and how the best model is chosen."""

    every: int | Literal["epoch"] = "epoch"
    """Evaluate each epoch, or every so many steps (and at the end in any case)."""
    gate: Gate = "hard"
    """How a label is read off the product probabilities; kept in the checkpoint as its default."""
    metric: Literal["micro_f1", "auprc", "macro_f1", "accuracy"] = "micro_f1"
    """The best model is the one with the highest value of this."""
    target_prior: list[float] | None = None
    """Shares of the coarse classes, in taxonomy order, to which validation rows are re-weighted when the best model is
    chosen (KLUE-RE dev is about 0.6, 0.17, 0.23 while train is 0.29, 0.32, 0.39). None: rows count as they come."""
    batch_size: int = 128
    """Rows of one forward pass of an evaluation."""

    def __post_init__(self) -> None:
        _between("eval.batch_size", self.batch_size, 1, 1_000_000)
        if isinstance(self.every, int):
            _between("eval.every", self.every, 1, math.inf)
        if self.target_prior is not None:
            check_shares("eval.target_prior", self.target_prior)


@dataclass
class TrackingConfig:
    """Where figures go besides metrics.jsonl, which is always written."""

    trackers: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    """Extra trackers; wandb runs offline where it has no key or no network, and says where the run lies."""
    project: str = "mtl-re"
    """Project name for the trackers."""
    group: str | None = None
    """wandb's group of the run, such as all seeds of an arm (`mtl-re ablate` says STUDY/ARM; None: WANDB_RUN_GROUP)."""
    artifact: bool = True
    """Send `model/` to wandb at the end, as an artifact named after the run."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        _between("tracking.log_every", self.log_every, 1, math.inf)


@dataclass
class Config:
    """Everything `mtl-re train` needs."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.train.early_stop is not None and not self.data.validated:
            raise MtlReError("train.early_stop: there are no validation rows to stop by; give data.valid_fraction")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to `config.yaml`."""
        return asdict(self)


@dataclass
class AdaptDataConfig:
    """The text an encoder is adapted to."""

    train: str = ""
    """Rows with entities, or with `text` or `sentence` (a path or `hub:DATASET/CONFIG:SPLIT`, as for train), a .txt
    file (a text a line) or a folder of them. A text counts once, however often it stands there."""
    held_out: float = 0.02
    """Share of the texts kept out of training, on which loss and perplexity are measured (0: none, the last model is
    kept)."""
    max_length: int = 256
    """Tokens of a block, special tokens included; longer texts are cut into several."""
    packing: Literal["greedy", "none"] = "greedy"
    """`greedy`: texts follow each other in a block while they fit whole. `none`: a block holds one text."""
    exclude_words: int = 8
    """A text that shares this many consecutive words with an `exclude` sentence is dropped (a shorter sentence: the
    whole of it)."""
    limit: int | None = None
    """Use this many texts only, drawn by `split_seed` (None: all)."""
    on_bad_row: OnBadRow = "error"
    """`error`: stop at a bad row. `skip`: count it and write it to rejected.jsonl."""
    split_seed: int = 42
    """Seed of `limit` and of the texts held out."""

    def __post_init__(self) -> None:
        _between("data.held_out", self.held_out, 0, 0.9)
        _between("data.max_length", self.max_length, 8, 65536)
        _between("data.exclude_words", self.exclude_words, 1, 1000)
        _between("data.split_seed", self.split_seed, 0, 2**32 - 1)
        if self.limit is not None:
            _between("data.limit", self.limit, 1, math.inf)


@dataclass
class AdaptModelConfig:
    """What is adapted."""

    encoder: str = "klue/roberta-large"
    """A hub id or a local directory with a masked-LM head, or `scratch:tiny|mini|small|base` (a new encoder; its
    vocabulary is made from the text)."""
    vocabulary: int = 16_000
    """Pieces of a new encoder's vocabulary (more where the text has more different characters)."""

    def __post_init__(self) -> None:
        _between("model.vocabulary", self.vocabulary, 100, 1_000_000)


@dataclass
class MaskConfig:
    """What is hidden and has to be guessed (Devlin et al. 2019: 80 % masked, 10 % replaced, 10 % left)."""

    units: Literal["token", "whole_word"] = "whole_word"
    """What is hidden as one: a token, or a word (a run of letters and digits, or one other sign)."""
    entities: bool | float = False
    """Hide the entity spans of relation rows as one: true (with `probability`), or the share of spans hidden."""
    probability: float = 0.15
    """Share of the units hidden."""

    def __post_init__(self) -> None:
        _between("mask.probability", self.probability, 0.001, 0.9)
        _between("mask.entities", self.entities, 0, 1)


@dataclass
class AdaptTrainConfig:
    """The run of an adaptation."""

    run_dir: str | None = None
    """Where the run is written (None: runs/CONFIG-TIME)."""
    epochs: int = 3
    """Passes over the text; the masks of each are new."""
    batch_size: int = 32
    """Blocks of one forward pass on one process; a step takes batch_size × processes × accumulate blocks."""
    accumulate: int = 1
    """Forward passes a step on each process."""
    precision: Precision = "auto"
    """As train.precision of `mtl-re train`: bf16 where it is fast, else fp16 on CUDA, else fp32 (`no`)."""
    seed: int = 42
    """Seed of the order, the masks, dropout and a new encoder's weights."""
    resume: str | None = None
    """`auto`: go on from the newest whole checkpoint of `run_dir`, if there is one; or a checkpoint's path."""
    save_every: int | Literal["epoch"] = "epoch"
    """Write a resumable checkpoint each epoch, or every so many steps."""
    evaluate_every: int | Literal["epoch"] = "epoch"
    """Measure the held-out loss each epoch, or every so many steps (and before the first and after the last)."""
    keep: int = 2
    """Resumable checkpoints kept."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    max_steps: int | None = None
    """Stop after this many steps, the schedule ending there too (None: `epochs` decides)."""

    def __post_init__(self) -> None:
        _between("train.epochs", self.epochs, 1, 100_000)
        _between("train.batch_size", self.batch_size, 1, 1_000_000)
        _between("train.accumulate", self.accumulate, 1, 1_000_000)
        _between("train.seed", self.seed, 0, 2**32 - 1)
        _between("train.keep", self.keep, 1, 1_000_000)
        for name in ("max_steps", "save_every", "evaluate_every"):
            if isinstance(value := getattr(self, name), int):
                _between(f"train.{name}", value, 1, math.inf)


@dataclass
class AdaptConfig:
    """Everything `mtl-re adapt` needs."""

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
    """Where figures go."""
    exclude: list[str] = field(default_factory=list)
    """Evaluation sentences: texts that share words with them are dropped and counted."""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to `config.yaml`."""
        return asdict(self)


def groups(options: type) -> dict[str, Any]:
    """Return the groups of `options`: the fields that are dataclasses themselves, by name."""
    return {field.name: field.default_factory for field in fields(options) if is_dataclass(field.default_factory)}


GROUPS, ADAPT_GROUPS = groups(Config), groups(AdaptConfig)


@dataclass
class SampleConfig:
    """Options of `mtl-re sample`."""

    train: int = 1600
    """Training rows."""
    valid: int = 300
    """Validation rows."""
    test: int = 300
    """Test rows."""
    seed: int = 0
    """The corpus is a function of this seed and the sizes."""

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test"):
            _between(name, getattr(self, name), 1, 1_000_000)


@dataclass
class EvaluateConfig:
    """Options of `mtl-re evaluate`."""

    data: str
    """Labelled rows (see `mtl-re train --help` for the forms)."""
    output: str | None = None
    """Write the metrics here as JSON."""
    gate: Gate | None = None
    """`hard` or `soft` (None: the checkpoint's own)."""
    prior: str = "none"
    """Coarse prior of these rows: `none` (as trained), `em` (estimated from these rows without their labels;
    transductive, and named so in the output), or shares in taxonomy order (`0.6,0.17,0.23`)."""
    restrict: Restrict = "none"
    """`subject_type`: rule labels out whose coarse class does not take subjects of the row's type."""
    threshold: Literal["none", "stored"] = "none"
    """`stored`: use the relation threshold that `mtl-re calibrate` left in the checkpoint."""
    compose: list[str] | None = None
    """One checkpoint a head instead of one for all (`--compose coarse=A org=B per=C`)."""
    predictions: str | None = None
    """Write one prediction a row here (.jsonl)."""
    batch_size: int = 128
    """Rows of one forward pass."""
    precision: Precision = "no"
    """Arithmetic of the forward pass (`no`: fp32)."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals (0: none)."""
    on_bad_row: OnBadRow = "error"
    """Stop at a bad row, or count it and go on."""

    def __post_init__(self) -> None:
        _between("batch_size", self.batch_size, 1, 1_000_000)
        _between("resamples", self.resamples, 0, 1_000_000)


@dataclass
class PredictConfig:
    """Options of `mtl-re predict`."""

    data: str
    """Rows, labelled or not."""
    output: str
    """.csv: contest submission (id, pred_label, probs); .jsonl or .parquet: id, label, score, coarse, probs."""
    gate: Gate | None = None
    """`hard` or `soft` (None: the first checkpoint's own)."""
    prior: str = "none"
    """Coarse prior of these rows: `none`, or shares in taxonomy order (`0.6,0.17,0.23`)."""
    restrict: Restrict = "none"
    """`subject_type`: rule labels out whose coarse class does not take subjects of the row's type."""
    threshold: Literal["none", "stored"] = "none"
    """`stored`: use the relation threshold that `mtl-re calibrate` left in the checkpoint."""
    compose: list[str] | None = None
    """One checkpoint a head instead of one for all (`--compose coarse=A org=B per=C`)."""
    label_order: LabelOrder | None = None
    """Order of the probabilities (None: boostcamp in a .csv where the labels are KLUE's, else the checkpoint's)."""
    batch_size: int = 128
    """Rows of one forward pass."""
    window: int = 4096
    """Rows sorted by length together and then put on the disk: memory, and what a kill costs, grow with it, not with
    the input (fewer pad more: by 6 % at 4096, by 21 % at 1024)."""
    precision: Precision = "no"
    """Arithmetic of the forward pass (`no`: fp32)."""
    on_bad_row: OnBadRow = "error"
    """Stop at a bad row, or leave it out of the output, count it and list it in OUTPUT.rejected.jsonl."""
    resume: bool = False
    """Go on with an interrupted prediction of the same rows by the same checkpoints and options."""

    def __post_init__(self) -> None:
        _between("batch_size", self.batch_size, 1, 1_000_000)
        _between("window", self.window, 1, 10_000_000)


@dataclass
class AblateConfig:
    """Options of `mtl-re ablate`."""

    workers: int = 1
    """Worker processes on this machine; each trains one cell at a time."""
    launch: str = ""
    """Words before `-m mtl_re train` in a cell's command, such as `accelerate launch --num_processes 2` (empty: this
    Python)."""
    report: bool = False
    """Train nothing: write the report from the cells that are finished."""
    retry: bool = False
    """Run failed cells again."""
    resamples: int = 10_000
    """Bootstrap resamples of the rows for each comparison."""

    def __post_init__(self) -> None:
        _between("workers", self.workers, 1, 1024)
        _between("resamples", self.resamples, 1, 1_000_000)


@dataclass
class CalibrateConfig:
    """Options of `mtl-re calibrate`."""

    data: str | None = None
    """Labelled rows that training did not see and that will not be scored; not given: those that the run held out."""
    prior: str = "none"
    """Target prior for the threshold: `none`, or shares in taxonomy order (`0.6,0.17,0.23`)."""
    unlabelled: str | None = None
    """Estimate the target prior from these rows by EM, with BBSE as a cross-check (labels, if any, are not read)."""
    output: str | None = None
    """Directory for calibration.json and the reliability picture."""
    store: bool = True
    """Write temperatures and threshold into the checkpoint."""
    batch_size: int = 128
    """Rows of one forward pass."""

    def __post_init__(self) -> None:
        _between("batch_size", self.batch_size, 1, 1_000_000)


@dataclass
class CompareConfig:
    """Options of `mtl-re compare`."""

    resamples: int = 10_000
    """Bootstrap resamples of the rows."""
    seed: int = 0
    """Seed of the resampling."""

    def __post_init__(self) -> None:
        _between("resamples", self.resamples, 1, 1_000_000)


@dataclass
class ErrorsConfig:
    """Options of `mtl-re errors`."""

    output: str
    """Directory for errors.md and its pictures."""
    data: str | None = None
    """The rows that were predicted, in the same order: for sentences, lengths, entity types, and for gold labels where
    the predictions have none. None: what the predictions alone can tell."""
    examples: int = 5
    """Rows quoted of each kind of error, the most confident first (0: none)."""
    heads: str = "hierarchical"
    """The label set, as model.heads."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals (0: none)."""
    on_bad_row: OnBadRow = "error"
    """Stop at a bad row of `data`, or leave it out, as the predictions did."""

    def __post_init__(self) -> None:
        _between("examples", self.examples, 0, 1000)
        _between("resamples", self.resamples, 0, 1_000_000)


@dataclass
class ExtractConfig:
    """Options of `mtl-re extract`."""

    sentence: str
    """The sentence."""
    entity: list[str]
    """The entities in it: WORD:TYPE, or WORD@START:TYPE where the word stands several times (START counts characters
    from 0)."""
    threshold: float = 0.5
    """Least probability of a triple's relation."""
    gate: Gate | None = None
    """`hard` or `soft` (None: the checkpoint's own)."""
    prior: str = "none"
    """Coarse prior of such pairs: `none`, or shares in taxonomy order (`0.6,0.17,0.23`)."""
    restrict: Restrict = "none"
    """`subject_type`: rule labels out whose coarse class does not take subjects of the pair's type."""
    format: Literal["text", "json"] = "text"
    """`text`: score, subject, relation, object, tabs between; `json`: one object a line."""

    def __post_init__(self) -> None:
        _between("threshold", self.threshold, 0, 1)


@dataclass
class CooccurrenceConfig:
    """Options of `mtl-re cooccurrence`."""

    data: str | None = None
    """The rows that were predicted, in the same order: for entity types, and for gold labels where the predictions
    have none."""
    output: str | None = None
    """Write the rates here as JSON (what `mtl-re export --cooccurrence` takes)."""
    threshold: float | None = None
    """The rate is of rows whose 1 - p(no_relation) reaches this (None: of rows predicted as related)."""
    thresholds: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    """Thresholds with a row of their own."""
    heads: str = "hierarchical"
    """The label set, as model.heads."""
    on_bad_row: OnBadRow = "error"
    """Stop at a bad row of `data`, or leave it out, as the predictions did."""

    def __post_init__(self) -> None:
        for value in [*self.thresholds, *([] if self.threshold is None else [self.threshold])]:
            _between("threshold", value, 0, 1)


@dataclass
class DemoConfig:
    """Options of `mtl-re demo`."""

    host: str = "127.0.0.1"
    """Address to listen on; only this machine reaches the default one. The page asks for no password."""
    port: int = 7860
    """Port to listen on (0: any free one)."""
    max_rows: int = 10_000
    """Rows of an uploaded file."""
    max_megabytes: float = 20.0
    """Size of an uploaded file."""
    batch_size: int = 32
    """Rows of one forward pass."""

    def __post_init__(self) -> None:
        _between("port", self.port, 0, 65_535)
        _between("max_rows", self.max_rows, 1, 10_000_000)
        _between("max_megabytes", self.max_megabytes, 0.001, 10_000)
        _between("batch_size", self.batch_size, 1, 1_000_000)


@dataclass
class ExportConfig:
    """Options of `mtl-re export`."""

    onnx: bool = False
    """Write model.onnx: token ids to probabilities and label in one graph, checked against PyTorch."""
    int8: bool = False
    """Write model.int8.onnx too (implies `onnx`), refused where it loses more than `int8_bound` or `int8_changed`."""
    check_data: str = "sample:valid"
    """Rows on which the graphs are checked; labelled ones for `int8`. Take held-out rows of the model's own kind."""
    int8_bound: float = 1.0
    """Points of F1 and of AUPRC that int8 may lose on `check_data`."""
    int8_changed: float = 2.0
    """Percent of `check_data` whose label int8 may change."""
    force: bool = False
    """Keep an int8 graph that is over the bounds."""
    prior: str = "none"
    """Coarse prior inside the graph: `none` (as trained), or shares in taxonomy order (`0.6,0.17,0.23`)."""
    threshold: Literal["none", "stored"] = "none"
    """`stored`: use the relation threshold that `mtl-re calibrate` left in the checkpoint inside the graph."""
    average: str | None = None
    """`last:3`: the mean of the weights of the run's last three training checkpoints (under `train.ema` too the weights
    themselves, not their average) instead of its best model."""
    metrics: str | None = None
    """Scores for the model card: the JSON of `mtl-re evaluate --output`."""
    metrics_data: str | None = None
    """What rows `metrics` was measured on, in words (`KLUE-RE dev-open`); None: the name of the file."""
    cooccurrence: str | None = None
    """False-relation rate for the model card: the JSON of `mtl-re cooccurrence --output`."""
    licence: str | None = None
    """Licence of the weights for the model card, as the hub calls it (`cc-by-4.0`); None: KLUE's where the name of the
    training file says KLUE, else `other`."""
    overwrite: bool = False
    """Replace an older export in DIR."""
    push_to_hub: str | None = None
    """Upload the directory to this hub repository (NAME or OWNER/NAME); the token is huggingface_hub's own."""
    private: bool = False
    """Make the hub repository private."""

    def __post_init__(self) -> None:
        _between("int8_bound", self.int8_bound, 0, 100)
        _between("int8_changed", self.int8_changed, 0, 100)
        if self.prior not in ("none", "em"):
            parse_shares("prior", self.prior)


def parse_config(options: Mapping[str, Any]) -> Config:
    """Nested options → `Config`, by the parser of `mtl-re train`.

    Raises:
        MtlReError: an unknown key, a value of the wrong type or out of range.
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
    """`0.6,0.17,0.23` (or a list, as YAML gives it) → shares.

    Args:
        name: the option, for the message.

    Raises:
        MtlReError: not numbers, not positive, or they do not sum to 1.
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


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # False for NaN as well
        raise MtlReError(f"{name}: {value} is out of range; expected {low} to {high:g}")
