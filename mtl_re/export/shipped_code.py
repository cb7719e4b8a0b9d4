"""The code in an exported directory: the network for AutoModel, the input package, and a program that runs the graph.

The network is `remote/modeling_mtl_re.py`, a small second implementation, because AutoModel needs one self-contained
file. The way from a sentence to token ids has no second implementation: `mtl_re_input/` is a copy of our own modules,
`input_maker` and all that it imports, with their imports renamed.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from mtl_re import __version__

PACKAGE = Path(__file__).parents[1]
REMOTE = Path(__file__).parent / "remote"
INPUT_PACKAGE = "mtl_re_input"
_PUBLIC = f'''"""Sentences → model input, without torch or transformers."""

from {INPUT_PACKAGE}.errors import MtlReError
from {INPUT_PACKAGE}.export.input_maker import InputMaker

__all__ = ["InputMaker", "MtlReError"]
'''


def write_code(build: Path, with_onnx: bool) -> None:
    """Write the network, the input package and, with a graph, the program that runs it."""
    for name in ("modeling_mtl_re.py", *(["predict_onnx.py"] if with_onnx else [])):
        shutil.copyfile(REMOTE / name, build / name)
    for name, text in input_sources().items():
        path = build / INPUT_PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def input_sources() -> dict[str, str]:
    """Return the input package as path → source."""
    sources: dict[str, str] = {}
    pending = {"export/input_maker.py"}
    while pending:
        name = pending.pop()
        text = (PACKAGE / name).read_text(encoding="utf-8")
        origin = f"# Copied from mtl-re {__version__} (Apache-2.0), mtl_re/{name}, by `mtl-re export`.\n"
        sources[name] = origin + re.sub(r"(?m)^(\s*(?:from|import) )mtl_re\b", rf"\g<1>{INPUT_PACKAGE}", text)
        pending |= _imported(text) - sources.keys()
    rooms = {name.partition("/")[0] for name in sources if "/" in name}
    packages = {f"{room}/__init__.py": (PACKAGE / room / "__init__.py").read_text(encoding="utf-8") for room in rooms}
    return {"__init__.py": _PUBLIC, **packages, **sources}


def _imported(text: str) -> set[str]:
    """Return the paths of our modules that a source imports when it is loaded, not those that a function imports."""
    paths: set[Path] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mtl_re":
            module = Path(*node.module.split(".")[1:])
            paths |= {module, *(module / alias.name for alias in node.names)}  # an imported name may be a module
    return {f"{path}.py" for path in paths if (PACKAGE / f"{path}.py").is_file()}
