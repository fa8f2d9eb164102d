"""The row from frames to a file: encode, denoise, decode and write, chunk after chunk."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..edit_file import FileEdit, FileJob, FileReport
from ..models.dit import SanaStreamingDiT
from ..streaming.chunks import ChunkPlan
from ..streaming.edit_stream import EditedChunk, EditStream
from ..video.demo_clip import demo_frames
from ..video.reader import PictureFrames
from ..weights.random_init import RandomPrompts
from . import counts
from .networks import NANO, chunk_work, model_variants, pixel_frames, vae_work
from .registry import Case, Row, Samples, Variant
from .sizes import Bench, Size

# The window is full from the third chunk on, which still warms up what depends on that shape; then all cost the same.
WARM_CHUNKS = 3
TIMED_CHUNKS = {"cuda": 8, "cpu": 4}
FRAME_RATE = Fraction(24)


def end_to_end_case(bench: Bench, size: Size) -> Case:
    """A live stream of pictures in memory, written to a video file; seconds between chunks in the steady state."""
    step = pixel_frames(size)
    chunks = WARM_CHUNKS + TIMED_CHUNKS[bench.device.type]
    first = torch.stack(list(demo_frames(step, size.height, size.width, bench.seed)))
    total = ChunkPlan(None, size.vae.temporal_factor).pixel_frames(0) + (chunks - 1) * step
    pictures = torch.cat([first, first.flip(0)]).repeat(-(-total // (2 * step)), 1, 1, 1)[:total]
    variants, skipped = model_variants(bench, size, partial(measure, bench, size, pictures))
    variants = {name: Variant(variant.run, samples=True) for name, variant in variants.items()}
    encode, decode = vae_work(bench, size)
    return Case(variants, (encode, chunk_work(bench, size), decode), skipped, frames=step)


def measure(bench: Bench, size: Size, pictures: torch.Tensor, model: SanaStreamingDiT) -> Samples:
    """Edits ``pictures`` uint8 [F, H, W, 3] once."""
    config = model.config
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    stream = EditStream(
        model,
        bench.vae(size),
        RandomPrompts(config.caption_channels, config.max_text_tokens, config.max_text_tokens),
        prompt="turn it into a watercolour",
        height=size.height,
        width=size.width,
    )
    walls: list[float] = []
    stages: list[dict[str, float]] = []

    def on_chunk(chunk: EditedChunk, report: FileReport) -> None:
        walls.append(report.wall_seconds)
        stages.append({**stream.seconds, **report.seconds})

    with tempfile.TemporaryDirectory() as folder:
        job = FileJob(PictureFrames(pictures, FRAME_RATE), Path(folder) / "out.mp4")
        report = FileEdit(stream, job, on_chunk).run()
    timed = walls[WARM_CHUNKS:]
    seconds = [after - before for before, after in zip(walls[WARM_CHUNKS - 1 :], timed, strict=False)]
    return Samples(seconds, _details(report, stages, len(timed)))


def _details(report: FileReport, stages: list[dict[str, float]], chunks: int) -> dict[str, Any]:
    """Seconds of each stage per timed chunk, the time to the first, and peak memory in bytes."""
    start, end = stages[WARM_CHUNKS - 1], stages[-1]
    return {
        "stage_seconds_per_chunk": {stage: (end[stage] - start.get(stage, 0.0)) / chunks for stage in end},
        "first_chunk_seconds": report.first_chunk_seconds,
        "peak_memory": report.peak_memory,
    }


_FORMULA = "encode, 5 passes and decode one after another: " + counts.formula(counts.vae_work)
END_TO_END_ROWS = (
    Row("end_to_end", "network", "frames in, video file out, 24 frames", _FORMULA, end_to_end_case, NANO),
)
