"""Layers of the causal video VAE. They know how to look back in time, but not what a latent is.

Tensors are [B, C, T, H, W]. No layer keeps frames of its own: what a stream carries from call to call goes through a
:class:`Carry`. Source of the formulas: ``docs/model.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...kernels.vae_norm import (
    CONTEXT_FRAMES,
    RMS_EPSILON,
    Implementation,
    norm_silu_pad,
    rms_norm,
    summed,
    takes_kernels,
)

__all__ = [
    "CONTEXT_FRAMES",
    "RMS_EPSILON",
    "Carry",
    "CausalConv3d",
    "ConvFactory",
    "DownBlock",
    "Downsampler",
    "Implementation",
    "MidBlock",
    "ResidualBlock",
    "Stride",
    "Sum",
    "UpBlock",
    "Upsampler",
    "VAEState",
    "merge",
    "rms_norm",
    "split",
]

VAEState: TypeAlias = dict[str, Tensor]
"""What one direction of one stream carries, by layer path. Empty at the start of a stream."""

Stride: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns that a sampler merges or splits."""


class Carry:
    """The state of a stream during one call: layers read ``old``, which stays as it is, and write ``new``.

    With ``causal=False`` the call sees a whole clip at once, every convolution looks one frame back and one ahead, and
    nothing is carried.
    """

    def __init__(self, old: Mapping[str, Tensor] | None = None, *, causal: bool = True) -> None:
        self.causal = causal
        self.old = old or {}
        self.new: VAEState = dict(self.old)

    def remember(self, path: str, frames: Tensor) -> None:
        """Keeps a compact copy, so that a few frames do not hold the memory of all."""
        layout = torch.channels_last_3d if _channels_last(frames) else torch.contiguous_format
        self.new[path] = frames.clone(memory_format=layout)


class Sum(NamedTuple):
    """x + branch + bias that the next layer is to add: in front of a norm it takes no pass over memory of its own."""

    x: Tensor
    branch: Tensor | None = None
    bias: Tensor | None = None

    def total(self) -> Tensor:
        return summed(self.x, self.branch, self.bias)


class CausalConv3d(nn.Module):
    """3x3x3 convolution, [B, Cin, T, H, W] -> [B, Cout, T, H, W].

    Causal: carries its last two input frames; a stream starts with two copies of its first frame. Otherwise the first
    and the last frame are repeated once.
    """

    # State key: where the layer is in the network. The network fills it in.
    path: str = ""
    kernels: Implementation = "auto"

    def __init__(
        self, in_channels: int, out_channels: int, *, padding_mode: str, operations: Any, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        # Edges are reflected here because ComfyUI's Conv3d passes over padding_mode on some versions of cuDNN.
        self.reflect = padding_mode == "reflect"
        padding = 0 if self.reflect else (0, 1, 1)
        self.conv = operations.Conv3d(in_channels, out_channels, 3, padding=padding, device=device, dtype=dtype)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return self.conv(self._padded(Sum(x), carry, norm=False)[0])

    def normed(self, x: Sum, carry: Carry, *, keep_sum: bool = False) -> tuple[Sum, Tensor]:
        """The convolution of SiLU(RMS norm(total)), and with ``keep_sum`` the total.

        Its bias is left to be added where that saves a pass.
        """
        padded, total = self._padded(x, carry, norm=True, keep_sum=keep_sum)
        conv = self.conv
        # Other namespaces' layers may hold weights elsewhere; cuDNN adds a bias in a pass of its own.
        if type(conv) is nn.Conv3d and takes_kernels(padded, self.kernels, (conv.weight, conv.bias)):
            return Sum(F.conv3d(padded, conv.weight, padding=conv.padding), bias=conv.bias), total
        return Sum(conv(padded)), total

    def _padded(self, x: Sum, carry: Carry, *, norm: bool, keep_sum: bool = False) -> tuple[Tensor, Tensor]:
        """(input with context and border, total of x with ``keep_sum``); carries the last frames of the former."""
        padded, total = norm_silu_pad(
            x.x,
            carry.old.get(self.path) if carry.causal else None,
            reflect=self.reflect,
            norm=norm,
            causal=carry.causal,
            branch=x.branch,
            bias=x.bias,
            keep_sum=keep_sum,
            implementation=self.kernels,
        )
        if carry.causal:
            last = padded[:, :, -CONTEXT_FRAMES:]
            carry.remember(self.path, last[..., 1:-1, 1:-1] if self.reflect else last)
        return padded, total


ConvFactory: TypeAlias = Callable[[int, int], CausalConv3d]
"""Makes a convolution from its input and output widths."""


class ResidualBlock(nn.Module):
    """Two normalised convolutions around a skip, [B, C, T, H, W] -> the same, the last sum of which is left open."""

    def __init__(self, channels: int, conv: ConvFactory) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels)
        self.conv2 = conv(channels, channels)

    def forward(self, x: Sum, carry: Carry) -> Sum:
        hidden, total = self.conv1.normed(x, carry, keep_sum=True)
        branch, _ = self.conv2.normed(hidden, carry)
        return Sum(total, branch.x, branch.bias)


def _channels_last(x: Tensor) -> bool:
    """Whether the channels of a position are adjacent in memory."""
    return x.stride(1) == 1 and x.shape[1] > 1


