"""Norms, modulation and gated sums in plain PyTorch: differentiable, any device, any broadcast."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x) * weight`` over the last dimension, inside float32, in the dtype of x; weight may lie elsewhere."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.to(wide)).to(x.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` [..., D] with adjacent channels turned, inside at least float32; cos and sin broadcast to [..., D/2]."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def norm_modulate_eager(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """As :func:`~.norm_modulate`; every step rounds to its dtype."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def gated_residual_eager(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As :func:`~.gated_residual`; the product rounds to its dtype."""
    return x + gate * y


def rms_norm_rotary_eager(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, eps: float
) -> torch.Tensor:
    """As :func:`~.rms_norm_rotary`; what is normed is rounded to the dtype of x before it is turned."""
    normed = rms_normalised(x, weight, eps).unflatten(-1, (heads, -1))
    return rotated(normed, cos[:, None], sin[:, None])
