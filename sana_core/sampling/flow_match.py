"""Flow matching: the time grid of the streaming sampler and its Euler step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError

# The step counts that the streaming network was distilled for.
DISTILLED_TIMESTEPS = {4: (1000.0, 961.0, 893.0, 743.0), 2: (1000.0, 743.0)}


@dataclass(frozen=True)
class Schedule:
    """Timesteps (0 to 1000), one per denoising pass, and sigmas (0 to 1) with the final 0."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]


def streaming_schedule(steps: int, shift: float = 8.0) -> Schedule:
    """The distilled grid for 4 and 2 steps, the shifted uniform grid otherwise (``docs/model.md``).

    The shift enters twice at the low end, as in the diffusers scheduler that the release samples with: the last of several
    steps starts at sigma 0.0602 for shift 8.
    """
    if steps < 1:
        raise InputError(f"steps {steps} is too few; use 4 (default), 2, or another count from 1 on")
    if steps in DISTILLED_TIMESTEPS:
        timesteps = DISTILLED_TIMESTEPS[steps]
        sigmas = np.array(timesteps, dtype=np.float32) / np.float32(1000)
    else:
        uniform = np.linspace(1.0, float(shifted(np.float32(0.001), np.float32(shift))), steps)
        sigmas = shifted(uniform, shift).astype(np.float32)
        timesteps = tuple(float(t) for t in sigmas * np.float32(1000))
    return Schedule(timesteps, (*(float(s) for s in sigmas), 0.0))


def shifted(u: np.ndarray | np.floating, shift: float | np.floating) -> np.ndarray:
    """Sigma of a uniform time ``u`` in (0, 1]."""
    return np.asarray(shift * u / (1 + (shift - 1) * u))


def euler_step(
    x: torch.Tensor, velocity: torch.Tensor, sigma: float, sigma_next: float, round_latents: bool = False
) -> torch.Tensor:
    """x + (sigma_next - sigma) v in float32.

    ``round_latents`` gives the release's bits: the product in the dtype of v, the sum rounded to bfloat16.
    """
    step = float(np.float32(sigma_next) - np.float32(sigma))
    if round_latents:
        return (x + step * velocity).to(torch.bfloat16).float()
    return x + step * velocity.float()
