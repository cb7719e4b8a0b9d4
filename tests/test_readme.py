"""Every command line of the README is one that the program takes, and is run; the Korean README has the same ones.

Every path that the documents name exists.
"""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from families import make_family
from transformers import BertConfig, BertForTokenClassification

from mtl_re import cli
from mtl_re.config import GROUPS
from mtl_re.data import sample
from tests.conftest import sample_examples, scratch_tokenizer

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"^(?:\S+=\S+ )*(?:.*-m mtl_re|mtl-re) (?P<rest>.*)$")
TINY = """
data: {train: train.json, max_length: 128}
model: {encoder: "scratch:tiny"}
train: {epochs: 1, max_steps: 4}
"""
"""In the place of the quick start's large encoder; whatever else its command lines say stands."""
YAML = {"F.yaml": "data:\n  train: train.json\n", "STUDY.yaml": "{}\n"}
"""Placeholders that must be files for a command line to parse."""


def blocks(name: str, language: str) -> list[str]:
    """Return the fenced blocks of a document."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(name: str) -> list[str]:
    """Return the command lines of a document's shell blocks, comments and launchers taken off."""
    lines = [line for block in blocks(name, "sh") for line in block.splitlines()]
    found = [match["rest"] for line in lines if (match := LINE.match(line.strip()))]
    return [rest.split("  #")[0].strip() for rest in found]


CASES = [(name, command) for name in ("README.md", "experiments/README.md") for command in commands(name)]


@pytest.fixture(scope="module")
def parser():
    return cli.build_parser()


def test_there_are_commands_to_check():
    assert {command.split()[0] for _, command in CASES} >= {
        *("check", "explore", "train", "evaluate", "predict", "export", "extract", "errors", "cooccurrence", "demo"),
    }


def test_the_korean_readme_has_the_same_commands():
    assert commands("README.ko.md") == commands("README.md")
    assert blocks("README.ko.md", "python") == blocks("README.md", "python")


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


PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)(?::([\w.]+))?`")
"""A path in backticks; behind a colon, a name that stands in the file."""
MADE_BY_A_RUN = {
    "model/",
    "report/",
    "runs/NAME",
    "runs/base/report/",
    "klue/roberta-large",
    "results/DATE_name/",
    "experiments/results/DATE_name/",
}
DOCUMENTS = ("README.md", "README.ko.md", "CONTRIBUTING.md", "experiments/README.md")


def missing_paths(text: str, folders: tuple[Path, ...]) -> list[str]:
    """Return what a document names that is in none of the folders, or in no such file."""
    missing = []
    for path, name in PATH.findall(text):
        there = [folder / path for folder in folders if (folder / path).exists()]
        defined = rf"^\s*(?:def |class |)(?:{name.split('.')[-1]})\b"
        if not there or (name and not re.search(defined, there[0].read_text(encoding="utf-8"), re.MULTILINE)):
            missing.append(f"{path}:{name}")
    return [path for path in missing if path.removesuffix(":") not in MADE_BY_A_RUN]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert missing_paths(text, (ROOT, ROOT / "mtl_re", ROOT / "experiments")) == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_a_path_that_does_not_exist_would_be_seen():
    assert len(PATH.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) > 40
    text = "`model/pooling.py:POOLINGS` `model/pooling.py:PUDDLES` `rooms/pooling.py`"
    assert missing_paths(text, (ROOT / "mtl_re",)) == ["model/pooling.py:PUDDLES", "rooms/pooling.py:"]


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, split, size in (("train", "train", 400), ("dev", "valid", 60)):
        Path(f"{name}.json").write_text(json.dumps(list(sample.rows(split, size))), encoding="utf-8")
    write_contest_csv(Path("train.csv"), sample.rows("train", 400), labelled=True)
    write_contest_csv(Path("test_data.csv"), sample.rows("test", 20))
    Path("texts").mkdir()
    Path("texts/one.txt").write_text(next(iter(sample.rows("test", 1)))["sentence"], encoding="utf-8")
    write_entity_finder(Path("MODEL"))
    make_family("xlm-roberta", "FacebookAI/xlm-roberta-large")
    encoders = ("klue-roberta-base", "klue-roberta-large", "multilingual-e5-small")
    for name in ("F.yaml", *(f"experiments/configs/{encoder}.yaml" for encoder in encoders)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(TINY, encoding="utf-8")
    run, done = "", []
    for command in commands("README.md"):
        name = command.split()[0]
        # tests/page/test_page.py, tests/predict/test_ray.py; the study needs the hub (tests/study/test_workers.py)
        if name in ("demo", "ablate") or "--engine ray" in command:
            continue
        arguments = shlex.split(command.replace("runs/NAME", run or "runs/NAME"))
        assert cli.main(arguments) == 0, (command, capsys.readouterr().err)
        said = capsys.readouterr().out
        run = run or (said.splitlines()[-1] if name == "train" else "")
        done.append(name)
    assert {
        "check",
        "explore",
        "train",
        "evaluate",
        "errors",
        "cooccurrence",
        "predict",
        "extract",
        "export",
        "trim",
    } == set(done)
    for made in (
        "triples.jsonl",
        "pictures/labels.png",
        "runs/x/model/config.json",
        "metrics.json",
        "errors",
        "exported/model.onnx",
        "xlmr-ko/trim.json",
    ):
        assert Path(made).exists(), made
    with open("submission.csv", encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [str(number) for number in range(20)]
    (block,) = blocks("README.md", "python")
    exec(block.replace("runs/NAME", run), {})


def write_entity_finder(folder: Path) -> None:
    """A token-classification model of random weights."""
    tokenizer = scratch_tokenizer(sample_examples("train", 60), "typed_punct_ko")
    labels = {"id2label": {0: "O", 1: "B-PS", 2: "I-PS", 3: "B-OG"}, "num_labels": 4}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForTokenClassification(BertConfig(vocab_size=len(tokenizer), **sizes, **labels)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_contest_csv(path: Path, rows, labelled: bool = False) -> None:
    """A file of the contest: entities are Python dicts as text; the labels of its test rows are not told."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sentence", "subject_entity", "object_entity", "label", "source"])
        for number, row in enumerate(rows):
            entities = [str(row[f"{role}_entity"]) for role in ("subject", "object")]
            writer.writerow([number, row["sentence"], *entities, row["label"] if labelled else "100", "wikipedia"])