def merge(x: Tensor, stride: Stride) -> Tensor:
    """Moves each stride-sized box of positions into the channels: [B, C, T, H, W] -> [B, C*a*b*d, T/a, H/b, W/d].

    Channels that are adjacent in memory stay so.
    """
    a, b, d = stride
    if _channels_last(x):
        x = rearrange(x.movedim(1, -1), "n (t a) (h b) (w d) c -> n t h w (c a b d)", a=a, b=b, d=d)
        return x.movedim(-1, 1)
    return rearrange(x, "n c (t a) (h b) (w d) -> n (c a b d) t h w", a=a, b=b, d=d)


def split(x: Tensor, stride: Stride) -> Tensor:
    """The inverse of :func:`merge`."""
    a, b, d = stride
    if _channels_last(x):
        x = rearrange(x.movedim(1, -1), "n t h w (c a b d) -> n (t a) (h b) (w d) c", a=a, b=b, d=d)
        return x.movedim(-1, 1)
    return rearrange(x, "n (c a b d) t h w -> n c (t a) (h b) (w d)", a=a, b=b, d=d)


def _group_mean(x: Tensor, size: int) -> Tensor:
    """Mean of every ``size`` consecutive channels; the result of a mean is contiguous, so channels that are last stay so."""
    if _channels_last(x):
        return x.movedim(1, -1).unflatten(-1, (-1, size)).mean(dim=-1).movedim(-1, 1)
    return x.unflatten(1, (-1, size)).mean(dim=2)


class Downsampler(nn.Module):
    """Merges positions into channels, with a convolution beside a mean over channel groups.

    [B, Cin, T, H, W] -> [B, Cout, T/a, H/b, W/d]. Where frames are halved a stream starts with one more copy of its
    first frame, and the odd frame of a call, zero or one ``pending`` frames, is carried to the next.
    """

    path: str = ""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, conv: ConvFactory) -> None:
        super().__init__()
        self.stride = stride
        self.group_size = in_channels * math.prod(stride) // out_channels
        self.conv = conv(in_channels, out_channels // math.prod(stride))

    @property
    def pending_key(self) -> str | None:
        """State key of the odd frame, None where frames are not merged."""
        return f"{self.path}.pending" if self.stride[0] > 1 else None

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        x = self._whole_pairs(x, carry)
        if not x.shape[2]:
            return x
        residual = _group_mean(merge(x, self.stride), self.group_size)
        return merge(self.conv(x, carry), self.stride) + residual

    def _whole_pairs(self, x: Tensor, carry: Carry) -> Tensor:
        key = self.pending_key
        if key is None:
            return x
        pending = carry.old.get(key)
        if pending is None:
            pending = x[:, :, :1]
        if pending.shape[2]:
            x = torch.cat([pending, x], dim=2)
        even = x.shape[2] // 2 * 2
        carry.remember(key, x[:, :, even:])
        return x[:, :, :even]


class Upsampler(nn.Module):
    """Splits channels into positions, with a convolution beside copies of the input.

    [B, C, T, H, W] -> [B, C/factor, T*a, H*b, W*d]. Where frames are doubled the first output frame of a stream is
    dropped: its first input frame stands for one frame only.
    """

    def __init__(self, channels: int, stride: Stride, factor: int, residual: bool, conv: ConvFactory) -> None:
        super().__init__()
        self.stride = stride
        self.copies = math.prod(stride) // factor if residual else 0
        self.conv = conv(channels, channels * math.prod(stride) // factor)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        starts = self.conv.path not in carry.old
        out = split(self.conv(x, carry), self.stride)
        if self.copies:
            # Broadcasting writes the tiled copies without building them.
            residual = split(x, self.stride).unsqueeze(1)
            out = (out.unflatten(1, (self.copies, -1)) + residual).flatten(1, 2)
        return out[:, :, self.stride[0] - 1 :] if starts else out


class _Residuals(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, channels: int, layers: int, conv: ConvFactory) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, conv) for _ in range(layers)])

    def residuals(self, x: Tensor, carry: Carry) -> Sum:
        """All blocks; the sum at the end of the last one is left open."""
        open_sum = Sum(x)
        for resnet in self.resnets:
            open_sum = resnet(open_sum, carry)
        return open_sum


class MidBlock(_Residuals):
    """Residual blocks alone."""

    def forward(self, x: Tensor, carry: Carry) -> Sum:
        return self.residuals(x, carry)


class DownBlock(_Residuals):
    """Residual blocks, then a down-sampler."""

    def __init__(self, channels: int, out_channels: int, stride: Stride, layers: int, conv: ConvFactory) -> None:
        super().__init__(channels, layers, conv)
        self.downsamplers = nn.ModuleList([Downsampler(channels, out_channels, stride, conv)])

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return self.downsamplers[0](self.residuals(x, carry).total(), carry)


class UpBlock(_Residuals):
    """An up-sampler, then residual blocks; the sum at the end of the last one is left open."""

    def __init__(
        self, channels: int, stride: Stride, factor: int, residual: bool, layers: int, conv: ConvFactory
    ) -> None:
        super().__init__(channels // factor, layers, conv)
        self.upsamplers = nn.ModuleList([Upsampler(channels, stride, factor, residual, conv)])

    def forward(self, x: Tensor, carry: Carry) -> Sum:
        return self.residuals(self.upsamplers[0](x, carry), carry)
