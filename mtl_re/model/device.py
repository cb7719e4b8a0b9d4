"""Where a model runs, and in which arithmetic: the default device, what `precision: auto` means there, and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mtl_re.errors import MtlReError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def default_device() -> torch.device:
    """CUDA or Apple's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass; nothing for fp32."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()


def resolve_precision(option: str, device: torch.device | None = None) -> str:
    """`auto` → what the device computes fast.

    bf16 on CUDA from compute capability 8.0 and on CPUs that multiply bf16 (amx_bf16; or avx512_bf16 as on AMD since
    Zen 4, 1.4× fp32's training rate there; elsewhere it is emulated, 5× slower), else fp16 on CUDA, else fp32.

    Raises:
        MtlReError: fp16 was asked for without CUDA.
    """
    kind = (device or default_device()).type
    if option == "fp16" and kind != "cuda":
        raise MtlReError("precision fp16 needs a CUDA device; take bf16 or no")
    if option != "auto":
        return option
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    if kind == "cpu":
        return "bf16" if _multiplies_bf16() else "no"
    return "no"


def _multiplies_bf16() -> bool:
    """Whether this CPU has an instruction for bf16 products."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
