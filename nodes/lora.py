"""Low-rank adaptation of a loaded model: SanaStreamingLoadLora."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.models.dit import SanaStreamingDiT
from ..sana_core.precision.layer import QuantLinear
from ..sana_core.weights.lora import LoraChoice, check_lora, lora_changes
from . import comfy_host
from .loaders import CATEGORY, stamp
from .sockets import LoadedModel, Model

FOLDERS = ("loras", comfy_host.OWN_FOLDER)
WHAT = "LoRA"


def _names() -> list[str]:
    """Of our own folder only what is called a LoRA: models are there too."""
    own = [name for name in comfy_host.files_in(comfy_host.OWN_FOLDER) if "lora" in name.lower()]
    names = [*comfy_host.files_in(FOLDERS[0]), *own]
    return list(dict.fromkeys(name for name in names if name.endswith(".safetensors")))


class SanaStreamingLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingLoadLora",
            display_name="Load SANA-Streaming LoRA",
            category=CATEGORY,
            description="Changes a model by a LoRA that was trained for it. Chain several; the model that is connected stays "
            "as it is for other nodes.",
            search_aliases=["sana", "lora", "load lora", "lora loader", "style"],
            inputs=[
                Model.Input("model", tooltip="From Load SANA-Streaming Model, or from another LoRA."),
                comfy_host.widget(
                    io.Combo,
                    "file",
                    options=_names(),
                    tooltip="A file in models/loras, or in models/sana_streaming if it is called lora, made for this model: "
                    "LoRAs of other models are refused.",
                ),
                comfy_host.widget(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="1 is as trained, 0 is none, negative turns the effect round.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return file is None or comfy_host.answer(lambda: check_lora(comfy_host.resolve(file, WHAT, *FOLDERS)))

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> Any:
        return None if file is None else stamp(comfy_host.resolve(file, WHAT, *FOLDERS))

    @classmethod
    def execute(cls, model: LoadedModel, file: str, strength: float) -> io.NodeOutput:
        choice = LoraChoice(comfy_host.resolve(file, WHAT, *FOLDERS), strength)
        changes, mix = lora_changes(model.network, choice, model.fingerprint)
        if not strength:
            return io.NodeOutput(model)
        if text := _on_quantized(model.network, {change.place.module for change in changes}):
            comfy_host.show_text(cls, text)
        return io.NodeOutput(LoadedModel(comfy_host.with_lora(model.patcher, changes), mix))


def _on_quantized(network: SanaStreamingDiT, modules: set[str]) -> str:
    """What it costs to change quantized layers; empty where none is. InputError where ComfyUI's layers are not theirs."""
    if any(isinstance(network.get_submodule(name), QuantLinear) for name in modules):
        raise InputError(
            "this ComfyUI cannot change a quantized model by a LoRA; connect the LoRA before SANA-Streaming Precision, or "
            "update ComfyUI"
        )
    count = sum(comfy_host.is_quantized(network, name) for name in modules)
    if not count:
        return ""
    return (
        f"{count} layers that the LoRA changes are quantized: they are dequantized for each product, which is slower; "
        "connect the LoRA before SANA-Streaming Precision to have it quantized with the weights"
    )
