"""Host side of the fused middle of the MixFFN. Importing this module does not import triton."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import dispatch
from ..launch import ceil_div, device_of, options
from . import triton_kernels as kernels

# Places within a frame are 32-bit integers.
MAX_OFFSET = 2**31 - 1


class Tiles(NamedTuple):
    """Rows and columns of a program's strip, its channels, warps."""

    rows: int = 4
    columns: int = 20
    channels: int = 128
    warps: int = 2


# UNTESTED on a device: it compiles for every GPU of the tests without spilled registers; nothing has been timed.
GPU_TILES = Tiles()
# The interpreter takes its time per operation, whatever the size.
INTERPRETER_TILES = Tiles(columns=64, channels=4096)


def obstacle(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grid: tuple[int, int]
) -> str | None:
    """Why the kernel cannot take a call; None where it can."""
    if bias is None:
        return "there is no bias"
    if not hidden.dtype == weight.dtype == bias.dtype:
        return "hidden, weight and bias differ in dtype"
    if weight.shape != (hidden.shape[-1], 1, 3, 3) or hidden.shape[-1] % 2 or hidden.shape[2] != grid[0] * grid[1]:
        return f"shapes {tuple(hidden.shape)} and {tuple(weight.shape)} do not fit a depthwise 3x3 on the grid {grid}"
    if hidden.shape[2] * max(hidden.shape[-1], hidden.stride(2)) > MAX_OFFSET:
        return "a frame reaches over more than 2^31 values"
    return dispatch.obstacle(hidden, kernels.jit)


def glu_depthwise_triton(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """As :func:`~.glu_depthwise`; sums are float32, and only the result is rounded."""
    kernels.jit.load()
    batch, num_frames, tokens, width = hidden.shape
    inner, (rows, columns) = width // 2, grid
    frames = hidden.flatten(0, 1)
    frames = frames if frames.stride(-1) == 1 else frames.contiguous()
    out = torch.empty(batch, num_frames, tokens, inner, device=hidden.device, dtype=hidden.dtype)
    tiles = GPU_TILES if hidden.device.type == "cuda" else INTERPRETER_TILES
    strips = ceil_div(rows, tiles.rows) * ceil_div(columns, tiles.columns)
    with device_of(hidden):
        kernels.glu_depthwise_kernel[(ceil_div(inner, tiles.channels), strips, batch * num_frames)](
            frames, weight.contiguous(), bias.contiguous(), out, *frames.stride()[:2], rows, columns, inner,
            R=tiles.rows, W=tiles.columns, BC=tiles.channels, **options(tiles.warps),
        )  # fmt: skip
    return out
