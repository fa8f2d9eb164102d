"""Live streams for tests: numbered frames, senders that keep time, sources and editors in memory."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from sana_streaming.sana_core.live.address import SourceAddress
from sana_streaming.sana_core.live.player import EditedFrame
from sana_streaming.sana_core.live.session import LiveSession, LiveSettings
from sana_streaming.sana_core.live.source import SourceFrame, SourceInfo
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.edit_stream import EditedChunk, Progress
from sana_streaming.sana_core.streaming.options import StreamOptions
from video_files import SAMPLE_RATE, wave

SIZE, CELLS = 64, 4
DARK, BRIGHT = 40, 215


def numbered(number: int) -> np.ndarray:
    """uint8 [64, 64, 3]: a number below 65536 as a board of 16 dark and bright fields, lowest bit first."""
    bits = (number >> np.arange(CELLS * CELLS)) & 1
    board = np.where(bits, BRIGHT, DARK).astype(np.uint8).reshape(CELLS, CELLS)
    return np.repeat(np.kron(board, np.ones((SIZE // CELLS,) * 2, np.uint8))[..., None], 3, 2)


def number_of(picture: np.ndarray) -> int:
    """The number on a square picture of any size."""
    side = picture.shape[0] // CELLS
    centres = side // 2 + side * np.arange(CELLS)
    bright = picture[..., 1][np.ix_(centres, centres)] > (DARK + BRIGHT) / 2
    return int((bright.ravel() << np.arange(CELLS * CELLS)).sum())


def send(
    target: str,
    first: int,
    count: int,
    rate: int,
    *,
    sound: bool = True,
    stop: threading.Event | None = None,
    container: str = "mpegts",
    options: Mapping[str, str] | None = None,
    encoder: Mapping[str, str] | None = None,
) -> None:
    """``count`` numbered frames from ``first`` on, at their time; the sound is `wave`, both from time 0 on.

    options, encoder: FFmpeg's for the ``container`` and for x264.
    """
    with contextlib.ExitStack() as stack:
        # PyAV would wait for a pipe's reader without letting other threads run.
        place = stack.enter_context(Path(target).open("wb", buffering=0)) if Path(target).is_fifo() else target
        output = stack.enter_context(
            av.open(place, "w", format=container, options={"flush_packets": "1", **(options or {})})
        )
        video = output.add_stream("libx264", rate=rate)
        video.width = video.height = SIZE
        video.pix_fmt, video.gop_size = "yuv420p", rate
        video.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "18", **(encoder or {})}
        audio = output.add_stream("aac", rate=SAMPLE_RATE, layout="stereo") if sound else None
        samples, heard = wave(count / rate + 1), 0
        began = time.monotonic()
        for index in range(count):
            if stop is not None and stop.is_set():
                return
            time.sleep(max(0.0, began + index / rate - time.monotonic()))
            frame = av.VideoFrame.from_ndarray(numbered(first + index), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(video.encode(frame))
            while audio is not None and heard <= index / rate * SAMPLE_RATE:
                piece = av.AudioFrame.from_ndarray(
                    np.tile(samples[heard : heard + 1024], (2, 1)), format="fltp", layout="stereo"
                )
                piece.sample_rate, piece.pts, piece.time_base = SAMPLE_RATE, heard, Fraction(1, SAMPLE_RATE)
                output.mux(audio.encode(piece))
                heard += 1024
        output.mux(video.encode(None))


@contextlib.contextmanager
def sending(*args: object, **options: object) -> Iterator[threading.Thread]:
    """:func:`send` in a thread, ended with the block."""
    stop = threading.Event()

    def work() -> None:
        # Whoever reads from a pipe may go first.
        with contextlib.suppress(av.FFmpegError, OSError):
            send(*args, **options, stop=stop)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(20)


def shown_numbers(path: Path) -> list[tuple[float, int]]:
    """(seconds, number) of the frames of a file; the number is read from the square at the left."""
    with av.open(str(path)) as container:
        return [
            (float(frame.pts * frame.time_base), number_of(frame.to_ndarray(format="rgb24")[:, : frame.height]))
            for frame in container.decode(video=0)
        ]


def heard(path: Path) -> tuple[float, np.ndarray]:
    """The sound of a file: time of its first sample, and the samples of one channel."""
    with av.open(str(path)) as container:
        pieces = list(container.decode(audio=0))
    return float(pieces[0].pts * pieces[0].time_base), np.concatenate([piece.to_ndarray()[0] for piece in pieces])


def sound_lag(path: Path, start: float, seconds: float = 1.0) -> float:
    """Seconds by which the sound of a file lies behind `wave`, by the stretch of it that begins at ``start``."""
    return lag_of(heard(path), start, seconds=seconds)


def lag_of(
    sound: tuple[float, np.ndarray], start: float, *, about: float = 0.0, seconds: float = 1.0, reach: float = 20.0
) -> float:
    """As `sound_lag` of what was `heard`, looked for within ``reach`` seconds of ``about``."""
    first, samples = sound
    begin = round((start - first) * SAMPLE_RATE)
    stretch = samples[begin : begin + round(seconds * SAMPLE_RATE)]
    skipped = max(0, round((start - about - reach) * SAMPLE_RATE))
    truth = wave(start - about + seconds + reach)[skipped:]
    length = len(truth) + len(stretch)
    match = np.fft.irfft(np.fft.rfft(truth, length) * np.conj(np.fft.rfft(stretch, length)), length)
    return start - (skipped + int(match[: len(truth)].argmax())) / SAMPLE_RATE


class MemorySource:
    """Stands in for a `LiveSource`: grey frames at a rate, whose level is their number, until stopped or ``count`` are out."""

    def __init__(
        self, rate: int = 200, count: int | None = None, sizes: tuple[int, ...] = (SIZE,), delay: float = 0.0
    ) -> None:
        self.address = SourceAddress("memory", container="memory")
        self.info: SourceInfo | None = None
        self.connections = 1
        self.rate, self.count, self.sizes, self.delay = rate, count, sizes, delay
        self._stop = threading.Event()

    def on_event(self, status: Callable, sound: Callable) -> None:
        self._status = status

    def stop(self) -> None:
        self._stop.set()

    def frames(self) -> Iterator[SourceFrame]:
        self._stop.wait(self.delay)
        self.info = SourceInfo(SIZE, SIZE, Fraction(self.rate), has_sound=False)
        self._status("running", "")
        began = time.monotonic()
        for number in itertools.count():
            moment = began + number / self.rate
            if number == self.count or self._stop.wait(max(0.0, moment - time.monotonic())):
                return
            size = self.sizes[number % len(self.sizes)]
            picture = torch.full((size, size, 3), number % 256, dtype=torch.uint8)
            yield SourceFrame(picture, moment, time.monotonic(), number, first=number == 0)


class EchoStream:
    """Stands in for an `EditStream`: gives each chunk back, with its prompt's length in the first channel of every picture."""

    def __init__(
        self,
        options: StreamOptions,
        prompt: str,
        on_progress: Callable[[Progress], None],
        seconds: float,
        editing: threading.Event,
    ) -> None:
        # In force for each chunk.
        self.options, self.used = options, []
        self.editing = editing
        self.plan, self.prompt = ChunkPlan(None), prompt
        self.on_progress, self.seconds = on_progress, seconds
        self.chunk, self.frames_out, self.waiting = 0, 0, torch.empty(0)
        self.state = self
        self.nbytes = 0

    def push(self, frames: torch.Tensor) -> list[EditedChunk]:
        pixels = torch.nn.functional.interpolate(frames.movedim(-1, 1) / 127.5 - 1, SIZE)
        self.waiting = torch.cat([self.waiting, pixels]) if len(self.waiting) else pixels
        needed = self.plan.pixel_frames(self.chunk)
        assert len(self.waiting) <= needed
        return self._out() if len(self.waiting) == needed else []

    def _out(self) -> list[EditedChunk]:
        for unit in range(5):
            self.on_progress(Progress(self.chunk, None, "denoise", unit, 5))
            self.editing.set()
            time.sleep(self.seconds / 5)
        self.editing.clear()
        self.used.append((self.options.steps, self.options.anchor_every))
        pixels, self.waiting = self.waiting, torch.empty(0)
        pixels[:, 0] = (len(self.prompt) + 0.5) / 127.5 - 1
        chunk = EditedChunk(self.chunk, self.frames_out, pixels)
        self.chunk, self.frames_out = self.chunk + 1, self.frames_out + len(pixels)
        return [chunk]

    def flush(self) -> list[EditedChunk]:
        return self._out() if len(self.waiting) else []

    def set_prompt(self, prompt: str) -> None:
        self.prompt = prompt

    def set_options(self, options: StreamOptions) -> None:
        self.options = options


