"""Which implementation of an operator takes a call. Importing this module does not import triton."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Literal

import torch

from .deferred_jit import DeferredJit

Implementation = Literal["auto", "eager", "naive", "triton"]

MIN_CAPABILITY = (8, 0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

logger = logging.getLogger(__name__)
_reported: set[tuple[str, str]] = set()


def interpreted() -> bool:
    """Whether triton runs kernels on the CPU (its own variable, which it reads when a kernel is made)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(x: torch.Tensor, jit: DeferredJit) -> str | None:
    """Why the kernels of ``jit`` cannot take ``x``, whatever its shape; None where they can."""
    if not interpreted():
        if x.device.type != "cuda" or torch.version.hip is not None:
            return f"tensors are on {x.device.type}, the kernels need an NVIDIA GPU"
        if torch.cuda.get_device_capability(x.device) < MIN_CAPABILITY:
            return "the GPU is older than compute capability 8.0"
    if x.dtype not in DTYPES:
        return f"dtype is {x.dtype}, the kernels take bfloat16, float16 and float32"
    try:
        jit.load()
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return None


def takes_triton(
    operator: str,
    implementation: Implementation,
    tensors: Iterable[torch.Tensor],
    reason: Callable[[], str | None],
    *,
    opaque: bool = False,
) -> bool:
    """Whether the kernels of ``operator`` take a call with ``tensors``, the first of which says the device.

    ``reason`` tells what stands in their way, None for nothing. ``auto`` takes them for CUDA tensors where they can run, and
    says once why they cannot; ``triton`` raises ValueError then. Inside torch.compile, which fuses plain forms itself, only
    ``opaque`` operators do.
    """
    if torch.compiler.is_compiling() and not opaque:
        return False
    first, *others = tensors
    demanded = implementation == "triton"
    if not demanded and (implementation != "auto" or first.device.type != "cuda"):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (first, *others)):
        why: str | None = "gradients are asked for, the kernels have none"
    else:
        why = reason()
    if why is None:
        return True
    if demanded:
        raise ValueError(f"kernels 'triton' cannot run: {why}; use 'auto' or 'eager'")
    if (operator, why) not in _reported:
        _reported.add((operator, why))
        logger.info("%s in plain PyTorch: %s", operator, why)
    return False
