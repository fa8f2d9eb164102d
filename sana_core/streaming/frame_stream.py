"""Frames gathered into chunks: what editing and encoding as a stream have in common.

Knows geometry, the chunk plan and the VAE's encoder. What is made of a chunk is up to the subclass.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, NamedTuple, TypeVar

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..video.geometry import floor_size, resize_and_crop
from .chunks import ChunkPlan
from .state import StreamState

Result = TypeVar("Result")


class Progress(NamedTuple):
    """A unit of work that is about to begin: ``number`` of ``total`` units of the chunk, in the given stage.

    ``total_chunks`` is None for a stream of unknown length.
    """

    chunk: int
    total_chunks: int | None
    stage: Literal["encode", "denoise", "decode"]
    number: int
    total: int


OnProgress = Callable[[Progress], None]
Commit = Callable[[], None]


class FrameStream(ABC, Generic[Result]):
    """Frames in, one result per chunk out, or none for a chunk that has nothing to give out yet.

    Frames wait until they fill a chunk, so how they are cut into pushes does not change a single bit of the result. The
    state is always at a chunk border: whatever stops a chunk half way (an error, Ctrl-C, ``on_progress`` raising) leaves
    the stream as it was before that chunk, with its frames still waiting. A chunk counts as given out when the next one is
    asked for, or the iterator ends: if the caller fails on a result (a full disk, say), the state still holds its frames.

    ``seconds`` adds up the time spent per stage.
    """

    def __init__(
        self, vae: CausalVAE, state: StreamState, device: torch.device | str | None, on_progress: OnProgress | None
    ) -> None:
        self.vae = vae
        self.vae_device = torch.device(device) if device is not None else next(vae.parameters()).device
        self.on_progress = on_progress
        self.state = state
        self.plan = ChunkPlan(state.settings.total_frames, vae.config.temporal_factor)
        self.seconds: dict[str, float] = defaultdict(float)
        state.move_vae(self.vae_device)

    @abstractmethod
    def _process(self, video: torch.Tensor, chunk: int, num_frames: int, last: bool) -> tuple[Result | None, Commit]:
        """The result for a chunk of padded frames [1, 3, F, H, W], of which ``num_frames`` are real, and its commit.

        Leaves the state alone; the commit moves the subclass's part of it on, and must not need new memory.
        """

    def _held_back(self) -> tuple[Result | None, Commit]:
        """What earlier chunks hold back, for a stream that ends with no frames waiting, and the commit; as `_process`."""
        return None, lambda: None

    def push(self, frames: torch.Tensor) -> Iterator[Result]:
        """Takes in frames [F, H, W, 3], uint8 or float in 0 to 1, of any size; gives out the chunks they complete.

        The frames are taken in at once; chunks are computed as the iterator is read, or with the next call.
        """
        state, settings = self.state, self.state.settings
        if state.finished:
            raise InputError("the stream is finished; start a new one")
        total = settings.total_frames
        if total is not None and state.frames_in + len(frames) > total:
            raise InputError(
                f"{state.frames_in + len(frames)} frames were pushed into a stream of {total}; "
                "give the true length as total_frames, or None if it is not known"
            )
        with self._timed("geometry"), torch.no_grad():
            fitted = resize_and_crop(
                frames.to(self.vae_device), settings.height, settings.width, antialias=settings.antialias
            )
            pixels = fitted.to(self.vae.dtype)
            waiting = pixels if state.waiting is None else torch.cat([state.waiting, pixels])
        state.waiting, state.frames_in = waiting, state.frames_in + len(frames)
        return self.drain()

    def flush(self) -> Iterator[Result]:
        """Ends the stream: the frames still waiting become one last chunk, padded with the last frame and trimmed.

        Whatever earlier chunks held back comes out with it.
        """
        yield from self.drain()
        if not self.state.finished:
            yield from self._take(self.state.num_waiting, last=True) if self.state.num_waiting else self._end()
        self.state.finished = True

    def drain(self) -> Iterator[Result]:
        """Gives out the chunks that are full already."""
        while not self.state.finished:
            chunk = self._next_chunk
            needed = self.plan.pixel_frames(chunk)
            if self.state.num_waiting < needed:
                return
            yield from self._take(needed, last=self.plan.is_last(chunk))

    @property
    def _next_chunk(self) -> int:
        return self.plan.chunk_at(self.state.frames_in - self.state.num_waiting)

    @torch.no_grad()
    def _take(self, num_frames: int, last: bool) -> Iterator[Result]:
        """Makes a chunk of the first ``num_frames`` waiting frames, hands it over, and then lets go of them."""
        state, chunk = self.state, self._next_chunk
        assert state.waiting is not None
        padding = self.plan.padded_frames(chunk, num_frames) - num_frames
        pixels = state.waiting[:num_frames]
        video = torch.cat([pixels, pixels[-1:].expand(padding, -1, -1, -1)]).movedim(0, 1)[None]
        result, commit = self._process(video, chunk, num_frames, last)
        left = state.waiting[num_frames:].clone()
        if result is not None:
            yield result
        commit()
        state.waiting, state.finished = left, last

    @torch.no_grad()
    def _end(self) -> Iterator[Result]:
        """Hands over what is held back, and then lets go of it."""
        result, commit = self._held_back()
        if result is not None:
            yield result
        commit()

    def _announce(self, chunk: int, stage: Literal["encode", "denoise", "decode"], number: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(chunk, self.plan.total_chunks, stage, number, total))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds inside to ``self.seconds[stage]``; waits for the GPU so that they belong to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.vae_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[stage] += time.perf_counter() - start


class EncodeStream(FrameStream[torch.Tensor]):
    """Frames in, normalised source latents [1, C, T, h, w] of each chunk out. For a state of its own or to be shared."""

    def __init__(
        self,
        vae: CausalVAE,
        state: StreamState,
        *,
        device: torch.device | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        check_size(state.settings.height, state.settings.width, vae.config.spatial_factor)
        super().__init__(vae, state, device, on_progress)

    def _process(self, video: torch.Tensor, chunk: int, num_frames: int, last: bool) -> tuple[torch.Tensor, Commit]:
        self._announce(chunk, "encode", 0, 1)
        with self._timed("encode"):
            latents, encoder = self.vae.encode(video, self.state.encoder)

        def commit() -> None:
            self.state.encoder = encoder

        return latents, commit


def check_size(height: int, width: int, multiple: int = 32) -> None:
    """InputError for a size that cannot be edited; says which size to use instead."""
    smallest = 2 * multiple
    for name, size in (("height", height), ("width", width)):
        if size < smallest:
            raise InputError(
                f"{name} {size} is too small; the smallest is {smallest}, so use {name} {smallest} instead"
            )
        if size % multiple:
            usable = floor_size(size, multiple)
            raise InputError(f"{name} {size} is not a multiple of {multiple}; use {name} {usable} instead")
