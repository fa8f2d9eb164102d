"""What the VAE does with a chunk in the middle of a stream, stage by stage, by arithmetic on its config alone.

Convolutions are counted as :func:`.counts.vae_work` counts them, which runs the network on tensors without storage. The
rest is what a well-fused form moves: a norm reads its input and writes it behind its history, with the border its
convolution needs; a residual block reads its input once more for the skip; a sampler's shuffle reads the convolution's
output and the shortcut and writes their sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import SAMPLER_STRIDES, VAEConfig
from ..models.vae_layers import CONTEXT_FRAMES
from .counts import Part, Work, vae_norm_work

KERNEL = 27


@dataclass(frozen=True)
class _Level:
    """A tensor's size, and the reflected border that convolutions see around it."""

    channels: int
    frames: int
    rows: int
    columns: int
    border: int
    item: int

    @property
    def values(self) -> int:
        return self.channels * self.frames * self.rows * self.columns

    @property
    def size(self) -> str:
        return f"{self.channels} channels, {self.frames} x {self.rows} x {self.columns}"

    def conv(self, channels: int) -> Work:
        """A 3x3x3 convolution to ``channels``: input with context and border, weights and bias in, output out."""
        edge = 2 * self.border
        read = self.channels * (self.frames + CONTEXT_FRAMES) * (self.rows + edge) * (self.columns + edge)
        written = channels * self.frames * self.rows * self.columns
        weights = channels * (KERNEL * self.channels + 1)
        return Work((read + written + weights) * self.item, 2 * KERNEL * self.channels * written)

    def norm(self) -> Work:
        """Norm and SiLU in front of a convolution, with its history."""
        sizes = (self.channels, self.frames, self.rows, self.columns, CONTEXT_FRAMES, self.item, self.border)
        return replace(vae_norm_work(*sizes), flops=0)

    def reads(self, number: int = 1) -> Work:
        """So many reads or writes of the tensor."""
        return Work(number * self.values * self.item, 0)

    def strided(self, channels: int, stride: tuple[int, int, int], down: bool) -> _Level:
        """After a sampler."""
        sides = (self.frames, self.rows, self.columns)
        frames, rows, columns = (
            side // step if down else side * step for side, step in zip(sides, stride, strict=True)
        )
        return replace(self, channels=channels, frames=frames, rows=rows, columns=columns)


def encode_parts(config: VAEConfig, height: int, width: int, num_latents: int, item: int) -> tuple[Part, ...]:
    """The encoder on the frames of ``num_latents`` latent frames."""
    frames, patch = num_latents * config.temporal_factor, config.patch_size
    border = int(config.encoder_spatial_padding_mode == "reflect")
    level = _Level(config.in_channels * patch**2, frames, height // patch, width // patch, border, item)
    parts = [_convolution("encode: first", level.conv(config.latent_channels))]
    level = replace(level, channels=config.latent_channels)
    kinds = zip(config.block_out_channels, config.downsample_type, config.layers_per_block[:-1], strict=True)
    for number, (target, kind, layers) in enumerate(kinds):
        parts += _residual_blocks(f"encode: down {number}", level, layers)
        stride = SAMPLER_STRIDES[kind]
        after = level.strided(target, stride, down=True)
        parts.append(_convolution(f"encode: down-sampler {number}", level.conv(target // math.prod(stride))))
        parts.append(_shuffle(f"encode: down-sampler {number}", level, after))
        level = after
    parts += _residual_blocks("encode: middle", level, config.layers_per_block[-1])
    return (*parts, *_last("encode: last", level, config.latent_channels + 1))


def decode_parts(config: VAEConfig, height: int, width: int, num_latents: int, item: int) -> tuple[Part, ...]:
    """The causal decoder on ``num_latents`` latent frames."""
    factor = config.spatial_factor
    border = int(config.decoder_spatial_padding_mode == "reflect")
    level = _Level(config.latent_channels, num_latents, height // factor, width // factor, border, item)
    widest = config.decoder_block_out_channels[-1]
    parts = [_convolution("decode: first", level.conv(widest))]
    level = replace(level, channels=widest)
    parts += _residual_blocks("decode: middle", level, config.decoder_layers_per_block[-1])
    kinds = zip(
        reversed(config.decoder_upsample_type),
        reversed(config.upsample_factor),
        reversed(config.upsample_residual),
        reversed(config.decoder_layers_per_block[:-1]),
        strict=True,
    )
    for number, (kind, less, shortcut, layers) in enumerate(kinds):
        stride = SAMPLER_STRIDES[kind]
        after = level.strided(level.channels // less, stride, down=False)
        parts.append(
            _convolution(f"decode: up-sampler {number}", level.conv(level.channels * math.prod(stride) // less))
        )
        parts.append(_shuffle(f"decode: up-sampler {number}", level, after, shortcut))
        level = after
        parts += _residual_blocks(f"decode: up {number}", level, layers)
    return (*parts, *_last("decode: last", level, config.out_channels * config.patch_size**2))


def _convolution(name: str, work: Work, calls: int = 1) -> Part:
    return Part(name, "convolution", replace(work, calls=calls))


def _residual_blocks(name: str, level: _Level, layers: int) -> list[Part]:
    """Two normed convolutions each, and a skip."""
    name = f"{name}, {level.size}"
    return [
        _convolution(name, level.conv(level.channels), 2 * layers),
        Part(name, "elementwise", replace(level.norm(), calls=2 * layers)),
        Part(name, "elementwise", replace(level.reads(), calls=layers)),
    ]


def _shuffle(name: str, before: _Level, after: _Level, shortcut: bool = True) -> Part:
    moved = after.reads(2).bytes + (before.reads().bytes if shortcut else 0)
    return Part(name, "elementwise", Work(moved, 0))


def _last(name: str, level: _Level, channels: int) -> list[Part]:
    return [Part(name, "elementwise", level.norm()), _convolution(name, level.conv(channels))]
