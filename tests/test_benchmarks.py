"""The benchmark is fair (same pool, no padding in the limit, turns), counts what was read, reports what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # experiments are no installed package
    sys.path.append(str(ROOT))

from experiments.benchmarks import __main__ as bench  # noqa: E402
from experiments.benchmarks import inputs, measure, memory, orders, report, rows  # noqa: E402
from experiments.benchmarks.setting import PREDICT, TRAIN, Setting  # noqa: E402

LENGTHS = np.random.default_rng(0).gamma(5, 12, 1600).astype(np.int64) + 8


# ---- orders ------------------------------------------------------------------------------------------------------


def test_a_few_steps_are_spread_over_all():
    assert orders.evenly(range(10), 5) == [1, 3, 5, 7, 9]
    assert orders.evenly("abc", 5) == list("abcab")


def test_the_limit_reads_every_row_once_and_no_padding():
    passes = orders.exact_passes(LENGTHS, 2000, 0)
    assert sorted(np.concatenate(passes)) == list(range(len(LENGTHS)))
    assert orders.padded_tokens(LENGTHS, passes) == LENGTHS.sum()
    assert max(LENGTHS[part].sum() for part in passes) <= 2000


def test_the_limit_takes_as_many_tokens_a_step_as_the_others():
    wanted = 32 * LENGTHS.mean()
    steps = orders.exact_steps(LENGTHS, wanted, 50, 0)
    assert sorted(row for step in steps for part in step for row in part) == list(range(len(LENGTHS)))
    assert np.mean([sum(LENGTHS[part].sum() for part in step) for step in steps]) == pytest.approx(wanted)


def test_grouped_steps_stand_for_all_lengths_and_pad_little():
    whole = orders.grouped_steps(LENGTHS, 32, 50, 0)
    assert sorted(np.concatenate(whole)) == list(range(1600))
    few = orders.grouped_steps(LENGTHS, 32, 8, 0)
    assert np.concatenate([LENGTHS[step] for step in few]).mean() == pytest.approx(LENGTHS.mean(), rel=0.05)
    shuffled = orders.shuffled_steps(1600, 32, 50, 0)
    assert sorted(np.concatenate(shuffled)) == list(range(1600))
    assert orders.padded_tokens(LENGTHS, whole) < 1.2 * LENGTHS.sum()
    assert orders.padded_tokens(LENGTHS, shuffled) > 1.5 * LENGTHS.sum()


# ---- plan --------------------------------------------------------------------------------------------------------


def planned(*arguments: str) -> list[Setting]:
    options = bench._completed(bench.parser().parse_args(arguments))
    bench._wish(options, "work")
    folders = dict.fromkeys([*bench.ENCODERS, "growth", "extract"], "folder")
    made = {
        "train": "t",
        "folders": folders,
        "networks": folders,
        "predict": folders,
        "growth": dict.fromkeys(("1", "10", "1000"), "g"),
    }
    made["documents"] = made["growth"]
    return list(bench.plan(options, made, "work"))


def test_contenders_take_turns():
    settings = planned("--only", "train", "--encoders", "tiny", "--repeats", "3")
    turns = [[one.contender for one in settings if one.repeat == repeat] for repeat in range(3)]
    assert all(sorted(turn) == sorted(TRAIN) for turn in turns)
    assert [turn[0] for turn in turns] == list(TRAIN)[:3]
    same = ("rows", "folder", "batch_size", "steps", "warmup", "precision", "threads", "seed")
    for turn in range(3):
        shared = {tuple(getattr(one, name) for name in same) for one in settings if one.repeat == turn}
        assert len(shared) == 1


def test_the_parts_can_be_chosen():
    settings = planned("--only", "predict", "growth", "--encoders", "tiny", "--repeats", "1")
    assert [one.contender for one in settings] == [*PREDICT, *4 * ["1×", "10×"]]
    grown = planned("--only", "growth", "--times", "1000", "--encoders", "tiny", "--repeats", "1")
    assert [one.encoder for one in grown] == ["predict"]
    sweep = planned("--only", "sweep", "--encoders", "tiny")
    assert len(sweep) == 3 * (1 + len(bench.PASS_COSTS) * len(bench.LENGTH_STEPS))
    assert {(one.pass_cost, one.length_step) for one in sweep if one.contender == "one pass, 8"} == {(10**9, 8)}


def test_time_left_follows_what_the_same_contender_took():
    fast, slow = (Setting("train", name, "tiny", "", "", "") for name in ("ours", "limit"))
    assert bench.time_left([fast, slow, slow], {fast.key: [1.0, 3.0], slow.key: [10.0]}) == 22.0
    assert bench.time_left([slow], {fast.key: [1.0, 3.0]}) == 2.0


def test_a_failure_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    answers = iter(["measure: out of memory", {"rows": 4, "tokens": 80, "wall_s": 2.0}])
    monkeypatch.setattr(bench, "_child", lambda *given: next(answers))
    settings = [Setting("train", name, "tiny", "/secret", "r", "w") for name in ("ours", "limit")]
    records, failed = bench.measure(settings, tmp_path, tmp_path, {})
    assert failed == {"train tiny ours, repeat 0": "measure: out of memory"}
    assert [record["setting"]["contender"] for record in records] == ["limit"]
    assert "/secret" not in (tmp_path / "measurements.jsonl").read_text()
    assert "limit: 40 tokens/s in 2.0 s" in capsys.readouterr().err


def test_the_parent_stays_light():
    code = "import sys, experiments.benchmarks.__main__; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---- report ------------------------------------------------------------------------------------------------------


def record(contender: str, repeat: int, seconds: float, part: str = "train", **extra: object) -> report.Record:
    setting = {"part": part, "encoder": "tiny", "contender": contender, "repeat": repeat}
    setting |= {"pass_cost": None, "length_step": None, "batch_size": 32, "threads": 1}
    figures = {"wall_s": seconds, "cpu_s": seconds / 2, "start_mb": 100.0, "peak_mb": 300.0, "rows": 100}
    figures |= {"tokens": 6000, "padded_tokens": 8000, "passes": 8, "steps": 4, "mean_tokens": 60.0, "precision": "no"}
    return {"setting": setting, "figures": figures | extra}


def test_ratios_are_taken_within_a_repeat():
    groups = report.grouped(
        [record("ours", 0, 2), record("ours", 1, 20), record("limit", 0, 1), record("limit", 1, 10)]
    )
    ours, limit = groups["train", "tiny", "ours"], groups["train", "tiny", "limit"]
    assert report.ratios(ours, limit, "wall_s") == [0.5, 0.5]
    assert report.rate(ours[0], "wall_s", rows=True) == 50
    assert report.padding(ours[0]) == 25


def test_the_report_says_what_was_reached(tmp_path):
    records = [record(name, turn, 4.0) for name in TRAIN for turn in (0, 1)]
    records += [record("ours", turn, 2.0) for turn in (0, 1)] + [record("limit", turn, 1.9) for turn in (0, 1)]
    records += [record(name, 0, 3.0, "predict") for name in PREDICT]
    records += [record(f"{times}×", 0, times, "growth", rows=100 * times, own_mb=50) for times in (1, 10)]
    records += [record("64, 8", 0, 2.0, "sweep"), record("one pass, 8", 0, 1.0, "sweep")]
    head = {"about": {"machine": "a toy"}, "skipped": {"ko-mini": "not here"}, "int8": {}}
    report.write(tmp_path, records, head)
    text = (tmp_path / "README.md").read_text()
    lines = [line.replace("\\", "") for line in text.splitlines() if "÷" in line]
    assert lines[0].endswith("(the limit) | 0.95 [0.95–0.95] | 0.95 [0.95–0.95] | 1 | no |")
    assert lines[2].endswith("(KLUE recipe) | 2.00 [2.00–2.00] | 2.00 [2.00–2.00] | 4 | no |")
    assert "left out: ko-mini (not here)" in text
    assert "From 100 to 1,000 rows, seconds grow as rows^1.00 and memory as rows^0.00." in text
    assert text.index("one pass, 8") < text.index("64, 8")  # the sweep's best first
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(TRAIN) * 2 + len(PREDICT) + 4
    assert (tmp_path / "bench.png").stat().st_size > 10_000


# ---- measurements ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """Rows of the sample and a tiny encoder, as `inputs` makes them."""
    work = tmp_path_factory.mktemp("bench")
    wish = {"work": str(work), "train": "sample:train", "test": "sample:test", "pool": 64, "tokenizer": None}
    wish |= {"encoders": {"tiny": None}, "predict": [], "predict_rows": {}, "contenders": [], "times": []}
    return inputs.prepare(wish | {"checkpoint": None, "growth_rows": None}) | {"work": str(work)}


def small(made: dict, contender: str, **changes: object) -> Setting:
    values = {"part": "train", "encoder": "tiny", "folder": made["folders"]["tiny"], "rows": made["train"]}
    values |= {"contender": contender, "work": made["work"], "batch_size": 8, "steps": 3, "precision": "no"}
    return Setting(**{**values, **changes})


@pytest.mark.parametrize(
    "contender",
    ["ours", "limit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("trainer_dynamic", "cross_encoder"))],
)
def test_a_contender_counts_what_it_read(made, contender):
    found = measure.run(small(made, contender))
    assert found["steps"] == 3
    assert found["precision"] == "no"
    assert found["rows"] <= found["tokens"] <= found["padded_tokens"]
    assert found["wall_s"] > 0
    assert found["cpu_s"] > 0
    assert found["peak_mb"] >= found["start_mb"] > 10
    if contender == "limit":
        assert found["tokens"] == found["padded_tokens"]
    else:
        assert found["rows"] == 24


def test_the_sweep_moves_the_constants(made, monkeypatch):
    from mtl_re.features import collate
    from mtl_re.model.cpu import packed
    from mtl_re.training import setup as prepare

    monkeypatch.setattr(packed, "FAMILIES", dict(packed.FAMILIES))
    for module, name in ((collate, "LENGTH_STEP"), (prepare, "LENGTH_STEP")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setitem(collate.PASS_COST, "cpu", collate.PASS_COST["cpu"])
    one = measure.run(small(made, "one pass, 1", part="sweep", pass_cost=10**9, length_step=1))
    many = measure.run(small(made, "1, 1", part="sweep", pass_cost=1, length_step=1))
    assert one["passes"] == 3 < many["passes"]
    assert many["padded_tokens"] < one["padded_tokens"]
    monkeypatch.undo()
    whole = measure.run(small(made, "packed", part="sweep"))
    assert whole["passes"] == 3
    assert whole["tokens"] == one["tokens"]
    assert whole["padded_tokens"] % packed.PACKED_STEP == 0
    assert one["tokens"] == many["tokens"]


def test_all_read_the_same_pool(made):
    assert len(rows.read(made["train"])) == 64
    assert len(set(rows.flat_labels(rows.read(made["train"])))) > 5


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks", "--encoders", "tiny", "--rows", "64", "--steps", "2"]
    command += [
        "--warmup",
        "1",
        "--batch-size",
        "8",
        "--predict-rows",
        "16",
        "--predict-batch-size",
        "8",
        "--times",
        "1",
    ]
    command += ["--repeats", "1", "--threads", "1", "--output", str(tmp_path / "out")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()]
    assert [line["setting"]["contender"] for line in lines] == [*TRAIN, *PREDICT, *4 * ["1×"]]
    assert (tmp_path / "out" / "bench.png").is_file()
    assert "min left" in done.stderr


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """What the measurements of growth are made on."""
    work = str(tmp_path_factory.mktemp("work"))
    wish = {"work": work, "train": "sample:train", "test": "sample:test", "pool": 64, "tokenizer": None}
    wish |= {"encoders": {}, "predict": [], "predict_rows": {}, "contenders": [], "times": [2], "checkpoint": None}
    return inputs.prepare(wish | {"growth_rows": 10})


@pytest.mark.parametrize("command", ["predict", "evaluate", "extract", "train"])
def test_growth_runs_the_command_from_file_to_file(grown, tmp_path, command):
    setting = Setting(
        "growth",
        "2×",
        command,
        grown["networks"]["extract" if command == "extract" else "growth"],
        grown["documents" if command == "extract" else "growth"][2],
        str(tmp_path),
        batch_size=8,
        precision="no",
    )
    found = measure.run(setting)
    assert found["rows"] == 20
    assert 10 < found["own_mb"] < found["peak_mb"]


@pytest.mark.parametrize(("slope", "verdict"), [(0.1, "flat"), (8.0, "GROWS")])
def test_memory_report_tells_flat_from_growing(tmp_path, slope, verdict):
    lines = ["seconds,done,resident_mb,peak_mb"]
    lines += [f"{2.0 * step},{step},{1000 + slope * step:.0f},{2000 + slope * step:.0f}" for step in range(301)]
    (tmp_path / "train-glibc.csv").write_text("\n".join(lines) + "\n")
    run = {"name": "train-glibc", "began": "2026-11-25 12:00", "commit": "abc", "ended": "exit code 0", "per_step": 1}
    (tmp_path / "runs.jsonl").write_text(json.dumps(run | {"threads": 1, "arguments": ["train"]}) + "\n")
    memory.write_report(tmp_path, "made for this test")
    (row,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| train")]
    assert f"| {verdict} |" in row
    assert (tmp_path / "memory.png").stat().st_size > 1000
