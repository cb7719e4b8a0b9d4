"""Law: whatever call of a save fails, and however a checkpoint's files rot, a whole one is left and found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from disk_faults import (
    PythonDisk,
    checkpoint_faults,
    mutations,
    same_checkpoint,
    save_small,
    small_tensors,
)
from distributed_worker import assert_same_run, last_checkpoint, make_config, rows_file, shrink

from mtl_re import files
from mtl_re.errors import MtlReError
from mtl_re.model.encoders import load_encoder
from mtl_re.model.network import load
from mtl_re.training import checkpoint, run
from mtl_re.training.train import train

SCRIPT = Path(__file__).parents[1].joinpath("disk_faults.py")


@pytest.mark.parametrize(
    ("step", "keep", "old"),
    [(2, 1, True), pytest.param(1, 1, True, marks=pytest.mark.slow), pytest.param(2, 1, False, marks=pytest.mark.slow)],
)
def test_every_call_of_a_save_may_fail(tmp_path, step, keep, old):
    assert checkpoint_faults(PythonDisk(), tmp_path / "saves", step, keep, old) > 40


def test_rotten_files_are_found_out(tmp_path):
    found = mutations(tmp_path, 150, seed=7)
    assert found["detected"] > 120, found


def test_the_enumeration_finds_a_save_that_prunes_first(tmp_path, monkeypatch):
    """accelerate's order: what the enumeration is there to catch."""
    real = files.publish_folder

    def prune_first(build, final):
        for old in final.parent.glob("step-*"):
            checkpoint.shutil.rmtree(old)
        real(build, final)

    monkeypatch.setattr(files, "publish_folder", prune_first)
    with pytest.raises(AssertionError, match="no whole checkpoint is left"):
        checkpoint_faults(PythonDisk(), tmp_path / "saves", step=2, keep=1, old=True)


def test_the_mutations_find_a_load_that_does_not_check(tmp_path, monkeypatch):
    save_small(tmp_path, 1, seed=1)
    monkeypatch.setattr(checkpoint, "digest", lambda path: "same")
    monkeypatch.setattr(checkpoint.json, "loads", _without_digests(json.loads))
    with pytest.raises(AssertionError, match="taken for sound"):
        mutations(tmp_path / "more", 400, seed=7)


def _without_digests(real):
    def loads(text):
        found = real(text)
        for entry in found.get("files", {}).values():
            entry["sha256"] = "same"
        return found

    return loads


def test_tensors_of_different_seeds_differ():
    """Or the checks above would pass on anything."""
    one = checkpoint.Checkpoint(Path("x"), small_tensors(1), {"seed": 1})
    assert same_checkpoint(one, 1)
    assert not same_checkpoint(checkpoint.Checkpoint(Path("x"), small_tensors(2), {"seed": 1}), 1)


