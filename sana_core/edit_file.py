"""A video file in, an edited video file out: the stream between a reader and a writer.

Knows files, the stream and a report. Knows no command line.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .short_clip import ShortClip
from .streaming.edit_stream import EditedChunk, EditStream
from .streaming.lanes import HostCopy
from .streaming.prompt_schedule import format_time
from .video.ahead import read_ahead
from .video.colour import ColourMatch
from .video.compare import Comparison, Layout
from .video.contact_sheet import FrameSampler, contact_sheet
from .video.reader import FrameSource
from .video.writer import VideoWriter

# Frames decoded at a time; waiting frames are held by the stream.
READ_BLOCK = 8
# Blocks that wait at most where they are read in a thread: those of a chunk.
BLOCKS_AHEAD = 3
SHEET_COLUMNS = 5


@dataclass(frozen=True)
class FileJob:
    """What to read and what to write.

    frames: the frames to take in, from ``start`` in their source on. target: the file to write. frame_rate: of the output,
    None keeps the source's. audio_from: file whose sound goes along at the source's own rate, None for none. finish: whether
    the end of the frames is the end of the stream; otherwise frames that fill no chunk stay in the stream's state. sheet:
    contact sheet to draw, None for none. compare: write source and edit in one picture. due: the frames just before
    ``frames`` that a stream that goes on has taken in and not given out, needed to compare and to match. colours: brings the
    edit's colours to the source's before anything else is done with it, None for not at all.
    """

    frames: FrameSource
    target: Path
    start: int = 0
    frame_rate: Fraction | None = None
    crf: int = 25
    audio_from: Path | None = None
    finish: bool = True
    sheet: Path | None = None
    compare: Layout | None = None
    due: FrameSource | None = None
    colours: ColourMatch | None = None

    @property
    def audio(self) -> Path | None:
        """Where the sound comes from; None when the output plays at another rate."""
        return self.audio_from if self.frame_rate in (None, self.frames.frame_rate) else None


@dataclass
class FileReport:
    """What happened: frames, seconds per stage, peak memory in bytes, and what was in force."""

    frames_read: int = 0
    frames_written: int = 0
    chunks: int = 0
    stopped: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    wall_seconds: float = 0.0
    first_chunk_seconds: float | None = None
    peak_memory: dict[str, int] = field(default_factory=dict)
    state_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        rate = self.frames_written / self.wall_seconds if self.wall_seconds else 0.0
        return {**self.__dict__, "frames_per_second": rate}


OnChunk = Callable[[EditedChunk, FileReport], None]


class StopRequested(KeyboardInterrupt):
    """Ctrl-C of somebody who waits for the work in hand: chunks that overlap has put off are still decoded and written."""


class _Written(NamedTuple):
    """What became of a chunk: its frames and the last one as written, the seconds that it took, and when it was done."""

    num_frames: int
    last: torch.Tensor
    seconds: float
    at: float


class FileEdit:
    """Runs a stream over a file.

    ``on_chunk`` is called after a chunk is written, with the report so far; ``last_frame`` is then its last one as written,
    uint8 [H, W, 3]. After :meth:`run` ends, whichever way, the
    file holds every chunk that the stream's state counts as given out, and ``report`` says what was done.

    With a stream that overlaps, frames are read in a thread of their own, at most `BLOCKS_AHEAD` blocks early, and written in
    another: the next chunk is launched while the last one is written, and comes out once that is in the file. What goes wrong
    in either thread is raised by :meth:`run`, after all that came before it.
    """

    def __init__(self, stream: EditStream | ShortClip, job: FileJob, on_chunk: OnChunk | None = None) -> None:
        self.stream, self.job, self.on_chunk = stream, job, on_chunk
        self.overlap = isinstance(stream, EditStream) and stream.overlap
        self.report = FileReport(seconds={"read": 0.0})
        self.last_frame: torch.Tensor | None = None
        # Chunks in the order in which they came, until they are in the report.
        self._chunks: deque[tuple[EditedChunk, Future[_Written]]] = deque()
        self.rate = job.frame_rate or job.frames.frame_rate
        # Number in the source of the stream's frame 0: a stream that goes on has seen frames before ``job.start``.
        self.origin = job.start - stream.state.frames_in
        self.comparison = self._compare() if job.compare else None
        total = job.frames.num_frames
        self.sheet = [FrameSampler(total, SHEET_COLUMNS) for _ in range(2)] if job.sheet and total else []
        self.began = time.perf_counter()

    def run(self) -> FileReport:
        """Reads, edits and writes. KeyboardInterrupt ends it at the last whole chunk, with ``report.stopped`` set."""
        try:
            self._offer_due()
            # The thread that writes ends before the file does.
            with (
                contextlib.closing(self._blocks()) as blocks,
                self._writer() as writer,
                ThreadPoolExecutor(1, "edit writer") as thread,
            ):
                self._edit(blocks, writer, thread)
        except KeyboardInterrupt:
            self.report.stopped = True
        finally:
            self._settle()
            self._finish_report()
        return self.report

    def _edit(self, blocks: Iterator[torch.Tensor], writer: VideoWriter, thread: ThreadPoolExecutor) -> None:
        try:
            for block in blocks:
                for chunk in self._take_in(block):
                    self._write(chunk, writer, thread)
            for chunk in self.stream.flush() if self.job.finish else self.stream.drain():
                self._write(chunk, writer, thread)
            for chunk in self._put_off():
                self._write(chunk, writer, thread)
        except StopRequested:
            if isinstance(self.stream, EditStream):
                # It would ask to stop again.
                self.stream.on_progress = None
            for chunk in self._put_off():
                self._write(chunk, writer, thread)
            raise

    def _take_in(self, block: torch.Tensor) -> Iterator[EditedChunk]:
        """The chunks that a block completes; with overlap those whose successor can be encoded beside them."""
        chunks = self.stream.push(block)
        if self.overlap and isinstance(self.stream, EditStream):
            return self.stream.drain(ahead=True)
        return chunks

    def _put_off(self) -> Iterator[EditedChunk]:
        """What was edited and has not come out, though the stream may go on."""
        if isinstance(self.stream, EditStream):
            yield from self.stream.catch_up()
            self.stream.settle()

    def _settle(self) -> None:
        """Counts and reports what was written, also where something else went wrong."""
        if isinstance(self.stream, EditStream):
            # An error of the thread that writes has come out of the stream already, unless a worse one did.
            with contextlib.suppress(Exception):
                self.stream.settle()
        self._report_written()

    def draw_sheet(self) -> bool:
        """Draws the contact sheet of the frames that were both read and written; False where there are none."""
        if not self.sheet:
            return False
        source, edited = self.sheet
        shown = [i for i in source.indices if i in edited.indices]
        if not shown:
            return False
        times = [float((self.job.start + i) / self.job.frames.frame_rate) for i in shown]
        before, after = (torch.stack([row.frames[row.indices.index(i)] for i in shown]) for row in (source, edited))
        assert self.job.sheet is not None
        contact_sheet(before, after, self.job.sheet, prompt=self._caption(), times=times)
        return True

    def _caption(self) -> str:
        """The prompt, or those that have come by a schedule and when, in the time of the edited video."""
        state = self.stream.state
        come = state.schedule[: state.schedule_place]
        if len(come) < 2:
            return state.prompt
        return "; ".join(f"{format_time(frame / self.rate)} {prompt}" for frame, prompt in come)

    def _finish_report(self) -> None:
        report = self.report
        report.wall_seconds = time.perf_counter() - self.began
        report.seconds |= self.stream.seconds
        report.state_bytes = self.stream.state.nbytes
        report.peak_memory = peak_memory(self.stream.device, self.stream.vae_device)

    def _compare(self) -> Comparison:
        assert self.job.compare is not None
        state = self.stream.state
        return Comparison(
            self.job.compare,
            state.settings.height,
            state.settings.width,
            frame_rate=self.rate,
            first_frame=state.frames_out,
            antialias=state.settings.antialias,
        )

    def _offer_due(self) -> None:
        if self.job.due is not None and (self.comparison is not None or self.job.colours is not None):
            for block in self.job.due.blocks(READ_BLOCK):
                self._offer_source(block)

    def _offer_source(self, block: torch.Tensor) -> None:
        """To whatever needs the source beside the edit."""
        if self.job.colours is not None:
            start = time.perf_counter()
            self.job.colours.offer(block)
            self._add_seconds("colour", time.perf_counter() - start)
        if self.comparison is not None:
            start = time.perf_counter()
            self.comparison.offer(block)
            self._add_seconds("compare", time.perf_counter() - start)

    def _writer(self) -> VideoWriter:
        job, settings = self.job, self.stream.state.settings
        height, width = self.comparison.size if self.comparison else (settings.height, settings.width)
        # Sound begins where the first frame to be written lies in the source.
        first_frame = self.origin + self.stream.state.frames_out
        return VideoWriter(
            job.target,
            width=width,
            height=height,
            frame_rate=self.rate,
            crf=job.crf,
            audio_from=job.audio,
            audio_start=float(first_frame / job.frames.frame_rate),
        )

    def _blocks(self) -> Generator[torch.Tensor, None, None]:
        timed = self._timed_blocks()
        with contextlib.closing(read_ahead(timed, BLOCKS_AHEAD) if self.overlap else timed) as blocks:
            for block, seconds in blocks:
                self.report.seconds["read"] += seconds
                self._offer(0, self.report.frames_read, block)
                self._offer_source(block)
                self.report.frames_read += len(block)
                yield block

    def _timed_blocks(self) -> Generator[tuple[torch.Tensor, float], None, None]:
        """Blocks and the seconds that reading them took; where they go to a GPU, in memory that it can copy from by itself."""
        pinned = self.overlap and self.stream.vae_device.type == "cuda"
        blocks = self.job.frames.blocks(READ_BLOCK)
        start = time.perf_counter()
        for block in blocks:
            block = block.pin_memory() if pinned and block.device.type == "cpu" else block
            yield block, time.perf_counter() - start
            start = time.perf_counter()

    def _write(self, chunk: EditedChunk, writer: VideoWriter, thread: ThreadPoolExecutor) -> None:
        copy = chunk.to_host()
        work: Future[_Written]
        if self.overlap:
            work = thread.submit(self._write_now, copy, chunk.first_frame, writer)
            chunk.defer(work)
        else:
            # In this thread, in which Ctrl-C arrives.
            work = Future()
            work.set_result(self._write_now(copy, chunk.first_frame, writer))
        self._chunks.append((chunk, work))
        self._report_written()

    def _write_now(self, copy: HostCopy, first_frame: int, writer: VideoWriter) -> _Written:
        start = time.perf_counter()
        frames = copy.wait()
        if self.job.colours is not None:
            frames = self.job.colours.match(frames)
        written = frames if self.comparison is None else self.comparison.combine(frames)
        writer.write(written)
        end = time.perf_counter()
        self._offer(1, self.origin + first_frame - self.job.start, frames)
        return _Written(len(frames), written[-1].clone(), end - start, end - self.began)

    def _report_written(self) -> None:
        """Puts what is in the file into the report."""
        report = self.report
        while self._chunks and self._chunks[0][1].done():
            chunk, work = self._chunks.popleft()
            if work.exception() is not None:
                return
            written = work.result()
            self._add_seconds("write", written.seconds)
            self.last_frame = written.last
            report.frames_written += written.num_frames
            report.chunks += 1
            report.wall_seconds = written.at
            if report.first_chunk_seconds is None:
                report.first_chunk_seconds = written.at
            report.peak_memory = peak_memory(self.stream.device, self.stream.vae_device)
            if self.on_chunk is not None:
                self.on_chunk(chunk, report)

    def _add_seconds(self, stage: str, seconds: float) -> None:
        self.report.seconds[stage] = self.report.seconds.get(stage, 0.0) + seconds

    def _offer(self, row: int, first: int, frames: torch.Tensor) -> None:
        if self.sheet:
            for index, frame in enumerate(frames, first):
                self.sheet[row].offer(index, frame)


def peak_memory(device: torch.device, vae_device: torch.device | None = None) -> dict[str, int]:
    """Most resident bytes of the process so far, and most bytes allocated on the GPU, and on that of the VAE if another."""
    peak = {"resident": _peak_resident()}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    if vae_device is not None and vae_device != device and vae_device.type == "cuda":
        peak["gpu of the VAE"] = torch.cuda.max_memory_allocated(vae_device)
    return peak


def _peak_resident() -> int:
    try:
        import resource
    except ImportError:
        import psutil

        # Windows alone has no resource module, and alone has this field.
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    # Kilobytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
