"""Frames and sound of a live source, until it is stopped: opened by PyAV, opened again when it fails."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import InputError
from ..video.media import video_stream
from .address import SourceAddress, unknown_protocol
from .clock import Backoff, SourceTimes
from .control import Status
from .pipe import PipeReader
from .sound import SoundBlock, SoundReader

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

OnStatus = Callable[[Status, str], None]
# An address or a device that is silent for so long counts as lost.
SILENCE_SECONDS = 5.0
OPEN_SECONDS = 10.0
SHORTEST_TRY = 0.1
# What is longer may be the end of a connection.
SHORT_SILENCE = 1.0
# What FFmpeg holds of a connection's end comes within so many seconds, and is fewer packets.
AT_ONCE, MOST_HELD = 0.01, 16
RECONNECT_SECONDS = 300.0
# Between two tries of a port that senders come to: the first wait and the longest.
LISTENING_WAITS = (0.05, 0.5)
ENDED = "it ended"


class SourceFrame(NamedTuple):
    """One frame of a source.

    picture: uint8 [H, W, 3], RGB; the size may change from frame to frame. time: seconds of the source, on the scale of
    `time.monotonic`. arrival: when it was decoded here. number: frames before it. first: it begins a connection. held: it
    stayed in FFmpeg until its connection was found to be broken, and came with the last before; where the source may come back.
    """

    picture: torch.Tensor
    time: float
    arrival: float
    number: int
    first: bool
    held: bool = False


@dataclass(frozen=True)
class SourceInfo:
    """What is known once a source is open: size in pixels, frames per second, whether it has sound."""

    height: int
    width: int
    rate: Fraction
    has_sound: bool


class LostError(OSError):
    """A source that was there has gone and not come back."""


class LiveSource:
    """A source of frames. Iterate :meth:`frames` in a thread of its own, and :meth:`stop` it from any other.

    A device, an address or a named pipe that ends or fails is opened again, with longer and longer waits in between, for at
    most ``reconnect`` seconds; times go on, without the stamps of the new connection having to fit. A port that senders come
    to is opened again at once. A file, standard input and what is of known length at an address end with their last frame.

    hold: keep as much as can be of datagrams while nobody takes frames, for a stream that must lose none.

    Without :meth:`on_event` sound is left out.
    """

    # What to do about a source that never comes.
    ADVICE = "check address and sender, or wait longer with --reconnect"

    def __init__(self, address: SourceAddress, *, reconnect: float = RECONNECT_SECONDS, hold: bool = False) -> None:
        self.address = address
        self.info: SourceInfo | None = None
        self.connections = 0
        self._reconnect, self._hold = reconnect, hold
        # It is there whole, or was when it was last looked at.
        self._has_end = False
        self._on_status: OnStatus = lambda status, text: None
        self._on_sound: Callable[[SoundBlock], None] | None = None
        self._stop = Event()
        # Frames that were held while FFmpeg looked at the stream come in a heap, and keep their times.
        self._times = SourceTimes(1 / 30, ahead=hold or address.is_paced)
        self._number = 0
        # When the last frame came, or the first was asked for.
        self._last = time.monotonic()
        # When the last packet came of a connection that broke, while its decoder is emptied.
        self._held_since: float | None = None

    def on_event(self, status: OnStatus, sound: Callable[[SoundBlock], None]) -> None:
        """``status`` is told ``connecting``, ``running`` and ``reconnecting``, with a line that says more.

        ``sound`` takes the sound.
        """
        self._on_status, self._on_sound = status, sound

    def stop(self) -> None:
        """Ends the iteration within moments, or a read's timeout. From any thread."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def frames(self) -> Generator[SourceFrame, None, None]:
        """Every frame, from the first that comes on.

        Raises InputError for a source that cannot be opened, and LostError for one that was lost.
        """
        backoff = Backoff(*LISTENING_WAITS) if self.address.is_listening else Backoff()
        self._last = time.monotonic()
        self._on_status("connecting", self.address.name)
        while not self._stop.is_set():
            problem, began = ENDED, time.monotonic()
            try:
                for frame in self._connection():
                    self._last = frame.arrival
                    backoff.reset()
                    yield frame
            except _BrokenError as failure:
                problem = str(failure)
            if self._stop.is_set():
                return
            over = problem == ENDED and self._has_end
            if not self.address.can_come_back or not self._reconnect or over:
                self._end(problem)
                return
            if self._left() <= 0:
                raise self._lost(problem)
            self._on_status("reconnecting" if self.connections else "connecting", problem)
            spent = time.monotonic() - began if self.address.is_listening else 0.0
            self._stop.wait(min(max(0.0, backoff.next() - spent), self._left()))

    def _left(self) -> float:
        """Seconds that are left of those which the source is waited for."""
        return max(0.0, self._last + self._reconnect - time.monotonic())

    def _end(self, problem: str) -> None:
        if not self.connections:
            raise InputError(f"{self.address.name} cannot be read as video ({problem}): check what it is")
        if problem != ENDED:
            raise self._lost(problem)

    def _lost(self, problem: str) -> Exception:
        name, passed = self.address.name, time.monotonic() - self._last
        if not self.connections:
            return InputError(f"{name} has sent nothing for {passed:.1f} seconds ({problem}): {self.ADVICE}")
        waited = self.address.can_come_back and self._reconnect
        away = f" and did not come back in {passed:.1f} seconds" if waited else ""
        return LostError(f"{name} was lost ({problem}){away}")

    def _connection(self) -> Iterator[SourceFrame]:
        """The frames of one connection. _BrokenError where it breaks."""
        self._held_since = None
        with _failures(self.address), self._opened() as container:
            self._has_end = self.address.may_be_whole and container.duration is not None
            if self._has_end and self.connections:
                # A broadcast that is over is there from its beginning on; that was shown.
                return
            video = video_stream(container, Path(self.address.text))
            sound = self._sound(container)
            self._times.restart()
            first = True
            for picture in self._pictures(container, video, sound):
                if first:
                    self._begin(video, picture, sound is not None)
                yield self._frame(picture, first)
                first = False

    def _pictures(
        self, container: InputContainer, video: VideoStream, sound: SoundReader | None
    ) -> Iterator[VideoFrame]:
        """What is decoded, to the last picture before a failure; sound goes its own way."""
        import av

        try:
            for packet in self._packets(container, [video, *([sound.stream] if sound else [])]):
                if self._stop.is_set():
                    return
                if sound and packet.stream is sound.stream:
                    self._hear(sound, packet)
                else:
                    yield from self._decoded(packet.decode)
        except (av.FFmpegError, OSError):
            # Pictures are put in order by a decoder that holds some back.
            self._hold_since(time.monotonic())
            yield from self._decoded(lambda: video.codec_context.decode(None))
            raise

    def _packets(self, container: InputContainer, streams: list[Any]) -> Iterator[Packet[Any]]:
        """As they come. After a silence it may be that FFmpeg gives what it held, because the connection broke.

        Then all of it comes at once and an error after it; so the first packet waits for the second.
        """
        import av

        came, woke, waiting = time.monotonic(), 0.0, deque[Any]()
        try:
            for packet in container.demux(streams):
                now = time.monotonic()
                if not waiting:
                    woke = now if now - came > SHORT_SILENCE else -math.inf
                waiting.append(packet)
                if now - woke < AT_ONCE and len(waiting) < MOST_HELD:
                    continue
                came = now
                while waiting:
                    yield waiting.popleft()
        except (av.FFmpegError, OSError):
            self._hold_since(came)
            yield from waiting
            raise
        yield from waiting

    def _hold_since(self, moment: float) -> None:
        """What is decoded from now on came by this moment, unless an earlier one is known."""
        if self.address.can_come_back and self._held_since is None:
            self._held_since = moment

    @contextmanager
    def _opened(self) -> Iterator[InputContainer]:
        import av

        address, reader = self.address, None
        target: Any = address.text
        timeout = None
        if address.kind == "standard":
            target = reader = PipeReader(sys.stdin.fileno(), self._stop, owned=False)
        elif address.kind == "pipe":
            target = reader = PipeReader.open(address.text, self._stop, self._left() if self._reconnect else math.inf)
        elif address.kind == "file":
            # An absolute path is never taken for the address of another protocol.
            target = str(Path(address.text).absolute())
        else:
            # None at all would be waited for without end.
            opening = min(OPEN_SECONDS, max(SHORTEST_TRY, self._left())) if self._reconnect else OPEN_SECONDS
            timeout = (opening, SILENCE_SECONDS)
        try:
            try:
                container = av.open(
                    target,
                    format=address.format,
                    options=address.open_options(hold=self._hold),
                    timeout=timeout,
                    metadata_errors="replace",
                )
            except av.error.ExitError:
                if timeout is None:
                    raise
                raise _BrokenError(f"nothing came for {timeout[0]:.1f} seconds") from None
            except ValueError as error:
                if isinstance(error, av.FFmpegError):
                    raise
                raise _HopelessError(
                    f"this PyAV has no format {address.format}; use one that FFmpeg has here"
                ) from None
            if address.kind == "pipe" and reader is not None:
                reader.patience = self._reconnect or math.inf
            with container:
                yield container
        finally:
            if reader is not None:
                reader.close()

    def _sound(self, container: InputContainer) -> SoundReader | None:
        streams = container.streams.audio
        if self._on_sound is None or not streams or streams[0].codec_context is None:
            return None
        return SoundReader(streams[0])

    def _begin(self, video: VideoStream, picture: VideoFrame, has_sound: bool) -> None:
        rate = self.address.rate or video.average_rate or video.guessed_rate or Fraction(30)
        if not 1 <= rate <= 1000:
            rate = Fraction(30)
        self._times.interval = float(1 / rate)
        self.info = SourceInfo(picture.height, picture.width, rate, has_sound)
        self.connections += 1
        text = f"{self.address.name}: {picture.width}x{picture.height} at {float(rate):g} frames per second"
        self._on_status("running", text)

    def _decoded(self, decode: Callable[[], list[Any]]) -> list[VideoFrame]:
        import av

        try:
            return decode()
        except (av.error.InvalidDataError, av.error.EOFError) as error:
            # A stream that is joined in the middle begins with pictures that miss others.
            logger.debug("%s: %s", self.address.text, error)
            return []

    def _frame(self, picture: VideoFrame, first: bool) -> SourceFrame:
        from ..video.reader import to_rgb

        stamp = None
        if picture.pts is not None and picture.time_base is not None:
            stamp = float(picture.pts * picture.time_base)
        moment = self._times.frame(stamp, time.monotonic())
        if self.address.is_paced and (ahead := moment - time.monotonic()) > 0:
            self._stop.wait(ahead)
        pixels = torch.from_numpy(to_rgb(picture))
        since = self._held_since
        arrival = time.monotonic() if since is None else since
        frame = SourceFrame(pixels, moment, arrival, self._number, first, held=since is not None)
        self._number += 1
        return frame

    def _hear(self, sound: SoundReader, packet: Packet[Any]) -> None:
        assert self._on_sound is not None
        for stamp, samples in sound.decoded(packet):
            moment = self._times.sound(stamp)
            if moment is not None:
                self._on_sound(SoundBlock(moment, samples))


class _BrokenError(Exception):
    """A connection broke."""


class _HopelessError(Exception):
    """Trying again is of no use."""


@contextmanager
def _failures(address: SourceAddress) -> Iterator[None]:
    """What FFmpeg says as _BrokenError; InputError where trying again is of no use."""
    import av

    name = address.name
    try:
        yield
    except av.error.ProtocolNotFoundError:
        raise unknown_protocol(name) from None
    except _HopelessError as error:
        raise InputError(f"{name} cannot be opened: {error}") from None
    except av.error.ExitError:
        raise _BrokenError(f"nothing came for {SILENCE_SECONDS:g} seconds") from None
    except InputError as error:
        raise _BrokenError(str(error)) from error
    except (OSError, av.FFmpegError) as error:
        if address.is_raw and address.size and isinstance(error, av.error.ArgumentError):
            height, width = address.size
            raise _BrokenError(f"it ended within a frame of {width}x{height}; check --input-size") from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _BrokenError(os.fspath(reason)) from error
