"""The commands destroy nothing: an output is no input and replaces no stranger's file, whatever the command."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from conftest import sample_examples
from jsonargparse import Namespace

from mtl_re import cli
from mtl_re.commands import COMMANDS
from mtl_re.errors import MtlReError
from mtl_re.files import protect


@pytest.fixture(autouse=True)
def nothing_protected():
    yield
    protect([])


@pytest.fixture
def rows(tmp_path):
    """Some labelled rows as a file."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row.to_row(), ensure_ascii=False) for row in sample_examples("valid", 5)]
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(capsys, *words: str) -> str:
    assert cli.main([*map(str, words)]) == 1
    return capsys.readouterr().err


WRITES = {
    "sample": {"directory"},
    "convert": {"output"},
    "heads": {"output"},
    "explore": {"output"},
    "evaluate": {"output", "predictions"},
    "predict": {"output"},
    "vote": {"output"},
    "extract": {"output"},
    "calibrate": {"output"},
    "errors": {"output"},
    "cooccurrence": {"output"},
}
"""Command → what it writes under a name of the user's. (train, adapt, trim, export and ablate write whole directories,
which they check themselves.)"""


def parsed(name: str, **values):
    """Arguments of a command as the parser would give them: all absent but these."""
    command = COMMANDS[name]
    names = {argument.name.lstrip("-") for argument in command.arguments} | {*command.reads, *command.writes, "config"}
    return Namespace(**dict.fromkeys(names) | {"overwrite": False} | values)


def options_of(name: str):
    """Stands in for the options, where the names of the outputs follow from them."""
    return SimpleNamespace(engine="local", data=None, output=None, ray=SimpleNamespace(format=None))


def test_every_command_says_what_it_writes():
    assert {name: {*command.writes} for name, command in COMMANDS.items() if command.writes} == WRITES


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in WRITES.items() for option in sorted(options)]
)
def test_no_command_replaces_a_strangers_file(tmp_path, name, option):
    names = COMMANDS[name].written(options_of(name))[option]
    target = tmp_path / "out.csv"
    if names:  # a directory, and its files
        target = tmp_path / "out"
        target.mkdir()
        (target / names[0].replace("*", "x")).write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(MtlReError, match="exists, and this command did not write it"):
        COMMANDS[name].check_files(parsed(name, **{option: str(target)}), options_of(name))


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in WRITES for option in COMMANDS[name].reads if name != "sample"]
)
def test_no_command_replaces_what_it_reads(tmp_path, name, option):
    output = next(iter(WRITES[name]))
    names = COMMANDS[name].written(options_of(name))[output]
    target = tmp_path / "file.csv"
    given, read = str(target), target
    if names:
        given, read = str(tmp_path), tmp_path / names[0].replace("*", "x")
    read.write_text("mine")
    values = {output: given, option: [str(read)] if option in ("files", "specs") else str(read)}
    with pytest.raises(MtlReError, match="is an input of this command"):
        COMMANDS[name].check_files(parsed(name, **values), options_of(name))


VOTE = ["vote", "ROWS", "ROWS", "--output", "OUT"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["predict", "CKPT", "--data", "ROWS", "--output", "OUT"], "path"),
        (["evaluate", "CKPT", "--data", "ROWS", "--output", "OUT"], "path"),
        (["evaluate", "CKPT", "--data", "ROWS", "--predictions", "OUT"], "path"),
        (["cooccurrence", "ROWS", "--output", "OUT"], "path"),
        *((VOTE, kind) for kind in ("path", "link", "inode")),
    ],
)
def test_an_output_is_no_input(tmp_path, saved, rows, capsys, command, overwrite, kind):
    before, output = rows.read_bytes(), rows
    if kind != "path":
        output = tmp_path / "other.jsonl"
        os.link(rows, output) if kind == "inode" else output.symlink_to(rows)
    words = [{"CKPT": saved, "ROWS": rows, "OUT": output}.get(word, word) for word in command]
    assert "is an input of this command" in refused(capsys, *words, *overwrite)
    assert rows.read_bytes() == before


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["predict", "CKPT", "--data", "ROWS", "--output", "OUT"], "notes.csv"),
        (["predict", "CKPT", "--data", "ROWS", "--output", "OUT"], "notes.jsonl"),
        (["evaluate", "CKPT", "--data", "ROWS", "--output", "OUT", "--resamples", "0"], "notes.json"),
        (["explore", "ROWS", "--output", "DIR"], "explore.md"),
        (["explore", "ROWS", "--output", "DIR"], "labels.png"),
        (["sample", "DIR", "--train", "3", "--valid", "2", "--test", "2"], "train.json"),
        (["sample", "DIR", "--train", "3", "--valid", "2", "--test", "2"], "test.json"),
    ],
)
def test_a_strangers_file_needs_overwrite_and_ours_does_not(tmp_path, saved, rows, capsys, command, name):
    (tmp_path / "dir").mkdir()
    output = tmp_path / "dir" / name
    output.write_text("mine, and of no form")
    places = {"CKPT": saved, "ROWS": rows, "OUT": output, "DIR": tmp_path / "dir"}
    words = [str(places.get(word, word)) for word in command]
    said = refused(capsys, *words)
    assert str(output) in said
    assert "--overwrite" in said
    assert output.read_text() == "mine, and of no form"
    assert sorted(path.name for path in (tmp_path / "dir").iterdir()) == [name]
    assert cli.main([*words, "--overwrite"]) == 0
    assert cli.main(words) == 0  # it is ours now


