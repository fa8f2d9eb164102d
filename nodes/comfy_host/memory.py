"""Devices, and networks under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

DTYPES = ("auto", "bfloat16", "float16", "float32")


def model_device() -> torch.device:
    return comfy.model_management.get_torch_device()


def vae_device() -> torch.device:
    return comfy.model_management.vae_device()


def text_encoder_device() -> torch.device:
    return comfy.model_management.text_encoder_device()


def result_device() -> torch.device:
    """Where results of nodes wait for the next node."""
    return comfy.model_management.intermediate_device()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name in DTYPES; ``auto`` is what the device computes well in, float32 on a CPU."""
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16


def patcher(network: nn.Module, load_device: torch.device, offload_device: torch.device) -> Any:
    """The network under ComfyUI's memory management."""
    # Looked up on each call: ComfyUI replaces the class at start-up; older versions do not have it.
    module = comfy.model_patcher
    kind = getattr(module, "CoreModelPatcher", module.ModelPatcher)
    return kind(network, load_device=load_device, offload_device=offload_device)


def model_offload_device() -> torch.device:
    return comfy.model_management.unet_offload_device()


def vae_offload_device() -> torch.device:
    return comfy.model_management.vae_offload_device()


def load(patchers: list[Any], memory_required: int) -> None:
    """Brings networks to their devices and makes room for ``memory_required`` bytes of work beside them."""
    comfy.model_management.load_models_gpu(patchers, memory_required=memory_required)


def is_dynamic(patcher: Any) -> bool:
    """Whether ComfyUI pages the network's weights in and out as they are needed."""
    return bool(getattr(patcher, "is_dynamic", bool)())


def keeps_from_recording(patcher: Any) -> str | None:
    """Why work of a loaded patcher's network cannot be recorded as a CUDA graph, whose weights stay put; None where it can."""
    if patcher.load_device.type != "cuda":
        return f"the model runs on {patcher.load_device}, and graphs need an NVIDIA GPU"
    if patcher.patches or getattr(patcher, "weight_wrapper_patches", None):
        return "a LoRA changes the model"
    if is_dynamic(patcher) or patcher.loaded_size() < patcher.model_size():
        return "ComfyUI keeps part of the model outside the GPU"
    return None


def make_room(num_bytes: int, device: torch.device) -> None:
    """Frees that many bytes of a device by sending other networks away."""
    comfy.model_management.free_memory(num_bytes, device)


@contextmanager
def explained_memory(knobs: str) -> Iterator[None]:
    """Adds what can be turned to an out-of-memory error."""
    kind = comfy.model_management.OOM_EXCEPTION
    if kind is Exception:
        yield
        return
    try:
        yield
    except kind as error:
        # The same class, so that ComfyUI's own handling still sees it.
        raise kind(f"out of memory; {knobs}") from error
