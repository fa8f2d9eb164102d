"""Backgrounds as functions of the plane: any point has a colour, so a camera can go anywhere without an edge.

Coordinates are in picture heights. ``pixel`` is the size of one pixel in the same unit: edges are as soft as that, and
waves that are too fine for it fade.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Color = tuple[float, float, float]

_GRAIN = 9.0
_SKIES: tuple[Color, ...] = ((125, 175, 235), (235, 180, 140), (175, 185, 200), (95, 130, 200))
_HILLS: tuple[Color, ...] = ((115, 150, 130), (150, 130, 160), (165, 150, 120), (100, 125, 165))
_GROUNDS: tuple[Color, ...] = ((75, 125, 60), (160, 120, 70), (205, 180, 130), (215, 220, 230))


@dataclass(frozen=True)
class Wave:
    """``amplitude * sin(x_frequency * x + y_frequency * y + phase)``, frequencies in radians per picture height."""

    x_frequency: float
    y_frequency: float
    phase: float
    amplitude: float


def draw_waves(rng: random.Random, count: int, low: float, high: float) -> tuple[Wave, ...]:
    """Plane waves in all directions, octaves from ``low`` to ``high`` radians per height; their sum has deviation 1."""
    waves = []
    for i in range(count):
        frequency = low * (high / low) ** ((i + rng.random()) / count)
        angle = rng.uniform(0, 2 * math.pi)
        waves.append((frequency * math.cos(angle), frequency * math.sin(angle), frequency**-0.7))
    norm = math.sqrt(sum(amplitude**2 for *_, amplitude in waves) / 2)
    return tuple(Wave(x, y, rng.uniform(0, 2 * math.pi), amplitude / norm) for x, y, amplitude in waves)


def wave_field(waves: tuple[Wave, ...], x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """The sum of ``waves`` at the points ``x``, ``y``, in their shape."""
    rows = []
    for wave in waves:
        # The mean of a sine over one pixel; beyond two pixels per period nothing is left of it.
        reach = pixel * math.hypot(wave.x_frequency, wave.y_frequency) / 2
        fade = math.sin(reach) / reach if 0 < reach < math.pi / 2 else float(reach == 0)
        rows.append((wave.x_frequency, wave.y_frequency, wave.phase, wave.amplitude * fade))
    table = torch.tensor(rows, device=x.device)
    phases = torch.addmm(table[:, 2], torch.stack([x, y], -1).reshape(-1, 2), table[:, :2].T)
    return (phases.sin_() @ table[:, 3]).view(x.shape)


@dataclass(frozen=True)
class Pattern:
    """A background of one `kind` (a key of `PATTERNS`), in three ``colors`` and some grain.

    ``angle`` in radians, ``frequency`` in radians per picture height: what they turn and repeat depends on the kind.
    """

    kind: str
    colors: tuple[Color, Color, Color]
    waves: tuple[Wave, ...]
    grain: tuple[Wave, ...]
    angle: float
    frequency: float

    def __call__(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        """Colours float [H, W, 3] at the points ``x``, ``y`` [H, W]."""
        first, second, third = torch.tensor(self.colors, dtype=x.dtype, device=x.device)
        u, v = PATTERNS[self.kind](self, x, y, pixel)
        picture = torch.lerp(torch.lerp(first, second, u[..., None]), third, v[..., None])
        return picture + _GRAIN * wave_field(self.grain, x, y, pixel)[..., None]


@dataclass(frozen=True)
class Plain:
    """One flat colour."""

    color: Color
    kind: str = field(default="plain", init=False)

    def __call__(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        return torch.tensor(self.color, dtype=x.dtype, device=x.device).expand(*x.shape, 3)


@dataclass(frozen=True, eq=False)
class Photograph:
    """A picture uint8 [h, w, 3] laid around the origin, ``height`` picture heights tall, mirrored beyond its border."""

    picture: Tensor
    height: float
    kind: str = field(default="photograph", init=False)

    def __call__(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        rows, columns, _ = self.picture.shape
        half = self.height / 2
        points = torch.stack([x / (half * columns / rows), y / half], -1)[None]
        planes = self.picture.to(x.device).permute(2, 0, 1)[None].float()
        return F.grid_sample(planes, points, padding_mode="reflection", align_corners=False)[0].permute(1, 2, 0)


Background = Pattern | Plain | Photograph


def draw_pattern(rng: random.Random) -> Pattern:
    """A background of a random kind, colours and scale."""
    kind = rng.choice(tuple(PATTERNS))
    colors = (_muted(rng), _muted(rng), _muted(rng))
    if kind == "landscape":
        colors = (_varied(rng, _SKIES), _varied(rng, _HILLS), _varied(rng, _GROUNDS))
    return Pattern(
        kind=kind,
        colors=colors,
        waves=draw_waves(rng, 12, 3, 45),
        grain=draw_waves(rng, 10, 30, 150),
        angle=rng.uniform(0, math.pi),
        frequency=rng.uniform(12, 30),
    )


def _muted(rng: random.Random) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.65), rng.uniform(0.3, 0.9))
    return 255 * red, 255 * green, 255 * blue


def _varied(rng: random.Random, colors: tuple[Color, ...]) -> Color:
    red, green, blue = rng.choice(colors)
    return red + rng.uniform(-20, 20), green + rng.uniform(-20, 20), blue + rng.uniform(-20, 20)


def _turned(pattern: Pattern, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = math.cos(pattern.angle), math.sin(pattern.angle)
    return x * cos + y * sin, y * cos - x * sin


def _square_wave(position: Tensor, frequency: float, pixel: float) -> Tensor:
    """Between -1 and 1, with edges two pixels wide."""
    return ((frequency * position).sin() / min(1.0, frequency * pixel)).clamp(-1, 1)


def _noise(pattern: Pattern, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    coarse = wave_field(pattern.waves[::2], x, y, pixel)
    fine = wave_field(pattern.waves[1::2], x, y, pixel)
    return (2 * coarse).sigmoid(), (3 * fine - 1).sigmoid()


def _stripes(pattern: Pattern, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    across, along = _turned(pattern, x, y)
    bent = across + 0.05 * (3 * along).sin()
    stripe = (1 + _square_wave(bent, pattern.frequency, pixel)) / 2
    return stripe, 0.3 * (1 + (1.3 * along + pattern.angle).sin())


def _checker(pattern: Pattern, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    across, along = _turned(pattern, x, y)
    frequency = 0.6 * pattern.frequency
    tiles = _square_wave(across, frequency, pixel) * _square_wave(along, frequency, pixel)
    return (1 + tiles) / 2, 0.3 * (1 + (1.7 * x + pattern.angle).sin())


def _gradient(pattern: Pattern, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    across, along = _turned(pattern, x, y)
    frequency = pattern.frequency / 8
    return (1 + (frequency * across).sin()) / 2, (1 + (frequency * along + pattern.angle).sin()) / 2


def _landscape(pattern: Pattern, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    """Far hills and near ground before the sky: two crests, each rolling with the distance along it."""
    phase, slow = pattern.angle, pattern.frequency / 8
    far = 0.02 + 0.07 * (slow * x + phase).sin() + 0.02 * (3.3 * slow * x + 2 * phase).sin()
    near = 0.22 + 0.05 * (1.4 * slow * x + 3 * phase).sin() + 0.02 * (4.1 * slow * x).sin()
    return ((y - far) / pixel).clamp(0, 1), ((y - near) / pixel).clamp(0, 1)


PATTERNS: dict[str, Callable[[Pattern, Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "noise": _noise,
    "stripes": _stripes,
    "checker": _checker,
    "gradient": _gradient,
    "landscape": _landscape,
}
"""Kind of background -> how much of the second and of the third colour a point has, each in [0, 1]."""
