"""Latents of a whole clip beside its stream: given instead of encoded frames and drawn noise, or kept as they come.

Knows tensors and shapes; files of them are `..exchange`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class ClipLatents:
    """Latents of a whole clip as the transformer takes them: each float32 [1, C, T, h, w].

    noise: what sampling began from. source: the encoded source video. result: what sampling gave.
    """

    noise: Tensor
    source: Tensor
    result: Tensor

    def check(self, channels: int, num_latents: int, grid: tuple[int, int]) -> None:
        """InputError unless they are those of ``num_latents`` latent frames of ``grid`` (rows, columns) for a network of
        ``channels``."""
        found, rows = self.source.shape[1:3], tuple(self.source.shape[3:])
        if found[0] != channels:
            raise InputError(
                f"the given latents have {found[0]} channels, the model {channels}; use latents of the same VAE"
            )
        check_num_latents(self, num_latents)
        if rows != tuple(grid):
            raise InputError(
                f"the given latents are of {rows[0]}x{rows[1]}, the clip is of {grid[0]}x{grid[1]}; "
                "set height and width to those of the saved run"
            )


def check_num_latents(latents: ClipLatents, num_latents: int, temporal_factor: int = 8) -> None:
    """InputError unless ``latents`` are as long as a clip of ``num_latents`` latent frames."""
    found = latents.source.shape[2]
    if found != num_latents:
        frames = 1 + temporal_factor * (found - 1)
        raise InputError(
            f"the given latents are of {found} latent frames, the clip of {num_latents}; take in as many frames as the saved "
            f"run did (max_frames {max(1, frames - temporal_factor + 1)} to {frames}), from the same first frame on"
        )


class LatentsRecorder:
    """Keeps noise, source and result of every chunk on the CPU, float32: it grows with the clip.

    At the release's size (704 x 1280, 128 channels) that is 1.4 MB per latent frame.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def num_latents(self) -> int:
        """Latent frames kept so far."""
        return sum(result.shape[2] for _, _, result in self._parts)

    def add(self, noise: Tensor, source: Tensor, result: Tensor) -> None:
        """The next chunk's, each [1, C, T, h, w]; copied."""
        noise, source, result = (part.to("cpu", torch.float32, copy=True) for part in (noise, source, result))
        self._parts.append((noise, source, result))

    def latents(self) -> ClipLatents:
        """All chunks so far, joined. Raises ValueError before the first."""
        if not self._parts:
            raise ValueError("no chunk was recorded")
        noise, source, result = (torch.cat(parts, 2) for parts in zip(*self._parts, strict=True))
        return ClipLatents(noise, source, result)
