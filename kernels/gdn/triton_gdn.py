"""Host side of the fused kernels: four launches, buffers and tile sizes. Importing this module does not import triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import dispatch
from ..launch import ceil_div, device_of, power_of_two
from . import triton_kernels as kernels
from .naive import GDNMemory

MAX_HEAD_DIM = 128
# Smallest side of a matrix product in triton.
MIN_TILE = 16


class Tiles(NamedTuple):
    """Rows per program of the norms; tokens per step, warps, pipeline stages; value rows, key channels per step."""

    norm_rows: int = 4
    summary: tuple[int, int, int] = (64, 8, 2)
    scan: tuple[int, int, int] = (64, 8, 2)
    scan_rows: int = 32
    read: tuple[int, int, int] = (64, 8, 2)
    read_channels: int = 32


# By compute capability, for bfloat16 and float16. UNTESTED on a device, all of them: every row compiles within the
# registers (triton 3.6 to 3.8 spill up to 20 in the scan) and the shared memory of its GPU; none has been timed.
HALF_TILES = {
    (8, 0): Tiles(),
    (8, 9): Tiles(),
    (9, 0): Tiles(summary=(64, 8, 3)),
    (10, 0): Tiles(summary=(64, 8, 3)),
    (12, 0): Tiles(),
}
# The interpreter takes its time per operation, whatever the size.
INTERPRETER_TILES = Tiles(256, summary=(128, 1, 1), scan=(256, 1, 1), scan_rows=64, read=(256, 1, 1), read_channels=64)
# Float32 is there to compare with; its products run outside the tensor cores.
FLOAT_TILES = Tiles(summary=(32, 8, 1), scan=(64, 8, 1), scan_rows=16, read=(32, 8, 1))


def obstacle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> str | None:
    """Why the kernels cannot take projected queries, keys and values [B, T, S, C]; None where they can."""
    if not q.dtype == k.dtype == v.dtype:
        return "q, k and v differ in dtype"
    head_dim = q.shape[-1] // num_heads
    if head_dim > MAX_HEAD_DIM or head_dim % 2:
        return f"head dimension is {head_dim}, the kernels take even ones up to {MAX_HEAD_DIM}"
    return dispatch.obstacle(q, kernels.jit)


def gdn_triton(
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
    splits: int | None = None,
) -> tuple[torch.Tensor, GDNMemory]:
    """As :func:`~.gdn_fused`, without gradients and without host synchronisation. Sums do not depend on timing.

    Slices of one wide projection are read where they lie. ``splits``: shares in which the tokens of a frame are summed; None
    takes as many as fill the GPU.
    """
    kernels.jit.load()
    batch, num_frames, tokens, width = q.shape
    heads = beta_logits.shape[-1]
    dim = width // heads
    padded = max(MIN_TILE, power_of_two(dim))
    is_float = q.dtype == torch.float32
    tiles = _tiles(q)
    device, rows, streams = q.device, batch * num_frames * tokens, batch * heads

    q_rows, k_rows, v_rows, gate_rows, beta_rows = (_rows(x) for x in (q, k, v, gate, beta_logits))
    q_weight, k_weight, A_log, dt_bias = (x.to(device) for x in (q_weight, k_weight, A_log, dt_bias))
    rate_logits = rate_logits.contiguous()
    # Without a memory the kernel does not look at these pointers.
    kv, z = (cos, cos) if memory is None else (part.to(device, torch.float32).contiguous() for part in memory)
    share = ceil_div(tokens, splits or _splits(2 * streams * num_frames, device))
    summary_tokens = min(tiles.summary[0], max(MIN_TILE, power_of_two(share)))
    share = ceil_div(share, summary_tokens) * summary_tokens
    splits = ceil_div(tokens, share)

    def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, device=device, dtype=dtype)

    inverse = buffer(2, rows)
    partial = buffer(2, splits, streams, num_frames, padded, padded)
    reverse = buffer(streams, num_frames, padded, padded)
    read_kv = buffer(streams, num_frames, padded, padded, dtype=q.dtype)
    read_z = buffer(2, streams, num_frames, padded)
    new_kv, new_z = buffer(batch, heads, dim, dim), buffer(batch, heads, dim)
    out = buffer(batch, num_frames, tokens, width, dtype=gate.dtype)
    scale = (dim * tokens) ** -0.5
    sizes = {"D": dim, "BD": padded}

    with device_of(q):
        kernels.gdn_fwd_kernel_norms[(ceil_div(rows, tiles.norm_rows),)](
            q_rows, k_rows, inverse, q_rows.stride(0), k_rows.stride(0), rows, width, norm_eps,
            BR=tiles.norm_rows, BC=512, **_options((0, 4, 1)),
        )  # fmt: skip
        kernels.gdn_fwd_kernel_summaries[(2 * splits, num_frames, streams)](
            k_rows, v_rows, inverse[1], k_weight, cos, sin, beta_rows, partial,
            k_rows.stride(0), v_rows.stride(0), beta_rows.stride(0), num_frames, tokens, share, heads, scale,
            BS=summary_tokens, PRECISION="ieee", **sizes, **_options(tiles.summary),
        )  # fmt: skip
        scan_rows = min(tiles.scan_rows, padded)
        # TF32 keeps the float32 state to 11 bits in the products of the correction only; half operands would to 8.
        kernels.gdn_fwd_kernel_scan[(2 + padded // scan_rows, streams)](
            k_rows, inverse[1], k_weight, beta_rows, rate_logits, A_log, dt_bias, partial, kv, z, new_kv, new_z,
            reverse, read_kv, read_z, k_rows.stride(0), beta_rows.stride(0), heads, num_frames, tokens, splits, scale,
            HAS_MEMORY=memory is not None, BS=tiles.scan[0], BV=scan_rows,
            PRECISION="ieee" if is_float else "tf32", **sizes, **_options(tiles.scan),
        )  # fmt: skip
        kernels.gdn_fwd_kernel_read[(ceil_div(tokens, tiles.read[0]), num_frames, streams)](
            q_rows, gate_rows, out, inverse, q_weight, cos, sin, read_kv, read_z, q_rows.stride(0), gate_rows.stride(0), width,
            num_frames, tokens, heads, eps,
            BS=tiles.read[0], BK=min(tiles.read_channels, padded), PRECISION="ieee", **sizes, **_options(tiles.read),
        )  # fmt: skip
    return out, (new_kv, new_z)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, T, S, C] as rows [B * T * S, C], a view where tokens are evenly spaced and channels adjacent."""
    rows = x.flatten(0, 2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _options(launch: tuple[int, int, int]) -> dict[str, Any]:
    # Fusing a product and a sum is said aloud: triton is about to change what it does by default.
    return {"num_warps": launch[1], "num_stages": launch[2], "enable_fp_fusion": True}


def _tiles(q: torch.Tensor) -> Tiles:
    """The row of this GPU, or of the newest known one that is older."""
    if q.device.type != "cuda":
        return INTERPRETER_TILES
    if q.dtype == torch.float32:
        return FLOAT_TILES
    capability = torch.cuda.get_device_capability(q.device)
    return HALF_TILES[max(known for known in HALF_TILES if known <= capability)]


def _splits(programs: int, device: torch.device) -> int:
    """Shares per frame that give every multiprocessor a program, where one share leaves some idle."""
    if device.type != "cuda":
        return 1
    return max(1, torch.cuda.get_device_properties(device).multi_processor_count // programs)
