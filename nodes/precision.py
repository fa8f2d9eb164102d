"""Weights in formats of fewer bits: SanaStreamingPrecision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.models.dit import SanaStreamingDiT
from ..sana_core.precision.apply import apply_plan, build_quantized, is_quantized, quantized_state
from ..sana_core.precision.calibration import MADE_UP, NUM_PASSES, calibrated
from ..sana_core.precision.formats import FORMATS
from ..sana_core.precision.plan import UNQUANTIZED, Plan, preset, preset_names, read_plan
from ..sana_core.precision.probe import obstacle
from ..sana_core.precision.report import Report
from ..sana_core.precision.units import units
from . import comfy_host, sockets
from .loaders import stamp
from .precision_speed import speed_text
from .sockets import LoadedModel, Model

CATEGORY = f"{comfy_host.CATEGORY}/precision"
# How files of plans end that Profile Precision writes and this node offers.
SUFFIX = ".precision.json"
WHAT = "precision plan"
MEMORY_ONLY = (
    "A format saves time only where the GPU multiplies in it, elsewhere it saves memory only and is slower: fp8 needs compute "
    "capability 8.9 (RTX 40, H100), int8 7.5 (RTX 20); nvfp4 and mxfp8 need 10.0 (RTX 50, B200), so on Hopper (H100, H200) "
    "they save memory only."
)
# What calibration needs beside the network: its latents are tiny.
_CALIBRATION_BYTES = 256 << 20


class SanaStreamingPrecision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingPrecision",
            display_name="SANA-Streaming Precision",
            category=CATEGORY,
            description="Makes a smaller copy of a model, its matrices in formats of fewer bits; the model that is connected "
            f"stays as it is for other nodes. {MEMORY_ONLY}",
            search_aliases=["sana", "quantize", "fp8", "int8", "nvfp4", "mxfp8", "mixed precision", "low vram"],
            inputs=[
                Model.Input(
                    "model",
                    tooltip="From Load SANA-Streaming Model, not quantized. A LoRA before this node is quantized with the "
                    "weights; behind it, its layers are dequantized for each product, which is slower.",
                ),
                comfy_host.widget(
                    io.Combo,
                    "preset",
                    options=[*preset_names(), *comfy_host.saved_files(SUFFIX)],
                    default="fp8",
                    tooltip="fp8 and int8: all matrices of all blocks, half the bytes of bf16. paper-mpq: the published mix of "
                    "nvfp4 and fp8, for RTX 50. bf16 changes nothing. Or a plan of SANA-Streaming Profile Precision: a file "
                    f"*{SUFFIX} in ComfyUI's input or output folder. {MEMORY_ONLY}",
                ),
                comfy_host.widget(
                    io.Boolean,
                    "measure",
                    default=False,
                    advanced=True,
                    tooltip="Times every shape of matrix in its format here, some seconds on a GPU, for the report. Off: the "
                    "report says what the plan's own measurements or the data sheet of a known GPU let expect.",
                ),
                sockets.Plan.Input(
                    "plan",
                    optional=True,
                    tooltip="From SANA-Streaming Profile Precision; is used in place of the preset.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[
                Model.Output(display_name="model"),
                io.String.Output(
                    display_name="report",
                    tooltip="Bytes, speed, and which formats save memory only on this device.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None) -> bool | str:
        return preset is None or preset in preset_names() or comfy_host.answer(lambda: _path(preset))

    @classmethod
    def fingerprint_inputs(cls, preset: str | None, **_: Any) -> Any:
        return preset if preset is None or preset in preset_names() else stamp(_path(preset))

    @classmethod
    def execute(cls, model: LoadedModel, preset: str, measure: bool, plan: Plan | None = None) -> io.NodeOutput:
        plan = _plan(model, preset) if plan is None else plan
        plan.check(model.network.config, model.fingerprint, model.network.fingerprint)
        # That was with the LoRAs or without them; the copy has them in any case.
        plan = dataclasses.replace(plan, model="")
        if not any(kind != UNQUANTIZED for kind in plan.formats.values()):
            text = f"precision {plan.name}: nothing is quantized, the model is passed on as it is"
            comfy_host.show_text(cls, text)
            return io.NodeOutput(model, text)
        small, lines = _quantized(model, plan)
        lines.append(speed_text(model, plan, measure))
        text = "\n".join(lines)
        comfy_host.show_text(cls, text)
        return io.NodeOutput(small, text)


def _path(preset: str) -> Path:
    return comfy_host.resolve_saved(preset, WHAT)


def _plan(model: LoadedModel, name: str) -> Plan:
    if name in preset_names():
        return preset(name, model.network.config)
    return read_plan(_path(name))


def _quantized(model: LoadedModel, plan: Plan) -> tuple[LoadedModel, list[str]]:
    """A model of its own under the plan, and what the report says of it."""
    network, device, home = model.network, model.device, comfy_host.model_offload_device()
    require_whole(network)
    calibrates = bool(plan.lacking_amax())
    # As apply_plan does: a fused network becomes split where the plan needs it.
    layout = "split" if plan.layout(network.config) == "split" else network.layout
    layers = {unit.module_in(layout) for unit in units(network.config) if plan.format_of(unit) != UNQUANTIZED}
    report = comfy_host.ProgressReport(len(layers) + NUM_PASSES * calibrates)
    if calibrates:
        # With the very layers that ComfyUI has on the device, or pages to it.
        comfy_host.load([model.patcher], _CALIBRATION_BYTES)
        plan = calibrated(network, plan, device, report.step)
    operations = comfy_host.quantized_operations(network.dtype, device)
    built, done = build(model, plan, operations, home, report.step)
    if operations is not None:
        done = dataclasses.replace(done, emulated=emulated(plan, device, network.dtype))
    lines = done.lines()
    if calibrates:
        lines.append(f"input scales: {MADE_UP}; SANA-Streaming Profile Precision takes them from footage")
    return LoadedModel(comfy_host.patcher(built, device, home)), lines


def require_whole(network: SanaStreamingDiT) -> None:
    """InputError for a network that is quantized already, by ComfyUI's layers or by this package's own."""
    if is_quantized(network.state_dict()):
        raise InputError(
            "the model is quantized already; load the file that it was made from, and connect that to this node"
        )


def build(
    model: LoadedModel, plan: Plan, operations: Any, home: torch.device, on_layer: Callable[[], None]
) -> tuple[SanaStreamingDiT, Report]:
    """The network under the plan in memory of its own, and the report of :func:`apply_plan`.

    Made of ``operations``, or of the package's own layers where ComfyUI has none.
    """
    twin = copied(model)
    if operations is None:
        done = apply_plan(twin, plan, on_layer=on_layer, runs_on=model.device)
        return twin.to(home), done
    # ComfyUI's layers decide for themselves how they multiply.
    done = apply_plan(twin, plan, "dequantized", on_layer=on_layer)
    state = quantized_state(twin)
    built = build_quantized(state, twin.config, "the plan", device=home, dtype=twin.dtype, operations=operations)
    built.fingerprint = twin.fingerprint
    built.use_kernels(_kernels(model.network))
    return built, done


def copied(model: LoadedModel) -> SanaStreamingDiT:
    """The model's network with its LoRAs merged, of plain layers, on the CPU."""
    network = model.network
    twin = SanaStreamingDiT(network.config, layout=network.layout, device="meta", dtype=network.dtype)
    twin.load_state_dict(dict(comfy_host.weights(model.patcher)), assign=True)
    twin.eval().requires_grad_(False).use_kernels(_kernels(network))
    twin.fingerprint = model.fingerprint
    return twin


def _kernels(network: SanaStreamingDiT) -> Any:
    """What Load SANA-Streaming Model picked."""
    return network.blocks[0].kernels


def emulated(plan: Plan, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Formats of the plan that ComfyUI's layers dequantize for each product on the device, with the reason."""
    found = {}
    for kind in dict.fromkeys(plan.formats.values()):
        if kind == UNQUANTIZED:
            continue
        if not comfy_host.multiplies(FORMATS[kind].comfy, device):
            reason = obstacle(FORMATS[kind], device, dtype)
            found[kind] = reason or "this ComfyUI does not multiply in it here"
    return found
