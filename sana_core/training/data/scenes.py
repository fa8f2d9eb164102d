"""Moving scenes made by arithmetic, of which everything is known: masks, depth order, and where each pixel goes.

A scene is layers: a background and flat textured shapes before it. Each layer moves as a rigid picture (shifted, turned,
scaled) and its colours are fixed to it, so a point keeps its colour while it moves. A scene repeats after ``period``
frames, and frame i does not depend on what was drawn before. Positions are in picture heights from the centre, x to the
right, y down.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from .textures import Background, Color, Photograph, Plain, Wave, draw_pattern, draw_waves, wave_field

COLORS: dict[str, Color] = {
    "red": (220, 50, 45),
    "orange": (240, 140, 35),
    "yellow": (240, 215, 60),
    "green": (60, 170, 70),
    "cyan": (60, 200, 205),
    "blue": (60, 95, 220),
    "purple": (140, 70, 190),
    "pink": (240, 130, 180),
}
"""The colours of shapes, by name."""

# Shapes are drawn within this distance of their centre, in their own size.
_REACH = 1.25
# A layer owns a pixel where it covers all but this much of it.
_PURE = 0.999
SMALLEST = 8
"""Pixels of the shorter side, at least."""


@dataclass(frozen=True)
class Oscillation:
    """``middle + amplitude * sin``, with a whole number of ``cycles`` per period of the scene."""

    middle: float
    amplitude: float = 0.0
    cycles: int = 1
    phase: float = 0.0

    def at(self, number: int, period: int) -> float:
        turn = (self.cycles * number) % period / period
        return self.middle + self.amplitude * math.sin(2 * math.pi * turn + self.phase)


@dataclass(frozen=True)
class Pose:
    """Where a layer is: its own point q is seen at ``(x, y) + scale * rotation(angle) * q``."""

    x: float
    y: float
    scale: float
    angle: float

    def to_layer(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        x, y = x - self.x, y - self.y
        return cos * x + sin * y, cos * y - sin * x

    def to_picture(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        return self.x + cos * x - sin * y, self.y + cos * y + sin * x


@dataclass(frozen=True)
class Motion:
    """A pose over time."""

    x: Oscillation
    y: Oscillation
    scale: Oscillation
    angle: Oscillation = Oscillation(0.0)

    def at(self, number: int, period: int) -> Pose:
        axes = (self.x, self.y, self.scale, self.angle)
        return Pose(*(axis.at(number, period) for axis in axes))


@dataclass(frozen=True)
class SceneObject:
    """A shape (a key of `SHAPES`) of one colour (a key of `COLORS`), lighter and darker by place."""

    shape: str
    color: str
    motion: Motion
    waves: tuple[Wave, ...]

    def paint(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        """Colours float [h, w, 3] at points of the object's own plane."""
        grain = 0.95 + 0.1 * wave_field(self.waves, x, y, pixel)
        slope = 0.3 - 0.4 * torch.hypot(x + 0.35, y + 0.35) if self.shape == "ball" else -0.15 * x - 0.1 * y
        color = torch.tensor(COLORS[self.color], device=x.device)
        return ((grain + slope)[..., None] * color).clamp(0, 255)


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene of ``height`` x ``width`` pixels; ``objects`` are in depth order, the farthest first, of different shapes.

    Layer 0 is the background, layer 1 + k is ``objects[k]``.
    """

    height: int
    width: int
    period: int
    background: Background
    camera: Motion
    objects: tuple[SceneObject, ...]

    def frame(self, number: int, device: torch.device | str = "cpu") -> Tensor:
        """Frame ``number`` as uint8 [H, W, 3]."""
        x, y = self._grid(device)
        pose = self.camera.at(number, self.period)
        picture = self.background(*pose.to_layer(x, y), pixel=1 / (self.height * pose.scale))
        picture = picture.clamp(0, 255).clone()
        for item in self.objects:
            rows, columns, cover, points, pixel = self._cover(item, number, x, y)
            part = picture[rows, columns]
            picture[rows, columns] = torch.lerp(part, item.paint(*points, pixel), cover[..., None])
        return picture.round().to(torch.uint8)

    def visibility(self, number: int, device: torch.device | str = "cpu") -> Tensor:
        """How much of each pixel shows each layer, float [1 + objects, H, W]; the layers add up to 1."""
        x, y = self._grid(device)
        weights = torch.zeros(1 + len(self.objects), self.height, self.width, device=device)
        weights[0] = 1
        for k, item in enumerate(self.objects, start=1):
            rows, columns, cover, *_ = self._cover(item, number, x, y)
            weights[:k, rows, columns] *= 1 - cover
            weights[k, rows, columns] = cover
        return weights

    def motion(self, number: int, following: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Where the pixels of frame ``number`` are in frame ``following``.

        Returns:
            displacement: float [H, W, 2], in pixels, (right, down), of the layer seen at the pixel.
            valid: bool [H, W], true where one layer fills the pixel in both frames: not at the rim of a shape, not
                covered in the second frame, not outside it.
        """
        x, y = self._grid(device)
        before, after = self.visibility(number, device), self.visibility(following, device)
        top = before.argmax(0)
        displacement = torch.zeros(self.height, self.width, 2, device=device)
        valid = torch.zeros(self.height, self.width, dtype=torch.bool, device=device)
        for k, motion in enumerate((self.camera, *(item.motion for item in self.objects))):
            points = motion.at(number, self.period).to_layer(x, y)
            target_x, target_y = motion.at(following, self.period).to_picture(*points)
            shift = self.height * torch.stack([target_x - x, target_y - y], -1)
            displacement = torch.where((top == k)[..., None], shift, displacement)
            grid = torch.stack([2 * target_x * self.height / self.width, 2 * target_y], -1)
            there = F.grid_sample(after[None, k : k + 1], grid[None], align_corners=False)[0, 0]
            valid |= (before[k] > _PURE) & (there > _PURE)
        return displacement, valid

    def layer(self, name: str) -> int:
        """Number of the layer ``name``: "background" or a shape. Raises InputError where the scene has none."""
        names = ("background", *(item.shape for item in self.objects))
        if name not in names:
            raise InputError(f"the scene has no {name}: choose one of {', '.join(names)}")
        return names.index(name)

    def recolored(self, shape: str, color: str) -> Scene:
        """The same scene with the object ``shape`` in another of the `COLORS`."""
        if color not in COLORS:
            raise InputError(f"{color} is not a colour of shapes: choose one of {', '.join(COLORS)}")
        changed = self.layer(shape) - 1
        return replace(
            self, objects=tuple(replace(o, color=color) if k == changed else o for k, o in enumerate(self.objects))
        )

    def with_plain_background(self, color: Color) -> Scene:
        """The same scene before one flat colour, RGB from 0 to 255."""
        return replace(self, background=Plain(color))

    def _grid(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Pixel centres x, y, each float [H, W]."""
        rows = (torch.arange(self.height, device=device) + 0.5 - self.height / 2) / self.height
        columns = (torch.arange(self.width, device=device) + 0.5 - self.width / 2) / self.height
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return x, y

    def _cover(
        self, item: SceneObject, number: int, x: Tensor, y: Tensor
    ) -> tuple[slice, slice, Tensor, tuple[Tensor, Tensor], float]:
        """The rows and columns that an object can reach, its cover there [h, w], the points of its plane, its pixel."""
        pose = item.motion.at(number, self.period)
        rows = self._span(pose.y, pose.scale, self.height)
        columns = self._span(pose.x, pose.scale, self.width)
        points = pose.to_layer(x[rows, columns], y[rows, columns])
        pixel = 1 / (self.height * pose.scale)
        cover = (0.5 - SHAPES[item.shape](*points) / pixel).clamp(0, 1)
        return rows, columns, cover, points, pixel

    def _span(self, centre: float, scale: float, size: int) -> slice:
        middle, reach = centre * self.height + size / 2, _REACH * scale * self.height + 1
        return slice(min(size, max(0, math.floor(middle - reach))), max(0, min(size, math.ceil(middle + reach))))


@dataclass(frozen=True, eq=False)
class Shot:
    """The frames ``numbers`` of a scene; all its tensors are on ``device``."""

    scene: Scene
    numbers: range
    device: torch.device | str = "cpu"

    def __iter__(self) -> Iterator[Tensor]:
        """Frames uint8 [H, W, 3], one by one."""
        return (self.scene.frame(i, self.device) for i in self.numbers)

    def frames(self) -> Tensor:
        """uint8 [F, H, W, 3]."""
        return torch.stack(list(self))

    def visibility(self) -> Tensor:
        """float [F, 1 + objects, H, W]: how much of each pixel shows each layer; the layers add up to 1."""
        return torch.stack([self.scene.visibility(i, self.device) for i in self.numbers])

    def mask(self, name: str) -> Tensor:
        """bool [F, H, W]: the pixels in which the layer ``name`` ("background" or a shape) is seen at all."""
        layer = self.scene.layer(name)
        return torch.stack([self.scene.visibility(i, self.device)[layer] > 0 for i in self.numbers])

    def motion(self) -> tuple[Tensor, Tensor]:
        """Displacement float [F-1, H, W, 2] in pixels to the next frame, (right, down), and validity bool [F-1, H, W]."""
        pairs = zip(self.numbers, self.numbers[1:], strict=False)
        moves = [self.scene.motion(a, b, self.device) for a, b in pairs]
        return torch.stack([move[0] for move in moves]), torch.stack([move[1] for move in moves])


def make_scene(seed: int, height: int, width: int, *, period: int = 240) -> Scene:
    """A pattern and one to four moving shapes, all drawn from ``seed``; sizes in pixels, ``period`` in frames.

    The same seed gives the same scene at every size, but for the width of the way that shapes have. Raises InputError
    for a size or a period that is too small.
    """
    _check_size(height, width, period)
    rng = random.Random(f"scene {seed}")
    camera = Motion(
        x=_oscillation(rng, 0.0, rng.uniform(0.1, 0.4)),
        y=_oscillation(rng, 0.0, rng.uniform(0.02, 0.12)),
        scale=_oscillation(rng, 1.05, rng.uniform(0.0, 0.2)),
    )
    background = draw_pattern(rng)
    return Scene(height, width, period, background, camera, _draw_objects(rng, rng.randint(1, 4), width / height))


def make_photograph_scene(
    picture: Tensor, seed: int, height: int, width: int, *, num_objects: int = 0, period: int = 240
) -> Scene:
    """A pan and zoom over ``picture`` (uint8 [h, w, 3]), drawn from ``seed``, with shapes before it if wanted.

    The view stays inside the picture. Raises InputError for a size or a period that is too small, and for more shapes
    than there are.
    """
    _check_size(height, width, period)
    if not 0 <= num_objects <= len(SHAPES):
        raise InputError(f"{num_objects} shapes are wanted: there are {len(SHAPES)}, give 0 to {len(SHAPES)}")
    rng = random.Random(f"photograph {seed}")
    aspect, picture_aspect = width / height, picture.shape[1] / picture.shape[0]
    # As tall as the view at its widest, or as it needs to be to reach from side to side, and then some to pan over.
    tall = max(1.0, aspect / picture_aspect) * rng.uniform(1.08, 1.7)
    zoom = rng.uniform(0.02, 0.15)
    camera = Motion(
        x=_oscillation(rng, 0.0, (tall * picture_aspect - aspect) / 2),
        y=_oscillation(rng, 0.0, (tall - 1) / 2),
        scale=_oscillation(rng, 1 + zoom, zoom),
    )
    objects = _draw_objects(rng, num_objects, aspect)
    return Scene(height, width, period, _sized(picture, tall, round(tall * (1 + zoom) * height)), camera, objects)


def _sized(picture: Tensor, tall: float, rows: int) -> Photograph:
    """The picture at ``rows`` rows if it has more: read pixel by pixel at its own size, it would flicker in a pan."""
    if rows < picture.shape[0]:
        planes = picture.permute(2, 0, 1)[None].float()
        size = (rows, max(1, round(rows * picture.shape[1] / picture.shape[0])))
        planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=True)
        picture = planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
    return Photograph(picture, tall)


def _check_size(height: int, width: int, period: int) -> None:
    if min(height, width) < SMALLEST or period < 1:
        raise InputError(
            f"cannot make a scene of {width}x{height} pixels and a period of {period} frames: give at least "
            f"{SMALLEST}x{SMALLEST} and 1"
        )


def _oscillation(rng: random.Random, middle: float, amplitude: float, cycles: tuple[int, ...] = (1,)) -> Oscillation:
    return Oscillation(middle, amplitude, rng.choice(cycles), rng.uniform(0, 2 * math.pi))


def _draw_objects(rng: random.Random, count: int, aspect: float) -> tuple[SceneObject, ...]:
    """Shapes of different kinds whose centres stay in the picture."""
    objects = []
    for shape in rng.sample(tuple(SHAPES), count):
        size = rng.uniform(0.13, 0.24)
        x_amplitude = rng.uniform(0.3, 0.8) * aspect / 2
        y_amplitude = rng.uniform(0.05, 0.3)
        # A ball does not roll: its light would turn with it.
        turn = 0.0 if shape == "ball" else rng.uniform(0, 1.5)
        motion = Motion(
            x=_oscillation(rng, rng.uniform(-1, 1) * (0.9 * aspect / 2 - x_amplitude), x_amplitude, (1, 1, 2)),
            y=_oscillation(rng, rng.uniform(-1, 1) * (0.38 - y_amplitude), y_amplitude, (1, 2, 3)),
            scale=_oscillation(rng, size, 0.12 * size * rng.random(), (1, 2)),
            angle=_oscillation(rng, 0.0 if shape == "ball" else rng.uniform(-0.5, 0.5), turn, (1, 2)),
        )
        objects.append(SceneObject(shape, rng.choice(tuple(COLORS)), motion, draw_waves(rng, 5, 3, 14)))
    return tuple(objects)


def _ball(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _box(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.85


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(math.sqrt(3) / 2 * x.abs() - y / 2, y) - 0.55


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: folded into one tenth of the turn, where the rim is one straight line from tip to notch."""
    sector = 2 * math.pi / 5
    turn = torch.atan2(x, -y)
    angle = (turn - sector * (turn / sector).round()).abs()
    radius = torch.hypot(x, y)
    notch_x, notch_y = 0.48 * math.cos(sector / 2), 0.48 * math.sin(sector / 2)
    along_x, along_y = notch_x - 1.1, notch_y
    across = along_x * radius * angle.sin() - along_y * (radius * angle.cos() - 1.1)
    return -across / math.hypot(along_x, along_y)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ball": _ball,
    "box": _box,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
}
"""Name of a shape -> distance of a point to its rim, negative inside, in the shape's own size."""
