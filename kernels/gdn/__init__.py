"""Gated delta rule over video frames (README.md has the mathematics): one call surface, several implementations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch

from .eager import gdn_eager
from .naive import GDNMemory, gdn_naive, scan_backward, scan_forward, zero_memory

__all__ = [
    "GDNMemory",
    "Implementation",
    "gdn",
    "gdn_eager",
    "gdn_naive",
    "scan_backward",
    "scan_forward",
    "zero_memory",
]

Implementation = Literal["auto", "eager", "naive"]
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
    implementation: Implementation = "auto",
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
        implementation: ``auto`` is the fastest that can run here; ``naive`` is the slow truth.

    Returns:
        Output [B, T, S, h, D] and the memory after the last frame (forward scan only), both at least float32.
    """
    # The recurrence multiplies its errors, so it stays wide under autocast, which not every device knows.
    device = q.device.type
    narrowed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if narrowed else nullcontext():
        return IMPLEMENTATIONS[implementation](q, k, v, q_rot, k_rot, beta, decay, memory, eps)
