"""Gated delta rule in matrix form: products for all frames at once, then one short scan for both directions."""

from __future__ import annotations

import torch

from .naive import GDNMemory, zero_memory


def gdn_eager(
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
    """As :func:`~.gdn`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    # [B, T, h, S, D]: frames and heads are batch dimensions of the matrix products.
    q, k, v, q_rot, k_rot = (t.to(dtype).transpose(2, 3) for t in (q, k, v, q_rot, k_rot))
    beta = beta.to(dtype).transpose(2, 3)[..., None]
    decay = decay.to(dtype)[..., None, None]
    weighted = beta * k_rot
    gram = k_rot.mT @ weighted
    value_key = v.mT @ weighted
    zero_kv, zero_z = zero_memory(q.transpose(2, 3))
    start_kv, start_z = (zero_kv, zero_z) if memory is None else (memory[0].to(dtype), memory[1].to(dtype))

    # Row 0 is the forward scan, row 1 the backward scan. At step i the first absorbs frame i, the second frame T - i.
    num_frames = q.shape[1]
    kv = torch.stack([start_kv, zero_kv])
    z = torch.stack([start_z, zero_z])[..., None]
    histories = [(kv, z)]
    for i in range(num_frames):
        frames = [i, num_frames - i] if i else [0]
        rows = slice(0, len(frames))
        kept_kv = kv[rows] * _pick(decay, frames)
        kept_z = z[rows] * _pick(decay, frames)
        keys = _pick(k, frames)
        step_kv = kept_kv - kept_kv @ _pick(gram, frames) + _pick(value_key, frames)
        step_z = kept_z + keys.mT @ (_pick(beta, frames) * (1 - keys @ kept_z))
        kv = torch.cat([step_kv, kv[len(frames) :]])
        z = torch.cat([step_z, z[len(frames) :]])
        histories.append((kv, z))

    # After j steps the forward scan holds frames 0 to j - 1, the backward scan frames T - j + 1 to T - 1.
    read_kv = torch.stack([histories[f + 1][0][0] + histories[num_frames - f][0][1] for f in range(num_frames)], 1)
    read_z = torch.stack([histories[f + 1][1][0] + histories[num_frames - f][1][1] for f in range(num_frames)], 1)
    num = q_rot @ read_kv.mT
    den = q @ read_z
    return (num / (den + eps)).transpose(2, 3), (kv[0], z[0].squeeze(-1))


def _pick(per_frame: torch.Tensor, frames: list[int]) -> torch.Tensor:
    """[rows, B, h, ...]: the given frames of a tensor [B, T, h, ...]."""
    return torch.stack([per_frame[:, f] for f in frames])
