"""Pixels in: SanaStreamingEncodeVideo, and the widgets that nodes of video share."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.models.vae_tiles import RELEASE_TILES, encode_tiled, tile_grid
from ..sana_core.streaming.chunks import ChunkPlan, latent_frames
from ..sana_core.streaming.edit_stream import check_size
from ..sana_core.streaming.frame_stream import EncodeStream
from ..sana_core.streaming.memory import clip_vae_memory, vae_memory
from ..sana_core.streaming.state import StreamSettings, StreamState
from ..sana_core.video.geometry import resize_and_crop
from ..sana_core.video.latent_preview import LatentRGB, fit_latent_rgb, shrunk
from . import comfy_host
from .frames import Clip, open_clip
from .latents import LOOK, Stretch, to_latent
from .sockets import VAE, LoadedVAE, State
from .steering import footage_inputs, tiles_input

logger = logging.getLogger(__name__)

READ_BLOCK = 8
SMALLEST, LARGEST = 64, 16384
MEMORY_KNOBS = "make width and height smaller"


def video_input(
    name: str = "video", tooltip: str = "A video, read as it is needed, or pictures.", *, optional: bool = False
) -> Any:
    return comfy_host.widget(io.MultiType, name, types=[io.Video, io.Image], optional=optional, tooltip=tooltip)


# As for sampling_inputs: the lists that follow are not to be added to.
def size_inputs() -> list[Any]:
    tooltip = (
        "Size of the edited video, a multiple of 32. The source is scaled to fill it and cropped. Trained for 1280x704, "
        "nano for 256x160."
    )
    return [
        comfy_host.widget(io.Int, "width", default=1280, min=SMALLEST, max=LARGEST, step=32, tooltip=tooltip),
        comfy_host.widget(io.Int, "height", default=704, min=SMALLEST, max=LARGEST, step=32, tooltip=tooltip),
    ]


def range_inputs() -> list[Any]:
    return [
        comfy_host.widget(io.Int, "start_frame", default=0, min=0, max=10**9, tooltip="First frame to take in."),
        comfy_host.widget(
            io.Int, "max_frames", default=0, min=0, max=10**9, tooltip="How many frames to take in; 0 takes all."
        ),
    ]


def fps_input() -> Any:
    return comfy_host.widget(
        io.Float,
        "fps",
        default=0.0,
        min=0.0,
        max=240.0,
        step=0.01,
        tooltip="Frame rate of the result; 0 keeps the source's (16 for pictures). Another rate leaves its sound out.",
    )


def crf_input() -> Any:
    return comfy_host.widget(
        io.Int,
        "crf",
        default=25,
        min=0,
        max=51,
        advanced=True,
        tooltip="H.264 quality: 0 is lossless, 25 is the release's, higher is smaller.",
    )


class SanaStreamingEncodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingEncodeVideo",
            display_name="SANA-Streaming Encode Video",
            category=comfy_host.CATEGORY,
            description="Encodes a video to source latents, frame by frame: memory does not grow with its length.",
            search_aliases=["sana", "vae encode", "encode video", "source latents"],
            inputs=[
                VAE.Input("vae", tooltip="From Load SANA-Streaming VAE."),
                video_input(),
                *size_inputs(),
                *range_inputs(),
                comfy_host.widget(
                    io.Int,
                    "total_frames",
                    default=0,
                    min=-1,
                    max=10**9,
                    advanced=True,
                    tooltip="For a clip that is edited in several parts: its whole length, the same in every part. 0: this "
                    "is all of it. -1: the length is not known. Frames that fill no chunk wait in the state.",
                ),
                comfy_host.widget(
                    io.Boolean,
                    "last_part",
                    default=False,
                    advanced=True,
                    tooltip="The stream ends with these frames: what waits in the state comes out, padded and trimmed. "
                    "Needed only where total_frames is -1.",
                ),
                State.Input("state", optional=True, tooltip="From the part before this one."),
                *footage_inputs(),
                tiles_input("encode"),
            ],
            outputs=[io.Latent.Output(display_name="latent"), State.Output(display_name="state")],
        )

    @classmethod
    def execute(
        cls,
        vae: LoadedVAE,
        video: Any,
        width: int,
        height: int,
        start_frame: int,
        max_frames: int,
        total_frames: int,
        last_part: bool,
        state: StreamState | None = None,
        antialias: bool = False,
        hdr: Any = "refuse",
        tiles: bool = False,
    ) -> io.NodeOutput:
        check_size(height, width, vae.network.config.spatial_factor)
        if tiles and (state is not None or total_frames):
            raise InputError(
                "tiles are for a clip that is encoded whole, and this is a part of one; leave state unconnected and "
                "total_frames 0, or switch tiles off"
            )
        with open_clip(video, start_frame, max_frames, hdr) as clip:
            count = clip.frames.num_frames
            total = None if total_frames < 0 else total_frames or count
            fresh = StreamState(StreamSettings(height, width, total, antialias=antialias))
            state = fresh if state is None else state.clone(memory=False)
            wanted = replace(state.settings, height=height, width=width, total_frames=total, antialias=antialias)
            state.adopt(wanted.with_vae(vae.network))
            final = last_part or (total is not None and state.frames_in + count >= total)
            latent = _encode_whole(vae, state, clip) if tiles else _encode(vae, state, clip, final)
        return io.NodeOutput(latent, state.to(comfy_host.result_device()))


def _encode(vae: LoadedVAE, state: StreamState, clip: Clip, final: bool) -> dict[str, Any]:
    """The LATENT of every chunk that the frames complete; ``final`` ends the stream with them."""
    frames = clip.frames
    start = float((clip.start - state.num_waiting) / frames.frame_rate)
    settings = state.settings
    look = Look(vae, state)
    try:
        with comfy_host.explained_memory(MEMORY_KNOBS):
            plan = ChunkPlan(settings.total_frames, vae.network.config.temporal_factor)
            size = (settings.height, settings.width)
            needed = sum(vae_memory(vae.network.config, plan, size, vae.network.dtype))
            comfy_host.load([vae.patcher], needed)
            before = state.frames_in - state.num_waiting
            report = comfy_host.ProgressReport(1 + frames.num_frames // plan.pixel_frames(1))
            stream = EncodeStream(vae.network, state, device=vae.device, on_progress=lambda _: report.step())
            parts: list[torch.Tensor] = []
            for block in frames.blocks(READ_BLOCK):
                look.offer(block)
                for part in stream.push(block):
                    look.fit(part)
                    parts.append(part.to(comfy_host.result_device(), torch.float32))
            for part in stream.flush() if final else ():
                look.fit(part)
                parts.append(part.to(comfy_host.result_device(), torch.float32))
    except BaseException:
        state.release()
        raise
    if not parts:
        raise InputError(
            f"{frames.num_frames} frames fill no chunk of {plan.pixel_frames(plan.chunk_at(before))}; "
            "take in at least as many in one part, or set last_part if the stream ends here"
        )
    real = state.frames_in - state.num_waiting - before
    padded = sum(part.shape[2] for part in parts) * plan.temporal_factor
    padded -= plan.temporal_factor - 1 if before == 0 else 0
    if real < padded:
        logger.info(
            "SANA-Streaming: %d frames are padded with the last one to %d and trimmed when decoded", real, padded
        )
    sizes = tuple(part.shape[2] for part in parts)
    place = (clip.frame_rate, plan.chunk_at(before), plan)
    stretch = Stretch(sizes, real, *place, start=start, ends=final, height=settings.height, width=settings.width)
    if final:
        # Nothing follows, so nothing needs to be kept.
        state.encoder, state.waiting = {}, None
    return {**to_latent(torch.cat(parts, 2), vae.space, stretch), LOOK: look.found}


class Look:
    """Finds out from the first chunk that is encoded how latents look, for the preview of whoever works on them."""

    def __init__(self, vae: LoadedVAE, state: StreamState) -> None:
        self.found: LatentRGB | None = None
        self._settings, self._config = state.settings, vae.network.config
        self._begins = state.frames_in == state.num_waiting
        waiting = state.waiting
        self._frames = [shrunk(waiting, self._config.spatial_factor)] if waiting is not None else []

    def offer(self, frames: torch.Tensor) -> None:
        """The next frames to be encoded."""
        if self.found is None:
            settings = self._settings
            fitted = resize_and_crop(frames, settings.height, settings.width, settings.antialias)
            self._frames.append(shrunk(fitted, self._config.spatial_factor))

    def fit(self, latents: torch.Tensor) -> None:
        """The next chunk's latents."""
        if self.found is None:
            factor, count = self._config.temporal_factor, latents.shape[2]
            most = factor * count - (factor - 1 if self._begins else 0)
            self.found = fit_latent_rgb(latents, torch.cat(self._frames)[:most], factor, begins=self._begins)
            self._frames.clear()


