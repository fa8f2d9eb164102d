"""When things happen: source times on our clock, when an edited frame is shown, how long to wait before trying again.

Pure arithmetic over seconds; whoever calls says what time it is.
"""

from __future__ import annotations

import math
from collections import deque

# A time stamp that goes back, or that is so many seconds ahead of the one before, begins a new count.
JUMP_SECONDS = 1.0
# What frames may be early without a new count.
JITTER = 0.1
# Between frames that come in a heap; containers count milliseconds.
SHORTEST_STEP = 0.001
# Sound and picture of a container are never further apart.
LONGEST_LEAD = 10.0
# Chunks that must all have been early before the delay is made shorter.
WINDOW = 4
# Frames by which a chunk may be early: what the load of a machine shakes.
SPARE_FRAMES = 2
# While a delay is made shorter, frames follow each other faster by this share of the time between them.
SLEW = 0.25


class SourceTimes:
    """Time stamps of a source, in seconds, as times of our clock: the first frame is on time, the others keep their distance.

    A frame that comes well before its time shows that those before it were held up, or that the clocks differ, and the count
    goes on from its arrival. So it does where the stamps jump. ``ahead``: frames may come before their time, for a reader that
    waits for it.
    """

    def __init__(self, interval: float, *, ahead: bool = False) -> None:
        """``interval``: seconds from frame to frame where the source does not tell."""
        self.interval = interval
        self._ahead = ahead
        self._anchor: float | None = None
        self._stamp = 0.0
        self._time = -math.inf

    def frame(self, stamp: float | None, now: float) -> float:
        """Time of the next frame, later than that of every frame before."""
        if stamp is None:
            stamp = self._stamp + self.interval
        if self._anchor is None or not self._stamp < stamp <= self._stamp + JUMP_SECONDS:
            self._anchor = max(now, self._time + self.interval) - stamp
        elif not self._ahead and stamp + self._anchor > now + JITTER:
            self._anchor = max(now, self._time + SHORTEST_STEP) - stamp
        self._stamp, self._time = stamp, stamp + self._anchor
        return self._time

    def sound(self, stamp: float) -> float | None:
        """Time of a piece of sound; None before the first frame, and for one that is nowhere near the picture."""
        if self._anchor is None or abs(stamp - self._stamp) > LONGEST_LEAD:
            return None
        return stamp + self._anchor

    def restart(self) -> None:
        """The stamps to come are of another connection."""
        self._anchor = None


class DelayClock:
    """Shows every frame the same delay after its source time, and keeps that delay as short as chunks allow.

    The frames of a chunk come all at once, and are then shown at the source's pace. A chunk that comes late raises the delay
    at once by what it is late. When the last ``WINDOW`` chunks were all early by more than ``SPARE_FRAMES`` frames, the surplus
    is taken back: with ``slew`` by showing frames that much faster, with infinity at one go, which skips frames.
    """

    def __init__(self, interval: float, slew: float = SLEW) -> None:
        self.interval = interval
        self.delay: float | None = None
        self.raised = 0
        self._slew = slew
        self._early: deque[float] = deque(maxlen=WINDOW)
        self._surplus = 0.0
        self._shown = -math.inf

    def chunk_ready(self, first_time: float, now: float, *, first: bool = False) -> float:
        """The seconds by which a chunk, whose first frame has this source time, comes early; below 0 it is late.

        ``first``: the first chunk of a stream took more frames than the others will, so it says nothing about them.
        """
        if self.delay is None:
            self.delay = now - first_time
        early = first_time + self.delay - now
        if early < 0:
            self.delay -= early
            self.raised += 1
            self._surplus = 0.0
            self._early.clear()
        elif not first:
            self._early.append(early)
            self._plan()
        return early

    def _plan(self) -> None:
        surplus = min(self._early) - SPARE_FRAMES * self.interval
        if len(self._early) < WINDOW or surplus < self.interval / 2:
            return
        self._surplus = surplus
        self._early.clear()
        if math.isinf(self._slew):
            self._take_back(surplus)

    def shown(self, time: float) -> None:
        """The frame of this source time was shown: takes back a little of the surplus."""
        passed, self._shown = time - self._shown, time
        if self._surplus and 0 < passed < JUMP_SECONDS:
            self._take_back(self._slew * passed)

    def _take_back(self, most: float) -> None:
        if self.delay is not None:
            step = min(self._surplus, most)
            self.delay -= step
            self._surplus -= step

    def due(self, time: float) -> float:
        """When the frame of this source time is to be shown. ValueError before the first chunk."""
        if self.delay is None:
            raise ValueError("no chunk was ready yet")
        return time + self.delay

    def restart(self) -> None:
        """The next chunk is the first of a stream: its delay begins anew."""
        self.delay = None
        self._surplus = 0.0
        self._early.clear()


class Backoff:
    """Seconds to wait before each try: ``first``, then twice as many each time up to ``longest``."""

    def __init__(self, first: float = 0.5, longest: float = 10.0) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def next(self) -> float:
        wait, self._next = self._next, min(2 * self._next, self._longest)
        return wait

    def reset(self) -> None:
        self._next = self._first


def latency_bound(first_frames: int, room: int, interval: float, compute: float, filling: float = 0.0) -> float:
    """Seconds that a frame may take at most from capture to output, where a frame takes ``compute`` seconds to edit.

    It waits until its chunk is full, at the pace of the source (``interval`` from frame to frame, and ``filling`` for a chunk
    that took longer) or, where that is slower, of the machine, in a queue of up to ``room`` frames; then until its chunk is
    edited, of ``first_frames`` at most; then it may be ``SPARE_FRAMES`` early.
    """
    filling = max(first_frames * interval, room * compute, filling)
    return filling + first_frames * compute + SPARE_FRAMES * interval
