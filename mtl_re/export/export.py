"""`mtl-re export`: a checkpoint → one directory that works elsewhere: PyTorch without this package, ONNX, a model card.

Built under a temporary name and renamed, so it appears whole or not at all. The network is shipped as `remote/`'s small
second copy, because AutoModel needs a self-contained file; the way from sentence to tokens is not copied by hand:
`mtl_re_input/` is our own modules with their imports renamed. Averaging: the plain mean of a run's last
checkpoints in fp32 (Izmailov et al. 2018).
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtl_re import __version__, files
from mtl_re.config import ExportConfig
from mtl_re.data.readers import file_digest
from mtl_re.errors import MtlReError, first_line
from mtl_re.export import model_card
from mtl_re.files import write_json
from mtl_re.model.network import MtlReModel, load, parameter_count
from mtl_re.model.pooling import POOLINGS
from mtl_re.scoring.scorer import Reading, Scorer
from mtl_re.training import checkpoint

if TYPE_CHECKING:
    from mtl_re.data.validation import Example

PACKAGE = Path(__file__).parents[1]
REMOTE = Path(__file__).parent / "remote"
INPUT = "mtl_re_input"
"""Name of the shipped package that makes input of sentences."""
REPORT = "export.json"


@dataclass
class Source:
    """What is exported.

    Attributes:
        model, tokenizer: loaded. run: the run directory, if CKPT is one. steps: checkpoints that were averaged.
    """

    model: MtlReModel
    tokenizer: Any
    run: Path | None
    steps: list[int]


def export(ckpt: str, folder: str, options: ExportConfig) -> dict[str, Any]:
    """Make the directory, and push it if asked; returns what stands in its export.json.

    Raises:
        MtlReError: CKPT or DIR cannot be used, a check failed, or the hub refused.
    """
    final = Path(folder)
    _check_place(final, ckpt, options.overwrite)
    source = _source(ckpt, options.average)
    reading = _reading(source.model, options)
    with _building(final) as build:
        write_checkpoint(source, build)
        write_code(build, options.onnx or options.int8)
        report = _report(source, build)
        if options.onnx or options.int8:
            report |= _write_graphs(source, reading, build, options)
        write_json(build / REPORT, report)
        card = model_card.render(source.model, report, model_card.gather(source.run, source.steps, options))
        (build / "README.md").write_text(card, encoding="utf-8")
        refuse_machine_paths(build, [ckpt, folder])
        files.publish_folder(build, final)
    if options.push_to_hub is not None:
        push(final, options.push_to_hub, options.private)
    return report


# ---- what is exported --------------------------------------------------------------------------------------------


def _source(ckpt: str, average: str | None) -> Source:
    path = Path(ckpt)
    whole = path.parent if path.name == "model" and (path.parent / "manifest.json").is_file() else path  # RUN/model
    run = whole if (whole / "model" / "config.json").is_file() else None
    model, tokenizer = load(ckpt)
    if average is None:
        return Source(model, tokenizer, run, [])
    if run is None or not (run / "checkpoints").is_dir():
        raise MtlReError(f"--average: {ckpt} is no run directory with checkpoints/; give the run itself")
    steps = average_checkpoints(model, run / "checkpoints", _last(average))
    # Fitted to the best model, not to this one:
    model.config.temperatures, model.config.relation_threshold = {}, None
    return Source(model, tokenizer, run, steps)


def _last(option: str) -> int:
    """`last:3` → 3."""
    match = re.fullmatch(r"last:([1-9]\d{0,3})", option)
    if match is None:
        raise MtlReError(f"--average: {option!r}; expected last:K, such as last:3")
    return int(match[1])


def average_checkpoints(model: MtlReModel, folder: Path, count: int) -> list[int]:
    """Put the mean of the last `count` training checkpoints' weights into a model; their steps, oldest first.

    Raises:
        MtlReError: there are fewer, one is damaged, or one is of another model.
    """
    paths = checkpoint.whole_names(folder)[:count][::-1]
    if len(paths) < count:
        raise MtlReError(
            f"--average: {folder} holds {len(paths)} checkpoint(s), last:{count} needs {count}; "
            f"train with --train.keep {count} and --train.save_every STEPS"
        )
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        weights = checkpoint.load(path).tensors.get("model", {})
        if total and set(weights) != set(total):
            raise MtlReError(f"{path}: other weights than the checkpoint before it; they cannot be averaged")
        for name, tensor in weights.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict({name: (tensor / count).to(kinds[name]) for name, tensor in total.items()})
    except (RuntimeError, KeyError) as error:
        raise MtlReError(f"{folder}: these checkpoints do not fit model/ ({first_line(error)})") from error
    return [int(path.name.removeprefix("step-")) for path in paths]


def _reading(model: MtlReModel, options: ExportConfig) -> Reading:
    """What the graph applies: the checkpoint's gate and what was asked for."""
    threshold = model.config.relation_threshold if options.threshold == "stored" else None
    if options.threshold == "stored" and threshold is None:
        raise MtlReError("--threshold stored: this checkpoint holds none; `mtl-re calibrate` fits one")
    if options.prior == "em":
        raise MtlReError("--prior em needs the rows that are predicted; give shares such as 0.6,0.17,0.23")
    return Reading(model.config.gate, options.prior, "none", threshold)


