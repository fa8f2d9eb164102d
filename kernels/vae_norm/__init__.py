"""What stands in front of a 3x3x3 convolution of the video VAE (README.md): one call surface, several implementations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..dispatch import Implementation, takes_triton
from .eager import CONTEXT_FRAMES, RMS_EPSILON, norm_silu_pad_eager, rms_norm, summed
from .naive import norm_silu_pad_naive
from .triton_vae_norm import norm_silu_pad_triton, obstacle

__all__ = [
    "CONTEXT_FRAMES",
    "RMS_EPSILON",
    "Implementation",
    "norm_silu_pad",
    "norm_silu_pad_eager",
    "norm_silu_pad_naive",
    "norm_silu_pad_triton",
    "rms_norm",
    "summed",
    "takes_kernels",
]


def norm_silu_pad(
    x: torch.Tensor,
    history: torch.Tensor | None = None,
    *,
    reflect: bool,
    norm: bool = True,
    causal: bool = True,
    branch: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    keep_sum: bool = True,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The padded input of a convolution, and the tensor it was made from.

    Args:
        x: residual stream, or output of a convolution [B, C, T, H, W], T >= 1, in any memory format.
        history: the last two frames [B, C, 2, H, W] of the input of this convolution in the call before, that is after norm
            and SiLU and without border; None at the start of a stream, which stands for its first frame twice.
        reflect: border of one row and column, reflected without the edge (H, W >= 2); none otherwise, for convolutions that
            pad zeros themselves.
        norm: RMS norm over the channels and SiLU; without it x goes through as it is.
        causal: two frames in front; otherwise, and without ``history``, the first frame once in front, the last once behind.
        branch: [B, C, T, H, W] in the dtype of x, added to it first.
        bias: [C], of the convolution that made ``branch``, or x where there is none; added too.
        keep_sum: whether the sum is wanted; what nobody reads is not written.
        implementation: ``auto`` is ``triton`` where it can run and no gradient is asked for, else ``eager``.

    Returns:
        Padded input [B, C, T + 2, H + 2, W + 2], or [B, C, T + 2, H, W] without ``reflect``, and x + branch + bias
        [B, C, T, H, W]: x itself where neither was given, or without ``keep_sum``. Both in the dtype of x; from the kernel
        in channels_last_3d memory.

    Raises:
        ValueError: ``triton`` was asked for and cannot run here.
    """
    form: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    form = norm_silu_pad_naive if implementation == "naive" else norm_silu_pad_eager
    if takes_kernels(x, implementation, others=(history, branch, bias)):
        form = partial(norm_silu_pad_triton, keep_sum=keep_sum)
    padded, total = form(x, history, reflect=reflect, norm=norm, causal=causal, branch=branch, bias=bias)
    return padded, total if keep_sum else x


def takes_kernels(
    x: torch.Tensor, implementation: Implementation, others: tuple[torch.Tensor | None, ...] = ()
) -> bool:
    """Whether :func:`norm_silu_pad` of these tensors is the kernel's. ValueError where ``triton`` cannot run.

    ``auto`` is plain PyTorch under torch.compile, which makes a kernel of its own of it.
    """
    if implementation == "auto" and torch.compiler.is_compiling():
        return False
    tensors = (x, *(tensor for tensor in others if tensor is not None))
    return takes_triton("norm, SiLU and padding of the VAE", implementation, tensors, lambda: obstacle(*tensors))
