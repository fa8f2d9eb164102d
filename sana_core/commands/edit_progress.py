"""What ``edit`` shows while it works, and how Ctrl-C ends it without loss."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..edit_file import StopRequested

if TYPE_CHECKING:
    from ..edit_file import FileReport
    from ..streaming.edit_stream import EditedChunk, Progress


class GracefulStop:
    """Turns Ctrl-C into a request that is honoured before the next unit of work, never while a chunk is written.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raises StopRequested, a KeyboardInterrupt, if Ctrl-C was pressed."""
        if self.requested:
            raise StopRequested


class ChunkBar:
    """Progress on standard error: chunks (in fractions of one), frames per second, memory."""

    def __init__(self, stop: GracefulStop) -> None:
        from tqdm import tqdm

        self._stop = stop
        self._make = tqdm
        self._bar: Any = None

    def __enter__(self) -> ChunkBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_progress(self, progress: Progress) -> None:
        self._stop.check()
        if self._bar is None:
            style = "{desc}: {n:.1f}/{total_fmt} chunks |{bar}| {elapsed}<{remaining}{postfix}"
            self._bar = self._make(
                total=progress.total_chunks, desc="editing", file=sys.stderr, bar_format=style, dynamic_ncols=True
            )
        # With overlap the chunk before goes on beside this one.
        self._bar.update(max(0, progress.chunk + progress.number / progress.total - self._bar.n))

    def on_chunk(self, chunk: EditedChunk, report: FileReport) -> None:
        if self._bar is None:
            # A stream that was stopped at once has only brought out what a saved one had put off.
            return
        self._bar.update(max(0, chunk.index + 1 - self._bar.n))
        rate = report.frames_written / report.wall_seconds
        self._bar.set_postfix_str(f"{rate:.2f} frames/s, {in_gib(report.peak_memory)}")


def in_gib(sizes: dict[str, int]) -> str:
    """Sizes in bytes by name, for people: ``resident 1.50 GiB, gpu 3.00 GiB``."""
    return ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in sizes.items())
