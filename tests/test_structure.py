"""What the source itself must keep: imports one way, one place for each thing, and a quick command line."""

import ast
import json
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtl_re

PACKAGE = Path(mtl_re.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
    if "remote" not in path.parts
}
HEAVY = ("torch", "transformers", "accelerate", "datasets", "evaluate", "wandb", "gradio", "optuna", "matplotlib")
NAMES = [name for name in MODULES if name not in {"__init__", "__main__"}]
ROOMS = (
    *(
        "data",
        "features",
        "model",
        "scoring",
        "training",
        "adapt",
        "trim",
        "predict",
        "study",
        "analysis",
        "export",
        "page",
    ),
)
"""In the order of the data flow: a room may import what stands before it, never what stands behind it."""


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def statements(node: ast.AST, inside_functions: bool):
    """Nodes that run on import, or also those that run when functions do; never what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if typing_only(child):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        yield child
        yield from statements(child, inside_functions)


def imported(tree: ast.AST, inside_functions: bool) -> set[str]:
    """Dotted names of what a module imports; `from a import b` gives both `a` and `a.b`."""
    found = set()
    for node in statements(tree, inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def ours(tree: ast.AST, inside_functions: bool) -> set[str]:
    names = {name.removeprefix("mtl_re.") for name in imported(tree, inside_functions) if name.startswith("mtl_re.")}
    return {name for name in names & set(MODULES) if name not in ROOMS}


def everything(tree: ast.AST) -> set[str]:
    """Modules of ours that a source names in any import, those that only a type checker reads included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mtl_re"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("mtl_re.") for name in found} & set(MODULES) - set(ROOMS)


def room(name: str) -> str | None:
    return name.split(".")[0] if "." in name else None


def test_there_is_something_to_check():
    assert len(MODULES) > 60
    assert {room(name) for name in MODULES} == {None, *ROOMS}
    assert "features.featurizer" in ours(MODULES["features.collate"], False)


def test_rooms_import_one_way():
    for name, tree in MODULES.items():
        later = ROOMS[ROOMS.index(room(name)) + 1 :] if room(name) else ()
        assert not [other for other in everything(tree) if room(other) in later], name


def test_what_rooms_share_imports_no_room():
    """The files at the top are entry points, or what every room may use; no room imports an entry point."""
    entry_points = {"__main__", "cli", "commands", "quickstart", "pipeline", "hf_metric"}
    shared = {name for name in NAMES if room(name) is None} - entry_points - set(ROOMS)
    for name in shared:
        assert not [other for other in everything(MODULES[name]) if room(other)], name
    for name in (name for name in MODULES if room(name)):
        assert not everything(MODULES[name]) & entry_points, name


def test_imports_for_types_have_no_cycle():
    TopologicalSorter({name: everything(tree) - {name} for name, tree in MODULES.items()}).prepare()


@pytest.mark.parametrize("inside_functions", [False, True], ids=["on import", "also in functions"])
def test_imports_have_no_cycle(inside_functions):
    graph = {name: ours(tree, inside_functions) for name, tree in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the path of the cycle


def test_pure_modules_know_nothing_of_effects():
    effects = {"training.train", "training.setup", "training.tracking", "training.checkpoint", "cli"}
    effects |= {"predict.predictor", "predict.predict", "scoring.evaluation"}
    pure = ("taxonomy", "config", "errors", "features.markers", "model.pooling", "training.losses")
    for name in (*pure, "scoring.gating", "scoring.metrics", "scoring.calibration_fits"):
        assert not ours(MODULES[name], True) & effects, name


LIGHT = (
    *("taxonomy", "config", "errors", "files", "signals", "cli", "commands", "features.markers"),
    *(name for name in MODULES if room(name) == "data"),
)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    assert not {found.split(".")[0] for found in imported(MODULES[name], False)} & set(HEAVY)


def test_only_tracking_imports_wandb():
    users = {name for name, tree in MODULES.items() if any(x.split(".")[0] == "wandb" for x in imported(tree, True))}
    assert users <= {"training.tracking"}


def test_wandb_and_the_like_are_imported_only_where_used():
    for name, tree in MODULES.items():
        late = {"wandb", "gradio", "optuna", "onnxruntime", "onnx", "matplotlib", "ray"}
        assert name == "figures" or not {x.split(".")[0] for x in imported(tree, False)} & late, name


def test_the_package_does_not_import_tests_or_experiments():
    for name, tree in MODULES.items():
        assert not {x.split(".")[0] for x in imported(tree, True)} & {"experiments", "tests", "conftest", "pytest"}, (
            name
        )


def assigned(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def is_minus_100(node: ast.AST) -> bool:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    return negative and isinstance(node.operand, ast.Constant) and node.operand.value == 100


def test_ignore_is_set_in_one_place():
    assert [name for name, tree in MODULES.items() if "IGNORE" in assigned(tree)] == ["taxonomy"]
    written = {name for name, tree in MODULES.items() for node in ast.walk(tree) if is_minus_100(node)}
    assert written == {"taxonomy"}


def reached(name: str) -> set[str]:
    """The modules of ours that a module imports, and those that they import."""
    found, todo = {name}, [name]
    while todo:
        new = ours(MODULES[todo.pop()], True) - found
        found |= new
        todo += new
    return found


def test_what_makes_the_gradient_reaches_no_decoding():
    """Validation decodes; the loss must not (`tests/training` runs steps without the gate)."""
    for name in ("losses", "weighting", "optimizer", "averaging"):
        assert not {other for other in reached(f"training.{name}") if room(other) == "scoring"}, name
    assert "scoring.gating" in reached("training.train")  # there it is validation's


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(MODULES[name]), name


# ---- a quick command line ------------------------------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("module", ["mtl_re", "mtl_re.cli", "mtl_re.config", "mtl_re.data.validation"])
def test_importing_loads_nothing_heavy(module):
    done = python("-c", f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout)) & set(HEAVY)


def test_public_names_exist():
    for name in mtl_re.__all__:
        assert getattr(mtl_re, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        mtl_re.Trainer  # noqa: B018 - the access is the test


def test_the_table_of_faults_names_tests_that_exist():
    folder = Path(__file__).parent
    made = {name for path in folder.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = re.findall(r"`(test_\w+)`", (folder / "FAULTS.md").read_text(encoding="utf-8"))
    assert len(named) > 60
    assert not {*named} - made
