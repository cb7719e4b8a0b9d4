"""Training contenders: our own loop, Hugging Face's Trainer in three settings, and the bare encoder as the limit.

Enters: a `Setting`. Leaves: figures of `steps` optimizer steps, after `warmup` steps that are not counted. Everybody
starts from tokenised rows; set-up, evaluation and checkpoints are left out for everybody.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import orders, rows
from experiments.benchmarks.clock import Clock, measured, own_memory
from experiments.benchmarks.setting import MAX_LENGTH, SCHEME, Figures, Setting
from mtl_re.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from mtl_re.features import collate
from mtl_re.model.cpu import packed
from mtl_re.model.device import autocast, default_device, resolve_precision
from mtl_re.model.network import drop_pooler
from mtl_re.training import setup as prepare
from mtl_re.training import train
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.state import State

NEVER = 1_000_000_000


def ours(setting: Setting) -> Figures:
    """Measure `TrainingLoop.epoch`, whole: loader, passes, losses by head, clipping, checks, schedule, log."""
    _tune(setting)
    with ExitStack() as resources:
        folder = resources.enter_context(tempfile.TemporaryDirectory(dir=setting.work))
        run = prepare.prepare_training(_config(setting, Path(folder) / "run"), "bench", resources)
        log = MetricsLog(run.run_dir / "metrics.jsonl", 0)
        _take(run, State(step_rows=setting.batch_size), log, setting.warmup)
        with measured() as figures:
            _take(run, State(step_rows=setting.batch_size, epoch=1), log, setting.steps)
        return figures | _counted(run, setting)


def _config(setting: Setting, run_dir: Path) -> Config:
    options = TrainConfig(
        run_dir=str(run_dir),
        batch_size=setting.batch_size,
        precision=setting.precision,  # type: ignore[arg-type]
        seed=setting.seed,
        save_every=NEVER,
    )
    return Config(
        data=DataConfig(train=setting.rows, valid_fraction=0.0, max_length=MAX_LENGTH, markers=SCHEME),
        model=ModelConfig(encoder=setting.folder),
        train=options,
        eval=EvalConfig(every=NEVER),
    )


def _tune(setting: Setting) -> None:
    """Other constants for the sweep, in every place that has read them."""
    if setting.pass_cost is not None:
        collate.PASS_COST[default_device().type] = setting.pass_cost
        packed.FAMILIES = {}  # only padded passes have this constant
    if setting.length_step is not None:
        collate.LENGTH_STEP = prepare.LENGTH_STEP = setting.length_step


def _take(run: prepare.TrainRun, state: State, log: MetricsLog, total: int) -> None:
    """Take the steps of the loop up to `total`, as its `fit` does."""
    loop = train.TrainingLoop(run, state, log)
    loop.total = total
    while state.step < total:
        loop.epoch([])


def _counted(run: prepare.TrainRun, setting: Setting) -> Figures:
    """What the measured steps read; their order is a pure function, so it can be asked for again."""
    lengths, taken, epoch = run.train_table.lengths, list[np.ndarray](), 1
    while len(taken) < setting.steps:
        taken += collate.epoch_steps(len(lengths), setting.batch_size, setting.seed, epoch)
        epoch += 1
    passes = [part for step in taken[: setting.steps] for part in train.own_parts(run, step)]
    if run.plain_model.packed:
        padded = sum(packed.packed_tokens(lengths[part]) for part in passes)
    else:
        padded = sum(run.collate(part)["input_ids"].numel() for part in passes)
    return figures_of(lengths, passes, padded, setting, run.precision)


def figures_of(
    lengths: np.ndarray, passes: Sequence[np.ndarray], padded: int, setting: Setting, precision: str
) -> Figures:
    """Counts of what was read; mean_tokens is the pool's, so that rows/s does not depend on which steps were run."""
    return {
        "rows": sum(map(len, passes)),
        "tokens": int(sum(lengths[part].sum() for part in passes)),
        "padded_tokens": padded,
        "passes": len(passes),
        "steps": setting.steps,
        "mean_tokens": float(lengths.mean()),
        "precision": precision,
    }


# ---- Hugging Face Trainer ------------------------------------------------------------------------------------


