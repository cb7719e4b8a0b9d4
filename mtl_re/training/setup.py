"""Config → everything a run needs before its first step: accelerator, run directory, rows, model, optimizer.

Rank 0 alone decides and writes (`processes.on_main`); what it decides, or the fault it met, reaches every rank, so all
go on or all stop. Rows are read by every rank: the batch order is computed from them, not communicated.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object

from mtl_re.config import Config
from mtl_re.data import spool
from mtl_re.data import validation as data
from mtl_re.data.splits import Splits, load_splits
from mtl_re.data.validation import BadRow, Example
from mtl_re.errors import MtlReError, RowError, entry
from mtl_re.features import markers
from mtl_re.features.collate import LENGTH_STEP, Collator
from mtl_re.features.feature_cache import cached_table
from mtl_re.features.featurizer import FeatureTable, Featurizer
from mtl_re.files import write_json
from mtl_re.model import encoders
from mtl_re.model.cpu import allocator_hint, speed_up
from mtl_re.model.network import MtlReConfig, MtlReModel, from_encoder, parameter_count
from mtl_re.model.pooling import POOLINGS
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.averaging import WeightAverage
from mtl_re.training.losses import LOSSES, normalise
from mtl_re.training.optimizer import make_optimizer
from mtl_re.training.processes import make_accelerator, on_all, on_main
from mtl_re.training.run_dir import claim_run_dir
from mtl_re.training.tracking import Trackers, manifest
from mtl_re.training.weighting import WEIGHTINGS, Weighting

_BAD_STEPS = ("on_bad_step", "spike", "max_rollbacks")  # a run that stopped at one may go on by leaving it out


@dataclass
class Run:
    """Everything the training loop works on."""

    config: Config
    accelerator: Accelerator
    run_dir: Path
    taxonomy: Taxonomy
    rows: Splits
    train_table: FeatureTable
    valid_table: FeatureTable
    tokenizer: Any
    model: Any
    plain_model: MtlReModel
    optimizer: Any
    average: WeightAverage | None
    weights: dict[str, float]
    weighting: Weighting
    collate: Collator
    trackers: Trackers
    precision: str
    identity: dict[str, str]

    @property
    def taught(self) -> list[str]:
        """Heads that are trained: those whose weight is not 0."""
        return [name for name, weight in self.weights.items() if weight > 0]

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has its averaged weights, if the run keeps an average."""
        return nullcontext() if self.average is None else self.average.applied()

    def say(self, text: str) -> None:
        """A line for the person watching, once."""
        if self.main:
            print(text, file=sys.stderr, flush=True)


def prepare(config: Config, name: str, resources: ExitStack) -> Run:
    """Set a run up.

    Args:
        config: validated options.
        name: of the config, for the default run directory.
        resources: holds the run directory's lock; the caller closes it when the run ends, however it ends.

    Raises:
        MtlReError: anything at fault in the options, the rows, the encoder or the directory.
    """
    taxonomy = Taxonomy.from_option(config.model.heads)
    _check_names(config, taxonomy)
    weights = normalise(config.loss.weights, [head.name for head in taxonomy.heads])
    accelerator = make_accelerator(config)
    run_dir = on_main(accelerator, lambda: claim_run_dir(config, name, resources))
    accelerator.project_configuration.logging_dir = str(run_dir)  # TensorBoard writes there
    rows = on_all(accelerator, lambda: load_splits(config, taxonomy))
    tokenizer, model = make_model(config, taxonomy, rows, accelerator)
    featurizer = Featurizer(
        tokenizer,
        taxonomy,
        config.data.markers,
        config.data.query,
        config.data.max_length,
        model.config.entity_types,
    )
    rows.train, train_table = on_all(accelerator, lambda: _featurize(rows.train, featurizer, config, rows.bad))
    rows.valid, valid_table = on_all(accelerator, lambda: _featurize(rows.valid, featurizer, config, rows.bad))
    if not rows.train:
        raise MtlReError("data.train: no row fits data.max_length; raise it")
    for head, weight in weights.items():
        model.heads[head].requires_grad_(weight > 0)  # weight 0: no gradient, no decay, no momentum
    if config.train.gradient_checkpointing:
        model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    if config.train.compile:
        model.encoder.compile(dynamic=True)
    precision = accelerator.mixed_precision
    prepared, optimizer = accelerator.prepare(model, make_optimizer(model, config.optim))
    model.dropout_samples = config.model.dropout_samples
    speed_up(model)  # after it has come to its device
    torch.manual_seed(config.train.seed + 1_000_003 * accelerator.process_index)  # dropout differs by process
    no_targets = list(taxonomy.targets(None).values())
    run = Run(
        config=config,
        accelerator=accelerator,
        run_dir=run_dir,
        taxonomy=taxonomy,
        rows=rows,
        train_table=train_table,
        valid_table=valid_table,
        tokenizer=tokenizer,
        model=prepared,
        plain_model=accelerator.unwrap_model(prepared),
        optimizer=optimizer,
        average=WeightAverage(model, config.train.ema) if config.train.ema else None,
        weights=weights,
        weighting=entry("loss.weighting", config.loss.weighting, WEIGHTINGS)(
            [head for head, weight in weights.items() if weight > 0], config.train.seed
        ),
        collate=Collator(train_table, tokenizer.pad_token_id, model.takes_types, no_targets, LENGTH_STEP),
        trackers=Trackers(accelerator, config.tracking, run_dir, resolved(config, weights, run_dir)),
        precision=precision,
        identity=identity(config, weights, train_table, valid_table),
    )
    _same_everywhere(run)
    _announce(run)
    return run


