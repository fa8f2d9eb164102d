"""Medians of many runs, and the ceilings of the device: how fast it copies and how fast it multiplies matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .counts import Work

MIN_REPEATS, MAX_REPEATS = 3, 100
# Larger than the caches of any such device.
FLUSH_BYTES = {"cuda": 512 * 2**20, "cpu": 128 * 2**20}
COPY_BYTES = {"cuda": 2**30, "cpu": 128 * 2**20}
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
CEILING_REPEATS = 10

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, interquartile range, and of how many."""

    median: float
    spread: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of the samples, at least one; a single one has no spread."""
        if len(seconds) == 1:
            return cls(seconds[0], 0.0, 1)
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(middle, high - low, len(seconds))


class Clock:
    """Seconds that a call takes on ``device``: CUDA events around it, or the processor's clock.

    With ``flush`` the caches are overwritten before each call; on a GPU that also lets the host run ahead, so that the
    launch of a short kernel is not taken for its run.
    """

    def __init__(self, device: torch.device, flush: bool = False) -> None:
        self.device = device
        self._flush = torch.empty(FLUSH_BYTES[device.type] if flush else 0, dtype=torch.uint8, device=device)

    def __call__(self, run: Run) -> float:
        if self.device.type != "cuda":
            self._flush.zero_()
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1000


def time_in_turns(runs: Mapping[str, Run], clock: Clock, budget: float) -> dict[str, Timing]:
    """Timing of each run, called in turns so that whatever else the machine does falls on all of them alike.

    Each must have been called once before. ``budget``: seconds per run; at least MIN_REPEATS calls are made.
    """
    repeats, seconds = {}, {}
    for name, run in runs.items():
        estimate = clock(run)
        seconds[name] = [estimate]
        repeats[name] = min(MAX_REPEATS, max(MIN_REPEATS, int(budget / max(estimate, 1e-9))))
    for turn in range(1, max(repeats.values(), default=0)):
        for name, run in runs.items():
            if turn < repeats[name]:
                seconds[name].append(clock(run))
    return {name: Timing.of(samples) for name, samples in seconds.items()}


@dataclass(frozen=True)
class Ceilings:
    """What the device did at best in this run: bytes per second read and written by a copy, FLOPs per second of a matrix
    product in the rows' dtype."""

    copy_bytes_per_second: float
    matmul_flops_per_second: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Ceilings:
        """The best of a few copies and matrix products of a size that fills the device."""
        clock = Clock(device)
        source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = _best(clock, lambda: target.copy_(source))
        size = MATRIX_SIZE[device.type]
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        matmul = _best(clock, lambda: torch.matmul(a, b, out=product))
        return cls(2 * source.numel() / copy, 2 * size**3 / matmul)

    def best_of(self, other: Ceilings) -> Ceilings:
        """The higher of each."""
        return Ceilings(
            max(self.copy_bytes_per_second, other.copy_bytes_per_second),
            max(self.matmul_flops_per_second, other.matmul_flops_per_second),
        )

    def floor(self, work: Sequence[Work]) -> float:
        """Seconds that ``work`` takes at these rates: each step the longer of moving and computing, step after step."""
        return sum(step.calls * max(self._moving(step), self._computing(step)) for step in work)

    def bound(self, work: Sequence[Work]) -> str:
        """``memory`` or ``compute``: which of the two most of the floor is."""
        by_memory = sum(step.calls * self._moving(step) for step in work if self._moving(step) > self._computing(step))
        return "memory" if 2 * by_memory > self.floor(work) else "compute"

    def _moving(self, step: Work) -> float:
        return step.bytes / self.copy_bytes_per_second

    def _computing(self, step: Work) -> float:
        return step.flops / self.matmul_flops_per_second


def _best(clock: Clock, run: Run) -> float:
    run()
    return min(clock(run) for _ in range(CEILING_REPEATS))
