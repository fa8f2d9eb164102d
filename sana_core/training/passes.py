"""Single passes of a network through a stream under training: read the state, predict, carry on.

The state obeys the same rules as at inference (``DiTState``): sink and window, absolute positions. No gradient ever flows
through it. Formulas: ``docs/training.md``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..models import attention
from ..models.dit import BlockState, PromptContext, SanaStreamingDiT
from ..sampling.flow_match import DISTILLED_TIMESTEPS
from ..streaming.chunks import CHUNK_LATENTS, cache_capacity
from ..streaming.options import StreamOptions
from ..streaming.state import DiTState
from .losses import add_noise, sigma_lookup, x0_from_v
from .windows import Window, WindowPlan

# The timesteps that rollouts and reverse steps use; the network is distilled for them.
TIMESTEPS = DISTILLED_TIMESTEPS[4]


class Prediction(NamedTuple):
    """One denoising step on latents whose clean form is known; latents are [B, C, T, H, W] float32, timestep is [B].

    velocity has a gradient; x0, the clean latents that it points to, has none.
    """

    velocity: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    timestep: torch.Tensor


def new_state(plan: WindowPlan) -> DiTState:
    """The empty state of one stream over one video; window and sink are the defaults of inference.

    It has room for what a chunk after the last one would read: under training the last chunk is carried on too.
    """
    window, sink = StreamOptions.num_cached_blocks, StreamOptions.sink_token
    boundaries = [*plan.boundaries, plan.boundaries[-1] + CHUNK_LATENTS]
    return DiTState(cache_capacity(boundaries, window, sink), window, sink)


def check_aligned(state: DiTState, window: Window) -> None:
    """ValueError unless the window begins where the stream stands: each window is fed once, in order."""
    if state.num_frames != window.start:
        raise ValueError(
            f"the window starts at frame {window.start}, the stream stands at frame {state.num_frames}; "
            "feed every window once and in order, and make a new state for each video"
        )


def leap(state: DiTState, gap: int) -> None:
    """Once the first chunk is written, moves the clock on by ``gap`` latent frames that nobody sees.

    The chunks that follow then stand as far from the sink as late chunks of a long stream do.
    """
    if state.num_chunks == 1:
        state.num_frames += gap


def draw_step(generator: torch.Generator) -> int:
    """Index of one of :data:`TIMESTEPS`, each as likely as the others."""
    return int(torch.randint(len(TIMESTEPS), (), generator=generator, device=generator.device))


def normal_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise, float32, drawn where the generator lives."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device)
    return noise.to(x.device)


def timesteps_like(timestep: float, x: torch.Tensor) -> torch.Tensor:
    """The same timestep for each sample of the batch [B]."""
    return torch.full((x.shape[0],), timestep, device=x.device)


def predict(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    x: torch.Tensor,
    timestep: torch.Tensor,
    condition: torch.Tensor,
) -> tuple[torch.Tensor, list[BlockState]]:
    """(velocity [B, C, T, H, W] float32, blocks' state after the chunk) for the chunk that follows ``state``, which stays.

    ``timestep`` is [B]. ``condition`` stands where the network expects the source latents.
    """
    num_frames, height, width = x.shape[2:]
    positions = model.positions(state.num_frames, num_frames, height, width, x.device)
    velocity, written = model(x, timestep, condition, prompt, _read(state), positions)
    return velocity.float(), written


@torch.no_grad()
def carry_on(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    x0: torch.Tensor,
    condition: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Moves ``state`` past the chunk ``x0``: a pass at t = 0 on ``x0`` with the noise of the table's lowest level."""
    timestep = timesteps_like(0.0, x0)
    x = add_noise(x0, normal_like(x0, generator), sigma_lookup(timestep))
    _, written = predict(model, state, prompt, x, timestep, condition)
    state.write(written, x0.shape[2])


def denoise_once(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    target: torch.Tensor,
    condition: torch.Tensor,
    timestep: torch.Tensor,
    sigma: torch.Tensor,
    generator: torch.Generator,
) -> Prediction:
    """One step from ``target``, noised directly, under ``condition``; ``state`` moves on with the network's own x0.

    target, condition: the chunk [B, C, T, H, W] that follows ``state``. timestep, sigma: [B].
    """
    eps = normal_like(target, generator)
    x = add_noise(target, eps, sigma)
    velocity, _ = predict(model, state, prompt, x, timestep, condition)
    x0 = x0_from_v(x, velocity, sigma).detach()
    carry_on(model, state, prompt, x0, condition, generator)
    return Prediction(velocity, x0, eps, timestep)


def _read(state: DiTState) -> list[BlockState] | None:
    """What the blocks read; a copy where a gradient is wanted, because the next write would change what the graph holds."""
    blocks = state.read()
    if blocks is None or not torch.is_grad_enabled():
        return blocks
    return [_copied(block) for block in blocks]


def _copied(block: BlockState) -> BlockState:
    """In tensors of its own, without the room of a Window."""
    used = block.memory.used if isinstance(block.memory, attention.Window) else None
    first, second = (part[:, :, :used].clone() for part in block.tensors)
    return BlockState((first, second), block.frame.clone())
