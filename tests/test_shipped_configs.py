"""Every YAML file under experiments/configs: its options exist, and a tiny stand-in takes a step under it."""

from importlib import import_module
from pathlib import Path

import pytest
from families import make_family

from mtl_re import cli
from mtl_re.adapt.adapt import adapt
from mtl_re.commands import COMMANDS
from mtl_re.training.train import train

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "experiments" / "configs").rglob("*.y*ml"))
STAND_IN = ["--data.train=sample:train", "--data.limit=40", "--train.precision=no", "--train.max_steps=1"]
FAMILY = {
    "klue/roberta-": "klue-roberta",
    "FacebookAI/xlm-roberta-": "xlm-roberta",
    "kakaobank/kf-deberta": "kf-deberta",
    "intfloat/multilingual-e5-": "e5",
}
"""Start of a hub id → the family of `families` that stands in for it; anything else is played by `scratch:tiny`."""

REAL = {"train": train, "adapt": adapt}


@pytest.fixture(scope="module")
def parser():
    return cli.build_parser()


def parsed(parser, path: Path, monkeypatch, *more: str):
    """What a command would be called with."""
    taken = []
    command = "adapt" if path.name.startswith("adapt") else "train"
    module = import_module({"train": "mtl_re.training.train", "adapt": "mtl_re.adapt.adapt"}[command])
    monkeypatch.setattr(module, command, lambda config, name: taken.append((config, name)))
    given = parser.parse_args([command, "--config", str(path), *more])[command]
    row = COMMANDS[command]
    row.call(given, row.made(given))
    return taken[0]


def test_none_is_missed():
    assert {path.stem for path in CONFIGS} >= {
        *(f"klue-roberta-{size}" for size in ("small", "base", "large")),
        *(
            "xlm-roberta-large",
            "kf-deberta-base",
            "multilingual-e5-small",
            "ko-mini",
            "ko-mini-recommended",
            "sample",
            "adapt-ko-mini",
        ),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_options_exist(path, parser, monkeypatch):
    config, name = parsed(parser, path, monkeypatch)
    assert name == path.stem
    assert config.data.train
    assert path.read_text(encoding="utf-8").startswith("# "), "what it is, and what was run"


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_tiny_stand_in_of_its_family_takes_a_step(path, parser, monkeypatch, tmp_path):
    named = parsed(parser, path, monkeypatch)[0].model.encoder
    family = next((name for start, name in FAMILY.items() if named.startswith(start)), None)
    assert family or named.count("/") != 1, f"{named}: which family is it of?"
    encoder = make_family(family, tmp_path / "encoder", 256) if family else "scratch:tiny"
    adapting = path.name.startswith("adapt")
    small = ["--exclude=sample:valid"] if adapting else ["--data.valid=null", "--data.valid_fraction=0.2"]
    places = [f"--model.encoder={encoder}", f"--train.run_dir={tmp_path / 'run'}"]
    config, name = parsed(parser, path, monkeypatch, *STAND_IN, *small, *places)
    assert (REAL["adapt" if adapting else "train"](config, name) / "model" / "model.safetensors").is_file()


def test_an_unknown_option_would_be_seen(tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text("data: {train: x, colour: red}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(path)])
    assert "colour" in capsys.readouterr().err
