"""Procedural clips in a made-up latent space, with exact edits, exact inverses, and known motion. No VAE, no files.

A torus of 8 x 8 latent pixels: a moving texture, three moving blobs before it. Everything moves by whole pixels, so a frame
follows from the one before by a warp without interpolation, save for what comes out from behind something. All draws
follow from the seed; training and test have appearances of their own.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "test"]
EDITS = ("style", "recolour", "background")
"""What can be done: mix all channels anew; give blob 0 another colour; put the background behind a fog."""

CHANNELS, SIZE, NUM_BLOBS = 4, 8, 3
TEXT_TOKENS, TEXT_CHANNELS = 4, 32
# Appearances to choose from, of each kind.
BANK = {"train": 64, "test": 16}

# Rows: the colours of blobs 0 to 2, and the one that blob 0 gets.
_COLOURS = torch.tensor(
    [[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]]
)
_STYLE_ORDER = [1, 2, 3, 0]
_STYLE_OFFSET = torch.tensor([0.5, -0.5, 0.5, -0.5])
_FOG_COLOUR = torch.tensor([0.8, 0.8, 0.8, 0.8])
_FOG_CLARITY = 0.3
_TEXTURE, _BLOB_TEXTURE = 0.5, 0.25
# Half the side of the square that a blob fits in.
_REACH = 2


def derived_seed(*parts: str | int) -> int:
    """A seed, 0 to 2**63 - 1, that depends on all ``parts`` and nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(*parts: str | int) -> torch.Generator:
    """The generator of :func:`derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class Clips:
    """A batch of clips with their true edits.

    Attributes:
        source, target: latents float32 [B, C, T, H, W]; target is the true edit.
        edits: index in :data:`EDITS` [B].
        touched: bool [B, 1, T, H, W], the pixels that the edit may change.
        landing: where each pixel is one frame later, as row * W + column, [B, T - 1, H * W].
        visible: bool [B, T - 1, H * W], the pixel is not covered there.
    """

    source: Tensor
    target: Tensor
    edits: Tensor
    touched: Tensor
    landing: Tensor
    visible: Tensor


@functools.cache
def prompt_bank() -> Tensor:
    """Embeddings float32 [2, edits, tokens, channels] of unit variance: row 0 the instructions, row 1 the reverse ones."""
    rows = torch.randn(2, len(EDITS), TEXT_TOKENS, TEXT_CHANNELS, generator=seeded("instructions"))
    return torch.nn.functional.normalize(rows, dim=-1) * TEXT_CHANNELS**0.5


def make_clips(split: Split, seed: int, count: int, num_frames: int) -> Clips:
    """``count`` clips of ``num_frames`` latent frames; clip i gets edit ``i % 3``, so all are as frequent."""
    generator = seeded(split, seed)
    content, cover, shade = _draw_planes(split, generator, count)
    velocity = _draw_velocities(generator, count)
    start = torch.randint(SIZE, (count, NUM_BLOBS + 1, 1, 2), generator=generator)
    offset = start + torch.arange(num_frames)[:, None] * velocity[:, :, None]
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"), -1)
    # Which pixel of its own plane each layer shows at each pixel of each frame [B, layers, T, H * W].
    own = _flat_index((grid - offset[..., None, None, :]) % SIZE)
    content, cover, shade = (_look_up(planes, own) for planes in (content, cover, shade))
    # The layer of the highest number is in front; layer 0, the background, covers everything.
    top = (cover * torch.arange(1, NUM_BLOBS + 2).view(1, -1, 1, 1, 1)).argmax(1, keepdim=True)
    shape = (count, CHANNELS, num_frames, SIZE, SIZE)
    source = content.gather(1, top.expand(-1, -1, CHANNELS, -1, -1)).view(shape)
    shade = shade.gather(1, top).view(count, 1, *shape[2:])
    layer = top.view(count, num_frames, SIZE * SIZE)
    edits = torch.arange(count) % len(EDITS)
    target, touched = _edit(source, layer.view(count, 1, *shape[2:]), shade, edits)
    landing, visible = _motion(layer, velocity, grid)
    return Clips(source, target, edits, touched, landing, visible)


@functools.cache
def _bank(split: Split) -> tuple[Tensor, Tensor]:
    """Textures of backgrounds [n, C, H, W] and of blobs [n, C, 5, 5], smooth and of fixed contrast."""
    generator, count, side = seeded("bank", split), BANK[split], 2 * _REACH + 1
    textures = []
    for size, contrast in ((SIZE, _TEXTURE), (side, _BLOB_TEXTURE)):
        texture = torch.randn(count, CHANNELS, size, size, generator=generator)
        for axis in (-2, -1):
            texture = texture / 2 + (texture.roll(1, axis) + texture.roll(-1, axis)) / 4
        textures.append(contrast * texture / texture.std((-2, -1), keepdim=True))
    return textures[0], textures[1]


def _draw_planes(split: Split, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Content [B, layers, C, H, W], cover and shade [B, layers, 1, H, W] of each layer at rest.

    Shade says how much of its colour a blob shows at a pixel; the rest of the content is texture.
    """
    grounds, grains = _bank(split)
    side = torch.arange(-_REACH, _REACH + 1)
    squared_distance = side[:, None] ** 2 + side**2
    squared_radius = torch.randint(2, 5, (count, NUM_BLOBS, 1, 1, 1), generator=generator)
    grain = grains[torch.randint(len(grains), (count, NUM_BLOBS), generator=generator)]
    stamp = 1 - 0.1 * squared_distance.float()
    planes = [torch.zeros(count, NUM_BLOBS + 1, channels, SIZE, SIZE) for channels in (CHANNELS, 1, 1)]
    content, cover, shade = planes
    content[:, 0] = grounds[torch.randint(len(grounds), (count,), generator=generator)]
    cover[:, 0] = 1
    inside = slice(0, len(side))
    content[:, 1:, :, inside, inside] = _COLOURS[:NUM_BLOBS, :, None, None] * stamp + grain
    cover[:, 1:, :, inside, inside] = (squared_distance <= squared_radius).float()
    shade[:, 1:, :, inside, inside] = stamp
    return content, cover, shade


