"""A short scene made by arithmetic: something to edit where there is no video at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

BALL, BOX = (235, 90, 60), (70, 120, 230)


def demo_frames(num_frames: int, height: int, width: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Frames uint8 [height, width, 3], one by one: a ball bounces and a box drifts before hills that pass by.

    The same seed gives the same scene; frame i does not depend on how many follow.
    """
    generator = torch.Generator().manual_seed(seed)
    phases = torch.rand(6, generator=generator) * 2 * math.pi
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.arange(width) / height, indexing="ij")
    span = width / height
    for i in range(num_frames):
        t = i / 24
        picture = _landscape(x + 0.15 * t, y, phases)
        bounce = abs(math.sin(1.8 * t + float(phases[3])))
        ball_x = span * (0.5 + 0.35 * math.sin(0.6 * t + float(phases[4])))
        distance = torch.hypot(x - ball_x, y - (0.78 - 0.5 * bounce)) / 0.12
        light = (1.15 - 0.5 * distance.clamp(max=1)) * (1 + 0.15 * (ball_x - x))
        picture = _paint(picture, distance, light, BALL)
        box_x = span * (0.5 + 0.4 * math.sin(0.35 * t + float(phases[5])))
        reach = torch.maximum((x - box_x).abs(), (y - 0.3).abs()) / 0.08
        picture = _paint(picture, reach, 1.1 - 0.3 * (y - 0.22) / 0.16, BOX)
        yield picture.round().clamp(0, 255).to(torch.uint8)


def _landscape(x: torch.Tensor, y: torch.Tensor, phases: torch.Tensor) -> torch.Tensor:
    """Sky and two ranges of hills with some grain, float [H, W, 3]."""
    sky = torch.stack([120 + 90 * y, 170 + 60 * y, 235 - 30 * y], -1)
    grain = 8 * torch.sin(37 * x + 11 * y) * torch.sin(23 * y - 19 * x)
    for level, (depth, color) in enumerate(((0.55, (120, 150, 120)), (0.75, (70, 120, 60)))):
        crest = depth + 0.06 * torch.sin(3.1 * x + phases[level]) + 0.03 * torch.sin(7.7 * x + phases[2])
        ground = torch.tensor(color, dtype=torch.float32) * (1 - 0.25 * (y - crest)[..., None]) + grain[..., None]
        sky = torch.where((y > crest)[..., None], ground, sky)
    return sky


def _paint(picture: torch.Tensor, distance: torch.Tensor, light: torch.Tensor, color: tuple[int, ...]) -> torch.Tensor:
    """A shape where ``distance`` is below 1, with a soft edge."""
    cover = ((1.02 - distance) / 0.04).clamp(0, 1)[..., None]
    return picture * (1 - cover) + cover * light[..., None] * torch.tensor(color, dtype=torch.float32)
