"""The fused operator as one node in the graphs of torch.compile, which do not look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..opaque import operator

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, "
    "Tensor beta_logits, Tensor rate_logits, Tensor A_log, Tensor dt_bias, Tensor? kv, Tensor? z, "
    "float norm_eps, float eps, str implementation) -> (Tensor, Tensor, Tensor)"
)


def registered(gdn_fused: Callable[..., Any]) -> Callable[..., Results]:
    """:func:`~.gdn_fused` as an operator of torch without gradients, which has the two parts of the memory apart.

    Which implementation takes a call is decided each time the graph runs.
    """

    def run(*arguments: Any) -> Results:
        *tensors, kv, z, norm_eps, eps, implementation = arguments
        memory = None if kv is None else (kv, z)
        out, after = gdn_fused(*tensors, memory, norm_eps=norm_eps, eps=eps, implementation=implementation)
        return out, *after

    return operator("gdn_fused", _SCHEMA, run, _shapes)


def _shapes(*arguments: Any) -> Results:
    """Results without values, for tensors without values."""
    q, _k, _v, gate, _q_weight, _k_weight, _cos, _sin, beta_logits, *_ = arguments
    heads = beta_logits.shape[-1]
    square = (q.shape[0], heads, *[q.shape[-1] // heads] * 2)
    dtype = torch.promote_types(q.dtype, torch.float32)
    return gate.new_empty(gate.shape), q.new_empty(square, dtype=dtype), q.new_empty(square[:3], dtype=dtype)
