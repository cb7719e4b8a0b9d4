"""The allocator hint: given once where it helps, and nowhere else; it never turns off jemalloc's decay."""

import pytest

from mtl_re.model.cpu import allocator


@pytest.fixture
def maps(tmp_path, monkeypatch):
    path = tmp_path / "maps"
    path.write_text("7f00-7f01 r-xp 0 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6\n")
    monkeypatch.setattr(allocator, "_MAPS", path)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.delenv("MALLOC_CONF", raising=False)
    return path


def load_library(maps, name):
    maps.write_text(f"{maps.read_text()}7f02-7f03 r-xp 0 fe:00 2 /usr/lib/lib{name}.so.2\n")


@pytest.mark.parametrize(("library", "says"), [(None, "apt-get install libjemalloc2"), ("libjemalloc.so.9", ".so.9")])
def test_glibc_on_a_cpu_gets_the_command(maps, monkeypatch, library, says):
    monkeypatch.setattr(allocator.ctypes.util, "find_library", lambda name: library)
    text = allocator.allocator_hint("cpu", allocator.WORTH_IT)
    assert "LD_PRELOAD=libjemalloc.so" in text
    assert says in text
    assert "MALLOC_CONF" not in text  # with its decay off, jemalloc keeps the pages of every tensor size


@pytest.mark.parametrize("name", allocator.OTHER_ALLOCATORS)
def test_a_better_allocator_is_seen(maps, name):
    load_library(maps, name)
    assert allocator.allocator_hint("cpu", allocator.WORTH_IT) is None


@pytest.mark.parametrize("setting", ["dirty_decay_ms:-1,muzzy_decay_ms:-1", "narenas:1,dirty_decay_ms:-1"])
def test_jemalloc_without_decay_is_warned_of(maps, monkeypatch, setting):
    monkeypatch.setenv("MALLOC_CONF", setting)
    load_library(maps, "jemalloc")
    assert "MALLOC_CONF" in allocator.allocator_hint("cpu", 1)
    assert allocator.allocator_hint("cuda", allocator.WORTH_IT) is None
    monkeypatch.setenv("MALLOC_CONF", "dirty_decay_ms:10000,narenas:1")
    assert allocator.allocator_hint("cpu", 1) is None


def test_no_hint_where_nothing_is_gained(maps, monkeypatch):
    assert allocator.allocator_hint("cuda", allocator.WORTH_IT) is None
    assert allocator.allocator_hint("cpu", allocator.WORTH_IT - 1) is None
    maps.unlink()
    assert allocator.allocator_hint("cpu", allocator.WORTH_IT) is None
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.allocator_hint("cpu", allocator.WORTH_IT) is None


def test_free_memory_is_released_under_glibc_alone(maps, monkeypatch):
    calls = []

    class Library:
        malloc_trim = staticmethod(calls.append)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library)
    for name, expected in ((None, [0]), ("jemalloc", [0])):
        allocator._malloc_trim.cache_clear()
        if name:
            load_library(maps, name)
        allocator.release_free_memory()
        assert calls == expected
    allocator._malloc_trim.cache_clear()
