"""A live stream: frames of a source are edited chunk by chunk, and shown while the next chunk is made.

Three threads: one reads the source into a queue, this one edits, one shows what is edited. Commands come from anywhere and
are carried out between two chunks, or at once where they let go of frames.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch

from ..errors import InputError
from ..streaming.edit_stream import EditStream, Progress
from ..streaming.options import StreamOptions
from .clock import DelayClock, latency_bound
from .compare import Compare, Composer, output_size
from .control import Command, LiveState, Status
from .desk import CommandDesk, changed
from .editor import ChunkEditor
from .player import EditedFrame, OnShown, Player
from .prompts import LivePrompts
from .queues import BoundedQueue, Full
from .report import LiveStats, resident
from .sink import Sink
from .sound import SoundBuffer
from .source import LiveSource, LostError, SourceFrame

Late = Literal["drop", "wait", "repeat"]
# Frames beyond those of the next chunk that may wait, so that a chunk which takes a little longer costs none.
ROOM = 8
# Frames that may wait before it is known how many a chunk takes.
START = 33 + ROOM
# Between two looks at what was asked for.
TICK = 0.05
# What is said of a reset until its first chunk is edited.
ANEW = "the stream began anew"
_INPUT: dict[Late, Full] = {"drop": "thin", "repeat": "thin", "wait": "wait"}
_OUTPUT: dict[Late, Full] = {"drop": "oldest", "repeat": "oldest", "wait": "wait"}

MakeStream = Callable[[int, int, StreamOptions, str, LivePrompts, Callable[[Progress], None]], EditStream]
MakeSink = Callable[[int, int, Fraction, bool], Sink]


@dataclass(frozen=True)
class LiveSettings:
    """How a live stream begins.

    late: what becomes of frames where the edit is slower than the source. ``drop``: some are left out before they are
    edited, evenly; the source is never held up. ``wait``: the source waits, and no frame is lost. ``repeat``: as ``drop``,
    and the output has an even rate all the same, for whoever needs one. size: (height, width) of the edit for a source of
    (height, width). keep_lost: what waits for the rest of its chunk when the source is lost for good is edited, as a recording
    wants it; otherwise it is let go of, because it would come as late as the source was waited for.
    """

    prompt: str
    options: StreamOptions
    late: Late
    compare: Compare
    size: Callable[[int, int], tuple[int, int]]
    keep_lost: bool = True


class _InterruptedError(Exception):
    """A reset or the end was asked for in the middle of a chunk."""


class LiveSession:
    """Runs a live stream from its first frame to its end.

    make_stream: a stream of (height, width, options, prompt, prompts, on_progress), of unknown length. make_sink: opens the
    output for (height, width, rate, whether there is sound). on_state: told whenever something but counters has changed, in
    the thread that changed it. on_shown: see `Player`. should_stop: asked again and again; True ends the stream.
    """

    def __init__(
        self,
        source: LiveSource,
        settings: LiveSettings,
        prompts: LivePrompts,
        make_stream: MakeStream,
        make_sink: MakeSink,
        *,
        on_state: Callable[[LiveState], None] = lambda state: None,
        on_shown: OnShown = lambda frame: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.source, self.settings, self.prompts = source, settings, prompts
        self.stats = LiveStats()
        self.bound: float | None = None
        self._desk = CommandDesk(settings.prompt, settings.options, settings.compare, settings.late)
        self._desk.on_change = lambda: on_state(self.state())
        self._make_stream, self._make_sink = make_stream, make_sink
        self._on_shown, self._should_stop = on_shown, should_stop
        self._sound = SoundBuffer()
        self._frames: BoundedQueue[SourceFrame] = BoundedQueue(START, _INPUT[settings.late], self._dropped("queue"))
        self._edited: BoundedQueue[EditedFrame] = BoundedQueue(START, _OUTPUT[settings.late], self._dropped("output"))
        self._editor = ChunkEditor(self._make)
        # Raised whenever frames are let go of: what was being edited then is of no use any more.
        self._flushes = 0
        self._paused = False
        # What the source said last, which holds again after a pause.
        self._source_says: tuple[Status, str] = "running", ""
        # A command in line has done what it does at once.
        self._taking = threading.Lock()
        self._stop, self._reset = threading.Event(), threading.Event()
        self._source_error: Exception | None = None
        self._player: Player | None = None
        self._edit_size = (0, 0)
        self._interval = 0.0
        self._state_bytes = 0
        source.on_event(self._source_status, self._sound.add)

    # For whoever looks on or has a say, from any thread.

    def submit(self, command: Command) -> None:
        """Takes a command, which is carried out before the next chunk; pause, reset and stop let go of frames at once.

        A new prompt is embedded before this returns. InputError for what the stream cannot do.
        """
        if self._stop.is_set():
            raise InputError("the stream has ended; start a new one")
        if command.prompt is not None:
            self.prompts.prepare(command.prompt)
        with self._taking:
            self._desk.accept(command)
            if command.verb == "stop":
                self.stop()
            elif command.verb == "pause":
                self._paused = True
                self._flush("paused")
            elif command.verb == "reset":
                self._reset.set()
                self._flush("reset")

    def stop(self) -> None:
        """Ends the stream: what is edited is written, what is not is let go of."""
        self._stop.set()
        self.source.stop()

    def state(self) -> LiveState:
        """All there is to say, as it is now."""
        report, recent = self.stats.to_dict(), self.stats.latencies.recent
        state = self._desk.state()
        state.chunk = self._editor.chunk
        state.frames = report["frames"]
        state.fps = self.stats.rates(time.monotonic())
        state.latency = {
            "p50": recent(0.5),
            "p95": recent(0.95),
            "max": report["latency"]["max"],
            "bound": self.bound,
            "delay": self._player.clock.delay if self._player else None,
        }
        state.queue = {"input": len(self._frames), "output": len(self._edited)}
        state.memory = {"resident": resident(), "state": self._state_bytes}
        if torch.cuda.is_available():
            state.memory["gpu"] = torch.cuda.memory_allocated()
        return state

    def report(self) -> dict[str, Any]:
        """What has happened so far, with the curves over time; for JSON and :func:`.report.draw_plot`."""
        self.stats.sample(len(self._frames), len(self._edited))
        report, state = self.stats.to_dict(), self._desk.state()
        report["latency"]["bound"] = self.bound
        kept = ("status", "text", "late", "prompt", "compare", "streams", "first_frames", "chunk_frames")
        return {
            **{name: getattr(state, name) for name in kept},
            **report,
            "source": {"address": self.source.address.text, "connections": self.source.connections, **state.source},
            "output": state.output,
            "options": self._desk.options.to_dict(),
            "delay_raised": self._player.clock.raised if self._player else 0,
            "queue": {"input_most": self._frames.most, "output_most": self._edited.most},
            "curves": self.stats.curves(),
        }

    # The stream itself.

    def run(self) -> None:
        """Edits until the source ends or the stream is stopped.

        Raises InputError and OSError for a source or an output that fails, once what is edited is written.
        """
        reader = threading.Thread(target=self._read, name="live source", daemon=True)
        reader.start()
        hurry = True
        try:
            self._edit()
            hurry = self._stop.is_set()
        except _InterruptedError:
            pass
        finally:
            self.stop()
            self._frames.close()
            self.stats.drop("stopped", self._frames.clear() + self._editor.num_pending)
            if self._player is not None:
                self._player.finish(lambda: hurry or self._should_stop())
            reader.join(timeout=1)
            self._desk.update(status="stopped", text=str(self._error() or ""))
        if (error := self._error()) is not None:
            raise error

    def _error(self) -> Exception | None:
        player = self._player.error if self._player else None
        return player or self._source_error

    def _read(self) -> None:
        """The thread that reads the source."""
        try:
            for frame in self.source.frames():
                self.stats.frame_in(frame.arrival)
                if self._paused:
                    self.stats.drop("paused")
                    continue
                if frame.first and frame.number and self.settings.late != "wait":
                    # What waits for the rest of its chunk would come as late as the source was away.
                    self.stats.drop("reconnect", self._frames.clear())
                if frame.held and not self._keeps_unfinished:
                    self.stats.drop("reconnect")
                elif not self._frames.put(frame):
                    self.stats.drop("stopped")
        except Exception as error:
            self._source_error = error
            if isinstance(error, LostError) and not self._keeps_unfinished:
                self.stats.drop("reconnect", self._frames.clear())
        finally:
            self._frames.close()

    @property
    def _keeps_unfinished(self) -> bool:
        """Whether frames may wait for a source that has gone; one that is not waited for makes none of them late."""
        return self.settings.late == "wait" or self.settings.keep_lost or not self.source.address.can_come_back

    def _source_status(self, status: Status, text: str) -> None:
        self._source_says = status, text
        self._desk.update(status="paused" if self._paused and status == "running" else status, text=text)

    def _edit(self) -> None:
        while self.source.info is None:
            # Asked in this order: a short source may come and end in between.
            if self._stopping() or (self._frames.closed and self.source.info is None):
                return
            self._frames.peek(TICK)
        self._begin()
        while not self._stopping():
            self._carry_out()
            assert self._player is not None
            if self._player.error is not None:
                return
            self.stats.sample(len(self._frames), len(self._edited))
            if self._paused:
                time.sleep(TICK)
                continue
            flushes = self._flushes
            needed = self._editor.needed
            batch = self._frames.take(needed, TICK)
            last = self._frames.closed and len(batch) < needed
            if batch or last:
                self._edit_chunk(batch, flushes, last)
            if last:
                return

    def _begin(self) -> None:
        """Opens stream and output for the frames that come."""
        info = self.source.info
        assert info is not None
        self._interval = float(1 / info.rate)
        self._edit_size = height, width = self.settings.size(info.height, info.width)
        self._start_stream()
        size = output_size(height, width, self.settings.compare)
        repeat = self.settings.late == "repeat"
        self._player = Player(
            self._edited,
            DelayClock(self._interval, slew=math.inf) if repeat else DelayClock(self._interval),
            self._make_sink(*size, info.rate, info.has_sound),
            self._sound,
            self.stats,
            Composer(height, width, size, info.rate, self._desk.state().compare),
            repeat=repeat,
            on_shown=self._on_shown,
        )
        if self.settings.late == "wait" and self.source.address.is_read_at_once:
            self._player.hurry()
        self._edited.capacity = self._editor.first_frames + self._editor.chunk_frames + ROOM
        self._desk.update(
            source={"height": info.height, "width": info.width, "rate": float(info.rate), "sound": info.has_sound},
            output={"height": size[0], "width": size[1]},
        )
        self._player.start()

    def _start_stream(self) -> None:
        """A new stream, in place of one that may be there."""
        state, editor = self._desk.state(), self._editor
        self.stats.drop("reset", editor.begin(self._desk.options, state.prompt))
        self._prepare_chunk()
        self._desk.update(streams=state.streams + 1, first_frames=editor.first_frames, chunk_frames=editor.chunk_frames)

    def _make(self, options: StreamOptions, prompt: str) -> EditStream:
        return self._make_stream(*self._edit_size, options, prompt, self.prompts, self._check_interrupt)

    def _prepare_chunk(self) -> None:
        """Makes room for the frames of the next chunk, and says how late they may be."""
        self._frames.capacity = self._editor.needed + ROOM
        first, stats = self._editor.first_frames, self.stats
        self.bound = latency_bound(first, first + ROOM, self._interval, stats.slowest_frame, stats.slowest_filling)

    def _check_interrupt(self, progress: Progress) -> None:
        if self._stopping() or self._reset.is_set():
            raise _InterruptedError

    def _stopping(self) -> bool:
        if self._should_stop():
            self.stop()
        return self._stop.is_set()

    def _edit_chunk(self, batch: list[SourceFrame], flushes: int, last: bool) -> None:
        """Edits a chunk, or at the end what there is, and hands it to the player."""
        start, first = time.monotonic(), self._editor.chunk == 0
        try:
            edited = self._editor.edit(batch, last)
        except _InterruptedError:
            self.stats.drop("stopped" if self._stop.is_set() else "reset", self._editor.let_go())
            if self._stop.is_set():
                raise
            return
        if batch:
            away = any(frame.first for frame in batch[1:]) or any(frame.held for frame in batch)
            filling = 0.0 if away else batch[-1].arrival - batch[0].arrival
            self.stats.chunk(len(edited), len(batch), time.monotonic() - start, filling)
        self._state_bytes = self._editor.state_bytes
        self._prepare_chunk()
        if first and self._desk.state().text == ANEW:
            self._desk.update(text="")
        self._hand_over(edited, flushes, first)
        self._desk.on_change()

    def _hand_over(self, edited: list[EditedFrame], flushes: int, first: bool) -> None:
        """Gives frames to the player; those that were let go of meanwhile are not shown."""
        player = self._player
        assert player is not None

        def wanted() -> bool:
            return self._flushes == flushes

        # One that the source's silence held up is late once, and no reason to show all others later.
        if edited and not any(frame.source.held for frame in edited):
            player.chunk_ready(_first_time(edited, self._interval), wanted, first=first)
        given = 0
        for frame in edited:
            while wanted() and not self._edited.wait_for_room(TICK):
                if self._stopping():
                    # What is edited is written, without minding the time.
                    player.hurry()
            given += self._edited.put(frame, wanted)
        self.stats.drop("output" if wanted() else "paused" if self._paused else "reset", len(edited) - given)

    # Commands, in the thread that edits.

    def _carry_out(self) -> None:
        """Does what was asked for since the last chunk."""
        with self._taking:
            commands = self._desk.take()
        for command in commands:
            if command.verb == "pause":
                self._paused = True
                self._flush("paused")
                self._desk.update(status="paused", text="")
            elif command.verb == "resume":
                self._flush("paused")
                self._paused = False
                self._source_status(*self._source_says)
            elif command.verb == "reset":
                self._reset.clear()
                self._flush("reset")
                self._start_stream()
                self._desk.update(text=ANEW)
            elif command.verb == "set":
                self._change(command)

    def _change(self, command: Command) -> None:
        assert self._player is not None
        if command.compare is not None:
            self._player.set_compare(command.compare)
            self._desk.update(compare=command.compare)
        if command.prompt is not None:
            self._editor.stream.set_prompt(command.prompt)
            self._desk.update(prompt=command.prompt)
        options = changed(self._desk.options, command)
        if options == self._desk.options:
            return
        try:
            self._editor.stream.set_options(options)
        except (MemoryError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            self._desk.update(text=f"anchor_every {options.anchor_every} takes more memory than there is ({reason})")
        else:
            self._desk.adopt(options)

    def _flush(self, cause: str) -> None:
        """Lets go of every frame that waits."""
        self._flushes += 1
        count = self._frames.clear()
        if self._player is not None:
            count += self._player.flush()
        self.stats.drop(cause, count)

    def _dropped(self, cause: str) -> Callable[[int], None]:
        return lambda count: self.stats.drop(cause, count)


def _first_time(frames: list[EditedFrame], interval: float) -> float:
    """Source time of a chunk's first frame, as if no connection had been lost within the chunk."""
    last = max((i for i, frame in enumerate(frames) if frame.source.first), default=0)
    return frames[last].time - last * interval
