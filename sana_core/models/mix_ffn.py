"""The feed-forward part: gated inverted bottleneck with a depthwise convolution in space and a dense one in time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.mix_ffn import Implementation, glu_depthwise
from ..config import DiTConfig


class PointConv(nn.Module):
    """A 1x1 convolution as a Linear over channels-last tokens, under the release's name ``<layer>.conv``."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Linear(channels_in, channels_out, bias=bias, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class DepthConv(nn.Module):
    """A depthwise 3x3 convolution on each frame's grid, zero-padded, under the release's name ``<layer>.conv``."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=True, **factory)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """x [B, T, S, C] with S = rows x columns of ``grid``."""
        frames = x.flatten(0, 1).unflatten(1, grid).movedim(-1, 1)
        return self.conv(frames).movedim(1, -1).reshape(x.shape)


class MixFFN(nn.Module):
    """Gated inverted bottleneck; carries the last frame before the temporal convolution, [B, 1, S, C].

    ``kernels`` picks the implementation of what lies between the two point-wise layers.
    """

    kernels: Implementation = "auto"

    def __init__(self, config: DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.mlp_width
        self.inverted_conv = PointConv(width, 2 * inner, True, operations, **factory)
        self.depth_conv = DepthConv(2 * inner, operations, **factory)
        self.point_conv = PointConv(inner, width, False, operations, **factory)
        # One Linear over (previous, current, next) frame: columns in that order.
        self.t_conv = operations.Linear(3 * width, width, bias=False, **factory)

    def forward(
        self, x: torch.Tensor, grid: tuple[int, int], previous: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, T, S, C]; ``previous`` is the carried frame, None at the start. Returns (output, frame to carry).

        The frame after the chunk is always zero: a chunk does not see its future.
        """
        e = self.point_conv(self.middle(self.inverted_conv(x), grid))
        zero = torch.zeros_like(e[:, :1])
        frames = torch.cat([zero if previous is None else previous, e, zero], 1)
        return e + self.t_conv(torch.cat([frames[:, :-2], e, frames[:, 2:]], -1)), e[:, -1:]

    def middle(self, hidden: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[B, T, S, 2I] -> [B, T, S, I]: SiLU, depthwise convolution, SiLU gate."""
        conv = self.depth_conv.conv
        # A layer of other operations may keep its weights elsewhere, or change them in its call.
        if self.kernels != "eager" and type(conv) is nn.Conv2d:
            return glu_depthwise(hidden, conv.weight, conv.bias, grid, implementation=self.kernels)
        value, gate = self.depth_conv(F.silu(hidden), grid).chunk(2, -1)
        return value * F.silu(gate)
