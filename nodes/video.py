"""Pixels in and out: SanaStreamingEncodeVideo, SanaStreamingDecodeVideo, SanaStreamingDecodeImages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io

from ..sana_core.errors import InputError
from ..sana_core.streaming.chunks import ChunkPlan
from ..sana_core.streaming.edit_stream import check_size
from ..sana_core.streaming.frame_stream import EncodeStream
from ..sana_core.streaming.memory import vae_memory
from ..sana_core.streaming.state import StreamSettings, StreamState
from ..sana_core.video.geometry import pixels_to_image, pixels_to_uint8
from ..sana_core.video.reader import closest_rate
from ..sana_core.video.writer import VideoWriter
from . import comfy_host
from .frames import DEFAULT_RATE, Clip, open_clip, sound_file
from .latents import Stretch, check_space, from_latent, to_latent
from .sockets import VAE, LoadedVAE, State

logger = logging.getLogger(__name__)

READ_BLOCK = 8
LARGEST = 16384
MEMORY_KNOBS = "make width and height smaller"


def video_input() -> Any:
    return comfy_host.widget(
        io.MultiType,
        "video",
        types=[io.Video, io.Image],
        tooltip="A video, read as it is needed, or pictures.",
    )


# As for sampling_inputs: the lists that follow are not to be added to.
def size_inputs() -> list[Any]:
    tooltip = (
        "Size of the edited video, a multiple of 32. The source is scaled to fill it and cropped. Trained for 1280x704, "
        "nano for 256x160."
    )
    return [
        comfy_host.widget(io.Int, "width", default=1280, min=64, max=LARGEST, step=32, tooltip=tooltip),
        comfy_host.widget(io.Int, "height", default=704, min=64, max=LARGEST, step=32, tooltip=tooltip),
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
    ) -> io.NodeOutput:
        check_size(height, width, vae.network.config.spatial_factor)
        with open_clip(video, start_frame, max_frames) as clip:
            count = clip.frames.num_frames
            total = None if total_frames < 0 else total_frames or count
            state = StreamState(StreamSettings(height, width, total)) if state is None else state.clone(memory=False)
            wanted = replace(state.settings, height=height, width=width, total_frames=total).with_vae(vae.network)
            state.adopt(wanted)
            final = last_part or (total is not None and state.frames_in + count >= total)
            latent = _encode(vae, state, clip, final)
        return io.NodeOutput(latent, state.to(comfy_host.result_device()))


def _encode(vae: LoadedVAE, state: StreamState, clip: Clip, final: bool) -> dict[str, Any]:
    """The LATENT of every chunk that the frames complete; ``final`` ends the stream with them."""
    frames = clip.frames
    start = float((clip.start - state.num_waiting) / frames.frame_rate)
    settings = state.settings
    try:
        with comfy_host.explained_memory(MEMORY_KNOBS):
            plan = ChunkPlan(settings.total_frames, vae.network.config.temporal_factor)
            size = (settings.height, settings.width)
            needed = sum(vae_memory(vae.network.config, plan, size, vae.network.dtype))
            comfy_host.load([vae.patcher], needed)
            before = state.frames_in - state.num_waiting
            report = comfy_host.ProgressReport(1 + frames.num_frames // plan.pixel_frames(1))
            stream = EncodeStream(vae.network, state, device=vae.device, on_progress=lambda _: report.step())
            parts = [
                part.to(comfy_host.result_device(), torch.float32)
                for block in frames.blocks(READ_BLOCK)
                for part in stream.push(block)
            ]
            if final:
                parts += [part.to(comfy_host.result_device(), torch.float32) for part in stream.flush()]
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
    return to_latent(torch.cat(parts, 2), vae.space, stretch)


def _open_decoder(vae: LoadedVAE, latent: dict[str, Any], state: StreamState | None) -> StreamState:
    """A state of its own for this run, after checks; brings the VAE to its device."""
    config = vae.network.config
    samples, stretch = from_latent(latent, config.temporal_factor)
    check_space(latent, vae)
    if not vae.network.decodes_causally:
        raise InputError(
            "the VAE's decoder is not causal and cannot decode as a stream; use the causal LTX-2 VAE, or decode with "
            "ComfyUI's own VAE Decode"
        )
    size = (samples.shape[3] * config.spatial_factor, samples.shape[4] * config.spatial_factor)
    total = stretch.plan.total_frames
    state = StreamState(StreamSettings(*size, total)) if state is None else state.clone(memory=False)
    state.adopt(replace(state.settings, height=size[0], width=size[1], total_frames=total).with_vae(vae.network))
    given_out = stretch.plan.chunk_at(state.frames_out)
    if given_out != stretch.first_chunk:
        raise InputError(
            f"the latents begin with chunk {stretch.first_chunk}, the decoder goes on with chunk {given_out}; use Decode "
            "Video with the state of the one that decoded the part before"
        )
    comfy_host.load([vae.patcher], sum(vae_memory(config, stretch.plan, size, vae.network.dtype)))
    state.decoder = {name: value.to(vae.device) for name, value in state.decoder.items()}
    return state


@torch.no_grad()
def _decoded(
    vae: LoadedVAE, latent: dict[str, Any], state: StreamState, report: comfy_host.ProgressReport
) -> Iterator[torch.Tensor]:
    """Pixels [F, 3, H, W] chunk by chunk, trimmed to the real frames; ``state`` moves on."""
    samples, stretch = from_latent(latent, vae.network.config.temporal_factor)
    start = done = 0
    for size in stretch.sizes:
        report.step()
        piece = samples[:, :, start : start + size].to(vae.device)
        pixels, state.decoder = vae.network.decode(piece, state.decoder)
        frames = pixels[0].movedim(1, 0)[: stretch.num_frames - done]
        start, done = start + size, done + len(frames)
        state.frames_out += len(frames)
        if stretch.is_last and done == stretch.num_frames:
            state.decoder = {}
        yield frames


class SanaStreamingDecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingDecodeVideo",
            display_name="SANA-Streaming Decode Video",
            category=comfy_host.CATEGORY,
            description="Decodes latents straight into a video file, chunk by chunk: memory does not grow with its length.",
            search_aliases=["sana", "vae decode", "decode video", "save video"],
            inputs=[
                VAE.Input("vae", tooltip="The VAE that encoded the source."),
                io.Latent.Input("samples", tooltip="Edited latents, from SANA-Streaming Sampler."),
                fps_input(),
                crf_input(),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound of the whole source; the part that belongs to these frames goes along.",
                ),
                State.Input("state", optional=True, tooltip="From the part before this one."),
            ],
            outputs=[io.Video.Output(display_name="video"), State.Output(display_name="state")],
        )

    @classmethod
    def execute(
        cls,
        vae: LoadedVAE,
        samples: dict[str, Any],
        fps: float,
        crf: int,
        audio: dict[str, Any] | None = None,
        state: StreamState | None = None,
    ) -> io.NodeOutput:
        with comfy_host.explained_memory(MEMORY_KNOBS), sound_file(audio) as sound:
            state = _open_decoder(vae, samples, state)
            latents, stretch = from_latent(samples, vae.network.config.temporal_factor)
            report = comfy_host.ProgressReport(len(stretch.sizes))
            own_rate = stretch.frame_rate
            rate = Fraction(fps).limit_denominator(1001) if fps else own_rate or DEFAULT_RATE
            rate = closest_rate(rate, own_rate) if own_rate else rate
            path = comfy_host.temporary_video("sana_streaming")
            height, width = (side * vae.network.config.spatial_factor for side in latents.shape[3:])
            writer = VideoWriter(
                path,
                width=width,
                height=height,
                frame_rate=rate,
                crf=crf,
                audio_from=sound if own_rate in (rate, None) else None,
                audio_start=stretch.start,
            )
            with released_if_stopped(state, path), writer:
                for pixels in _decoded(vae, samples, state, report):
                    frames = pixels_to_uint8(pixels).cpu()
                    writer.write(frames)
                    report.preview(frames[-1])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), state.to(comfy_host.result_device()))


@contextmanager
def released_if_stopped(state: StreamState, path: Path) -> Iterator[None]:
    """On an error or Stop frees the stream's memory and says where the finished frames are."""
    try:
        yield
    except BaseException:
        state.release()
        if path.exists():
            logger.warning("SANA-Streaming: stopped; the frames that were finished are in %s", path)
        raise


class SanaStreamingDecodeImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingDecodeImages",
            display_name="SANA-Streaming Decode Images",
            category=comfy_host.CATEGORY,
            description="Decodes latents to pictures in memory, for other image nodes. For long videos use Decode Video.",
            search_aliases=["sana", "vae decode", "decode frames"],
            inputs=[
                VAE.Input("vae", tooltip="The VAE that encoded the source."),
                io.Latent.Input(
                    "samples",
                    tooltip="Edited latents. Every frame takes width x height x 12 bytes of memory: 10.8 MB at 1280x704, "
                    "1 GB for 97 frames.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, vae: LoadedVAE, samples: dict[str, Any]) -> io.NodeOutput:
        with comfy_host.explained_memory(f"{MEMORY_KNOBS}, or use Decode Video"):
            state = _open_decoder(vae, samples, None)
            report = comfy_host.ProgressReport(len(from_latent(samples)[1].sizes))
            latents, stretch = from_latent(samples, vae.network.config.temporal_factor)
            size = (side * vae.network.config.spatial_factor for side in latents.shape[3:])
            images = torch.empty(stretch.num_frames, *size, 3)
            done = 0
            for pixels in _decoded(vae, samples, state, report):
                images[done : done + len(pixels)] = pixels_to_image(pixels)
                done += len(pixels)
        return io.NodeOutput(images)
