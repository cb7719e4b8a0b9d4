"""`mtl-re export`: a checkpoint → one directory that works without this package: weights, code, ONNX, a model card.

The directory is built under a temporary name and then renamed, so it appears whole or not at all. `--average` takes the
plain mean of the weights of a run's last checkpoints (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mtl_re import __version__, files
from mtl_re.config import ExportConfig
from mtl_re.data.loading import load_examples
from mtl_re.data.readers import file_digest
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError, first_line
from mtl_re.export import model_card
from mtl_re.export.shipped_code import PACKAGE, REMOTE, write_code
from mtl_re.files import write_json
from mtl_re.model.network import THRESHOLD_KEYS, MtlReModel, load, parameter_count, save
from mtl_re.model.onnx_model import GRAPHS
from mtl_re.model.pooling import POOLINGS
from mtl_re.outputs import check_new_folder
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding, decoding_of
from mtl_re.training import checkpoint

REPORT = "export.json"


@dataclass
class Source:
    """What is exported.

    Attributes:
        run: the run directory, if CKPT is one. steps: the training checkpoints whose weights were averaged.
    """

    model: MtlReModel
    tokenizer: Any
    run: Path | None
    steps: list[int]


def export(ckpt: str, folder: str, options: ExportConfig) -> dict[str, Any]:
    """Write the directory, and upload it if `options` says so.

    Returns:
        The content of its export.json, and `directory`, where it lies.

    Raises:
        MtlReError: CKPT or DIR cannot be used, a check failed, or the hub refused the upload.
    """
    final = Path(folder)
    check_new_folder(final, options.overwrite, REPORT, "an exported directory", ckpt, "checkpoint that is exported")
    source = _load_source(ckpt, options.average)
    decoding = _decoding(source.model, options)
    with _building(final) as build:
        write_checkpoint(source, build)
        write_code(build, options.onnx or options.int8)
        report = _report(source, build)
        if options.onnx or options.int8:
            report |= _write_graphs(source, decoding, build, options)
        write_json(build / REPORT, report)
        card = model_card.render_card(source.model, report, model_card.gather(source.run, source.steps, options))
        (build / "README.md").write_text(card, encoding="utf-8")
        refuse_machine_paths(build, [ckpt, folder])
    if options.push_to_hub is not None:
        push(final, options.push_to_hub, options.private)
    return report | {"directory": folder}


# ---- what is exported --------------------------------------------------------------------------------------------


def _load_source(ckpt: str, average: str | None) -> Source:
    path = Path(ckpt)
    parent = path.parent if path.name == "model" and (path.parent / "manifest.json").is_file() else path  # RUN/model
    run = parent if (parent / "model" / "config.json").is_file() else None
    model, tokenizer = load(ckpt)
    if average is None:
        return Source(model, tokenizer, run, [])
    if run is None or not (run / "checkpoints").is_dir():
        raise MtlReError(f"--average: {ckpt} is not a run directory with checkpoints/; give the run directory")
    steps = average_checkpoints(model, run / "checkpoints", _parse_last(average))
    # These were fitted to the best model, not to the average:
    model.config.temperatures, model.config.relation_threshold, model.config.relation_threshold_prior = {}, None, None
    for name in THRESHOLD_KEYS:
        vars(model.config).pop(name, None)  # the class's default holds again: none
    return Source(model, tokenizer, run, steps)


def _parse_last(option: str) -> int:
    """Return K of `last:K`."""
    match = re.fullmatch(r"last:([1-9]\d{0,3})", option)
    if match is None:
        raise MtlReError(f"--average: {option!r}; expected last:K, such as last:3")
    return int(match[1])


def average_checkpoints(model: MtlReModel, folder: Path, count: int) -> list[int]:
    """Set a model's weights to the mean of the last `count` training checkpoints, computed in fp64.

    Returns:
        The steps of these checkpoints, oldest first.

    Raises:
        MtlReError: there are fewer checkpoints, one is damaged, or one belongs to another model.
    """
    paths = checkpoint.whole_names(folder)[:count][::-1]
    if len(paths) < count:
        raise MtlReError(
            f"--average: {folder} holds {len(paths)} checkpoint(s), last:{count} needs {count}; "
            f"train with --train.keep {count} and --train.save_every STEPS"
        )
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        weights = checkpoint.read_checkpoint(path).tensors.get("model", {})
        if total and set(weights) != set(total):
            raise MtlReError(
                f"{path}: its tensors differ from those of the checkpoint before it; they cannot be averaged"
            )
        for name, tensor in weights.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict({name: (tensor / count).to(kinds[name]) for name, tensor in total.items()})
    except (RuntimeError, KeyError) as error:
        raise MtlReError(f"{folder}: these checkpoints do not fit model/ ({first_line(error)})") from error
    return [checkpoint.step_of(path) for path in paths]


def _decoding(model: MtlReModel, options: ExportConfig) -> Decoding:
    """What the graph applies: the checkpoint's gate and what was asked for."""
    if options.prior == "em":
        raise MtlReError("--prior em needs the rows that are predicted; give shares such as 0.6,0.17,0.23")
    return decoding_of([model.config], options.prior, options.threshold)


