"""Gated delta rule, frame by frame and token by token as the formulas read. Float32 (or wider), slow, the truth."""

from __future__ import annotations

from typing import NamedTuple

import torch

GDNMemory = tuple[torch.Tensor, torch.Tensor]


class ScanResult(NamedTuple):
    """Numerator [B, T, S, h, D], denominator [B, T, S, h], and the memory (kv [B, h, D, D], z [B, h, D]) after."""

    num: torch.Tensor
    den: torch.Tensor
    memory: GDNMemory


def absorb(
    memory: GDNMemory, k: torch.Tensor, k_rot: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor
) -> GDNMemory:
    """The memory after one frame: all its tokens correct the same decayed memory.

    k, k_rot, v [B, S, h, D]; beta [B, S, h]; decay [B, h]; kv is stored [value, key].
    """
    kv = memory[0] * decay[..., None, None]
    z = memory[1] * decay[..., None]
    new_kv, new_z = kv.clone(), z.clone()
    for n in range(k.shape[1]):
        error = v[:, n] - torch.einsum("bhvk,bhk->bhv", kv, k_rot[:, n])
        new_kv += beta[:, n, :, None, None] * error[..., :, None] * k_rot[:, n][..., None, :]
        shortfall = 1 - (z * k[:, n]).sum(-1)
        new_z += (beta[:, n] * shortfall)[..., None] * k[:, n]
    return new_kv, new_z


def read(memory: GDNMemory, q: torch.Tensor, q_rot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(numerator [B, S, h, D], denominator [B, S, h]) for the queries of one frame [B, S, h, D]."""
    return torch.einsum("bhvk,bshk->bshv", memory[0], q_rot), torch.einsum("bhk,bshk->bsh", memory[1], q)


def scan_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rot: torch.Tensor,
    k_rot: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor,
    memory: GDNMemory,
) -> ScanResult:
    """Frames in order, each read after its own tokens are absorbed. Shapes as in :func:`gdn_naive`."""
    nums, dens = [], []
    for f in range(q.shape[1]):
        memory = absorb(memory, k[:, f], k_rot[:, f], v[:, f], beta[:, f], decay[:, f])
        num, den = read(memory, q[:, f], q_rot[:, f])
        nums.append(num)
        dens.append(den)
    return ScanResult(torch.stack(nums, 1), torch.stack(dens, 1), memory)


def scan_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rot: torch.Tensor,
    k_rot: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor,
    memory: GDNMemory,
) -> ScanResult:
    """Frames in reverse, each read before its own tokens are absorbed, so the last frame reads the given memory."""
    nums, dens = [], []
    for f in reversed(range(q.shape[1])):
        num, den = read(memory, q[:, f], q_rot[:, f])
        nums.append(num)
        dens.append(den)
        memory = absorb(memory, k[:, f], k_rot[:, f], v[:, f], beta[:, f], decay[:, f])
    return ScanResult(torch.stack(nums[::-1], 1), torch.stack(dens[::-1], 1), memory)


def zero_memory(like: torch.Tensor) -> GDNMemory:
    """Memory of a stream that has seen nothing, for tensors [B, T, S, h, D]."""
    batch, _, _, heads, dim = like.shape
    return like.new_zeros(batch, heads, dim, dim), like.new_zeros(batch, heads, dim)


def gdn_naive(
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
    q, k, v, q_rot, k_rot, beta, decay = (t.to(dtype) for t in (q, k, v, q_rot, k_rot, beta, decay))
    zero = zero_memory(q)
    start = zero if memory is None else (memory[0].to(dtype), memory[1].to(dtype))
    forward = scan_forward(q, k, v, q_rot, k_rot, beta, decay, start)
    backward = scan_backward(q, k, v, q_rot, k_rot, beta, decay, zero)
    out = (forward.num + backward.num) / (forward.den + backward.den + eps)[..., None]
    return out, forward.memory