def _draw_velocities(generator: torch.Generator, count: int) -> Tensor:
    """Rows and columns per frame [B, layers, 2], -1 to 1 each; every layer moves."""
    steps = torch.tensor([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column])
    return steps[torch.randint(len(steps), (count, NUM_BLOBS + 1), generator=generator)]


def _flat_index(points: Tensor) -> Tensor:
    """(row, column) [..., H, W, 2] as row * W + column [..., H * W]."""
    return (points[..., 0] * SIZE + points[..., 1]).flatten(-2)


def _look_up(planes: Tensor, own: Tensor) -> Tensor:
    """Planes [B, layers, c, H, W] at the pixels ``own`` [B, layers, T, H * W], as [B, layers, c, T, H * W]."""
    count, layers, channels = planes.shape[:3]
    index = own[:, :, None].expand(-1, -1, channels, -1, -1)
    flat = planes.flatten(-2)[:, :, :, None].expand(count, layers, channels, own.shape[2], -1)
    return flat.gather(-1, index)


def _edit(source: Tensor, layer: Tensor, shade: Tensor, edits: Tensor) -> tuple[Tensor, Tensor]:
    """(target, touched) of every clip by its own edit; layer and shade [B, 1, T, H, W]."""

    def colour(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1, 1)

    style = source[:, _STYLE_ORDER] + colour(_STYLE_OFFSET)
    recoloured = source + colour(_COLOURS[NUM_BLOBS] - _COLOURS[0]) * shade
    fogged = _FOG_CLARITY * source + colour(_FOG_COLOUR)
    all_masks = torch.stack([torch.ones_like(layer, dtype=torch.bool), layer == 1, layer == 0])
    clip = torch.arange(len(edits))
    touched = all_masks[edits, clip]
    return torch.where(touched, torch.stack([style, recoloured, fogged])[edits, clip], source), touched


def _motion(layer: Tensor, velocity: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """(landing, visible) from the layer seen at each pixel [B, T, H * W] and the layers' velocities [B, layers, 2]."""
    before, after = layer[:, :-1], layer[:, 1:]
    clip = torch.arange(len(layer)).view(-1, 1, 1)
    landing = (grid.flatten(0, 1) + velocity[clip, before]) % SIZE
    landing = landing[..., 0] * SIZE + landing[..., 1]
    return landing, after.gather(-1, landing) == before
