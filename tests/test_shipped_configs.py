"""Every YAML file under experiments/configs: its options exist, and a tiny stand-in starts under it."""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import pytest

from mtl_re import adapt_run, cli, prepare

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "experiments" / "configs").rglob("*.y*ml"))
STAND_IN = ["--data.train=sample:train", "--data.limit=40", "--model.encoder=scratch:tiny", "--train.precision=no"]


@pytest.fixture(scope="module")
def parser():
    return cli.build_parser()


def parsed(parser, path: Path, monkeypatch, *more: str):
    """What a command would be called with."""
    taken = []
    command = "adapt" if path.name.startswith("adapt") else "train"
    module = import_module(f"mtl_re.{command}")  # by name: `mtl_re.train` is the function until the module is loaded
    monkeypatch.setattr(module, command, lambda config, name: taken.append((config, name)))
    options = parser[0].parse_args([command, "--config", str(path), *more])
    parser[1][command](options[command])()
    return taken[0]


def test_none_is_missed():
    assert {path.stem for path in CONFIGS} >= {
        *(f"klue-roberta-{size}" for size in ("small", "base", "large")),
        *("xlm-roberta-large", "kf-deberta-base", "ko-mini", "ko-mini-recommended", "sample", "adapt-ko-mini"),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_options_exist(path, parser, monkeypatch):
    config, name = parsed(parser, path, monkeypatch)
    assert name == path.stem
    assert config.data.train
    assert path.read_text(encoding="utf-8").startswith("# "), "what it is, and what was run"


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_tiny_stand_in_starts(path, parser, monkeypatch, tmp_path):
    adapting = path.name.startswith("adapt")
    small = ["--exclude=sample:valid"] if adapting else ["--data.valid=null", "--data.valid_fraction=0.2"]
    config, name = parsed(parser, path, monkeypatch, *STAND_IN, *small, f"--train.run_dir={tmp_path / 'run'}")
    with ExitStack() as resources:
        run = (adapt_run.prepare if adapting else prepare.prepare)(config, name, resources)
    assert run.tokenizer.is_fast


def test_an_unknown_option_would_be_seen(tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text("data: {train: x, colour: red}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(path)])
    assert "colour" in capsys.readouterr().err
