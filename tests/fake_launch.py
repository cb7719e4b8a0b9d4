"""Stands in for `accelerate launch` in the tests of studies: trains nothing, and writes what a run directory holds.

Called as `fake_launch.py BEHAVIOUR LOG -m mtl_re train --config C --train.run_dir D --train.resume auto`. It appends
`begin KEY` and `end KEY` to LOG. BEHAVIOUR: `quick`; `slow` (a second); `hang:KEY` (the first run of KEY stays until it
is killed, leaving its progress); `fail:ARM` (cells of that arm fail). `Played` does so without a process.
"""

import contextlib
import io
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml


def note(log: str, text: str) -> None:
    with open(log, "a") as file:
        file.write(f"{text}\n")


def main(behaviour: str, log: str, *words: str) -> None:
    options = dict(itertools.pairwise(words))
    assert words[:3] == ("-m", "mtl_re", "train")
    assert options["--train.resume"] == "auto"
    folder = Path(options["--train.run_dir"])
    config = yaml.safe_load(Path(options["--config"]).read_text())
    note(log, f"begin {folder.name} {os.getpid()}")
    kind, _, which = behaviour.partition(":")
    if kind == "fail" and folder.name.startswith(which):
        print("loading\nmtl-re: error: the moon is not in the right phase\n", file=sys.stderr)
        raise SystemExit(1)
    marks = folder / "checkpoints"
    if kind == "hang" and folder.name == which and not marks.exists():
        signal.signal(signal.SIGTERM, lambda *_: (note(log, f"saved {folder.name}"), sys.exit(0)))
        marks.mkdir(parents=True)
        time.sleep(60)
    if kind == "slow":
        time.sleep(0.7)
    rate = config.get("optim", {}).get("lr", 0.0)
    loss = config.get("loss", {})
    bonus = sum(-((weight - 1) ** 2) for weight in loss.get("weights", {}).values())  # highest at unit weights
    bonus += config["train"]["seed"] % 7 / 10 if "weights" in loss else 0  # and some noise
    lines = [
        {
            "kind": "valid",
            "step": step,
            "epoch": step,
            "selection": 50 + step - abs(rate - 0.01) * 1000 + bonus,
            "best": True,
        }
        for step in (1, 2, 3)
    ]
    if "weighting" in loss:  # two windows, of one and of two steps
        moving = [{"coarse": 1.5, "org": 1.0, "per": 0.5}, {"coarse": 0.9, "org": 1.6, "per": 0.5}]
        common = {"kind": "train", "loss": {"coarse": 1.0}, "labelled_rows": {"coarse": 1}, "weights": moving[1]}
        lines += [common | {"step": 1, "weights_by_step": moving[:1]}]
        lines += [common | {"step": 3, "weights_by_step": [moving[1], moving[1]]}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if kind == "watch":
        time.sleep(1.2)
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.md").write_text("done\n")
    note(log, f"end {folder.name} {os.getpid()}")


class Played:
    """Stands in for the process of a cell: the call is played at once, in this process."""

    def __init__(self, command, stdin, stdout, stderr) -> None:
        self.returncode, said = 0, io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                main(*command[2:])
            except SystemExit as end:
                self.returncode = end.code
        stdout.write(said.getvalue().encode())

    def poll(self) -> int:
        return self.returncode


if __name__ == "__main__":
    main(*sys.argv[1:])
