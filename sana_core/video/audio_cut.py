"""The sound of a file, cut at its beginning, for a video that is written along with it."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from .media import open_media

if TYPE_CHECKING:
    from av import Packet
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

    TimedPacket = tuple[Fraction, Packet[AudioStream]]

logger = logging.getLogger(__name__)

# Sound that is copied as it is: what browsers and players play from the container. Matroska takes nearly everything.
_PCM = {"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"}
_COPIED_AUDIO = {"mp4": {"aac", "alac", "flac", "mp3", "opus"}, "mov": {"aac", "alac", "mp3"} | _PCM}
_AAC_RATES = (48000, 44100, 96000, 88200, 64000, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_LAYOUTS = {1: "mono", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class AudioCut:
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
