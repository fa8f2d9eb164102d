"""Frames at another rate, by the times that a file gives them: dropped and repeated as they come, never blended.

Frame k of the result is the last frame of the file that is due by half a frame after k / rate, so that times rounded by a
container do no harm. Time 0 is the file's first frame; sound keeps its place.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .media import open_media, video_stream

if TYPE_CHECKING:
    from av import VideoFrame

LOWEST_RATE, HIGHEST_RATE = Fraction(1, 1000), Fraction(1000)


@dataclass(frozen=True)
class Span:
    """Times of the first and the last frame, and how long the last one is shown, in seconds."""

    first: Fraction
    last: Fraction
    shown: Fraction

    @property
    def seconds(self) -> Fraction:
        return self.last + self.shown - self.first


def check_rate(rate: Fraction) -> None:
    """InputError for a rate at which nothing is resampled."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(f"cannot resample to {float(rate):g} frames per second: use {LOWEST_RATE} to {HIGHEST_RATE}")


def read_span(path: Path, frame_rate: Fraction) -> Span:
    """Looks through the file without decoding it; where it tells no times, frames follow each other at ``frame_rate``."""
    import av

    count = 0
    span: Span | None = None
    # Reading the frames will say what is wrong with a damaged file.
    with open_media(path) as container, suppress(av.FFmpegError):
        for packet in container.demux(video_stream(container, path)):
            if not packet.size or packet.is_discard:
                continue
            count += 1
            if packet.pts is None:
                continue
            time, shown = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base or 1 / frame_rate
            if span is None:
                span = Span(time, time, shown)
            elif time >= span.last:
                span = replace(span, last=time, shown=shown)
            else:
                span = replace(span, first=min(span.first, time))
    return span or Span(Fraction(0), max(0, count - 1) / frame_rate, 1 / frame_rate)


def resampled_count(span: Span, rate: Fraction) -> int:
    """Frames of the result; at least 1."""
    return max(_slot(span.seconds, rate), _slot(span.last - span.first, rate) + 1)


def resampled(
    frames: "Iterable[VideoFrame]", span: Span, rate: Fraction, frame_rate: Fraction
) -> "Iterator[VideoFrame]":
    """``frames`` in display order, at ``rate``; one is held.

    A frame without a time follows the one before at ``frame_rate``, the source's. Where the file breaks off before the end
    of ``span``, so does the result.
    """
    held: VideoFrame | None = None
    given, time = 0, Fraction(0)
    for frame in frames:
        time = _time(frame, span, Fraction(0) if held is None else time + 1 / frame_rate)
        while held is not None and given < _slot(time, rate):
            yield held
            given += 1
        held = frame
    if held is None:
        return
    whole = time >= span.last - span.first
    end = resampled_count(span, rate) if whole else _slot(time, rate) + 1
    for _ in range(given, end):
        yield held


def _time(frame: "VideoFrame", span: Span, otherwise: Fraction) -> Fraction:
    """Seconds since the first frame."""
    if frame.pts is None or frame.time_base is None:
        return otherwise
    return frame.pts * frame.time_base - span.first


def _slot(seconds: Fraction, rate: Fraction) -> int:
    """Number of the result's frame that is nearest in time, the later of two."""
    return math.floor(seconds * rate + Fraction(1, 2))
