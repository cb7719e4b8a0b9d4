"""The process of one measurement: a setting (JSON, first argument) → its figures (JSON, the file named second)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from experiments.benchmarks import prediction, training
from experiments.benchmarks.setting import Figures, Setting


def run(setting: Setting) -> Figures:
    """Measure in this process.

    Returns:
        wall_s, cpu_s (all threads), start_mb and peak_mb (resident, at the start and at most), rows, precision. For
        growth also own_mb (at most, mapped files left out), else tokens (real ones), padded_tokens (with padding),
        passes, steps, mean_tokens (of the pool).
    """
    torch.set_num_threads(setting.threads)
    if setting.part == "growth":
        return {"train": training.growth, "predict": prediction.growth}[setting.encoder](setting)
    if setting.part == "sweep":
        return training.ours(setting)
    return {"train": training.CONTENDERS, "predict": prediction.CONTENDERS}[setting.part][setting.contender](setting)


if __name__ == "__main__":
    figures = run(Setting(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(figures), encoding="utf-8")
