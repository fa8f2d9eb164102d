"""Self-attention of both kinds (gated delta rule, softmax) and cross-attention to the prompt."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.gdn import Implementation, gated, gdn_fused
from ...kernels.norms import rms_norm_rotary
from ..config import DiTConfig
from ..precision.sharing import shared_inputs
from .embeddings import RMSNorm
from .rope import Rotary

AttentionLayout = Literal["fused", "split"]
Memory = tuple[torch.Tensor, torch.Tensor]


class Window(NamedTuple):
    """Keys and values of earlier frames, ``used`` tokens at the head of buffers [B, h, M, D] that have room behind."""

    keys: torch.Tensor
    values: torch.Tensor
    used: int

    def joined(self, k: torch.Tensor, v: torch.Tensor) -> tuple[Memory, Memory]:
        """Keys and values [B, h, N, D] behind the earlier ones, and where they are now.

        Written to the room where they fit and nobody asks for gradients; else everything is copied.
        """
        end = self.used + k.shape[2]
        if end > self.keys.shape[2] or (torch.is_grad_enabled() and (k.requires_grad or v.requires_grad)):
            k_all, v_all = (torch.cat([old[:, :, : self.used], x], 2) for old, x in ((self.keys, k), (self.values, v)))
            return (k_all, v_all), (k, v)
        own = self.keys[:, :, self.used : end], self.values[:, :, self.used : end]
        for room, x in zip(own, (k, v), strict=True):
            room.copy_(x)
        return (self.keys[:, :, :end], self.values[:, :, :end]), own


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
        layers = (self.q, self.k, self.v, self.output_gate)
        return tuple(layer(x) for layer, x in zip(layers, shared_inputs(u, layers), strict=True))

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
        weights = self.q_norm.weight, self.k_norm.weight
        logits = self.beta_proj(u), self.gate_proj(u.mean(2)), self.A_log, self.dt_bias
        out, memory = gdn_fused(
            q, k, v, gate, *weights, *positions, *logits, memory, norm_eps=SELF_NORM_EPS, implementation=self.kernels
        )  # fmt: skip
        return self.proj(out), memory


class SoftmaxAttention(SelfAttention):
    """Softmax attention over cached and current frames. Memory: (keys after RoPE, values), each [B, h, N, D], or a Window."""

    kernels: Implementation = "auto"

    def forward(
        self, u: torch.Tensor, positions: Rotary, memory: Memory | Window | None
    ) -> tuple[torch.Tensor, Memory]:
        """u [B, T, S, C] -> ([B, T, S, C], keys and values of this chunk alone)."""
        q, k, v, gate = self.project(u.flatten(1, 2))
        q, k = (
            rms_norm_rotary(x, norm.weight, *positions, self.num_heads, norm.eps, self.kernels).transpose(1, 2)
            for x, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        v = self.heads(v).transpose(1, 2)
        if memory is not None and not isinstance(memory, Window):
            memory = Window(*memory, used=memory[0].shape[2])
        seen, own = ((k, v), (k, v)) if memory is None else memory.joined(k, v)
        out = F.scaled_dot_product_attention(q, *seen)
        return self.gated_output(out.transpose(1, 2).flatten(-2), gate).view_as(u), own


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
