"""The released form of gated delta attention in plain PyTorch, as a baseline: four projections, two scans over the frames,
each frame corrected and read on its own. Numbers as of the eager form; scans and memory in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.gdn import GDNMemory, zero_memory
from ..models.attention import SELF_NORM_EPS, GDNAttention
from ..models.dit import SanaStreamingDiT
from ..models.rope import Rotary, apply_rotary

Inputs = tuple[torch.Tensor, ...]


def gdn_released(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rot: torch.Tensor,
    k_rot: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor,
    memory: GDNMemory | None = None,
    eps: float = 1e-8,
) -> tuple[torch.Tensor, GDNMemory]:
    """Arguments and result as of :func:`.kernels.gdn.gdn`."""
    q, k, v, q_rot, k_rot = (x.float().transpose(2, 3) for x in (q, k, v, q_rot, k_rot))
    beta, decay = beta.float().transpose(2, 3), decay.float()
    zero = zero_memory(q.transpose(2, 3))
    num, den, last = _scan((q, k, v, q_rot, k_rot, beta, decay), memory or zero)
    # The backward scan: time reversed, and what is absorbed comes one frame later than what is read.
    queries = (q.flip(1), q_rot.flip(1))
    k, v, k_rot, beta = (torch.cat([torch.zeros_like(x[:, :1]), x.flip(1)[:, :-1]], 1) for x in (k, v, k_rot, beta))
    decay = torch.cat([torch.ones_like(decay[:, :1]), decay.flip(1)[:, :-1]], 1)
    back_num, back_den, _ = _scan((queries[0], k, v, queries[1], k_rot, beta, decay), zero)
    out = (num + back_num.flip(1)) / (den + back_den.flip(1) + eps)[..., None]
    return out.transpose(2, 3), last


def _scan(inputs: Inputs, memory: GDNMemory) -> tuple[torch.Tensor, torch.Tensor, GDNMemory]:
    """Numerators [B, T, h, S, D], denominators [B, T, h, S] and the memory after; inputs are [B, T, h, S, ...]."""
    kv, z = memory
    nums, dens = [], []
    for q, k, v, q_rot, k_rot, beta, decay in zip(*(x.unbind(1) for x in inputs), strict=True):
        kv, z = kv * decay[..., None, None], z * decay[..., None]
        error = beta[..., None] * (v - k_rot @ kv.mT)
        shortfall = beta * (1 - (k @ z[..., None]).squeeze(-1))
        kv = kv + error.mT @ k_rot
        z = z + (shortfall[..., None, :] @ k).squeeze(-2)
        nums.append(q_rot @ kv.mT)
        dens.append((q @ z[..., None]).squeeze(-1))
    return torch.stack(nums, 1), torch.stack(dens, 1), (kv, z)


def gdn_fused_released(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    beta_logits: torch.Tensor,
    rate_logits: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    memory: GDNMemory | None = None,
    *,
    norm_eps: float,
) -> tuple[torch.Tensor, GDNMemory]:
    """Arguments and result as of :func:`.kernels.gdn.gdn_fused`."""
    heads, tokens_per_frame = beta_logits.shape[-1], q.shape[2]
    beta = beta_logits.float().sigmoid()
    decay = torch.exp(-A_log.float().exp() * F.softplus(rate_logits.float() + dt_bias.float()))
    q, k = (
        F.rms_norm(x.float(), x.shape[-1:], weight.float(), norm_eps).to(x.dtype).relu().unflatten(-1, (heads, -1))
        for x, weight in ((q, q_weight), (k, k_weight))
    )
    k = k * (k.shape[-1] * tokens_per_frame) ** -0.5
    q_rot, k_rot = (apply_rotary(x.flatten(1, 2), Rotary(cos, sin)).view_as(x) for x in (q, k))
    out, memory = gdn_released(q, k, v.unflatten(-1, (heads, -1)), q_rot, k_rot, beta, decay, memory)
    return out.flatten(-2).to(gate.dtype) * F.silu(gate.float()).to(gate.dtype), memory


class ReleasedGDNAttention(nn.Module):
    """Stands where a GDNAttention of the fused layout stands, and uses its weights."""

    def __init__(self, attention: GDNAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, u: torch.Tensor, positions: Rotary, memory: GDNMemory | None) -> tuple[torch.Tensor, GDNMemory]:
        """u [B, T, S, C] -> ([B, T, S, C], memory after the chunk)."""
        own = self.attention
        weights, biases = own.qkvg.weight.chunk(4), own.qkvg.bias.chunk(4)
        q, k, v = (F.linear(u, weight) for weight in weights[:3])
        gate = F.linear(u, weights[3], biases[3])
        norms = own.q_norm.weight, own.k_norm.weight
        logits = own.beta_proj(u), own.gate_proj(u.mean(2)), own.A_log, own.dt_bias
        out, memory = gdn_fused_released(q, k, v, gate, *norms, *positions, *logits, memory, norm_eps=SELF_NORM_EPS)
        return own.proj(out), memory


def shared_copy(model: SanaStreamingDiT) -> SanaStreamingDiT:
    """Another network on the same weights, whose parts may be replaced."""
    copy = SanaStreamingDiT(model.config, layout=model.layout, device="meta", dtype=model.dtype)
    copy.load_state_dict(model.state_dict(), assign=True)
    copy.fingerprint = model.fingerprint
    return copy.eval().requires_grad_(False)


def released_model(model: SanaStreamingDiT) -> SanaStreamingDiT:
    """The network with every GDN block's attention in the released form, the rest in plain PyTorch, on the same weights."""
    copy = shared_copy(model)
    copy.use_kernels("eager")
    for block in copy.blocks:
        if isinstance(block.attn, GDNAttention):
            block.attn = ReleasedGDNAttention(block.attn)
    return copy
