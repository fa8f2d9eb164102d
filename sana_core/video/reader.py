"""Video files in: what a file holds, and its frames one by one.

Frames come in display order, as 8-bit RGB, upright, at the file's own rate: nothing is dropped or repeated, and a frame
is known by its number, not by its time. A frame has the pixels that are stored: where a file says that they are not
square, a player stretches the picture, and this reader warns but does not. Both can be asked for: frames at an even rate by
their times, and square pixels. Pictures of high dynamic range are refused until it is said what to do with them. Source:
`docs/model.md`, pixels.
"""

import copy
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .geometry import resize_frame
from .hdr import TRANSFERS, Transfer, tone_map
from .media import open_media, video_stream
from .resample import Span, check_rate, read_span, resampled, resampled_count

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

HDR = Literal["refuse", "tone-map", "ignore"]

logger = logging.getLogger(__name__)

_BT601 = 5
# A file's matrix tag (as in H.273) and swscale's number for the same matrix.
_SWSCALE_MATRICES = {1: 1, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: 9, 10: 9}
_FULL_RANGE = 2

_SAME_RATE = Fraction(5, 10_000)
# Below this, no eye sees the stretch; encoders round the shape of a pixel.
_SQUARE_PIXELS = Fraction(1, 100)


class FrameSource(Protocol):
    """Frames of a known rate and number, one block after another: a video file, or pictures in memory."""

    @property
    def frame_rate(self) -> Fraction: ...

    @property
    def num_frames(self) -> int: ...

    def blocks(self, num_frames: int) -> Iterator[Tensor]:
        """uint8 or float (0 to 1) [num_frames, H, W, 3]; the last block may be shorter.

        Each call begins anew with the first frame. Raises InputError where ``num_frames`` is not positive.
        """


