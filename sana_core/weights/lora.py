"""Low-rank adaptation of the transformer: its files, and merging them into a network.

A file holds, per layer, ``diffusion_model.<name>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, the names and shapes
being those of the release's weights; ComfyUI reads this form. Read are also ``transformer.<name>`` and ``.lora_A.weight``,
``.lora_B.weight``, as diffusers names them. The change of a weight is strength * alpha / rank * up @ down, in the weight's
shape; without alpha it is the rank.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..models.dit import SanaStreamingDiT
from ..precision.apply import linear_of
from ..precision.layer import QuantLinear
from .checkpoint import fingerprint, read_safetensors, read_sizes
from .dit import FUSED_PARTS, from_official
from .hub import resolve_uri
from .hub_address import SCHEME, parse_uri

logger = logging.getLogger(__name__)

PREFIX = "diffusion_model."
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_PREFIXES = (PREFIX, "transformer.")
_ENDS = {DOWN: DOWN, UP: UP, ALPHA: ALPHA, ".lora_A.weight": DOWN, ".lora_B.weight": UP}
_REMEDY = "use a LoRA that was made for this model"


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA as a user names it: ``file`` is a path or an ``hf://`` address; strength 0 is none, 1 as trained."""

    file: str | Path
    strength: float = 1.0

    def __str__(self) -> str:
        return f"{self.file}:{self.strength:g}"


class LoraPlace(NamedTuple):
    """Where a layer of the release's layout is in the model: the module, and which quarter of its rows, None for all."""

    module: str
    quarter: int | None
    shape: torch.Size


class LoraChange(NamedTuple):
    """One layer of a file: its place in the model, and ``scale * up @ down``, [out, rank] and [rank, in]."""

    place: LoraPlace
    name: str
    up: Tensor
    down: Tensor
    scale: float


def parse_lora(text: str) -> LoraChoice:
    """``FILE`` or ``FILE:STRENGTH``; a file whose whole name is ``text`` wins.

    Raises InputError for a file that is not there and a strength that is no number.
    """
    scheme = SCHEME if text.startswith(SCHEME) else ""
    file, colon, strength = text.removeprefix(scheme).rpartition(":")
    file = scheme + file
    if not colon or Path(text).exists() or not ((file and Path(file).exists()) or parse_uri(file)):
        file, strength = text, "1"
    if not Path(file).exists() and parse_uri(file) is None:
        raise InputError(f"--lora {text} does not exist; give FILE or FILE:STRENGTH, such as {Path(file).name}:0.8")
    try:
        return LoraChoice(file, _checked(float(strength)))
    except ValueError:
        raise InputError(
            f"--lora {text}: strength {strength!r} is no number; use 0 for none, 1 for as trained"
        ) from None


def parse_loras(texts: Iterable[str] | None) -> list[LoraChoice]:
    """:func:`parse_lora` of each; none of None, as an option that was not given is."""
    return [parse_lora(text) for text in texts or ()]


def apply_loras(model: SanaStreamingDiT, loras: Iterable[LoraChoice]) -> None:
    """Merges LoRAs into the weights of ``model``, of either layout; those that change one weight add up.

    Layers of a quantized model that a LoRA changes go back to full precision, which the log says. Fetches ``hf://``
    addresses that are not in the hub's cache. The model's fingerprint becomes that of the mix, and stays where every strength
    is 0. Raises CheckpointError for a file that is damaged, incomplete, or of another network; the model is then as before.
    """
    changes: dict[str, list[LoraChange]] = {}
    mix = model.fingerprint
    for lora in loras:
        found, mix = lora_changes(model, lora, mix)
        if lora.strength:
            for change in found:
                changes.setdefault(change.name, []).append(change)
    _restore(model, {change.place.module for of_one in changes.values() for change in of_one})
    with torch.no_grad():
        for of_one in changes.values():
            weight = _weight_at(model, of_one[0].place)
            merged = weight.float()
            for _, _, up, down, scale in of_one:
                merged = merged + scale * (up.to(weight.device) @ down.to(weight.device))
            weight.copy_(merged)
    model.fingerprint = mix


def lora_changes(model: SanaStreamingDiT, lora: LoraChoice, mix: str) -> tuple[list[LoraChange], str]:
    """What a LoRA changes, for whoever applies it in another way than :func:`apply_loras`; and the fingerprint of the mix.

    ``mix`` is the fingerprint of the model with the LoRAs before this one; it stays where the strength is 0. Raises as
    :func:`apply_loras` does.
    """
    tensors, _ = read_safetensors(resolve_uri(lora.file))
    changes = _changes(model, tensors, lora)
    if lora.strength:
        mix = hashlib.sha256(f"{mix} {fingerprint(tensors)} {lora.strength!r}".encode()).hexdigest()[:16]
    return changes, mix


def check_lora(file: str | Path) -> None:
    """Raises CheckpointError for a file that is a LoRA of no such model, whatever its sizes: before there is a model."""
    _by_layer(read_sizes(file), file)