def _encode_whole(vae: LoadedVAE, state: StreamState, clip: Clip) -> dict[str, Any]:
    """The LATENT of the whole clip, encoded in spatial tiles; ``state`` is at the end of its stream afterwards."""
    network, settings, size = vae.network, state.settings, (state.settings.height, state.settings.width)
    num_latents = latent_frames(clip.frames.num_frames, network.config.temporal_factor)
    with comfy_host.explained_memory(f"{MEMORY_KNOBS}, the clip shorter, or switch tiles off"):
        needed = clip_vae_memory(network.config, num_latents, size, RELEASE_TILES, network.dtype)
        comfy_host.load([vae.patcher], needed)
        video, count = _whole_video(vae, clip, num_latents, settings)
        report = comfy_host.ProgressReport(tile_grid(network, *size, RELEASE_TILES).num_tiles)
        samples = encode_tiled(network, video, RELEASE_TILES, on_tile=lambda *_: report.step())
    state.frames_in, state.finished = count, True
    plan = ChunkPlan(count, network.config.temporal_factor)
    sizes = tuple(plan.latent_sizes(0, samples.shape[2]))
    start = float(clip.start / clip.frames.frame_rate)
    stretch = Stretch(sizes, count, clip.frame_rate, 0, plan, start=start, ends=True, height=size[0], width=size[1])
    return to_latent(samples.to(comfy_host.result_device(), torch.float32), vae.space, stretch)


def _whole_video(vae: LoadedVAE, clip: Clip, num_latents: int, settings: StreamSettings) -> tuple[torch.Tensor, int]:
    """The clip as the VAE takes it, [1, 3, 1 + 8k, H, W] in [-1, 1], and how many of its frames are real.

    The last frame fills what is missing, of a file that breaks off too.
    """
    factor, size = vae.network.config.temporal_factor, (settings.height, settings.width)
    shape = (1, 3, 1 + factor * (num_latents - 1), *size)
    video = torch.empty(shape, dtype=vae.network.dtype, device=vae.device)
    count = 0
    for block in clip.frames.blocks(READ_BLOCK):
        comfy_host.check_interrupt()
        fitted = resize_and_crop(block.to(vae.device), *size, settings.antialias)
        video[0, :, count : count + len(fitted)] = fitted.movedim(0, 1)
        count += len(fitted)
    if not count:
        raise InputError("the video gave no frames; choose one that plays")
    video[:, :, count:] = video[:, :, count - 1 : count]
    return video[:, :, : 1 + factor * (latent_frames(count, factor) - 1)], count
