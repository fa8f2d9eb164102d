"""What a LATENT of this pack carries beside its samples, and the checks that rest on it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from ..sana_core.errors import InputError
from ..sana_core.streaming.chunks import ChunkPlan
from .sockets import LTX2_CHANNELS, LTX2_SPACE, LoadedVAE

SAMPLES, SPACE, STREAM = "samples", "sana_latent_space", "sana_stream"
# How these latents look, roughly: a LatentRGB.
LOOK = "sana_look"


@dataclass(frozen=True)
class Stretch:
    """A stretch of consecutive chunks of a stream, which a LATENT holds.

    sizes: latent frames per chunk. num_frames: real pixel frames, the rest of the last chunk is padding. frame_rate: of the
    source, None if unknown. first_chunk: number of the first chunk in its stream. plan: of the whole stream. start: time of
    the first frame in the source, in seconds. ends: nothing of the stream follows. height, width: in pixels, 0 if unknown.
    """

    sizes: tuple[int, ...]
    num_frames: int
    frame_rate: Fraction | None
    first_chunk: int
    plan: ChunkPlan
    start: float = 0.0
    ends: bool = False
    height: int = 0
    width: int = 0

    @property
    def is_last(self) -> bool:
        """Whether the stream is known to end here."""
        return self.ends or self.plan.is_last(self.first_chunk + len(self.sizes) - 1)


def to_latent(samples: torch.Tensor, space: str, stretch: Stretch) -> dict[str, Any]:
    """ComfyUI's LATENT of source latents [1, C, T, H, W] in the latent space ``space``."""
    return {SAMPLES: samples, SPACE: space, STREAM: stretch}


def from_latent(latent: dict[str, Any], temporal_factor: int = 8) -> tuple[torch.Tensor, Stretch]:
    """Samples [1, C, T, H, W] and their place in the stream. Latents from elsewhere are taken for a whole clip."""
    samples = latent[SAMPLES]
    if samples.ndim != 5 or len(samples) != 1:
        raise InputError(
            f"the latents have shape {tuple(samples.shape)}; connect video latents of one clip, [1, C, T, H, W]"
        )
    num_latents = samples.shape[2]
    known = latent.get(STREAM)
    if known is not None and sum(known.sizes) == num_latents:
        return samples, known
    frames = 1 + temporal_factor * (num_latents - 1)
    plan = ChunkPlan(frames, temporal_factor)
    return samples, Stretch(tuple(plan.latent_sizes(0, num_latents)), frames, None, 0, plan)


def is_ltx2(latent: dict[str, Any]) -> bool:
    """Whether latents are of LTX-2's space, as far as one can tell: those from elsewhere by their channels."""
    if SPACE in latent:
        return bool(latent[SPACE] == LTX2_SPACE)
    return int(latent[SAMPLES].shape[1]) == LTX2_CHANNELS


def check_whole(stretch: Stretch, done: str) -> None:
    """InputError for a part of a stream; ``done`` is what is done with whole clips."""
    if stretch.first_chunk or not stretch.is_last:
        raise InputError(
            f"these latents are a part of a stream, and only a whole clip can be {done} at once; encode the whole clip in one "
            "part, with total_frames 0 and no state"
        )


def check_space(latent: dict[str, Any], vae: LoadedVAE) -> None:
    """InputError unless the VAE decodes latents of this space and width."""
    channels, expected = latent[SAMPLES].shape[1], vae.network.config.latent_channels
    if channels != expected:
        raise InputError(
            f"the latents have {channels} channels, this VAE decodes {expected}; use the VAE that encoded the source"
        )
    space = latent.get(SPACE, vae.space)
    if space != vae.space:
        raise InputError(
            f"the latents are of space {space}, this VAE decodes space {vae.space}; use the VAE that encoded the source"
        )
