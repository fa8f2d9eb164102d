"""Queues of work on a device: what runs beside what, what waits for what, and how long it takes there.

On CUDA a lane is a stream, and work on two lanes of a device may run at the same time. On the CPU there is one lane, whose
work is done as it is queued: the same calls run in the same order. Nothing here makes the host wait but what says so.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mark:
    """A place in a lane; ``event`` is None where all before it is done already."""

    event: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Makes the host wait until the work before it is done."""
        if self.event is not None:
            self.event.synchronize()


class Lane:
    """A queue of work on ``device``: the stream that is current whenever it is used, or one beside it (:meth:`side`)."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = _with_index(torch.device(device))
        self._stream: torch.cuda.Stream | None = None

    @classmethod
    def side(cls, device: torch.device | str, name: str) -> Lane:
        """The lane called ``name`` beside the current one, the same for all who ask; it begins after what is queued there."""
        lane = cls(device)
        if lane.device.type == "cuda":
            lane._stream = _side_stream(lane.device.index, name)
            lane.wait(cls(device).mark())
        return lane

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is queued inside goes to this lane."""
        if self.device.type != "cuda":
            yield
        elif self._stream is None:
            with torch.cuda.device(self.device):
                yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def mark(self) -> Mark:
        """The end of what is queued so far."""
        if self.device.type != "cuda":
            return Mark()
        # The host gives its core away while it waits.
        event = torch.cuda.Event(blocking=True)
        event.record(self._current())
        return Mark(event)

    def wait(self, mark: Mark) -> None:
        """What is queued from here on begins after ``mark``, of this lane or another."""
        if mark.event is not None and self.device.type == "cuda":
            self._current().wait_event(mark.event)

    def uses(self, tensor: Tensor) -> None:
        """Keeps memory that came from another lane until what is queued here so far, and until it is freed, is done."""
        if tensor.is_cuda and tensor.device == self.device:
            tensor.record_stream(self._current())

    def is_beside(self, other: Lane) -> bool:
        """Whether the two are on one device and may run at the same time."""
        return self.device == other.device and self._stream is not other._stream

    def timing_event(self) -> torch.cuda.Event:
        """An event at the end of what is queued so far, on CUDA alone, from which times can be read."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._current())
        return event

    def _current(self) -> torch.cuda.Stream:
        return self._stream or torch.cuda.current_stream(self.device)


def hand_over(tensor: Tensor, giver: Lane, taker: Lane) -> Tensor:
    """A tensor made on one lane for work on another, on whose device it is then; that work waits for what is queued so far."""
    if giver.device != taker.device:
        # A copy between devices runs on the current stream of one, and both wait for each other.
        with taker.work(), giver.work():
            return to_device(tensor, taker.device)
    if giver.is_beside(taker):
        taker.wait(giver.mark())
        taker.uses(tensor)
    return tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, copied from host memory without making the host wait."""
    if device.type != "cuda":
        return tensor.to(device)
    if tensor.device.type == "cpu" and not (tensor.is_pinned() and tensor.is_contiguous()):
        # From scattered memory CUDA copies by way of memory that is not pinned, and the host would wait.
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class HostCopy:
    """A tensor on its way to host memory."""

    tensor: Tensor
    mark: Mark

    @classmethod
    def of(cls, tensor: Tensor, lane: Lane) -> HostCopy:
        """Queues the copy on ``lane``, into pinned memory; a tensor on the CPU is taken as it is."""
        if not tensor.is_cuda:
            return cls(tensor, Mark())
        with lane.work():
            target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            target.copy_(tensor, non_blocking=True)
        return cls(target, lane.mark())

    def wait(self) -> Tensor:
        """The tensor once it is there; makes the host wait."""
        self.mark.wait()
        return self.tensor


class StageClock:
    """Seconds that each stage of the work has taken: on CUDA between two events of its lane, on the CPU by the clock.

    Work on other lanes of the same device makes a stage longer. Whoever reads nothing is not made to wait.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        """How often each stage has begun."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._running: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def timed(self, stage: str, lane: Lane) -> Iterator[None]:
        """Counts what is queued on ``lane`` inside."""
        self.calls[stage] += 1
        if lane.device.type != "cuda":
            start = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[stage] += time.perf_counter() - start
            return
        # Nothing adds up where nobody reads.
        while self._running and self._running[0][2].query():
            self._count()
        began = lane.timing_event()
        try:
            yield
        finally:
            self._running.append((stage, began, lane.timing_event()))
            self._seconds[stage] += 0.0

    def read(self) -> dict[str, float]:
        """Seconds by stage, in the order in which they were first seen; makes the host wait for what is queued."""
        while self._running:
            self._running[0][2].synchronize()
            self._count()
        return dict(self._seconds)

    def _count(self) -> None:
        stage, began, ended = self._running.popleft()
        self._seconds[stage] += began.elapsed_time(ended) / 1000


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@functools.cache
def _side_stream(index: int, name: str) -> torch.cuda.Stream:
    """Shared, so that memory that one user of a lane gives back is safe to be taken by the next."""
    return torch.cuda.Stream(torch.device("cuda", index))
