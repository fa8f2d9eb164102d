"""Layers of the causal video VAE. They know how to look back in time, but not what a latent is.

Tensors are [B, C, T, H, W]. No layer keeps frames of its own: what a stream carries from call to call goes through a
:class:`Carry`. Source of the formulas: ``docs/model.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

VAEState: TypeAlias = dict[str, Tensor]
"""What one direction of one stream carries, by layer path. Empty at the start of a stream."""

Stride: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns that a sampler merges or splits."""

CONTEXT_FRAMES = 2
"""Frames that a 3x3x3 convolution sees beside the current one."""

RMS_EPSILON = 1e-8


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
        self.new[path] = frames.clone(memory_format=torch.contiguous_format)


class CausalConv3d(nn.Module):
    """3x3x3 convolution, [B, Cin, T, H, W] -> [B, Cout, T, H, W].

    Causal: carries its last two input frames; a stream starts with two copies of its first frame. Otherwise the first
    and the last frame are repeated once.
    """

    # State key: where the layer is in the network. The network fills it in.
    path: str = ""

    def __init__(
        self, in_channels: int, out_channels: int, *, padding_mode: str, operations: Any, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        # Edges are reflected here because ComfyUI's Conv3d passes over padding_mode on some versions of cuDNN.
        self.reflect = padding_mode == "reflect"
        padding = 0 if self.reflect else (0, 1, 1)
        self.conv = operations.Conv3d(in_channels, out_channels, 3, padding=padding, device=device, dtype=dtype)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        x = self._in_time(x, carry)
        if self.reflect:
            x = F.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect")
        return self.conv(x)

    def _in_time(self, x: Tensor, carry: Carry) -> Tensor:
        """``x`` with the two frames of context that the kernel needs."""
        if not carry.causal:
            return torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
        history = carry.old.get(self.path)
        if history is None:
            history = x[:, :, :1].expand(-1, -1, CONTEXT_FRAMES, -1, -1)
        x = torch.cat([history, x], dim=2)
        carry.remember(self.path, x[:, :, -CONTEXT_FRAMES:])
        return x


ConvFactory: TypeAlias = Callable[[int, int], CausalConv3d]
"""Makes a convolution from its input and output widths."""


def rms_norm(x: Tensor) -> Tensor:
    """Each position of ``x`` divided by the root mean square of its channels; no weight, in the dtype of ``x``.

    Squares of float16 leave its range already for values below 1e-4 and from 256 on, so they are summed in float32.
    """
    if x.dtype == torch.float16:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return x / torch.sqrt(norm.square() / x.shape[1] + RMS_EPSILON).to(x.dtype)
    return x / torch.sqrt(x.square().mean(dim=1, keepdim=True) + RMS_EPSILON)


class ResidualBlock(nn.Module):
    """Two normalised convolutions around a skip, [B, C, T, H, W] -> the same."""

    def __init__(self, channels: int, conv: ConvFactory) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels)
        self.conv2 = conv(channels, channels)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        hidden = self.conv1(F.silu(rms_norm(x)), carry)
        return x + self.conv2(F.silu(rms_norm(hidden)), carry)


def merge(x: Tensor, stride: Stride) -> Tensor:
    """Moves each stride-sized box of positions into the channels: [B, C, T, H, W] -> [B, C*a*b*d, T/a, H/b, W/d]."""
    a, b, d = stride
    return rearrange(x, "n c (t a) (h b) (w d) -> n (c a b d) t h w", a=a, b=b, d=d)


def split(x: Tensor, stride: Stride) -> Tensor:
    """The inverse of :func:`merge`."""
    a, b, d = stride
    return rearrange(x, "n (c a b d) t h w -> n c (t a) (h b) (w d)", a=a, b=b, d=d)


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
        residual = merge(x, self.stride).unflatten(1, (-1, self.group_size)).mean(dim=2)
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


class MidBlock(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, channels: int, layers: int, conv: ConvFactory) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, conv) for _ in range(layers)])

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, carry)
        return x


class DownBlock(MidBlock):
    """Residual blocks, then a down-sampler."""

    def __init__(self, channels: int, out_channels: int, stride: Stride, layers: int, conv: ConvFactory) -> None:
        super().__init__(channels, layers, conv)
        self.downsamplers = nn.ModuleList([Downsampler(channels, out_channels, stride, conv)])

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return self.downsamplers[0](super().forward(x, carry), carry)


class UpBlock(MidBlock):
    """An up-sampler, then residual blocks."""

    def __init__(
        self, channels: int, stride: Stride, factor: int, residual: bool, layers: int, conv: ConvFactory
    ) -> None:
        super().__init__(channels // factor, layers, conv)
        self.upsamplers = nn.ModuleList([Upsampler(channels, stride, factor, residual, conv)])

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return super().forward(self.upsamplers[0](x, carry), carry)
