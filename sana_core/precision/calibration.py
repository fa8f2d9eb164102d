"""Input scales without footage: what inputs of units reach in a few passes over made-up latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.dit import SanaStreamingDiT
from .apply import HEADROOM, calibrate, twin
from .plan import Plan

# What a stream runs with (docs/model.md): four steps, and the pass that writes the state.
_TIMESTEPS = (1000, 961, 893, 743, 0)
_FRAMES, _GRID, _TOKENS = 3, (6, 8), 32
MADE_UP = f"random latents of unit variance, two chunks, headroom {HEADROOM:g}"
# Of :func:`made_up_passes`.
NUM_PASSES = 2 * len(_TIMESTEPS)


def calibrated(
    model: SanaStreamingDiT,
    plan: Plan,
    device: torch.device | None = None,
    on_pass: Callable[[], None] = lambda: None,
) -> Plan:
    """``plan`` with an amax for every unit whose format has an input scale; itself where none is lacking.

    Runs ``model`` (not quantized) on made-up latents, source and text features of unit variance: networks of this kind work
    on normalized ones. A plan that was measured on footage has better values already. ``device`` is where inputs go, for a
    host that keeps weights elsewhere. ``on_pass`` is called before each of `NUM_PASSES`; raising from it stops. Weights of
    float16 on the CPU run as a copy in bfloat16: CPUs take many times as long in float16.
    """
    if not plan.lacking_amax():
        return plan
    if device is None and model.dtype == torch.float16 and next(model.parameters()).device.type == "cpu":
        model = twin(model, torch.bfloat16)
    return plan.with_amax(calibrate(model, lambda: made_up_passes(model, device, on_pass)), made_up=True)


@torch.inference_mode()
def made_up_passes(
    model: SanaStreamingDiT, device: torch.device | None = None, on_pass: Callable[[], None] = lambda: None
) -> None:
    """Two chunks of a stream through the network, at its own dtype; the same on every call. For the rest see `calibrated`."""
    config, draw = model.config, torch.Generator().manual_seed(0)
    device = device or next(model.parameters()).device

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw).to(device)

    prompt = model.prompt_context(normal(1, _TOKENS, config.caption_channels))
    state = None
    for chunk in range(2):
        coarse = normal(config.source_channels, _FRAMES, 2, 2)
        # Smooth and noisy in equal parts, as latents of footage are.
        source = (F.interpolate(coarse, _GRID, mode="bilinear") + normal(*coarse.shape[:2], *_GRID))[None] / 2**0.5
        clean = source[:, : config.in_channels]
        noise = normal(1, config.in_channels, _FRAMES, *_GRID)
        positions = model.positions(chunk * _FRAMES, _FRAMES, *_GRID, device)
        for timestep in _TIMESTEPS:
            on_pass()
            level = timestep / 1000
            x = level * noise + (1 - level) * clean if clean.shape == noise.shape else noise
            _, after = model(x, torch.tensor([timestep], device=device), source, prompt, state, positions)
        state = after
