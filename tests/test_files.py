"""Files that appear whole or not at all, and locks."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from mtl_re import signals
from mtl_re.errors import MtlReError
from mtl_re.files import cache_dir, locked, whole_file, whole_folder, write_json, write_yaml
from mtl_re.signals import stop_signals


@pytest.mark.parametrize("shared", [False, True])
def test_a_fault_leaves_the_old_file_and_nothing_else(tmp_path, shared):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"이름": 1})
    with suppress(KeyError), whole_file(path, shared) as partial:
        assert partial.suffix == ".json"
        partial.write_text("half")
        raise KeyError
    assert path.read_text(encoding="utf-8") == '{\n "이름": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_said_with_the_files_name(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MtlReError, match=r"a\.yaml: cannot be written \(No space left on device\)"):
        write_yaml(tmp_path / "a.yaml", {"b": 1})
    assert not list(tmp_path.iterdir())


def test_two_writers_of_a_shared_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a", True) as one, whole_file(tmp_path / "a", True) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "a").read_text() == "1"  # the outer block ended last


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    final = tmp_path / "made" / "model"
    for text in ("old", "new"):
        with whole_folder(final) as build:
            (build / f"{text}.txt").write_text(text)
    with suppress(KeyError), whole_folder(final) as build:
        (build / "half.txt").write_text("half")
        raise KeyError
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.txt"))] == [
        (final / "new.txt").relative_to(tmp_path)
    ]
    assert list(final.parent.iterdir()) == [final]


# ---- locks -------------------------------------------------------------------------------------------------------


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path):
    """Such as to a larger disk; and the folder can be replaced again and again."""
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    for content in "ab":
        with whole_folder(tmp_path / "link") as build:
            (build / "file").write_text(content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "out" / "file").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_lock_is_held_once_and_given_back(tmp_path):
    path = tmp_path / "made" / ".lock"
    for _ in range(2):
        with locked(path) as held, locked(path) as second:
            assert held is not None
            assert second is None
        assert path.is_file()
    (tmp_path / "file").touch()
    with pytest.raises(MtlReError, match="cannot be written"), locked(tmp_path / "file" / ".lock"):
        pass


HOLDER = """
import os, sys, time
from pathlib import Path
from unittest.mock import Mock
from mtl_re.files import locked
with locked(Path(sys.argv[1])) as descriptor:
    if sys.argv[2] == "handed on":
        os.dup(descriptor)
    if sys.argv[2] == "alone" or not os.fork():  # a child says so when it has closed what forks close
        print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def holder(path, how, seconds):
    """Another process that holds the lock, and perhaps a child of it that sleeps as long."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how, str(seconds)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_waiting_for_a_lock(tmp_path):
    with holder(tmp_path / ".lock", "alone", 0.5) as process:
        with locked(tmp_path / ".lock") as now:
            assert now is None
        with locked(tmp_path / ".lock", wait=True) as later:
            assert later is not None
        process.wait()


@pytest.mark.parametrize("how", ["forked", "handed on"])
def test_a_killed_holder_frees_the_lock_unless_a_child_was_given_it(tmp_path, how):
    """Loader workers outlive a killed run for a while; a study's training process must keep its cell's lock."""
    process = holder(tmp_path / ".lock", how, 60)
    process.kill()
    process.wait()
    with locked(tmp_path / ".lock") as held:
        assert (held is None) == (how == "handed on")
    os.killpg(process.pid, signal.SIGKILL)  # the child
    process.stdout.close()


# ---- signals -----------------------------------------------------------------------------------------------------


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is before[1]  # a second one acts as usual
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_same_request_may_come_twice(monkeypatch):
    """A scheduler signals a training and its parent, which passes the signal on: the checkpoint is not cut short."""
    killed = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: killed.append(number))
    try:
        with stop_signals() as received:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
            assert not killed
            monkeypatch.setattr(signals, "SAME_REQUEST", -1.0)  # much later somebody means it
            os.kill(os.getpid(), signal.SIGTERM)
            assert killed == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_comes_once():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def work():
        with stop_signals(interrupt=True):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # the clean-up is not disturbed

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.delenv("MTL_RE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert cache_dir().parent == Path(tempfile.gettempdir())
