"""What the measurements share, made once: files of rows, encoders, and the networks around them.

Run by the parent as a process of its own, so that the parent stays light. Networks have random heads unless a
checkpoint is given: what they answer is no matter here. A folder of networks holds `encoder`, `ckpt` (ours), `coarse`,
`org`, `per` (the three networks), `flat` (sequence classification; `flat.onnx` and `flat.int8.onnx` are its graphs) and
`onnx` (our export).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, RobertaConfig, RobertaModel

from experiments.benchmarks import rows
from experiments.benchmarks.peers import write_graphs
from experiments.benchmarks.prediction import HEADS
from experiments.benchmarks.setting import MAX_LENGTH, SCHEME
from mtl_re.config import ExportConfig
from mtl_re.errors import MtlReError
from mtl_re.export.export import export
from mtl_re.features.markers import TYPE_WORDS
from mtl_re.model.encoders import load_encoder, scratch_encoder, scratch_tokenizer
from mtl_re.model.network import MtlReConfig, MtlReModel, from_encoder, load

TYPES = list(TYPE_WORDS)
GRAPH_PEERS = {"onnxruntime", "onnxruntime_int8", "openvino", "openvino_bf16"}
"""Contenders that run a graph of the sequence classifier."""


def prepare(wish: dict[str, Any]) -> dict[str, Any]:
    """Make everything.

    Args:
        wish: work (directory), train and test (row files), pool (training rows), encoders (name → directory or None),
            predict (encoder names with networks), predict_rows (by name), times (of the test rows), checkpoint.

    Returns:
        train, predict {name: file}, growth and documents {times: file}, folders {name: encoder},
        networks {name: folder}, int8 {name: its export's figures}, skipped {what: reason}.
    """
    work = Path(wish["work"])
    made: dict[str, Any] = {"folders": {}, "networks": {}, "predict": {}, "growth": {}, "documents": {}}
    made |= {"int8": {}, "skipped": {}}
    made["train"] = _rows_file(work / "train.json", wish["train"], wish["pool"])
    for name, given in wish["encoders"].items():
        made["folders"][name] = given or str(encoder(name, work / "encoders" / name, wish))
    for name in wish["predict"]:
        size = wish["predict_rows"][name]
        made["predict"][name] = _rows_file(work / f"predict-{name}.json", wish["test"], size)
        ckpt = wish["checkpoint"] if name == "checkpoint" else None
        folder = work / "networks" / name
        networks(folder, made["folders"].get(name), ckpt)
        made["networks"][name] = str(folder)
        if GRAPH_PEERS & set(wish["contenders"]):
            write_graphs(folder)
        if {"ours_int8", "ours_onnx"} & set(wish["contenders"]):
            try:
                rows_file = made["predict"][name] if ckpt else _rows_file(folder / "check.json", wish["test"], 32)
                made["int8"][name] = int8(folder, rows_file, trained=ckpt is not None)
            except MtlReError as error:
                made["skipped"] |= {f"predict {name} {ours}": str(error) for ours in ("ours_int8", "ours_onnx")}
    if wish["times"]:
        tiny = str(encoder("tiny", work / "encoders" / "tiny", wish))
        networks(work / "networks" / "growth", tiny, None)
        _save(*network(tiny, "levitated"), work / "networks" / "extract" / "ckpt")
        made["networks"] |= {name: str(work / "networks" / name) for name in ("growth", "extract")}
        for times in wish["times"]:
            made["growth"][times] = _repeated(work / f"growth-{times}.jsonl", wish["test"], times, wish["growth_rows"])
            made["documents"][times] = _documents(Path(made["growth"][times]))
    return made


def _rows_file(path: Path, source: str, size: int | None) -> str:
    """A plain random sample of a file's rows."""
    examples = rows.read(source)
    order = np.random.default_rng(0).permutation(len(examples))[:size]
    picked = [examples[index].to_row() for index in order]
    path.write_text(json.dumps(picked, ensure_ascii=False), encoding="utf-8")
    return str(path)


def _repeated(path: Path, source: str, times: int, size: int | None) -> str:
    """A file's rows several times over, each under an id of its own."""
    found = [example.to_row() for example in rows.read(source)[:size]]
    with path.open("w", encoding="utf-8") as file:
        for turn in range(times):
            for row in found:
                file.write(json.dumps(row | {"guid": f"{row['guid']}-{turn}"}, ensure_ascii=False) + "\n")
    return str(path)


def _documents(path: Path) -> str:
    """The same rows as documents, each with its two entities."""
    target = path.with_suffix(".documents.jsonl")
    with path.open(encoding="utf-8") as rows_file, target.open("w", encoding="utf-8") as file:
        for row in map(json.loads, rows_file):
            entities = [
                {"start": one["start_idx"], "end": one["end_idx"], "type": one["type"]}
                for one in (row["subject_entity"], row["object_entity"])
            ]
            made = {"id": row["guid"], "text": row["sentence"], "entities": entities}
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    return str(target)


def encoder(name: str, folder: Path, wish: dict[str, Any]) -> Path:
    """A randomly initialised encoder with its tokenizer: `tiny`, or `roberta-base` (12 layers, 768)."""
    if (folder / "config.json").is_file():
        return folder
    given = wish["tokenizer"]
    tokenizer = AutoTokenizer.from_pretrained(given) if given and name != "tiny" else _tokenizer(wish["train"])
    if name == "tiny":
        made: Any = scratch_encoder("scratch:tiny", tokenizer, MAX_LENGTH, 0)
    else:
        torch.manual_seed(0)
        config = RobertaConfig(  # everything else is base-size by default: 12 layers, 768 wide
            vocab_size=len(tokenizer),
            max_position_embeddings=514,
            type_vocab_size=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
        made = RobertaModel(config, add_pooling_layer=False)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(source: str) -> Any:
    return scratch_tokenizer(rows.texts(rows.read(source)[:2000]), SCHEME, TYPES)


def network(encoder_folder: str, scheme: str) -> tuple[MtlReModel, Any]:
    """Our network with random heads around an encoder, and its tokenizer."""
    loaded, tokenizer = load_encoder(encoder_folder, scheme, TYPES, MAX_LENGTH, 0)
    torch.manual_seed(0)
    model = from_encoder(loaded, MtlReConfig(markers=scheme, entity_types=TYPES, max_input_length=MAX_LENGTH))
    return model, tokenizer


def _save(part: Any, tokenizer: Any, folder: Path) -> None:
    part.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def networks(folder: Path, encoder_folder: str | None, checkpoint: str | None) -> None:
    """A folder of networks around an encoder, or around a trained checkpoint's."""
    if checkpoint is None:
        assert encoder_folder is not None
        model, tokenizer = network(encoder_folder, SCHEME)
    else:
        model, tokenizer = load(checkpoint)
    for name, part in (("ckpt", model), ("encoder", model.encoder)):
        _save(part, tokenizer, folder / name)
    for head in HEADS:  # another path is another network: it is loaded and run for itself
        os.symlink(folder.resolve() / "ckpt", folder / head, target_is_directory=True)
    flat = AutoModelForSequenceClassification.from_pretrained(folder / "encoder", num_labels=30)
    flat.save_pretrained(folder / "flat")
    tokenizer.save_pretrained(folder / "flat")


def int8(folder: Path, labelled: str, trained: bool) -> dict[str, Any] | None:
    """Export the int8 graph; what it costs on labelled rows, None for random heads, which have no score to lose.

    Raises:
        MtlReError: it cannot be exported, or a trained network loses more than `mtl-re export` lets pass.
    """
    options = ExportConfig(int8=True, check_data=labelled, force=not trained)
    figures: dict[str, Any] = export(str(folder / "ckpt"), str(folder / "onnx"), options)["int8"]
    return figures if trained else None


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    try:
        Path(sys.argv[2]).write_text(json.dumps(prepare(asked)), encoding="utf-8")
    except MtlReError as error:
        sys.exit(f"benchmark inputs: {error}")