@dataclass(frozen=True)
class PictureFrames:
    """A FrameSource over pictures [F, H, W, 3], uint8 or float (0 to 1), that are in memory already."""

    pictures: Tensor
    frame_rate: Fraction

    @property
    def num_frames(self) -> int:
        return len(self.pictures)

    def blocks(self, num_frames: int) -> Iterator[Tensor]:
        _check_block(num_frames)
        yield from self.pictures.split(num_frames)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: ``width`` and ``height`` in pixels as displayed, after rotation.

    ``frame_rate`` is the average in frames per second, ``duration`` in seconds; ``rotation`` is the counterclockwise
    turn in degrees (0, 90, 180 or 270) that the stored pictures need, and that `VideoReader` gives them;
    ``sample_aspect_ratio`` is the width of a displayed pixel over its height, by which nothing here is stretched;
    ``hdr`` is the transfer curve of a picture of high dynamic range, None for an ordinary one.
    """

    width: int
    height: int
    frame_rate: Fraction
    num_frames: int
    has_audio: bool
    rotation: int
    duration: float
    sample_aspect_ratio: Fraction = Fraction(1)
    hdr: Transfer | None = None

    @property
    def square_width(self) -> int:
        """Width of the picture as displayed where each pixel is square; the height stays."""
        return max(1, round(self.width * self.sample_aspect_ratio))


def probe(path: str | Path) -> VideoInfo:
    """Look at a video file: opens it, decodes its first frame and counts the others.

    The count is the header's where it has one that agrees with duration and rate, else packets are counted, which reads
    the file once without decoding. Raises InputError if there is no such file, or no picture in it can be decoded.
    """
    import av

    path = Path(path)
    with open_media(path) as container:
        stream = video_stream(container, path)
        try:
            first = next(_decoded(container, stream), None)
        except av.FFmpegError as error:
            raise InputError(f"{path}: the video cannot be decoded ({error.strerror}): convert it to H.264") from error
        if first is None:
            raise InputError(f"{path}: the video has no frames: choose a file with at least one")
        rotation = _rotation(first)
        width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
        frame_rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        has_audio = bool(container.streams.audio)
        duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        num_frames = stream.frames
        pixel = stream.sample_aspect_ratio or Fraction(1)
        hdr = TRANSFERS.get(stream.codec_context.color_trc)
    # Matroska's header and a picture's count nothing; that of a file that was never finished, or of one cut by an edit
    # list, counts other frames than it shows.
    if not num_frames or duration is None or abs(num_frames - duration * frame_rate) > 1.5:
        num_frames = max(1, _count_packets(path))
    return VideoInfo(
        width, height, frame_rate, num_frames, has_audio, rotation, duration or float(num_frames / frame_rate),
        1 / pixel if rotation % 180 else pixel, hdr,
    )  # fmt: skip


def closest_rate(rate: Fraction, source: Fraction) -> Fraction:
    """``rate``, or ``source`` where the two differ by less than 0.05 %: 29.97 and 23.98 are 30000/1001 and 24000/1001.

    30 and 30000/1001 differ by 0.1 % and stay two rates.
    """
    return source if abs(rate - source) < source * _SAME_RATE else rate


class VideoReader:
    """The frames ``start`` to ``start + max_frames`` of a video file; iterating yields uint8 [H, W, 3], RGB, on the CPU.

    ``on_frame`` is called for every frame that is decoded, dropped ones too; raising from it ends the reading.

    ``resample_fps`` gives frames at this rate by the file's times, dropped or repeated; ``start``, ``max_frames`` and
    ``num_frames`` then count those. It is also what evens out a variable rate. ``square_pixels`` stretches frames as a
    player would; without it pixels that the file says are not square are taken as square, with one warning in the log.
    ``hdr`` is for PQ and HLG: ``refuse``, ``tone-map`` to ordinary range (`tone_map`), or ``ignore``, which takes the
    values as they are, as the release does.

    One frame is held at a time. Frames before ``start`` are decoded and dropped, so numbers are exact for every file.
    Each iteration begins anew; `close`, or leaving the with-block, ends the one under way.

    A file that breaks off in the middle ends the iteration, with a warning in the log that says how many frames were
    read. Raises InputError for a file that `probe` refuses, a ``start`` beyond the last frame, a ``start``,
    ``max_frames`` or ``resample_fps`` out of range, high dynamic range unless told otherwise, and a frame of another size
    than the first.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        start: int = 0,
        max_frames: int | None = None,
        on_frame: Callable[[], None] | None = None,
        resample_fps: Fraction | None = None,
        square_pixels: bool = False,
        hdr: HDR = "refuse",
    ) -> None:
        self.path = Path(path)
        self._on_frame = on_frame
        if resample_fps is not None:
            check_rate(resample_fps)
        if hdr not in get_args(HDR):
            raise InputError(f"hdr {hdr!r} is unknown: use {', '.join(get_args(HDR))}")
        self.info = probe(self.path)
        if self.info.hdr and hdr == "refuse":
            raise InputError(
                f"{self.path} has high dynamic range ({self.info.hdr}), which the model does not know: read it with hdr "
                "tone-map to bring it to ordinary range, or with hdr ignore to take its values as they are"
            )
        self._tone_map = self.info.hdr if hdr == "tone-map" else None
        self._resample_fps = resample_fps
        self._span: Span | None = None if resample_fps is None else read_span(self.path, self.info.frame_rate)
        self._square_pixels = square_pixels
        self._start = start
        self._max_frames = max_frames
        self._check_part()
        if not square_pixels and abs(self.info.sample_aspect_ratio - 1) > _SQUARE_PIXELS:
            self._warn_of_shape(self.info.sample_aspect_ratio)
        self._frames: Generator[Tensor, None, None] | None = None

    def _check_part(self) -> None:
        if self._start < 0:
            raise InputError(f"start is frame {self._start}: frames are counted from 0")
        if self._max_frames is not None and self._max_frames < 1:
            raise InputError(f"max_frames is {self._max_frames}: give at least 1, or leave it out to read to the end")
        if self._start >= self._file_frames:
            raise InputError(self._beyond_end(self._start, self._file_frames))

    def __iter__(self) -> Iterator[Tensor]:
        self.close()
        self._frames = self._read()
        return self._frames

    @property
    def frame_rate(self) -> Fraction:
        """Of the frames that are given: that of ``resample_fps`` where frames are resampled."""
        return self._resample_fps or self.info.frame_rate

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames that are given."""
        return self.info.height, self.info.square_width if self._square_pixels else self.info.width

    @property
    def _file_frames(self) -> int:
        """Frames from the first to the last, resampled where that is asked for."""
        if self._span is None or self._resample_fps is None:
            return self.info.num_frames
        return resampled_count(self._span, self._resample_fps)

    @property
    def num_frames(self) -> int:
        """Frames that an iteration gives, if the file holds what it says."""
        left = self._file_frames - self._start
        return left if self._max_frames is None else min(left, self._max_frames)

    def part(self, start: int, max_frames: int | None = None) -> "VideoReader":
        """Other frames of the same file, read in the same way. Raises InputError where the constructor does."""
        part = copy.copy(self)
        part._start, part._max_frames, part._frames = start, max_frames, None
        part._check_part()
        return part

    def blocks(self, num_frames: int) -> Iterator[Tensor]:
        """The same frames as uint8 [num_frames, H, W, 3]; the last block may be shorter."""
        _check_block(num_frames)
        block: list[Tensor] = []
        for frame in self:
            block.append(frame)
            if len(block) == num_frames:
                yield torch.stack(block)
                block.clear()
        if block:
            yield torch.stack(block)

    def close(self) -> None:
        """Let go of the file. A later iteration opens it again."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Generator[Tensor, None, None]:
        end = None if self._max_frames is None else self._start + self._max_frames
        read = 0
        with closing(self._decode()) as decoded:
            for frame in self._timed(decoded):
                if read >= self._start:
                    yield self._upright(frame, read)
                read += 1
                if read == end:
                    return
        if read <= self._start:
            raise InputError(self._beyond_end(self._start, read))

    def _timed(self, decoded: "Iterator[VideoFrame]") -> "Iterator[VideoFrame]":
        if self._span is None or self._resample_fps is None:
            return decoded
        return resampled(decoded, self._span, self._resample_fps, self.info.frame_rate)

    def _decode(self) -> Generator["VideoFrame", None, None]:
        """All frames of the file up to its end or to the first damage."""
        import av

        read, problem = 0, ""
        with open_media(self.path) as container:
            stream = video_stream(container, self.path)
            try:
                for frame in _decoded(container, stream):
                    if self._on_frame is not None:
                        self._on_frame()
                    yield frame
                    read += 1
            except av.FFmpegError as error:
                problem = f" ({error.strerror})"
        if problem or read < self.info.num_frames:
            logger.warning(
                "%s is damaged or cut short%s: only %d of %d frames could be read",
                self.path, problem, read, self.info.num_frames,
            )  # fmt: skip

    def _upright(self, frame: "VideoFrame", number: int) -> Tensor:
        if self._tone_map is None:
            picture = torch.from_numpy(to_rgb(frame))
        else:
            picture = tone_map(torch.from_numpy(to_rgb(frame, "rgb48le")).float() / 65_535, self._tone_map)
        turns = _rotation(frame) // 90
        if turns:
            picture = torch.rot90(picture, turns).contiguous()
        height, width, _ = picture.shape
        if (width, height) != (self.info.width, self.info.height):
            raise InputError(
                f"{self.path}: frame {number} is {width}x{height} but the video began at {self.info.width}x"
                f"{self.info.height}: convert the file to one size"
            )
        return resize_frame(picture, *self.size)

    def _warn_of_shape(self, pixel: Fraction) -> None:
        logger.warning(
            "%s has pixels of %d:%d, width to height, which are taken as square: the picture comes out %s than a player "
            "shows it; --square-pixels (square_pixels=True) keeps its shape",
            self.path, pixel.numerator, pixel.denominator, "narrower" if pixel > 1 else "wider",
        )  # fmt: skip

    def _beyond_end(self, start: int, num_frames: int) -> str:
        return f"{self.path}: start is frame {start} but there are {num_frames} frames, 0 to {num_frames - 1}"