def test_a_checkpoint_is_an_input(tmp_path, saved, rows, capsys):
    shutil.copytree(saved, tmp_path / "ckpt")
    target = tmp_path / "ckpt" / "config.json"
    before = target.read_bytes()
    command = ["evaluate", tmp_path / "ckpt", "--data", rows, "--output", target, "--overwrite"]
    assert "is an input" in refused(capsys, *command)
    assert target.read_bytes() == before


@pytest.mark.parametrize("command", ["train", "adapt"])
def test_a_run_directory_is_a_new_one_or_a_run(tmp_path, rows, capsys, command):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("mine: 1\n")
    words = [command, "--data.train", rows, "--model.encoder", "scratch:tiny", "--train.max_steps", "1"]
    for more in ([], ["--train.resume", "auto"]):
        said = refused(capsys, *words, "--train.run_dir", tmp_path / "project", *more)
        assert "config.yaml" in said
        assert "name another directory" in said
    assert (tmp_path / "project" / "config.yaml").read_text() == "mine: 1\n"
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("kind", ["input", "mine"])
def test_the_list_of_rejected_rows_destroys_nothing(tmp_path, saved, rows, capsys, kind):
    """It stands beside the output, and is removed where no row was rejected."""
    beside = tmp_path / "out.jsonl.rejected.jsonl"
    shutil.copy(rows, beside)
    before, data = beside.read_bytes(), beside if kind == "input" else rows
    words = ["predict", saved, "--data", data, "--output", tmp_path / "out.jsonl", "--on_bad_row", "skip"]
    said = refused(capsys, *words)
    assert ("is an input of this command" if kind == "input" else "--overwrite") in said
    assert beside.read_bytes() == before
    if kind == "mine":
        assert cli.main([*map(str, words), "--overwrite"]) == 0
        assert not beside.exists()


def test_an_edited_label_map_is_kept(tmp_path, rows, capsys):
    words = ["heads", str(rows), "--output", str(tmp_path / "heads.yaml")]
    assert cli.main(words) == 0
    assert cli.main(words) == 0  # nobody has changed it
    with (tmp_path / "heads.yaml").open("a") as file:
        file.write("# mine\n")
    assert "was changed since mtl-re wrote it" in refused(capsys, *words)
    assert (tmp_path / "heads.yaml").read_text().endswith("# mine\n")


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_only_a_file_is_replaced_by_a_file(tmp_path, rows, capsys, kind):
    """As root a rename would put a file in the place of /dev/null itself."""
    output = tmp_path / "output"
    if kind == "directory":
        output.mkdir()
    else:
        os.mkfifo(output)
    before = output.stat().st_mode
    said = refused(capsys, "heads", rows, "--output", output, "--overwrite")
    assert "directory" in said if kind == "directory" else "a device or a pipe" in said
    assert output.stat().st_mode == before
    assert "not the name of a file" in refused(capsys, "heads", rows, "--output", "")


def test_a_link_stays_one(tmp_path, rows):
    """Outputs are linked to larger disks."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "heads.yaml").symlink_to(tmp_path / "disk" / "heads.yaml")
    for _ in range(2):  # the link leads nowhere at first
        assert cli.main(["heads", str(rows), "--output", str(tmp_path / "heads.yaml")]) == 0
    assert (tmp_path / "heads.yaml").is_symlink()
    assert "groups:" in (tmp_path / "disk" / "heads.yaml").read_text()


def test_the_config_file_is_an_input(tmp_path, rows, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"output: {config}\n")
    assert "is an input of this command" in refused(capsys, "heads", rows, "--config", config, "--overwrite")
    assert config.read_text() == f"output: {config}\n"
