"""What surrounds the gated delta rule in the attention layer, in plain PyTorch: norm, ReLU, rotation, gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..norms.eager import rms_normalised, rotated


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


def strength_and_decay(
    beta_logits: torch.Tensor, rate_logits: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write strength sigmoid(beta) and decay exp(-exp(A_log) softplus(rate + dt_bias)), 0 to 1, formed in float32.

    beta_logits [B, T, S, h], rate_logits [B, T, h]; A_log and dt_bias [h] may lie elsewhere.
    """
    rate = rate_logits.float()
    rate = F.softplus(rate + dt_bias.to(rate))
    return beta_logits.float().sigmoid(), torch.exp(-A_log.to(rate).exp() * rate)


def gated(out: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``out`` times SiLU of ``gate`` (formed in float32), both [..., C], in the dtype of the gate."""
    return out.to(gate.dtype) * F.silu(gate.float()).to(gate.dtype)
