"""What a live run did: latency, throughput, drops by cause, queue depths, memory. Bounded in size however long it runs."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

# Resolution and reach of the latency histogram.
BIN_SECONDS = 0.001
NUM_BINS = 120_000
# What "lately" means in a state message, in frames.
RECENT = 240
# Points of a curve; when there are more, each two become one.
MOST_POINTS = 1200
SAMPLE_SECONDS = 1.0


class Latencies:
    """Distribution of latencies in seconds, to the millisecond, in a fixed number of bytes."""

    def __init__(self) -> None:
        self._counts = np.zeros(NUM_BINS, np.int64)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.most = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self._counts[min(NUM_BINS - 1, max(0, int(seconds / BIN_SECONDS)))] += 1
        self._recent.append(seconds)
        self.most = max(self.most, seconds)
        self.count += 1

    def percentile(self, share: float) -> float | None:
        """The latency that a ``share`` (0 to 1) of all frames did not exceed; None before the first frame."""
        if not self.count:
            return None
        index = int(np.searchsorted(np.cumsum(self._counts), max(1.0, share * self.count)))
        return min(self.most, (index + 1) * BIN_SECONDS)

    def recent(self, share: float) -> float | None:
        """The same of the last frames alone."""
        return float(np.quantile(np.array(self._recent), share)) if self._recent else None

    def to_dict(self) -> dict[str, float | None]:
        return {"p50": self.percentile(0.5), "p95": self.percentile(0.95), "max": self.most if self.count else None}


@dataclass(frozen=True)
class Sample:
    """One point of the curves: seconds since the start, and what was true then."""

    at: float
    latency: float
    frames_in: int
    frames_out: int
    dropped: int
    input_queue: int
    output_queue: int
    resident: int


class LiveStats:
    """Counts of a live run. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.began = time.monotonic()
        self.latencies = Latencies()
        self.dropped: Counter[str] = Counter()
        self.frames_in = self.frames_edited = self.frames_out = self.repeated = self.chunks = 0
        self.compute_seconds = 0.0
        self._expected = self._slowest = 0.0
        self.slowest_filling = 0.0
        self.samples: list[Sample] = []
        self._sample_seconds = SAMPLE_SECONDS
        self._first_shown, self._last_shown = float("inf"), 0.0
        self._arrivals: deque[float] = deque(maxlen=RECENT)
        self._shown: deque[float] = deque(maxlen=RECENT)

    def frame_in(self, at: float) -> None:
        with self._lock:
            self.frames_in += 1
            self._arrivals.append(at)

    def chunk(self, num_frames: int, taken: int, seconds: float, filling: float) -> None:
        """A chunk of ``taken`` frames, which came in ``filling`` seconds, gave ``num_frames`` edited ones in ``seconds``."""
        with self._lock:
            self.chunks += 1
            self.frames_edited += num_frames
            self.compute_seconds += seconds
            self._slowest = max(self._slowest, seconds / taken)
            self.slowest_filling = max(self.slowest_filling, filling)

    def expect(self, seconds_per_frame: float) -> None:
        """What a trial has shown before the first chunk."""
        self._expected = seconds_per_frame

    @property
    def slowest_frame(self) -> float:
        """Seconds per frame that the slowest chunk took, or those of the trial before there is one."""
        return self._slowest or self._expected

    def drop(self, cause: str, count: int = 1) -> None:
        if count:
            with self._lock:
                self.dropped[cause] += count

    def repeat(self) -> None:
        with self._lock:
            self.repeated += 1

    def shown(self, arrival: float, at: float) -> None:
        with self._lock:
            self.frames_out += 1
            self._shown.append(at)
            self._first_shown, self._last_shown = min(self._first_shown, at), at
            self.latencies.add(at - arrival)

    def rates(self, now: float) -> dict[str, float]:
        """Frames per second that lately came in and went out."""
        with self._lock:
            return {"in": _rate(self._arrivals, now), "out": _rate(self._shown, now)}

    def sample(self, input_queue: int, output_queue: int) -> None:
        """Adds a point to the curves, if it is time for one."""
        at = time.monotonic() - self.began
        if self.samples and at < self.samples[-1].at + self._sample_seconds:
            return
        with self._lock:
            latency = self.latencies.recent(0.5) or 0.0
            point = Sample(
                at,
                latency,
                self.frames_in,
                self.frames_out,
                self.dropped.total(),
                input_queue,
                output_queue,
                resident(),
            )
            self.samples.append(point)
            if len(self.samples) > MOST_POINTS:
                del self.samples[::2]
                self._sample_seconds *= 2

    def to_dict(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.began
        with self._lock:
            return {
                "seconds": seconds,
                "frames": {
                    "in": self.frames_in,
                    "edited": self.frames_edited,
                    "out": self.frames_out,
                    "repeated": self.repeated,
                    "dropped": dict(self.dropped),
                },
                "chunks": self.chunks,
                "latency": self.latencies.to_dict(),
                "frames_per_second": self._rate_out(),
                "frames_per_second_of_compute": self.frames_edited / self.compute_seconds if self.chunks else None,
                "memory": self._memory(),
            }

    def _rate_out(self) -> float:
        """From the first frame shown to the last."""
        seconds = self._last_shown - self._first_shown
        return (self.frames_out - 1) / seconds if seconds > 0 else 0.0

    def _memory(self) -> dict[str, int]:
        sizes = [point.resident for point in self.samples] or [resident()]
        return {"resident_first": sizes[0], "resident_last": sizes[-1], "resident_most": max(sizes)}

    def curves(self) -> list[dict[str, float]]:
        with self._lock:
            return [dict(vars(point)) for point in self.samples]


def resident() -> int:
    """Bytes of the process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def draw_plot(path: Path, report: dict[str, Any]) -> None:
    """Latency, rates, queues and memory over time as one picture. ``report``: of a live run, with its ``curves``."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = report["curves"]
    times = [point["at"] for point in curves]
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    latency, rates, queues, memory = figure.subplots(4, 1, sharex=True)
    latency.plot(times, [point["latency"] for point in curves], label="median of the last frames")
    if report["latency"].get("bound"):
        latency.axhline(report["latency"]["bound"], color="grey", linestyle="--", label="bound")
    latency.set_ylabel("latency, s")
    for name, label in (("frames_in", "in"), ("frames_out", "out"), ("dropped", "dropped")):
        rates.plot(times[1:], _slopes(curves, name), label=label)
    rates.set_ylabel("frames per second")
    for name, label in (("input_queue", "to be edited"), ("output_queue", "to be shown")):
        queues.plot(times, [point[name] for point in curves], label=label)
    queues.set_ylabel("frames that wait")
    memory.plot(times, [point["resident"] / 2**20 for point in curves], label="resident")
    memory.set_ylabel("memory, MiB")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("seconds")
    for axes in (latency, rates, queues, memory):
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right", fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def check_plot(path: Path) -> None:
    """InputError where a plot cannot be drawn there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--plot {path} needs the package matplotlib; pip install matplotlib, or leave it out"
        ) from error
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path} is no picture; name a .png, .svg or .pdf file")


def _slopes(curves: list[dict[str, float]], name: str) -> list[float]:
    return [(after[name] - before[name]) / (after["at"] - before["at"]) for before, after in itertools.pairwise(curves)]


def _rate(times: deque[float], now: float) -> float:
    """Of the times that lie within the last seconds."""
    recent = [each for each in times if each > now - 4]
    return (len(recent) - 1) / (now - recent[0]) if len(recent) > 1 and now > recent[0] else 0.0
