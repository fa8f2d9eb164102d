"""From ComfyUI's VIDEO and IMAGE to frames, sound and rate, without holding a long clip."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl

from ..sana_core.errors import InputError
from ..sana_core.video.reader import HDR, FrameSource, PictureFrames, VideoReader, probe
from ..sana_core.video.sound import write_sound
from . import comfy_host

# Rate of pictures that come without one; the release writes its results at 16.
DEFAULT_RATE = Fraction(16)
# Less than this is how files are cut, and no mistake.
_SPARE_SECONDS = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """Frames to take in, where they start in ``audio_from``, and that file (None without sound).

    ``frame_rate`` is None for pictures, which have none of their own.
    """

    frames: FrameSource
    start: int
    audio_from: Path | None
    frame_rate: Fraction | None


@contextmanager
def open_clip(video: Any, start_frame: int, max_frames: int, hdr: HDR = "refuse") -> Iterator[Clip]:
    """The frames of a VIDEO or an IMAGE, from ``start_frame`` on, at most ``max_frames`` (0: all).

    A VIDEO in a file is read frame by frame, one that was made from pictures is used as it is; ``hdr`` is for files of high
    dynamic range. Temporary files that sound or video in memory need are removed at the end.
    """
    limit = max_frames or None
    made: list[Path] = []
    try:
        if isinstance(video, torch.Tensor):
            yield Clip(_pictures(video, DEFAULT_RATE, start_frame, limit), start_frame, None, None)
        elif (path := _file_of(video, made)) is not None:
            yield _file_clip(path, video, start_frame, limit, hdr)
        else:
            parts = video.get_components()
            rate = Fraction(parts.frame_rate)
            frames = _pictures(parts.images, rate, start_frame, limit)
            if spare := spare_sound(parts.audio, len(parts.images) / rate):
                logger.warning("SANA-Streaming: %s", spare)
            yield Clip(frames, start_frame, _sound_file(parts.audio, made), rate)
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def frame_size(clip: Clip) -> tuple[int, int]:
    """(height, width) of a clip's frames."""
    if isinstance(clip.frames, PictureFrames):
        return int(clip.frames.pictures.shape[1]), int(clip.frames.pictures.shape[2])
    assert isinstance(clip.frames, VideoReader)
    return clip.frames.size


def _pictures(images: torch.Tensor, rate: Fraction, start: int, limit: int | None) -> PictureFrames:
    if images.ndim != 4 or images.shape[3] < 3:
        raise InputError(f"pictures of shape {tuple(images.shape)} are no RGB pictures, [frames, height, width, 3]")
    if images.shape[3] > 3:
        logger.warning(
            "SANA-Streaming: the pictures are RGBA: what is transparent is left out, and the colours behind it are taken; "
            "lay them over a background first to have another one"
        )
    if start >= len(images):
        raise InputError(f"start_frame {start} is not in the {len(images)} frames that are connected")
    chosen = images[start:] if limit is None else images[start : start + limit]
    return PictureFrames(chosen[..., :3], rate)


def _file_of(video: Any, made: list[Path]) -> Path | None:
    """The file behind a VIDEO, written out if it lives in memory; None for a VIDEO made of pictures."""
    # Asked for its stream source, a VIDEO made of pictures would encode the whole clip.
    if isinstance(video, InputImpl.VideoFromComponents):
        return None
    source = video.get_stream_source()
    if not isinstance(source, BytesIO):
        return Path(source)
    path = comfy_host.temporary_video("sana_streaming_source", ".video")
    made.append(path)
    path.write_bytes(source.getvalue())
    return path


def _file_clip(path: Path, video: Any, start: int, limit: int | None, hdr: HDR) -> Clip:
    """A file, narrowed to the window that a trim node has set."""
    info = probe(path)
    begin, seconds = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)
    first = _frame_at(begin, info.frame_rate)
    available = info.num_frames - first
    if seconds:
        available = min(available, _frame_at(begin + seconds, info.frame_rate) - first)
    if start >= available:
        raise InputError(f"start_frame {start} is not in the {available} frames of the video")
    count = available - start if limit is None else min(limit, available - start)
    reader = VideoReader(path, start=first + start, max_frames=count, on_frame=comfy_host.check_interrupt, hdr=hdr)
    return Clip(reader, first + start, path if info.has_audio else None, info.frame_rate)


def _frame_at(seconds: float, rate: Fraction) -> int:
    """The first frame at or after a time, as ComfyUI cuts; times of frames are rounded, so a little before will do."""
    return math.ceil(seconds * rate - 1e-3)


def spare_sound(audio: dict[str, Any] | None, end: float | Fraction) -> str:
    """What becomes of sound that goes on for longer than the pictures, which end at that second; empty where none does."""
    seconds = 0.0 if audio is None else audio["waveform"].shape[-1] / audio["sample_rate"]
    if seconds - end < _SPARE_SECONDS:
        return ""
    return f"the sound is {seconds:.1f} s long and the pictures end at {float(end):.1f} s: the rest of it is left out"


def _sound_file(audio: dict[str, Any] | None, made: list[Path]) -> Path | None:
    """ComfyUI's AUDIO as a file that a video writer can read."""
    if audio is None:
        return None
    path = comfy_host.temporary_video("sana_streaming_sound", ".wav")
    made.append(path)
    write_sound(path, audio["waveform"][0], int(audio["sample_rate"]))
    return path


@contextmanager
def sound_file(audio: dict[str, Any] | None) -> Iterator[Path | None]:
    """A temporary file with ComfyUI's AUDIO, or None."""
    made: list[Path] = []
    try:
        yield _sound_file(audio, made)
    finally:
        for path in made:
            path.unlink(missing_ok=True)
