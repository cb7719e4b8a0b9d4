"""The commands destroy nothing: an output is no input and replaces no stranger's file, whatever the command."""

import json
import os
import shutil

import pytest
from conftest import sample_examples

from mtl_re import cli
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


@pytest.mark.parametrize("kind", ["path", "link", "inode"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "command",
    [
        ["predict", "CKPT", "--data", "ROWS", "--output", "OUT"],
        ["evaluate", "CKPT", "--data", "ROWS", "--output", "OUT"],
        ["evaluate", "CKPT", "--data", "ROWS", "--predictions", "OUT"],
        ["vote", "ROWS", "ROWS", "--output", "OUT"],
        ["cooccurrence", "ROWS", "--output", "OUT"],
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
