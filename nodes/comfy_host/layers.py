"""ComfyUI's layers, which it can offload, and their weights: quantized, and changed by LoRAs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import nn

from ...sana_core.errors import InputError
from ...sana_core.precision.sharing import Shared
from ...sana_core.weights.lora import LoraChange


def operations(dtype: torch.dtype) -> Any:
    """Layers that ComfyUI can offload and patch."""
    return comfy.ops.pick_operations(dtype, dtype)


# How ComfyUI's name of a format is followed by the question whether a device multiplies in it.
_COMPUTE = {
    "float8_e4m3fn": "supports_fp8_compute",
    "mxfp8": "supports_mxfp8_compute",
    "nvfp4": "supports_nvfp4_compute",
}


def quantized_operations(dtype: torch.dtype, device: torch.device) -> Any | None:
    """Layers that read quantized weights, which ComfyUI can offload and patch; None where this ComfyUI has none."""
    make = getattr(comfy.ops, "mixed_precision_ops", None)
    if make is None or not {"compute_dtype", "disabled"} <= inspect.signature(make).parameters.keys():
        return None
    disabled = {name for name in _COMPUTE if not multiplies(name, device)}
    return _sharing(make(compute_dtype=dtype, disabled=disabled))


def multiplies(name: str, device: torch.device) -> bool:
    """Whether ComfyUI's layers multiply in its format of that name on a device; else they dequantize each weight."""
    return name not in _COMPUTE or _computes(_COMPUTE[name], device)


def _computes(question: str, device: torch.device) -> bool:
    ask = getattr(comfy.model_management, question, None)
    return device.type == "cuda" and ask is not None and bool(ask(device))


def _sharing(operations: Any) -> Any:
    """``operations`` whose Linears quantize one input once: those that read it look for it in what the first one made."""
    quantized_tensor = getattr(comfy.ops, "QuantizedTensor", None)
    algorithms = getattr(comfy.ops, "QUANT_ALGOS", {})

    class Linear(operations.Linear):
        def share_input(self, x: torch.Tensor, seen: dict[Any, Any]) -> torch.Tensor | Shared:
            kind = getattr(self, "quant_format", None)
            scale = getattr(self, "input_scale", None)
            plain = getattr(self, "_full_precision_mm", True) or getattr(self, "comfy_force_cast_weights", False)
            patched = self.weight_function or self.bias_function
            inside = not algorithms.get(kind, {}).get("quantize_input", True)
            if quantized_tensor is None or kind is None or scale is None or plain or patched or inside:
                return x
            if not hasattr(self, "_scale_value"):
                self._scale_value = float(scale)
            key = (kind, self._scale_value)
            if key not in seen:
                rows = x.reshape(-1, x.shape[-1])
                value = quantized_tensor.from_float(rows, self.layout_type, scale=scale.to(x.device))
                seen[key] = Shared(value, x.shape)
            shared: Shared = seen[key]
            return shared

        def forward(self, x: torch.Tensor | Shared, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not isinstance(x, Shared):
                return super().forward(x, *args, **kwargs)
            return super().forward(x.value, *args, **kwargs).reshape(*x.shape[:-1], -1)

    return type("SharingOperations", (operations,), {"Linear": Linear})


def weights(patcher: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that a patcher's network computes with, its LoRAs merged: copies on the CPU, one after another."""
    for name, (plain, *patches) in patcher.get_key_patches().items():
        weight = plain[0].detach().to("cpu", copy=True)
        if patches:
            from comfy.lora import calculate_weight

            weight = calculate_weight(patches, weight.float(), name).to(weight.dtype)
        yield name, weight


def is_quantized(network: nn.Module, module: str) -> bool:
    """Whether one of ComfyUI's layers holds its weight in a format of fewer bits."""
    return getattr(network.get_submodule(module), "quant_format", None) is not None


class _Dequantized:
    """A LoRA's change of a quantized weight, which ComfyUI dequantizes for it on every use.

    As a patch ComfyUI would quantize the changed weight again, whose rounding is as large as the change.
    """

    def __init__(self, change: LoraChange) -> None:
        self.change = change

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        place, _, up, down, scale = self.change
        changed = weight.float()
        start = (place.quarter or 0) * place.shape[0]
        changed[start : start + place.shape[0]] += scale * (up.to(weight.device) @ down.to(weight.device))
        return changed.to(weight.dtype)


def with_lora(patcher: Any, changes: Iterable[LoraChange]) -> Any:
    """A copy of a patcher whose weights change as a LoRA says; whoever has the first one sees the weights as they were."""
    from comfy.weight_adapter import LoRAAdapter

    patches: dict[Any, Any] = {}
    copy = patcher.clone()
    for change in changes:
        place, _, up, down, scale = change
        name, rows = f"{place.module}.weight", place.shape[0]
        if is_quantized(patcher.model, place.module):
            copy.add_weight_wrapper(name, _Dequantized(change))
            continue
        key = name if place.quarter is None else (name, (0, place.quarter * rows, rows))
        # ComfyUI divides alpha by the rank.
        patches[key] = LoRAAdapter({name}, (up, down, scale * len(down), None, None, None))
    taken = copy.add_patches(patches)
    if len(taken) != len(patches):
        raise InputError(f"this ComfyUI takes {len(taken)} of the LoRA's {len(patches)} changes; update ComfyUI")
    return copy
