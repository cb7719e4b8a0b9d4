"""Checkpoints on disk are whole or absent, whatever fails and whenever."""

import errno
import json
import os
from contextlib import suppress

import pytest
import torch

from mtl_re import files
from mtl_re.errors import MtlReError
from mtl_re.training import checkpoint

STATE = {"step": 1, "text": "관계"}


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"a": torch.randn(3, 4, generator=generator), "b": torch.arange(5)},
        "optimizer": {"a//step": torch.tensor(2.0)},
        "random": {"0/cpu": torch.get_rng_state()},
    }


def save(folder, step, keep=2, seed=0, **state):
    return checkpoint.save(folder, step, tensors(seed), STATE | state, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_at(monkeypatch, owner, name, call):
    """Make the call-th call of a function raise "disk full"; returns a counter of calls."""
    real, calls = getattr(owner, name), [0]

    def failing(*arguments, **named):
        calls[0] += 1
        if calls[0] == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, failing)
    return calls


# ---- save and load -------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = save(tmp_path / "deep" / "checkpoints", 120)
    assert path.name == "step-000120"
    assert names(path) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    found = checkpoint.read_checkpoint(path)
    assert found.state == STATE
    assert found.path == path
    for stem, group in tensors().items():
        assert set(found.tensors[stem]) == set(group)
        for name, tensor in group.items():
            assert torch.equal(found.tensors[stem][name], tensor)
            assert found.tensors[stem][name].dtype == tensor.dtype


def test_views_and_transposes_are_saved_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    path = checkpoint.save(tmp_path, 1, {"model": {"t": base.T, "row": base[1]}}, {}, 1)
    found = checkpoint.read_checkpoint(path).tensors["model"]
    assert torch.equal(found["t"], base.T)
    assert torch.equal(found["row"], base[1])


def test_manifest_is_written_last_and_lists_all_else(tmp_path, monkeypatch):
    order = []
    real = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda path, text: (order.append(path.name), real(path, text)))
    path = save(tmp_path, 1)
    assert order[-1] == "manifest.json"
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert set(files) == set(names(path)) - {"manifest.json"}
    assert all(len(entry["sha256"]) == 64 and entry["size"] > 0 for entry in files.values())


def test_older_ones_are_pruned_after_the_new_one_stands(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-000002", "step-000003"]
    seen = []
    real = checkpoint.shutil.rmtree
    monkeypatch.setattr(
        checkpoint.shutil,
        "rmtree",
        lambda path, *rest, **named: (seen.append((path.name, names(tmp_path))), real(path, *rest, **named)),
    )
    save(tmp_path, 4)
    removed = [(name, present) for name, present in seen if name == "step-000002"]
    assert removed
    assert all("step-000004" in present for _, present in removed)
    assert names(tmp_path) == ["step-000003", "step-000004"]


def test_steps_beyond_six_digits_are_ordered_by_number(tmp_path):
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path)[0].path.name == "step-1000000"


