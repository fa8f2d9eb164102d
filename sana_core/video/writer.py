"""Video files out: H.264 written frame by frame, with the source's sound, readable while it grows and after a crash."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..paths import check_folder
from .audio_cut import AudioCut
from .salvage import is_cut_short, salvage

if TYPE_CHECKING:
    import numpy as np
    from av import Packet, VideoFrame
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

_SECONDS_PER_FRAGMENT = 2

# x264 takes no longer side; FFmpeg takes no picture with (width + 128) * (height + 128) beyond 28 bits.
_LONGEST_SIDE, _LARGEST_SQUARE, _PADDING, _AREA_BITS = 16_384, 16_254, 128, 28
# MP4 counts time in 32 bits; every rate in use has a denominator of 1001 or less. Matroska counts milliseconds.
_LARGEST_DENOMINATOR, _HIGHEST_RATE = 65_535, 1000

_BT709, _BT601, _BT601_TAG, _LIMITED_RANGE = 1, 5, 6, 1


class WriteError(OSError):
    """Writing broke off: one line that names the file, the frames that are safely in it, the cause and the remedy.

    ``frames_safe`` frames, from the first on, are in the file and play; where it is 0 there is no file.
    """

    def __init__(self, message: str, frames_safe: int) -> None:
        super().__init__(message)
        self.frames_safe = frames_safe


def check_output(path: str | Path, *, source: str | Path | None = None) -> None:
    """Raise InputError unless a video can be written to ``path``; leaves nothing behind and an existing file untouched.

    ``source`` is a file that is still read while ``path`` is written, and must be another one.
    """
    path = Path(path)
    if path.suffix.lower() not in _CONTAINERS:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without ending'}: use {', '.join(_CONTAINERS)}")
    check_folder(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a video file")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} is write-protected: choose another name")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError(f"{path} is also the source: write to another file")


class VideoWriter:
    """An H.264 video (4:2:0) that grows as frames are written; leaving the with-block finishes it, also on an error.

    Frame i has the time i / ``frame_rate`` exactly (to the millisecond in .mkv, which knows no finer time). The matrix
    is BT.709 for HD sizes and BT.601 below, as players assume, and tagged. The file appears with the first frame.

    Sound comes from the first audio stream of ``audio_from``, from ``audio_start`` seconds on, counted from that file's
    first picture. It is copied where the container takes its codec, else encoded as AAC; it is read along with the
    picture and never outlasts it by more than one packet.

    A process that is killed leaves a file that plays up to its last complete fragment; before the first there is
    nothing to play. Frames are not in the file when `write` returns: x264 looks 20 frames ahead and holds one more per
    thread, and a fragment, at most 2 seconds long, is complete when the next one begins.

    `write` and `close` work in a thread, which Ctrl-C does not reach: each call is done as a whole or, where Ctrl-C
    came first, not at all. ``frames_written`` is the number of frames that the encoder has taken, all of which a
    finished file holds.

    Args:
        width, height: in pixels, even, at most 16384 each and 16254x16254 in all.
        frame_rate: frames per second, 1/65535 to 1000.
        crf: x264's constant rate factor, 0 (lossless) to 51; 25 is the release's.

    Raises InputError for a size, rate, crf, path (see `check_output`) or audio file that will not do; `write` and
    `close` raise WriteError where the disk is full or fails, once the frames that are in the file are safe.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        frame_rate: Fraction,
        crf: int = 25,
        audio_from: str | Path | None = None,
        audio_start: float = 0.0,
    ) -> None:
        check_output(path, source=audio_from)
        _check_size(width, height)
        if not Fraction(1, _LARGEST_DENOMINATOR) <= frame_rate <= _HIGHEST_RATE:
            raise InputError(
                f"cannot write video at {frame_rate} frames per second: the rate must be from 1/{_LARGEST_DENOMINATOR} "
                f"to {_HIGHEST_RATE}"
            )
        if not 0 <= crf <= 51:
            raise InputError(f"crf is {crf}: x264 takes 0 (lossless) to 51")
        if audio_start < 0:
            raise InputError(f"audio_start is {audio_start} seconds: it must be 0 or more")
        self.path = Path(path)
        self.width, self.height = width, height
        self.frame_rate = Fraction(frame_rate).limit_denominator(_LARGEST_DENOMINATOR)
        self.frames_written = 0
        self._crf = crf
        self._audio = AudioCut(Path(audio_from), audio_start) if audio_from is not None else None
        self._output: OutputContainer | None = None
        self._video: VideoStream
        self._packets: deque[Packet[VideoStream]] = deque()
        self._closed = False
        self._lock = Lock()

    def write(self, frames: Tensor) -> None:
        """Append ``frames``, uint8 [F, height, width, 3], RGB, on any device."""
        expected = (self.height, self.width, 3)
        if frames.ndim != 4 or tuple(frames.shape[1:]) != expected or frames.dtype != torch.uint8:
            raise InputError(
                f"{self.path}: got frames of {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 "
                f"[frames, {self.height}, {self.width}, 3]"
            )
        pictures = frames.cpu().contiguous().numpy()
        _uninterrupted(lambda: self._append(pictures))

    def close(self) -> None:
        """Finish the file. Without a frame there is none to finish: nothing is written."""
        _uninterrupted(self._finish)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, pictures: "np.ndarray") -> None:
        with self._lock, self._salvaging():
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            for picture in pictures:
                if self._output is None:
                    self._output = self._open()
                self._packets.extend(self._video.encode(self._frame(picture)))
                self.frames_written += 1
                self._mux()

    def _finish(self) -> None:
        with self._lock, self._salvaging():
            if self._closed:
                return
            self._closed = True
            try:
                if self._output is not None:
                    with self._output:
                        self._flush()
                    if is_cut_short(self.path):
                        raise OSError("its end is missing")
            finally:
                if self._audio is not None:
                    self._audio.close()

    @contextmanager
    def _salvaging(self) -> Iterator[None]:
        """Where FFmpeg or the disk fails, the file is closed as well as it can be and a WriteError raised."""
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as error:
            self._closed = True
            if self._output is not None:
                for end in (self._flush, self._output.close):
                    with suppress(OSError, av.FFmpegError):
                        end()
            if self._audio is not None:
                self._audio.close()
            frames_safe = 0
            if self._output is not None:
                with suppress(OSError):
                    frames_safe = salvage(self.path, self.frame_rate)
            kept = f"its first {frames_safe} frames are safe" if frames_safe else "none could be kept"
            raise WriteError(
                f"{self.path}: writing broke off after {self.frames_written} frames, {kept} "
                f"({error.strerror or error}): make room on the disk, or write to another folder",
                frames_safe,
            ) from error

    def _open(self) -> "OutputContainer":
        """The container with its header written, or none and no file."""
        import av

        container_format = _CONTAINERS[self.path.suffix.lower()]
        # Sound may end before the picture: do not hold pictures back to wait for it.
        options = {"flush_packets": "1", "max_interleave_delta": "1000000"}
        if container_format != "matroska":
            options["movflags"] = _movflags()
        output = av.open(str(self.path.absolute()), "w", format=container_format, options=options)
        try:
            self._video = self._add_video(output)
            if self._audio is not None:
                self._audio.add_to(output, container_format)
            output.start_encoding()
        except BaseException:
            output.close()
            self.path.unlink(missing_ok=True)
            raise
        return output

    def _add_video(self, output: "OutputContainer") -> "VideoStream":
        stream = output.add_stream("libx264", rate=self.frame_rate)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self.frame_rate
        context.gop_size = max(1, round(_SECONDS_PER_FRAGMENT * self.frame_rate))
        context.options = {"crf": str(self._crf), "rc-lookahead": "20"}
        context.colorspace = _BT709 if self._is_hd else _BT601_TAG
        context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    @property
    def _is_hd(self) -> bool:
        return self.width >= 1280 or self.height > 576

    def _frame(self, picture: "np.ndarray") -> "VideoFrame":
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=_BT709 if self._is_hd else _BT601, dst_color_range=_LIMITED_RANGE
        )
        frame.pts, frame.time_base = self.frames_written, 1 / self.frame_rate
        return frame

    def _flush(self) -> None:
        """All that the encoder still holds, and its sound."""
        self._packets.extend(self._video.encode(None))
        self._mux()
        self._mux_audio(self.frames_written / self.frame_rate)

    def _mux(self) -> None:
        """A packet waits until it is in the file: one whose sound fails is not lost."""
        assert self._output is not None
        while self._packets:
            packet = self._packets[0]
            if packet.dts is not None:
                self._mux_audio(packet.dts * packet.time_base)
            self._output.mux(packet)
            self._packets.popleft()

    def _mux_audio(self, until: Fraction) -> None:
        """All sound that begins before ``until`` seconds."""
        if self._audio is not None and self._output is not None:
            for packet in self._audio.packets_before(until):
                self._output.mux(packet)


