"""A short clip edited whole, by the bidirectional network: frames in, edited frames out.

Ties geometry, VAE, transformer and DPM-Solver++ together. Knows no files and keeps nothing between clips. Source of the
defaults: ``docs/model.md``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch

from .errors import InputError
from .models.causal_vae import CausalVAE
from .models.dit import PromptContext, SanaStreamingDiT
from .models.prompt import DEFAULT_NEGATIVE_PROMPT, PromptEmbedding, prompt_text
from .models.vae_tiles import RELEASE_TILES, SpatialTiles, decode_tiled, encode_tiled, tile_grid
from .sampling.dpm_solver import dpm_step, dpm_times, predict_data
from .streaming.chunks import latent_frames
from .streaming.clip_latents import ClipLatents, LatentsRecorder
from .streaming.edit_stream import EditedChunk, PromptEncoder, embedded_context
from .streaming.frame_stream import OnProgress, Progress, check_size
from .streaming.noise import ChunkNoise
from .streaming.options import StreamOptions
from .streaming.sampler import OnPass, check_latent_channels
from .streaming.state import StreamSettings, StreamState
from .video.geometry import resize_and_crop

DEFAULT_MOTION_SCORE = 10
# What the network was trained on, and the release's default length.
TRAINED_FRAMES = 81
# Frames that are converted at a time between bytes and the VAE's numbers.
FRAME_BLOCK = 32


@dataclass(frozen=True)
class ShortClipOptions:
    """How a short clip is sampled. The defaults are the release's.

    Attributes:
        steps: denoising passes, 2 or more.
        cfg_scale: guidance; 1 or less is none, more runs the negative prompt beside the positive one.
        seed: 0 to 2**64 - 1.
        noise_device: generator of the noise; ``cpu`` is the same everywhere, ``cuda`` is the release's.
        flow_shift: how far the time grid is pulled towards noise.
        max_frames: longest clip that is accepted. All frames are denoised together, so memory and time grow with them; the
            network was trained on 81.
    """

    steps: int = 50
    cfg_scale: float = 6.0
    seed: int = 0
    noise_device: str = "cpu"
    flow_shift: float = 8.0
    max_frames: int = TRAINED_FRAMES

    def __post_init__(self) -> None:
        for name in ("steps", "max_frames"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name} {getattr(self, name)!r} is not a whole number; use one")
        if not 0 < self.flow_shift < math.inf:
            raise InputError(f"flow_shift {self.flow_shift} must be above 0; the release uses 8")
        if self.max_frames < 1:
            raise InputError(
                f"max_frames {self.max_frames} accepts no clip; use {TRAINED_FRAMES} (default), or 1 or more"
            )
        # Both check what they are given.
        dpm_times(self.steps, self.flow_shift)
        self.as_stream()

    @property
    def guided(self) -> bool:
        return self.cfg_scale > 1

    def as_stream(self) -> StreamOptions:
        """Guidance, seed and noise, which a clip shares with a stream of one chunk."""
        return StreamOptions(cfg_scale=self.cfg_scale, seed=self.seed, noise_device=self.noise_device)


def check_bidirectional(model: SanaStreamingDiT) -> None:
    """InputError for a network that was not trained to see a clip whole."""
    if model.config.variant != "bidirectional":
        raise InputError(
            f"the model is the {model.config.variant} one, which edits chunk by chunk; edit with it as a stream, "
            "or load a bidirectional checkpoint such as sana_bidirectional_short.pth"
        )


def check_fitting(model: SanaStreamingDiT, vae: CausalVAE) -> None:
    """InputError when the two cannot edit a clip whole together."""
    check_bidirectional(model)
    check_latent_channels(model, vae.config.latent_channels, "the VAE makes")


def check_length(num_frames: int, options: ShortClipOptions) -> None:
    """InputError for a clip that is empty or too long to be edited whole."""
    if not 1 <= num_frames <= options.max_frames:
        raise InputError(
            f"the clip has {num_frames} frames; the bidirectional model edits 1 to {options.max_frames} at once: trim the "
            f"clip, raise max_frames (trained were {TRAINED_FRAMES}), or edit it as a stream with a streaming model"
        )


@torch.no_grad()
def sample_short(
    model: SanaStreamingDiT,
    prompt: PromptContext,
    noise: torch.Tensor,
    source: torch.Tensor,
    options: ShortClipOptions,
    *,
    on_pass: OnPass | None = None,
) -> torch.Tensor:
    """Edited latents [B, C, T, h, w] float32 of a clip, from noise and source latents of that shape.

    ``prompt`` holds [negative; positive] where ``options.guided``, the positive alone otherwise. ``on_pass`` is called before
    each pass with (pass, passes) and may raise to stop.
    """
    times = dpm_times(options.steps, options.flow_shift)
    num_frames, height, width = source.shape[2:]
    positions = model.positions(0, num_frames, height, width, source.device)
    rows = 2 if options.guided else 1
    sources = source.repeat(rows, 1, 1, 1, 1)
    x = noise.to(source.device, torch.float32)
    previous: torch.Tensor | None = None
    for step, time in enumerate(times[:-1]):
        if on_pass is not None:
            on_pass(step, options.steps)
        timesteps = 1000 * torch.full((len(sources),), time, dtype=torch.float32, device=x.device)
        # The states that come with it are large and of no use here.
        velocity = model(x.repeat(rows, 1, 1, 1, 1), timesteps, sources, prompt, positions=positions)[0].float()
        if options.guided:
            negative, positive = velocity.chunk(2)
            velocity = negative + options.cfg_scale * (positive - negative)
        data = predict_data(x, velocity, time)
        x, previous = dpm_step(x, data, previous, times, step), data
    return x


class ShortClip:
    """A clip on its way through the bidirectional network: taken in by :meth:`push`, given out whole by :meth:`flush`.

    It has the face of an `EditStream` of one chunk. ``state`` has its size, its prompt and how many frames went in and out;
    ``seconds`` adds up the time per stage.

    Args:
        model: bidirectional transformer.
        vae: VAE with either kind of decoder.
        text: encodes the prompts; unloaded before the networks run.
        total_frames: length of the clip, 1 to ``options.max_frames``. Fewer may be pushed, where a file breaks off.
        prompt: edit instruction. negative_prompt: used only with ``cfg_scale`` above 1. motion_score: written behind the
            prompt, more for more motion; 0 writes nothing.
        height, width: size of the edited clip in pixels, multiples of the VAE's spatial factor (32), at least 2 of them.
        antialias: whether larger frames are averaged when they are made to fit; the release does not.
        tiles: spatial tiles of the VAE, by default the release's; None for the whole frame, which takes more memory.
        device, vae_device: where to compute; by default where the weights are.
        on_progress: called before every tile and every denoising pass, as if the clip were the one chunk of a stream; raising
            from it stops the edit there.
        given: noise and source latents, taken instead of drawn noise and of encoded frames, which then only count.
        recorder: is told noise, source and result before the result is decoded.

    Raises InputError for networks that do not fit together or cannot see a clip whole, for clips and sizes that cannot be
    edited, and for latents of another clip.
    """

    def __init__(
        self,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        options: ShortClipOptions | None = None,
        *,
        total_frames: int,
        prompt: str,
        negative_prompt: str = DEFAULT_NEGATIVE_PROMPT,
        motion_score: int = DEFAULT_MOTION_SCORE,
        height: int = 704,
        width: int = 1280,
        antialias: bool = False,
        tiles: SpatialTiles | None = RELEASE_TILES,
        device: torch.device | str | None = None,
        vae_device: torch.device | str | None = None,
        on_progress: OnProgress | None = None,
        given: ClipLatents | None = None,
        recorder: LatentsRecorder | None = None,
    ) -> None:
        self.options = options or ShortClipOptions()
        self.model, self.vae, self.tiles = model, vae, tiles
        check_fitting(model, vae)
        check_size(height, width, vae.config.spatial_factor)
        check_length(total_frames, self.options)
        self.device, self.vae_device = _device_of(model, device), _device_of(vae, vae_device)
        settings = StreamSettings(height, width, total_frames, antialias=antialias).with_vae(vae)
        self.state = StreamState(settings, prompt=prompt, negative_prompt=negative_prompt)
        self.seconds: dict[str, float] = defaultdict(float)
        self._given, self._recorder = given, recorder
        if given is not None:
            given.check(vae.config.latent_channels, self._num_latents(total_frames), self._grid)
        # Says at once where there is no such generator.
        self._noise(1)
        num_tiles = tile_grid(vae, height, width, tiles).num_tiles
        self._progress = _ClipProgress(on_progress, 0 if given else num_tiles, self.options.steps, num_tiles)
        self._video: torch.Tensor | None = None
        with self._timed("text"):
            self._context = _embed(
                model, text, self.options, prompt_text(prompt, motion_score), negative_prompt, self.device
            )

    @property
    def _grid(self) -> tuple[int, int]:
        factor, settings = self.vae.config.spatial_factor, self.state.settings
        return settings.height // factor, settings.width // factor

    def _num_latents(self, num_frames: int) -> int:
        return latent_frames(num_frames, self.vae.config.temporal_factor)

    def _noise(self, num_latents: int) -> ChunkNoise:
        return ChunkNoise(self.options.as_stream(), num_latents, (self.vae.config.latent_channels, *self._grid))

    @torch.no_grad()
    def push(self, frames: torch.Tensor) -> Iterator[EditedChunk]:
        """Takes in frames [F, H, W, 3], uint8 or float in 0 to 1, of any size; nothing comes out before the end."""
        state, settings = self.state, self.state.settings
        assert settings.total_frames is not None
        if state.finished or state.frames_in + len(frames) > settings.total_frames:
            raise InputError(
                f"{state.frames_in + len(frames)} frames were pushed into a clip of {settings.total_frames}; "
                "give the true length as total_frames"
            )
        with self._timed("geometry"):
            if self._video is None and self._given is None:
                num_frames = 1 + self.vae.config.temporal_factor * (self._num_latents(settings.total_frames) - 1)
                shape = (1, 3, num_frames, settings.height, settings.width)
                self._video = torch.empty(shape, dtype=self.vae.dtype, device=self.vae_device)
            for block in frames.split(FRAME_BLOCK):
                self._fit(block)
                state.frames_in += len(block)
        return iter(())

    def _fit(self, frames: torch.Tensor) -> None:
        if self._video is None:
            return
        start, settings = self.state.frames_in, self.state.settings
        fitted = resize_and_crop(
            frames.to(self.vae_device), settings.height, settings.width, antialias=settings.antialias
        )
        self._video[0, :, start : start + len(frames)] = fitted.movedim(0, 1)

    def drain(self) -> Iterator[EditedChunk]:
        """Nothing: the clip is edited whole."""
        return iter(())

    @torch.no_grad()
    def flush(self) -> Iterator[EditedChunk]:
        """Edits the clip and gives it out in pieces of `FRAME_BLOCK` frames, as many as came in."""
        state = self.state
        if not state.frames_in or state.finished:
            return
        num_latents = self._num_latents(state.frames_in)
        noise, source = self._inputs(num_latents)
        with self._timed("denoise"):
            on_pass = self._progress.stage("denoise")
            latents = sample_short(
                self.model, self._context, noise, source.to(self.device), self.options, on_pass=on_pass
            )
        if self._recorder is not None:
            self._recorder.add(noise, source, latents)
        with self._timed("decode"):
            on_tile = self._progress.stage("decode")
            pixels = decode_tiled(self.vae, latents.to(self.vae_device), self.tiles, on_tile=on_tile)
        for block in pixels[0, :, : state.frames_in].movedim(1, 0).split(FRAME_BLOCK):
            yield EditedChunk(0, state.frames_out, block)
            state.frames_out += len(block)
        state.finished = True

    def _inputs(self, num_latents: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and source latents of the clip, padded with its last frame to 1 + 8k; lets go of the frames."""
        if self._given is not None:
            return self._given.noise[:, :, :num_latents], self._given.source[:, :, :num_latents]
        assert self._video is not None
        count = self.state.frames_in
        video = self._video[:, :, : 1 + self.vae.config.temporal_factor * (num_latents - 1)]
        self._video = None
        video[:, :, count:] = video[:, :, count - 1 : count]
        with self._timed("encode"):
            source = encode_tiled(self.vae, video, self.tiles, on_tile=self._progress.stage("encode"))
        return self._noise(num_latents).draw(0, 0, num_latents), source

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds inside to ``self.seconds[stage]``; waits for the GPU so that they belong to the stage."""
        start = perf_counter()
        try:
            yield
        finally:
            if self.vae_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[stage] += perf_counter() - start


def edit_clip(
    model: SanaStreamingDiT,
    vae: CausalVAE,
    text: PromptEncoder,
    frames: torch.Tensor,
    options: ShortClipOptions | None = None,
    **settings: Any,
) -> torch.Tensor:
    """Edited frames, uint8 RGB [F, height, width, 3] on the device of ``frames``, as many as came in.

    frames: the clip [F, H, W, 3], uint8 or float in 0 to 1, of any size. Everything else, and what is raised, is as for
    :class:`ShortClip`: ``prompt``, ``height``, ``width``, ``tiles``, ``on_progress`` and so on.
    """
    clip = ShortClip(model, vae, text, options, total_frames=len(frames), **settings)
    clip.push(frames)
    return torch.cat([piece.frames.to(frames.device) for piece in clip.flush()])


class _ClipProgress:
    """Counts the tiles and passes of all stages as the units of one chunk."""

    def __init__(self, on_progress: OnProgress | None, tiles_in: int, steps: int, tiles_out: int) -> None:
        self.on_progress = on_progress
        self.first = {"encode": 0, "denoise": tiles_in, "decode": tiles_in + steps}
        self.total = tiles_in + steps + tiles_out

    def stage(self, name: Literal["encode", "denoise", "decode"]) -> Callable[[int, int], None] | None:
        """What to call before each unit of the stage."""
        report = self.on_progress
        if report is None:
            return None
        return lambda number, _: report(Progress(0, 1, name, self.first[name] + number, self.total))


def _device_of(network: torch.nn.Module, device: torch.device | str | None) -> torch.device:
    return torch.device(device) if device is not None else next(network.parameters()).device


@torch.no_grad()
def _embed(
    model: SanaStreamingDiT,
    text: PromptEncoder,
    options: ShortClipOptions,
    prompt: str,
    negative_prompt: str,
    device: torch.device,
) -> PromptContext:
    positive: PromptEmbedding = text.encode(prompt)
    negative = text.encode_negative(negative_prompt) if options.guided else None
    text.unload()
    return embedded_context(model, options.as_stream(), positive, negative, device)
