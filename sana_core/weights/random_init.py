"""Random weights of plausible size, by seed: for toys, for speed and for memory. They edit nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..config import DiTConfig, VAEConfig
from ..models.attention import AttentionLayout
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from .checkpoint import fingerprint
from .dit import official_state

# (mean, deviation) of parameters that are not matrices, by the end of their name; matrices get 1 / sqrt(fan-in).
_VECTORS = {
    "A_log": (0.2, 0.4),
    "dt_bias": (-1.2, 0.35),
    "norm.weight": (1.0, 0.25),
    "scale_shift_table": (0.0, 0.35),
    "bias": (0.0, 0.1),
}


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Fills every parameter in place, in the order of their names, from one generator on the module's device."""
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        vector = next((value for end, value in _VECTORS.items() if name.endswith(end)), None)
        mean, deviation = vector or (0.0, 1 / math.sqrt(parameter[0].numel()))
        parameter.normal_(mean, deviation, generator=generator)


def random_dit(
    config: DiTConfig,
    seed: int = 0,
    *,
    layout: AttentionLayout = "fused",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SanaStreamingDiT:
    """A frozen transformer of random weights."""
    model = SanaStreamingDiT(config, layout=layout, device=device, dtype=dtype)
    randomize(model, seed)
    if layout == "fused":
        _clear_unused_biases(model)
    model.fingerprint = fingerprint(dict(official_state(model)))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _clear_unused_biases(model: SanaStreamingDiT) -> None:
    """Only the gate's quarter of a fused bias exists in the release's layout."""
    for name, parameter in model.named_parameters():
        if name.endswith("qkvg.bias"):
            parameter[: 3 * model.config.hidden_size] = 0


def random_vae(
    config: VAEConfig, seed: int = 0, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CausalVAE:
    """A frozen VAE of random weights."""
    vae = CausalVAE(config, device=device, dtype=dtype)
    randomize(vae, seed)
    vae.fingerprint = fingerprint(vae.state_dict())
    return vae.eval().requires_grad_(False).arrange()


class RandomPrompts:
    """Stands in for a text encoder where there is none: embeddings that depend on nothing but the text."""

    def __init__(
        self, channels: int, max_tokens: int, num_tokens: int = 24, dtype: torch.dtype = torch.float32
    ) -> None:
        self.shape = (num_tokens, channels)
        self.max_tokens = max_tokens
        self.dtype = dtype

    def encode(self, prompt: str) -> PromptEmbedding:
        generator = torch.Generator().manual_seed(sum(prompt.encode()))
        rows = torch.randn(self.shape, generator=generator).to(self.dtype)
        return PromptEmbedding.from_rows(rows, self.max_tokens)

    encode_negative = encode

    def unload(self) -> None:
        """Nothing is loaded."""


def toy_configs(caption_channels: int) -> dict[str, Any]:
    """Sizes of the toy: the real classes, head dimension 112, both kinds of block, spatial factor 32."""
    channels = 16
    return {
        "dit": DiTConfig(
            depth=4,
            hidden_size=224,
            num_heads=2,
            in_channels=channels,
            source_channels=channels,
            caption_channels=caption_channels,
            mlp_ratio=2.0,
            softmax_layers=(3,),
            pos_embed_size=1,
        ),
        "vae": VAEConfig(
            latent_channels=channels,
            block_out_channels=(16, 32, 32, 64),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_block_out_channels=(16, 32, 64),
            decoder_layers_per_block=(1, 1, 1, 1),
            decoder_causal=True,
        ),
    }
