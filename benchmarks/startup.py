"""How soon is something to see? Seconds from a cold start of the command line to each stage of `make demo`.

    python benchmarks/startup.py [--frames 97] [--steps 4]

Edits a real clip with the built-in model in a new process whose cache of prompts is empty, and writes
benchmarks/results/cpu/startup.json: seconds since the process was started, and the same in lengths of the clip.

Where COMFY_DIR and COMFY_PYTHON name a ComfyUI, it is started a few times around this checkout, and what its log says that
loading the pack took is written too, in seconds and as a share of the whole start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLIP, PROMPT = "bikes.mp4", "make it a warm sunset"
CHILD = "--child"
COMFY_STARTS = 5
IMPORT = re.compile(r"([0-9.]+) seconds: .*custom_nodes/sana-streaming")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=97)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()

    import torch
    from common import write_result

    result = measure(options.frames, options.steps)
    if os.environ.get("COMFY_DIR"):
        result["comfyui"] = measure_comfyui()
    print(write_result("startup", torch.device("cpu"), result))


def measure(frames: int, steps: int) -> dict[str, Any]:
    """Runs the edit in a process of its own; what is measured there, and its ratios to the length of the clip."""
    from common import sample_clip
    from sana_streaming.sana_core.video.reader import probe

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks_file, report_file = folder / "marks.json", folder / "report.json"
        arguments = ["edit", sample_clip(CLIP), folder / "out.mp4", "--prompt", PROMPT, "--max-frames", frames]
        arguments += ["--steps", steps, "--device", "cpu", "--report", report_file, "--sheet", folder / "sheet.png"]
        command = [sys.executable, __file__, CHILD, marks_file, *arguments]
        environment = {**os.environ, "SANA_STREAMING_CACHE": str(folder / "prompts")}
        began = time.time()
        subprocess.run([str(part) for part in command], check=True, env=environment)
        marks = {**json.loads(marks_file.read_text()), "finished": time.time()}
        report = json.loads(report_file.read_text())
    since = {stage: mark - began for stage, mark in marks.items()}
    length = float(report["frames_written"] / probe(sample_clip(CLIP)).frame_rate)
    settings = report["settings"]
    return {
        "clip": CLIP,
        "prompt": PROMPT,
        "size": [settings["height"], settings["width"]],
        "dtype": settings["model_dtype"],
        "steps": steps,
        "frames": report["frames_written"],
        "clip_seconds": length,
        "seconds_since_start": {stage: round(seconds, 2) for stage, seconds in since.items()},
        "clip_lengths_since_start": {stage: round(seconds / length, 2) for stage, seconds in since.items()},
        "seconds_of_stages": {stage: round(seconds, 2) for stage, seconds in report["seconds"].items()},
        "peak_memory": report["peak_memory"],
    }


def measure_comfyui() -> dict[str, Any]:
    """Median seconds that ComfyUI's log gives for the pack, which it rounds to tenths, and until the server answers."""
    from common import TEST_SUPPORT

    sys.path.insert(0, TEST_SUPPORT)
    from comfy_server import ComfyServer

    loading, starting = [], []
    for _ in range(COMFY_STARTS):
        with tempfile.TemporaryDirectory() as name:
            began = time.monotonic()
            with ComfyServer(Path(name)) as comfy:
                starting.append(time.monotonic() - began)
                log = comfy.log()
        loading.append(float(next(found[1] for line in log.splitlines() if (found := IMPORT.search(line)))))
    pack, start = statistics.median(loading), statistics.median(starting)
    return {
        "starts": COMFY_STARTS,
        "pack_seconds": pack,
        "start_seconds": round(start, 2),
        "pack_share": round(pack / start, 3),
    }


def child(marks_file: str, *arguments: str) -> int:
    """The command line, with the clock read when it is imported, has its networks, and has written a chunk."""
    from sana_streaming.sana_core.cli import main as command_line
    from sana_streaming.sana_core.commands import edit

    marks = {"imported": time.time()}

    def marking(stage: str, function: Any) -> Any:
        def call(*values: Any) -> Any:
            result = function(*values)
            marks.setdefault(stage, time.time())
            return result

        return call

    edit.load_networks = marking("loaded", edit.load_networks)
    edit.ChunkBar.on_chunk = marking("first_chunk", edit.ChunkBar.on_chunk)
    code = command_line(arguments)
    Path(marks_file).write_text(json.dumps(marks), encoding="utf-8")
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        raise SystemExit(child(*sys.argv[2:]))
    main()
