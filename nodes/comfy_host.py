"""The one door to ComfyUI's internals: devices, memory, folders, progress, interruption, version differences.

Everything that another version of ComfyUI might do otherwise is in this file.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import nn

from ..sana_core.errors import InputError
from ..sana_core.precision.sharing import Shared
from ..sana_core.weights.lora import LoraChange

logger = logging.getLogger(__name__)

CATEGORY = "SANA-Streaming"
OWN_FOLDER = "sana_streaming"
DTYPES = ("auto", "bfloat16", "float16", "float32")
PREVIEW_SIZE = 512
# What a schema lists under ``hidden`` for a node that writes on itself.
NODE_ID = io.Hidden.unique_id


# Schemas


def schema(**fields: Any) -> io.Schema:
    """io.Schema without the keywords that an older ComfyUI does not know."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def widget(kind: Any, name: str, **fields: Any) -> Any:
    """``kind.Input`` without the keywords that an older ComfyUI does not know."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(name, **{key: value for key, value in fields.items() if key in known})


# Devices and memory


def model_device() -> torch.device:
    return comfy.model_management.get_torch_device()


def vae_device() -> torch.device:
    return comfy.model_management.vae_device()


def text_encoder_device() -> torch.device:
    return comfy.model_management.text_encoder_device()


def result_device() -> torch.device:
    """Where results of nodes wait for the next node."""
    return comfy.model_management.intermediate_device()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name in DTYPES; ``auto`` is what the device computes well in, float32 on a CPU."""
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16


def operations(dtype: torch.dtype) -> Any:
    """Layers that ComfyUI can offload and patch."""
    return comfy.ops.pick_operations(dtype, dtype)


# How ComfyUI's name of a format is followed by the question whether a device multiplies in it.
_COMPUTE = {
    "float8_e4m3fn": "supports_fp8_compute",
    "mxfp8": "supports_mxfp8_compute",
    "nvfp4": "supports_nvfp4_compute",
}


def quantized_operations(dtype: torch.dtype, device: torch.device) -> Any | None:
    """Layers that read quantized weights, which ComfyUI can offload and patch; None where this ComfyUI has none."""
    make = getattr(comfy.ops, "mixed_precision_ops", None)
    if make is None or not {"compute_dtype", "disabled"} <= inspect.signature(make).parameters.keys():
        return None
    disabled = {name for name in _COMPUTE if not multiplies(name, device)}
    return _sharing(make(compute_dtype=dtype, disabled=disabled))


def multiplies(name: str, device: torch.device) -> bool:
    """Whether ComfyUI's layers multiply in its format of that name on a device; else they dequantize each weight."""
    return name not in _COMPUTE or _computes(_COMPUTE[name], device)


def _computes(question: str, device: torch.device) -> bool:
    ask = getattr(comfy.model_management, question, None)
    return device.type == "cuda" and ask is not None and bool(ask(device))


