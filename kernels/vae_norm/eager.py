"""Norm, SiLU, history and border in plain PyTorch: differentiable, any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CONTEXT_FRAMES = 2
"""Frames that a 3x3x3 convolution sees beside the current one."""

RMS_EPSILON = 1e-8


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Each position of ``x`` divided by the root mean square of its channels; no weight, in the dtype of ``x``.

    Squares of float16 leave its range already for values below 1e-4 and from 256 on, so they are summed in float32.
    """
    if x.dtype == torch.float16:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return x / torch.sqrt(norm.square() / x.shape[1] + RMS_EPSILON).to(x.dtype)
    return x / torch.sqrt(x.square().mean(dim=1, keepdim=True) + RMS_EPSILON)


def norm_silu_pad_eager(
    x: torch.Tensor,
    history: torch.Tensor | None = None,
    *,
    reflect: bool,
    norm: bool = True,
    causal: bool = True,
    branch: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`~.norm_silu_pad`."""
    x = summed(x, branch, bias)
    hidden = F.silu(rms_norm(x)) if norm else x
    padded = torch.cat(_in_time(hidden, history, causal), dim=2)
    return F.pad(padded, (1, 1, 1, 1, 0, 0), mode="reflect") if reflect else padded, x


def summed(x: torch.Tensor, branch: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """x + branch + bias of those that are there."""
    column = None if bias is None else bias.to(x).view(-1, 1, 1, 1)
    if branch is None:
        return x if column is None else x + column
    return x + (branch if column is None else branch + column)


def _in_time(hidden: torch.Tensor, history: torch.Tensor | None, causal: bool) -> list[torch.Tensor]:
    """``hidden`` with the two frames of context that the kernel of a convolution needs."""
    first = hidden[:, :, :1]
    if not causal:
        return [first, hidden, hidden[:, :, -1:]]
    return [first.expand(-1, -1, CONTEXT_FRAMES, -1, -1) if history is None else history, hidden]
