"""A whole clip through the video VAE in overlapping spatial tiles, or in one piece, with little memory.

Tiles are encoded and decoded one after another, blended where they overlap and put into the result at once; of a finished
tile only the strips that its neighbours are blended with are kept. Source: ``docs/model.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .causal_vae import CausalVAE, VAEState

# Latent frames per VAE call where a clip is worked through in time.
CALL_LATENTS = 3
# Reflecting the edge of a tile takes the latent row beside it.
MIN_TILE_ROWS = 2

# Called before each tile with (tile number, tiles); stops the work by raising.
OnTile = Callable[[int, int], None]


class Span(NamedTuple):
    """Latent rows or columns of a tile: it covers ``start`` to ``stop`` and gives the result those before ``end``."""

    start: int
    stop: int
    end: int

    def scaled(self, scale: int) -> Span:
        """The same in units of which a latent row has ``scale``."""
        return Span(self.start * scale, self.stop * scale, self.end * scale)


@dataclass(frozen=True)
class SpatialTiles:
    """Tiles of ``size`` x ``size`` pixels, one every ``stride``; the defaults are the release's.

    Both are multiples of the VAE's spatial factor. Tiles at the lower and the right border are cut, not moved. A frame whose
    sides are both at most ``size`` is one tile.
    """

    size: int = 512
    stride: int = 448

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.size:
            raise InputError(f"tile stride {self.stride} leaves gaps or no tile; use 1 to the tile size, {self.size}")

    def spans(self, length: int, factor: int) -> list[Span]:
        """Tiles along ``length`` latent rows or columns of ``factor`` pixels each."""
        if self.size % factor or self.stride % factor or self.size < MIN_TILE_ROWS * factor:
            raise InputError(
                f"tiles of {self.size} every {self.stride} pixels do not fit the VAE; "
                f"use multiples of {factor}, {MIN_TILE_ROWS * factor} or more for the size"
            )
        size, stride = self.size // factor, self.stride // factor
        starts = list(range(0, length, stride))
        # A rest that is too thin for a tile of its own goes to the tile before it.
        if len(starts) > 1 and length - starts[-1] < MIN_TILE_ROWS:
            starts.pop()
        stops = [*(min(start + size, length) for start in starts[:-1]), length]
        return [Span(*span) for span in zip(starts, stops, [*starts[1:], length], strict=True)]


RELEASE_TILES = SpatialTiles()


class TileGrid(NamedTuple):
    """Rows and columns of tiles; ``overlap`` is how many latent rows or columns neighbours are blended over."""

    rows: list[Span]
    columns: list[Span]
    overlap: int

    @property
    def num_tiles(self) -> int:
        return len(self.rows) * len(self.columns)


def tile_grid(vae: CausalVAE, height: int, width: int, tiles: SpatialTiles | None) -> TileGrid:
    """The tiles of a frame of ``height`` x ``width`` pixels; one for the whole frame where ``tiles`` is None."""
    factor = vae.config.spatial_factor
    rows, columns = height // factor, width // factor
    if tiles is None or max(height, width) <= tiles.size:
        return TileGrid([Span(0, rows, rows)], [Span(0, columns, columns)], 0)
    overlap = (tiles.size - tiles.stride) // factor
    return TileGrid(tiles.spans(rows, factor), tiles.spans(columns, factor), overlap)


@torch.no_grad()
def encode_tiled(
    vae: CausalVAE, video: Tensor, tiles: SpatialTiles | None = None, *, on_tile: OnTile | None = None
) -> Tensor:
    """Normalised latents [B, C, T, h, w] of a clip [B, 3, F, H, W] in [-1, 1], F = 1 + 8 (T - 1).

    Each tile goes through the encoder as a stream, so the memory it takes does not grow with F. ``tiles`` None encodes the
    whole frame. Raises InputError for shapes that the VAE does not take.
    """
    factor, step = vae.config.spatial_factor, vae.config.temporal_factor
    if video.ndim != 5 or (video.shape[2] - 1) % step or video.shape[-2] % factor or video.shape[-1] % factor:
        raise InputError(
            f"video has shape {tuple(video.shape)}; whole clips are [B, 3, F, H, W] with F = 1 + {step}k, H and W multiples "
            f"of {factor}: pad, resize or crop it"
        )

    def encode(rows: Span, columns: Span) -> Tensor:
        (top, bottom, _), (left, right, _) = rows.scaled(factor), columns.scaled(factor)
        return _encode_clip(vae, video[..., top:bottom, left:right])

    height, width = video.shape[-2:]
    return _assemble(tile_grid(vae, height, width, tiles), 1, encode, on_tile)


@torch.no_grad()
def decode_tiled(
    vae: CausalVAE, latents: Tensor, tiles: SpatialTiles | None = None, *, on_tile: OnTile | None = None
) -> Tensor:
    """Pixels [B, 3, F, H, W] of a clip of normalised latents [B, C, T, h, w], about -1 to 1, not clamped.

    A causal decoder goes through each tile as a stream; one that is not sees all frames of a tile at once. ``tiles`` None
    decodes the whole frame. Raises InputError for shapes that the VAE does not take.
    """
    factor = vae.config.spatial_factor
    vae.check_latents(latents)

    def decode(rows: Span, columns: Span) -> Tensor:
        return _decode_clip(vae, latents[..., rows.start : rows.stop, columns.start : columns.stop])

    height, width = (side * factor for side in latents.shape[-2:])
    return _assemble(tile_grid(vae, height, width, tiles), factor, decode, on_tile)


def blend(before: Tensor, after: Tensor, extent: int, dim: int) -> None:
    """Fades ``before`` into ``after``, in place: its last lines along ``dim`` into the first ones of ``after``.

    Over ``extent`` lines or as many as both have, the weight of ``after`` rises from 0 in steps of one over that number.
    """
    lines = min(before.shape[dim], after.shape[dim], extent)
    if lines:
        old, new = before.narrow(dim, before.shape[dim] - lines, lines), after.narrow(dim, 0, lines)
        weight = torch.arange(lines, device=after.device) / lines
        weight = weight.unflatten(0, (-1, *[1] * (after.ndim - 1 - dim % after.ndim)))
        new.copy_(old * (1 - weight) + new * weight)


def _assemble(grid: TileGrid, scale: int, run: Callable[[Span, Span], Tensor], on_tile: OnTile | None) -> Tensor:
    """The blended result of ``run`` on all tiles, each latent row or column of which is ``scale`` in the result."""
    overlap = grid.overlap * scale
    above: list[Tensor | None] = [None] * len(grid.columns)
    canvas: Tensor | None = None
    for row, rows in enumerate(grid.rows):
        left: Tensor | None = None
        for column, columns in enumerate(grid.columns):
            if on_tile is not None:
                on_tile(row * len(grid.columns) + column, grid.num_tiles)
            tile = run(rows, columns)
            if grid.num_tiles == 1:
                return tile
            if (upper := above[column]) is not None:
                blend(upper, tile, overlap, -2)
            if left is not None:
                blend(left, tile, overlap, -1)
            above[column], left = _last_lines(tile, overlap, -2), _last_lines(tile, overlap, -1)
            if canvas is None:
                canvas = tile.new_empty(*tile.shape[:-2], grid.rows[-1].end * scale, grid.columns[-1].end * scale)
            (top, _, bottom), (start, _, end) = rows.scaled(scale), columns.scaled(scale)
            canvas[..., top:bottom, start:end] = tile[..., : bottom - top, : end - start]
            del tile
    assert canvas is not None
    return canvas


def _last_lines(tile: Tensor, lines: int, dim: int) -> Tensor:
    """A copy of the last ``lines`` rows or columns, so that the rest of the tile is let go."""
    lines = min(lines, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - lines, lines).clone()


def _encode_clip(vae: CausalVAE, video: Tensor) -> Tensor:
    step = CALL_LATENTS * vae.config.temporal_factor
    latents: list[Tensor] = []
    state: VAEState = {}
    # The first call takes the single first frame on top, so that no call ends inside a latent frame.
    for start, stop in _calls(video.shape[2], 1 + step, step):
        piece, state = vae.encode(video[:, :, start:stop], state)
        latents.append(piece)
    return torch.cat(latents, 2)


def _decode_clip(vae: CausalVAE, latents: Tensor) -> Tensor:
    if not vae.decodes_causally:
        return vae.decode_noncausal(latents)
    pixels: list[Tensor] = []
    state: VAEState = {}
    for start, stop in _calls(latents.shape[2], CALL_LATENTS, CALL_LATENTS):
        piece, state = vae.decode(latents[:, :, start:stop], state)
        pixels.append(piece)
    return torch.cat(pixels, 2)


def _calls(length: int, first: int, following: int) -> list[tuple[int, int]]:
    """(start, stop) of the calls that ``length`` frames are cut into."""
    borders = [0, *range(first, length, following), length]
    return list(itertools.pairwise(borders))