def _sharing(operations: Any) -> Any:
    """``operations`` whose Linears quantize one input once: those that read it look for it in what the first one made."""
    quantized_tensor = getattr(comfy.ops, "QuantizedTensor", None)
    algorithms = getattr(comfy.ops, "QUANT_ALGOS", {})

    class Linear(operations.Linear):
        def share_input(self, x: torch.Tensor, seen: dict[Any, Any]) -> torch.Tensor | Shared:
            kind = getattr(self, "quant_format", None)
            scale = getattr(self, "input_scale", None)
            plain = getattr(self, "_full_precision_mm", True) or getattr(self, "comfy_force_cast_weights", False)
            patched = self.weight_function or self.bias_function
            inside = not algorithms.get(kind, {}).get("quantize_input", True)
            if quantized_tensor is None or kind is None or scale is None or plain or patched or inside:
                return x
            if not hasattr(self, "_scale_value"):
                self._scale_value = float(scale)
            key = (kind, self._scale_value)
            if key not in seen:
                rows = x.reshape(-1, x.shape[-1])
                value = quantized_tensor.from_float(rows, self.layout_type, scale=scale.to(x.device))
                seen[key] = Shared(value, x.shape)
            shared: Shared = seen[key]
            return shared

        def forward(self, x: torch.Tensor | Shared, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not isinstance(x, Shared):
                return super().forward(x, *args, **kwargs)
            return super().forward(x.value, *args, **kwargs).reshape(*x.shape[:-1], -1)

    return type("SharingOperations", (operations,), {"Linear": Linear})


def patcher(network: nn.Module, load_device: torch.device, offload_device: torch.device) -> Any:
    """The network under ComfyUI's memory management."""
    # Looked up on each call: ComfyUI replaces the class at start-up; older versions do not have it.
    module = comfy.model_patcher
    kind = getattr(module, "CoreModelPatcher", module.ModelPatcher)
    return kind(network, load_device=load_device, offload_device=offload_device)


def weights(patcher: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that a patcher's network computes with, its LoRAs merged: copies on the CPU, one after another."""
    for name, (plain, *patches) in patcher.get_key_patches().items():
        weight = plain[0].detach().to("cpu", copy=True)
        if patches:
            from comfy.lora import calculate_weight

            weight = calculate_weight(patches, weight.float(), name).to(weight.dtype)
        yield name, weight


def is_quantized(network: nn.Module, module: str) -> bool:
    """Whether one of ComfyUI's layers holds its weight in a format of fewer bits."""
    return getattr(network.get_submodule(module), "quant_format", None) is not None


class _Dequantized:
    """A LoRA's change of a quantized weight, which ComfyUI dequantizes for it on every use.

    As a patch ComfyUI would quantize the changed weight again, whose rounding is as large as the change.
    """

    def __init__(self, change: LoraChange) -> None:
        self.change = change

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        place, _, up, down, scale = self.change
        changed = weight.float()
        start = (place.quarter or 0) * place.shape[0]
        changed[start : start + place.shape[0]] += scale * (up.to(weight.device) @ down.to(weight.device))
        return changed.to(weight.dtype)


def with_lora(patcher: Any, changes: Iterable[LoraChange]) -> Any:
    """A copy of a patcher whose weights change as a LoRA says; whoever has the first one sees the weights as they were."""
    from comfy.weight_adapter import LoRAAdapter

    patches: dict[Any, Any] = {}
    copy = patcher.clone()
    for change in changes:
        place, _, up, down, scale = change
        name, rows = f"{place.module}.weight", place.shape[0]
        if is_quantized(patcher.model, place.module):
            copy.add_weight_wrapper(name, _Dequantized(change))
            continue
        key = name if place.quarter is None else (name, (0, place.quarter * rows, rows))
        # ComfyUI divides alpha by the rank.
        patches[key] = LoRAAdapter({name}, (up, down, scale * len(down), None, None, None))
    taken = copy.add_patches(patches)
    if len(taken) != len(patches):
        raise InputError(f"this ComfyUI takes {len(taken)} of the LoRA's {len(patches)} changes; update ComfyUI")
    return copy


def model_offload_device() -> torch.device:
    return comfy.model_management.unet_offload_device()


def vae_offload_device() -> torch.device:
    return comfy.model_management.vae_offload_device()


def load(patchers: list[Any], memory_required: int) -> None:
    """Brings networks to their devices and makes room for ``memory_required`` bytes of work beside them."""
    comfy.model_management.load_models_gpu(patchers, memory_required=memory_required)


def is_dynamic(patcher: Any) -> bool:
    """Whether ComfyUI pages the network's weights in and out as they are needed."""
    return bool(getattr(patcher, "is_dynamic", bool)())


def keeps_from_recording(patcher: Any) -> str | None:
    """Why work of a loaded patcher's network cannot be recorded as a CUDA graph, whose weights stay put; None where it can."""
    if patcher.load_device.type != "cuda":
        return f"the model runs on {patcher.load_device}, and graphs need an NVIDIA GPU"
    if patcher.patches or getattr(patcher, "weight_wrapper_patches", None):
        return "a LoRA changes the model"
    if is_dynamic(patcher) or patcher.loaded_size() < patcher.model_size():
        return "ComfyUI keeps part of the model outside the GPU"
    return None


def make_room(num_bytes: int, device: torch.device) -> None:
    """Frees that many bytes of a device by sending other networks away."""
    comfy.model_management.free_memory(num_bytes, device)


@contextmanager
def explained_memory(knobs: str) -> Iterator[None]:
    """Adds what can be turned to an out-of-memory error."""
    kind = comfy.model_management.OOM_EXCEPTION
    if kind is Exception:
        yield
        return
    try:
        yield
    except kind as error:
        # The same class, so that ComfyUI's own handling still sees it.
        raise kind(f"out of memory; {knobs}") from error


# Running


def check_interrupt() -> None:
    """Raises ComfyUI's own exception when the user pressed Stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def show_text(node: type[io.ComfyNode], text: str, log: bool = True) -> None:
    """Writes ``text`` on the node, whose schema has ``hidden=[NODE_ID]``, and into the log."""
    if log:
        logger.info("SANA-Streaming: %s", text)
    number = getattr(node.hidden, "unique_id", None)
    if number is None:
        return
    # Only a running server has it.
    from server import PromptServer

    send = getattr(PromptServer.instance, "send_progress_text", None)
    if send is not None:
        send(text, number)


class ProgressReport:
    """ComfyUI's progress bar with a preview of finished frames; honours Stop at every step."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._bar = comfy.utils.ProgressBar(max(1, total))

    def step(self) -> None:
        """One unit of work is about to begin."""
        check_interrupt()
        self._bar.update_absolute(self.done)
        self.done += 1

    def reached(self, done: int) -> None:
        """So much of the work is done."""
        check_interrupt()
        self.done = done
        self._bar.update_absolute(done)

    def preview(self, frame: torch.Tensor) -> None:
        """Shows a finished frame, uint8 [H, W, 3]."""
        from PIL import Image

        picture = Image.fromarray(frame.cpu().numpy())
        self._bar.update_absolute(self.done, preview=("JPEG", picture, PREVIEW_SIZE))


# Folders


def register_folders() -> None:
    """Adds ``models/sana_streaming`` beside ComfyUI's own folders."""
    folder_paths.add_model_folder_path(OWN_FOLDER, str(Path(folder_paths.models_dir) / OWN_FOLDER))
    folder_paths.folder_names_and_paths[OWN_FOLDER][1].update((".safetensors", ".pth"))


def files_in(*kinds: str) -> list[str]:
    """File names offered by ComfyUI's model folders of these kinds, the first kind first."""
    return list(dict.fromkeys(name for kind in kinds for name in _filenames(kind)))


def _filenames(kind: str) -> list[str]:
    if kind not in folder_paths.folder_names_and_paths:
        return []
    try:
        return folder_paths.get_filename_list(kind)
    except FileNotFoundError:
        # ComfyUI remembers folders that have been removed meanwhile.
        return []


def folders_with(marker: str, *kinds: str) -> list[str]:
    """Sub-folders, as paths relative to ComfyUI's model folders of these kinds, that hold a file ``marker``."""
    found: dict[str, None] = {}
    for kind in kinds:
        for root in roots(kind):
            for file in sorted([*root.glob(f"*/{marker}"), *root.glob(f"*/*/{marker}")]):
                found[file.parent.relative_to(root).as_posix()] = None
    return list(found)


def resolve(name: str, what: str, *kinds: str) -> Path:
    """The path of a file or sub-folder offered by :func:`files_in` or :func:`folders_with`, never one outside."""
    for kind in kinds if _is_inside(name) else ():
        for root in roots(kind):
            if (root / name).exists():
                return root / name
    places = ", ".join(f"models/{kind}" for kind in kinds)
    raise InputError(f"{what} {name!r} is in none of ComfyUI's folders {places}; put it there, or choose another")


def _is_inside(name: str) -> bool:
    """Whether a relative name stays inside the folder that it is relative to."""
    parts = PureWindowsPath(name).parts
    return bool(parts) and ".." not in parts and not PureWindowsPath(name).anchor and not Path(name).is_absolute()


def roots(kind: str) -> list[Path]:
    """ComfyUI's model folders of a kind."""
    if kind not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(kind)]


def own_folder() -> Path:
    """``models/sana_streaming``, the first one where extra_model_paths.yaml names several."""
    return roots(OWN_FOLDER)[0]


# How ComfyUI marks names of files that are not in its input folder.
_IN_OUTPUT, _IN_INPUT = " [output]", " [input]"


def saved_files(suffix: str) -> list[str]:
    """Names of files in ComfyUI's input folder, and in its output folder not deeper than one folder, which are marked."""
    source, target = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
    found = [path.relative_to(source).as_posix() for path in sorted(source.rglob(f"*{suffix}"))]
    written = sorted([*target.glob(f"*{suffix}"), *target.glob(f"*/*{suffix}")])
    return found + [path.relative_to(target).as_posix() + _IN_OUTPUT for path in written]


def resolve_saved(name: str, what: str) -> Path:
    """The path of a file offered by :func:`saved_files`, never one outside the two folders."""
    marked = name.endswith(_IN_OUTPUT)
    root = folder_paths.get_output_directory() if marked else folder_paths.get_input_directory()
    plain = name.removesuffix(_IN_OUTPUT if marked else _IN_INPUT)
    path = Path(root) / plain
    if _is_inside(plain) and path.is_file():
        return path
    raise InputError(f"{what} {name!r} is not in ComfyUI's {'output' if marked else 'input'} folder; choose another")


def output_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A new numbered name in ComfyUI's output folder, and how a history entry lists it."""
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{number:05}_{suffix}"
    return path, {"filename": path.name, "subfolder": subfolder, "type": "output"}


def output_folder(name: str) -> Path:
    """A folder inside ComfyUI's output folder, made where it lacks."""
    folder = Path(folder_paths.get_output_directory()) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_folder() -> Path:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_video(prefix: str, suffix: str = ".mp4") -> Path:
    """A new name in ComfyUI's temporary folder."""
    # Never the name of an earlier file: ComfyUI may still hand out an output that points there.
    return temporary_folder() / f"{prefix}_{uuid.uuid4().hex[:12]}{suffix}"
