"""Distribution matching: two score networks, one frozen and one that follows, tell the generator where to move.

The score networks are bidirectional and see one clip per window, whose first frame is an image latent. Latents are
[B, C, T, H, W]; masks as in ``losses.py``. Formulas: ``docs/training.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..models.causal_vae import CausalVAE
from ..models.dit import PromptContext, SanaStreamingDiT
from .losses import TABLE_SHIFT, TABLE_SIZE, flow_loss, mean_square, shift_sigma, sigma_lookup, x0_from_v
from .windows import Window

MIN_TIMESTEP, MAX_TIMESTEP = 20.0, 980.0
# Guidance of the frozen network: 3 added to the conditional score is a CFG scale of 4.
GUIDANCE = 3.0


class ScorePrompts(NamedTuple):
    """The edit instruction as each score network reads it, and the negative prompt as the frozen one does."""

    fake: PromptContext
    real: PromptContext
    negative: PromptContext


class Scores(NamedTuple):
    """Clean latents [B, C, T, H, W] as the score networks see them."""

    fake: torch.Tensor
    real_cond: torch.Tensor
    real_uncond: torch.Tensor


def score_timesteps(raw: torch.Tensor) -> torch.Tensor:
    """Timesteps float32 for the score networks from whole numbers ``raw``, 0 to 999: shifted by 8, within 20 to 980."""
    shifted = 1000 * shift_sigma(raw.double() / TABLE_SIZE, TABLE_SHIFT)
    return shifted.clamp(MIN_TIMESTEP, MAX_TIMESTEP).float()


@torch.no_grad()
def score_estimates(
    fake: SanaStreamingDiT,
    real: SanaStreamingDiT,
    prompts: ScorePrompts,
    noised: torch.Tensor,
    timestep: torch.Tensor,
    source: torch.Tensor,
) -> Scores:
    """What both score networks make of ``noised`` latents at ``timestep`` [B], without gradient."""
    sigma = sigma_lookup(timestep)

    def clean(network: SanaStreamingDiT, prompt: PromptContext) -> torch.Tensor:
        velocity, _ = network(noised, timestep, source, prompt)
        return x0_from_v(noised, velocity.float(), sigma)

    return Scores(clean(fake, prompts.fake), clean(real, prompts.real), clean(real, prompts.negative))


@torch.no_grad()
def dmd_gradient(edited: torch.Tensor, scores: Scores, guidance: float = GUIDANCE) -> torch.Tensor:
    """Direction [B, C, T, H, W] in which the loss of ``edited`` grows, scaled per sample over all its frames."""
    fake, real_cond, real_uncond = scores
    real = real_cond + guidance * (real_cond - real_uncond)
    scale = (edited - real).abs().mean((1, 2, 3, 4), keepdim=True)
    return torch.nan_to_num((fake - real) / scale)


def dmd_loss(edited: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """A float64 scalar whose gradient by ``edited`` is ``gradient / kept elements`` where ``mask`` keeps, else 0."""
    exact = edited.double()
    return 0.5 * mean_square(exact - (exact - gradient).detach(), mask)


def critic_loss(
    velocity: torch.Tensor, eps: torch.Tensor, edited: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Flow matching of the following score network on generated latents, which get no gradient. A scalar."""
    return flow_loss(velocity, eps, edited.detach(), mask)


def window_mask(window: Window, device: torch.device | str = "cpu") -> torch.Tensor:
    """Boolean [1, 1, loss_frames, 1, 1], true on the new frames of :func:`loss_window`."""
    start, stop = window.grad_true_range
    frames = torch.arange(window.loss_frames, device=device)
    return ((frames >= start) & (frames < stop)).view(1, 1, -1, 1, 1)


def loss_window(
    window: Window,
    history: torch.Tensor | None,
    new: torch.Tensor,
    reencode: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The clip [B, C, loss_frames, H, W] that the score networks see; used for edited and for source latents alike.

    Args:
        history: latents of the ``window.history_frames`` frames before the window; None for the first window.
        new: latents of its new frames, the only ones with a gradient.
        reencode: turns a clip into a latent of its last pixel frame alone, such as :func:`image_latent` of a VAE.
    """
    if history is None:
        return new
    kept = window.loss_frames - 1
    clip = torch.cat([history.detach(), new], 2)
    return torch.cat([reencode(clip[:, :, :-kept]), clip[:, :, -kept:]], 2)


@torch.no_grad()
def image_latent(vae: CausalVAE, latents: torch.Tensor) -> torch.Tensor:
    """Latent [B, C, 1, H, W] of the last pixel frame of ``latents`` [B, C, T, H, W], encoded as an image."""
    pixels, _ = vae.decode(latents)
    latent, _ = vae.encode(pixels[:, :, -1:])
    return latent.to(latents)
