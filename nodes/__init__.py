"""ComfyUI nodes over ``sana_core``. Imported by ComfyUI only, when it asks for the pack's nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import comfy_host
from .decode import SanaStreamingDecodeImages, SanaStreamingDecodeVideo
from .edit_video import SanaStreamingDemoClip, SanaStreamingEditVideo
from .keep_mask import SanaStreamingKeepMask
from .loaders import SanaStreamingLoadModel, SanaStreamingLoadTextEncoder, SanaStreamingLoadVAE
from .lora import SanaStreamingLoadLora
from .precision import SanaStreamingPrecision
from .profile_precision import SanaStreamingProfilePrecision
from .prompt import SanaStreamingPrompt, SanaStreamingPromptSchedule
from .sampler import SanaStreamingSampler
from .short_clip import SanaStreamingShortSampler
from .state import SanaStreamingLoadState, SanaStreamingSaveState
from .video import SanaStreamingEncodeVideo

NODES: list[type[io.ComfyNode]] = [
    SanaStreamingLoadModel,
    SanaStreamingLoadVAE,
    SanaStreamingLoadTextEncoder,
    SanaStreamingPrompt,
    SanaStreamingEncodeVideo,
    SanaStreamingSampler,
    SanaStreamingDecodeVideo,
    SanaStreamingDecodeImages,
    SanaStreamingEditVideo,
    SanaStreamingDemoClip,
    SanaStreamingShortSampler,
    SanaStreamingPromptSchedule,
    SanaStreamingLoadLora,
    SanaStreamingKeepMask,
    SanaStreamingSaveState,
    SanaStreamingLoadState,
    SanaStreamingPrecision,
    SanaStreamingProfilePrecision,
]


class SanaStreamingExtension(ComfyExtension):
    async def on_load(self) -> None:
        comfy_host.register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