class MemorySink:
    """Keeps (seconds, prompt's length, number modulo 256, moment) of every frame."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, int, int, float]] = []
        self.sizes: set[tuple[int, ...]] = set()
        self.closed = False

    def write(self, picture: np.ndarray, seconds: float) -> bool:
        self.sizes.add(picture.shape)
        middle = picture[picture.shape[0] // 2, -1 if picture.shape[1] == SIZE else -(SIZE // 2)]
        self.frames.append((seconds, int(middle[0]), int(middle[1]), time.monotonic()))
        return True

    def write_sound(self, samples: np.ndarray, seconds: float) -> None:
        return None

    def close(self) -> None:
        self.closed = True


class PlainPrompts:
    """Stands in for `LivePrompts`."""

    def __init__(self) -> None:
        self.prepared: list[str] = []

    def prepare(self, prompt: str) -> None:
        self.prepared.append(prompt)


class MemorySession(LiveSession):
    """A session of the stand-ins above, run in a thread by the with-block."""

    def __init__(
        self,
        source: MemorySource,
        *,
        late: str = "drop",
        compare: str = "off",
        prompt: str = "a",
        seconds: float = 0.01,
        keep_lost: bool = True,
        on_shown: Callable[[EditedFrame], None] = lambda frame: None,
    ) -> None:
        self.sink = MemorySink()
        self.streams: list[EchoStream] = []
        self.states: list = []
        # Set while a chunk is in the making.
        self.editing = threading.Event()
        self.error: Exception | None = None

        def make_stream(height, width, options, prompt, prompts, on_progress):
            self.streams.append(EchoStream(options, prompt, on_progress, seconds, self.editing))
            return self.streams[-1]

        settings = LiveSettings(prompt, StreamOptions(), late, compare, lambda *size: (SIZE, SIZE), keep_lost)
        super().__init__(
            source,
            settings,
            PlainPrompts(),
            make_stream,
            lambda *about: self.sink,
            on_state=self.states.append,
            on_shown=on_shown,
        )
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            self.run()
        except Exception as error:
            self.error = error

    def __enter__(self) -> "MemorySession":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def until(self, what: Callable[[], object], seconds: float = 20) -> None:
        """Waits until something is true."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.005)
