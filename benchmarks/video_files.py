"""Milliseconds that the host takes to read and to write 24 frames of a video file at 704x1280.

    python benchmarks/video_files.py

Reads a real clip of 1280x720 and writes its frames, cut to 704 rows, as `edit` does: H.264, 4:2:0, crf 25, x264's own
number of threads. Writes benchmarks/results/cpu/video_files.json.
"""

from __future__ import annotations

import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from common import sample_clip, write_result
from sana_streaming.sana_core.benchmark.timing import Timing
from sana_streaming.sana_core.video.reader import VideoReader
from sana_streaming.sana_core.video.writer import VideoWriter

FRAMES, CHUNKS, ROWS = 24, 5, 704


def main() -> None:
    reading, writing = [], []
    with VideoReader(sample_clip("bigbuckbunny.mp4")) as reader, tempfile.TemporaryDirectory() as folder:
        frames = iter(reader)
        size = {"width": reader.info.width, "height": ROWS}
        with VideoWriter(Path(folder) / "out.mp4", **size, frame_rate=reader.info.frame_rate) as writer:
            for _ in range(CHUNKS):
                began = time.perf_counter()
                chunk = torch.stack(list(islice(frames, FRAMES)))[:, :ROWS].contiguous()
                assert len(chunk) == FRAMES
                read = time.perf_counter()
                writer.write(chunk)
                reading.append(read - began)
                writing.append(time.perf_counter() - read)
    result = {"size": [ROWS, size["width"]], "frames": FRAMES, "cores": len(os.sched_getaffinity(0))}
    # The first chunk opens the codecs and fills x264's look-ahead.
    for name, seconds in (("read", reading[1:]), ("write", writing[1:])):
        timing = Timing.of(seconds)
        result |= {f"{name}_ms": 1000 * timing.median, f"{name}_iqr_ms": 1000 * timing.spread}
    print(write_result("video_files", torch.device("cpu"), result))


if __name__ == "__main__":
    main()