def _same_everywhere(run: Run) -> None:
    """Every rank computes the batch order from its own rows: different rows would train in silence on nonsense.

    Raises:
        MtlReError: the ranks read different rows, or run under different options.
    """
    if run.accelerator.num_processes == 1:
        return
    identities = gather_object([run.identity])
    for rank, other in enumerate(identities):
        if differ := [name for name, value in identities[0].items() if other[name] != value]:
            what = f"process {rank} of {len(identities)} has other {', '.join(differ)} than process 0"
            raise MtlReError(f"{what}; give every node the same files and options")


def identity(config: Config, weights: dict[str, float], train: FeatureTable, valid: FeatureTable) -> dict[str, str]:
    """All that must be the same for a resumed run to be the same run, as text: options that change the result, and
    digests of the rows as the model reads them (which covers data, tokenizer, markers and cuts)."""
    options = config.to_dict()
    options["loss"]["weights"] = weights  # normalised: equal ratios are the same run
    for name in ("trackers", "project", "group", "artifact"):
        del options["tracking"][name]
    del options["eval"]["batch_size"]
    for name in (
        "run_dir",
        "resume",
        "keep",
        "save_every",
        "workers",
        "compile",
        "batch_size",
        "accumulate",
        *_BAD_STEPS,
    ):
        del options["train"][name]  # batch_size and accumulate: the checkpoint keeps the rows of a step
    del options["data"]["train"], options["data"]["valid"]  # files may move; their rows may not change
    same = {
        f"options {group}.{name}": json.dumps(value, sort_keys=True, ensure_ascii=False)
        for group, values in options.items()
        for name, value in values.items()
    }
    for name, table in (("training rows", train), ("validation rows", valid)):
        digest = hashlib.sha256()
        for array in (table.ids, table.starts, table.positions, table.targets):
            digest.update(np.ascontiguousarray(array).data)
        same[name] = digest.hexdigest()
    return same


def resolved(config: Config, weights: dict[str, float], run_dir: Path) -> dict[str, Any]:
    """All options of a run as they apply: what config.yaml and the trackers hold."""
    options = config.to_dict()
    options["loss"]["weights"], options["train"]["run_dir"] = weights, str(run_dir)
    return options


def write_records(run: Run) -> None:
    """Write config.yaml, manifest.json and, if any, rejected.jsonl: once it is certain that this run may go on.

    Raises:
        MtlReError: the run directory cannot be written.
    """
    config, rows = run.config, run.rows
    try:
        options = resolved(config, run.weights, run.run_dir)
        text = yaml.safe_dump(options, allow_unicode=True, sort_keys=False)
        (run.run_dir / "config.yaml").write_text(text, encoding="utf-8")
        if rows.bad:
            data.write_rejected(run.run_dir / "rejected.jsonl", rows.bad)
    except OSError as error:
        raise MtlReError(f"{run.run_dir}: cannot be written ({error.strerror})") from error
    described = {
        "train": _describe(config.data.train, rows.train),
        "valid": _describe(config.data.valid or f"split of {config.data.train}", rows.valid),
        "rejected": len(rows.bad),
        "dropped_overlap": rows.overlap,
    }
    device = str(run.accelerator.device)
    written = manifest(described, config.train.seed, run.accelerator.num_processes, run.precision, device)
    write_json(run.run_dir / "manifest.json", written)


def _describe(spec: str, examples: Sequence[Example]) -> dict[str, Any]:
    digest = None if spec.startswith("split of ") else data.file_digest(spec)
    counts = Counter(str(example.label) for example in examples)
    return {"source": spec, "sha256": digest, "rows": len(examples), "labels": dict(counts.most_common())}


