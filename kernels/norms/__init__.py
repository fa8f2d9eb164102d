"""Norms, modulation by the timestep and gated sums (README.md has the formulas): one call surface, plain and fused forms."""

from __future__ import annotations

import torch

from ..dispatch import Implementation, takes_triton
from .eager import gated_residual_eager, norm_modulate_eager, rms_norm_rotary_eager, rms_normalised, rotated
from .triton_norms import (
    gated_residual_triton,
    modulation_obstacle,
    norm_modulate_triton,
    obstacle,
    rms_norm_rotary_triton,
    rms_norm_triton,
    rotary_obstacle,
)

__all__ = [
    "Implementation",
    "add_norm_modulate",
    "gated_residual",
    "norm_modulate",
    "rms_norm",
    "rms_norm_rotary",
    "rms_normalised",
    "rotated",
]


def norm_modulate(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float, implementation: Implementation = "auto"
) -> torch.Tensor:
    """LayerNorm without weights over C, times 1 + scale, plus shift.

    Args:
        x: [B, T, S, C].
        shift, scale: broadcast to x; the kernels take one row for each sample [B or 1, 1, 1, C], rows of any tensor.
        eps: added to the variance.
        implementation: ``auto`` is ``triton`` where it can run and no gradient is asked for, else ``eager``; ``naive`` is
            ``eager``.

    Returns:
        [B, T, S, C] in the dtype of x.

    Raises:
        ValueError: ``triton`` was asked for and cannot run here.
    """
    tensors = (x, shift, scale)
    if takes_triton("norm and modulation", implementation, tensors, lambda: modulation_obstacle(x, None, shift, scale)):
        return norm_modulate_triton(x, None, shift, scale, eps)[1]
    return norm_modulate_eager(x, shift, scale, eps)


def add_norm_modulate(
    x: torch.Tensor,
    y: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + y`` and the :func:`norm_modulate` of this sum, which is rounded to its dtype first.

    y is like x [B, T, S, C]; the rest as in :func:`norm_modulate`.
    """
    tensors = (x, y, shift, scale)
    if takes_triton(
        "sum, norm and modulation", implementation, tensors, lambda: modulation_obstacle(x, y, shift, scale)
    ):
        return norm_modulate_triton(x, y, shift, scale, eps)
    total = x + y
    return total, norm_modulate_eager(total, shift, scale, eps)


def gated_residual(
    x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor, *, implementation: Implementation = "auto"
) -> torch.Tensor:
    """``x + gate * y``; the kernel rounds once, the plain form after the product too.

    x and y [B, T, S, C]; gate broadcasts to them, the kernel takes one row for each sample [B or 1, 1, 1, C]. Implementations
    and errors as in :func:`norm_modulate`.
    """
    if takes_triton("gated sum", implementation, (x, gate, y), lambda: modulation_obstacle(x, y, gate)):
        return gated_residual_triton(x, gate, y)
    return gated_residual_eager(x, gate, y)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, implementation: Implementation = "auto"
) -> torch.Tensor:
    """``x / rms(x) * weight`` over the last dimension, inside float32, in the dtype of x.

    x [..., C], a slice of a wide tensor will do; weight [C] may have another dtype and lie on another device. Implementations
    and errors as in :func:`norm_modulate`.
    """
    if takes_triton("RMS norm", implementation, (x, weight), lambda: obstacle(x)):
        return rms_norm_triton(x, weight, eps)
    return rms_normalised(x, weight, eps)


def rms_norm_rotary(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    eps: float,
    implementation: Implementation = "auto",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`rms_norm` over all heads, then rotation of adjacent channels of each head.

    Args:
        x: [B, N, C], a slice of a wide tensor will do.
        weight: [C]; as in :func:`rms_norm`.
        cos, sin: rotary factors of the tokens of one sample [N, D/2] float32.
        heads: h, of D = C / h channels.
        eps: added to the mean square.
        implementation: as in :func:`norm_modulate`.
        out: written and returned [B, N, h, D], of any strides, as a span of a buffer of keys; None makes a new tensor.

    Returns:
        [B, N, h, D] in the dtype of x, or ``out``.

    Raises:
        ValueError: ``triton`` was asked for and cannot run here.
    """
    tensors = (x, weight) if out is None else (x, weight, out)
    if takes_triton("RMS norm and rotation", implementation, tensors, lambda: rotary_obstacle(x, heads, out)):
        return rms_norm_rotary_triton(x, weight, cos, sin, heads, eps, out)
    turned = rms_norm_rotary_eager(x, weight, cos, sin, heads, eps)
    return turned if out is None else out.copy_(turned)
