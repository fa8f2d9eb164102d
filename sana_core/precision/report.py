"""What became of a network under a plan, in numbers and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..config import DiTConfig
from ..models.dit import SanaStreamingDiT
from .formats import FORMATS
from .layer import QuantLinear
from .plan import Plan
from .probe import probe
from .units import Unit, units


@dataclass(frozen=True)
class Report:
    """A quantized network on its device.

    bytes_before, bytes_after: of all weights. parameters: of matrices by format. emulated: formats whose products do not run
    here, with the reason. unrotated: units that no Hadamard group fits. dynamic: layers that scale their inputs by their
    own amax.
    """

    plan: str
    layout: str
    bytes_before: int
    bytes_after: int
    parameters: Mapping[str, int]
    emulated: Mapping[str, str]
    unrotated: tuple[str, ...] = ()
    dynamic: int = 0

    def lines(self) -> list[str]:
        """For people; the first line is the sum."""
        share = {kind: count / max(1, sum(self.parameters.values())) for kind, count in self.parameters.items()}
        mix = ", ".join(f"{kind} {part:.1%}" for kind, part in share.items())
        change = f"{self.bytes_before:,} bytes become {self.bytes_after:,}"
        text = [f"precision {self.plan}: {change}; matrices: {mix or 'none quantized'}; {self.layout} self-attention"]
        text += [f"{kind} saves memory but no time here: {reason}" for kind, reason in self.emulated.items()]
        if self.unrotated:
            text.append(f"no Hadamard rotation fits {len(self.unrotated)} layers, such as {self.unrotated[0]}")
        if self.dynamic:
            text.append(f"{self.dynamic} layers have no calibrated input scale and measure each input anew")
        return text


def report(
    model: SanaStreamingDiT, plan: Plan, bytes_before: int, bytes_after: int, runs_on: torch.device | None = None
) -> Report:
    """Of a model to which ``plan`` was applied; probes the products on its device, or ``runs_on``, where no road is forced."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}
    asked = {unit.module_in(model.layout): plan.format_of(unit) for unit in units(model.config)}
    return Report(
        plan=plan.name,
        layout=model.layout,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        parameters=parameters_by_format(plan, model.config),
        emulated=_emulated([layer for layer in layers.values() if layer.how is None], model.dtype, runs_on),
        unrotated=tuple(n for n, layer in layers.items() if FORMATS[asked[n]].rotates and not layer.rotation),
        dynamic=sum(layer.kind.unit > 0 and layer.input_scale is None for layer in layers.values()),
    )


def _emulated(layers: Sequence[QuantLinear], dtype: torch.dtype, runs_on: torch.device | None) -> dict[str, str]:
    """By format why layers of it are dequantized, and how many of them where it is not all."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        found = probe(layer.kind.name, runs_on or layer.weight.device, *layer.shape, dtype)
        reasons.setdefault(layer.kind.name, []).append("" if found.fast else found.reason)
    return {kind: _reason(found) for kind, found in reasons.items() if any(found)}


def _reason(found: Sequence[str]) -> str:
    """Of what was found for each layer of a format, nothing where its product runs."""
    failed = [reason for reason in found if reason]
    return failed[0] if len(failed) == len(found) else f"in {len(failed)} of {len(found)} layers, as {failed[0]}"


def parameters_by_format(plan: Plan, config: DiTConfig) -> dict[str, int]:
    """Matrix parameters in each format, the most first."""
    counts: dict[str, int] = {}
    for unit in units(config):
        kind = plan.format_of(unit)
        counts[kind] = counts.get(kind, 0) + unit.parameters
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def unit_bytes(plan: Plan, config: DiTConfig) -> int:
    """Of the matrices with their scales, by arithmetic; biases and input scales left out."""
    return sum(_bytes(plan, unit) for unit in units(config))


def _bytes(plan: Plan, unit: Unit) -> int:
    return FORMATS[plan.format_of(unit)].num_bytes(unit.rows, unit.columns)
