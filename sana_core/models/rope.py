"""Three-dimensional rotary positions: absolute latent frame, row and column, computed without a table to run out of."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...kernels.norms import rotated

THETA = 10000.0


class Rotary(NamedTuple):
    """Cosines and sines [N, D/2] float32 of the tokens of one call, frame-major, then row, then column."""

    cos: torch.Tensor
    sin: torch.Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Channel pairs turned by frame, row and column; 20, 18 and 18 for a head of 112 (``docs/model.md``)."""
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


def rotary(
    start_frame: int, num_frames: int, height: int, width: int, head_dim: int, device: torch.device | str = "cpu"
) -> Rotary:
    """Rotary factors for frames ``start_frame`` to ``start_frame + num_frames - 1`` of an H x W latent grid.

    Angles are formed in float64 on the CPU (per axis, so the work is small) and rounded to float32 once.
    """
    ranges = (range(start_frame, start_frame + num_frames), range(height), range(width))
    grid = (num_frames, height, width)
    tables = []
    for positions, pairs in zip(ranges, axis_pairs(head_dim), strict=True):
        frequencies = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles = torch.tensor(list(positions), dtype=torch.float64)[:, None] * frequencies
        tables.append(torch.stack([angles.cos(), angles.sin()]).float())
    # One copy, small enough that the host does not wait for it; the grid is laid out where it is used.
    moved = torch.cat([table.flatten() for table in tables]).to(device, non_blocking=True)
    factors = []
    for axis, part in enumerate(moved.split([table.numel() for table in tables])):
        pairs = tables[axis].shape[-1]
        shape = [2, 1, 1, 1, pairs]
        shape[1 + axis] = grid[axis]
        factors.append(part.view(shape).expand(2, *grid, pairs))
    cos, sin = torch.cat(factors, -1).flatten(1, 3)
    return Rotary(cos, sin)


def advance_frames(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """``x`` [..., D], turned by :func:`apply_rotary` already, as if it stood ``num_frames`` latent frames later.

    Rotations add up, so the channels that tell the frame are turned by the difference; those of row and column stay. The
    angle is formed in float64, the product in at least float32; the result is a copy in the dtype of x.
    """
    pairs = axis_pairs(x.shape[-1])[0]
    frequencies = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    cos, sin = ((num_frames * frequencies).cos().float(), (num_frames * frequencies).sin().float())
    # Small enough that the host does not wait for the copies.
    factors = Rotary(*(part[None].to(x.device, non_blocking=True) for part in (cos, sin)))
    temporal = apply_rotary(x[..., : 2 * pairs].unsqueeze(-2), factors).squeeze(-2)
    return torch.cat([temporal, x[..., 2 * pairs :]], -1)


def apply_rotary(x: torch.Tensor, factors: Rotary) -> torch.Tensor:
    """``x`` [B, N, h, D] with adjacent channel pairs turned; formed in at least float32, returned in the dtype of x."""
    return rotated(x, factors.cos[:, None], factors.sin[:, None])
