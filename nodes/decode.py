"""Pixels out: SanaStreamingDecodeVideo, SanaStreamingDecodeImages."""

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
from ..sana_core.models.stream_decoder import stream_decoder
from ..sana_core.models.vae_tiles import RELEASE_TILES, decode_tiled, tile_grid
from ..sana_core.streaming.memory import clip_vae_memory, vae_memory
from ..sana_core.streaming.prompt_schedule import chunk_start
from ..sana_core.streaming.state import StreamSettings, StreamState
from ..sana_core.video.geometry import pixels_to_image, pixels_to_uint8
from ..sana_core.video.reader import closest_rate
from ..sana_core.video.writer import VideoWriter
from . import comfy_host
from .frames import DEFAULT_RATE, sound_file, spare_sound
from .latents import check_space, check_whole, from_latent
from .sockets import VAE, LoadedVAE, State
from .steering import tiles_input
from .video import MEMORY_KNOBS, READ_BLOCK, crf_input, fps_input

logger = logging.getLogger(__name__)


class Decoding:
    """One run of a decoding node: checks on making it, then frames.

    ``state`` is a state of its own, which moves on. ``held`` is how many frames of earlier latents come first.
    """

    def __init__(self, vae: LoadedVAE, latent: dict[str, Any], state: StreamState | None, tiles: bool) -> None:
        config = vae.network.config
        self.vae, self.tiles = vae, tiles
        self.samples, self.stretch = from_latent(latent, config.temporal_factor)
        check_space(latent, vae)
        if tiles:
            check_whole(self.stretch, "decoded in tiles")
        self.size = (self.samples.shape[3] * config.spatial_factor, self.samples.shape[4] * config.spatial_factor)
        self.decoder = stream_decoder(vae.network)
        self.state = self._own_state(state)
        self.held = self.decoder.held_frames(self.state.decoder)
        self._check_place()
        tile_count = tile_grid(vae.network, *self.size, RELEASE_TILES).num_tiles
        self.units = tile_count if tiles else len(self.stretch.sizes)

    def _own_state(self, state: StreamState | None) -> StreamState:
        total = self.stretch.plan.total_frames
        state = StreamState(StreamSettings(*self.size, total)) if state is None else state.clone(memory=False)
        wanted = replace(state.settings, height=self.size[0], width=self.size[1], total_frames=total)
        state.adopt(wanted.with_vae(self.vae.network))
        return state

    def _check_place(self) -> None:
        """The decoder must have had everything before these latents, and nothing of them."""
        decoded = self.stretch.plan.chunk_at(self.state.frames_out + self.held)
        if decoded != self.stretch.first_chunk:
            raise InputError(
                f"the latents begin with chunk {self.stretch.first_chunk}, the decoder goes on with chunk {decoded}; use "
                "Decode Video with the state of the one that decoded the part before"
            )

    def load(self) -> None:
        """Brings the VAE and the stream's state to the VAE's device."""
        vae, plan = self.vae.network, self.stretch.plan
        if self.tiles:
            needed = clip_vae_memory(vae.config, self.samples.shape[2], self.size, RELEASE_TILES, vae.dtype)
        else:
            needed = sum(vae_memory(vae.config, plan, self.size, vae.dtype))
        comfy_host.load([self.vae.patcher], needed)
        self.state.decoder = {name: value.to(self.vae.device) for name, value in self.state.decoder.items()}

    def frames(self, report: comfy_host.ProgressReport, to_the_end: bool) -> Iterator[torch.Tensor]:
        """Pixels [F, 3, H, W] piece by piece, trimmed to the real frames; the first piece may hold none.

        ``to_the_end``: what the decoder still holds back comes out too, though more of the stream may follow.
        """
        pieces = self._in_tiles(report) if self.tiles else self._in_chunks(report, to_the_end)
        real = chunk_start(self.stretch.first_chunk, self.stretch.plan) + self.stretch.num_frames
        for pixels in pieces:
            frames = pixels[: real - self.state.frames_out]
            self.state.frames_out += len(frames)
            if self.stretch.is_last and self.state.frames_out == real:
                self.state.decoder = {}
            yield frames

    @torch.no_grad()
    def _in_chunks(self, report: comfy_host.ProgressReport, to_the_end: bool) -> Iterator[torch.Tensor]:
        for part in self.samples.split(list(self.stretch.sizes), 2):
            report.step()
            pixels, self.state.decoder = self.decoder.decode(part.to(self.vae.device), self.state.decoder)
            yield pixels[0].movedim(1, 0)
        if to_the_end and (rest := self.decoder.flush(self.state.decoder)) is not None:
            yield rest[0].movedim(1, 0)

    def _in_tiles(self, report: comfy_host.ProgressReport) -> Iterator[torch.Tensor]:
        latents = self.samples.to(self.vae.device)
        pixels = decode_tiled(self.vae.network, latents, RELEASE_TILES, on_tile=lambda *_: report.step())
        yield from pixels[0].movedim(1, 0).split(READ_BLOCK)


