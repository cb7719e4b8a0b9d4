"""`model.onnx` in the place of `MtlReModel`: the same inputs, the same logits by head, run by onnxruntime.

Enters: an exported directory. Leaves: a network that `inference` cannot tell from the PyTorch one, so every decoding
(gate, prior, restriction, vote) works on it. It computes on the CPU, in fp32 or int8 as its file says,
with as many threads as torch would take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig

from mtl_re.errors import MtlReError, entry, first_line
from mtl_re.model.network import MtlReConfig, checkpoint_folder, fetch_checkpoint, split_heads
from mtl_re.model.trust import checked
from mtl_re.taxonomy import Taxonomy

GRAPHS = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}
"""Backend → file in an exported directory."""
OUTPUTS = ("logits", "probabilities", "coarse", "label")
"""Outputs of a graph: logits of all heads side by side, then what the graph's own reading makes of them."""


class OnnxModel(nn.Module):
    """A graph with the interface of `MtlReModel`.

    Args:
        path: the graph.
        config: of the checkpoint that it was made from.

    Raises:
        MtlReError: onnxruntime is not installed, or cannot take the file.
    """

    def __init__(self, path: Path, config: PretrainedConfig) -> None:
        super().__init__()
        self.config, self.taxonomy = config, Taxonomy.from_dict(config.taxonomy)
        self.session = _session(path)
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.takes_types = "token_type_ids" in self.inputs
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # tells `inference` where this runs: the CPU

    @property
    def levitated(self) -> bool:
        """See `MtlReModel.levitated`."""
        return "pairs" in self.inputs

    def run(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """All outputs by name for one batch of arrays or tensors by name; what the graph does not read is left out."""
        given = {name: np.asarray(batch[name]) for name in self.inputs}
        return dict(zip(OUTPUTS, self.session.run(list(OUTPUTS), given), strict=True))

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Logits by head, as `MtlReModel.forward`."""
        logits = torch.from_numpy(self.session.run(["logits"], {name: batch[name].numpy() for name in self.inputs})[0])
        return split_heads(logits, self.taxonomy)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MtlReError("onnxruntime is not installed; pip install -e '.[onnx]' in the checkout") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: its warnings are about optimisations it did not find
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen exception classes without a common base
        raise MtlReError(f"{path}: onnxruntime cannot run it ({first_line(error)})") from error


def load_onnx(path: str, backend: str) -> tuple[Any, Any]:
    """The graph of an exported directory or hub id in the place of a model, and the tokenizer.

    Raises:
        MtlReError: it is not there, or was exported without this graph.
    """
    name = entry("backend", backend, GRAPHS)
    folder = checkpoint_folder(path if Path(path).exists() else fetch_checkpoint(path, name))
    if not (folder / name).is_file():
        hint = "--int8" if backend == "onnx-int8" else "--onnx"
        raise MtlReError(f"{path}: no {name} there; make one with `mtl-re export {path} DIR {hint}`")
    config, _ = checked(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers each raise their own kinds
        raise MtlReError(f"{path}: its tokenizer cannot be loaded ({first_line(error)})") from error
    return OnnxModel(folder / name, MtlReConfig(**config)).eval(), tokenizer
