"""Number formats of a matrix: quantizing, multiplying, what they cost, and where they are fast.

Weights are kept as ComfyUI keeps them in files. comfy-kitchen is imported when a format is first used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

# fast: quantized input, product in the format. simulated: the same numbers by way of full precision, on any device.
# dequantized: only the weight is quantized.
How = Literal["fast", "simulated", "dequantized"]

_FP8_MAX = 448.0
_NVFP4_MAX = 448.0 * 6.0
# Keeps the scale of an input or weight of zeros away from 0.
_TINY = 1e-12
# Sizes of the regular Hadamard matrices that comfy-kitchen rotates groups of columns with, the better first.
_ROTATIONS = (64, 16)


def kitchen() -> Any:
    """comfy-kitchen; InputError that says how to get it where it is missing."""
    try:
        import comfy_kitchen
    except ImportError as error:
        raise InputError(
            f'quantized weights need comfy-kitchen ({error}); pip install "sana-streaming[precision]", or use precision bf16'
        ) from error
    return comfy_kitchen


def kitchen_version() -> str:
    """Of comfy-kitchen."""
    kitchen()
    try:
        return version("comfy-kitchen")
    except PackageNotFoundError:
        return "unknown"


def kitchen_backends() -> str:
    """Those of comfy-kitchen that are in use, by name."""
    found: dict[str, dict[str, Any]] = kitchen().list_backends()
    return " ".join(sorted(name for name, one in found.items() if one["available"] and not one["disabled"]))


def _layout(name: str) -> Any:
    kitchen()
    from comfy_kitchen import tensor

    return getattr(tensor, name)


@dataclass(frozen=True)
class QuantWeight:
    """A weight [N, K] in a format.

    tensors: by ComfyUI's key ends ``weight``, ``weight_scale``, ``weight_scale_2``; block formats pad N and K.
    rotation: columns per Hadamard group that the weight was rotated in; 0 is none.
    """

    format: str
    tensors: Mapping[str, Tensor]
    shape: tuple[int, int]
    rotation: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors.values())

    def conf(self) -> dict[str, Any]:
        """What a file says of the layer in ``comfy_quant``."""
        rotated = {"convrot": True, "convrot_groupsize": self.rotation} if self.rotation else {}
        return {"format": FORMATS[self.format].comfy} | rotated


class QuantInput(NamedTuple):
    """An input [M, K], quantized once for every layer that reads it in this format with this scale.

    ``data`` and ``params`` are comfy-kitchen's; they may hold rows of zeros behind the ``rows`` that count.
    """

    data: Tensor
    params: Any
    rows: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Format:
    """A number format of weights and of the inputs they multiply.

    name: in plans. comfy: in files (ComfyUI's ``format``). layout: comfy-kitchen's class. ends: keys of a weight in files.
    unit: the input scale is its amax over ``unit``, 0 where inputs need no scale of their own.
    block: N and K are padded to multiples of it. min_rows: an input of fewer rows is filled up with zeros.
    min_capability: CUDA compute capability from which the product runs in the format; below it saves memory only.
    quantizes_inside: the product takes plain inputs, and runs on any device. rotates: Hadamard groups of columns.
    """

    name: str
    comfy: str
    layout: str
    ends: tuple[str, ...] = ("weight", "weight_scale")
    unit: float = 0.0
    block: int = 1
    min_rows: int = 1
    min_capability: tuple[int, int] = (0, 0)
    quantizes_inside: bool = False
    rotates: bool = False

    def rotation(self, columns: int) -> int:
        """Columns per Hadamard group of a weight with that many; 0 where the format rotates none or none fits."""
        return next((size for size in _ROTATIONS if self.rotates and columns % size == 0), 0)

    def num_bytes(self, rows: int, columns: int) -> int:
        """Of a weight with its scales, without bias and input scale."""
        raise NotImplementedError

    def bits(self, rows: int, columns: int) -> float:
        """Per weight, scales included."""
        return 8 * self.num_bytes(rows, columns) / (rows * columns)

    def input_scale(self, amax: Tensor) -> Tensor:
        """The scale to divide an input by whose largest absolute value is ``amax``, float32."""
        return amax.float().clamp_min(_TINY) / self.unit

    def quantize(self, weight: Tensor) -> QuantWeight:
        """A floating-point weight [N, K] in this format, on its device."""
        # comfy-kitchen computes in the dtype of the weight, whose rounding would come on top of the format's.
        weight = weight.float()
        scale = {"scale": self.input_scale(weight.abs().amax())} if self.unit else {}
        layout = _layout(self.layout)
        data, params = layout.quantize(weight.contiguous(), **scale)
        ends = layout.state_dict_tensors(data, params)
        rows, columns = weight.shape
        return QuantWeight(self.name, {f"weight{end}": value for end, value in ends.items()}, (rows, columns))

    def dequantize(self, weight: QuantWeight, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] in a floating-point dtype."""
        rows, columns = weight.shape
        full = _layout(self.layout).dequantize(weight.tensors["weight"], self._params(weight, _computing(dtype)))
        return full[:rows, :columns].to(dtype)

    def quantize_input(self, x: Tensor, input_scale: Tensor | None) -> QuantInput:
        """x [M, K] in this format; without a scale the input's own amax gives one."""
        scale, rows = {}, len(x)
        if self.unit:
            scale["scale"] = self.input_scale(x.abs().amax()) if input_scale is None else input_scale
        if rows < self.min_rows:
            x = F.pad(x, (0, 0, 0, self.min_rows - rows))
        data, params = _layout(self.layout).quantize(x.contiguous(), **scale)
        return QuantInput(data, params, rows, x.dtype)

    def restore_input(self, x: QuantInput) -> Tensor:
        """The input [M, K] that the product sees, in its own dtype."""
        params = dataclasses.replace(x.params, orig_dtype=_computing(x.dtype))
        return _layout(self.layout).dequantize(x.data, params)[: x.rows, : params.orig_shape[1]].to(x.dtype)

    def product(self, x: QuantInput, weight: QuantWeight, bias: Tensor | None, *, simulated: bool = False) -> Tensor:
        """x @ weight.T + bias [M, N]: by the device's product in this format, or the same numbers in full precision."""
        if simulated:
            return F.linear(self.restore_input(x), self.dequantize(weight, x.dtype), bias)
        padded = weight.tensors["weight"].shape[0] != weight.shape[0]
        out = self._product(x, weight, None if padded else bias)[: x.rows, : weight.shape[0]]
        return out + bias if padded and bias is not None else out

    def linear(
        self, x: Tensor, weight: QuantWeight, bias: Tensor | None, input_scale: Tensor | None = None, how: How = "fast"
    ) -> Tensor:
        """x [..., K] times the weight, plus bias [N]: [..., N] in the dtype of x."""
        if how == "dequantized":
            return F.linear(x, self.dequantize(weight, x.dtype), bias)
        return self._linear(x, weight, bias, input_scale, simulated=how == "simulated")

    def restored(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], rotation: int) -> QuantWeight:
        """A weight [N, K] from its tensors in a file."""
        return QuantWeight(self.name, dict(tensors), shape, rotation)

    def _params(self, weight: QuantWeight, dtype: torch.dtype) -> Any:
        return _layout(self.layout).Params(
            scale=weight.tensors["weight_scale"], orig_dtype=dtype, orig_shape=weight.shape
        )

    def _linear(
        self, x: Tensor, weight: QuantWeight, bias: Tensor | None, input_scale: Tensor | None, *, simulated: bool
    ) -> Tensor:
        quantized = self.quantize_input(x.reshape(-1, x.shape[-1]), input_scale)
        out = self.product(quantized, weight, bias, simulated=simulated)
        return out.reshape(*x.shape[:-1], weight.shape[0])

    def _product(self, x: QuantInput, weight: QuantWeight, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class _Plain(Format):
    def num_bytes(self, rows: int, columns: int) -> int:
        return 2 * rows * columns


class _Float8(Format):
    """One scale per weight and per input."""

    def num_bytes(self, rows: int, columns: int) -> int:
        return rows * columns + 4

    def _product(self, x: QuantInput, weight: QuantWeight, bias: Tensor | None) -> Tensor:
        data, scale = weight.tensors["weight"].t(), weight.tensors["weight_scale"]
        scaled_mm = getattr(F, "scaled_mm", None)
        if scaled_mm is None:
            # Older releases of torch have this one.
            return torch._scaled_mm(x.data, data, scale_a=x.params.scale, scale_b=scale, bias=bias, out_dtype=x.dtype)
        whole = F.ScalingType.TensorWise
        out: Tensor = scaled_mm(x.data, data, x.params.scale, whole, scale, whole, bias=bias, output_dtype=x.dtype)
        return out


class _Int8(Format):
    """One scale per row of the weight and per row of the input, which comfy-kitchen quantizes as it multiplies."""

    def num_bytes(self, rows: int, columns: int) -> int:
        return rows * columns + 4 * rows

    def quantize(self, weight: Tensor) -> QuantWeight:
        rows, columns = weight.shape
        group = self.rotation(columns)
        rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
        data, params = _layout(self.layout).quantize(weight.float().contiguous(), per_channel=True, **rotation)
        return QuantWeight(self.name, {"weight": data, "weight_scale": params.scale}, (rows, columns), group)

    def _linear(
        self, x: Tensor, weight: QuantWeight, bias: Tensor | None, input_scale: Tensor | None, *, simulated: bool
    ) -> Tensor:
        # Exact integer sums: the product on any device is the simulation.
        data, scale = weight.tensors["weight"], weight.tensors["weight_scale"]
        rotation = (weight.rotation > 0, weight.rotation or _ROTATIONS[0])
        code = kitchen().DTYPE_TO_CODE[x.dtype]
        # The operator, which torch.compile takes as it is; the function around it is none of its business.
        out: Tensor = torch.ops.comfy_kitchen.int8_linear(x.contiguous(), data, scale, bias, code, *rotation)
        return out

    def _params(self, weight: QuantWeight, dtype: torch.dtype) -> Any:
        return _layout(self.layout).Params(
            scale=weight.tensors["weight_scale"],
            orig_dtype=dtype,
            orig_shape=weight.shape,
            convrot=weight.rotation > 0,
            convrot_groupsize=weight.rotation or _ROTATIONS[0],
        )


class _MXFloat8(Format):
    """A power of two per 32 columns; files keep those as bytes, since not every reader knows their dtype."""

    def restored(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], rotation: int) -> QuantWeight:
        scale = tensors["weight_scale"].view(torch.float8_e8m0fnu)
        return super().restored(dict(tensors) | {"weight_scale": scale}, shape, rotation)

    def num_bytes(self, rows: int, columns: int) -> int:
        rows, columns = (_padded(size, self.block) for size in (rows, columns))
        return rows * columns + _block_scales(rows, columns // self.block)

    def _product(self, x: QuantInput, weight: QuantWeight, bias: Tensor | None) -> Tensor:
        return kitchen().scaled_mm_mxfp8(
            x.data,
            weight.tensors["weight"],
            block_scale_a=x.params.scale,
            block_scale_b=weight.tensors["weight_scale"],
            bias=bias,
            out_dtype=x.dtype,
        )


class _NVFloat4(Format):
    """A float8 scale per 16 columns and one scale for all."""

    def num_bytes(self, rows: int, columns: int) -> int:
        rows, columns = (_padded(size, self.block) for size in (rows, columns))
        return rows * columns // 2 + _block_scales(rows, columns // self.block) + 4

    def _params(self, weight: QuantWeight, dtype: torch.dtype) -> Any:
        return _layout(self.layout).Params(
            scale=weight.tensors["weight_scale_2"],
            orig_dtype=dtype,
            orig_shape=weight.shape,
            block_scale=weight.tensors["weight_scale"],
        )

    def _product(self, x: QuantInput, weight: QuantWeight, bias: Tensor | None) -> Tensor:
        return kitchen().scaled_mm_nvfp4(
            x.data,
            weight.tensors["weight"],
            tensor_scale_a=x.params.scale,
            tensor_scale_b=weight.tensors["weight_scale_2"],
            block_scale_a=x.params.block_scale,
            block_scale_b=weight.tensors["weight_scale"],
            bias=bias,
            out_dtype=x.dtype,
        )


def _computing(dtype: torch.dtype) -> torch.dtype:
    """What numbers of ``dtype`` are dequantized in. comfy-kitchen casts scales to it, of which float16 loses digits."""
    return torch.float32 if dtype == torch.float16 else dtype


def _padded(size: int, block: int) -> int:
    return math.ceil(size / block) * block


def _block_scales(rows: int, blocks: int) -> int:
    """Bytes of block scales: tiles of 128 rows by 4 blocks, as the tensor cores read them."""
    return _padded(rows, 128) * _padded(blocks, 4)


_ALL_ENDS = ("weight", "weight_scale", "weight_scale_2")
# By their names in plans.
FORMATS: dict[str, Format] = {
    kind.name: kind
    for kind in (
        _Plain("bf16", "", "", ends=("weight",)),
        _Float8("fp8", "float8_e4m3fn", "TensorCoreFP8Layout", unit=_FP8_MAX, min_capability=(8, 9)),
        _Int8("int8", "int8_tensorwise", "TensorWiseINT8Layout", min_capability=(7, 5), quantizes_inside=True),
        _Int8(
            "int8-hadamard",
            "int8_tensorwise",
            "TensorWiseINT8Layout",
            min_capability=(7, 5),
            quantizes_inside=True,
            rotates=True,
        ),
        _MXFloat8("mxfp8", "mxfp8", "TensorCoreMXFP8Layout", block=32, min_rows=128, min_capability=(10, 0)),
        _NVFloat4(
            "nvfp4",
            "nvfp4",
            "TensorCoreNVFP4Layout",
            ends=_ALL_ENDS,
            unit=_NVFP4_MAX,
            block=16,
            min_rows=128,
            min_capability=(10, 0),
        ),
    )
}
