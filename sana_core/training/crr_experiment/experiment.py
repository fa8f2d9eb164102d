"""The experiment: does CRR, added to otherwise equal training, make chunk-wise edits steadier and truer to the source?

Four settings train one tiny network of the real classes each, from the same initial weights and on the same clips in the
same order per seed:

* A: flow matching on pairs, chunk by chunk, in one of the four timesteps; the state holds the network's own predictions.
* B: A + 0.5 * CRR on the network's own one-step estimate of the edit, detached.
* C: A with more steps, so many that the network does as much work as in B.
* D: A + 0.5 * the same reverse task on the true edit.

C tells CRR from more training, D tells "the reverse task on one's own outputs" from "the reverse task". Work is counted
in passes: a pass with gradient is 3, one without is 1. The rule of decision is in ``decision.py``.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...config import DiTConfig
from ...models.dit import PromptContext, SanaStreamingDiT
from ...streaming.chunks import chunk_boundaries
from ...streaming.options import StreamOptions
from ...streaming.sampler import sample_clip
from ...streaming.state import DiTState
from ...weights.random_init import random_dit
from ..losses import flow_loss, sigma_lookup
from ..passes import TIMESTEPS, Prediction, denoise_once, draw_step, new_state, timesteps_like
from ..reverse import CRR_WEIGHT, ReverseStream, weighted_crr
from ..windows import plan_windows
from .latent_world import CHANNELS, TEXT_CHANNELS, TEXT_TOKENS, Clips, derived_seed, make_clips, prompt_bank, seeded
from .metrics import edit_metrics

Setting = Literal["A", "B", "C", "D"]
SETTINGS: tuple[Setting, ...] = ("A", "B", "C", "D")
# Units of work of a pass with and without gradient: a backward pass costs about two forward passes.
GRADIENT_PASS, PLAIN_PASS = 3, 1
# A seed of its own for the clips of evaluation, which no run trains on: other draws and other appearances.
TEST_SEED = 1


@dataclass(frozen=True)
class ExperimentConfig:
    """Sizes of the experiment; what decides its numbers besides the seeds.

    steps: of settings A, B and D. batch_size, test_clips: multiples of 3 hold all edits alike. train_frames, test_frames:
    latent frames; tests are longer than training, so that errors have time to pile up.
    """

    steps: int = 160
    batch_size: int = 3
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    train_frames: int = 14
    test_frames: int = 20
    test_clips: int = 24
    hidden_size: int = 64
    num_heads: int = 2
    mlp_ratio: float = 2.0
    weight: float = CRR_WEIGHT


SMOKE = ExperimentConfig(
    steps=2,
    warmup_steps=1,
    batch_size=1,
    train_frames=11,
    test_frames=11,
    test_clips=3,
    hidden_size=32,
    mlp_ratio=1.0,
)
"""Runs every part in seconds; its numbers say nothing."""


@dataclass(frozen=True)
class Run:
    """One trained network of a setting and a seed, measured.

    initial_weights: fingerprint before training. work_per_step: passes, weighted. saved_bytes: what one step keeps for its
    backward pass. cpu_seconds_per_step, wall_seconds_per_step: medians.
    """

    setting: Setting
    seed: int
    steps: int
    initial_weights: str
    work_per_step: int
    saved_bytes: int
    cpu_seconds_per_step: float
    wall_seconds_per_step: float
    last_loss: float
    metrics: dict[str, float]


def new_model(config: ExperimentConfig, seed: int) -> SanaStreamingDiT:
    """The network before training; four blocks, the last of them softmax."""
    sizes = DiTConfig(
        depth=4,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        in_channels=CHANNELS,
        source_channels=CHANNELS,
        caption_channels=TEXT_CHANNELS,
        max_text_tokens=TEXT_TOKENS,
        mlp_ratio=config.mlp_ratio,
        softmax_layers=(3,),
        pos_embed_size=1,
    )
    return random_dit(sizes, seed, layout="split").requires_grad_(True)


def step_loss(
    model: SanaStreamingDiT, setting: Setting, clips: Clips, config: ExperimentConfig, seed: int, step: int
) -> torch.Tensor:
    """What one optimiser step minimises. The forward task's noise depends on seed and step alone, not on the setting."""
    plan = plan_windows(config.train_frames, chunk_size=config.train_frames)
    (window,) = plan.windows
    prompt, reverse_prompt = prompt_contexts(model, clips)
    generator = seeded("forward", seed, step)
    sizes = window.chunk_sizes
    forward = _denoise(model, new_state(plan), prompt, clips.target, clips.source, sizes, generator)
    loss = flow_loss(forward.velocity, forward.eps, clips.target)
    generator = seeded("reverse", seed, step)
    if setting == "B":
        reverse, index = ReverseStream(model, plan), draw_step(generator)
        edited = forward.x0
        loss = loss + weighted_crr(
            reverse, config.weight, clips.source, edited, reverse_prompt, window, index, generator
        )
    if setting == "D":
        back = _denoise(model, new_state(plan), reverse_prompt, clips.source, clips.target, sizes, generator)
        loss = loss + config.weight * flow_loss(back.velocity, back.eps, clips.source)
    return loss


