"""The situations found in the field (shared/cases), each from the command line as its cmd.sh has it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

from mtl_re import cli
from mtl_re.files import protect

CASES = SHARED / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases under {CASES}")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, undrawn):
    """Each case runs in an empty directory."""
    monkeypatch.chdir(tmp_path)
    yield
    protect([])


def call(capsys, *words: object) -> tuple[int, str]:
    """Exit code and all that a command says."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_01_an_output_is_no_input(saved, capsys):
    before = (CASES / "01_output_is_input/rows.jsonl").read_bytes()
    for command in (["predict"], ["evaluate", "--resamples", "0"]):
        Path("x.jsonl").write_bytes(before)
        code, said = call(capsys, command[0], saved, "--data", "x.jsonl", *command[1:], "--output", "x.jsonl")
        assert code == 1
        assert "is an input of this command" in said
        assert Path("x.jsonl").read_bytes() == before


def test_02_sample_replaces_no_strangers_file(capsys):
    Path("d").mkdir()
    shutil.copy(CASES / "02_sample_overwrites/train.json", "d")
    code, said = call(capsys, "sample", "d", "--train", 3, "--valid", 2, "--test", 2)
    assert code == 1
    assert "--overwrite" in said
    assert Path("d/train.json").read_bytes() == (CASES / "02_sample_overwrites/train.json").read_bytes()


def test_03_extract_names_unknown_types_and_pairs_left_out(saved, capsys):
    asked = ["extract", saved, "--threshold", "0", "--sentence", "김민아는 가나전자 대표이다."]
    code, said = call(capsys, *asked, "--entity", "김민아:PERSON", "--entity", "가나전자:ORGANIZATION")
    assert code == 1
    assert "'PERSON' is unknown to this model (known: " in said
    assert "did you mean PER?" in said
    code, said = call(capsys, *asked, "--entity", "김민아:per", "--entity", "가나전자:org")
    assert code == 1
    assert "did you mean PER?" in said
    nested = ["--entity", "서울대학교병원:ORG", "--entity", "대학교@2:ORG"]
    code, said = call(capsys, *asked[:-1], "서울대학교병원은 대학교에 있다.", *nested)
    assert code == 0
    assert said.count("서울대학교병원") == 2  # both orders of the nested pair
    code, said = call(capsys, *asked, "--entity", "김민아:PER")
    assert "a single entity: a relation needs two" in said


def test_05_a_vocabulary_that_does_not_know_the_text(capsys):
    encoder = CASES / "05_mostly_unk/en_encoder"
    words = ["train", "--data.train", "sample:train", "--data.limit", 200, "--model.encoder", encoder]
    words += ["--data.markers", "typed_punct", "--train.max_steps", 1, "--train.run_dir", "r"]
    code, said = call(capsys, *words)
    assert code == 1
    assert "of the training text's tokens are unknown to" in said
    code, said = call(capsys, *words, "--data.max_unknown", 1)
    assert code == 0
    assert "warning: " in said
    assert "of the training tokens are unknown to the encoder ([UNK])" in said
    code, said = call(capsys, "predict", "r", "--data", "sample:test", "--output", "out.csv")
    assert code == 0
    assert "of the tokens are unknown to this model's vocabulary" in said


def test_09_a_run_is_an_encoder_to_start_from(saved, capsys):
    words = ["train", "--data.train", "sample:train", "--data.limit", 200, "--train.max_steps", 1]
    code, said = call(capsys, *words, "--model.encoder", saved, "--train.run_dir", "q")
    assert "--data.max_length 128 fits" in said
    words += ["--data.max_length", 128]
    code, said = call(capsys, *words, "--model.encoder", saved, "--train.run_dir", "r")
    assert code == 0, said
    config = json.loads((saved / "config.json").read_text())
    same = ["--model.pooling", config["pooling"], "--data.markers", config["markers"]]
    code, said = call(capsys, *words, *same, "--model.init", saved, "--train.run_dir", "s")
    assert code == 0, said
    code, said = call(capsys, *words, *same, "--model.init", saved, "--model.heads", "flat", "--train.run_dir", "t")
    assert code == 1
    assert "has other labels or heads" in said


@pytest.mark.parametrize("name", ["cp949.csv", "utf16.csv"])
def test_10_what_korean_excel_writes(capsys, name):
    code, said = call(capsys, "check", CASES / "10_excel_encodings" / name)
    assert code == 0
    assert "2 rows, 2 good" in said
    assert "CSV UTF-8" in said


def test_12_own_labels(capsys):
    rows = CASES / "12_own_labels/rows.json"
    code, said = call(capsys, "check", rows)
    assert code == 1
    assert "labels of another set: genre:artist (1), genre:origin (1); `mtl-re heads " in said
    assert call(capsys, "heads", rows, "--output", "heads.yaml")[0] == 0
    assert call(capsys, "check", rows, "--heads", "heads.yaml")[0] == 0


def test_14_a_blank_source_is_none(capsys):
    assert call(capsys, "check", CASES / "14_blank_source/rows.json")[0] == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("boostcamp_entity_type.csv", "boostcamp"),
        ("korre_flat.csv", "korre"),
        ("label_studio.json", "label-studio"),
        ("semeval.txt", "semeval"),
        ("tacred.json", "tacred"),
    ],
)
def test_16_other_shapes_are_named_and_converted(capsys, name, kind):
    file = CASES / "16_other_shapes" / name
    code, said = call(capsys, "check", file)
    assert code == 1
    assert f"--from {kind}" in said
    code, said = call(capsys, "convert", file, "--from", kind, "--output", "rows.jsonl")
    assert code == 0
    assert "1 rows" in said
    (row,) = map(json.loads, Path("rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["sentence"][row["subject_entity"]["start_idx"] :].startswith(row["subject_entity"]["word"])
    code, said = call(capsys, "convert", file, "--from", kind, "--output", "mine.txt")
    assert code == 0


def test_17_nested_entities(saved, capsys):
    rows = CASES / "17_nested/nested.json"
    assert call(capsys, "check", rows)[0] == 0
    assert call(capsys, "predict", saved, "--data", rows, "--output", "out.jsonl")[0] == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 1


def test_19_a_dot_in_a_class(capsys):
    heads = CASES / "19_dot_in_group/heads.yaml"
    code, said = call(capsys, "check", CASES / "12_own_labels/rows.json", "--heads", heads)
    assert code == 1
    assert "coarse class 'music.genre' has a dot" in said


@pytest.mark.slow
def test_22_the_card_s_pipeline_takes_klue_rows(saved, capsys):
    assert call(capsys, "export", saved, "e")[0] == 0
    assert "pipeline_tag" not in Path("e/README.md").read_text(encoding="utf-8")
    program = (CASES / "22_hub_snippet/try.py").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("relation-extraction {'label': ")


@pytest.mark.parametrize("name", ["wrapped.json", "wrapped.jsonl"])
def test_23_rows_inside_an_object(capsys, name):
    shutil.copy(CASES / "23_wrapped_json/wrapped.json", name)
    code, said = call(capsys, "check", name)
    if name.endswith(".json"):
        assert code == 0
        assert "2 rows, 2 good" in said
    else:
        assert code == 1
        assert "rename it to .json" in said
