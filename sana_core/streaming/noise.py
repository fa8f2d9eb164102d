"""Where the initial noise of each chunk comes from."""

from __future__ import annotations

import hashlib

import torch

from ..errors import InputError
from .options import StreamOptions


class ChunkNoise:
    """Standard normal float32 noise, a pure function of seed, mode, length and size.

    In ``clip`` mode the noise of the whole clip is drawn once, at the first call, and sliced.
    """

    def __init__(self, options: StreamOptions, total_latents: int | None, frame_shape: tuple[int, int, int]) -> None:
        """``frame_shape`` is (channels, latent rows, latent columns)."""
        self.mode = options.noise_mode(total_latents)
        self._seed = options.seed
        self._device = _generator_device(options.noise_device)
        self._total_latents = total_latents
        self._frame_shape = frame_shape
        self._clip: torch.Tensor | None = None

    def draw(self, chunk: int, start: int, num_frames: int) -> torch.Tensor:
        """Noise [1, C, num_frames, H, W] of ``chunk``, whose first latent frame is ``start``."""
        if self.mode == "chunk":
            return self._normal(chunk_seed(self._seed, chunk), num_frames)
        if self._clip is None:
            assert self._total_latents is not None
            self._clip = self._normal(self._seed, self._total_latents)
        return self._clip[:, :, start : start + num_frames]

    def _normal(self, seed: int, num_frames: int) -> torch.Tensor:
        channels, height, width = self._frame_shape
        generator = torch.Generator(self._device).manual_seed(seed)
        shape = (1, channels, num_frames, height, width)
        return torch.randn(shape, generator=generator, device=self._device, dtype=torch.float32)


def chunk_seed(seed: int, chunk: int) -> int:
    """Seed of one chunk's generator, 0 to 2**63 - 1."""
    digest = hashlib.sha256(f"{seed}:{chunk}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _generator_device(name: str) -> torch.device:
    try:
        return torch.Generator(name).device
    except RuntimeError as error:
        raise InputError(
            f"noise_device {name!r} cannot draw noise here; use cpu, or cuda where there is a GPU"
        ) from error
