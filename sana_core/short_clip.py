"""A short clip edited whole, by the bidirectional network: frames in, edited frames out.

Ties geometry, VAE, transformer and DPM-Solver++ together. Knows no files and keeps nothing between clips. Source of the
defaults: ``docs/model.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from .errors import InputError
from .models.causal_vae import CausalVAE
from .models.dit import PromptContext, SanaStreamingDiT
from .models.prompt import DEFAULT_NEGATIVE_PROMPT, PromptEmbedding, prompt_text
from .models.vae_tiles import RELEASE_TILES, SpatialTiles, decode_tiled, encode_tiled, tile_grid
from .sampling.dpm_solver import dpm_step, dpm_times, predict_data
from .streaming.chunks import latent_frames
from .streaming.edit_stream import PromptEncoder, embedded_context
from .streaming.frame_stream import OnProgress, Progress, check_size
from .streaming.noise import ChunkNoise
from .streaming.options import StreamOptions
from .streaming.sampler import OnPass, check_latent_channels
from .video.geometry import pixels_to_uint8, resize_and_crop

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


def edit_clip(
    model: SanaStreamingDiT,
    vae: CausalVAE,
    text: PromptEncoder,
    frames: torch.Tensor,
    options: ShortClipOptions | None = None,
    *,
    prompt: str,
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT,
    motion_score: int = DEFAULT_MOTION_SCORE,
    height: int = 704,
    width: int = 1280,
    tiles: SpatialTiles | None = RELEASE_TILES,
    device: torch.device | str | None = None,
    vae_device: torch.device | str | None = None,
    on_progress: OnProgress | None = None,
) -> torch.Tensor:
    """Edited frames, uint8 RGB [F, height, width, 3] on the device of ``frames``, as many as came in.

    Args:
        model: bidirectional transformer.
        vae: VAE with either kind of decoder.
        text: encodes the prompts; unloaded before the networks run.
        frames: the clip [F, H, W, 3], uint8 or float in 0 to 1, of any size; 1 to ``options.max_frames``. Padded with the last
            frame to 1 + 8k for the VAE, the result trimmed.
        prompt: edit instruction. negative_prompt: used only with ``cfg_scale`` above 1. motion_score: written behind the
            prompt, more for more motion; 0 writes nothing.
        height, width: size of the edited clip in pixels, multiples of the VAE's spatial factor (32), at least 2 of them.
        tiles: spatial tiles of the VAE, by default the release's; None for the whole frame, which takes more memory.
        device, vae_device: where to compute; by default where the weights are.
        on_progress: called before every tile and every denoising pass, as if the clip were the one chunk of a stream; raising
            from it stops the edit there.

    Raises InputError for networks that do not fit together or cannot see a clip whole, and for clips and sizes that cannot be
    edited.
    """
    options = options or ShortClipOptions()
    config = vae.config
    check_bidirectional(model)
    check_latent_channels(model, config.latent_channels, "the VAE makes")
    check_size(height, width, config.spatial_factor)
    check_length(len(frames), options)
    device, vae_device = _device_of(model, device), _device_of(vae, vae_device)
    total = latent_frames(len(frames), config.temporal_factor)
    grid = (height // config.spatial_factor, width // config.spatial_factor)
    noise = ChunkNoise(options.as_stream(), total, (config.latent_channels, *grid)).draw(0, 0, total)
    progress = _ClipProgress(on_progress, tile_grid(vae, height, width, tiles).num_tiles, options.steps)

    context = _embed(model, text, options, prompt_text(prompt, motion_score), negative_prompt, device)
    num_frames = 1 + config.temporal_factor * (total - 1)
    video = _to_video(frames, num_frames, height, width, vae.dtype, vae_device)
    source = encode_tiled(vae, video, tiles, on_tile=progress.stage("encode"))
    del video
    latents = sample_short(model, context, noise, source.to(device), options, on_pass=progress.stage("denoise"))
    pixels = decode_tiled(vae, latents.to(vae_device), tiles, on_tile=progress.stage("decode"))
    return _to_frames(pixels[0, :, : len(frames)], frames.device)


class _ClipProgress:
    """Counts the tiles and passes of all stages as the units of one chunk."""

    def __init__(self, on_progress: OnProgress | None, num_tiles: int, steps: int) -> None:
        self.on_progress = on_progress
        self.first = {"encode": 0, "denoise": num_tiles, "decode": num_tiles + steps}
        self.total = 2 * num_tiles + steps

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


def _to_video(
    frames: torch.Tensor, num_frames: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The clip as the VAE takes it, [1, 3, num_frames, height, width] in [-1, 1]; the last frame fills what is missing."""
    video = torch.empty(1, 3, num_frames, height, width, dtype=dtype, device=device)
    for start in range(0, len(frames), FRAME_BLOCK):
        block = resize_and_crop(frames[start : start + FRAME_BLOCK].to(device), height, width)
        video[0, :, start : start + len(block)] = block.movedim(0, 1)
    count = len(frames)
    video[:, :, count:] = video[:, :, count - 1 : count]
    return video


def _to_frames(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """[3, F, H, W] as uint8 [F, H, W, 3] on ``device``."""
    return torch.cat([pixels_to_uint8(block).to(device) for block in pixels.movedim(1, 0).split(FRAME_BLOCK)])
