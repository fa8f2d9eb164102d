"""Low-rank adaptation of the transformer: training one, and writing its file, which `weights.lora` describes and merges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.dit import SanaStreamingDiT
from ..weights.dit import to_official
from ..weights.lora import ALPHA, DOWN, PREFIX, UP
from ..weights.safetensors_file import save_safetensors
from .config import LoraSettings


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
        tensors: dict[str, Tensor] = {}
        for name, pair in self.layers():
            down = to_official(f"{name}.weight", pair.down.detach(), self.config)
            # The up matrix of a convolution is a 1x1 one.
            up = pair.up.detach().reshape(*pair.up.shape, *[1] * (down.ndim - 2))
            alpha = torch.tensor(self.settings.scale * self.settings.rank)
            for end, value in ((DOWN, down), (UP, up), (ALPHA, alpha)):
                tensors[PREFIX + name + end] = value.to(torch.float32 if end == ALPHA else dtype)
        save_safetensors(path, tensors, {"format": "pt"})


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
