"""Self-attention of both kinds (gated delta rule, softmax) and cross-attention to the prompt."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.gdn import Implementation, gated, gdn_fused
from ..config import DiTConfig
from .embeddings import RMSNorm
from .rope import Rotary, apply_rotary

AttentionLayout = Literal["fused", "split"]
Memory = tuple[torch.Tensor, torch.Tensor]

SELF_NORM_EPS = 1e-5
CROSS_NORM_EPS = 1e-6


class SelfAttention(nn.Module):
    """What both kinds share: q, k, v and output-gate projections (one Linear or four), norms, gated output.

    ``fused`` keeps the four projections in one Linear ``qkvg`` (rows q, k, v, gate; its bias is zero but for the gate);
    ``split`` keeps the release's four. Weight files always hold four (``sana_core/weights/dit.py``).
    """

    def __init__(self, config: DiTConfig, layout: AttentionLayout, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.layout = layout
        if layout == "fused":
            self.qkvg = operations.Linear(width, 4 * width, bias=True, **factory)
        else:
            self.q = operations.Linear(width, width, bias=False, **factory)
            self.k = operations.Linear(width, width, bias=False, **factory)
            self.v = operations.Linear(width, width, bias=False, **factory)
            self.output_gate = operations.Linear(width, width, bias=True, **factory)
        self.q_norm = RMSNorm(width, SELF_NORM_EPS, **factory)
        self.k_norm = RMSNorm(width, SELF_NORM_EPS, **factory)
        self.proj = operations.Linear(width, width, bias=True, **factory)

    def project(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q and k before their norms, v, and the gate's input, each [..., C]."""
        if self.layout == "fused":
            return self.qkvg(u).chunk(4, -1)
        return self.q(u), self.k(u), self.v(u), self.output_gate(u)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] as [..., h, D]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def gated_output(self, out: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Heads merged [..., C], times SiLU of the gate (formed in float32), projected."""
        return self.proj(gated(out, gate))


class GDNAttention(SelfAttention):
    """Gated delta rule attention. Memory: (kv [B, h, D, D], z [B, h, D]) float32, cumulative over the stream.

    ``kernels`` picks the implementation of the operator.
    """

    kernels: Implementation = "auto"

    def __init__(self, config: DiTConfig, layout: AttentionLayout, operations: Any, **factory: Any) -> None:
        super().__init__(config, layout, operations, **factory)
        self.beta_proj = operations.Linear(config.hidden_size, config.num_heads, bias=True, **factory)
        self.gate_proj = operations.Linear(config.hidden_size, config.num_heads, bias=True, **factory)
        self.A_log = nn.Parameter(torch.zeros(config.num_heads, **factory))
        self.dt_bias = nn.Parameter(torch.zeros(config.num_heads, **factory))

    def forward(self, u: torch.Tensor, positions: Rotary, memory: Memory | None) -> tuple[torch.Tensor, Memory]:
        """u [B, T, S, C] -> ([B, T, S, C], memory after the chunk)."""
        q, k, v, gate = self.project(u)
        beta = self.beta_proj(u).float().sigmoid()
        rate = self.gate_proj(u.mean(2)).float()
        rate = F.softplus(rate + self.dt_bias.to(rate))
        decay = torch.exp(-self.A_log.to(rate).exp() * rate)
        weights = self.q_norm.weight, self.k_norm.weight
        out, memory = gdn_fused(
            q, k, v, gate, *weights, *positions, beta, decay, memory, norm_eps=SELF_NORM_EPS, implementation=self.kernels
        )  # fmt: skip
        return self.proj(out), memory


class SoftmaxAttention(SelfAttention):
    """Softmax attention over cached and current frames. Memory: (keys after RoPE, values), each [B, h, N, D]."""

    def forward(self, u: torch.Tensor, positions: Rotary, memory: Memory | None) -> tuple[torch.Tensor, Memory]:
        """u [B, T, S, C] -> ([B, T, S, C], keys and values of this chunk alone)."""
        q, k, v, gate = self.project(u.flatten(1, 2))
        q = apply_rotary(self.heads(self.q_norm(q)), positions).transpose(1, 2)
        k = apply_rotary(self.heads(self.k_norm(k)), positions).transpose(1, 2)
        v = self.heads(v).transpose(1, 2)
        keys, values = (
            (k, v) if memory is None else (torch.cat([old, x], 2) for old, x in zip(memory, (k, v), strict=True))
        )
        out = F.scaled_dot_product_attention(q, keys, values)
        return self.gated_output(out.transpose(1, 2).flatten(-2), gate).view_as(u), (k, v)


class CrossAttention(nn.Module):
    """Attention to the prompt. Keys and values depend on the prompt alone and are formed once per prompt."""

    def __init__(self, config: DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.q_linear = operations.Linear(width, width, bias=True, **factory)
        self.kv_linear = operations.Linear(width, 2 * width, bias=True, **factory)
        self.q_norm = RMSNorm(width, CROSS_NORM_EPS, **factory)
        self.k_norm = RMSNorm(width, CROSS_NORM_EPS, **factory)
        self.proj = operations.Linear(width, width, bias=True, **factory)

    def project_prompt(self, features: torch.Tensor) -> Memory:
        """Caption features [B, L, C] -> keys and values [B, h, L, D]."""
        k, v = self.kv_linear(features).chunk(2, -1)
        return self._heads(self.k_norm(k)), self._heads(v)

    def forward(self, x: torch.Tensor, prompt: Memory, bias: torch.Tensor | None) -> torch.Tensor:
        """x [B, N, C]; bias [B, 1, 1, L] is added to the logits."""
        q = self._heads(self.q_norm(self.q_linear(x)))
        out = F.scaled_dot_product_attention(q, *prompt, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(-2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