def _restore(model: SanaStreamingDiT, names: set[str]) -> None:
    """Puts the quantized layers of these names back to the network's dtype."""
    layers = {name: model.get_submodule(name) for name in sorted(names)}
    quantized = {name: layer for name, layer in layers.items() if isinstance(layer, QuantLinear)}
    grown = 0
    for name, layer in quantized.items():
        weight = layer.dequantized(model.dtype)
        grown += weight.numel() * weight.element_size() - layer.num_bytes
        model.set_submodule(name, linear_of(weight, layer.bias))
    if quantized:
        logger.warning(
            "LoRA: %d quantized layers are back to full precision for it, which is slower and takes %s bytes more",
            len(quantized),
            f"{grown:,}",
        )


def apply_lora(model: SanaStreamingDiT, file: str | Path, strength: float = 1.0) -> None:
    """:func:`apply_loras` with one file."""
    apply_loras(model, [LoraChoice(file, _checked(strength))])


def _checked(strength: float) -> float:
    if not math.isfinite(strength):
        raise InputError(f"LoRA strength {strength} is no number; use 0 for none, 1 for as trained")
    return strength


def _changes(model: SanaStreamingDiT, tensors: Mapping[str, Tensor], lora: LoraChoice) -> list[LoraChange]:
    """Every layer of a file, checked against the model."""
    changes = []
    for name, parts in _by_layer(tensors, lora.file).items():
        sizes = _sizes(parts)
        place = _place_of(model, name)
        if place is None:
            raise CheckpointError(f"{lora.file} changes {name} by {sizes}, which the model does not have; {_REMEDY}")
        try:
            down = from_official(f"{name}.weight", parts[DOWN].float(), model.config)
            up, rank = parts[UP].float().flatten(1), len(down)
            alpha = parts[ALPHA].item() if ALPHA in parts else rank
            fits = (len(up), *down.shape[1:]) == place.shape and up.shape[1] == rank > 0
        except (RuntimeError, IndexError, TypeError):
            fits = False
        if not fits:
            raise CheckpointError(
                f"{lora.file} changes {name} by {sizes}, which do not fit the model's {tuple(place.shape)}; {_REMEDY}"
            )
        changes.append(LoraChange(place, name, up, down, lora.strength * alpha / rank))
    return changes


def _by_layer(tensors: Mapping[str, Tensor], file: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by `DOWN`, `UP` and `ALPHA`, of which the first two have one rank."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        end = next((end for end in _ENDS if key.endswith(end)), None)
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if end is None or prefix is None:
            raise CheckpointError(
                f"{file} is not a LoRA of this model: it has {key} {tuple(tensors[key].shape)}; keys must be "
                f"{PREFIX}<layer>{DOWN}, {UP} and {ALPHA}: {_REMEDY}"
            )
        parts = layers.setdefault(key.removeprefix(prefix).removesuffix(end), {})
        if parts.setdefault(_ENDS[end], tensors[key]) is not tensors[key]:
            raise CheckpointError(f"{file} has {key} twice, under two names; {_REMEDY}")
    if not layers:
        raise CheckpointError(f"{file} is not a LoRA: it is empty; copy or download it again")
    for name, parts in layers.items():
        if DOWN not in parts or UP not in parts:
            lacking = DOWN if DOWN not in parts else UP
            raise CheckpointError(f"{file} has {name} without {lacking}; copy or download it again")
        up, down = parts[UP].shape, parts[DOWN].shape
        if len(up) < 2 or len(down) < 2 or up[1] != down[0]:
            raise CheckpointError(
                f"{file} changes {name} by {_sizes(parts)}, which do not belong together; copy or download it again"
            )
    return layers


def _sizes(parts: Mapping[str, Tensor]) -> str:
    return " and ".join(f"{end[1:]} {tuple(parts[end].shape)}" for end in (UP, DOWN))


def _place_of(model: SanaStreamingDiT, name: str) -> LoraPlace | None:
    """Where the weight is that the layer ``name`` of the release's layout has; None where there is none."""
    parent, _, part = name.rpartition(".")
    fused = model.layout == "fused" and parent.endswith(".attn") and part in FUSED_PARTS
    module, quarter = (f"{parent}.qkvg", FUSED_PARTS.index(part)) if fused else (name, None)
    try:
        layer = model.get_submodule(module)
        shape = layer.shape if isinstance(layer, QuantLinear) else tuple(layer.get_parameter("weight").shape)
    except AttributeError:
        return None
    return LoraPlace(module, quarter, torch.Size([shape[0] // 4 if fused else shape[0], *shape[1:]]))


def _weight_at(model: SanaStreamingDiT, place: LoraPlace) -> Tensor:
    weight = model.get_submodule(place.module).get_parameter("weight")
    return weight if place.quarter is None else weight.chunk(4)[place.quarter]
