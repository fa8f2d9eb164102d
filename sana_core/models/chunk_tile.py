"""Decoding a stream with a decoder that is not causal: overlapping tiles in time, each blended into the next.

The release's chunk_tile decode, at constant memory. A tile begins at every latent frame and reaches three further; it is
decoded once the last of them is there, so pixels come three latent frames late and :func:`flush` gives the rest. Every tile is
decoded by itself, so how latents are cut into calls does not change a single bit. Source: ``docs/model.md``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from .causal_vae import CausalVAE, VAEState
from .vae_tiles import blend

# Latent frames that a tile reaches beyond its first one, and that are blended with the tile before.
REACH_LATENTS = 3
BLEND_LATENTS = 2

LATENTS, BLENDED = "latents", "blended"


def decode(vae: CausalVAE, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
    """Pixels [B, 3, F, H, W] of the tiles that the next latent frames of a stream complete, and its new state.

    ``latents`` is [B, C, T, h, w], normalised, T >= 1. With f the VAE's temporal factor, k latent frames in all give
    1 + f (k - 3) frames in all, none for k <= 3, about in [-1, 1], not clamped. The state holds ``latents``, the last three
    at most, and ``blended``, the last 2 f frames of the last tile (none before the first tile); it is never changed, so a
    call can be made again. Raises InputError for other shapes, or for a ``state`` of another kind of stream.
    """
    vae.check_latents(latents)
    latents = latents.to(vae.dtype)
    held, blended = _parts(vae, state) if state else (latents[:, :, :0], _no_frames(vae, latents))
    _check_same_stream(held, latents)
    window = torch.cat([held, latents], dim=2)
    count = max(0, window.shape[2] - REACH_LATENTS)
    pixels, blended = _decode_tiles(vae, window, blended, count)
    return pixels, {LATENTS: _compact(window[:, :, count:]), BLENDED: blended}


def flush(vae: CausalVAE, state: Mapping[str, Tensor]) -> Tensor:
    """The frames [B, 3, F, H, W] that end a stream: k latent frames have then given 1 + f (k - 1) frames.

    ``state`` is what :func:`decode` returned last. Raises InputError for any other.
    """
    held, blended = _parts(vae, state)
    # The tile that begins at the last latent frame adds nothing, unless it is the only one.
    count = held.shape[2] - 1 if held.shape[2] > 1 or blended.shape[2] else 1
    return _decode_tiles(vae, held, blended, count)[0]


def decode_clip(vae: CausalVAE, latents: Tensor) -> Tensor:
    """Pixels [B, 3, 1 + f (T - 1), H, W] of a whole clip of normalised latents [B, C, T, h, w]."""
    pixels, state = decode(vae, latents)
    return torch.cat([pixels, flush(vae, state)], dim=2)


def held_frames(vae: CausalVAE, state: Mapping[str, Tensor]) -> int:
    """How many frames :func:`flush` would give; 0 for the empty state."""
    if not state:
        return 0
    held, blended = _parts(vae, state)
    frames = vae.config.temporal_factor * (held.shape[2] - 1)
    return frames if blended.shape[2] else 1 + frames


def _decode_tiles(vae: CausalVAE, window: Tensor, blended: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What the tiles at the first ``count`` latent frames of ``window`` give out, and the end of the last one."""
    factor = vae.config.temporal_factor
    out = [_no_frames(vae, window)]
    for start in range(count):
        tile = vae.decode_noncausal(window[:, :, start : start + 1 + REACH_LATENTS])
        given = 1 + factor
        if blended.shape[2]:
            # Only the first latent frame of a stream stands for a single frame.
            tile, given = tile[:, :, 1:], factor
            blend(blended, tile, BLEND_LATENTS * factor, dim=2)
        out.append(tile[:, :, :given].clone())
        blended = _compact(tile[:, :, -BLEND_LATENTS * factor :])
    return torch.cat(out, dim=2), blended


def _no_frames(vae: CausalVAE, latents: Tensor) -> Tensor:
    height, width = (side * vae.config.spatial_factor for side in latents.shape[-2:])
    return latents.new_empty(len(latents), vae.config.out_channels, 0, height, width)


def _compact(frames: Tensor) -> Tensor:
    """A copy of its own, so that a few frames do not hold the memory of all."""
    return frames.clone(memory_format=torch.contiguous_format)


def _parts(vae: CausalVAE, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(latents, blended frames) of a state, after checks."""
    if state.keys() != {LATENTS, BLENDED}:
        raise InputError(
            f"state has {len(state)} entries that are not the {LATENTS} and {BLENDED} frames of a chunk_tile decode; "
            "give the state of this stream's last call, or none to start a stream"
        )
    held, blended = state[LATENTS], state[BLENDED]
    vae.check_latents(held)
    frames = (0, BLEND_LATENTS * vae.config.temporal_factor)
    fits = blended.ndim == 5 and blended.shape[2] in frames and held.shape[2] <= REACH_LATENTS
    like = _no_frames(vae, held)
    if (
        not fits
        or blended[:, :, :0].shape != like.shape
        or (blended.dtype, blended.device) != (like.dtype, like.device)
    ):
        raise InputError(
            f"state holds latents {tuple(held.shape)} and frames {tuple(blended.shape)}, which are not of one chunk_tile "
            "decode; give the state of this stream's last call, or none to start a stream"
        )
    return held, blended


def _check_same_stream(held: Tensor, latents: Tensor) -> None:
    got, need = (
        (len(x), tuple(x.shape[-2:]), str(x.dtype).removeprefix("torch."), str(x.device)) for x in (held, latents)
    )
    if got != need:
        raise InputError(
            f"state is of a stream of (batch, rows and columns, dtype, device) {got}, the latents of {need}; "
            "move the state or start a stream"
        )
