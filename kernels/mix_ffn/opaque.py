"""The fused operator as one node in the graphs of torch.compile, which do not look inside."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

# A package may be loaded twice in one process, under two names, and one may be a path.
_LIBRARY = "sana_" + re.sub(r"\W", "_", __name__, flags=re.ASCII)
_SCHEMA = "(Tensor hidden, Tensor weight, Tensor bias, int rows, int columns, str implementation) -> Tensor"


def registered(glu_depthwise: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """:func:`~.glu_depthwise` as an operator of torch without gradients, the grid as two numbers.

    Which implementation takes a call is decided each time the graph runs.
    """

    def run(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        weight, bias, rows, columns, implementation = arguments
        return glu_depthwise(hidden, weight, bias, (rows, columns), implementation=implementation).contiguous()

    operator = torch.library.custom_op(f"{_LIBRARY}::glu_depthwise", run, mutates_args=(), schema=_SCHEMA)
    operator.register_fake(_shape)
    return operator


def _shape(hidden: torch.Tensor, *_: Any) -> torch.Tensor:
    """The result without values, for tensors without values."""
    return hidden.new_empty(*hidden.shape[:-1], hidden.shape[-1] // 2)
