"""What a node shows while a stream runs: a picture of each chunk, and in words how far and how fast it goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import torch

from ..sana_core.edit_file import FileReport
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


_PLACES = {"resident": "resident", "gpu": "on the GPU", "gpu of the VAE": "on the VAE's GPU"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
