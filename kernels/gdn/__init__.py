"""Gated delta rule over video frames (README.md has the mathematics): one call surface, several implementations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch

from ..dispatch import Implementation, takes_triton
from .eager import gdn_eager
from .layer import features, gated, strength_and_decay
from .naive import GDNMemory, gdn_naive, scan_backward, scan_forward, zero_memory
from .opaque import registered
from .triton_gdn import gdn_triton, obstacle

__all__ = [
    "GDNMemory",
    "Implementation",
    "gated",
    "gdn",
    "gdn_eager",
    "gdn_fused",
    "gdn_naive",
    "gdn_operator",
    "scan_backward",
    "scan_forward",
    "strength_and_decay",
    "zero_memory",
]

PlainImplementation = Literal["auto", "eager", "naive"]
IMPLEMENTATIONS = {"auto": gdn_eager, "eager": gdn_eager, "naive": gdn_naive}


def gdn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rot: torch.Tensor,
    k_rot: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor,
    memory: GDNMemory | None = None,
    *,
    eps: float = 1e-8,
    implementation: PlainImplementation = "auto",
) -> tuple[torch.Tensor, GDNMemory]:
    """Bidirectional gated delta attention of one chunk, and the memory after it.

    Args:
        q, k: queries and keys after ReLU, keys already scaled, not rotated [B, T, S, h, D].
        v: values [B, T, S, h, D].
        q_rot, k_rot: q and k after RoPE [B, T, S, h, D]; they serve the numerator, q and k the denominator.
        beta: write strength per token, 0 to 1 [B, T, S, h].
        decay: factor on the memory per frame, 0 to 1 [B, T, h].
        memory: (kv [B, h, D, D] stored [value, key], z [B, h, D]) from the previous chunk; None is a fresh stream.
        eps: added to the denominator.
        implementation: ``auto`` is ``eager``; ``naive`` is the slow truth.

    Returns:
        Output [B, T, S, h, D] and the memory after the last frame (forward scan only), both at least float32.
    """
    # The recurrence multiplies its errors, so it stays wide under autocast, which not every device knows.
    device = q.device.type
    narrowed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if narrowed else nullcontext():
        return IMPLEMENTATIONS[implementation](q, k, v, q_rot, k_rot, beta, decay, memory, eps)


def gdn_fused(
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
    eps: float = 1e-8,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, GDNMemory]:
    """:func:`gdn` with all that stands between the projections of the attention layer and its output projection.

    q and k: RMSNorm over C, ReLU, keys times (D S)^-1/2, rotation; write strength sigmoid(beta), decay
    exp(-exp(A_log) softplus(rate + dt_bias)); the rule; times SiLU of the gate (``docs/model.md``).

    Args:
        q, k, v, gate: as projected [B, T, S, C]; slices of one wide tensor will do.
        q_weight, k_weight: of the RMSNorms [C]; these, A_log and dt_bias may lie on another device.
        cos, sin: rotary factors of the tokens of one sample [T * S, D/2] float32.
        beta_logits: write strength per token as projected [B, T, S, h].
        rate_logits: rate of decay per frame as projected [B, T, h].
        A_log, dt_bias: logarithm of the factor on the rate of each head, and the bias in its softplus [h].
        memory: as in :func:`gdn`.
        norm_eps, eps: added to the mean squares, and to the denominator.
        implementation: ``auto`` is ``triton`` where it can run and no gradient is asked for, else ``eager``.

    Returns:
        Output [B, T, S, C] in the dtype of the gate, and the memory after the last frame, at least float32.

    Raises:
        ValueError: ``triton`` was asked for and cannot run here.
    """
    heads = beta_logits.shape[-1]
    logits = (beta_logits, rate_logits, A_log, dt_bias)
    tensors = (q, k, v, gate, q_weight, k_weight, *logits, *(memory or ()))
    compiling = torch.compiler.is_compiling()

    def reason() -> str | None:
        # A compiled graph looks at what stands in the way when it runs.
        return None if compiling else obstacle(q, k, v, heads)

    if takes_triton("gated delta rule", implementation, tensors, reason, opaque=True):
        arguments = (q, k, v, gate, q_weight, k_weight, cos, sin, *logits)
        if compiling:
            out, kv, z = gdn_operator(*arguments, *(memory or (None, None)), norm_eps, eps, implementation)
            return out, (kv, z)
        return gdn_triton(*arguments, memory, norm_eps=norm_eps, eps=eps)
    prepared = features(q, k, q_weight, k_weight, cos, sin, heads, norm_eps)
    plain: PlainImplementation = "naive" if implementation == "naive" else "eager"
    q_plain, k_plain, q_rot, k_rot = prepared
    values, gates = v.unflatten(-1, (heads, -1)), strength_and_decay(*logits)
    out, memory = gdn(q_plain, k_plain, values, q_rot, k_rot, *gates, memory, eps=eps, implementation=plain)
    return gated(out.flatten(-2), gate), memory


gdn_operator = registered(gdn_fused)
