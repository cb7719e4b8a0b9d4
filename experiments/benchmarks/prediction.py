"""Prediction contenders, and the cost as the work grows.

Enters: a `Setting` whose folder holds the networks that `inputs` made. Leaves: figures of answering every row of the
file once, from sentences in memory to labels; so marking and tokenising are counted for mtl-re, tokenising for the
pipeline (it is given marked sentences), and neither for the limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import orders, rows
from experiments.benchmarks.clock import measured, own_memory
from experiments.benchmarks.setting import MAX_LENGTH, Figures, Setting
from experiments.benchmarks.training import figures_of
from mtl_re.features.collate import sorted_batches
from mtl_re.model.cpu.packed import packed_tokens
from mtl_re.model.device import autocast, default_device, resolve_precision
from mtl_re.model.network import drop_pooler
from mtl_re.predict.predictor import Predictor

WINDOW = 4096
HEADS = ("coarse", "org", "per")


def ours(setting: Setting, precision: str | None = None, backend: str = "torch") -> Figures:
    """`Predictor.predict_stream` with one checkpoint."""
    name = "onnx" if backend != "torch" else "ckpt"
    return _predictor(setting, f"{setting.folder}/{name}", precision or setting.precision, backend)


def three_networks(setting: Setting) -> Figures:
    """`Predictor.predict_stream` with one network a head, as `--compose` reads them."""
    return _predictor(setting, {head: f"{setting.folder}/{head}" for head in HEADS}, setting.precision, "torch")


def _predictor(setting: Setting, checkpoint: Any, precision: str, backend: str) -> Figures:
    examples = rows.read(setting.rows)
    options: dict[str, Any] = {"batch_size": setting.batch_size, "backend": backend}
    predictor = Predictor.from_pretrained(checkpoint, precision=precision if backend == "torch" else "no", **options)
    predictor.predict(examples[: setting.batch_size])
    with measured() as figures:
        answered = sum(1 for _ in predictor.predict_stream(iter(examples), WINDOW))
    assert answered == len(examples), f"{answered} answers for {len(examples)} rows"
    model, tokenizer = next(iter(predictor.members[0].networks.values()))
    lengths = rows.table(examples, tokenizer).lengths
    passes = window_passes(lengths, setting.batch_size)
    if backend == "torch" and model.packed:
        padded = sum(packed_tokens(lengths[part]) for part in passes)
    else:
        padded = orders.padded_tokens(lengths, passes)
    used = predictor.precision if backend == "torch" else backend
    return figures | figures_of(lengths, passes, padded, setting, used)


def window_passes(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Passes of at most `size` rows, sorted by length inside each window of rows."""
    starts = range(0, len(lengths), WINDOW)
    windows = (np.arange(start, min(start + WINDOW, len(lengths))) for start in starts)
    return [window[part] for window in windows for part in sorted_batches(lengths[window], size)]


def pipeline(setting: Setting) -> Figures:
    """`pipeline("text-classification")`, batched, on sentences that are marked already."""
    from transformers import pipeline as make

    examples = rows.read(setting.rows)
    texts = rows.texts(examples)
    device, precision = default_device(), resolve_precision(setting.precision)
    classify = make("text-classification", model=f"{setting.folder}/flat", dtype=torch.float32, device=device)
    options = {"batch_size": setting.batch_size, "truncation": True, "max_length": MAX_LENGTH}
    with autocast(device, precision):
        classify(texts[: setting.batch_size], **options)
        with measured() as figures:
            answers = classify(texts, **options)
    assert len(answers) == len(examples), f"{len(answers)} answers for {len(examples)} rows"
    lengths = rows.table(examples, classify.tokenizer).lengths
    passes = np.split(np.arange(len(lengths)), range(setting.batch_size, len(lengths), setting.batch_size))
    padded = orders.padded_tokens(lengths, passes)
    return figures | figures_of(lengths, passes, padded, setting, precision)


def limit(setting: Setting) -> Figures:
    """Bare encoder, forward alone, on rows of equal length, batches made beforehand, nothing else."""
    from transformers import AutoModel, AutoTokenizer

    table = rows.table(rows.read(setting.rows), AutoTokenizer.from_pretrained(f"{setting.folder}/encoder"))
    device, precision = default_device(), resolve_precision(setting.precision)
    encoder = AutoModel.from_pretrained(f"{setting.folder}/encoder", dtype=torch.float32).to(device).eval()
    drop_pooler(encoder)
    passes = orders.exact_passes(table.lengths, setting.batch_size * float(table.lengths.mean()), setting.seed)
    ready = [torch.from_numpy(np.stack([table[int(row)].input_ids for row in part])).to(device) for part in passes]
    with torch.inference_mode():
        _forward(encoder, ready[:1], precision)
        with measured() as figures:
            _forward(encoder, ready, precision)
    padded = orders.padded_tokens(table.lengths, passes)
    return figures | figures_of(table.lengths, passes, padded, setting, precision)


def _forward(encoder: Any, batches: Sequence[torch.Tensor], precision: str) -> None:
    for ids in batches:
        with autocast(ids.device, precision):
            encoder(input_ids=ids)


def growth(setting: Setting) -> Figures:
    """`mtl-re predict`, `evaluate` or `extract` from a file to a file, start-up of the network counted too."""
    from mtl_re.cli import main

    command = setting.encoder
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        output = Path(folder) / "answers.jsonl"
        written = [f"--{'predictions' if command == 'evaluate' else 'output'}", str(output)]
        options = ["--batch_size", str(setting.batch_size), "--precision", setting.precision]
        with measured() as figures, own_memory(figures):
            code = main([command, f"{setting.folder}/ckpt", "--data", setting.rows, *written, *options])
        assert code == 0, f"mtl-re {command} ended with {code}"
        with (Path(setting.rows) if command == "extract" else output).open("rb") as file:  # triples are as they come
            answered = sum(1 for _ in file)
    return figures | {"rows": answered, "precision": setting.precision}


CONTENDERS: dict[str, Callable[[Setting], Figures]] = {
    "limit": limit,
    "ours": ours,
    "pipeline": pipeline,
    "three_networks": three_networks,
    "ours_bf16": partial(ours, precision="bf16"),
    "ours_onnx": partial(ours, backend="onnx"),
    "ours_int8": partial(ours, backend="onnx-int8"),
}
