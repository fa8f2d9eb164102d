"""The stream inside a live session: whole chunks of source frames in, edited frames with the frames they are of out."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..streaming.edit_stream import EditedChunk, EditStream
from ..streaming.options import StreamOptions
from .player import EditedFrame
from .source import SourceFrame


class ChunkEditor:
    """Edits chunk after chunk, in one stream after another. For one thread.

    make: a stream of (options, prompt), of unknown length. What it raises in the middle of a chunk comes out of :meth:`edit`;
    then the frames of that chunk are to be let go of, and another stream begun.
    """

    def __init__(self, make: Callable[[StreamOptions, str], EditStream]) -> None:
        self._make = make
        self._stream: EditStream | None = None
        # Frames that are in the stream and have not come out.
        self._pending: deque[SourceFrame] = deque()
        self.chunk = 0

    def begin(self, options: StreamOptions, prompt: str) -> int:
        """Another stream, in place of one that may be there; returns how many frames were left in that."""
        # What the old one holds serves the new one.
        self._stream = None
        left = self.let_go()
        self._stream = self._make(options, prompt)
        self.chunk = 0
        return left

    @property
    def stream(self) -> EditStream:
        """AssertionError before the first one begins."""
        assert self._stream is not None
        return self._stream

    @property
    def first_frames(self) -> int:
        """Frames of a stream's first chunk."""
        return self.stream.plan.pixel_frames(0)

    @property
    def chunk_frames(self) -> int:
        """Frames of every other chunk."""
        return self.stream.plan.pixel_frames(1)

    @property
    def needed(self) -> int:
        """Frames of the next chunk."""
        return self.stream.plan.pixel_frames(self.chunk)

    @property
    def num_pending(self) -> int:
        """Frames that are in the stream and have not come out."""
        return len(self._pending)

    @property
    def state_bytes(self) -> int:
        """Bytes that the stream carries from chunk to chunk."""
        return 0 if self._stream is None else self._stream.state.nbytes

    def edit(self, batch: list[SourceFrame], last: bool) -> list[EditedFrame]:
        """The edited frames of a whole chunk; of whatever there is if it is the ``last``."""
        chunks = list(self._push(batch))
        chunks += self.stream.flush() if last else ()
        if batch:
            self.chunk += 1
        return [frame for chunk in chunks for frame in self._matched(chunk)]

    def _push(self, batch: list[SourceFrame]) -> Iterator[EditedChunk]:
        """Whole chunks alone are pushed, so nothing waits in the stream when something is changed."""
        self._pending.extend(batch)
        for _, same in itertools.groupby(batch, key=lambda frame: frame.picture.shape):
            yield from self.stream.push(torch.stack([frame.picture for frame in same]))

    def _matched(self, chunk: EditedChunk) -> Iterator[EditedFrame]:
        for picture in chunk.frames.cpu():
            yield EditedFrame(self._pending.popleft(), picture)

    def let_go(self) -> int:
        """Forgets the frames that are in the stream; returns how many there were."""
        count = len(self._pending)
        self._pending.clear()
        return count
