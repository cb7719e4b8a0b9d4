"""Config → everything a training needs before its first step: rows, features, model, optimizer, heads' weights.

What any run needs is in `run`. Rows are read by every rank: the batch order is computed from them, not communicated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mtl_re.config import Config
from mtl_re.data import spool
from mtl_re.data.readers import file_digest
from mtl_re.data.splits import Splits, load_splits
from mtl_re.data.validation import BadRow, Example
from mtl_re.errors import MtlReError, RowError, entry
from mtl_re.features import markers
from mtl_re.features.collate import LENGTH_STEP, Collator
from mtl_re.features.feature_cache import cached_table
from mtl_re.features.featurizer import FeatureTable, Featurizer
from mtl_re.files import digest
from mtl_re.model.cpu import allocator_hint, speed_up
from mtl_re.model.network import MtlReModel, parameter_count
from mtl_re.model.pooling import POOLINGS
from mtl_re.scoring.evaluation import gold_indices
from mtl_re.scoring.metrics import prior_weights
from mtl_re.taxonomy import IGNORE, Taxonomy
from mtl_re.training.averaging import WeightAverage
from mtl_re.training.losses import LOSSES, class_weights, normalise
from mtl_re.training.new_model import check_heads, make_model
from mtl_re.training.optimizer import make_optimizer
from mtl_re.training.processes import on_all, overruled_accumulation, overruled_precision
from mtl_re.training.resume import planned_steps, rows_of_a_step
from mtl_re.training.row_warnings import refuse_unknown, warnings_of
from mtl_re.training.run import (
    Run,
    check_ranks_agree,
    identity_of_options,
    seed_process,
    start_run,
    write_run_records,
)
from mtl_re.training.tracking import Trackers
from mtl_re.training.weighting import WEIGHTINGS, Weighting

_BAD_STEPS = ("on_bad_step", "spike", "max_rollbacks")  # a run that stopped at one may go on by leaving it out


@dataclass
class TrainRun(Run):
    """What a training works with besides.

    Attributes:
        rows: Training and validation rows; train_table, valid_table: their features.
        average: The averaged weights (`train.ema`).
        weights: By head, `loss.weights` normalised. weighting: How they move.
        class_weights: By head, (classes,), on the device (`loss.class_weights`; empty: none).
    """

    config: Config
    taxonomy: Taxonomy
    rows: Splits
    train_table: FeatureTable
    valid_table: FeatureTable
    average: WeightAverage | None
    weights: dict[str, float]
    weighting: Weighting
    class_weights: dict[str, torch.Tensor]
    collate: Collator

    @property
    def trained_heads(self) -> list[str]:
        """The heads whose weight is not 0."""
        return [name for name, weight in self.weights.items() if weight > 0]

    @property
    def selects(self) -> bool:
        """Whether validation scores choose the model: all heads that have a part in a label are trained."""
        return len(self.trained_heads) == len(self.weights)

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model its averaged weights inside the block, if the run keeps an average."""
        return nullcontext() if self.average is None else self.average.applied()


def prepare_training(config: Config, name: str, resources: ExitStack) -> TrainRun:
    """Set a training up.

    Args:
        config: Validated options.
        name: Of the config, for the default run directory.
        resources: Holds the run directory's lock; the caller closes it when the run ends, however it ends.

    Raises:
        MtlReError: Anything at fault in the options, the rows, the encoder or the directory.
    """
    taxonomy = Taxonomy.from_option(config.model.heads)
    _check_names(config, taxonomy)
    weights = normalise(config.loss.weights, [head.name for head in taxonomy.heads])
    check_heads(config, weights)
    accelerator, run_dir = start_run(config.train, config.tracking, name, resources)
    rows = on_all(accelerator, lambda: load_splits(config, taxonomy))
    tokenizer, model = make_model(config, taxonomy, rows, accelerator)
    train_table, valid_table = _tables(config, taxonomy, rows, tokenizer, model, accelerator)
    for head, weight in weights.items():
        model.heads[head].requires_grad_(weight > 0)  # weight 0: no gradient, no decay, no momentum
    _check_shares(config, taxonomy, rows)
    of_classes = class_weights(config.loss.class_weights, taxonomy, train_table.targets)
    model.config.training_prior = training_prior(train_table.targets, taxonomy, of_classes)
    same = identity(config, weights, of_classes, train_table, valid_table)
    check_ranks_agree(accelerator, same)
    wrapped, optimizer = _placed(config, model, accelerator)
    seed_process(accelerator, config.train.seed)
    make_weighting = entry("loss.weighting", config.loss.weighting, WEIGHTINGS)
    run = TrainRun(
        options=config.train,
        accelerator=accelerator,
        run_dir=run_dir,
        tokenizer=tokenizer,
        model=wrapped,
        plain_model=accelerator.unwrap_model(wrapped),
        optimizer=optimizer,
        trackers=Trackers(accelerator, config.tracking, run_dir, resolved(config, weights, run_dir)),
        precision=accelerator.mixed_precision,
        identity=same,
        config=config,
        taxonomy=taxonomy,
        rows=rows,
        train_table=train_table,
        valid_table=valid_table,
        average=WeightAverage(model, config.train.ema) if config.train.ema else None,
        weights=weights,
        weighting=make_weighting([head for head, weight in weights.items() if weight > 0], config.train.seed),
        class_weights={name: tensor.to(accelerator.device) for name, tensor in of_classes.items()},
        collate=Collator(train_table, tokenizer.pad_token_id, model.takes_types, LENGTH_STEP, model.levitated),
    )
    _announce(run)
    return run