# ---- the directory -----------------------------------------------------------------------------------------------


@contextmanager
def _building(final: Path) -> Iterator[Path]:
    """Give a directory that takes the final one's place when the block ends."""
    try:
        with files.whole_folder(final.absolute()) as build:
            yield build
    except OSError as error:
        raise files.unwritable(final, error) from error


def write_checkpoint(source: Source, build: Path) -> None:
    """Write config.json, model.safetensors with its SHA-256, and the tokenizer's files.

    Raises:
        MtlReError: the shipped network does not implement the model's pooling.
        OSError: the files cannot be written.
    """
    known = import_module("mtl_re.export.remote.modeling_mtl_re").POOLINGS
    pooling = source.model.config.pooling
    if pooling not in known or known[pooling][0] != POOLINGS[pooling].width:
        raise MtlReError(f"pooling {pooling!r} has no counterpart in {REMOTE.name}/modeling_mtl_re.py; add it there")
    source.model.config.auto_map = {f"Auto{kind}": f"modeling_mtl_re.MtlRe{kind}" for kind in ("Config", "Model")}
    try:
        save(source.model, source.tokenizer, build)
    except Exception as error:  # for a full disk, safetensors and tokenizers raise kinds of their own
        raise OSError(None, first_line(error)) from error
    settings = build / "tokenizer_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    for local in ("name_or_path", "is_local", "local_files_only"):  # where this machine found the tokenizer
        kept.pop(local, None)
    write_json(settings, kept)


def refuse_machine_paths(build: Path, given: Sequence[str]) -> None:
    """Raise if a file contains a path of this machine.

    Args:
        given: paths that the user named.

    Raises:
        MtlReError: naming the file and the path.
    """
    paths = [Path.cwd(), Path.home(), PACKAGE.parent, Path(sys.prefix), build, Path(tempfile.gettempdir())]
    paths += [Path(path).absolute().parent for path in given]
    needles = {str(path).encode() + b"/" for path in paths if len(str(path)) > 3}
    for file in sorted(build.rglob("*")):
        if not file.is_file() or file.suffix in {".safetensors", ".data", ".py"}:
            continue  # numbers and names of tensors; this package's own code, whose module paths begin like folders
        content, shortest = file.read_bytes(), 7 if file.suffix == ".onnx" else 0  # numbers may spell short paths
        if leak := next((path for path in sorted(needles) if len(path) >= shortest and path in content), None):
            raise MtlReError(f"{file.name}: names {leak.decode()} of this machine; remove it from the checkpoint")


# ---- reports and graphs ------------------------------------------------------------------------------------------


