"""What surrounds the gated delta rule in the attention layer, in plain PyTorch: norm, ReLU, rotation, output gate."""

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


def features(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    norm_eps: float,
) -> tuple[torch.Tensor, ...]:
    """Projected q and k [B, T, S, C] to what the rule takes: q, k, q_rot, k_rot [B, T, S, h, D], keys scaled."""
    q, k = (
        rms_normalised(x, weight, norm_eps).relu().unflatten(-1, (num_heads, -1))
        for x, weight in ((q, q_weight), (k, k_weight))
    )
    k = k * (k.shape[-1] * k.shape[2]) ** -0.5
    cos, sin = (factor.view(q.shape[1], q.shape[2], 1, -1) for factor in (cos, sin))
    return q, k, rotated(q, cos, sin), rotated(k, cos, sin)


def gated(out: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``out`` times SiLU of ``gate`` (formed in float32), both [..., C], in the dtype of the gate."""
    return out.to(gate.dtype) * F.silu(gate.float()).to(gate.dtype)
