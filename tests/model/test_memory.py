"""Resident memory stays level over steps of ever other packed lengths, many layers deep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = r"""
from pathlib import Path
import numpy as np, torch
from transformers import AutoConfig, AutoModel
from mtl_re.model.cpu import release_free_memory
from mtl_re.model.cpu.packed import packed_states, use_packed_attention
from mtl_re.model.device import autocast, resolve_precision

torch.set_num_threads(1)
sizes = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 512}
encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=100, **sizes)).train()
assert use_packed_attention(encoder)
generator = np.random.default_rng(0)
cpu = torch.device("cpu")
precision = resolve_precision("auto", cpu)  # bf16 takes minutes where the CPU has no instruction for it
for step in range(1, 161):
    mean = 20 if step == 1 else generator.uniform(2, 20)  # the largest batch first: what follows needs no more
    lengths = torch.from_numpy(np.clip(generator.gamma(5, mean, 32), 4, 256).astype(int))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    with autocast(cpu, precision):
        states = packed_states(encoder, torch.randint(5, 100, mask.shape), mask)
    states.float().square().mean().backward()
    encoder.zero_grad()
    if step % 20 == 0:
        release_free_memory()  # as the training loop does, once for each logged line
    if step in (80, 160):
        status = Path("/proc/self/status").read_text().splitlines()
        print(int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024)
"""
GROWTH = 100
"""MB that memory may grow from step 80 to step 160 (in bf16 3 under jemalloc, 24 under glibc, 265 without decay)."""
JEMALLOC = next((str(path) for path in Path("/usr/lib").glob("*/libjemalloc.so.2")), None)
SETTINGS = {
    "glibc": {},
    "jemalloc": {"LD_PRELOAD": JEMALLOC},
    # This package advised it until 2026-11-25; that the measure sees it says that it sees anything.
    "jemalloc without decay": {"LD_PRELOAD": JEMALLOC, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"},
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("name", SETTINGS)
def test_memory_stays_level(name):
    if name != "glibc" and JEMALLOC is None:
        pytest.skip("jemalloc is not installed")
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "MALLOC_CONF")}
    environment |= SETTINGS[name]
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, env=environment)
    middle, end = map(int, done.stdout.split())
    assert (end - middle < GROWTH) is (name != "jemalloc without decay"), (middle, end)
