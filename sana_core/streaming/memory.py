"""How much memory a stream needs beside the weights: exact for what is carried, an estimate for the work itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import DiTConfig, VAEConfig
from ..models.causal_vae import CausalVAE
from ..models.stream_decoder import stream_decoder
from ..models.vae_tiles import SpatialTiles
from .chunks import CHUNK_LATENTS, ChunkPlan
from .options import StreamOptions

# Tensors of the size of the widest activation that are alive at once: the gated MixFFN (13440 channels for 2240) with its
# depthwise convolution, and a residual block of the VAE with norm, activation, padding and history.
DIT_LIVE_WIDTHS = 36
VAE_LIVE_TENSORS = 7


@dataclass(frozen=True)
class StreamMemory:
    """Bytes: what is carried between chunks by the transformer and the VAE, and the peak inside one call of each."""

    dit_state: int
    dit_work: int
    vae_state: int
    vae_work: int

    @property
    def total(self) -> int:
        """Transformer and VAE take turns, so only the larger of their peaks counts."""
        return self.dit_state + self.vae_state + max(self.dit_work, self.vae_work)


def dit_memory(
    config: DiTConfig, plan: ChunkPlan, grid: tuple[int, int], options: StreamOptions, dtype: torch.dtype
) -> tuple[int, int]:
    """(carried, peak) bytes of the transformer for latents of ``grid`` (rows, columns)."""
    rows = 2 if options.guided else 1
    frame = grid[0] * grid[1] * config.hidden_size * dtype.itemsize
    softmax = len(config.softmax_layers)
    kv_frames = plan.cache_capacity(options.num_cached_blocks, options.sink_token, options.anchor_every)
    carried = _written(config, kv_frames, frame)
    # The chunk's own keys and values have room behind the cached ones.
    room = softmax * 2 * CHUNK_LATENTS * frame
    # Keys with the sink turned are copies, one per block, while a chunk is computed, and one block joins them with its own.
    turned = softmax * kv_frames * frame + 2 * (kv_frames + CHUNK_LATENTS) * frame if options.max_sink_distance else 0
    return rows * carried, rows * (DIT_LIVE_WIDTHS * plan.first_latents * frame + room + turned)


def short_memory(config: DiTConfig, num_latents: int, grid: tuple[int, int], guided: bool, dtype: torch.dtype) -> int:
    """Peak bytes of the transformer for a clip of ``num_latents`` latent frames of ``grid`` that is denoised whole."""
    frame = grid[0] * grid[1] * config.hidden_size * dtype.itemsize
    # Every pass gives out what a stream would carry, and nobody keeps it.
    work = DIT_LIVE_WIDTHS * num_latents * frame + _written(config, num_latents, frame)
    return (2 if guided else 1) * work


def _written(config: DiTConfig, kv_frames: int, frame: int) -> int:
    """Bytes of all blocks' states with ``kv_frames`` latent frames of keys and values, of ``frame`` bytes each."""
    softmax = len(config.softmax_layers)
    gdn = (config.depth - softmax) * config.num_heads * config.head_dim * (config.head_dim + 1) * 4
    return gdn + softmax * 2 * kv_frames * frame + config.depth * frame


def vae_memory(config: VAEConfig, plan: ChunkPlan, size: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
    """(carried, peak) bytes of the VAE for pixels of ``size`` (height, width), encoding and decoding."""
    vae = CausalVAE(config, device="meta", dtype=dtype)
    height, width = size
    video = torch.empty(1, 3, plan.pixel_frames(0), height, width, device="meta", dtype=dtype)
    latents, encoder = vae.encode(video)
    delay = stream_decoder(vae).delay_latents
    if delay:
        # What a decoder that lags carries is all there once its first frames come.
        latents = latents[:, :, :1].expand(-1, -1, 1 + delay, -1, -1)
    _, decoder = stream_decoder(vae).decode(latents)
    carried = sum(value.numel() * value.element_size() for value in (*encoder.values(), *decoder.values()))
    frames = max(plan.pixel_frames(0), 1 + delay * config.temporal_factor)
    return carried, _vae_work(config, frames, size, dtype)


def clip_vae_memory(
    config: VAEConfig, num_latents: int, size: tuple[int, int], tiles: SpatialTiles | None, dtype: torch.dtype
) -> int:
    """Peak bytes of encoding or decoding a clip of ``num_latents`` latent frames and pixels of ``size`` as a whole.

    With ``tiles`` one tile is worked on at a time; the clip itself is there in full.
    """
    frames = 1 + config.temporal_factor * (num_latents - 1)
    clip = config.out_channels * frames * size[0] * size[1] * dtype.itemsize
    tile = size if tiles is None else (min(size[0], tiles.size), min(size[1], tiles.size))
    carried, work = vae_memory(config, ChunkPlan(frames, config.temporal_factor), tile, dtype)
    if not config.decoder_causal:
        work = max(work, _vae_work(config, frames, tile, dtype))
    # The finished part and the tile that is put into it are two.
    return 2 * clip + carried + work


def _vae_work(config: VAEConfig, num_frames: int, size: tuple[int, int], dtype: torch.dtype) -> int:
    """Peak bytes of one call on ``num_frames`` pixel frames of ``size``."""
    cells = num_frames * (size[0] // config.patch_size) * (size[1] // config.patch_size)
    decoder_width = config.decoder_block_out_channels[0] // config.upsample_factor[0]
    widest = max(config.latent_channels, decoder_width) * cells * dtype.itemsize
    return VAE_LIVE_TENSORS * widest


def stream_memory(
    model: DiTConfig,
    vae: VAEConfig,
    plan: ChunkPlan,
    size: tuple[int, int],
    options: StreamOptions,
    model_dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> StreamMemory:
    """What editing a video of ``size`` (height, width) needs beside the weights."""
    grid = (size[0] // vae.spatial_factor, size[1] // vae.spatial_factor)
    return StreamMemory(*dit_memory(model, plan, grid, options, model_dtype), *vae_memory(vae, plan, size, vae_dtype))
