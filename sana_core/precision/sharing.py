"""One quantized input for the layers that read the same tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Shared(NamedTuple):
    """An input [..., K] of ``shape`` as a layer of its own kind takes it: ``value`` is whatever that kind quantizes to."""

    value: Any
    shape: torch.Size


def shared_inputs(x: Tensor, layers: Sequence[nn.Module]) -> Iterator[Any]:
    """What to give each layer instead of ``x``; ``x`` itself for layers that quantize nothing.

    A layer that can share has ``share_input(x, seen)``, which looks its input up in ``seen`` and adds it there.
    """
    seen: dict[Any, Any] = {}
    for layer in layers:
        share = getattr(type(layer), "share_input", None)
        yield x if share is None else share(layer, x, seen)
