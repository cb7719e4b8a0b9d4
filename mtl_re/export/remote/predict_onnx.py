"""Predict the rows of a file with this directory alone: onnxruntime, tokenizers and numpy.

    python predict_onnx.py rows.jsonl > predictions.jsonl

Rows are KLUE-RE's JSON, JSON lines or the contest's CSV (each also .gz). One JSON object a row: id, label, and the
probability of every label. What the graph applies (temperatures, prior, gate) stands in export.json.
"""

import argparse
import json
import sys
from pathlib import Path

import onnxruntime

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from mtl_re_input import InputMaker, MtlReError  # noqa: E402 - the directory goes first


def main() -> None:
    """Read, predict, print."""
    parser = argparse.ArgumentParser(description="Predict the rows of a file with model.onnx.")
    parser.add_argument("data", help="rows: .json, .jsonl or .csv, each also .gz")
    parser.add_argument("--model", default="model.onnx", help="file in this directory (model.int8.onnx)")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    try:
        maker = InputMaker(HERE)
        if not (HERE / options.model).is_file():
            raise MtlReError(f"--model {options.model}: no such file in {HERE}")
        session = onnxruntime.InferenceSession(str(HERE / options.model), providers=["CPUExecutionProvider"])
        inputs = [one.name for one in session.get_inputs()]
        rows = maker.read(options.data)
        for examples, batch in maker.batches(rows, options.batch_size, "token_type_ids" in inputs):
            given = {name: batch[name] for name in inputs}
            probabilities, labels = session.run(["probabilities", "label"], given)
            for example, row, label in zip(examples, probabilities.tolist(), labels.tolist(), strict=True):
                probs = dict(zip(maker.labels, row, strict=True))
                print(json.dumps({"id": example.id, "label": maker.labels[label], "probs": probs}, ensure_ascii=False))
    except (MtlReError, ImportError) as error:  # another package's file format, which this directory cannot read
        sys.exit(f"predict_onnx: error: {error}")


if __name__ == "__main__":
    main()
