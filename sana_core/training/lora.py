"""Low-rank adaptation of the transformer: training one, its file, and merging a file into a network.

A file holds, per layer, ``diffusion_model.<name>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, the names and shapes
being those of the release's weights; ComfyUI reads this form. The change of a weight is strength * alpha / rank * up @ down,
in the weight's shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import DiTConfig
from ..errors import CheckpointError, InputError
from ..models.dit import SanaStreamingDiT
from ..weights.checkpoint import read_safetensors
from ..weights.dit import FUSED_PARTS, from_official, to_official
from .config import LoraSettings

PREFIX = "diffusion_model."
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


class Lora(nn.Module):
    """A trainable low-rank change on a frozen model of the split layout; its parameters are float32.

    It begins without effect. Its hooks stay on the model, whose own parameters and their names are as before.
    """

    def __init__(self, model: SanaStreamingDiT, settings: LoraSettings, seed: int) -> None:
        """Raises InputError for a model of the fused layout."""
        super().__init__()
        if model.layout != "split":
            raise InputError("a LoRA is trained on the split layout; load the model with layout='split'")
        self.config = model.config
        self.settings = settings
        self.pairs = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for name, layer in target_layers(model, settings.targets):
            pair = _LowRank(layer, settings, generator)
            self.pairs[name.replace(".", "/")] = pair
            layer.register_forward_hook(pair.add)

    def layers(self) -> Iterator[tuple[str, _LowRank]]:
        """(name of the layer in the model, its low-rank change)."""
        for name, pair in self.pairs.items():
            assert isinstance(pair, _LowRank)
            yield name.replace("/", "."), pair

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Writes the file, whole or not at all."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for name, pair in self.layers():
            down = to_official(f"{name}.weight", pair.down.detach(), self.config)
            # The up matrix of a convolution is a 1x1 one.
            up = pair.up.detach().reshape(*pair.up.shape, *[1] * (down.ndim - 2))
            alpha = torch.tensor(self.settings.scale * self.settings.rank)
            for end, value in ((_DOWN, down), (_UP, up), (_ALPHA, alpha)):
                tensors[PREFIX + name + end] = value.to("cpu", torch.float32 if end == _ALPHA else dtype).contiguous()
        unfinished = path.with_name(f"{path.name}.part")
        save_file(tensors, unfinished, metadata={"format": "pt"})
        unfinished.replace(path)


class _LowRank(nn.Module):
    """down [rank, in] with random rows, up [out, rank] of zeros."""

    def __init__(self, layer: nn.Linear, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        rows = torch.randn(settings.rank, layer.in_features, generator=generator) / math.sqrt(layer.in_features)
        self.scale = settings.scale
        self.down = nn.Parameter(rows.to(layer.weight.device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, settings.rank, device=layer.weight.device))

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A layer's output with the change; computed in the dtype of the output."""
        narrow = nn.functional.linear(inputs[0], self.down.to(output.dtype))
        return output + self.scale * nn.functional.linear(narrow, self.up.to(output.dtype))


def target_layers(model: SanaStreamingDiT, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """Linears of the blocks whose names end with one of ``targets``, such as ``attn.q``, in order."""
    for index, block in enumerate(model.blocks):
        for target in targets:
            layer = block.get_submodule(target)
            assert isinstance(layer, nn.Linear)
            yield f"blocks.{index}.{target}", layer


@torch.no_grad()
def apply_lora(model: SanaStreamingDiT, file: str | Path, strength: float = 1.0) -> None:
    """Merges a LoRA file into the weights of ``model``, of either layout. A file without ``alpha`` means alpha = rank.

    Raises CheckpointError for a file that is damaged, incomplete, or of another network; the model is then as before.
    """
    if not math.isfinite(strength):
        raise InputError(f"LoRA strength {strength} is no number; use 0 for none, 1 for as trained")
    tensors, _ = read_safetensors(file)
    changes = [(_slice_of(model, name, file), change) for name, change in _changes(tensors, model.config, file)]
    for (weight, name), change in changes:
        if weight.shape != change.shape:
            raise CheckpointError(
                f"{file} changes {name} by {tuple(change.shape)}, the model has {tuple(weight.shape)}; "
                "use a LoRA that was made for this model"
            )
    for (weight, _), change in changes:
        weight.copy_(weight.float() + strength * change.to(weight.device))


def _changes(tensors: Mapping[str, Tensor], config: DiTConfig, file: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(name of a layer, change of its weight [out, in] float32 in the order of memory)."""
    known = (_DOWN, _UP, _ALPHA)
    names = {key.removesuffix(end) for key in tensors for end in known if key.endswith(end)}
    surplus = [key for key in tensors if not key.endswith(known)]
    if surplus or not names:
        raise CheckpointError(
            f"{file} is not a LoRA of this form: {surplus[0] if surplus else 'it is empty'}; keys must be "
            f"{PREFIX}<layer>{_DOWN}, {_UP} and {_ALPHA}"
        )
    for name in sorted(names):
        if not name.startswith(PREFIX) or name + _DOWN not in tensors or name + _UP not in tensors:
            raise CheckpointError(f"{file} has {name} without {PREFIX}, {_DOWN} or {_UP}; copy or download it again")
        down, up = tensors[name + _DOWN].float(), tensors[name + _UP].float()
        layer = name.removeprefix(PREFIX)
        try:
            inner = from_official(f"{layer}.weight", down, config)
            alpha = tensors[name + _ALPHA].item() if name + _ALPHA in tensors else len(down)
            yield layer, alpha / len(down) * (up.flatten(1) @ inner)
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"{file} has {layer} of shapes {tuple(down.shape)} and {tuple(up.shape)}, which do not "
                "fit the model; use a LoRA that was made for this model"
            ) from error


def _slice_of(model: SanaStreamingDiT, name: str, file: str | Path) -> tuple[Tensor, str]:
    """The part of a weight that the official layer ``name`` is, and the name."""
    parent, _, part = name.rpartition(".")
    try:
        if model.layout == "fused" and parent.endswith(".attn") and part in FUSED_PARTS:
            fused = model.get_submodule(f"{parent}.qkvg").get_parameter("weight")
            return fused.chunk(4)[FUSED_PARTS.index(part)], name
        return model.get_submodule(name).get_parameter("weight"), name
    except AttributeError:
        raise CheckpointError(
            f"{file} changes {name}, which the model does not have; use a LoRA that was made for this model"
        ) from None
