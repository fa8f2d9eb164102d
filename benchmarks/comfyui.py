"""Does a ComfyUI server grow while it edits a long video? Its resident memory chunk by chunk, over a clip of ten minutes.

    COMFY_DIR=... COMFY_PYTHON=... python benchmarks/comfyui.py [--minutes 10] [--height 64 --width 64] [--steps 2]

Starts a ComfyUI around this checkout, edits a looped real clip with the built-in model by the API, unloads, edits its first
second again, unloads again, and writes benchmarks/results/cpu/comfyui.json. Exits with 1 if the slope over chunks 20 to 120
is 100 KB per chunk or more.

ComfyUI runs with the allocator setting that memory.py explains.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import TEST_SUPPORT, looped_clip, sample_clip, slope_per_chunk, write_result
from memory import ALLOCATOR, FIRST, LAST, LIMIT
from sana_streaming.sana_core.video.reader import probe

sys.path.insert(0, TEST_SUPPORT)
from comfy_graphs import saved, workflow
from comfy_server import ComfyServer, Events

CLIP, PROMPT = "bikes.mp4", "make it a warm sunset"
CHUNK = re.compile(r"chunk (\d+)")
EDIT_NODE = "6"
SETTLE_SECONDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options.minutes, (options.height, options.width), options.steps)
    path = write_result("comfyui", torch.device("cpu"), result)
    slope = result["slope_bytes_per_chunk"]
    print(f"ComfyUI grows by {slope:,.0f} bytes per chunk over chunks {FIRST} to {LAST} (limit {LIMIT:,}); {path}")
    return int(slope >= LIMIT)


def measure(folder: Path, minutes: float, size: tuple[int, int], steps: int) -> dict[str, Any]:
    """One server, one long edit, and what is left of it."""
    rate = probe(sample_clip(CLIP)).frame_rate
    clip = looped_clip(folder / "clip.mp4", sample_clip(CLIP), round(60 * minutes * rate))
    height, width = size
    changes = {
        "n6__width": width,
        "n6__height": height,
        "n6__steps": steps,
        "n4__prompt": PROMPT,
        "n7__filename_prefix": "edited",
    }
    with ComfyServer(folder / "comfy") as comfy:
        graph = workflow("edit_a_video", **changes)
        graph["5"] = {"class_type": "LoadVideo", "inputs": {"file": comfy.put_input(clip)}}
        at_start = comfy.memory()
        began = time.monotonic()
        with comfy.listen() as events:
            prompt = comfy.queue(graph)
            resident = _resident_after_each_chunk(comfy, events, prompt)
            entry = comfy.wait(prompt)
        seconds = time.monotonic() - began
        edited = probe(saved(comfy, entry))
        unloaded = [_unloaded(comfy)]
        comfy.run({**graph, EDIT_NODE: _with(graph[EDIT_NODE], max_frames=33)})
        unloaded.append(_unloaded(comfy))
    return {
        "clip": CLIP,
        "prompt": PROMPT,
        "size": [height, width],
        "steps": steps,
        "allocator": ALLOCATOR,
        "clip_seconds": float(edited.num_frames / edited.frame_rate),
        "frames": edited.num_frames,
        "chunks": len(resident),
        "seconds": round(seconds, 1),
        "clip_lengths": round(seconds / float(edited.num_frames / edited.frame_rate), 3),
        "slope_bytes_per_chunk": slope_per_chunk(resident, FIRST, LAST),
        "slope_over_chunks": [FIRST, LAST],
        "slope_to_the_end": slope_per_chunk(resident, FIRST, len(resident) - 1),
        "resident_at_start": at_start,
        "resident_unloaded": unloaded,
        "resident_bytes": resident,
    }


def _resident_after_each_chunk(comfy: ComfyServer, events: Events, prompt: str) -> list[int]:
    """Bytes, read when the node says that a chunk is done."""
    resident: list[int] = []
    seen = 0
    while not comfy.get(f"/history/{prompt}"):
        for node, text in events.texts[seen:]:
            seen += 1
            found = CHUNK.match(text)
            if node == EDIT_NODE and found and int(found[1]) == len(resident) + 1:
                resident.append(comfy.memory())
        time.sleep(0.05)
    return resident


def _unloaded(comfy: ComfyServer) -> int:
    comfy.free()
    time.sleep(SETTLE_SECONDS)
    return comfy.memory()


def _with(node: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    return {**node, "inputs": {**node["inputs"], **inputs}}


if __name__ == "__main__":
    raise SystemExit(main())