def _tables(
    config: Config, taxonomy: Taxonomy, rows: Splits, tokenizer: Any, model: MtlReModel, accelerator: Accelerator
) -> tuple[FeatureTable, FeatureTable]:
    """Return features of the training and validation rows; rows that do not fit leave `rows`."""
    options = config.data
    featurizer = Featurizer(
        tokenizer, taxonomy, options.markers, options.query, options.max_length, model.config.entity_types
    )
    rows.train, train = on_all(accelerator, lambda: _featurize(rows.train, featurizer, config, rows.bad))
    rows.valid, valid = on_all(accelerator, lambda: _featurize(rows.valid, featurizer, config, rows.bad))
    if not rows.train:
        raise MtlReError("data.train: no row fits data.max_length; raise it")
    rows.unknown = featurizer.unknown_share(train)
    refuse_unknown(config, rows.unknown)
    return train, valid


def _placed(config: Config, model: MtlReModel, accelerator: Accelerator) -> tuple[Any, Any]:
    """Put the model on its device and return it wrapped for its processes, with its optimizer."""
    if config.train.gradient_checkpointing:
        model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    if config.train.compile:
        if accelerator.num_processes > 1:  # DDP's own cutting of graphs specialises every length
            torch._dynamo.config.optimize_ddp = False
        model.encoder.compile(dynamic=True)
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, config.optim))
    model.dropout_samples = config.model.dropout_samples
    speed_up(model)  # after it has come to its device
    return wrapped, optimizer


def identity(
    config: Config,
    weights: dict[str, float],
    of_classes: dict[str, torch.Tensor],
    train: FeatureTable,
    valid: FeatureTable,
) -> dict[str, str]:
    """Return all that must be the same for a resumed run to be the same run, as text.

    That is options that change the result, and digests of the rows as the model reads them (which covers data,
    tokenizer, markers and cuts).
    """
    options = config.to_dict()
    options["loss"]["weights"] = weights  # normalised: equal ratios are the same run
    for name in ("trackers", "project", "group", "artifact"):
        del options["tracking"][name]
    del options["eval"]["batch_size"]
    for name in ("workers", "compile", *_BAD_STEPS):
        del options["train"][name]
    del options["data"]["train"], options["data"]["valid"]  # files may move; their rows may not change
    same = identity_of_options(options)
    if of_classes:
        same["class weights"] = json.dumps({name: tensor.tolist() for name, tensor in of_classes.items()})
    for name, table in (("training rows", train), ("validation rows", valid)):
        digest = hashlib.sha256()
        for array in (table.ids, table.starts, table.positions, table.targets):
            digest.update(np.ascontiguousarray(array).data)
        same[name] = digest.hexdigest()
    return same


def resolved(config: Config, weights: dict[str, float], run_dir: Path) -> dict[str, Any]:
    """Return all options of a run as they apply: what config.yaml and the trackers hold."""
    options = config.to_dict()
    options["loss"]["weights"], options["train"]["run_dir"] = weights, str(run_dir)
    return options


def write_training_records(run: TrainRun) -> None:
    """Write config.yaml, manifest.json and, if any, rejected.jsonl (see `write_run_records`)."""
    config, rows = run.config, run.rows
    described = {
        "train": _describe(config.data.train, rows.train),
        "valid": _describe(config.data.valid or f"split of {config.data.train}", rows.valid),
        "rejected": len(rows.bad),
        "dropped_overlap": rows.overlap,
        "local_encoder": Path(config.model.init or config.model.encoder).exists(),  # not to be told from an id later
        "inputs": _inputs(config),
    }
    write_run_records(run, resolved(config, run.weights, run.run_dir), described, rows.bad)


def _inputs(config: Config) -> dict[str, str]:
    """Return the SHA-256 of the local encoder's weights, and of the label set and class weights that are files."""
    encoder = Path(config.model.init or config.model.encoder)
    folder = next((path for path in (encoder / "model", encoder) if path.is_dir()), None)
    found = {}
    if folder is not None and (weights := sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])):
        found[str(encoder)] = hashlib.sha256("".join(map(digest, weights)).encode()).hexdigest()
    files = (Path(option) for option in (config.model.heads, config.loss.class_weights))
    return found | {str(path): digest(path) for path in files if path.is_file()}


def _describe(spec: str, examples: Sequence[Example]) -> dict[str, Any]:
    digest = None if spec.startswith("split of ") else file_digest(spec)
    counts = Counter(str(example.label) for example in examples)
    return {"source": spec, "sha256": digest, "rows": len(examples), "labels": dict(counts.most_common())}


# ---- rows and checks -----------------------------------------------------------------------------------------


