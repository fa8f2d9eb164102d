"""How much time a precision plan saves, in words: measured here, measured by a profile, or from a data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sana_core.benchmark.results import device_name
from ..sana_core.config import DiTConfig
from ..sana_core.precision.latency import (
    LatencyTable,
    measure_entry,
    measured_source,
    needed,
    plan_latency,
    projected,
    trained_tokens,
)
from ..sana_core.precision.plan import UNQUANTIZED, Plan
from . import comfy_host
from .sockets import LoadedModel

# Names of GPUs whose data sheets are known, of these very cards: variants of a name differ in speed.
CARDS = {
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "NVIDIA H100 80GB HBM3": "h100",
}
_SECONDS = 0.05
# Inputs, outputs and weights of the largest matrix, in every format at once.
_MEASURE_BYTES = 1 << 30


def speed_text(model: LoadedModel, plan: Plan, measure: bool) -> str:
    """One sentence; measures where it is asked to."""
    config, name = model.network.config, device_name(model.device)
    tokens = trained_tokens(config)
    if measure:
        return _compared(plan, config, _measured(model, plan, tokens), f"measured on {name}, {tokens} tokens")
    known = plan.measurements
    if {"latency_ms", "unquantized_latency_ms", "latency"} <= known.keys():
        ratio = known["latency_ms"] / known["unquantized_latency_ms"]
        return _said(ratio, _by_profile(plan, known["latency"], name))
    if name in CARDS:
        table = projected(config, tokens, plan.formats.values(), CARDS[name])
        return _compared(plan, config, table, f"expected from the data sheet of {name}, not measured, {tokens} tokens")
    return f"speed: nothing is known of {name}; set measure to time the matrices"


def _by_profile(plan: Plan, source: Mapping[str, Any], name: str) -> str:
    """Where a profile has its latencies from, of which matrices and how many tokens, for the device called ``name``."""
    measured, others = source.get("kind") == "measured", source.get("sizes") == "2b"
    where = f"measured on {plan.device}" if measured else f"projected for {source.get('target')}"
    where += " with matrices of the 2B network" if others else ""
    # Plans of before say no number of tokens.
    tokens = f", {source['tokens']} tokens," if "tokens" in source else ""
    text = f"{where}{tokens} by the profile of this plan"
    here = measured and plan.device == name and not others
    return text if here else f"{text}; set measure to time it on {name}"


def _measured(model: LoadedModel, plan: Plan, tokens: int) -> LatencyTable:
    config, device, dtype = model.network.config, model.device, model.network.dtype
    comfy_host.make_room(_MEASURE_BYTES, device)
    names = needed(config, tokens, plan.formats.values())
    report = comfy_host.ProgressReport(len(names))
    entries: dict[str, Any] = {}
    for name in names:
        report.step()
        entries[name] = measure_entry(name, device, dtype, _SECONDS)
    return LatencyTable(tokens, config.max_text_tokens, entries, measured_source(device, dtype))


def _compared(plan: Plan, config: DiTConfig, table: LatencyTable, how: str) -> str:
    full = plan_latency(Plan(UNQUANTIZED, {}), config, table)
    return _said(plan_latency(plan, config, table) / full, how)


def _said(ratio: float, how: str) -> str:
    return f"speed: matrices take {ratio:.2f} times as long as unquantized, {how}"
