"""The process of one measurement: a setting (JSON, first argument) → its figures (JSON, the file named second)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from experiments.benchmarks import peers, prediction, training
from experiments.benchmarks.setting import Figures, Setting

CONTENDERS: dict[str, dict[str, Callable[[Setting], Figures]]] = {
    "train": training.CONTENDERS | {"cross_encoder": peers.cross_encoder_training},
    "predict": prediction.CONTENDERS
    | {
        "cross_encoder": peers.cross_encoder,
        "onnxruntime": partial(peers.onnxruntime, weights="fp32"),
        "onnxruntime_int8": partial(peers.onnxruntime, weights="int8"),
        "openvino": partial(peers.openvino, weights="fp32", arithmetic="f32"),
        "openvino_bf16": partial(peers.openvino, weights="fp32", arithmetic="bf16"),
    },
}


def run(setting: Setting) -> Figures:
    """Measure in this process.

    Returns:
        wall_s, cpu_s (all threads), start_mb and peak_mb (resident, at the start and at most), rows, precision. For
        growth also own_mb (at most, mapped files left out), else tokens (real ones), padded_tokens (with padding),
        passes, steps, mean_tokens (of the pool).
    """
    torch.set_num_threads(setting.threads)
    if setting.part == "growth":
        return (training if setting.encoder == "train" else prediction).growth(setting)
    if setting.part == "sweep":
        return training.ours(setting)
    return CONTENDERS[setting.part][setting.contender](setting)


if __name__ == "__main__":
    figures = run(Setting(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(figures), encoding="utf-8")
