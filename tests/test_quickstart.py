"""`make demo`: its commands run from any directory, and train as experiments/configs/sample.yaml says."""

import shlex
from pathlib import Path

import pytest

from mtl_re import cli, quickstart
from mtl_re.commands import COMMANDS

SMALL = {"sample": ["--train", "200", "--valid", "30", "--test", "30"], "train": ["--train.max_steps", "2"]}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("fails", [None, "evaluate"])
def test_it_runs_where_there_is_no_repository(tmp_path, monkeypatch, capsys, fails):
    calls = []

    def main(arguments):
        name = arguments[0]
        calls.append(name)
        return int(name == fails) if fails else cli.main([*arguments, *SMALL.get(name, [])])

    monkeypatch.setattr(quickstart, "main", main)
    monkeypatch.chdir(tmp_path)
    assert quickstart.quickstart() == (1 if fails else 0), capsys.readouterr().err
    said = capsys.readouterr().out
    if fails:
        assert calls == ["sample", "train", "evaluate"]
        assert "Done" not in said
    else:
        assert calls == ["sample", "train", "evaluate", "predict"]
        assert "(missing)" not in said
        assert list(tmp_path.glob("runs/demo-*/submission.csv"))


def test_it_trains_as_the_shipped_config_says():
    parser = cli.build_parser()
    config = Path(__file__).parents[1] / "experiments" / "configs" / "sample.yaml"
    spelled, shipped = (
        COMMANDS["train"].made(parser.parse_args(["train", *arguments]).train)
        for arguments in (shlex.split(quickstart.TRAINING), ["--config", str(config)])
    )
    assert spelled == shipped