# ---- rows and model ------------------------------------------------------------------------------------------


def make_model(config: Config, taxonomy: Taxonomy, rows: Splits, accelerator: Accelerator) -> tuple[Any, MtlReModel]:
    """Tokenizer and model with fresh heads."""
    options, seed = config.data, config.train.seed
    types = sorted({entity.type for example in rows.train for entity in (example.subject, example.object)})
    name = config.model.encoder
    if name.startswith(encoders.SCRATCH):
        tokenizer = on_main(accelerator, lambda: _scratch_tokenizer(rows.train, options.markers, types))
        encoder = encoders.scratch_encoder(name, tokenizer, options.max_length, seed)
    else:
        encoder, tokenizer = encoders.load_encoder(name, options.markers, types, options.max_length, seed)
    model_config = MtlReConfig(
        taxonomy=taxonomy.to_dict(),
        markers=options.markers,
        query=options.query,
        entity_types=types,
        max_input_length=options.max_length,
        pooling=config.model.pooling,
        dropout=config.model.dropout,
        gate=config.eval.gate,
        training_prior=training_prior(rows.train, taxonomy),
    )
    torch.manual_seed(seed)
    return tokenizer, from_encoder(encoder, model_config)


def training_prior(examples: Sequence[Example], taxonomy: Taxonomy) -> list[float]:
    """Shares of the coarse classes among rows, in taxonomy order: the prior of a model trained on them."""
    counts = Counter(taxonomy.coarse_of(example.label) for example in examples if example.label is not None)
    return [counts[name] / counts.total() for name in taxonomy.groups]


def _scratch_tokenizer(examples: Sequence[Example], scheme: str, types: Sequence[str]) -> Any:
    texts = [markers.mark(row.sentence, row.subject, row.object, scheme).text for row in examples]
    return encoders.scratch_tokenizer(texts, scheme, types)


def _featurize(
    examples: Sequence[Example], featurizer: Featurizer, config: Config, bad: list[BadRow]
) -> tuple[Sequence[Example], FeatureTable]:
    """Features of the rows that fit; those that do not are bad rows like any others."""
    lost: list[int] = []

    def reject(number: int, example: Example, error: RowError) -> None:
        if config.data.on_bad_row == "error":
            raise MtlReError(f"row {example.id}: {error} (--data.on_bad_row skip leaves such rows out)")
        lost.append(number)
        bad.append(BadRow(example.source or "?", 0, f"{example.id}: {error.field}", error.reason))

    table = cached_table(featurizer, examples, reject)
    return spool.select(examples, np.setdiff1d(np.arange(len(examples)), lost)) if lost else examples, table


def check_entries(config: Config) -> None:
    """Raise unless every name that a registry owns stands in it."""
    entry("data.markers", config.data.markers, markers.MARKERS)
    entry("model.pooling", config.model.pooling, POOLINGS)
    entry("loss.kind", config.loss.kind, LOSSES)
    entry("loss.weighting", config.loss.weighting, WEIGHTINGS)


def _check_names(config: Config, taxonomy: Taxonomy) -> None:
    """Names that registries own, and shares that must fit the taxonomy, before anything is loaded."""
    target = config.eval.target_prior
    if target is not None and len(target) != len(taxonomy.groups):
        names = ", ".join(taxonomy.groups)
        raise MtlReError(f"eval.target_prior: {len(target)} shares for {len(taxonomy.groups)} coarse classes ({names})")
    check_entries(config)


def _announce(run: Run) -> None:
    rows, table = run.rows, run.train_table
    if rows.bad:
        run.say(f"{len(rows.bad)} bad rows left out (see {run.run_dir / 'rejected.jsonl'})")
    if rows.overlap:
        run.say(f"{rows.overlap} training rows are validation rows too and were dropped")
    heads = ", ".join(f"{head.name} ({len(head.classes)})" for head in run.taxonomy.heads)
    weights = ", ".join(f"{name} {weight:g}" for name, weight in run.weights.items())
    parameters = parameter_count(run.plain_model)
    run.say(
        f"{len(rows.train)} training rows ({table.lengths.mean():.0f} tokens on average, {table.lengths.max()} at "
        f"most), {len(rows.valid)} validation rows\n"
        f"{parameters / 1e6:.1f} M parameters, heads {heads}; weights {weights} "
        f"(they sum to {len(run.weights)}), {run.config.loss.weighting}; {run.config.loss.reduction} reduction\n"
        f"{run.accelerator.num_processes} process(es) on {run.accelerator.device.type}, precision {run.precision}; "
        f"run directory {run.run_dir}"
    )
    if hint := allocator_hint(run.accelerator.device.type, parameters):
        run.say(hint)
