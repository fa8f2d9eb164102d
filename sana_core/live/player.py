"""Shows edited frames when they are due, with their sound: the thread behind the output queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..video.geometry import pixels_to_uint8, resize_and_crop
from .clock import DelayClock
from .compare import Compare, Composer
from .queues import BoundedQueue
from .report import LiveStats
from .sink import Sink
from .sound import SoundBuffer
from .source import SourceFrame

# Between two looks at the clock and at what was asked for.
TICK = 0.05


@dataclass(frozen=True)
class EditedFrame:
    """An edited frame uint8 [H, W, 3] on the CPU, and the frame of the source that it was made of."""

    source: SourceFrame
    picture: torch.Tensor

    @property
    def time(self) -> float:
        return self.source.time

    def source_picture(self) -> torch.Tensor:
        """The source as the network saw it: uint8 of the edit's size."""
        height, width, _ = self.picture.shape
        return pixels_to_uint8(resize_and_crop(self.source.picture[None], height, width))[0]


OnShown = Callable[[EditedFrame], None]


class Player:
    """Takes frames from ``queue`` and writes them to ``sink``, each when ``clock`` says.

    repeat: write at an even ``interval``, the last frame again where there is none and the newest where there are several;
    otherwise every frame, at its own time. on_shown: told about each frame that was written, in the thread that writes.

    An error of the sink ends the thread; it is in :attr:`error`.
    """

    def __init__(
        self,
        queue: BoundedQueue[EditedFrame],
        clock: DelayClock,
        sink: Sink,
        sound: SoundBuffer,
        stats: LiveStats,
        composer: Composer,
        *,
        repeat: bool,
        on_shown: OnShown = lambda frame: None,
    ) -> None:
        self.queue, self.clock = queue, clock
        self.error: Exception | None = None
        self._sink, self._sound, self._stats, self._composer = sink, sound, stats, composer
        self._repeat, self._on_shown = repeat, on_shown
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="live player", daemon=True)
        self._last: EditedFrame | None = None
        # Frames that are out of the queue and not counted yet.
        self._in_hand = 0
        # Of the first frame that was written: its source time, or where frames come evenly the moment.
        self._origin: float | None = None
        self._slot = 0

    def start(self) -> None:
        self._thread.start()

    def set_compare(self, layout: Compare) -> None:
        """From the next frame that is shown on."""
        self._composer.layout = layout

    def chunk_ready(self, first_time: float, wanted: Callable[[], bool], *, first: bool) -> None:
        """Says that a chunk is about to come, unless it is not ``wanted``; see :meth:`DelayClock.chunk_ready`."""
        with self._lock:
            if wanted():
                self.clock.chunk_ready(first_time, time.monotonic(), first=first)

    def flush(self) -> int:
        """Lets go of all frames and all sound that wait; returns the number of frames."""
        with self._lock:
            self._sound.clear()
            self.clock.restart()
            return self.queue.clear()

    def hurry(self) -> None:
        """What waits is shown from now on without minding the time."""
        self._hurry.set()

    def finish(self, hurry: Callable[[], bool]) -> None:
        """Shows what waits and ends; from when on ``hurry`` is true without minding the time."""
        self.queue.close()
        while self._thread.is_alive():
            if hurry():
                self.hurry()
            self._thread.join(TICK)

    def _run(self) -> None:
        try:
            try:
                self._play_evenly() if self._repeat else self._play()
            finally:
                self._sink.close()
        except Exception as error:
            self.error = error
            # Nobody takes from it any more, so nobody may wait for room in it.
            self.queue.close()
            self._stats.drop("output", self.queue.clear() + self._in_hand)

    def _play(self) -> None:
        while (frame := self.queue.peek(TICK)) is not None or not self.queue.closed:
            if frame is None or not self._wait_until(self._due(frame)):
                continue
            if not self.queue.remove(frame):
                # It was flushed meanwhile.
                continue
            self._in_hand = 1
            if self._origin is None:
                self._origin = frame.time
            end = frame.time + self.clock.interval
            self._write_sound(end, self._origin)
            self._account(frame, self._write(frame, frame.time - self._origin))
            with self._lock:
                self.clock.shown(frame.time)

    def _play_evenly(self) -> None:
        while True:
            waiting = self.queue.peek(TICK if self._origin is None else 0)
            if waiting is None and self.queue.closed:
                return
            if self._origin is None:
                if waiting is None or not self._wait_until(self._due(waiting)):
                    continue
                self._origin = time.monotonic()
            moment = self._origin + self._slot * self.clock.interval
            if not self._wait_until(moment):
                continue
            frame = self._newest(moment + self.clock.interval / 2)
            if frame is not None:
                self._last = frame
                self._write_sound(frame.time + self.clock.interval, self._origin - (self.clock.delay or 0.0))
            elif self._last is None or self._hurry.is_set():
                self._slot += 1
                continue
            written = self._write(self._last, self._slot * self.clock.interval)
            self._slot += 1
            if frame is None:
                self._stats.repeat()
            else:
                self._account(frame, written)
            self._catch_up()

    def _newest(self, moment: float) -> EditedFrame | None:
        """The last frame that is due by then; those before it are late."""
        found: EditedFrame | None = None
        while (frame := self.queue.peek(0)) is not None and self._due(frame) <= moment and self.queue.remove(frame):
            if found is not None:
                self._stats.drop("late")
            found, self._in_hand = frame, 1
        return found

    def _catch_up(self) -> None:
        """Leaves out the times that have passed where writing has taken longer than they last."""
        assert self._origin is not None
        if not self._hurry.is_set():
            passed = int((time.monotonic() - self._origin) / self.clock.interval)
            if passed > self._slot + 1 / self.clock.interval:
                self._slot = passed

    def _due(self, frame: EditedFrame) -> float:
        with self._lock:
            # Without a delay the queue was just flushed, and the frame with it.
            return time.monotonic() if self.clock.delay is None else self.clock.due(frame.time)

    def _wait_until(self, moment: float) -> bool:
        """Waits a little for the moment; whether it has come, or none is waited for."""
        ahead = moment - time.monotonic()
        if ahead <= 0 or self._hurry.is_set():
            return True
        self._hurry.wait(min(ahead, TICK))
        return ahead <= TICK

    def _write_sound(self, until: float, origin: float) -> None:
        for block in self._sound.take_before(until):
            self._sink.write_sound(block.samples, block.time - origin)

    def _write(self, frame: EditedFrame, seconds: float) -> bool:
        picture = self._composer.compose(frame.source_picture, frame.picture)
        return self._sink.write(picture.numpy(), seconds)

    def _account(self, frame: EditedFrame, written: bool) -> None:
        """Counts a frame that is out of the queue, and tells of it if it was written."""
        self._in_hand = 0
        if not written:
            self._stats.drop("output")
            return
        self._stats.shown(frame.source.arrival, time.monotonic())
        self._on_shown(frame)
