"""Bytes that a plain PyTorch form of an operator moves, counted operation by operation on tensors without storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from .counts import Work
from .registry import Row
from .sizes import Bench, Size

# Operations that hand on their input, or memory that nothing is written to.
_FREE = ("aten._unsafe_view", "aten.detach", "aten.empty", "aten.new_empty", "aten.empty_like", "aten.empty_strided")


class Traffic(TorchDispatchMode):
    """Adds up what every operation but a view reads and writes: each tensor once, expanded dimensions not at all.

    ``by_name`` has the sums by operator; ``aten.convolution`` and matrix products are among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name.startswith("aten.") and not func.is_view and name not in _FREE:
            read, written = (_tensors(tree_leaves(values)) for values in ((args, kwargs), result))
            self.by_name[name] = self.by_name.get(name, 0) + sum(map(touched, (*read, *written)))
        return result


def touched(tensor: torch.Tensor) -> int:
    """Bytes that a tensor covers."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """Those among ``values``, the same one once."""
    return list({id(value): value for value in values if isinstance(value, torch.Tensor)}.values())


def eager_traffic(row: Row, size: Size) -> tuple[Traffic, tuple[Work, ...]]:
    """Of the row's eager form in bfloat16, and the row's least work; nothing is computed, and networks have no weights."""
    with FakeTensorMode(), torch.no_grad():
        bench = Bench(torch.device("cpu"), torch.bfloat16)
        bench._models[size.networks] = SanaStreamingDiT(size.dit, dtype=bench.dtype).requires_grad_(False)
        bench._vaes[size.networks] = CausalVAE(size.vae, dtype=bench.dtype).requires_grad_(False)
        case = row.prepare(bench, size)
        with Traffic() as traffic:
            case.variants["eager"].run()
    return traffic, case.work