def trainer(setting: Setting, style: str) -> Figures:
    """`Trainer` with a flat 30-way head over the same token ids.

    The order is made beforehand (a shuffle, or the library's own length-grouped sampler over the whole pool) and fed in
    sequence, so that a few measured steps can stand for an epoch; the rows lie in memory as lists, the fastest for it.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    examples = rows.read(setting.rows)
    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    table = rows.table(examples, tokenizer)
    labels = rows.flat_labels(examples)
    total = setting.warmup + setting.steps
    if style == "grouped":
        steps = orders.grouped_steps(table.lengths, setting.batch_size, total, setting.seed)
    else:
        steps = orders.shuffled_steps(len(table), setting.batch_size, total, setting.seed)
    padded = style == "padded"
    order = [int(row) for step in steps for row in step]
    data = [_item(table[row].input_ids.tolist(), labels[row], padded, tokenizer.pad_token_id) for row in order]
    model = AutoModelForSequenceClassification.from_pretrained(setting.folder, num_labels=30, dtype=torch.float32)
    seen: list[tuple[int, int]] = []
    clock = Clock()

    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        arguments = TrainingArguments(train_sampling_strategy="sequential", **training_options(setting, folder, total))
        collator = _counting(_collator(tokenizer, padded), seen)
        watch = stopwatch(clock, setting.warmup, total)
        made = Trainer(model, arguments, data_collator=collator, train_dataset=data, callbacks=[watch])
        made.train()
    counted = figures_of(table.lengths, steps[setting.warmup :], 0, setting, "bf16" if arguments.bf16 else "no")
    read = seen[setting.warmup : total]
    assert sum(real for real, _ in read) == counted["tokens"], "the Trainer read other rows than it was given"
    return clock.figures | counted | {"padded_tokens": sum(size for _, size in read)}


def stopwatch(clock: Clock, warmup: int, total: int) -> Any:
    """A callback of a Trainer that starts the clock after the warm-up and stops it after the last step."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == warmup:
                clock.start()
            elif state.global_step == total:
                clock.stop()

    return Watch()


def training_options(setting: Setting, folder: str, total: int) -> dict[str, Any]:
    """What every `TrainingArguments` is given: the same optimizer, precision and silence."""
    return {
        "output_dir": folder,
        "max_steps": total,
        "per_device_train_batch_size": setting.batch_size,
        "optim": "adamw_torch_fused",
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "bf16": resolve_precision(setting.precision) == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": setting.seed,
    }


def _item(ids: list[int], label: int, padded: bool, pad_id: int) -> dict[str, Any]:
    """A row as a tokenizer call would have left it."""
    rest = MAX_LENGTH - len(ids) if padded else 0
    return {"input_ids": ids + [pad_id] * rest, "attention_mask": [1] * len(ids) + [0] * rest, "labels": label}


def _collator(tokenizer: Any, padded: bool) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    from transformers import DataCollatorWithPadding, default_data_collator

    return default_data_collator if padded else DataCollatorWithPadding(tokenizer)


def _counting(collator: Callable[..., Any], seen: list[tuple[int, int]]) -> Callable[..., Any]:
    """The collator, noting real and padded tokens of each batch."""

    def call(items: list[dict[str, Any]]) -> Any:
        batch = collator(items)
        seen.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch

    return call


# ---- the limit -----------------------------------------------------------------------------------------------


def limit(setting: Setting) -> Figures:
    """Bare encoder: forward, backward and AdamW on rows of equal length, batches made beforehand, nothing else."""
    from transformers import AutoModel, AutoTokenizer

    table = rows.table(rows.read(setting.rows), AutoTokenizer.from_pretrained(setting.folder))
    total = setting.warmup + setting.steps
    steps = orders.exact_steps(table.lengths, setting.batch_size * float(table.lengths.mean()), total, setting.seed)
    device, precision = default_device(), resolve_precision(setting.precision)
    torch.manual_seed(setting.seed)
    encoder = AutoModel.from_pretrained(setting.folder, dtype=torch.float32).to(device)
    drop_pooler(encoder)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-5, fused=True)
    ready = [[_exact_ids(table, part).to(device) for part in step] for step in steps]

    def take(chosen: Sequence[Sequence[torch.Tensor]]) -> None:
        for passes in chosen:
            for ids in passes:
                with autocast(device, precision):
                    hidden = encoder(input_ids=ids).last_hidden_state
                hidden[:, 0].float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    encoder.train()
    take(ready[: setting.warmup])
    with measured() as figures:
        take(ready[setting.warmup :])
    passes = [part for step in steps[setting.warmup :] for part in step]
    return figures | figures_of(table.lengths, passes, orders.padded_tokens(table.lengths, passes), setting, precision)


def _exact_ids(table: Any, part: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([table[int(row)].input_ids for row in part]).astype(np.int64))


def growth(setting: Setting) -> Figures:
    """`mtl-re train` from a file to a model: an epoch, reading and tokenising counted too."""
    from mtl_re.cli import main

    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        options = {
            "data.train": setting.rows,
            "data.valid_fraction": 0,
            "data.max_length": MAX_LENGTH,
            "model.encoder": f"{setting.folder}/encoder",
            "train.run_dir": f"{folder}/run",
            "train.epochs": 1,
            "train.batch_size": setting.batch_size,
            "train.precision": setting.precision,
            "train.seed": setting.seed,
        }
        command = ["train", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        os.environ["MTL_RE_CACHE"] = f"{folder}/cache"  # every repeat tokenises
        with measured() as figures, own_memory(figures):
            code = main(command)
        assert code == 0, f"mtl-re train ended with {code}"
        with Path(setting.rows).open("rb") as file:
            read = sum(1 for _ in file)
    return figures | {"rows": read, "precision": setting.precision}


CONTENDERS: dict[str, Callable[[Setting], Figures]] = {
    "limit": limit,
    "ours": ours,
    **{f"trainer_{style}": partial(trainer, style=style) for style in ("grouped", "dynamic", "padded")},
}
