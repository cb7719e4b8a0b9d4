"""Peers beside transformers' own: sentence-transformers' CrossEncoder; a flat network in ONNX Runtime and OpenVINO.

Enters: a `Setting`, as for the other contenders. Leaves: the same figures. All of them read the rows and the weights
(`flat`, a sequence classifier over 30 labels) that the other contenders read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import orders, rows
from experiments.benchmarks.clock import Clock, measured
from experiments.benchmarks.prediction import WINDOW, window_passes
from experiments.benchmarks.setting import MAX_LENGTH, Figures, Setting
from experiments.benchmarks.training import figures_of, stopwatch, training_options
from mtl_re.features.collate import sorted_batches
from mtl_re.model.device import autocast, default_device, resolve_precision

GRAPHS = {"fp32": "flat.onnx", "int8": "flat.int8.onnx"}
"""The exported sequence classifier in a folder of networks, by its weights."""


# ---- sentence-transformers ---------------------------------------------------------------------------------------


def cross_encoder_training(setting: Setting) -> Figures:
    """`CrossEncoderTrainer` with `CrossEntropyLoss` over 30 labels, as its documentation trains classifiers.

    A CrossEncoder reads pairs of texts: here the marked sentence and an empty text. It tokenises as it goes, which is
    part of its loop; what it read is noted there.
    """
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss

    examples = rows.read(setting.rows)
    model = CrossEncoder(setting.folder, num_labels=30, max_length=MAX_LENGTH, device=str(default_device()))
    table = rows.table(examples, model.tokenizer)
    total = setting.warmup + setting.steps
    steps = orders.shuffled_steps(len(table), setting.batch_size, total, setting.seed)
    texts, labels, order = (
        rows.texts(examples),
        rows.flat_labels(examples),
        [int(row) for step in steps for row in step],
    )
    data = Dataset.from_dict(
        {"sentence": [texts[row] for row in order], "other": [""] * len(order), "label": [labels[row] for row in order]}
    )
    clock, seen = Clock(), list[tuple[int, int]]()
    preprocess = model.preprocess

    def noted(*given: Any, **options: Any) -> Any:
        batch = preprocess(*given, **options)
        seen.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch

    model.preprocess = noted
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        arguments = CrossEncoderTrainingArguments(**training_options(setting, folder, total))
        made = CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            loss=CrossEntropyLoss(model),
            callbacks=[stopwatch(clock, setting.warmup, total)],
        )
        made.train()
    counted = figures_of(table.lengths, steps[setting.warmup :], 0, setting, "bf16" if arguments.bf16 else "no")
    read = seen[setting.warmup : total]
    assert len(read) == setting.steps, f"{len(read)} batches read in {setting.steps} steps"
    tokens, padded = (sum(sizes) for sizes in zip(*read, strict=True))
    return clock.figures | counted | {"tokens": tokens, "padded_tokens": padded}


def cross_encoder(setting: Setting) -> Figures:
    """`CrossEncoder.predict`, which sorts by length itself."""
    from sentence_transformers import CrossEncoder

    examples = rows.read(setting.rows)
    device, precision = default_device(), resolve_precision(setting.precision)
    model = CrossEncoder(f"{setting.folder}/flat", num_labels=30, max_length=MAX_LENGTH, device=str(device))
    pairs = [(text, "") for text in rows.texts(examples)]
    options = {"batch_size": setting.batch_size, "show_progress_bar": False}
    with autocast(device, precision):
        model.predict(pairs[: setting.batch_size], **options)
        with measured() as figures:
            answers = model.predict(pairs, **options)
    assert answers.shape == (len(examples), 30), f"{answers.shape} for {len(examples)} rows"
    lengths = rows.table(examples, model.tokenizer).lengths
    passes = list(sorted_batches(lengths, setting.batch_size))
    return figures | figures_of(lengths, passes, orders.padded_tokens(lengths, passes), setting, precision)


# ---- graph runtimes ----------------------------------------------------------------------------------------------


def write_graphs(folder: Path) -> None:
    """Export a folder's sequence classifier with the inputs that optimum gives it, and quantise it dynamically.

    optimum's own exporter cannot be asked: its newest version takes transformers below 4.56 only.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    from mtl_re.export.onnx_graph import quiet

    model = AutoModelForSequenceClassification.from_pretrained(folder / "flat", dtype=torch.float32).eval()
    ids = torch.arange(2 * 17).reshape(2, 17) % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs, sizes),
            dynamo=True,
            verbose=False,
        )
    program.save(folder / GRAPHS["fp32"])
    options = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]}
    quantize_dynamic(folder / GRAPHS["fp32"], folder / GRAPHS["int8"], **options)


def onnxruntime(setting: Setting, weights: str) -> Figures:
    """ONNX Runtime's session over the sequence classifier, all threads inside an operator."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
    path = f"{setting.folder}/{GRAPHS[weights]}"
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _graph(setting, lambda batch: session.run(["logits"], batch)[0], f"onnx-{weights}")


def openvino(setting: Setting, weights: str, arithmetic: str) -> Figures:
    """OpenVINO's compiled graph, set for throughput, in `f32` or `bf16` arithmetic (where the CPU has it)."""
    from openvino import Core

    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": arithmetic}
    compiled = Core().compile_model(
        f"{setting.folder}/{GRAPHS[weights]}", "CPU", hints | {"INFERENCE_NUM_THREADS": setting.threads}
    )
    asked = compiled.create_infer_request()
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return _graph(setting, lambda batch: asked.infer(batch)["logits"], f"openvino-{weights}-{taken}")


def _graph(setting: Setting, run: Callable[[dict[str, np.ndarray]], np.ndarray], precision: str) -> Figures:
    """Answer all rows: tokenised window by window, sorted by length inside it, each pass padded to its longest row."""
    from transformers import AutoTokenizer

    examples = rows.read(setting.rows)
    texts, tokenizer = rows.texts(examples), AutoTokenizer.from_pretrained(f"{setting.folder}/flat")
    for _ in _answers(texts[: setting.batch_size], tokenizer, setting.batch_size, run):
        pass
    with measured() as figures:
        answered = sum(map(len, _answers(texts, tokenizer, setting.batch_size, run)))
    assert answered == len(texts), f"{answered} answers for {len(texts)} rows"
    lengths = rows.table(examples, tokenizer).lengths
    passes = window_passes(lengths, setting.batch_size)
    return figures | figures_of(lengths, passes, orders.padded_tokens(lengths, passes), setting, precision)


def _answers(texts: list[str], tokenizer: Any, size: int, run: Callable[..., np.ndarray]) -> Iterator[np.ndarray]:
    for start in range(0, len(texts), WINDOW):
        coded = tokenizer(texts[start : start + WINDOW], truncation=True, max_length=MAX_LENGTH)["input_ids"]
        for part in sorted_batches(np.array([len(ids) for ids in coded]), size):
            batch = tokenizer.pad({"input_ids": [coded[row] for row in part]}, return_tensors="np")
            yield run({name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}).argmax(axis=-1)
