"""How long a whole pass takes under plans: the real thing, in turns, on inputs from mid-stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..benchmark.timing import Timing
from ..models.dit import SanaStreamingDiT
from .apply import apply_plan, network_bytes, twin
from .latency import timed
from .plan import Plan
from .reference import Reference, in_dtype


@dataclass(frozen=True)
class PassTime:
    """Of one pass over a late chunk: milliseconds, their interquartile range, and over those of the unquantized network.

    num_bytes: of all weights. emulated: formats without a product on the device, which are dequantized, with the reason.
    """

    milliseconds: float
    spread: float
    ratio: float
    num_bytes: int
    emulated: Mapping[str, str]


@torch.no_grad()
def pass_times(
    model: SanaStreamingDiT, plans: Mapping[str, Plan], reference: Reference, seconds: float = 2.0
) -> dict[str, PassTime]:
    """By the name of the plan; one of them must be unquantized and is what ratios are over.

    Each plan has a network of its own on the weights of ``model``, on a GPU as one CUDA graph with flushed caches.
    """
    device = next(model.parameters()).device
    runs, reports = {}, {}
    for name, plan in plans.items():
        copy = twin(model)
        reports[name] = (apply_plan(copy, plan), network_bytes(copy))
        runs[name] = _late_pass(copy, reference)
    timings = timed(runs, device, seconds)
    base = next(timings[name] for name, plan in plans.items() if not plan.formats)
    return {name: _pass_time(timing, base, *reports[name]) for name, timing in timings.items()}


def _pass_time(timing: Timing, base: Timing, report: Any, num_bytes: int) -> PassTime:
    return PassTime(
        1000 * timing.median, 1000 * timing.spread, timing.median / base.median, num_bytes, dict(report.emulated)
    )


def _late_pass(model: SanaStreamingDiT, reference: Reference) -> Callable[[], object]:
    chunk = next(chunk for chunk in reversed(reference.chunks) if chunk.place == "late")
    timestep, x, _ = chunk.passes[0]
    source, device = chunk.source.to(model.dtype), chunk.source.device
    context = reference.context(model, chunk.clip)
    frames, rows, columns = source.shape[2:]
    positions = model.positions(chunk.state.position, frames, rows, columns, device)
    blocks = in_dtype(chunk.state.read(), model.dtype)
    modulation = model.modulation(torch.full((1,), timestep, device=device))
    return lambda: model.velocity(x, modulation, source, context, blocks, positions)[0]
