"""Flow matching: noise levels, noising and the velocity loss. Tensors in, tensors out; no network, no random draw.

Latents are [B, C, T, H, W], timesteps and sigmas [B]. A mask is boolean and broadcasts to the latents, such as
[1, 1, T, 1, 1]; it keeps at least one element. Formulas: ``docs/training.md``.
"""

from __future__ import annotations

from functools import cache

import torch

TABLE_SIZE = 1000
# The table of stages 3 and 4, for the generator and both score networks.
TABLE_SHIFT = 8.0
# The draw of stage 1.
PAIR_SHIFT = 3.0


@cache
def sigma_table() -> torch.Tensor:
    """The 1000 noise levels of streaming training, float32, falling from 1 to 0.0079444; an exact zero is not among them."""
    u = 1 - torch.arange(TABLE_SIZE, dtype=torch.float64) / TABLE_SIZE
    return shift_sigma(u, TABLE_SHIFT).float()


def shift_sigma(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise level of a uniform time ``u``, 0 to 1."""
    return shift * u / (1 + (shift - 1) * u)


def sigma_lookup(timestep: torch.Tensor) -> torch.Tensor:
    """Noise levels, float32, of the entries of :func:`sigma_table` nearest to ``timestep``, 0 to 1000, of any shape."""
    table = sigma_table().to(timestep.device)
    return table[(1000 * table - timestep[..., None]).abs().argmin(-1)]


def pair_timesteps(normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(timestep, sigma) of stage 1, float32 [B], from standard normal draws [B]: logit-normal, shifted by 3.

    The timestep is whole, as the network reads it; sigma is exact.
    """
    k = torch.floor(TABLE_SIZE * torch.sigmoid(normal.double()))
    # One division, so that a whole timestep stays whole.
    timestep = 1000 * PAIR_SHIFT * k / (TABLE_SIZE + (PAIR_SHIFT - 1) * k)
    return timestep.floor().float(), (timestep / 1000).float()


def add_noise(x0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """``(1 - sigma) x0 + sigma eps``."""
    sigma = _per_sample(sigma)
    return (1 - sigma) * x0 + sigma * eps


def x0_from_v(x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Clean latents that a velocity at noise level ``sigma`` points to: ``x - sigma v``."""
    return x - _per_sample(sigma) * velocity


def flow_loss(
    velocity: torch.Tensor, eps: torch.Tensor, x0: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean square of ``v - (eps - x0)`` over the elements that ``mask`` keeps (None: all). A scalar."""
    return mean_square(velocity - (eps - x0), mask)


def mean_square(difference: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean square over the elements that ``mask`` keeps; what it leaves out, NaN included, has no part and no gradient."""
    if mask is None:
        return difference.square().mean()
    kept = torch.where(mask, difference, 0.0)
    return kept.square().sum() / mask.expand_as(difference).sum()


def _per_sample(sigma: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, 1, 1, 1]."""
    return sigma.view(-1, 1, 1, 1, 1)