# ---- the directory -----------------------------------------------------------------------------------------------


def _check_place(final: Path, ckpt: str, overwrite: bool) -> None:
    """Refuse a DIR that holds something, unless it is an older export that may go."""
    if final.exists() and not final.is_dir():
        raise MtlReError(f"{final}: is a file; give a directory")
    if not final.is_dir() or not any(final.iterdir()):
        return
    if not overwrite:
        raise MtlReError(f"{final}: is not empty; give another directory, or --overwrite to replace it as a whole")
    if not (final / REPORT).is_file():
        raise MtlReError(f"{final}: is no exported directory (no {REPORT}); --overwrite replaces nothing else")
    if Path(ckpt).exists() and final.resolve() in {Path(ckpt).resolve(), *Path(ckpt).resolve().parents}:
        raise MtlReError(f"{final}: holds the checkpoint that is exported; give another directory")


@contextmanager
def _building(final: Path) -> Iterator[Path]:
    """A folder beside the final one; removed if anything goes wrong."""
    build = final.absolute().with_name(f".partial-{final.absolute().name}")
    try:
        final.absolute().parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        yield build
    except OSError as error:
        raise MtlReError(f"{final}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(build, ignore_errors=True)


def write_checkpoint(source: Source, build: Path) -> None:
    """config.json, model.safetensors with its SHA-256, and the tokenizer's files.

    Raises:
        MtlReError: the shipped network does not know the model's pooling.
        OSError: the disk is full.
    """
    known = import_module("mtl_re.export.remote.modeling_mtl_re").POOLINGS
    pooling = source.model.config.pooling
    if pooling not in known or known[pooling][0] != POOLINGS[pooling].width:
        raise MtlReError(f"pooling {pooling!r} has no counterpart in {REMOTE.name}/modeling_mtl_re.py; add it there")
    source.model.config.auto_map = {f"Auto{kind}": f"modeling_mtl_re.MtlRe{kind}" for kind in ("Config", "Model")}
    try:
        source.model.save_pretrained(build)
        files.seal_weights(build)
        source.tokenizer.save_pretrained(build)
    except Exception as error:  # safetensors and tokenizers each raise their own kinds for a full disk
        raise OSError(None, first_line(error)) from error
    settings = build / "tokenizer_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    for local in ("name_or_path", "is_local", "local_files_only"):  # how this machine came to the tokenizer
        kept.pop(local, None)
    write_json(settings, kept)
    for file in build.glob("*.safetensors"):  # written for this user alone; a service runs as another
        file.chmod(settings.stat().st_mode)


def write_code(build: Path, with_onnx: bool) -> None:
    """The network for AutoModel, the input package, and the example that runs the graph."""
    shutil.copyfile(REMOTE / "modeling_mtl_re.py", build / "modeling_mtl_re.py")
    if with_onnx:
        shutil.copyfile(REMOTE / "predict_onnx.py", build / "predict_onnx.py")
    package = build / INPUT
    package.mkdir()
    for name, text in input_sources().items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")


def input_sources() -> dict[str, str]:
    """Path in the input package → source: `plain_input` and all of ours that it imports, imports renamed."""
    found: dict[str, str] = {}
    waiting = ["export/plain_input.py"]
    while waiting:
        name = waiting.pop()
        text = (PACKAGE / name).read_text(encoding="utf-8")
        origin = f"# Copied from mtl-re {__version__} (Apache-2.0), mtl_re/{name}, by `mtl-re export`.\n"
        found[name] = origin + re.sub(r"(?m)^(\s*(?:from|import) )mtl_re\b", rf"\g<1>{INPUT}", text)
        waiting += sorted(_imported(text) - set(found))
    for room in {Path(name).parent for name in found} - {Path()}:
        found[f"{room}/__init__.py"] = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    public = f"from {INPUT}.errors import MtlReError\nfrom {INPUT}.export.plain_input import InputMaker\n"
    names = '\n__all__ = ["InputMaker", "MtlReError"]\n'
    return found | {"__init__.py": f'"""Sentences → model input, without torch or transformers."""\n\n{public}{names}'}


def _imported(text: str) -> set[str]:
    """Paths of our modules that a source imports when it is loaded."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mtl_re":
            place = Path(*node.module.split(".")[1:])
            given = [place, *(place / alias.name for alias in node.names)]  # `from a import b`: b is a name or a module
            names |= {f"{path}.py" for path in given if (PACKAGE / f"{path}.py").is_file()}
    return names


def refuse_machine_paths(build: Path, given: Sequence[str]) -> None:
    """Make sure that no file names a place of this machine.

    Args:
        given: paths that the user named.

    Raises:
        MtlReError: naming the file and the path.
    """
    places = [Path.cwd(), Path.home(), PACKAGE.parent, Path(sys.prefix), build, Path(tempfile.gettempdir())]
    places += [Path(path).absolute().parent for path in given]
    needles = {str(place).encode() + b"/" for place in places if len(str(place)) > 3}
    for file in sorted(build.rglob("*")):
        if file.is_file() and file.suffix not in {".safetensors", ".data"}:  # these hold numbers and tensor names
            content, least = file.read_bytes(), 7 if file.suffix == ".onnx" else 0  # numbers spell short ones by chance
            if leak := next((needle for needle in sorted(needles) if len(needle) >= least and needle in content), None):
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


def _write_graphs(source: Source, reading: Reading, build: Path, options: ExportConfig) -> dict[str, Any]:
    """model.onnx, checked; model.int8.onnx, measured."""
    from mtl_re.export.int8 import Bounds, write_int8
    from mtl_re.export.onnx_graph import check_graph, described, write_graph

    model, tokenizer = source.model, source.tokenizer
    examples = _check_rows(options.check_data, model, tokenizer)
    graph, small = build / "model.onnx", build / "model.int8.onnx"
    report: dict[str, Any] = {
        "reading": described(model, reading),
        "check_data": model_card.public_name(options.check_data),
    }
    report["onnx"] = write_graph(model, reading, graph)
    report["onnx"]["check"], outputs = check_graph(graph, model, tokenizer, examples, reading)
    if options.int8:
        bounds = Bounds(options.int8_bound, options.int8_changed)
        report["int8"] = write_int8(graph, small, model, tokenizer, examples, outputs, bounds, options.force)
    return report


def _check_rows(spec: str, model: MtlReModel, tokenizer: Any) -> list[Example]:
    from mtl_re.data.loading import load_examples

    try:
        examples, _ = load_examples(spec, model.taxonomy, "error")
        refused: list[str] = []
        usable = Scorer.of(model, tokenizer).usable(examples, lambda example, error: refused.append(str(error)))
        kept = list(usable)
    except MtlReError as error:
        raise MtlReError(f"--check_data: {error}; give rows of this model's own labels") from error
    if not kept:
        raise MtlReError(f"--check_data: {spec} has no row for this model ({refused[0] if refused else 'it is empty'})")
    return kept


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an exported directory to the hub; its address.

    Raises:
        MtlReError: the hub refused, or is out of reach; the directory stands.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"mtl-re {__version__}")
    except Exception as error:  # the hub client raises dozens of kinds
        raise MtlReError(f"--push_to_hub: {name}: {first_line(error)}; {folder} is complete, push it again") from error
    return str(address)


def summary(report: dict[str, Any]) -> str:
    """What the checks found, a line each."""
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
            f"changed labels, largest drift {cost['largest_drift']:.3f}"
        )
    return "\n".join(lines)
