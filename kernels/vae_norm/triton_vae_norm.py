"""Host side of the kernel: one launch, its buffers and its tile. Importing this module does not import triton."""

from __future__ import annotations

import torch

from .. import dispatch
from ..launch import ceil_div, device_of, options, power_of_two
from . import triton_kernels as kernels
from .eager import CONTEXT_FRAMES, RMS_EPSILON

# Values that a program holds, and the most channels of a position it takes in one step. UNTESTED on a device.
TILE, MAX_STEP, WARPS = 4096, 4096, 4
# The interpreter takes its time per operation, whatever the size.
INTERPRETER_TILE = 1 << 17
MAX_POSITIONS = 2**31 - 1


def obstacle(x: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why the kernel cannot take these tensors; None where it can."""
    for tensor in others:
        if tensor.dtype != x.dtype or tensor.device != x.device:
            return f"tensors are {x.dtype} on {x.device} and {tensor.dtype} on {tensor.device}"
    if x.numel() // max(1, x.shape[1]) * CONTEXT_FRAMES > MAX_POSITIONS:
        return f"tensors of shape {tuple(x.shape)} have too many positions"
    return dispatch.obstacle(x, kernels.jit)


def norm_silu_pad_triton(
    x: torch.Tensor,
    history: torch.Tensor | None = None,
    *,
    reflect: bool,
    norm: bool = True,
    causal: bool = True,
    branch: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    keep_sum: bool = True,
    tile: int | None = None,
    step: int = MAX_STEP,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`~.norm_silu_pad`, without gradients and without host synchronisation; results in channels_last_3d memory.

    ``tile``: values per program; ``step``: most channels at once. Both change the time, and ``step`` the order of a sum.
    """
    kernels.jit.load()
    batch, channels, num_frames, height, width = x.shape
    border = 1 if reflect else 0
    places = (batch, num_frames + CONTEXT_FRAMES, height + 2 * border, width + 2 * border)
    padded = _channels_last(x, places)
    sums = keep_sum and (branch is not None or bias is not None)
    stream = _channels_last(x, (batch, num_frames, height, width)) if sums else x
    past = history if causal else None
    # The kernel does not look at pointers of what is not there.
    branch_in, history_in = x if branch is None else branch, x if past is None else past
    bias_in = x if bias is None else bias.contiguous()

    num_positions = padded.numel() // channels
    rows, block = tile_of(channels, x.device.type, tile, step)
    with device_of(x):
        kernels.vae_norm_fwd_kernel[(ceil_div(num_positions, rows),)](
            x, branch_in, bias_in, history_in, padded, stream,
            num_positions, num_frames, height, width, *x.stride(), *branch_in.stride(), *history_in.stride(), RMS_EPSILON,
            C=channels, HAS_BRANCH=branch is not None, HAS_BIAS=bias is not None, HAS_HISTORY=past is not None,
            HAS_SUM=sums, NORM=norm, BORDER=border, LEAD=CONTEXT_FRAMES if causal else 1, BP=rows, BC=block,
            **options(WARPS),
        )  # fmt: skip
    return padded, stream


def tile_of(channels: int, device_type: str, tile: int | None = None, step: int = MAX_STEP) -> tuple[int, int]:
    """(positions of a program, channels of a step): together at most the values of a tile, or one position."""
    block = min(power_of_two(channels), step)
    values = tile or (TILE if device_type == "cuda" else INTERPRETER_TILE)
    return max(1, values // block), block


def _channels_last(like: torch.Tensor, places: tuple[int, int, int, int]) -> torch.Tensor:
    """An empty [B, C, T, H, W] with ``like``'s channels, in channels_last_3d memory."""
    return like.new_empty(*places, like.shape[1]).movedim(-1, 1)
