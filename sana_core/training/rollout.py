"""Self-forcing: the network generates a window from noise, chunk by chunk, on its own outputs.

Every chunk leaves the denoising loop at the same step, and only that step has a gradient (``docs/training.md``).
"""

from __future__ import annotations

import torch

from ..models.dit import PromptContext, SanaStreamingDiT
from ..streaming.state import DiTState
from .losses import add_noise, sigma_lookup, x0_from_v
from .passes import TIMESTEPS, carry_on, check_aligned, normal_like, predict, timesteps_like
from .windows import Window


def rollout_window(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    source: torch.Tensor,
    window: Window,
    exit_step: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Edited latents [B, C, new_frames, H, W] float32 of one window; ``state`` moves past it.

    Args:
        state: the forward stream, which stands at the window's first frame (else ValueError).
        prompt: of the edit, from the network's present weights.
        source: source latents of the window's new frames.
        exit_step: index in ``TIMESTEPS`` of the step whose clean estimate is the output; 0 to 3, drawn once per window.
        generator: source of all noise; the order of draws is that of the passes.

    The gradient reaches the weights through the exit step of each chunk alone. Under ``torch.no_grad`` it reaches nothing,
    and the numbers are the same.
    """
    check_aligned(state, window)
    edited = []
    for chunk in source.split(window.chunk_sizes, 2):
        x0 = _rollout_chunk(model, state, prompt, chunk, exit_step, generator)
        carry_on(model, state, prompt, x0, chunk, generator)
        edited.append(x0)
    return torch.cat(edited, 2)


def _rollout_chunk(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    source: torch.Tensor,
    exit_step: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The clean estimate of the exit step; the steps before it noise theirs anew."""

    def estimate(x: torch.Tensor, step: int) -> torch.Tensor:
        timestep = timesteps_like(TIMESTEPS[step], source)
        velocity, _ = predict(model, state, prompt, x, timestep, source)
        return x0_from_v(x, velocity, sigma_lookup(timestep))

    x = normal_like(source, generator)
    with torch.no_grad():
        for step in range(exit_step):
            sigma = sigma_lookup(timesteps_like(TIMESTEPS[step + 1], source))
            x = add_noise(estimate(x, step), normal_like(source, generator), sigma)
    return estimate(x, exit_step)
