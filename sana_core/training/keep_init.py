"""A start for small transformers that edit: the network that keeps the video as it is."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..models.dit import DiTBlock, SanaStreamingDiT
from ..weights.random_init import randomize

# Share of noisy and source latents in the hidden state, beside a constant of RMS 1 that keeps the last norm steady.
_SIGNAL = 0.5
# Share that is kept of what the timestep does: nearly nothing to the output, and enough to learn from.
_TIME = 0.02
# Rows of a block's scale_shift_table that multiply what its modulated branches add.
_GATES = [2, 5]


@torch.no_grad()
def keep_init(model: SanaStreamingDiT, seed: int) -> None:
    """Fills ``model`` so that every branch adds nothing and the velocity is about noisy minus source latents.

    At full noise that is the exact answer to "keep the video as it is"; every edit is learned as a difference from it.
    ValueError unless the network takes as many source channels as noisy ones, and has a ``hidden_size`` at least 2 above
    both together.
    """
    width, channels = model.config.hidden_size, model.config.in_channels
    if model.config.source_channels != channels:
        raise ValueError(f"source_channels {model.config.source_channels} must be in_channels, {channels}")
    inputs = 2 * channels
    if width < inputs + 2:
        raise ValueError(f"hidden_size {width} must be {inputs + 2} or more, for {inputs} channels and a constant")
    randomize(model, seed)
    for block in model.blocks:
        _silence(cast(DiTBlock, block))
    # Directions at right angles to each other and to (1, 1, ..., 1), which the norm takes away.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, inputs + 2, generator=generator)
    directions[:, 0] = 1
    directions = torch.linalg.qr(directions).Q[:, 1:].to(model.x_embedder.proj.weight)
    embed, last = model.x_embedder.proj, model.final_layer
    embed.weight.copy_(_SIGNAL * directions[:, :inputs])
    embed.bias.copy_(directions[:, inputs] * width**0.5)
    noisy, source = directions[:, :channels], directions[:, channels : 2 * channels]
    last.linear.weight.copy_((noisy - source).T / _SIGNAL)
    last.linear.bias.zero_()
    last.scale_shift_table.zero_()
    for layer in (cast(nn.Linear, model.t_embedder.mlp[2]), cast(nn.Linear, model.t_block[1])):
        layer.weight.mul_(_TIME)
        layer.bias.zero_()


def _silence(block: DiTBlock) -> None:
    """Each branch computes, is let through, and ends in a projection of zeros."""
    block.scale_shift_table.zero_()
    block.scale_shift_table[_GATES] = 1
    last: list[nn.Module] = [block.attn.proj, block.cross_attn.proj, block.mlp.point_conv.conv]
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()
