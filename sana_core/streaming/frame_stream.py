"""Frames gathered into chunks: what editing and encoding as a stream have in common.

Knows geometry, the chunk plan and the VAE's encoder. What is made of a chunk is up to the subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, NamedTuple, TypeVar

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..video.geometry import floor_size, resize_and_crop
from .chunks import ChunkPlan
from .lanes import Lane, StageClock, to_device
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

    ``lane`` is where frames are fitted and encoded.
    """

    def __init__(
        self,
        vae: CausalVAE,
        state: StreamState,
        device: torch.device | str | None,
        on_progress: OnProgress | None,
        beside: bool = False,
    ) -> None:
        """``beside``: on CUDA frames are fitted and encoded on a lane of their own."""
        self.vae = vae
        self.vae_device = torch.device(device) if device is not None else next(vae.parameters()).device
        self.on_progress = on_progress
        self.state = state
        self.plan = ChunkPlan(state.settings.total_frames, vae.config.temporal_factor)
        self._clock = StageClock()
        state.move_vae(self.vae_device)
        self.lane = Lane.side(self.vae_device, "encode") if beside else Lane(self.vae_device)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage so far, on CUDA those of the device; waits there for the work that is queued."""
        return self._clock.read()

    @property
    def calls(self) -> dict[str, int]:
        """How often each stage has begun so far."""
        return dict(self._clock.calls)

    @abstractmethod
    def _process(self, chunk: int, num_frames: int, last: bool) -> tuple[Result | None, Commit]:
        """The result for the chunk of the first ``num_frames`` waiting frames (see `_video`), and its commit.

        Leaves the state alone; the commit moves the subclass's part of it on, and must not need new memory.
        """

    def _held_back(self) -> tuple[Result | None, Commit]:
        """What earlier chunks hold back, for a stream that ends with no frames waiting, and the commit; as `_process`."""
        return None, lambda: None

    def _received(self, result: Result) -> None:
        """The caller asks for more; raises where what became of ``result`` later went wrong."""

    def push(self, frames: torch.Tensor) -> Iterator[Result]:
        """Takes in frames [F, H, W, 3], uint8 or float in 0 to 1, of any size; gives out the chunks they complete.

        The frames are taken in at once; chunks are computed as the iterator is read, or with the next call. Frames in pinned
        memory, or on a GPU, are still being copied from when this returns: leave them as they are.
        """
        state, settings = self.state, self.state.settings
        if state.finished or (state.closing and len(frames)):
            raise InputError("the stream is finished; start a new one")
        total = settings.total_frames
        if total is not None and state.frames_in + len(frames) > total:
            raise InputError(
                f"{state.frames_in + len(frames)} frames were pushed into a stream of {total}; "
                "give the true length as total_frames, or None if it is not known"
            )
        if frames.is_cuda:
            self.lane.wait(Lane(frames.device).mark())
        with self._timed("geometry", self.lane), torch.no_grad():
            self.lane.uses(frames)
            fitted = resize_and_crop(
                to_device(frames, self.vae_device), settings.height, settings.width, antialias=settings.antialias
            )
            pixels = fitted.to(self.vae.dtype)
            waiting = pixels if state.waiting is None else torch.cat([state.waiting, pixels])
        self._join(self.lane)
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

    def drain(self, *, ahead: bool = False) -> Iterator[Result]:
        """Gives out the chunks that are full already; with ``ahead`` only those after which the next is full too."""
        while not self.state.finished:
            if self.state.closing:
                yield from self._end()
                return
            chunk = self._next_chunk
            needed, last = self.plan.pixel_frames(chunk), self.plan.is_last(chunk)
            following = self.plan.pixel_frames(chunk + 1) if ahead and not last else 0
            if self.state.num_waiting < needed + following:
                return
            yield from self._take(needed, last)

    @property
    def _next_chunk(self) -> int:
        return self.plan.chunk_at(self.state.frames_in - self.state.num_waiting)

    @torch.no_grad()
    def _take(self, num_frames: int, last: bool) -> Iterator[Result]:
        """Makes a chunk of the first ``num_frames`` waiting frames, hands it over, and then lets go of them."""
        state = self.state
        result, commit = self._process(self._next_chunk, num_frames, last)
        left = self._left(num_frames)
        if result is not None:
            yield result
            self._received(result)
        commit()
        state.waiting, state.finished = left, last

    @torch.no_grad()
    def _end(self) -> Iterator[Result]:
        """Hands over what is held back, and then lets go of it; the stream is finished."""
        result, commit = self._held_back()
        if result is not None:
            yield result
            self._received(result)
        commit()
        self.state.finished = True

    def _video(self, chunk: int, num_frames: int) -> torch.Tensor:
        """The first ``num_frames`` waiting frames as the VAE takes them [1, 3, F, H, W], padded with the last one."""
        assert self.state.waiting is not None
        padding = self.plan.padded_frames(chunk, num_frames) - num_frames
        pixels = self.state.waiting[:num_frames]
        return torch.cat([pixels, pixels[-1:].expand(padding, -1, -1, -1)]).movedim(0, 1)[None]

    def _left(self, num_frames: int) -> torch.Tensor:
        """What waits after the first ``num_frames`` frames, in memory of its own."""
        assert self.state.waiting is not None
        with self.lane.work():
            left = self.state.waiting[num_frames:].clone()
        self._join(self.lane)
        return left

    def _announce(self, chunk: int, stage: Literal["encode", "denoise", "decode"], number: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(chunk, self.plan.total_chunks, stage, number, total))

    def _join(self, lane: Lane) -> None:
        """The current lane of the VAE's device, where others look at the state, waits for what ``lane`` has queued."""
        current = Lane(self.vae_device)
        if lane.is_beside(current):
            current.wait(lane.mark())

    @contextmanager
    def _timed(self, stage: str, lane: Lane) -> Iterator[None]:
        """Queues what is inside on ``lane``, and adds the seconds it takes to those of the stage."""
        with lane.work(), self._clock.timed(stage, lane):
            yield


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

    def _process(self, chunk: int, num_frames: int, last: bool) -> tuple[torch.Tensor, Commit]:
        self._announce(chunk, "encode", 0, 1)
        with self._timed("encode", self.lane):
            latents, encoder = self.vae.encode(self._video(chunk, num_frames), self.state.encoder)

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