def _check_size(width: int, height: int) -> None:
    longest, shortest = max(width, height), min(width, height)
    area = (width + _PADDING) * (height + _PADDING)
    if shortest < 2 or width % 2 or height % 2 or longest > _LONGEST_SIDE or area >= 1 << _AREA_BITS:
        raise InputError(
            f"cannot write video of {width}x{height}: width and height must be even, at most {_LONGEST_SIDE} each and "
            f"{_LARGEST_SQUARE}x{_LARGEST_SQUARE} in all"
        )


def _uninterrupted(work: Callable[[], None]) -> None:
    """Does ``work`` in a thread of its own, since Ctrl-C is raised in the main thread alone, and waits for its end."""
    with ThreadPoolExecutor(1, "video writer") as thread:
        thread.submit(work).result()


def _movflags() -> str:
    """MP4 options: a header with edit lists (frame 0 and the sound keep their times), then a fragment per key frame.

    FFmpeg 8.1 turns the fragments into an ordinary MP4 on close. 8.0 writes a broken file where asked for both, so
    there the fragments stay.
    """
    import av

    hybrid = av.library_versions["libavformat"] >= (62, 12, 0)
    return "+hybrid_fragmented+delay_moov" if hybrid else "+frag_keyframe+delay_moov+default_base_moof"
