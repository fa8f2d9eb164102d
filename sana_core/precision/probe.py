"""Whether a device multiplies in a format: tried once for each shape, never taken from a table alone."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from .formats import FORMATS, Format

logger = logging.getLogger(__name__)

# The fewest rows that every product takes.
_ROWS = 128
# Rounding of the output, which the two roads do not share.
_MAX_ERROR = 0.02
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)

# Formats whose products a GPU has, by compute capability. None was tried on such a GPU by the project; the probe decides.
CAPABILITIES: dict[tuple[int, int], tuple[str, ...]] = {
    (8, 9): ("fp8", "int8", "int8-hadamard"),
    (9, 0): ("fp8", "int8", "int8-hadamard"),
    (10, 0): ("fp8", "int8", "int8-hadamard", "mxfp8", "nvfp4"),
    (12, 0): ("fp8", "int8", "int8-hadamard", "mxfp8", "nvfp4"),
}


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
    x, weight = (torch.randn(size, columns, generator=draw).to(device, dtype) for size in (_ROWS, rows))
    try:
        quantized = kind.quantize(weight)
        out = kind.linear(x, quantized, None, how="fast")
        want = kind.linear(x, quantized, None, how="simulated")
    except (RuntimeError, ValueError, NotImplementedError) as error:
        # What a missing kernel raises differs between torch, cuBLAS and comfy-kitchen.
        return Probe(False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    distance = ((out.float() - want.float()).norm() / want.float().norm()).item()
    if not distance < _MAX_ERROR:
        return Probe(False, f"the product of [{rows}, {columns}] is off by {distance:.2g}")
    return Probe(True)