def training_prior(targets: np.ndarray, taxonomy: Taxonomy, of_classes: Mapping[str, torch.Tensor]) -> list[float]:
    """Return the prior of the coarse classes under which a model is trained, in taxonomy order.

    It is their shares of the training rows, each row weighted as the root head's loss weights its class: a head that
    minimises a weighted cross-entropy gives p(c | x) of rows with these shares (Elkan 2001).

    Args:
        targets: (rows, heads), as in the feature table.
    """
    root = taxonomy.root
    labelled = targets[:, 0][targets[:, 0] != IGNORE]
    mass = np.bincount(labelled, minlength=len(root.classes)).astype(np.float64)
    if root.name in of_classes:
        mass *= of_classes[root.name].double().numpy()
    groups = np.array([name if name in taxonomy.groups else taxonomy.coarse_of(name) for name in root.classes])
    return [float(mass[groups == group].sum() / mass.sum()) for group in taxonomy.groups]


def _check_shares(config: Config, taxonomy: Taxonomy, rows: Splits) -> None:
    """Raise MtlReError, before anything is trained, if the validation rows cannot be re-weighted as asked for."""
    if config.eval.target_prior is not None and len(rows.valid):
        try:
            prior_weights(gold_indices(rows.valid, taxonomy), taxonomy, config.eval.target_prior)
        except MtlReError as error:
            raise MtlReError(f"eval.target_prior: {error} (of the validation rows)") from error


def _featurize(
    examples: Sequence[Example], featurizer: Featurizer, config: Config, bad: list[BadRow]
) -> tuple[Sequence[Example], FeatureTable]:
    """Return the rows that fit, with their features; those that do not are bad rows like any others."""
    lost: list[int] = []

    def reject(number: int, example: Example, error: RowError) -> None:
        if config.data.on_bad_row == "error":
            raise MtlReError(f"{example.where}: {error} (--data.on_bad_row skip leaves such rows out)")
        lost.append(number)
        bad.append(BadRow(example.file or "?", example.row or 0, error.field, error.reason))

    table = cached_table(featurizer, examples, reject)
    return spool.select(examples, np.setdiff1d(np.arange(len(examples)), lost)) if lost else examples, table


def check_entries(config: Config) -> None:
    """Raise unless every name that a registry owns stands in it."""
    entry("data.markers", config.data.markers, markers.MARKERS)
    entry("model.pooling", config.model.pooling, POOLINGS)
    entry("loss.kind", config.loss.kind, LOSSES)
    entry("loss.weighting", config.loss.weighting, WEIGHTINGS)


def _check_names(config: Config, taxonomy: Taxonomy) -> None:
    """Check names that registries own, and shares that must fit the taxonomy, before anything is loaded."""
    target = config.eval.target_prior
    if target is not None and len(target) != len(taxonomy.groups):
        names = ", ".join(taxonomy.groups)
        raise MtlReError(f"eval.target_prior: {len(target)} shares for {len(taxonomy.groups)} coarse classes ({names})")
    check_entries(config)


def _announce(run: TrainRun) -> None:
    rows, table = run.rows, run.train_table
    if rows.bad:
        run.say(f"{len(rows.bad)} bad rows left out (see {run.run_dir / 'rejected.jsonl'})")
    if rows.overlap:
        run.say(f"{rows.overlap} training rows are validation rows too and were dropped")
    if not run.selects and len(rows.valid):
        idle = ", ".join(name for name in run.weights if name not in run.trained_heads)
        run.say(f"warning: {idle} has weight 0, so validation scores choose no model: the last one is kept")
    if run.config.eval.target_prior is not None and not len(rows.valid):
        run.say("warning: eval.target_prior has no effect without validation rows")
    if run.main:
        for warning in warnings_of(rows, run.taxonomy, run.trained_heads):
            run.say(warning)
    for note in (
        overruled_precision(run.config.train.precision, run.precision),
        overruled_accumulation(run.options.accumulate),
    ):
        if note:
            run.say(note)
    heads = ", ".join(f"{head.name} ({len(head.classes)})" for head in run.taxonomy.heads)
    weights = ", ".join(f"{name} {weight:g}" for name, weight in run.weights.items())
    parameters = parameter_count(run.plain_model)
    planned, _ = planned_steps(run.options.epochs, run.options.max_steps, rows_of_a_step(run), len(table))
    run.say(
        f"{len(rows.train)} training rows ({table.lengths.mean():.0f} tokens on average, {table.lengths.max()} at "
        f"most), {len(rows.valid)} validation rows\n"
        f"{parameters / 1e6:.1f} M parameters, heads {heads}; weights {weights} "
        f"(they sum to {len(run.weights)}), {run.config.loss.weighting}; {run.config.loss.reduction} reduction\n"
        f"{run.accelerator.num_processes} process(es) on {run.accelerator.device.type}, precision {run.precision}; "
        f"{rows_of_a_step(run)} rows a step, {planned} steps; run directory {run.run_dir}"
    )
    if hint := allocator_hint(run.accelerator.device.type, parameters):
        run.say(hint)
