"""A Linear whose weight is in a format of fewer bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .formats import FORMATS, Format, How, QuantInput, QuantWeight
from .probe import probe
from .sharing import Shared

# Keys of a layer in a file, by ComfyUI's names.
CONF = "comfy_quant"
INPUT_SCALE = "input_scale"
WEIGHT_ENDS = ("weight", "weight_scale", "weight_scale_2")


class QuantLinear(nn.Module):
    """``x @ weight.T + bias`` with a quantized weight; its state dict is ComfyUI's form of such a layer.

    Runs in the format where the device does so, else with the weight dequantized for each call. ``how`` forces one road.
    Without ``input_scale`` the scale follows from each input. Layers beside each other with one ``share_group`` have one
    format and one input scale; None shares nothing.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None

    def __init__(
        self, weight: QuantWeight, bias: Tensor | None, input_scale: Tensor | None = None, how: How | None = None
    ) -> None:
        super().__init__()
        self.kind: Format = FORMATS[weight.format]
        self.shape = weight.shape
        self.rotation = weight.rotation
        self.how = how
        self._roads: dict[tuple[torch.device, torch.dtype], How] = {}
        for end, value in weight.tensors.items():
            self.register_buffer(end, value)
        self._ends = tuple(weight.tensors)
        self.register_buffer(INPUT_SCALE, input_scale)
        self.share_group: int | None = None
        self.scale_value = None if input_scale is None else float(input_scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer(CONF, self._conf(weight))

    def _conf(self, weight: QuantWeight) -> Tensor:
        conf = weight.conf()
        if self.kind.name == "fp8" and self.scale_value is None:
            # ComfyUI would take 1.0 for the scale of the input; so it multiplies in full precision.
            conf["full_precision_matrix_mult"] = True
        return torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)

    @property
    def quantized_weight(self) -> QuantWeight:
        tensors = {end: getattr(self, end) for end in self._ends}
        return QuantWeight(self.kind.name, tensors, self.shape, self.rotation)

    @property
    def num_bytes(self) -> int:
        """Of weight and scales."""
        return self.quantized_weight.num_bytes + (4 if self.scale_value is not None else 0)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] in a floating-point dtype."""
        return self.kind.dequantize(self.quantized_weight, dtype)

    def road(self, x: Tensor) -> How:
        """How an input like ``x`` is multiplied."""
        if self.how is not None:
            return self.how
        key = (x.device, x.dtype)
        return self._roads[key] if key in self._roads else self.prepare(*key)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> How:
        """Finds out how inputs of this kind are multiplied, before the first comes and before anything is compiled."""
        road = self.how or ("fast" if probe(self.kind.name, device, *self.shape, dtype).fast else "dequantized")
        self._roads[device, dtype] = road
        return road

    def share_input(self, x: Tensor, seen: dict[Any, Any]) -> Tensor | Shared:
        """``x`` quantized, by this layer or an earlier one of the same format and scale; see :mod:`.sharing`."""
        road = self.road(x)
        if self.share_group is None or road == "dequantized" or self.kind.quantizes_inside:
            return x
        if self.share_group not in seen:
            value = self.kind.quantize_input(x.reshape(-1, x.shape[-1]), self.input_scale)
            seen[self.share_group] = Shared(value, x.shape)
        shared: Shared = seen[self.share_group]
        return shared

    def forward(self, x: Tensor | Shared) -> Tensor:
        """x [..., K], or what :meth:`share_input` made of it: [..., N]."""
        if isinstance(x, Shared):
            quantized: QuantInput = x.value
            simulated = self.how == "simulated"
            out = self.kind.product(quantized, self.quantized_weight, self.bias, simulated=simulated)
            return out.reshape(*x.shape[:-1], self.shape[0])
        return self.kind.linear(x, self.quantized_weight, self.bias, self.input_scale, self.road(x))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QuantLinear:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            value = self._buffers[name]
            if old is not None and value is not None and value.dtype != old.dtype:
                # A change of the network's dtype is none of the format's.
                self._buffers[name] = old.to(value.device)
        return self

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, name: str
    ) -> QuantLinear:
        """The layer from its keys in a file; the bias is cast to ``dtype``. CheckpointError that names layer and problem."""
        format_name, rotation = _read_conf(state[CONF], name)
        tensors = {end: state[end] for end in WEIGHT_ENDS if end in state}
        kind = FORMATS[format_name]
        lacking = [end for end in kind.ends if end not in tensors]
        if lacking or tensors.keys() - set(kind.ends):
            raise CheckpointError(
                f"{name} is stored as {kind.comfy} with {', '.join(tensors)}; it needs {', '.join(kind.ends)}: convert again"
            )
        if rotation and shape[1] % rotation:
            raise CheckpointError(
                f"{name} has {shape[1]} columns, which groups of {rotation} do not divide: convert again"
            )
        weight = kind.restored(tensors, shape, rotation)
        held = sum(value.numel() * value.element_size() for value in weight.tensors.values())
        if held != kind.num_bytes(*shape):
            raise CheckpointError(
                f"{name} holds {held} bytes, a weight {shape} in {kind.name} has {kind.num_bytes(*shape)}: convert again"
            )
        bias = state.get("bias")
        scale = state.get(INPUT_SCALE)
        return cls(weight, None if bias is None else bias.to(dtype), None if scale is None else scale.float())


def _read_conf(value: Tensor, name: str) -> tuple[str, int]:
    """(our name of the format, columns per Hadamard group or 0)."""
    try:
        conf = json.loads(bytes(value.tolist()))
        comfy, rotated = conf["format"], conf.get("convrot", False)
        rotation = int(conf.get("convrot_groupsize", 256)) if rotated else 0
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{name}.{CONF} is not a JSON object with a format ({error}): convert again") from error
    for kind in FORMATS.values():
        if kind.comfy and kind.comfy == comfy and kind.rotates == bool(rotation):
            return kind.name, rotation
    known = ", ".join(sorted({kind.comfy for kind in FORMATS.values() if kind.comfy}))
    raise CheckpointError(f"{name} is stored as {comfy!r}, which cannot be read; formats are {known}")
