"""Gated delta rule over video frames (README.md has the mathematics): one call surface, several implementations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch

from ..dispatch import Implementation, takes_triton
from .eager import gdn_eager
from .layer import features, gated, rms_normalised, rotated
from .naive import GDNMemory, gdn_naive, scan_backward, scan_forward, zero_memory
from .triton_gdn import gdn_triton, obstacle

__all__ = [
    "GDNMemory",
    "Implementation",
    "gated",
    "gdn",
    "gdn_eager",
    "gdn_fused",
    "gdn_naive",
    "rms_normalised",
    "rotated",
    "scan_backward",
    "scan_forward",
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
    beta: torch.Tensor,
    decay: torch.Tensor,
    memory: GDNMemory | None = None,
    *,
    norm_eps: float,
    eps: float = 1e-8,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, GDNMemory]:
    """:func:`gdn` with all that stands between the projections of the attention layer and its output projection.

    q and k: RMSNorm over C, ReLU, keys times (D S)^-1/2, rotation; the rule; times SiLU of the gate (``docs/model.md``).

    Args:
        q, k, v, gate: as projected [B, T, S, C]; slices of one wide tensor will do.
        q_weight, k_weight: of the RMSNorms [C].
        cos, sin: rotary factors of the tokens of one sample [T * S, D/2] float32.
        beta: write strength per token, 0 to 1 [B, T, S, h].
        decay: factor on the memory per frame, 0 to 1 [B, T, h].
        memory: as in :func:`gdn`.
        norm_eps, eps: added to the mean squares, and to the denominator.
        implementation: ``auto`` is ``triton`` where it can run and no gradient is asked for, else ``eager``.

    Returns:
        Output [B, T, S, C] in the dtype of the gate, and the memory after the last frame, at least float32.

    Raises:
        ValueError: ``triton`` was asked for and cannot run here.
    """
    tensors = (q, k, v, gate, q_weight, k_weight, beta, decay, *(memory or ()))
    if takes_triton("gated delta rule", implementation, tensors, lambda: obstacle(q, k, v, beta.shape[-1])):
        return gdn_triton(
            q, k, v, gate, q_weight, k_weight, cos, sin, beta, decay, memory, norm_eps=norm_eps, eps=eps
        )  # fmt: skip
    heads = beta.shape[-1]
    prepared = features(q, k, q_weight, k_weight, cos, sin, heads, norm_eps)
    plain: PlainImplementation = "naive" if implementation == "naive" else "eager"
    q, k, q_rot, k_rot = prepared
    values = v.unflatten(-1, (heads, -1))
    out, memory = gdn(q, k, values, q_rot, k_rot, beta, decay, memory, eps=eps, implementation=plain)
    return gated(out.flatten(-2), gate), memory
