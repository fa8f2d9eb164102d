"""Cycle-Reverse Regularization: the generator as its own reverse editor, in a stream of its own.

It sees the edited video where it otherwise sees the source, the reverse instruction where it otherwise sees the edit
instruction, and denoises the true source in one step per chunk. Its own predictions fill its state (``docs/training.md``).
"""

from __future__ import annotations

import math

import torch

from ..errors import InputError
from ..models.dit import PromptContext, SanaStreamingDiT
from .losses import flow_loss, sigma_lookup
from .passes import TIMESTEPS, Prediction, check_aligned, denoise_once, leap, new_state, timesteps_like
from .windows import Window, WindowPlan

CRR_WEIGHT = 0.5


class ReverseStream:
    """The reverse editor of one video. Its ``state`` belongs to it alone; make a new stream for each video.

    Args:
        model: the generator.
        plan: the windows of the video.
        detach: keep the gradient out of the edited latents, as the release does. False is an experiment.
        gap: latent frames that are left out after the first chunk (:func:`~.passes.leap`); for videos of one window.
    """

    def __init__(self, model: SanaStreamingDiT, plan: WindowPlan, *, detach: bool = True, gap: int = 0) -> None:
        self.model = model
        self.detach = detach
        self.gap = gap
        self.state = new_state(plan)

    def step(
        self,
        source: torch.Tensor,
        edited: torch.Tensor,
        prompt: PromptContext,
        step_index: int,
        generator: torch.Generator,
    ) -> Prediction:
        """One denoising step of the source chunk under the edited chunk; the stream moves past the chunk.

        source, edited: [B, C, T, H, W]. prompt: of the reverse instruction. step_index: index in ``TIMESTEPS``, 0 to 3.
        """
        condition = edited.detach() if self.detach else edited
        timestep = timesteps_like(TIMESTEPS[step_index], source)
        sigma = sigma_lookup(timestep)
        prediction = denoise_once(self.model, self.state, prompt, source, condition, timestep, sigma, generator)
        leap(self.state, self.gap)
        return prediction

    def run_window(
        self,
        source: torch.Tensor,
        edited: torch.Tensor,
        prompt: PromptContext,
        window: Window,
        step_index: int,
        generator: torch.Generator,
    ) -> Prediction:
        """:meth:`step` for each chunk of a window, joined over frames.

        source, edited: the window's new frames alone. ValueError unless the stream stands at the window's first frame:
        every generated window is fed once, also one that trains only the critic (there under ``torch.no_grad``).
        """
        check_aligned(self.state, window)
        sizes = window.chunk_sizes
        chunks = [
            self.step(original, edit, prompt, step_index, generator)
            for original, edit in zip(source.split(sizes, 2), edited.split(sizes, 2), strict=True)
        ]
        velocities, cleans, noises, timesteps = zip(*chunks, strict=True)
        return Prediction(torch.cat(velocities, 2), torch.cat(cleans, 2), torch.cat(noises, 2), timesteps[0])


def crr_loss(prediction: Prediction, source: torch.Tensor) -> torch.Tensor:
    """Mean square of ``v - (eps - source)`` over all elements. A scalar."""
    return flow_loss(prediction.velocity, prediction.eps, source)


def weighted_crr(
    reverse: ReverseStream,
    weight: float,
    source: torch.Tensor,
    edited: torch.Tensor,
    prompt: PromptContext | None,
    window: Window,
    step_index: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """What CRR adds to the generator's loss: ``weight`` times :func:`crr_loss` of :meth:`ReverseStream.run_window`.

    With weight 0 the reverse stream is not run and draws nothing; the result is 0. InputError for another weight without
    a reverse prompt, and for a weight that is not 0 or more.
    """
    check_weight(weight, prompt is not None)
    if prompt is None or weight == 0:
        return source.new_zeros(())
    return weight * crr_loss(reverse.run_window(source, edited, prompt, window, step_index, generator), source)


def check_weight(weight: float, has_reverse_prompt: bool) -> None:
    """InputError unless CRR can run with this weight."""
    if not 0 <= weight < math.inf:
        raise InputError(f"CRR weight {weight} is out of range; use 0 for none, or more (default {CRR_WEIGHT})")
    if weight and not has_reverse_prompt:
        raise InputError(
            f"CRR weight {weight} needs a reverse prompt for every video; give one, or set the weight to 0"
        )
