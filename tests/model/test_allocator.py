"""The allocator hint: said once where it helps, and nowhere else."""

import pytest

from mtl_re.model.cpu import allocator


@pytest.fixture
def maps(tmp_path, monkeypatch):
    path = tmp_path / "maps"
    path.write_text("7f00-7f01 r-xp 0 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6\n")
    monkeypatch.setattr(allocator, "_MAPS", path)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    return path


@pytest.mark.parametrize(("found", "says"), [(None, "apt-get install libjemalloc2"), ("libjemalloc.so.9", ".so.9 ")])
def test_glibc_on_a_cpu_gets_the_command(maps, monkeypatch, found, says):
    monkeypatch.setattr(allocator.ctypes.util, "find_library", lambda name: found)
    text = allocator.hint("cpu", allocator.WORTH_IT)
    assert "LD_PRELOAD=libjemalloc.so" in text
    assert says in text


@pytest.mark.parametrize("name", allocator.KEEPS_PAGES)
def test_a_better_allocator_is_seen(maps, name):
    maps.write_text(f"{maps.read_text()}7f02-7f03 r-xp 0 fe:00 2 /usr/lib/lib{name}.so.2\n")
    assert allocator.hint("cpu", allocator.WORTH_IT) is None


def test_no_hint_where_nothing_is_gained(maps, monkeypatch):
    assert allocator.hint("cuda", allocator.WORTH_IT) is None
    assert allocator.hint("cpu", allocator.WORTH_IT - 1) is None
    maps.unlink()
    assert allocator.hint("cpu", allocator.WORTH_IT) is None
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.hint("cpu", allocator.WORTH_IT) is None
