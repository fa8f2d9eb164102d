"""A profile as one picture: the best plans, and what the chosen one gives each matrix.

Drawn with Pillow, which ComfyUI has; matplotlib, which draws the command line's charts, it may lack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..sana_core.config import DiTConfig
from ..sana_core.precision.chart import COLORS, latency_label
from ..sana_core.precision.plan import UNQUANTIZED
from ..sana_core.precision.profile import Point, Profile, decibels
from ..sana_core.precision.units import KINDS

_WIDTH, _LEFT, _RIGHT = 960, 110, 30
_PLOT_TOP, _PLOT_HEIGHT = 50, 380
_MAP_TOP, _CELL = _PLOT_TOP + _PLOT_HEIGHT + 110, 22
_DARK, _GREY, _LIGHT = "#222222", "#777777", "#e3e3e3"
_CHOSEN = "#fdb462"


class _Axes:
    """From milliseconds, which begin at 0, and decibels to pixels."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.right = 1.05 * max(x for x, _ in points) or 1.0
        low, high = min(y for _, y in points), max(y for _, y in points)
        room = max(1.0, 0.08 * (high - low))
        self.low, self.high = low - room, high + room

    def place(self, x: float, y: float) -> tuple[float, float]:
        across, up = x / self.right, (y - self.low) / (self.high - self.low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _PLOT_TOP + (1 - up) * _PLOT_HEIGHT


def draw(profile: Profile, front: Sequence[Point], points: Sequence[Point], floor: float) -> torch.Tensor:
    """uint8 [H, W, 3]: signal to noise over latency, the plans ``points`` by name, and the formats of the last of them.

    floor: noise power of bfloat16 itself, a dotted line.
    """
    from PIL import Image, ImageDraw

    height = _MAP_TOP + _CELL * len(KINDS) + 70
    picture = Image.new("RGB", (_WIDTH, height), "white")
    pen = ImageDraw.Draw(picture)
    _front(pen, profile, front, points, floor)
    _map(pen, profile.config, points[-1])
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, _WIDTH, 3)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _front(pen: Any, profile: Profile, front: Sequence[Point], points: Sequence[Point], floor: float) -> None:
    line = [(point.latency, decibels(point.error)) for point in front if point.formats]
    named = {point.name: (point.latency, decibels(point.noise or 0)) for point in points if point.formats}
    unquantized = next((point.latency for point in points if not point.formats), None)
    if unquantized is not None:
        named[UNQUANTIZED] = (unquantized, decibels(floor))
    axes = _Axes([*line, *named.values(), (0.0, decibels(floor))])
    for x in ticks(0, axes.right):
        place, _ = axes.place(x, axes.low)
        pen.line([(place, _PLOT_TOP), (place, _PLOT_TOP + _PLOT_HEIGHT)], fill=_LIGHT)
        pen.text((place, _PLOT_TOP + _PLOT_HEIGHT + 6), f"{x:g}", font=_font(13), fill=_GREY, anchor="ma")
    for y in ticks(axes.low, axes.high):
        _, place = axes.place(0, y)
        pen.line([(_LEFT, place), (_WIDTH - _RIGHT, place)], fill=_LIGHT)
        pen.text((_LEFT - 8, place), f"{y:g}", font=_font(13), fill=_GREY, anchor="rm")
    pen.rectangle([_LEFT, _PLOT_TOP, _WIDTH - _RIGHT, _PLOT_TOP + _PLOT_HEIGHT], outline=_GREY)
    _dotted(pen, axes, decibels(floor))
    pen.text((_LEFT, 18), "signal to noise of the velocity, dB", font=_font(15), fill=_DARK)
    remark = "line: best plans by the sum of errors; with a name: as it was run"
    pen.text((_WIDTH - _RIGHT, 20), remark, font=_font(13), fill=_GREY, anchor="ra")
    label = latency_label(profile.table)
    pen.text((_WIDTH - _RIGHT, _PLOT_TOP + _PLOT_HEIGHT + 28), label, font=_font(15), fill=_DARK, anchor="ra")
    if len(line) > 1:
        pen.line([axes.place(*point) for point in line], fill=_DARK, width=2)
    for point in line:
        _dot(pen, axes.place(*point), 3, _DARK)
    for number, (name, point) in enumerate(sorted(named.items(), key=lambda item: item[1])):
        x, y = axes.place(*point)
        _dot(pen, (x, y), 7, COLORS.get(name, _CHOSEN))
        anchor = "ls" if x < _WIDTH - 160 else "rs"
        shift = (9 if anchor == "ls" else -9, -6 if number % 2 else 20)
        pen.text((x + shift[0], y + shift[1]), name, font=_font(14), fill=_DARK, anchor=anchor)


def _dotted(pen: Any, axes: _Axes, y: float) -> None:
    _, place = axes.place(0, y)
    for x in range(_LEFT, _WIDTH - _RIGHT, 8):
        pen.line([(x, place), (x + 3, place)], fill=_GREY)
    pen.text((_LEFT + 6, place + 4), "rounding of bfloat16", font=_font(12), fill=_GREY)


def _dot(pen: Any, place: tuple[float, float], radius: int, color: str) -> None:
    x, y = place
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color, outline=_DARK)


def _map(pen: Any, config: DiTConfig, point: Point) -> None:
    width = min(80, (_WIDTH - _LEFT - _RIGHT) // config.depth)
    title = f"formats of {point.name}, blocks from left to right"
    pen.text((_LEFT, _MAP_TOP - 26), title, font=_font(15), fill=_DARK)
    for row, kind in enumerate(KINDS):
        top = _MAP_TOP + row * _CELL
        pen.text((_LEFT - 8, top + _CELL / 2), kind, font=_font(13), fill=_DARK, anchor="rm")
        for block in range(config.depth):
            left = _LEFT + block * width
            color = COLORS[point.formats.get(f"blocks.{block}.{kind}", UNQUANTIZED)]
            pen.rectangle([left, top, left + width - 2, top + _CELL - 2], fill=color)
    left, top = _LEFT, _MAP_TOP + len(KINDS) * _CELL + 20
    for name, color in COLORS.items():
        pen.rectangle([left, top, left + 18, top + 18], fill=color, outline=_GREY)
        pen.text((left + 26, top + 9), name, font=_font(14), fill=_DARK, anchor="lm")
        left += 50 + 9 * len(name)


def ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers in a range, four to ten of them."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    number = math.ceil(low / step)
    while number * step <= high:
        yield round(number * step, 10)
        number += 1
