"""Socket types of the pack and what travels over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.models.causal_vae import CausalVAE
from ..sana_core.models.dit import SanaStreamingDiT
from . import comfy_host

Model = io.Custom("SANA_STREAMING_MODEL")
VAE = io.Custom("SANA_STREAMING_VAE")
TextEncoder = io.Custom("SANA_STREAMING_TEXT_ENCODER")
State = io.Custom("SANA_STREAMING_STATE")
# Name of the latent space that all VAEs of the LTX-2 sizes share, and its channels.
LTX2_SPACE, LTX2_CHANNELS = "ltx2", 128
# A :class:`~..sana_core.precision.plan.Plan`.
Plan = io.Custom("SANA_STREAMING_PLAN")


@dataclass(frozen=True)
class LoadedModel:
    """A transformer under ComfyUI's memory management; ``patcher`` is how ComfyUI knows it.

    mix: fingerprint of the weights with the LoRAs that the patcher has; empty without.
    """

    patcher: Any
    mix: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the weights that are in force, by which a stream's state knows them."""
        return self.mix or self.network.fingerprint

    def is_dynamic(self) -> bool:
        """Asked by ComfyUI's cache, which keeps models whose weights it can page."""
        return comfy_host.is_dynamic(self.patcher)

    @property
    def network(self) -> SanaStreamingDiT:
        return self.patcher.model

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device


@dataclass(frozen=True)
class LoadedVAE:
    """A VAE under ComfyUI's memory management."""

    patcher: Any

    def is_dynamic(self) -> bool:
        """As for the model."""
        return comfy_host.is_dynamic(self.patcher)

    @property
    def network(self) -> CausalVAE:
        return self.patcher.model

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def space(self) -> str:
        """Name of the latent space: every VAE of the LTX-2 sizes shares one, any other has its own."""
        config = self.network.config
        sizes = (config.latent_channels, config.spatial_factor, config.temporal_factor)
        return LTX2_SPACE if sizes == (LTX2_CHANNELS, 32, 8) else self.network.fingerprint
