"""One face for the two ways to decode a stream: causally, or in chunk_tile's overlapping tiles. The VAE decides which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from . import chunk_tile
from .causal_vae import CausalVAE, VAEState

DecoderName = Literal["causal", "chunk_tile"]


class StreamDecoder(Protocol):
    """Latents of a stream in, frames out; what passes from call to call is the caller's, a dict of tensors."""

    @property
    def name(self) -> DecoderName: ...

    @property
    def delay_latents(self) -> int:
        """How many latent frames the frames lag behind."""

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Pixels [B, 3, F, H, W], F >= 0, that the next normalised latents [B, C, T, h, w] complete, and the new state."""

    def held_frames(self, state: VAEState) -> int:
        """Frames of latents that went in which have not come out."""

    def flush(self, state: VAEState) -> Tensor | None:
        """These frames [B, 3, F, H, W], which end the stream; None if there are none."""


@dataclass(frozen=True)
class CausalDecoder:
    """Every latent frame gives its pixel frames at once."""

    vae: CausalVAE
    name: DecoderName = "causal"
    delay_latents: int = 0

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        return self.vae.decode(latents, state)

    def held_frames(self, state: VAEState) -> int:
        return 0

    def flush(self, state: VAEState) -> Tensor | None:
        return None


@dataclass(frozen=True)
class ChunkTileDecoder:
    """Frames come three latent frames late, at 3.3 times the work. See :mod:`.chunk_tile`."""

    vae: CausalVAE
    name: DecoderName = "chunk_tile"
    delay_latents: int = chunk_tile.REACH_LATENTS

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        return chunk_tile.decode(self.vae, latents, state)

    def held_frames(self, state: VAEState) -> int:
        return chunk_tile.held_frames(self.vae, state)

    def flush(self, state: VAEState) -> Tensor | None:
        return chunk_tile.flush(self.vae, state) if self.held_frames(state) else None


def stream_decoder(vae: CausalVAE) -> StreamDecoder:
    """The causal decoder if the VAE has one (``decoder_causal`` in its config), else chunk_tile."""
    return CausalDecoder(vae) if vae.decodes_causally else ChunkTileDecoder(vae)
