"""Losses of one batch of paired edits: flow matching chunk by chunk, and Cycle-Reverse Regularization on the result.

Chunks, positions and state are those of inference; each chunk sees a state that the network wrote itself from its own
estimate of the chunks before (``docs/training.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.dit import PromptContext, SanaStreamingDiT
from .losses import add_noise, flow_loss, pair_timesteps, sigma_lookup, x0_from_v
from .passes import TIMESTEPS, carry_on, draw_step, leap, new_state, normal_like, predict
from .reverse import ReverseStream, check_weight, weighted_crr
from .windows import WindowPlan, plan_windows

# Share of samples that are noised at one of the timesteps that a stream is sampled with.
SAMPLED_SHARE = 0.75


@dataclass(frozen=True)
class EditBatch:
    """Sources and their true edits as latents, both [B, C, T, H, W], with the instruction and the way back of each.

    ``reverse_prompts`` may be None where the weight of CRR is 0.
    """

    source: Tensor
    target: Tensor
    prompts: Sequence[str]
    reverse_prompts: Sequence[str] | None = None


def edit_losses(
    model: SanaStreamingDiT,
    prompt_context: Callable[[Sequence[str]], PromptContext],
    batch: EditBatch,
    *,
    generator: torch.Generator,
    crr_weight: float,
    most_gap: int = 0,
    most_laps: int = 0,
) -> dict[str, Tensor]:
    """``loss`` = ``flow`` + ``crr``, scalars; ``crr`` is weighted already, and left out where the weight is 0.

    ``prompt_context`` makes the prompts of a batch readable with the network's present weights. All noise and all
    timesteps come from ``generator``. ``most_gap``: up to so many latent frames are left out after the first chunk
    (:func:`draw_gap`), in both directions, so that few chunks teach what a long stream needs. ``most_laps``: up to so many
    times the true edit of all chunks but the first goes through the state beforehand, without gradient, which fills the
    memory as a long stream does. Raises InputError for a weight that is not 0 or more, and for another weight than 0
    without reverse prompts.
    """
    check_weight(crr_weight, batch.reverse_prompts is not None)
    num_frames = batch.source.shape[2]
    plan = plan_windows(num_frames, chunk_size=num_frames)
    gap = draw_gap(most_gap, generator) if most_gap else 0
    laps = _draw_laps(most_laps, generator) if most_laps else 0
    flow, edited = _flow_matching(model, prompt_context(batch.prompts), batch, plan, gap, laps, generator)
    if crr_weight == 0:
        return {"loss": flow, "flow": flow}
    assert batch.reverse_prompts is not None
    way_back, step_index = prompt_context(batch.reverse_prompts), draw_step(generator)
    reverse, (window,) = ReverseStream(model, plan, gap=gap), plan.windows
    crr = weighted_crr(reverse, crr_weight, batch.source, edited, way_back, window, step_index, generator)
    return {"loss": flow + crr, "flow": flow, "crr": crr}


def draw_gap(most: int, generator: torch.Generator) -> int:
    """0 to ``most``, small gaps as likely as large ones on a logarithmic scale."""
    share = float(torch.rand((), generator=generator, device=generator.device))
    return round((most + 1) ** share) - 1


def _draw_laps(most: int, generator: torch.Generator) -> int:
    """0 to ``most``, each as likely as the others."""
    return int(torch.randint(most + 1, (), generator=generator, device=generator.device))


def draw_timesteps(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(timesteps, sigmas), float32 [count] each, drawn where the generator lives.

    :data:`SAMPLED_SHARE` of them are a stream's own, each as likely as the others; the rest are logit-normal, as in the
    release's paired training.
    """
    device = generator.device
    anywhere, sigma = pair_timesteps(torch.randn(count, generator=generator, device=device))
    index = torch.randint(len(TIMESTEPS), (count,), generator=generator, device=device)
    sampled = torch.tensor(TIMESTEPS, device=device)[index]
    chosen = torch.rand(count, generator=generator, device=device) < SAMPLED_SHARE
    return torch.where(chosen, sampled, anywhere), torch.where(chosen, sigma_lookup(sampled), sigma)


def _flow_matching(
    model: SanaStreamingDiT,
    prompt: PromptContext,
    batch: EditBatch,
    plan: WindowPlan,
    gap: int,
    laps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(loss, the network's clean estimate of the whole clip without gradient [B, C, T, H, W])."""
    state = new_state(plan)
    timestep, sigma = (x.to(batch.source.device) for x in draw_timesteps(len(batch.source), generator))
    velocities: list[Tensor] = []
    noises: list[Tensor] = []
    cleans: list[Tensor] = []
    sizes = plan.windows[0].chunk_sizes
    chunks = list(zip(batch.source.split(sizes, 2), batch.target.split(sizes, 2), strict=True))
    for source, target in chunks:
        eps = normal_like(target, generator)
        x = add_noise(target, eps, sigma)
        velocity, _ = predict(model, state, prompt, x, timestep, source)
        clean = x0_from_v(x, velocity, sigma).detach()
        # Nothing reads the state after the last chunk.
        if len(cleans) + 1 < len(sizes):
            carry_on(model, state, prompt, clean, source, generator)
            leap(state, gap)
        if not cleans:
            for past_source, past in laps * chunks[1:]:
                carry_on(model, state, prompt, past, past_source, generator)
        velocities.append(velocity)
        noises.append(eps)
        cleans.append(clean)
    return flow_loss(torch.cat(velocities, 2), torch.cat(noises, 2), batch.target), torch.cat(cleans, 2)
