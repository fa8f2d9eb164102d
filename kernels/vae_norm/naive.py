"""Norm, SiLU, history and border frame by frame as the definition reads, in float32 or wider: the truth of the tests."""

from __future__ import annotations

import torch

from .eager import CONTEXT_FRAMES, RMS_EPSILON


def norm_silu_pad_naive(
    x: torch.Tensor,
    history: torch.Tensor | None = None,
    *,
    reflect: bool,
    norm: bool = True,
    causal: bool = True,
    branch: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`~.norm_silu_pad`, but what is normalised is the sum before it is rounded to the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide)
    if branch is not None:
        total = total + branch.to(wide)
    if bias is not None:
        total = total + bias.to(wide)[:, None, None, None]
    hidden = total
    if norm:
        hidden = hidden / (hidden.pow(2).mean(1, keepdim=True) + RMS_EPSILON).sqrt()
        hidden = hidden / (1 + (-hidden).exp())
    num_frames, height, width = x.shape[2:]
    rows, columns = (_mirrored(side) if reflect else list(range(side)) for side in (height, width))
    frames = []
    for place in range(num_frames + CONTEXT_FRAMES):
        if causal and history is not None and place < CONTEXT_FRAMES:
            frame = history[:, :, place].to(wide)
        else:
            lead = CONTEXT_FRAMES if causal else 1
            frame = hidden[:, :, min(max(place - lead, 0), num_frames - 1)]
        frames.append(frame[:, :, rows][..., columns])
    return torch.stack(frames, 2).to(x.dtype), x if branch is None and bias is None else total.to(x.dtype)


def _mirrored(side: int) -> list[int]:
    """Rows of a bordered frame as rows of the frame itself."""
    return [1, *range(side), side - 2]