@pytest.mark.slow
def test_the_command_over_the_c_library(tmp_path):
    """Where there is a C compiler, what Rust writes fails too; 10,000 mutations."""
    call = [sys.executable, str(SCRIPT), "--mutations", "10000", "--output", str(tmp_path / "figures.json")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert min(figures["saves"].values()) > 40, figures
    assert figures["mutations"]["detected"] + figures["mutations"]["harmless"] == 10_000


# ---- a disk that is really full ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB; `mount` grows it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode

    try:
        if mount("-t", "tmpfs", "-o", "size=1500k", "tmpfs"):
            pytest.skip("this user may not mount a file system")
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    yield place, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_full_disk_during_training(small_disk, tmp_path, monkeypatch, capsys):
    """The run stops with one line; after room was made it goes on as if nothing had been."""
    shrink(monkeypatch)
    place, grow = small_disk
    rows = rows_file(tmp_path / "rows.json")
    options = {"data.train": str(rows), "train.save_every": 1, "train.keep": 9, "train.epochs": 3}
    with pytest.raises(MtlReError, match=r"No space left") as caught:
        train(make_config(options | {"train.run_dir": str(place / "run")}))
    assert "\n" not in str(caught.value)
    found = last_checkpoint(place / "run")
    assert 1 <= found.state["state"]["step"] < 12
    assert not list(place.glob("run/checkpoints/.partial-*"))
    assert grow("64m") == 0
    train(make_config(options | {"train.run_dir": str(place / "run"), "train.resume": "auto"}))
    whole = train(make_config(options | {"train.run_dir": str(tmp_path / "whole")}))
    assert_same_run(place / "run", whole)


@pytest.mark.parametrize(("name", "part"), [("metrics.jsonl", "metrics.jsonl"), ("model", "the old one stands")])
def test_full_disk_at_other_files_is_one_line(tmp_path, monkeypatch, name, part):
    shrink(monkeypatch)
    rows = rows_file(tmp_path / "rows.json")

    real = Path.open

    def full(path, *arguments, **named):
        if name in (Path(path).name, "model"):
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **named)

    if name == "model":
        monkeypatch.setattr(files, "publish_folder", full)
    else:
        monkeypatch.setattr(Path, "open", full)
    with pytest.raises(MtlReError, match="No space left on device") as caught:
        train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / "run")}))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_killed_aside_is_put_back(tmp_path):
    """A kill between the two renames of `publish_folder` leaves the old model under another name."""
    (tmp_path / ".old-model").mkdir()
    (tmp_path / ".old-model" / "config.json").write_text("{}")
    files.recover(tmp_path)
    assert (tmp_path / "model" / "config.json").is_file()


def test_damaged_weights_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(MtlReError, match=r"model\.safetensors: not readable"):
        checkpoint.load_weights(tmp_path / "model.safetensors")


def flip(path):
    """The lowest bit of some weight: the file stays a sound one, the numbers stay finite."""
    content = bytearray(path.read_bytes())
    content[-4 * (len(content) // 8)] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_a_trained_model_is_found_out(tmp_path, monkeypatch):
    """By whoever loads it, and by a run that goes on and ends with it as its best."""
    shrink(monkeypatch)
    job = {"data.train": str(rows_file(tmp_path / "rows.json")), "train.run_dir": str(tmp_path / "run")}
    run_dir = train(make_config(job))
    flip(run_dir / "model" / "model.safetensors")
    with pytest.raises(MtlReError, match=r"model\.safetensors: is damaged") as caught:
        load(str(run_dir))
    assert "\n" not in str(caught.value)
    with pytest.raises(MtlReError, match=r"model\.safetensors: is damaged"):
        train(make_config(job | {"train.resume": "auto"}))
    (run_dir / "model" / files.WEIGHTS_SEAL).unlink()
    load(str(run_dir))  # weights without a seal, of the hub say, are taken as they are


def test_an_encoder_that_rots_is_found_out(tmp_path):
    class Saved:
        def save_pretrained(self, folder):
            folder.mkdir(exist_ok=True)
            checkpoint.save_file(small_tensors(1)["model"], folder / "model.safetensors")
            (folder / "config.json").write_text("{}")

    run.write_network(tmp_path, "encoder", Saved(), Saved())
    files.check_weights(tmp_path / "model")
    flip(tmp_path / "model" / "model.safetensors")
    with pytest.raises(MtlReError, match="is damaged"):
        load_encoder(str(tmp_path / "model"), "punct", [], 64, 0)


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    """Whole, but not written by such a run."""
    shrink(monkeypatch)
    rows = rows_file(tmp_path / "rows.json")
    path = checkpoint.save(tmp_path / "run" / "checkpoints", 3, {"model": {"a": torch.zeros(1)}}, {"step": 3}, 1)
    with pytest.raises(MtlReError, match="is no checkpoint of such a run") as caught:
        train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / "run"), "train.resume": "auto"}))
    assert str(path) in str(caught.value)
