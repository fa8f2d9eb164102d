"""The fused operator as one node in the graphs of torch.compile, which do not look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..opaque import operator

_SCHEMA = "(Tensor hidden, Tensor weight, Tensor bias, int rows, int columns, str implementation) -> Tensor"


def registered(glu_depthwise: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """:func:`~.glu_depthwise` as an operator of torch without gradients, the grid as two numbers.

    Which implementation takes a call is decided each time the graph runs.
    """

    def run(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        weight, bias, rows, columns, implementation = arguments
        return glu_depthwise(hidden, weight, bias, (rows, columns), implementation=implementation).contiguous()

    return operator("glu_depthwise", _SCHEMA, run, _shape)


def _shape(hidden: torch.Tensor, *_: Any) -> torch.Tensor:
    """The result without values, for tensors without values."""
    return hidden.new_empty(*hidden.shape[:-1], hidden.shape[-1] // 2)