def decoder_text(vae: LoadedVAE) -> str:
    """How the VAE decodes a stream, in words."""
    decoder = stream_decoder(vae.network)
    if not decoder.delay_latents:
        return f"decoder {decoder.name}: frames come with their latents"
    frames = decoder.delay_latents * vae.network.config.temporal_factor
    return f"decoder {decoder.name}: frames come {decoder.delay_latents} latent frames ({frames} frames) late"


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
                tiles_input("decode"),
            ],
            hidden=[comfy_host.NODE_ID],
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
        tiles: bool = False,
    ) -> io.NodeOutput:
        with comfy_host.explained_memory(MEMORY_KNOBS), sound_file(audio) as sound:
            run = Decoding(vae, samples, state, tiles)
            own_rate = run.stretch.frame_rate
            rate = Fraction(fps).limit_denominator(1001) if fps else own_rate or DEFAULT_RATE
            rate = closest_rate(rate, own_rate) if own_rate else rate
            path = comfy_host.temporary_video("sana_streaming")
            writer = VideoWriter(
                path,
                width=run.size[1],
                height=run.size[0],
                frame_rate=rate,
                crf=crf,
                audio_from=sound if own_rate in (rate, None) else None,
                audio_start=max(0.0, run.stretch.start - float(run.held / (own_rate or DEFAULT_RATE))),
            )
            with released_if_stopped(run.state, path), writer:
                written = _write(run, writer)
        left = run.decoder.held_frames(run.state.decoder)
        waiting = f"; {left} wait in the state for the next part" if left else ""
        spare = _sound_left_out(audio, run, rate, written)
        lines = [f"{written} frames{waiting}", decoder_text(vae), *([spare] if spare else [])]
        comfy_host.show_text(cls, "\n".join(lines))
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), run.state.to(comfy_host.result_device()))


def _sound_left_out(audio: dict[str, Any] | None, run: Decoding, rate: Fraction, written: int) -> str:
    """What of the sound is not in the file, in words; empty where all is, or where more is to come."""
    own_rate = run.stretch.frame_rate
    if audio is not None and own_rate not in (rate, None):
        return f"the sound is left out: fps {float(rate):g} is not the source's {float(own_rate):g}"
    if not run.stretch.is_last:
        return ""
    return spare_sound(audio, run.stretch.start - float(run.held / rate) + written / rate)


def _write(run: Decoding, writer: VideoWriter) -> int:
    """Decodes into the writer; the number of frames. InputError where the latents complete none."""
    run.load()
    report = comfy_host.ProgressReport(run.units)
    before = run.state.frames_out
    for pixels in run.frames(report, to_the_end=run.stretch.is_last):
        if len(pixels):
            frames = pixels_to_uint8(pixels).cpu()
            writer.write(frames)
            report.preview(frames[-1])
    if run.state.frames_out == before:
        raise InputError(
            f"{run.samples.shape[2]} latent frames complete no frame with decoder {run.decoder.name}, which looks "
            f"{run.decoder.delay_latents} ahead; decode more chunks in one part"
        )
    return run.state.frames_out - before


@contextmanager
def named_if_stopped(path: Path) -> Iterator[None]:
    """On an error or Stop says where the finished frames are."""
    try:
        yield
    except BaseException:
        if path.exists():
            logger.warning("SANA-Streaming: stopped; the frames that were finished are in %s", path)
        raise


@contextmanager
def released_if_stopped(state: StreamState, path: Path) -> Iterator[None]:
    """As :func:`named_if_stopped`; frees the stream's memory first."""
    with named_if_stopped(path):
        try:
            yield
        except BaseException:
            state.release()
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
                tiles_input("decode"),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, vae: LoadedVAE, samples: dict[str, Any], tiles: bool = False) -> io.NodeOutput:
        with comfy_host.explained_memory(f"{MEMORY_KNOBS}, or use Decode Video"):
            run = Decoding(vae, samples, None, tiles)
            run.load()
            report = comfy_host.ProgressReport(run.units)
            images = torch.empty(run.stretch.num_frames, *run.size, 3)
            done = 0
            for pixels in run.frames(report, to_the_end=True):
                images[done : done + len(pixels)] = pixels_to_image(pixels)
                done += len(pixels)
        return io.NodeOutput(images)
