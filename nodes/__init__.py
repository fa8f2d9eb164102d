"""ComfyUI nodes over ``sana_core``. Imported by ComfyUI only, when it asks for the pack's nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import comfy_host
from .decode import SanaStreamingDecodeImages, SanaStreamingDecodeVideo
from .edit_video import SanaStreamingDemoClip, SanaStreamingEditVideo
from .loaders import SanaStreamingLoadModel, SanaStreamingLoadTextEncoder, SanaStreamingLoadVAE
from .prompt import SanaStreamingPrompt, SanaStreamingPromptSchedule
from .sampler import SanaStreamingSampler
from .short_clip import SanaStreamingShortSampler
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
]


class SanaStreamingExtension(ComfyExtension):
    async def on_load(self) -> None:
        comfy_host.register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
