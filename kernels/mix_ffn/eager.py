"""The middle of the MixFFN in plain PyTorch: differentiable, any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def glu_depthwise_eager(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grid: tuple[int, int]
) -> torch.Tensor:
    """As :func:`~.glu_depthwise`; every step rounds to its dtype."""
    # Names are let go of as soon as may be: each of these tensors is among the largest of the network.
    frames = F.silu(hidden).flatten(0, 1).unflatten(1, grid).movedim(-1, 1)
    mixed = F.conv2d(frames, weight, bias, padding=1, groups=weight.shape[0])
    del frames
    mixed = mixed.movedim(1, -1).reshape(hidden.shape)
    value, gate = mixed.chunk(2, -1)
    return value * F.silu(gate)
