"""Sound on its way past the picture: decoded where it comes in, held for the picture's delay, laid out anew without holes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av import Packet
    from av.audio.stream import AudioStream

logger = logging.getLogger(__name__)

RATE = 48_000
LAYOUT = "stereo"
CHANNELS = 2
# What is held at most: a picture is never later than that.
LONGEST_SECONDS = 120.0
# Pieces that lie so near to the end of the one before follow it without a seam; time stamps are rounded.
TOLERANCE = 0.02


class SoundBlock(NamedTuple):
    """A piece of sound: ``time`` of its first sample, in seconds of the source; float32 [2, n] at 48 kHz."""

    time: float
    samples: np.ndarray


class SoundReader:
    """Packets of one audio stream to samples."""

    def __init__(self, stream: AudioStream) -> None:
        self.stream = stream
        self._resampler: Any = None

    def decoded(self, packet: Packet[AudioStream]) -> Iterator[tuple[float, np.ndarray]]:
        """(time stamp in seconds, samples as in :class:`SoundBlock`). What is damaged is left out."""
        import av

        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            logger.debug("sound: %s", error)
            return
        for frame in frames:
            if frame.pts is None or frame.time_base is None:
                continue
            for piece in self._resampled(frame):
                if piece.pts is not None:
                    yield float(piece.pts * piece.time_base), piece.to_ndarray()

    def _resampled(self, frame: Any) -> list[Any]:
        import av

        for _ in range(2):
            if self._resampler is None:
                self._resampler = av.AudioResampler(format="fltp", layout=LAYOUT, rate=RATE)
            try:
                found: list[Any] = self._resampler.resample(frame)
                return found
            except (ValueError, av.FFmpegError):
                # The stream has changed its rate or layout.
                self._resampler = None
        return []


class SoundBuffer:
    """Blocks that wait for their picture, in order of time. For one thread that adds and one that takes."""

    def __init__(self) -> None:
        self._blocks: deque[SoundBlock] = deque()
        self._lock = Lock()

    def add(self, block: SoundBlock) -> None:
        with self._lock:
            self._blocks.append(block)
            while self._blocks[0].time < block.time - LONGEST_SECONDS:
                self._blocks.popleft()

    def take_before(self, until: float) -> list[SoundBlock]:
        """The blocks that begin before this source time."""
        taken = []
        with self._lock:
            while self._blocks and self._blocks[0].time < until:
                taken.append(self._blocks.popleft())
        return taken

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()


class SoundTrack:
    """Blocks laid out on the samples of an output, which begin at 0 and have no holes.

    A block whose time is that of the end so far, give or take ``TOLERANCE``, goes on there. A later one comes after silence; of
    an earlier one the beginning, or all, is left out.
    """

    def __init__(self) -> None:
        self.num_samples = 0

    @property
    def end(self) -> Fraction:
        """Seconds laid out so far."""
        return Fraction(self.num_samples, RATE)

    def place(self, seconds: float, samples: np.ndarray) -> Iterator[np.ndarray]:
        """What is to be written for a block that begins at so many ``seconds``: silence, and what is used of it."""
        ahead = round(seconds * RATE) - self.num_samples
        if ahead > RATE * TOLERANCE:
            # A pause may be long: no more than a second is made at a time.
            for start in range(0, ahead, RATE):
                silence = np.zeros((samples.shape[0], min(RATE, ahead - start)), np.float32)
                self.num_samples += silence.shape[1]
                yield silence
        elif ahead < -RATE * TOLERANCE:
            samples = samples[:, -ahead:]
        if samples.shape[1]:
            self.num_samples += samples.shape[1]
            yield samples
