"""Does memory grow with the length of the video? Resident memory and state bytes, chunk by chunk, over a long file.

    python benchmarks/memory.py [--chunks 130] [--height 64 --width 64]

Writes benchmarks/results/cpu/memory.json and exits with 1 if the slope over chunks 20 to 120 is 100 KB per chunk or more.

glibc keeps freed blocks of many sizes for later, and what it keeps swings by tens of megabytes, which hides a leak as well as
it fakes one. The script therefore runs itself with a fixed MALLOC_MMAP_THRESHOLD_, which gives freed tensors back at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import psutil
import torch
from common import looped_clip, sample_clip, slope_per_chunk, write_result
from sana_streaming.sana_core.edit_file import FileEdit, FileJob
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.video.reader import VideoReader
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import load_vae

FIRST, LAST = 20, 120
LIMIT = 100_000
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=130)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options.chunks, options.height, options.width)
    path = write_result("memory", torch.device("cpu"), result)
    slope = result["slope_bytes_per_chunk"]
    print(f"resident memory grows by {slope:,.0f} bytes per chunk over chunks {FIRST} to {LAST} (limit {LIMIT:,})")
    print(f"state: {result['state_bytes']['3']:,} bytes after chunk 3, {result['state_bytes']['40']:,} after chunk 40")
    print(path)
    return int(slope >= LIMIT or len(set(result["state_bytes"].values())) != 1)


def measure(folder: Path, chunks: int, height: int, width: int) -> dict:
    """Edits a looped real clip with the toy networks; the last chunk of a clip is not carried on, so one more is made."""
    toy = make_toy_bundle(folder / "toy")
    clip = looped_clip(folder / "clip.mp4", sample_clip("carphone_pristine.mp4"), 33 + 24 * chunks)
    frames = VideoReader(clip)
    stream = EditStream(
        load_dit(toy / "dit", dtype=torch.float32),
        load_vae(toy / "vae", dtype=torch.float32),
        GemmaTextEncoder(toy / "text_encoder"),
        prompt="turn it into a watercolour",
        height=height,
        width=width,
        total_frames=frames.num_frames,
    )
    process = psutil.Process()
    resident: list[int] = []
    state_bytes: dict[str, int] = {}

    def on_chunk(chunk, report) -> None:
        resident.append(process.memory_info().rss)
        if chunk.index in (3, 40):
            # What the chunk left waiting depends on where the reader's blocks fall; it is bounded, and not counted.
            waiting = stream.state.waiting
            held = 0 if waiting is None else waiting.numel() * waiting.element_size()
            state_bytes[str(chunk.index)] = stream.state.nbytes - held

    report = FileEdit(stream, FileJob(frames, folder / "out.mp4"), on_chunk).run()
    return {
        "size": [height, width],
        "allocator": ALLOCATOR,
        "frames": report.frames_written,
        "chunks": report.chunks,
        "slope_bytes_per_chunk": slope_per_chunk(resident, FIRST, LAST),
        "slope_over_chunks": [FIRST, LAST],
        "state_bytes": state_bytes,
        "resident_bytes": resident,
    }


if __name__ == "__main__":
    raise SystemExit(main())
