"""What the host sides of fused kernels share. Importing this module does not import triton."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def sample_rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ..., C] as [B, N, C] with adjacent channels: a view where the tokens of a sample are evenly spaced, else a copy."""
    rows = x.flatten(1, -2) if x.ndim > 3 else x
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Launches inside go to the GPU of ``x``, whichever is the current one."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def options(num_warps: int) -> dict[str, Any]:
    """Of a launch without pipelined loops."""
    # Fusing a product and a sum is said aloud: triton is about to change what it does by default.
    return {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