def _report(source: Source, build: Path) -> dict[str, Any]:
    return {
        "mtl_re": __version__,
        "torch": torch.__version__.split("+")[0],
        "parameters": parameter_count(source.model),
        "weights_sha256": file_digest(str(build / files.WEIGHTS)),
        "averaged_steps": source.steps,
    }


def _write_graphs(source: Source, decoding: Decoding, build: Path, options: ExportConfig) -> dict[str, Any]:
    """Write model.onnx and check it; write model.int8.onnx and measure its cost."""
    from mtl_re.export.onnx_graph import check_graph, described, write_graph
    from mtl_re.export.quantisation import Bounds, write_int8

    model, tokenizer = source.model, source.tokenizer
    examples = _check_rows(options.check_data, model, tokenizer)
    graph, small = build / GRAPHS["onnx"], build / GRAPHS["onnx-int8"]
    report: dict[str, Any] = {
        "reading": described(model, decoding),
        "check_data": model_card.public_name(options.check_data),
    }
    report["onnx"] = write_graph(model, decoding, graph)
    report["onnx"]["check"], outputs = check_graph(graph, model, tokenizer, examples, decoding)
    if options.int8:
        bounds = Bounds(options.int8_bound, options.int8_changed)
        report["int8"] = write_int8(graph, small, model, tokenizer, examples, outputs, bounds, options.force)
    return report


def _check_rows(spec: str, model: MtlReModel, tokenizer: Any) -> list[Example]:
    try:
        examples, _ = load_examples(spec, model.taxonomy, "error")
        refused: list[str] = []
        usable = ComposedModel.of(model, tokenizer).usable(examples, lambda example, error: refused.append(str(error)))
        kept = list(usable)
    except MtlReError as error:
        raise MtlReError(f"--check_data: {error}; give rows of this model's own labels") from error
    if not kept:
        raise MtlReError(f"--check_data: {spec} has no row for this model ({refused[0] if refused else 'it is empty'})")
    return kept


EXPORTED = [
    "config.json",
    "export.json",
    "*.safetensors*",
    "*.onnx",
    "*.onnx.data",
    "predict_onnx.py",
    "modeling_mtl_re.py",
    "mtl_re_input/*",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
]
"""What an export may hold: of an earlier one nothing stays on the hub, such as a graph of other weights."""


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an exported directory to the hub, and return its address.

    Raises:
        MtlReError: the hub refused, or cannot be reached; the directory is kept.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:  # `create_repo` leaves one that exists as it is
            raise MtlReError("this repository is public already; make it private first, or leave --private out")
        message = f"mtl-re {__version__}"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=EXPORTED)
    except Exception as error:  # the hub client raises dozens of kinds
        raise MtlReError(f"--push_to_hub: {name}: {first_line(error)}; {folder} is complete, push it again") from error
    return str(address)


def render_export(report: dict[str, Any]) -> str:
    """Return the results of the checks and the directory as text, one per line."""
    lines = [f"{report['parameters']:,} parameters"]
    if report["averaged_steps"]:
        lines.append(f"mean of the checkpoints of steps {', '.join(map(str, report['averaged_steps']))}")
    if "onnx" in report:
        check = report["onnx"]["check"]
        lines.append(
            f"model.onnx on {check['rows']} rows: probabilities differ by at most "
            f"{check['largest_probability_difference']:.1e}, {100 * check['equal_labels']:.2f} % equal labels"
        )
    if "int8" in report:
        cost = report["int8"]["tried"][report["int8"]["recipe"]]
        scores = ", ".join(f"{name} {cost[name]['difference']:+.2f}" for name in ("micro_f1", "auprc"))
        lines.append(
            f"model.int8.onnx on {report['int8']['rows']} rows: {scores} points, {cost['changed_labels']:.2f} % "
            f"changed labels, largest change of a probability {cost['largest_drift']:.3f}"
        )
    return "\n".join([*lines, report["directory"]])
