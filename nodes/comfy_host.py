"""The one door to ComfyUI's internals: devices, memory, folders, progress, interruption, version differences.

Everything that another version of ComfyUI might do otherwise is in this file.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import uuid
from collections.abc import Iterator
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


def patcher(network: nn.Module, load_device: torch.device, offload_device: torch.device) -> Any:
    """The network under ComfyUI's memory management."""
    # Looked up on each call: ComfyUI replaces the class at start-up; older versions do not have it.
    module = comfy.model_patcher
    kind = getattr(module, "CoreModelPatcher", module.ModelPatcher)
    return kind(network, load_device=load_device, offload_device=offload_device)


def model_offload_device() -> torch.device:
    return comfy.model_management.unet_offload_device()


def vae_offload_device() -> torch.device:
    return comfy.model_management.vae_offload_device()


def load(patchers: list[Any], memory_required: int) -> None:
    """Brings networks to their devices and makes room for ``memory_required`` bytes of work beside them."""
    comfy.model_management.load_models_gpu(patchers, memory_required=memory_required)


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


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Writes ``text`` on the node, whose schema has ``hidden=[NODE_ID]``, and into the log."""
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
        for root in _roots(kind):
            for file in sorted([*root.glob(f"*/{marker}"), *root.glob(f"*/*/{marker}")]):
                found[file.parent.relative_to(root).as_posix()] = None
    return list(found)


def resolve(name: str, what: str, *kinds: str) -> Path:
    """The path of a file or sub-folder offered by :func:`files_in` or :func:`folders_with`, never one outside."""
    parts = PureWindowsPath(name).parts
    inside = bool(parts) and ".." not in parts and not PureWindowsPath(name).anchor and not Path(name).is_absolute()
    for kind in kinds if inside else ():
        for root in _roots(kind):
            if (root / name).exists():
                return root / name
    places = ", ".join(f"models/{kind}" for kind in kinds)
    raise InputError(f"{what} {name!r} is in none of ComfyUI's folders {places}; put it there, or choose another")


def _roots(kind: str) -> list[Path]:
    if kind not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(kind)]


def temporary_folder() -> Path:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_video(prefix: str, suffix: str = ".mp4") -> Path:
    """A new name in ComfyUI's temporary folder."""
    # Never the name of an earlier file: ComfyUI may still hand out an output that points there.
    return temporary_folder() / f"{prefix}_{uuid.uuid4().hex[:12]}{suffix}"
