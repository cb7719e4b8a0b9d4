"""What one measurement is, as a value that travels to a process of its own and into the results.

Light on purpose: the parent process imports this and no torch, so that nothing of it runs beside a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 256
SCHEME = "typed_punct_ko"

Figures = dict[str, Any]
"""What a measurement gives, see `measure.run`."""

TRAIN = {
    "limit": "bare encoder, no padding (the limit)",
    "ours": "mtl-re train",
    "trainer_grouped": "HF Trainer, flat 30, grouped by length",
    "trainer_dynamic": "HF Trainer, flat 30, dynamic padding",
    "trainer_padded": "HF Trainer, flat 30, padded to 256 (KLUE recipe)",
    "cross_encoder": "sentence-transformers CrossEncoderTrainer, flat 30",
}
PREDICT = {
    "limit": "bare encoder, no padding (the limit)",
    "ours": "mtl-re",
    "pipeline": "HF text-classification pipeline",
    "cross_encoder": "sentence-transformers CrossEncoder.predict",
    "onnxruntime": "ONNX Runtime, flat 30",
    "onnxruntime_int8": "ONNX Runtime, flat 30, int8",
    "openvino": "OpenVINO, flat 30",
    "openvino_bf16": "OpenVINO, flat 30, bf16",
    "three_networks": "three networks, one after the other",
    "ours_bf16": "mtl-re, bf16",
    "ours_onnx": "mtl-re, ONNX",
    "ours_int8": "mtl-re, ONNX int8",
}
NAMES: dict[str, dict[str, str]] = {"train": TRAIN, "predict": PREDICT, "growth": {}, "sweep": {}, "memory": {}}
"""Parts of the benchmark, and their contenders by name with what they are; the others name theirs as they go."""


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Attributes:
        part, contender, encoder: names (growth: the command in the place of the encoder). repeat: which turn.
        folder: of the encoder (train) or of `inputs.prepare`'s folder of networks (predict, growth).
        rows: file of the rows. work: directory for what a measurement writes.
        batch_size: rows of a step, or of a pass. steps: measured, warmup: taken before (train only).
        precision: `no`, `bf16` or `auto`. threads: of torch and onnxruntime. seed: of order and dropout.
        pass_cost, length_step: in the place of `collate.PASS_COST` and `LENGTH_STEP` (None: as they are).
    """

    part: str
    contender: str
    encoder: str
    folder: str
    rows: str
    work: str
    batch_size: int = 32
    steps: int = 1
    warmup: int = 1
    precision: str = "auto"
    threads: int = 1
    seed: int = 0
    repeat: int = 0
    pass_cost: int | None = None
    length_step: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What its repeats have in common."""
        return self.part, self.encoder, self.contender
