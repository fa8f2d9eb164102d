"""The row from frames to a file: encode, denoise, decode and write, chunk after chunk."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..edit_file import FileEdit, FileJob, FileReport
from ..models.dit import SanaStreamingDiT
from ..streaming.chunks import ChunkPlan
from ..streaming.edit_stream import EditedChunk, EditStream
from ..streaming.passes import GraphedPasses, Passes
from ..video.demo_clip import demo_frames
from ..video.reader import PictureFrames
from ..weights.random_init import RandomPrompts
from . import counts
from .networks import NANO, chunk_work, model_variants, pixel_frames, vae_work
from .registry import Case, Row, Samples, Variant
from .sizes import Bench, Size

# The window is full from the third chunk on, which still warms up what depends on that shape; the fourth is recorded where
# there are CUDA graphs. Then all cost the same.
WARM_CHUNKS = 4
TIMED_CHUNKS = {"cuda": 8, "cpu": 4}
FRAME_RATE = Fraction(24)
# Stages that are the device's; the sum of their times is that of a stream in which nothing runs beside anything.
DEVICE_STAGES = ("geometry", "encode", "denoise", "decode")
# Ways to launch the same work, on a GPU, with the implementations that are chosen there.
LAUNCHES = {
    "overlap": {"overlap": True, "graphs": False},
    "graph": {"overlap": False, "graphs": True},
    "overlap_graph": {"overlap": True, "graphs": True},
}


def end_to_end_case(bench: Bench, size: Size) -> Case:
    """A live stream of pictures in memory, written to a video file; seconds between chunks in the steady state."""
    step, on_gpu = pixel_frames(size), bench.device.type == "cuda"
    # The last chunk of a stream that overlaps has nothing beside it, and is not timed.
    chunks = WARM_CHUNKS + TIMED_CHUNKS[bench.device.type] + on_gpu
    first = torch.stack(list(demo_frames(step, size.height, size.width, bench.seed)))
    total = ChunkPlan(None, size.vae.temporal_factor).pixel_frames(0) + (chunks - 1) * step
    pictures = torch.cat([first, first.flip(0)]).repeat(-(-total // (2 * step)), 1, 1, 1)[:total]
    run = partial(measure, bench, size, pictures)
    variants, skipped = model_variants(bench, size, run)
    for name, how in LAUNCHES.items():
        if on_gpu:
            variants[name] = Variant(partial(_measure_with, run, bench.model(size), **how))
        else:
            skipped[name] = "one lane only on the CPU: nothing runs beside"
    variants = {name: Variant(variant.run, samples=True) for name, variant in variants.items()}
    encode, decode = vae_work(bench, size)
    return Case(variants, (encode, chunk_work(bench, size), decode), skipped, frames=step)


def _measure_with(run: Callable[..., Samples], model: SanaStreamingDiT, *, overlap: bool, graphs: bool) -> Samples:
    model.use_kernels("auto")
    return run(model, overlap=overlap, graphs=graphs)


def measure(
    bench: Bench,
    size: Size,
    pictures: torch.Tensor,
    model: SanaStreamingDiT,
    *,
    overlap: bool = False,
    graphs: bool = False,
) -> Samples:
    """Edits ``pictures`` uint8 [F, H, W, 3] once."""
    config, vae = model.config, bench.vae(size)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    vae.use_graphs(graphs)
    stream = EditStream(
        model,
        vae,
        RandomPrompts(config.caption_channels, config.max_text_tokens, config.max_text_tokens),
        prompt="turn it into a watercolour",
        height=size.height,
        width=size.width,
        overlap=overlap,
        passes=GraphedPasses(model) if graphs else Passes(model),
    )
    try:
        return _timed(stream, pictures, TIMED_CHUNKS[bench.device.type])
    finally:
        vae.use_graphs(False)


def _timed(stream: EditStream, pictures: torch.Tensor, chunks: int) -> Samples:
    """Seconds between chunks in the file, of ``chunks`` of them after those that warm up."""
    watch = WarmedStages(stream)
    with tempfile.TemporaryDirectory() as folder:
        job = FileJob(PictureFrames(pictures, FRAME_RATE), Path(folder) / "out.mp4")
        report = FileEdit(stream, job, watch.on_chunk).run()
    seconds = watch.intervals[:chunks]
    return Samples(seconds, _details(report, watch.seconds_per_chunk(report), statistics.median(seconds)))


class WarmedStages:
    """The times of a stream's chunks but for the first :data:`WARM_CHUNKS`, in which kernels are compiled and graphs recorded.

    :meth:`on_chunk` is for :class:`FileEdit`. Of a shorter stream all chunks count.
    """

    def __init__(self, stream: EditStream) -> None:
        self._stream = stream
        self._walls: list[float] = []
        self._warm = 0
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}

    def on_chunk(self, chunk: EditedChunk, report: FileReport) -> None:
        self._walls.append(report.wall_seconds)
        if len(self._walls) == WARM_CHUNKS:
            # Makes the host wait, here alone, and the first timed chunk no shorter.
            self._warm = WARM_CHUNKS
            self._seconds = {**report.seconds, **self._stream.seconds}
            self._calls = dict(self._stream.calls)

    @property
    def intervals(self) -> list[float]:
        """Seconds from each chunk in the file to the next; that to the first where there is one alone."""
        walls = self._walls[max(0, self._warm - 1) :]
        return [after - before for before, after in itertools.pairwise(walls)] or walls

    def seconds_per_chunk(self, report: FileReport) -> dict[str, float]:
        """Of each stage, once the stream has ended."""
        written = len(self._walls) - self._warm
        found = {}
        for stage, seconds in report.seconds.items():
            # With overlap these are ahead of the file.
            own = stage in ("encode", "denoise", "decode")
            chunks = self._stream.calls[stage] - self._calls.get(stage, 0) if own else written
            found[stage] = (seconds - self._seconds.get(stage, 0.0)) / max(1, chunks)
        return found


def _details(report: FileReport, stages: dict[str, float], wall: float) -> dict[str, Any]:
    """Seconds of each stage per timed chunk, the wall time of one and its share of them, the time to the first, peak memory."""
    device = sum(stages.get(stage, 0.0) for stage in DEVICE_STAGES)
    return {
        "stage_seconds_per_chunk": stages,
        "wall_seconds_per_chunk": wall,
        "device_seconds_per_chunk": device,
        "wall_over_device": wall / device,
        "first_chunk_seconds": report.first_chunk_seconds,
        "peak_memory": report.peak_memory,
    }


_FORMULA = "encode, 5 passes and decode one after another: " + counts.formula(counts.vae_work)
END_TO_END_ROWS = (
    Row("end_to_end", "network", "frames in, video file out, 24 frames", _FORMULA, end_to_end_case, NANO),
)