def test_leftovers_of_a_kill_are_ignored_and_removed(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".partial-step-000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path)[0].path.name == "step-000001"
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_other_folders_are_left_alone(tmp_path):
    for name in ("step-old", "step-000001-mine", "notes"):
        (tmp_path / name).mkdir(parents=True)
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["notes", "step-000001-mine", "step-000003", "step-old"]


def test_no_checkpoint_at_all(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_saving_a_step_again_keeps_the_later_state(tmp_path):
    """The last step is saved at the epoch's end and once more after the final evaluation."""
    save(tmp_path, 5, best=None)
    save(tmp_path, 5, best=1.0)
    assert checkpoint.newest(tmp_path)[0].state["best"] == 1.0
    assert names(tmp_path) == ["step-000005"]


def test_a_damaged_folder_of_the_same_step_is_replaced(tmp_path):
    (save(tmp_path, 5) / "state.json").write_text("{}")
    save(tmp_path, 5)
    assert checkpoint.newest(tmp_path)[1] == []


@pytest.mark.parametrize("keep", [1, 2])
def test_a_save_never_prunes_itself(tmp_path, keep):
    """After a fall-back the damaged checkpoints of later steps are still there; they must not crowd out good ones."""
    for step in (9, 10):
        (save(tmp_path, step) / "state.json").write_text("{}")
    save(tmp_path, 3, keep=keep)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.path.name == "step-000003"


# ---- damage --------------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "bit flip": (flip, "damaged"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "damaged|not a whole"),
    "empty": (lambda path: os.truncate(path, 0), "damaged|not a whole"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "damaged"),
    "missing": (lambda path: path.unlink(), "missing|not a whole"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_an_older_one_taken(tmp_path, name, damage):
    save(tmp_path, 1)
    hurt, message = DAMAGE[damage]
    hurt(save(tmp_path, 2) / name)
    with pytest.raises(MtlReError, match=f"step-000002: .*{name.split('.')[0]}.*({message})"):
        checkpoint.read_checkpoint(tmp_path / "step-000002")
    found, faults = checkpoint.newest(tmp_path)
    assert found.path.name == "step-000001"
    assert len(faults) == 1
    assert "step-000002" in faults[0]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"files": []}', '{"files": {}}', '{"files": {"state.json": 3}}', "[" * 100_000],
    ids=lambda text: text[:30] or "empty",
)
def test_damaged_manifest(tmp_path, text):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(text)
    found, faults = checkpoint.newest(tmp_path)
    assert found.path.name == "step-000001"
    assert len(faults) == 1


def test_manifest_cannot_point_elsewhere(tmp_path):
    path = save(tmp_path / "checkpoints", 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (tmp_path / "state.json").write_bytes((path / "state.json").read_bytes())
    manifest["files"]["../../state.json"] = manifest["files"].pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MtlReError, match="step-000001"):
        checkpoint.read_checkpoint(path)


# ---- a disk that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (checkpoint, "save_file", (1, 2, 3)),
        (checkpoint, "_write", (1, 2)),
        (os, "fsync", range(1, 8)),
        (os, "rename", (1,)),
    ],
    ids=["save_file", "write", "fsync", "rename"],
)
def test_full_disk_leaves_the_old_one_whole(tmp_path, owner, name, calls):
    for call in calls:
        folder = tmp_path / f"{name}-{call}"
        save(folder, 1, keep=1)
        with pytest.MonkeyPatch.context() as patch:
            counter = fail_at(patch, owner, name, call)
            with pytest.raises(MtlReError, match=r"step-000002: checkpoint not written .*No space left"):
                save(folder, 2, keep=1)
        assert counter[0] >= call
        found, _ = checkpoint.newest(folder)
        assert found.state["step"] == 1
        assert "step-000001" in names(folder), f"{name} call {call}: pruned before the new one stood"
        assert not list(folder.glob(".partial-*"))
        save(folder, 2, keep=1)
        assert names(folder) == ["step-000002"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlReError, match="checkpoint not written"):
        save(tmp_path / "file" / "checkpoints", 1)


# ---- publish_folder ------------------------------------------------------------------------------------------------


def folder_with(path, text):
    path.mkdir()
    (path / "inner").mkdir()
    (path / "config.json").write_text(text)
    (path / "inner" / "x").write_text(text)
    return path


def test_publish_replaces_a_folder(tmp_path):
    final = folder_with(tmp_path / "model", "old")
    files.publish_folder(folder_with(tmp_path / "build", "new"), final)
    assert (final / "config.json").read_text() == "new"
    assert names(tmp_path) == ["model"]
    files.publish_folder(folder_with(tmp_path / "build", "newer"), final)
    assert (final / "inner" / "x").read_text() == "newer"


def test_publish_where_nothing_was(tmp_path):
    files.publish_folder(folder_with(tmp_path / "build", "new"), tmp_path / "model")
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["rename", "fsync"])
def test_failed_publish_leaves_a_whole_folder(tmp_path, name):
    """Whatever fails, `model/` is there and is the old one or the new one."""
    for call in range(1, 8):
        place = tmp_path / str(call)
        place.mkdir()
        final = folder_with(place / "model", "old")
        build = folder_with(place / "build", "new")
        with pytest.MonkeyPatch.context() as patch:
            counter = fail_at(patch, os, name, call)
            with suppress(OSError):
                files.publish_folder(build, final)
        assert final.is_dir(), f"{name} call {call}: no model is left"
        assert {(final / "config.json").read_text(), (final / "inner" / "x").read_text()} in ({"old"}, {"new"})
        if counter[0] < call:
            break
    assert call > 2
