"""What SANA-Streaming Edit Video edits with, whatever the frames come from."""

from __future__ import annotations

from dataclasses import dataclass

from ..sana_core.streaming.chunks import ChunkPlan
from ..sana_core.streaming.edit_stream import EditStream, check_networks, check_size
from ..sana_core.streaming.frame_stream import OnProgress
from ..sana_core.streaming.memory import stream_memory
from ..sana_core.streaming.options import StreamOptions
from ..sana_core.streaming.passes import Passes
from ..sana_core.streaming.prompt_encoders import PromptEncoder
from ..sana_core.streaming.prompt_schedule import FramePrompts
from . import comfy_host
from .prompt import Prompts
from .sockets import LoadedModel, LoadedVAE


@dataclass(frozen=True)
class Editor:
    """Networks, prompts and settings. ``size``: (height, width) of the edit.

    Raises InputError for networks that do not fit together, and for a size that cannot be edited.
    """

    model: LoadedModel
    vae: LoadedVAE
    prompts: Prompts
    options: StreamOptions
    size: tuple[int, int]
    antialias: bool

    def __post_init__(self) -> None:
        check_networks(self.model.network, self.vae.network)
        check_size(*self.size, self.vae.network.config.spatial_factor)

    def plan(self, total_frames: int | None) -> ChunkPlan:
        return ChunkPlan(total_frames, self.vae.network.config.temporal_factor)

    def load(self, plan: ChunkPlan) -> None:
        """Brings the networks to their devices, and makes room for a stream of this plan."""
        model, vae = self.model.network, self.vae.network
        needed = stream_memory(model.config, vae.config, plan, self.size, self.options, model.dtype, vae.dtype)
        comfy_host.load([self.model.patcher, self.vae.patcher], needed.total)

    def stream(
        self,
        text: PromptEncoder,
        total_frames: int | None,
        passes: Passes,
        on_progress: OnProgress,
        *,
        prompt: str | None = None,
        schedule: FramePrompts = (),
    ) -> EditStream:
        """A stream of these networks, once they are loaded. ``prompt``: None for the first of those connected."""
        return EditStream(
            self.model.network,
            self.vae.network,
            text,
            prompt=self.prompts.text if prompt is None else prompt,
            negative_prompt=self.prompts.negative_text,
            schedule=schedule,
            height=self.size[0],
            width=self.size[1],
            antialias=self.antialias,
            total_frames=total_frames,
            options=self.options,
            device=self.model.device,
            vae_device=self.vae.device,
            on_progress=on_progress,
            passes=passes,
        )
