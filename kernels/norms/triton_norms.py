"""Host side of the fused norms: what they refuse, buffers, tile sizes. Importing this module does not import triton."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import dispatch
from ..launch import ceil_div, device_of, options, power_of_two, sample_rows
from . import triton_kernels as kernels

# A row lies in the registers of one program, in two parts of at least one pair.
MIN_WIDTH, MAX_WIDTH = 4, 8192


class Tiles(NamedTuple):
    """Rows per program of the norms; rows and channels per program of the gated sum."""

    norm_rows: int = 1
    sum_rows: int = 8
    sum_channels: int = 256


NUM_WARPS = 4
# UNTESTED on a device: they compile for every GPU of the tests without spilled registers; none has been timed.
GPU_TILES = Tiles()
# The interpreter takes its time per operation, whatever the size.
INTERPRETER_TILES = Tiles(256, 256, 4096)


def obstacle(x: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why the kernels cannot take rows of ``x`` [..., C] with ``others`` of its dtype; None where they can."""
    if any(other.dtype != x.dtype for other in others):
        return "tensors differ in dtype"
    if not MIN_WIDTH <= x.shape[-1] <= MAX_WIDTH:
        return f"rows have {x.shape[-1]} channels, the kernels take {MIN_WIDTH} to {MAX_WIDTH}"
    return dispatch.obstacle(x, kernels.jit)


def modulation_obstacle(x: torch.Tensor, branch: torch.Tensor | None, *rows: torch.Tensor) -> str | None:
    """:func:`obstacle`, or why ``branch`` is not like ``x`` [B, ..., C], or ``rows`` not one row for each of its samples."""
    batch, width = x.shape[0], x.shape[-1]
    if x.ndim < 3 or (branch is not None and branch.shape != x.shape):
        return f"shape {tuple(x.shape)} is not that of samples of rows" if branch is None else "shapes differ"
    for row in rows:
        leading = row.shape[:-1]
        per_sample = leading.numel() == 1 or (row.ndim == x.ndim and leading[0] == leading.numel() == batch)
        if row.shape[-1] != width or not per_sample:
            return f"shape {tuple(row.shape)} is not one row of {width} channels for each sample"
    return obstacle(x, *rows, *(() if branch is None else (branch,)))


def rotary_obstacle(x: torch.Tensor, heads: int, out: torch.Tensor | None) -> str | None:
    """:func:`obstacle`, or why heads of ``x`` [B, N, C] cannot be turned or ``out`` [B, N, h, D] not be written."""
    if x.shape[-1] // heads % 2:
        return f"head dimension is {x.shape[-1] // heads}, the kernels turn even ones"
    if out is not None and out.stride(-1) != 1:
        return "channels of the output are not adjacent"
    return obstacle(x)


def norm_modulate_triton(
    x: torch.Tensor, branch: torch.Tensor | None, shift: torch.Tensor, scale: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + branch or x itself, its modulated norm), as :func:`~.add_norm_modulate`."""
    kernels.jit.load()
    rows = sample_rows(x)
    batch, count, width = rows.shape
    branch_rows = rows if branch is None else sample_rows(branch)
    shift, scale = (_row_per_sample(row, batch) for row in (shift, scale))
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    total = x if branch is None else torch.empty_like(out)
    tiles = _tiles(x)
    with device_of(x):
        kernels.norm_modulate_kernel[(ceil_div(count, tiles.norm_rows), batch)](
            rows, branch_rows, total, shift, scale, out, *rows.stride()[:2], *branch_rows.stride()[:2],
            shift.stride(0), scale.stride(0), count, width, eps,
            HAS_BRANCH=branch is not None, BR=tiles.norm_rows, **_parts(width), **options(NUM_WARPS),
        )  # fmt: skip
    return total, out


def gated_residual_triton(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As :func:`~.gated_residual`."""
    kernels.jit.load()
    x_rows, y_rows = sample_rows(x), sample_rows(y)
    batch, count, width = x_rows.shape
    gate = _row_per_sample(gate, batch)
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    tiles = _tiles(x)
    grid = (ceil_div(count, tiles.sum_rows), ceil_div(width, tiles.sum_channels), batch)
    with device_of(x):
        kernels.gated_residual_kernel[grid](
            x_rows, gate, y_rows, out, *x_rows.stride()[:2], gate.stride(0), *y_rows.stride()[:2], count, width,
            BR=tiles.sum_rows, BC=tiles.sum_channels, **options(NUM_WARPS),
        )  # fmt: skip
    return out


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As :func:`~.rms_norm`."""
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    rows = x.reshape(1, -1, x.shape[-1])
    _rms_norm(rows, weight, None, out.view(*rows.shape[:2], 1, -1), eps)
    return out


def rms_norm_rotary_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`~.rms_norm_rotary`."""
    if out is None:
        out = torch.empty(*x.shape[:-1], heads, x.shape[-1] // heads, device=x.device, dtype=x.dtype)
    _rms_norm(x, weight, (cos.contiguous(), sin.contiguous()), out, eps)
    return out


def _rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    factors: tuple[torch.Tensor, torch.Tensor] | None,
    out: torch.Tensor,
    eps: float,
) -> None:
    """Rows x [B, N, C] into out [B, N, h, D], rotated by factors [N, D/2] if there are any."""
    kernels.jit.load()
    rows = sample_rows(x)
    batch, count, width = rows.shape
    weight = weight.to(x.device).contiguous()
    tiles = _tiles(x)
    with device_of(x):
        kernels.rms_norm_kernel[(ceil_div(count, tiles.norm_rows), batch)](
            # Without rotation the kernel does not look at the factors.
            rows, weight, *(factors or (weight, weight)), out, *rows.stride()[:2], *out.stride()[:3], count, width, eps,
            ROTATED=factors is not None, D=out.shape[-1], BR=tiles.norm_rows, **_parts(width), **options(NUM_WARPS),
        )  # fmt: skip


def _row_per_sample(row: torch.Tensor, batch: int) -> torch.Tensor:
    """Rows [B or 1, 1, ..., C] as [B, C] with adjacent channels; one row for all samples has stride 0."""
    row = row.reshape(-1, row.shape[-1]).expand(batch, -1)
    return row if row.stride(-1) == 1 else row.contiguous()


def _tiles(x: torch.Tensor) -> Tiles:
    return GPU_TILES if x.device.type == "cuda" else INTERPRETER_TILES


def _parts(width: int) -> dict[str, int]:
    """The two powers of two that hold a row; the first is filled."""
    head = power_of_two(width) // 2
    return {"HEAD": head, "TAIL": max(2, power_of_two(width - head))}
