"""Clips to train on by number: the same clip for the same seed and number, so a run can stop and go on anywhere.

Frames are uint8 [F, H, W, 3], RGB.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..video.geometry import resize_and_crop
from ..video.reader import VideoReader
from .config import ClipSize, VideoData
from .data.sources import training_sample

logger = logging.getLogger(__name__)

MOST_SKIPPED = 20
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".webm", ".avi")

Item = TypeVar("Item")
Read = TypeVar("Read")


class ClipSource(Protocol):
    """Clips of one size."""

    def clip(self, seed: int, number: int) -> Tensor:
        """uint8 [F, H, W, 3]; a pure function. Raises InputError where no clip can be read."""


@dataclass(frozen=True)
class BuiltinClips:
    """Sources and true edits of the built-in data, each as often as the other: a VAE has to know both."""

    frames: int
    height: int
    width: int
    device: torch.device

    def clip(self, seed: int, number: int) -> Tensor:
        sample = training_sample(seed, number, self.frames, self.height, self.width, self.device)
        edited = random.Random(f"side {seed} {number}").random() < 0.5
        return sample.truth if edited else sample.source


class VideoClips:
    """Stretches of video files from anywhere in them. A file that cannot be read, or is too short, is skipped."""

    def __init__(self, paths: Iterable[Path], frames: int, height: int, width: int) -> None:
        """Raises InputError where the paths hold no video file."""
        self.files = [file for path in paths for file in _video_files(path)]
        self._frames, self._height, self._width = frames, height, width
        self._skips = Skips("video files")

    def clip(self, seed: int, number: int) -> Tensor:
        rng = random.Random(f"stretch {seed} {number}")
        share, place = rng.random(), shuffled(seed, number, len(self.files))
        return self._skips.read(others_after(self.files, place, rng), str, lambda file: self._stretch(file, share))

    def _stretch(self, file: Path, share: float) -> Tensor:
        """``share``, below 1, is where in the file: 0 is its beginning."""
        length = VideoReader(file).num_frames
        if length < self._frames:
            raise InputError(f"{file} has {length} frames; a clip takes {self._frames}")
        start = int(share * (length - self._frames + 1))
        frames = torch.stack(list(VideoReader(file, start=start, max_frames=self._frames)))
        if len(frames) < self._frames:
            raise InputError(f"{file} breaks off; a clip takes {self._frames} frames from frame {start}")
        return fit_frames(frames, self._height, self._width)


def open_clips(data: VideoData, size: ClipSize, device: torch.device) -> ClipSource:
    """The clips that a config asks for; drawn ones are made on ``device``."""
    assert size.height is not None and size.width is not None
    if data.builtin:
        return BuiltinClips(size.frames, size.height, size.width, device)
    return VideoClips(data.videos, size.frames, size.height, size.width)


class Skips:
    """Reads the first of several things that can be read, and warns of each that cannot, once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bad: dict[str, InputError] = {}

    def read(self, items: Iterable[Item], name: Callable[[Item], str], read: Callable[[Item], Read]) -> Read:
        """``read`` of the first item that does not raise InputError; InputError after the last one."""
        failed = 0
        for item in items:
            key = name(item)
            if key not in self._bad:
                try:
                    return read(item)
                except InputError as error:
                    self._bad[key] = error
                    logger.warning("%s is left out: %s", key, error)
            failed, last = failed + 1, self._bad[key]
        raise InputError(f"{failed} {self._what} in a row cannot be used, the last because {last}") from last


def others_after(items: list[Item], place: int, rng: random.Random) -> list[Item]:
    """The item at ``place``, then others in random order, at most :data:`MOST_SKIPPED` in all."""
    others = [item for index, item in enumerate(items) if index != place]
    return [items[place], *rng.sample(others, min(len(others), MOST_SKIPPED - 1))]


def shuffled(seed: int, number: int, count: int) -> int:
    """Which of ``count`` things is the ``number``-th: all of them in random order, then all again in another order."""
    around, place = divmod(number, count)
    return random.Random(f"order {seed} {around}").sample(range(count), count)[place]


def fit_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 [F, h, w, 3] scaled to fill ``height`` x ``width`` and centre-cropped, as for an edit."""
    if frames.shape[1:3] == (height, width):
        return frames
    fitted = torch.empty(len(frames), height, width, 3, dtype=torch.uint8, device=frames.device)
    # One by one: the result is four times as large in between.
    for frame, out in zip(frames, fitted, strict=True):
        pixels = resize_and_crop(frame[None], height, width)[0].permute(1, 2, 0)
        out.copy_((127.5 * pixels + 127.5).round_().clamp_(0, 255))
    return fitted


def crop_clips(clips: Iterable[Tensor], side: int | None, seed: int, number: int) -> list[Tensor]:
    """The same square of ``side`` pixels out of each clip, anywhere; all of them where ``side`` is None."""
    rng = random.Random(f"crop {seed} {number}")
    down, right = rng.random(), rng.random()
    cut = []
    for clip in clips:
        if side is not None:
            top, left = int(down * (clip.shape[1] - side + 1)), int(right * (clip.shape[2] - side + 1))
            clip = clip[:, top : top + side, left : left + side]
        cut.append(clip)
    return cut


def _video_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path} does not exist; give video files or folders of them")
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _VIDEO_SUFFIXES)
    if not found:
        raise InputError(f"{path} holds no video file ({', '.join(_VIDEO_SUFFIXES)}); name another folder")
    return found
