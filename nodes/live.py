"""What a node shows while a stream runs: a picture of each chunk, and in words how far and how fast it goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch

from ..sana_core.edit_file import FileReport
from ..sana_core.live.control import LiveState
from ..sana_core.streaming.chunks import ChunkPlan
from ..sana_core.video.geometry import pixels_to_uint8, resize_and_crop, resize_frame
from ..sana_core.video.reader import FrameSource
from ..sana_core.weights.hub import in_units
from . import comfy_host

EDIT, BESIDE = "edit", "side-by-side"


class SmallSource:
    """Passes frames on, and keeps a small copy of each until the edit of it is shown.

    height, width: of the edited frames. Source: any :class:`FrameSource`; this is one too.
    """

    def __init__(self, frames: FrameSource, height: int, width: int) -> None:
        scale = min(1.0, comfy_host.PREVIEW_SIZE / max(height, width))
        self.size = max(1, round(height * scale)), max(1, round(width * scale))
        self._frames = frames
        self._small: deque[torch.Tensor] = deque()

    @property
    def frame_rate(self) -> Fraction:
        return self._frames.frame_rate

    @property
    def num_frames(self) -> int:
        return self._frames.num_frames

    def blocks(self, num_frames: int) -> Iterator[torch.Tensor]:
        for block in self._frames.blocks(num_frames):
            for frame in block:
                fitted = resize_and_crop(frame[None], *self.size, antialias=True)
                self._small.append(pixels_to_uint8(fitted)[0].cpu())
            yield block

    def beside(self, edited: torch.Tensor, count: int) -> torch.Tensor:
        """The source of the last of the next ``count`` frames, and right of it its edit, uint8 [H, W, 3]; uint8 as well."""
        source = [self._small.popleft() for _ in range(count)][-1]
        return torch.cat([source, resize_frame(edited.cpu(), *self.size)], 1)


def progress_text(report: FileReport, plan: ChunkPlan, num_frames: int) -> str:
    """While the stream runs."""
    rate = report.frames_written / report.wall_seconds
    left = (num_frames - report.frames_written) / rate
    chunks = "" if plan.total_chunks is None else f" of {plan.total_chunks}"
    return f"chunk {report.chunks}{chunks}, {rate:.1f} frames per second, about {_duration(left)} left"


def report_text(report: FileReport) -> str:
    """When it is done: speed, milliseconds of each stage per chunk, memory."""
    chunks = "1 chunk" if report.chunks == 1 else f"{report.chunks} chunks"
    rate = report.frames_written / report.wall_seconds
    first = f", the first after {report.first_chunk_seconds:.1f} s" if report.first_chunk_seconds else ""
    stages = {stage: 1000 * seconds / max(1, report.chunks) for stage, seconds in report.seconds.items()}
    shown = ", ".join(f"{stage} {value:.0f}" for stage, value in stages.items() if value >= 0.5)
    memory = ", ".join(f"{in_units(size)} {_PLACES.get(place, place)}" for place, size in report.peak_memory.items())
    return (
        f"{report.frames_written} frames in {chunks}, {rate:.1f} frames per second{first}\n"
        f"ms per chunk: {shown}\npeak memory: {memory}; state {in_units(report.state_bytes)}"
    )


def live_text(state: LiveState, elapsed: float, seconds: float) -> str:
    """While a live source is recorded, for ``elapsed`` of ``seconds`` (0: until Stop). A node has room for two short lines."""
    if state.status in ("connecting", "reconnecting"):
        return f"{state.status}: {state.text}"
    dropped = sum(state.frames["dropped"].values())
    end = f" of {_duration(seconds)}" if seconds else ", until Stop"
    return (
        f"{_duration(elapsed)}{end}: {state.fps['out']:.1f} of {state.fps['in']:.1f} fps{_latency(state.latency)}, "
        f"{dropped} dropped, {in_units(state.memory['resident'])}, chunk {state.chunk}"
    )


def live_report_text(report: dict[str, Any], memory: dict[str, int], ended: str, name: str) -> str:
    """When a live source was recorded: the file, speed, latency, drops by cause, memory.

    report: of the session. memory: bytes at the end. ended: why, where its time was not over.
    """
    frames = report["frames"]
    dropped = ", ".join(f"{count} {cause}" for cause, count in frames["dropped"].items()) or "none"
    most = {"resident": report["memory"]["resident_most"], **{key: memory[key] for key in ("gpu",) if key in memory}}
    shown = ", ".join(f"{in_units(size)} {_PLACES.get(place, place)}" for place, size in most.items())
    lines = [
        f"{frames['out']} frames recorded in {name}",
        f"{frames['in']} frames in, dropped: {dropped}; {report['chunks']} chunks",
        f"{report['frames_per_second']:.1f} fps{_latency(report['latency'])}",
        f"memory: {shown}; state {in_units(memory['state'])}",
    ]
    return "\n".join([*lines, ended] if ended else lines)


def _latency(latency: dict[str, float | None]) -> str:
    """From capture to output."""
    middle, most = latency["p50"], latency["p95"]
    return "" if middle is None or most is None else f", latency {middle:.2f} s (p95 {most:.2f} s)"


_PLACES = {"resident": "resident", "gpu": "on the GPU", "gpu of the VAE": "on the VAE's GPU"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
