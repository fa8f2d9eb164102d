"""Video files out: H.264 written frame by frame, with the source's sound, readable while it grows and after a crash."""

import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..paths import check_folder
from .reader import open_media

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.video.stream import VideoStream

    TimedPacket = tuple[Fraction, Packet[AudioStream]]

logger = logging.getLogger(__name__)

_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

# Sound that is copied as it is: what browsers and players play from the container. Matroska takes nearly everything.
_PCM = {"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"}
_COPIED_AUDIO = {"mp4": {"aac", "alac", "flac", "mp3", "opus"}, "mov": {"aac", "alac", "mp3"} | _PCM}
_AAC_RATES = (48000, 44100, 96000, 88200, 64000, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_LAYOUTS = {1: "mono", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}

_SECONDS_PER_FRAGMENT = 2

_BT709, _BT601, _BT601_TAG, _LIMITED_RANGE = 1, 5, 6, 1


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

    Args:
        width, height: in pixels, even.
        frame_rate: frames per second.
        crf: x264's constant rate factor, 0 (lossless) to 51; 25 is the release's.

    Raises InputError for a size, rate, crf, path (see `check_output`) or audio file that will not do.
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
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise InputError(f"cannot write video of {width}x{height}: width and height must be even")
        if frame_rate <= 0:
            raise InputError(f"cannot write video at {frame_rate} frames per second: the rate must be above 0")
        if not 0 <= crf <= 51:
            raise InputError(f"crf is {crf}: x264 takes 0 (lossless) to 51")
        if audio_start < 0:
            raise InputError(f"audio_start is {audio_start} seconds: it must be 0 or more")
        self.path = Path(path)
        self.width, self.height = width, height
        # MP4 counts time in 32 bits; every rate in use has a denominator of 1001 or less.
        self.frame_rate = Fraction(frame_rate).limit_denominator(65_535)
        self.frames_written = 0
        self._crf = crf
        self._audio = _AudioCut(Path(audio_from), audio_start) if audio_from is not None else None
        self._output: OutputContainer | None = None
        self._video: VideoStream
        self._closed = False

    def write(self, frames: Tensor) -> None:
        """Append ``frames``, uint8 [F, height, width, 3], RGB, on any device."""
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        expected = (self.height, self.width, 3)
        if frames.ndim != 4 or tuple(frames.shape[1:]) != expected or frames.dtype != torch.uint8:
            raise InputError(
                f"{self.path}: got frames of {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 "
                f"[frames, {self.height}, {self.width}, 3]"
            )
        for frame in frames.cpu().contiguous():
            if self._output is None:
                self._output = self._open()
            picture = self._picture(frame)
            self.frames_written += 1
            self._mux(self._video.encode(picture))

    def close(self) -> None:
        """Finish the file. Without a frame there is none to finish: nothing is written."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._output is not None:
                with self._output:
                    self._mux(self._video.encode(None))
                    self._mux_audio(self.frames_written / self.frame_rate)
        finally:
            if self._audio is not None:
                self._audio.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def _picture(self, frame: Tensor) -> "VideoFrame":
        import av

        picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=_BT709 if self._is_hd else _BT601, dst_color_range=_LIMITED_RANGE
        )
        picture.pts, picture.time_base = self.frames_written, 1 / self.frame_rate
        return picture

    def _mux(self, packets: "list[Packet[VideoStream]]") -> None:
        assert self._output is not None
        for packet in packets:
            if packet.dts is not None:
                self._mux_audio(packet.dts * packet.time_base)
            self._output.mux(packet)

    def _mux_audio(self, until: Fraction) -> None:
        """All sound that begins before ``until`` seconds."""
        if self._audio is not None and self._output is not None:
            for packet in self._audio.packets_before(until):
                self._output.mux(packet)


def _movflags() -> str:
    """MP4 options: a header with edit lists (frame 0 and the sound keep their times), then a fragment per key frame.

    FFmpeg 8.1 turns the fragments into an ordinary MP4 on close. 8.0 writes a broken file where asked for both, so
    there the fragments stay.
    """
    import av

    hybrid = av.library_versions["libavformat"] >= (62, 12, 0)
    return "+hybrid_fragmented+delay_moov" if hybrid else "+frag_keyframe+delay_moov+default_base_moof"


class _AudioCut:
    """The first audio stream of a file from ``start`` seconds on, as packets timed from 0; one packet is held."""

    def __init__(self, source: Path, start: float) -> None:
        self._source = source
        self._input = open_media(source)
        streams = self._input.streams
        self._stream = streams.audio[0] if streams.audio else None
        # The sound of a file begins where its picture does, which is not at time 0 in every container.
        first = next(
            (s.start_time * s.time_base for s in streams.video[:1] if s.start_time and s.time_base), Fraction(0)
        )
        self._origin = first + Fraction(start)
        self._packets: Iterator[TimedPacket] = iter(())
        self._held: TimedPacket | None = None

    def add_to(self, output: "OutputContainer", container_format: str) -> None:
        """Give ``output`` an audio stream for this sound; a file without sound gives none."""
        if self._stream is None or self._stream.codec_context is None:
            return
        codec = self._stream.codec_context
        name = codec.codec.canonical_name
        copied = _COPIED_AUDIO.get(container_format, output.supported_codecs)
        # AAC from a broadcast stream carries its description in every packet instead of once, which MP4 cannot take.
        if name in copied and (name != "aac" or codec.extradata):
            out = output.add_stream_from_template(self._stream)
            self._packets = self._copied(out)
        else:
            rate = codec.sample_rate if codec.sample_rate in _AAC_RATES else 48000
            layout = _AAC_LAYOUTS.get(codec.layout.nb_channels, "stereo")
            out = output.add_stream("aac", rate=rate, layout=layout, format="fltp")
            out.codec_context.bit_rate = 96_000 * out.codec_context.layout.nb_channels
            self._packets = self._encoded(out)

    def packets_before(self, until: Fraction) -> "Iterator[Packet[AudioStream]]":
        """The packets not given yet that begin before ``until`` seconds."""
        while True:
            if self._held is None:
                self._held = next(self._packets, None)
            if self._held is None or self._held[0] >= until:
                return
            packet, self._held = self._held[1], None
            yield packet

    def close(self) -> None:
        self._input.close()

    def _copied(self, out: "AudioStream") -> "Iterator[TimedPacket]":
        import av

        try:
            for packet in self._input.demux(audio=0):
                if packet.pts is None or packet.pts * packet.time_base < self._origin:
                    continue
                packet.pts -= round(self._origin / packet.time_base)
                packet.dts = packet.pts
                packet.stream = out
                yield packet.pts * packet.time_base, packet
        except av.FFmpegError as error:
            self._warn(error)

    def _encoded(self, out: "AudioStream") -> "Iterator[TimedPacket]":
        for frame in chain(self._decoded(), (None,)):
            for packet in out.encode(frame):
                # The encoder's run-in lies before time 0; Matroska of FFmpeg 8.0 would move the picture to fit it in.
                if packet.pts is not None and packet.pts >= 0:
                    yield packet.pts * packet.time_base, packet

    def _decoded(self) -> "Iterator[AudioFrame]":
        import av

        try:
            for frame in self._input.decode(audio=0):
                if frame.pts is None or frame.time_base is None or frame.pts * frame.time_base < self._origin:
                    continue
                frame.pts -= round(self._origin / frame.time_base)
                yield frame
        except av.FFmpegError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        logger.warning("%s: the sound ends early, the file is damaged there (%s)", self._source, error)
