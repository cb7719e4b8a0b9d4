"""Every `mtl-re` command line of the two READMEs is one that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from mtl_re import cli
from mtl_re.config import GROUPS

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"^(?:\S+=\S+ )*(?:.*-m mtl_re|mtl-re) (?P<rest>.*)$")
YAML = {"F.yaml": "data:\n  train: train.json\n", "STUDY.yaml": "{}\n"}
"""Placeholders that must be files for a command line to parse."""


def commands(name: str) -> list[str]:
    """The command lines of a README's shell blocks, comments and launchers taken off."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [match["rest"] for line in lines if (match := LINE.match(line.strip()))]
    return [rest.split("  #")[0].strip() for rest in found]


CASES = [(name, command) for name in ("README.md", "README.ko.md") for command in commands(name)]


@pytest.fixture(scope="module")
def parser():
    return cli.build_parser()[0]


def test_there_are_commands_to_check():
    per_file = [sum(name == readme for name, _ in CASES) for readme in ("README.md", "README.ko.md")]
    assert min(per_file) >= 8
    mentioned = {command.split()[0] for _, command in CASES}
    assert {"check", "train", "evaluate", "predict", "extract", "demo"} <= mentioned


@pytest.mark.parametrize(("name", "command"), CASES, ids=[f"{name}: {command[:60]}" for name, command in CASES])
def test_the_command_line_parses(parser, name, command, tmp_path, monkeypatch):
    arguments = cli._underscored(shlex.split(command))
    for placeholder, text in YAML.items():
        (tmp_path / placeholder).write_text(text, encoding="utf-8")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    options = parser.parse_args(arguments)
    assert options.subcommand == arguments[0]
    if options.subcommand == "train":
        assert set(GROUPS) <= set(vars(options["train"]))
