"""Whether a device multiplies in a format: tried once for each shape, never taken from a table alone."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import FORMATS, Format, QuantWeight

logger = logging.getLogger(__name__)

# The fewest rows that every product takes.
_ROWS = 128
# Rounding of the output, which the two roads do not share; and of the input too, where only the product quantizes it.
_MAX_ERROR, _MAX_INSIDE = 0.02, 0.03
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)


class Probe(NamedTuple):
    """Whether the product runs in the format, and if not why."""

    fast: bool
    reason: str = ""


_probes: dict[tuple[str, str, int, int, torch.dtype], Probe] = {}
_told: set[tuple[str, str, str]] = set()


def probe(name: str, device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> Probe:
    """Whether ``device`` multiplies inputs of ``dtype`` by a weight [rows, columns] in the format called ``name``.

    The first call for a shape runs a small product and compares it with the same numbers in full precision. Where it does
    not run, the log says so once for each format and reason.
    """
    key = (name, str(device), rows, columns, dtype)
    if key not in _probes:
        _probes[key] = found = _try(FORMATS[name], device, rows, columns, dtype)
        if not found.fast and (name, str(device), found.reason) not in _told:
            _told.add((name, str(device), found.reason))
            logger.warning(
                "%s weights save memory here but no time, they are dequantized before each product: %s",
                name,
                found.reason,
            )
    return _probes[key]


def obstacle(kind: Format, device: torch.device, dtype: torch.dtype) -> str:
    """Why the format's product is not even tried; empty where it is."""
    if kind.quantizes_inside:
        return ""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"{device.type} has no fast product in {kind.name}"
    if (have := torch.cuda.get_device_capability(device)) < kind.min_capability:
        need = ".".join(map(str, kind.min_capability))
        return f"the GPU has compute capability {have[0]}.{have[1]}, {kind.name} is multiplied from {need} on"
    if dtype not in _KERNEL_DTYPES:
        return f"inputs are {str(dtype).removeprefix('torch.')}, products in {kind.name} take bfloat16 and float16"
    return ""


@torch.inference_mode()
def _try(kind: Format, device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> Probe:
    if reason := obstacle(kind, device, dtype):
        return Probe(False, reason)
    draw = torch.Generator().manual_seed(0)
    sizes = ((_ROWS, columns), (rows, columns), (rows,))
    x, weight, bias = (torch.randn(size, generator=draw).to(device, dtype) for size in sizes)
    try:
        with on_device(device):
            quantized = kind.quantize(weight)
            out = kind.linear(x, quantized, bias, how="fast")
            want = _expected(kind, x, quantized, bias)
    except torch.OutOfMemoryError:
        # Says nothing of the product.
        raise
    except Exception as error:
        # What a missing kernel raises differs between torch, cuBLAS, triton and comfy-kitchen, and has no common base.
        return Probe(False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    distance = ((out.float() - want.float()).norm() / want.float().norm()).item()
    if not distance < (_MAX_INSIDE if kind.quantizes_inside else _MAX_ERROR):
        return Probe(False, f"the product of [{rows}, {columns}] is off by {distance:.2g}")
    return Probe(True)


def _expected(kind: Format, x: Tensor, weight: QuantWeight, bias: Tensor) -> Tensor:
    """What the fast product is near to: by full precision, of the same input where that is quantized before the product."""
    if kind.quantizes_inside:
        return F.linear(x.float(), kind.dequantize(weight, torch.float32), bias.float())
    return kind.linear(x, weight, bias, how="simulated")


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """``device`` as the current one, which kernels, events and graphs go by; nothing to do for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
