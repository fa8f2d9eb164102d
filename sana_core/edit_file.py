"""A video file in, an edited video file out: the stream between a reader and a writer.

Knows files, the stream and a report. Knows no command line.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from .short_clip import ShortClip
from .streaming.edit_stream import EditedChunk, EditStream
from .streaming.prompt_schedule import format_time
from .video.compare import Comparison, Layout
from .video.contact_sheet import FrameSampler, contact_sheet
from .video.reader import FrameSource
from .video.writer import VideoWriter

# Frames decoded at a time; waiting frames are held by the stream.
READ_BLOCK = 8
SHEET_COLUMNS = 5


@dataclass(frozen=True)
class FileJob:
    """What to read and what to write.

    frames: the frames to take in, from ``start`` in their source on. target: the file to write. frame_rate: of the output,
    None keeps the source's. audio_from: file whose sound goes along at the source's own rate, None for none. finish: whether
    the end of the frames is the end of the stream; otherwise frames that fill no chunk stay in the stream's state. sheet:
    contact sheet to draw, None for none. compare: write source and edit in one picture. due: the frames just before
    ``frames`` that a stream that goes on has taken in and not given out, needed to compare.
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


class FileEdit:
    """Runs a stream over a file.

    ``on_chunk`` is called after a chunk is written, with the report so far. After :meth:`run` ends, whichever way, the
    file holds every chunk that the stream's state counts as given out, and ``report`` says what was done.
    """

    def __init__(self, stream: EditStream | ShortClip, job: FileJob, on_chunk: OnChunk | None = None) -> None:
        self.stream, self.job, self.on_chunk = stream, job, on_chunk
        self.report = FileReport()
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
            with contextlib.closing(self._timed_blocks()) as blocks, self._writer() as writer:
                for block in blocks:
                    for chunk in self.stream.push(block):
                        self._write(writer, chunk)
                for chunk in self.stream.flush() if self.job.finish else self.stream.drain():
                    self._write(writer, chunk)
        except KeyboardInterrupt:
            self.report.stopped = True
        finally:
            self._finish_report()
        return self.report

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
        report.peak_memory = peak_memory(self.stream.device)

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
        if self.comparison is not None and self.job.due is not None:
            for block in self.job.due.blocks(READ_BLOCK):
                self.comparison.offer(block)

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

    def _timed_blocks(self) -> Generator[torch.Tensor]:
        blocks = self.job.frames.blocks(READ_BLOCK)
        while True:
            start = time.perf_counter()
            block = next(blocks, None)
            self._add_seconds("read", start)
            if block is None:
                return
            self._offer(0, self.report.frames_read, block)
            if self.comparison is not None:
                start = time.perf_counter()
                self.comparison.offer(block)
                self._add_seconds("compare", start)
            self.report.frames_read += len(block)
            yield block

    def _write(self, writer: VideoWriter, chunk: EditedChunk) -> None:
        report = self.report
        start = time.perf_counter()
        frames = chunk.frames.cpu()
        writer.write(frames if self.comparison is None else self.comparison.combine(frames))
        self._add_seconds("write", start)
        self._offer(1, self.origin + chunk.first_frame - self.job.start, frames)
        report.frames_written += len(frames)
        report.chunks += 1
        report.wall_seconds = time.perf_counter() - self.began
        if report.first_chunk_seconds is None:
            report.first_chunk_seconds = report.wall_seconds
        report.peak_memory = peak_memory(self.stream.device)
        if self.on_chunk is not None:
            self.on_chunk(chunk, report)

    def _add_seconds(self, stage: str, start: float) -> None:
        self.report.seconds[stage] = self.report.seconds.get(stage, 0.0) + time.perf_counter() - start

    def _offer(self, row: int, first: int, frames: torch.Tensor) -> None:
        if self.sheet:
            for index, frame in enumerate(frames, first):
                self.sheet[row].offer(index, frame)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most resident bytes of the process so far, and most bytes allocated on the GPU."""
    peak = {"resident": _peak_resident()}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
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