def prompt_contexts(model: SanaStreamingDiT, clips: Clips) -> tuple[PromptContext, PromptContext]:
    """The instruction and the reverse instruction of each clip, from the network's present weights."""
    forward, reverse = prompt_bank()[:, clips.edits]
    return model.prompt_context(forward), model.prompt_context(reverse)


def _denoise(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    target: torch.Tensor,
    condition: torch.Tensor,
    chunk_sizes: list[int],
    generator: torch.Generator,
) -> Prediction:
    """:func:`denoise_once` for each chunk of a clip, all at one timestep, joined over frames."""
    timestep = timesteps_like(TIMESTEPS[draw_step(generator)], target)
    sigma = sigma_lookup(timestep)
    chunks = [
        denoise_once(model, state, prompt, part, given, timestep, sigma, generator)
        for part, given in zip(target.split(chunk_sizes, 2), condition.split(chunk_sizes, 2), strict=True)
    ]
    velocities, cleans, noises, _ = zip(*chunks, strict=True)
    return Prediction(torch.cat(velocities, 2), torch.cat(cleans, 2), torch.cat(noises, 2), timestep)


@functools.cache
def step_cost(config: ExperimentConfig, setting: Setting) -> tuple[int, int]:
    """(work in weighted passes, bytes kept for the backward pass) of one step, counted on an untrained network."""
    model = new_model(config, 0)
    clips = train_clips(config, 0, 0)
    work: list[int] = []
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def count(module: nn.Module, inputs: Any) -> None:
        work.append(GRADIENT_PASS if torch.is_grad_enabled() else PLAIN_PASS)

    model.register_forward_pre_hook(count)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step_loss(model, setting, clips, config, 0, 0)
    return sum(work), sum(saved.values())


def steps_of(config: ExperimentConfig, setting: Setting) -> int:
    """Optimiser steps of a setting: those of the config, and for C as many more as B has more work per step than A."""
    if setting != "C":
        return config.steps
    return round(config.steps * step_cost(config, "B")[0] / step_cost(config, "A")[0])


def train_clips(config: ExperimentConfig, seed: int, step: int) -> Clips:
    """The batch of a step; the same for every setting."""
    return make_clips("train", derived_seed("batch", seed, step), config.batch_size, config.train_frames)


def learning_rate(config: ExperimentConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0 at ``steps``."""
    return config.learning_rate * min((step + 1) / config.warmup_steps, (1 + math.cos(math.pi * step / steps)) / 2)


def train(
    model: SanaStreamingDiT, setting: Setting, config: ExperimentConfig, seed: int, steps: int
) -> tuple[list[float], list[float], list[float]]:
    """Trains in place; (loss, processor seconds, wall seconds) of each step."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    losses, cpu, wall = [], [], []
    for step in range(steps):
        clips = train_clips(config, seed, step)
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        loss = step_loss(model, setting, clips, config, seed, step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return losses, cpu, wall


@torch.no_grad()
def evaluate(model: SanaStreamingDiT, config: ExperimentConfig) -> dict[str, float]:
    """Metrics of full sampling in a stream on the test clips; the reverse edit starts from the network's own edits."""
    clips = make_clips("test", TEST_SEED, config.test_clips, config.test_frames)
    prompt, reverse_prompt = prompt_contexts(model, clips)
    noise, reverse_noise = torch.randn((2, *clips.source.shape), generator=seeded("test noise"))
    edited = sample_clip(model, prompt, noise, clips.source, StreamOptions())
    back = sample_clip(model, reverse_prompt, reverse_noise, edited, StreamOptions())
    return {
        **edit_metrics(edited, clips, chunk_boundaries(config.test_frames)),
        "reconstruction_error": (back - clips.source).square().mean().item(),
    }


def run_one(config: ExperimentConfig, setting: Setting, seed: int, log: Callable[[str], None] = print) -> Run:
    """Trains and measures one network."""
    model = new_model(config, seed)
    fingerprint, steps = model.fingerprint, steps_of(config, setting)
    work, saved = step_cost(config, setting)
    losses, cpu, wall = train(model, setting, config, seed, steps)
    metrics = evaluate(model, config)
    log(f"setting {setting}, seed {seed}: {steps} steps, loss {losses[-1]:.3f}, edit error {metrics['edit_error']:.3f}")
    return Run(
        setting=setting,
        seed=seed,
        steps=steps,
        initial_weights=fingerprint,
        work_per_step=work,
        saved_bytes=saved,
        cpu_seconds_per_step=statistics.median(cpu),
        wall_seconds_per_step=statistics.median(wall),
        last_loss=statistics.fmean(losses[-20:]),
        metrics=metrics,
    )
