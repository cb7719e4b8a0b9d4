"""Resident memory stays level over steps of ever other packed lengths, many layers deep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = r"""
import sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoConfig, AutoModel
from mtl_re.model.cpu import release_free_memory
from mtl_re.model.cpu.packed import packed_states, use_packed_attention

torch.set_num_threads(1)
sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 768}
encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=100, **sizes)).train()
assert use_packed_attention(encoder)
generator = np.random.default_rng(0)
for step in range(1, 121):
    lengths = torch.from_numpy(np.clip(generator.gamma(5, 12, 32), 4, 256).astype(int))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    with torch.autocast("cpu", torch.bfloat16):
        states = packed_states(encoder, torch.randint(5, 100, mask.shape), mask)
    states.float().square().mean().backward()
    encoder.zero_grad()
    if step % 20 == 0:
        release_free_memory()  # as the training loop does, once for each logged line
    if step in (60, 120):
        status = Path("/proc/self/status").read_text().splitlines()
        print(int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024)
"""
GROWTH = 150
"""MB that memory may grow from step 60 to step 120. With jemalloc's decay turned off it grows by several times that."""
JEMALLOC = next((str(path) for path in Path("/usr/lib").glob("*/libjemalloc.so.2")), None)


def growth(environment: dict[str, str]) -> int:
    """MB of growth over the second half of the steps, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "MALLOC_CONF")} | environment,
    )
    middle, end = map(int, done.stdout.split())
    return end - middle


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("allocator", ["glibc", "jemalloc"])
def test_memory_stays_level(allocator):
    if allocator == "jemalloc" and JEMALLOC is None:
        pytest.skip("jemalloc is not installed")
    assert growth({"LD_PRELOAD": JEMALLOC} if allocator == "jemalloc" else {}) < GROWTH


@pytest.mark.slow
@pytest.mark.skipif(JEMALLOC is None, reason="jemalloc is not installed")
def test_the_measure_sees_what_it_is_there_for():
    """The setting that this package advised until 2026-11-25."""
    setting = {"LD_PRELOAD": JEMALLOC, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    assert growth(setting) > GROWTH