def _check_block(num_frames: int) -> None:
    if num_frames < 1:
        raise InputError(f"cannot read in blocks of {num_frames} frames: give at least 1")


def _decoded(container: "InputContainer", stream: "VideoStream") -> "Iterator[VideoFrame]":
    """The stream's frames; of a damaged file those before the damage, then the error."""
    import av

    try:
        yield from container.decode(stream)
    except av.FFmpegError:
        yield from stream.codec_context.decode(None)
        raise


def _count_packets(path: Path) -> int:
    """Pictures in the file's video stream, without decoding them; a damaged file counts up to the damage."""
    import av

    count = 0
    with open_media(path) as container:
        try:
            for packet in container.demux(video_stream(container, path)):
                count += bool(packet.size) and not packet.is_discard
        except av.FFmpegError:
            logger.debug("%s: reading stopped after %d packets", path, count)
    return count


def _rotation(frame: "VideoFrame") -> int:
    """Quarter turns counterclockwise that the frame needs, in degrees from 0 to 270."""
    return round(frame.rotation / 90) % 4 * 90


def to_rgb(frame: "VideoFrame", pixels: str = "rgb24") -> "np.ndarray":
    """[H, W, 3], uint8 (``rgb24``) or uint16 (``rgb48le``), by the matrix and the range that the file names.

    A file that names no matrix is read as BT.601. That is FFmpeg's rule for every size, and what programs that write
    through it mean when they leave the tag out.
    """
    # PyAV before 17 looks at the source's matrix only where another one is asked for; RGB itself has none.
    matrix = _SWSCALE_MATRICES.get(frame.colorspace)
    rgb = frame.reformat(
        format=pixels,
        src_colorspace=matrix,
        dst_colorspace=None if matrix is None else _BT601,
        src_color_range=_FULL_RANGE if frame.color_range == _FULL_RANGE else None,
    )
    return rgb.to_ndarray()
