"""Where edited frames go: an encoder of FFmpeg's, raw bytes, a virtual camera, or nowhere."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from ..errors import InputError
from ..paths import check_folder
from .address import TargetAddress, unknown_protocol
from .clock import Backoff
from .sound import LAYOUT, RATE, SoundTrack

if TYPE_CHECKING:
    from av.container import OutputContainer

logger = logging.getLogger(__name__)

# Of MPEG-TS, which counts time most coarsely of all that is counted in fractions.
TIME_BASE = Fraction(1, 90_000)
KEYFRAME_SECONDS = 2
# A receiver that takes nothing for so long counts as lost.
STALL_SECONDS = 10.0
AAC_FRAME = 1024
AAC_BITS = 128_000
_BT709, _BT601, _BT601_TAG, _LIMITED_RANGE = 1, 5, 6, 1


class Sink(Protocol):
    """Takes frames and sound in order of time. Not for several threads."""

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        """uint8 [H, W, 3], shown from ``seconds`` after the start on; False where it could not be sent and is lost."""

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        """float32 [2, n] at 48 kHz, from ``seconds`` on; what lies before the start is left out."""

    def close(self) -> None: ...


def check_target_address(target: TargetAddress, source: str) -> None:
    """InputError for a place that cannot be written to."""
    if target.is_camera:
        _pyvirtualcam()
        return
    if target.is_remote or target.is_standard:
        _check_format(target)
        return
    path = Path(target.text)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a video file")
    _check_format(target)
    if not path.exists():
        check_folder(path)
        return
    if not os.access(path, os.W_OK):
        raise InputError(f"{path} is write-protected: choose another name")
    if Path(source).exists() and path.samefile(source):
        raise InputError(f"{path} is also the source: write to another file")


def _check_format(target: TargetAddress) -> None:
    """InputError where nothing says in what format to write, or what it says is none that FFmpeg writes here."""
    import av

    name = target.format
    if name is not None:
        try:
            known = av.format.ContainerFormat(name, "w").is_output
        except ValueError:
            known = False
        if not known:
            raise InputError(
                f"--output-format {name} is none that this PyAV writes; use .mp4, .mkv, .ts or another --output-format"
            )
        return
    ending = Path(target.text).suffix.removeprefix(".").lower()
    formats = (av.format.ContainerFormat(each) for each in av.formats_available)
    if not ending or not any(ending in each.extensions for each in formats if each.is_output):
        raise InputError(f"{target.text} does not say its format; use .mp4, .mkv, .ts or --output-format")


def open_sink(
    target: TargetAddress | None, *, height: int, width: int, rate: Fraction, has_sound: bool, crf: int
) -> Sink:
    """The sink of an address; None for frames that only the page shows. Raises OSError where it cannot be opened."""
    if target is None:
        return NoSink()
    if target.is_camera:
        return CameraSink(target.camera, height, width, rate)
    if target.is_raw:
        return RawSink(target)

    def make(start: float) -> Sink:
        return EncodedSink(target, height=height, width=width, rate=rate, has_sound=has_sound, crf=crf, start=start)

    return RemoteSink(target.text, make) if target.is_remote else make(0.0)


class NoSink:
    """Takes everything and does nothing with it."""

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        return True

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        return None

    def close(self) -> None:
        return None


class RawSink:
    """Bytes of RGB, one frame after another, to standard output, a file or a named pipe. It has no times and no sound."""

    def __init__(self, target: TargetAddress) -> None:
        self._name, self._owned = target.name, not target.is_standard
        if self._owned:
            self._file: BinaryIO = Path(target.text).open("wb")  # noqa: SIM115
        else:
            self._file = sys.stdout.buffer

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        try:
            self._file.write(np.ascontiguousarray(picture).data)
            self._file.flush()
        except BrokenPipeError:
            raise BrokenPipeError(f"{self._name} was closed by its reader") from None
        return True

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        return None

    def close(self) -> None:
        if self._owned:
            self._file.close()


class CameraSink:
    """A virtual camera, which other programs show as if it were one."""

    def __init__(self, device: str | None, height: int, width: int, rate: Fraction) -> None:
        package = _pyvirtualcam()
        try:
            self._camera = package.Camera(
                width=width, height=height, fps=float(rate), device=device, fmt=package.PixelFormat.RGB
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"there is no virtual camera ({reason}); docs/live.md says how to set one up") from error

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        self._camera.send(np.ascontiguousarray(picture))
        return True

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        return None

    def close(self) -> None:
        self._camera.close()


class EncodedSink:
    """H.264 and AAC in a container of FFmpeg's, without look-ahead: a frame is sent when it is written.

    What is written so far plays where the process is killed, if the container can (MP4 is written in fragments). ``start``:
    seconds that are time 0 there, for a sink that is opened in the middle.
    """

    def __init__(
        self, target: TargetAddress, *, height: int, width: int, rate: Fraction, has_sound: bool, crf: int, start: float
    ) -> None:
        import av

        text = _with_timeout(target.text) if target.is_remote else str(Path(target.text).absolute())
        options = {"flush_packets": "1", "max_interleave_delta": "500000"}
        if target.format in ("mp4", "mov") or (target.format is None and Path(text).suffix in (".mp4", ".m4v", ".mov")):
            options["movflags"] = "+frag_keyframe+delay_moov+default_base_moof"
        self._name = target.name
        self._start = start
        self._track = SoundTrack()
        self._rest = np.zeros((2, 0), np.float32)
        self._encoded_samples = 0
        self._hd = width >= 1280 or height > 576
        with _reported(target.name), contextlib.ExitStack() as opened:
            target_file: Any = "pipe:1" if target.is_standard else text
            if Path(text).is_fifo():
                # FFmpeg would wait for a pipe's reader without letting other threads run.
                target_file = opened.enter_context(Path(text).open("wb", buffering=0))
            self._output: OutputContainer = opened.enter_context(
                av.open(target_file, "w", format=target.format, options=options | dict(target.options))
            )
            self._video = self._add_video(height, width, rate, crf)
            self._audio: Any = self._add_audio() if has_sound else None
            self._output.start_encoding()
            self._opened = opened.pop_all()

    def _add_video(self, height: int, width: int, rate: Fraction, crf: int) -> Any:
        stream = self._output.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.gop_size = max(1, round(KEYFRAME_SECONDS * rate))
        context.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
        context.colorspace = _BT709 if self._hd else _BT601_TAG
        context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _add_audio(self) -> Any:
        stream = self._output.add_stream("aac", rate=RATE, layout=LAYOUT, format="fltp")
        stream.codec_context.bit_rate = AAC_BITS
        return stream

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        import av

        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=_BT709 if self._hd else _BT601, dst_color_range=_LIMITED_RANGE
        )
        frame.pts, frame.time_base = round((seconds - self._start) / TIME_BASE), TIME_BASE
        with _reported(self._name):
            self._output.mux(self._video.encode(frame))
        return True

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        if self._audio is None:
            return
        for piece in self._track.place(seconds - self._start, samples):
            self._rest = np.concatenate([self._rest, piece], 1)
            while self._rest.shape[1] >= AAC_FRAME:
                self._encode_sound(self._rest[:, :AAC_FRAME])
                self._rest = self._rest[:, AAC_FRAME:]

    def _encode_sound(self, samples: np.ndarray) -> None:
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=LAYOUT)
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._encoded_samples, Fraction(1, RATE)
        self._encoded_samples += samples.shape[1]
        self._mux_sound(frame)

    def _mux_sound(self, frame: Any) -> None:
        with _reported(self._name):
            for packet in self._audio.encode(frame):
                # The encoder's run-in lies before time 0, and Matroska would move the picture to fit it in.
                if packet.pts is not None and packet.pts >= 0:
                    self._output.mux(packet)

    def close(self) -> None:
        with _reported(self._name), self._opened:
            self._output.mux(self._video.encode(None))
            if self._audio is not None:
                self._mux_sound(None)


class RemoteSink:
    """A sink at an address: where it fails, frames are lost until it can be opened again."""

    def __init__(self, name: str, make: Callable[[float], Sink]) -> None:
        self._name, self._make = name, make
        self._backoff = Backoff()
        self._sink: Sink | None = make(0.0)
        self._retry = 0.0

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        sink = self._opened(seconds)
        if sink is None:
            return False
        try:
            return sink.write(picture, seconds)
        except OSError as error:
            self._lose(error)
            return False

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        if self._sink is None:
            return
        try:
            self._sink.write_sound(samples, seconds)
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        if self._sink is not None:
            try:
                self._sink.close()
            except OSError as error:
                # Whoever received has gone before the end; frames were written while it was there.
                logger.warning("%s: the end could not be sent (%s)", self._name, error)

    def _opened(self, seconds: float) -> Sink | None:
        if self._sink is None and time.monotonic() >= self._retry:
            try:
                self._sink = self._make(seconds)
                self._backoff.reset()
            except OSError as error:
                self._lose(error)
        return self._sink

    def _lose(self, error: OSError) -> None:
        wait = self._backoff.next()
        logger.warning("%s: sending failed (%s); trying again in %.1f seconds", self._name, error, wait)
        sink, self._sink, self._retry = self._sink, None, time.monotonic() + wait
        if sink is not None:
            with contextlib.suppress(OSError):
                sink.close()


def _with_timeout(text: str) -> str:
    """A TCP address at which writing does not wait for ever; the user's own timeout counts more."""
    if not text.lower().startswith("tcp:") or re.search(r"[?&]timeout=", text):
        return text
    return f"{text}{'&' if '?' in text else '?'}timeout={round(STALL_SECONDS * 1e6)}"


@contextlib.contextmanager
def _reported(name: str) -> Any:
    """FFmpeg's errors as OSError with a line that names the target; InputError where trying again is of no use."""
    import av

    try:
        yield
    except av.error.ProtocolNotFoundError:
        raise unknown_protocol(name) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"{name} cannot be written ({' '.join(str(reason).split())})") from error


def _pyvirtualcam() -> Any:
    try:
        import pyvirtualcam
    except ImportError as error:
        raise InputError("a virtual camera needs the package pyvirtualcam; pip install pyvirtualcam") from error
    return pyvirtualcam
