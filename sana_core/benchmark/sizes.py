"""What the rows are measured at: frame sizes, networks, and the random tensors they need."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..config import DiTConfig, VAEConfig, read_json
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..streaming.chunks import CHUNK_LATENTS, LIVE_FIRST_LATENTS
from ..weights import nano
from ..weights.dit import load_dit
from ..weights.random_init import random_dit, random_vae
from ..weights.vae import load_vae
from .counts import Tokens

NANO = "nano"
# Latent frames of the sink and of the one chunk before, which softmax blocks read beside their own chunk: 11 in all.
CACHED_FRAMES = LIVE_FIRST_LATENTS + CHUNK_LATENTS


@dataclass(frozen=True)
class Size:
    """Pixels of a frame, and the networks that rows use at this size: ``2b``, ``two-blocks`` of it, or ``nano``."""

    name: str
    height: int
    width: int
    networks: str

    @property
    def dit(self) -> DiTConfig:
        if self.networks == NANO:
            return DiTConfig.from_dict(read_json(nano.nano_folder() / "dit" / "config.json"))
        return DiTConfig() if self.networks == "2b" else DiTConfig(depth=2, softmax_layers=(1,))

    @property
    def vae(self) -> VAEConfig:
        if self.networks == NANO:
            return VAEConfig.from_dict(read_json(nano.nano_folder() / "vae" / "config.json"))
        return VAEConfig(decoder_causal=True)

    @property
    def grid(self) -> tuple[int, int]:
        """Latent rows and columns."""
        factor = self.vae.spatial_factor
        return self.height // factor, self.width // factor

    def tokens(self, dtype: torch.dtype, frames: int = CHUNK_LATENTS) -> Tokens:
        return Tokens(frames, *self.grid, dtype.itemsize)


SIZES = {
    size.name: size
    for size in (
        Size("704x1280", 704, 1280, "2b"),
        Size("384x640", 384, 640, "2b"),
        Size("256x448", 256, 448, "two-blocks"),
        Size("160x256", 160, 256, NANO),
    )
}


@dataclass
class Bench:
    """Where and how rows are measured. ``budget``: seconds for each implementation of a row. Makes networks once each."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    budget: float = 1.0
    _models: dict[str, SanaStreamingDiT] = field(default_factory=dict)
    _vaes: dict[str, CausalVAE] = field(default_factory=dict)

    @classmethod
    def on(cls, device: torch.device, seed: int = 0, budget: float = 1.0) -> Bench:
        """In bfloat16 on a GPU, in float32 on the CPU, which has no fast bfloat16 to speak of."""
        return cls(device, torch.float32 if device.type == "cpu" else torch.bfloat16, seed, budget)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is measured: on a GPU only."""
        return self.device.type == "cuda"

    def random(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal values of the run's seed and the shape."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        values = torch.randn(shape, generator=generator, device=self.device) * scale
        return values.to(dtype or self.dtype)

    def model(self, size: Size) -> SanaStreamingDiT:
        """The size's transformer: random weights, or the built-in ones of nano."""
        if size.networks not in self._models:
            self._models[size.networks] = (
                load_dit(nano.nano_folder() / "dit", device=self.device, dtype=self.dtype)
                if size.networks == NANO
                else random_dit(size.dit, self.seed, device=self.device, dtype=self.dtype)
            )
        return self._models[size.networks]

    def vae(self, size: Size) -> CausalVAE:
        """The size's VAE, with a causal decoder."""
        if size.networks not in self._vaes:
            self._vaes[size.networks] = (
                load_vae(nano.nano_folder() / "vae", device=self.device, dtype=self.dtype)
                if size.networks == NANO
                else random_vae(size.vae, self.seed, device=self.device, dtype=self.dtype)
            )
        return self._vaes[size.networks]
