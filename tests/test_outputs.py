"""Nothing of the user's is destroyed: inputs are no outputs, and strangers' files stay."""

import json
import os
from pathlib import Path

import pytest

from mtl_re.cli import main
from mtl_re.errors import MtlReError
from mtl_re.files import protect, same_file, whole_folder, write_text
from mtl_re.outputs import check_directory, check_outputs, files_in, input_files, is_ours, remember

PREDICTION = {"id": "1", "label": "a", "score": 1.0, "coarse": {}, "probs": {}}


@pytest.mark.parametrize("kind", ["path", "relative", "link", "inode", "missing link target"])
def test_an_output_that_is_an_input(tmp_path, monkeypatch, kind):
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    output = tmp_path / "out.jsonl"
    if kind == "path":
        output = data
    elif kind == "relative":
        monkeypatch.chdir(tmp_path)
        output = "./rows.jsonl"
    elif kind == "inode":
        os.link(data, output)
    else:
        output.symlink_to(data)
    if kind == "missing link target":
        data.unlink()
    for overwrite in (False, True):
        with pytest.raises(MtlReError, match=r"--output .* is an input of this command .* name another file"):
            check_outputs({"output": output}, input_files(["sample:test", [str(data)]]), overwrite)


@pytest.mark.parametrize(
    ("name", "text", "ours"),
    [
        ("a.jsonl", json.dumps(PREDICTION), True),
        ("a.jsonl", json.dumps({"id": "1", "sentence": "가", "label": "a"}), False),
        ("a.jsonl", "not json", False),
        ("a.csv", "id,pred_label,probs\n1,a,[1]\n", False),  # any contest submission looks so
        ("a.yaml", "# Written by mtl-re.\nheads: {}\n", False),
        ("a.json", json.dumps([{"guid": "sample_train_1"}]), False),
        ("a.md", "# Notes on mtl-re\n", False),
        ("a.md", "# Errors\n\nWritten by mtl-re.\n", True),
        ("a.json", json.dumps({"micro_f1": 1, "auprc": 1, "coarse": {}}), True),
        ("a.json", json.dumps([{"guid": "klue-re-v1_train_00000"}]), False),
        ("a.json", json.dumps([]), False),
        ("a.txt", "mtl-re", False),
        ("a.md", "# Notes of mine\n", False),
        ("a.png", "\x89PNG...", False),
        ("a.parquet", "PAR1", False),
        ("a.jsonl", "", True),
    ],
)
def test_whose_file_it_is(tmp_path, name, text, ours):
    path = tmp_path / name
    path.write_text(text)
    assert is_ours(path) is ours
    if ours:
        check_outputs({"output": path}, [], overwrite=False)
    else:
        with pytest.raises(MtlReError, match=r"exists, and this command did not write it: .*--overwrite"):
            check_outputs({"output": path}, [], overwrite=False)
    check_outputs({"output": path}, [], overwrite=True)


def test_two_outputs_are_two_files(tmp_path, capsys):
    both = str(tmp_path / "a.jsonl")
    assert main(["evaluate", "no-run", "--data", "sample:test", "--output", both, "--predictions", both]) == 1
    assert "--output and --predictions name the same file" in capsys.readouterr().err
    with pytest.raises(MtlReError, match="--output and --predictions name the same file"):
        check_outputs({"output": tmp_path / "a.json", "predictions": tmp_path / "a.json"}, [], overwrite=True)


def test_a_directory_s_files(tmp_path):
    (tmp_path / "train.json").write_text('[{"guid": "mine"}]')
    with pytest.raises(MtlReError, match=r"train\.json exists"):
        check_directory("DIR", tmp_path, ["valid.json", "train.json"], [], overwrite=False)
    check_directory("DIR", tmp_path, ["valid.json"], [], overwrite=False)
    with pytest.raises(MtlReError, match="is a file; name a directory"):
        check_directory("DIR", tmp_path / "train.json", ["valid.json"], [], overwrite=True)


def test_paths_that_do_not_exist_are_compared_by_name(tmp_path):
    assert same_file(tmp_path / "a" / ".." / "b", tmp_path / "b")
    assert not same_file(tmp_path / "a", tmp_path / "b")


def test_the_writer_refuses_a_folder_that_holds_an_input(tmp_path, monkeypatch):
    """A relative output and an absolute input are compared as what they lead to."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rows.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    protect([tmp_path / "run" / "rows.json"])
    try:
        with pytest.raises(MtlReError, match="is an input of this command"), whole_folder(Path("run")):
            pass
        write_text(Path("other.json"), "[]")
    finally:
        protect([])


@pytest.mark.parametrize("name", ["a.csv", "a.yaml", "a.json", "a.jsonl", "a.md"])
def test_a_file_is_ours_as_long_as_it_is_as_we_wrote_it(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(PREDICTION))
    remember([path, tmp_path / "missing"])
    assert is_ours(path)
    path.write_text(path.read_text() + " ")  # a hand was at it, or it is another's
    assert not is_ours(path)
    with pytest.raises(MtlReError, match="was changed since mtl-re wrote it"):
        check_outputs({"output": path}, [], overwrite=False)


def test_where_no_note_can_be_kept_only_forms_of_our_own_are_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_RE_CACHE", "/proc/no/place")
    for name, ours in (("a.jsonl", True), ("a.csv", False)):
        (tmp_path / name).write_text(json.dumps(PREDICTION) if ours else "id,pred_label,probs\n")
        remember([tmp_path / name])
        assert is_ours(tmp_path / name) is ours


def test_patterns_find_files(tmp_path):
    (tmp_path / "labels_org.png").write_text("mine")
    assert files_in(tmp_path, ("labels.png", "labels_*.png")) == [tmp_path / "labels_org.png"]
    with pytest.raises(MtlReError, match=r"labels_org\.png exists"):
        check_directory("output", tmp_path, ("labels.png", "labels_*.png"), [], overwrite=False)
