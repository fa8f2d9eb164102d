"""The video VAE with its residual stream multiplied by a constant, for number formats of small range.

All of it is in the weights: every residual branch and both last convolutions begin with an RMS norm, which takes any constant
out again. Nothing here is in use; whether a format is good enough is for measurements on trained weights to say.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from .causal_vae import CausalVAE
from .vae_layers import Downsampler, ResidualBlock, Upsampler


@torch.no_grad()
def scaled_weights(vae: CausalVAE, encoder: float = 1.0, decoder: float = 1.0) -> dict[str, Tensor]:
    """The state dict of a VAE of the same results whose residual streams are ``encoder`` and ``decoder`` times as large.

    The factors are positive; one for each direction, because the shortcuts around down- and up-samplers have no weights that
    could go from one factor to another. With powers of two nothing is rounded, short of under- and overflow. The only
    difference is the epsilon 1e-8 of the norms, which weighs 1 / factor^2 as much beside the mean square. States of a stream
    are of one set of weights: inputs of the samplers' convolutions carry the factor. Raises InputError for other factors.
    """
    for name, factor in (("encoder", encoder), ("decoder", decoder)):
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"{name} factor is {factor}; it must be a positive number, as 1/64")
    factors = {"encoder": encoder, "decoder": decoder}
    state = {key: value.detach().clone() for key, value in vae.state_dict().items()}
    for key in _scaled_keys(vae):
        state[key] *= factors[key.split(".")[0]]
    return state


def _scaled_keys(vae: CausalVAE) -> list[str]:
    """What makes the streams from tensors without the factor, and biases beside what has it already."""
    both = ["encoder.conv_in", "decoder.conv_in"]
    biases = []
    for name, module in vae.named_modules():
        if isinstance(module, ResidualBlock):
            both.append(f"{name}.conv2")
        elif isinstance(module, Downsampler | Upsampler):
            biases.append(f"{name}.conv")
    keys = [f"{layer}.conv.{kind}" for layer in both for kind in ("weight", "bias")]
    return keys + [f"{layer}.conv.bias" for layer in biases]
