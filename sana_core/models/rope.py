"""Three-dimensional rotary positions: absolute latent frame, row and column, computed without a table to run out of."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...kernels.gdn import rotated

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
    cosines, sines = [], []
    for axis, (positions, pairs) in enumerate(zip(ranges, axis_pairs(head_dim), strict=True)):
        frequencies = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles = torch.tensor(list(positions), dtype=torch.float64)[:, None] * frequencies
        shape = [1, 1, 1, pairs]
        shape[axis] = grid[axis]
        cosines.append(angles.cos().float().view(shape).expand(*grid, pairs))
        sines.append(angles.sin().float().view(shape).expand(*grid, pairs))
    cos, sin = (torch.cat(parts, -1).flatten(0, 2).to(device) for parts in (cosines, sines))
    return Rotary(cos, sin)


def advance_frames(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """``x`` [..., D], turned by :func:`apply_rotary` already, as if it stood ``num_frames`` latent frames later.

    Rotations add up, so the channels that tell the frame are turned by the difference; those of row and column stay. The
    angle is formed in float64, the product in at least float32; the result is a copy in the dtype of x.
    """
    pairs = axis_pairs(x.shape[-1])[0]
    frequencies = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    cos, sin = ((num_frames * frequencies).cos().float(), (num_frames * frequencies).sin().float())
    factors = Rotary(cos[None].to(x.device), sin[None].to(x.device))
    temporal = apply_rotary(x[..., : 2 * pairs].unsqueeze(-2), factors).squeeze(-2)
    return torch.cat([temporal, x[..., 2 * pairs :]], -1)


def apply_rotary(x: torch.Tensor, factors: Rotary) -> torch.Tensor:
    """``x`` [B, N, h, D] with adjacent channel pairs turned; formed in at least float32, returned in the dtype of x."""
    return rotated(x, factors.cos[:, None], factors.sin[:, None])
