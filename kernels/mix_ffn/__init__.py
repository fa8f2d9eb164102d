"""The middle of the MixFFN (README.md has the formula): one call surface, a plain and a fused form."""

from __future__ import annotations

import torch

from ..dispatch import Implementation, takes_triton
from .eager import glu_depthwise_eager
from .opaque import registered
from .triton_mix_ffn import glu_depthwise_triton, obstacle

__all__ = ["Implementation", "glu_depthwise", "glu_depthwise_operator"]


def glu_depthwise(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grid: tuple[int, int],
    *,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """SiLU, depthwise 3x3 on each frame's grid with zeros around it, then the first half times SiLU of the second.

    Args:
        hidden: [B, T, S, 2I], S = rows x columns of ``grid``; a slice of a wide tensor will do.
        weight, bias: of the depthwise convolution [2I, 1, 3, 3] and [2I].
        grid: (rows, columns) of a frame.
        implementation: ``auto`` is ``triton`` where it can run and no gradient is asked for, else ``eager``; ``naive`` is
            ``eager``.

    Returns:
        [B, T, S, I] in the dtype of hidden.

    Raises:
        ValueError: ``triton`` was asked for and cannot run here.
    """
    compiling = torch.compiler.is_compiling()

    def reason() -> str | None:
        # A compiled graph looks at what stands in the way when it runs.
        return None if compiling and bias is not None else obstacle(hidden, weight, bias, grid)

    tensors = (hidden, weight) if bias is None else (hidden, weight, bias)
    if takes_triton("MixFFN middle", implementation, tensors, reason, opaque=True):
        assert bias is not None
        if compiling:
            return glu_depthwise_operator(hidden, weight, bias, *grid, implementation)
        return glu_depthwise_triton(hidden, weight, bias, grid)
    return glu_depthwise_eager(hidden, weight, bias, grid)


glu_depthwise_operator = registered(glu_depthwise)
