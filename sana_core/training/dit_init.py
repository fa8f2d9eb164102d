"""Random weights for a transformer that is to be trained: every block begins as a small change to what it is given."""

from __future__ import annotations

import math

import torch

from ..models.dit import SanaStreamingDiT

# The memory of a GDN block loses this share per frame at the start: the first head the least, the last the most.
_LEAST_FORGOTTEN, _MOST_FORGOTTEN = 0.01, 0.4
# Layers whose output is added to the stream of tokens, or is the result.
_SILENT = ("cross_attn.proj.weight", "mlp.t_conv.weight", "final_layer.linear.weight")
_SMALL = ("t_block.1.weight", "beta_proj.weight", "gate_proj.weight")


@torch.no_grad()
def initialize(model: SanaStreamingDiT, seed: int) -> None:
    """Fills every parameter in place, in the order of their names, from one generator on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        parameter.copy_(_start(name, parameter.shape, generator))


def _start(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("dt_bias"):
        forgotten = torch.logspace(math.log10(_LEAST_FORGOTTEN), math.log10(_MOST_FORGOTTEN), shape[0])
        # decay = exp(-softplus(dt_bias)) where A_log is 0 and the projection small.
        return torch.special.expm1(-torch.log1p(-forgotten)).log()
    if name.endswith(("bias", "A_log", *_SILENT)):
        return torch.zeros(shape)
    if name.endswith("scale_shift_table"):
        deviation = shape[-1] ** -0.5
    else:
        # Fan-in of a matrix or of one channel's convolution.
        deviation = math.prod(shape[1:]) ** -0.5
        deviation *= 0.1 if name.endswith(_SMALL) else 1.0
    return torch.randn(shape, generator=generator) * deviation
