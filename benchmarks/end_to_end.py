"""Seconds per stage and peak memory of the whole pipeline, file in to file out, at full size with random weights.

    python benchmarks/end_to_end.py --device cuda                        # 969 frames at 704x1280, the release's defaults
    python benchmarks/end_to_end.py --device cuda --overlap              # the VAE beside the transformer
    python benchmarks/end_to_end.py --device cuda --plain                # without CUDA graphs
    python benchmarks/end_to_end.py --device cpu --frames 33 --height 64 --width 96

Writes benchmarks/results/<device>/end_to_end_<width>x<height>_<frames>[_overlap][_plain].json: the time to the first chunk,
and, of the chunks after those that warm up, the median time between two and that over the time of the stages of one. Stages
stretch while others run beside them: the time without --overlap is what one has to beat.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import looped_clip, sample_clip, write_result
from sana_streaming.sana_core.benchmark.end_to_end import DEVICE_STAGES, WarmedStages
from sana_streaming.sana_core.config import DIT_PRESETS, VAEConfig
from sana_streaming.sana_core.edit_file import FileEdit, FileJob, FileReport
from sana_streaming.sana_core.streaming.edit_stream import EditedChunk, EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.passes import Passes
from sana_streaming.sana_core.video.reader import VideoReader
from sana_streaming.sana_core.weights.random_init import RandomPrompts, random_dit, random_vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--frames", type=int, default=969)
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--overlap", action="store_true", help="encode and decode while a chunk is denoised")
    parser.add_argument("--plain", action="store_true", help="without CUDA graphs")
    parser.add_argument("--vae-device", help="another device for the VAE (default: the same)")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    config = DIT_PRESETS["streaming-2b"]
    model = random_dit(config, device=device, dtype=dtype)
    vae = random_vae(VAEConfig(decoder_causal=True), device=options.vae_device or device, dtype=dtype)
    graphs = device.type == "cuda" and not options.plain
    vae.use_graphs(graphs)
    stream = EditStream(
        model,
        vae,
        RandomPrompts(config.caption_channels, config.max_text_tokens),
        prompt="turn it into a watercolour",
        height=options.height,
        width=options.width,
        total_frames=options.frames,
        options=StreamOptions(steps=options.steps),
        overlap=options.overlap,
        passes=None if graphs else Passes(model),
    )
    watch = WarmedStages(stream)

    def on_chunk(chunk: EditedChunk, report: FileReport) -> None:
        watch.on_chunk(chunk, report)
        print(f"chunk {chunk.index}: {report.wall_seconds:.1f} s")

    with tempfile.TemporaryDirectory() as name:
        clip = looped_clip(Path(name) / "clip.mp4", sample_clip("bigbuckbunny.mp4"), options.frames)
        job = FileJob(VideoReader(clip), Path(name) / "out.mp4")
        report = FileEdit(stream, job, on_chunk).run()
    wall = statistics.median(watch.intervals)
    per_chunk = watch.seconds_per_chunk(report)
    stages = sum(per_chunk[stage] for stage in DEVICE_STAGES)
    result = {
        "size": [options.height, options.width],
        "dtype": options.dtype,
        "steps": options.steps,
        "overlap": options.overlap,
        "cuda_graph": graphs,
        "vae_device": str(stream.vae_device),
        "wall_seconds_per_chunk": wall,
        "stage_seconds_per_chunk": per_chunk,
        "device_seconds_per_chunk": stages,
        "wall_over_device": wall / stages,
        **report.to_dict(),
    }
    kind = ("_overlap" if options.overlap else "") + ("_plain" if options.plain else "")
    name = f"end_to_end_{options.width}x{options.height}_{options.frames}{kind}"
    print(write_result(name, device, result))


if __name__ == "__main__":
    main()
