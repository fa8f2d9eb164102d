"""Draws docs/images/icon.png and docs/images/banner.png, which the registry of ComfyUI's packs shows."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).parent / "images"
# Drawn larger and shrunk, for smooth edges.
SCALE = 4
ICON, BANNER = (400, 400), (1260, 540)
GROUND, INK, SOFT = "#11161d", "#f4f6f8", "#8a94a3"
DAY = {"sky": ("#6fa8ef", "#cfe2f7"), "far": "#7d9c86", "near": "#3f7d3a", "sun": "#fff3c4"}
SUNSET = {"sky": ("#b8552f", "#f2b277"), "far": "#9a5a3a", "near": "#5e3520", "sun": "#ff4b2b"}


def mixed(first, second, share):
    """The colour between two others."""
    a, b = (tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in (first, second))
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def scene(width, height, colours, shift=0.0):
    """Sky, a sun and two ranges of hills; ``shift`` moves them along."""
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    for y in range(height):
        draw.line([(0, y), (width, y)], fill=mixed(*colours["sky"], y / height))
    x, y, radius = width * (0.64 - 0.08 * shift), height * 0.4, height * 0.15
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colours["sun"])
    for name, level, depth, pace in (("far", 0.6, 0.09, 5.0), ("near", 0.77, 0.08, 7.0)):
        edge = [
            (x, height * (level + depth * math.sin(pace * (x / width) + 1.3 * shift + pace))) for x in range(width + 1)
        ]
        draw.polygon([*edge, (width, height), (0, height)], fill=colours[name])
    return picture


def edited(width, height, share, shift=0.0):
    """The scene as it was, with its edit in the right ``share`` of it and a line between."""
    picture = scene(width, height, DAY, shift)
    cut = round(width * (1 - share))
    picture.paste(scene(width, height, SUNSET, shift).crop((cut, 0, width, height)), (cut, 0))
    if 0 < share < 1:
        ImageDraw.Draw(picture).line([(cut, 0), (cut, height)], fill="white", width=max(2, width // 60))
    return picture


def place(canvas, picture, left, top, radius):
    """Pastes a picture with round corners."""
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, picture.width - 1, picture.height - 1], radius, fill=255)
    canvas.paste(picture, (left, top), mask)


def holes(draw, left, right, top, size, gap):
    """A row of a film's holes."""
    for x in range(left, right - size + 1, size + gap):
        draw.rounded_rectangle([x, top, x + size, top + size * 0.7], size * 0.2, fill=INK)


def icon():
    side = ICON[0] * SCALE
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle([0, 0, side - 1, side - 1], side // 7, fill=GROUND)
    margin, band = side // 12, side // 5
    place(canvas, edited(side - 2 * margin, side - 2 * band, 0.5, 1.75), margin, band, side // 30)
    size, gap = side // 13, side // 18
    start = (side - 6 * size - 5 * gap) // 2
    for top in (side * 0.085, side * 0.862):
        holes(draw, start, side - start, top, size, gap)
    return canvas.resize(ICON, Image.Resampling.LANCZOS)


def banner():
    width, height = BANNER[0] * SCALE, BANNER[1] * SCALE
    canvas = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((width // 21, height * 0.09), "SANA-Streaming", fill=INK, font=ImageFont.load_default(height // 7))
    line = "Say what should change: any video, any length, chunk by chunk"
    draw.text((width // 21, height * 0.29), line, fill=SOFT, font=ImageFont.load_default(height // 19))
    count, gap = 5, width // 60
    side = (width - 2 * (width // 21) - (count - 1) * gap) // count
    top, tall = round(height * 0.5), round(height * 0.33)
    for i in range(count):
        left = width // 21 + i * (side + gap)
        place(canvas, edited(side, tall, (0, 0, 0.5, 1, 1)[i], i / 2), left, top, height // 40)
        if i:
            middle = top + tall // 2
            draw.line([(left - gap * 1.2, middle), (left + gap * 0.2, middle)], fill="white", width=height // 90)
    for edge in (top - height * 0.07, top + tall + height * 0.045):
        holes(draw, width // 21, width - width // 21, edge, height // 26, height // 18)
    return canvas.resize(BANNER, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    for name, picture in (("icon", icon()), ("banner", banner())):
        picture.save(IMAGES / f"{name}.png", optimize=True)
