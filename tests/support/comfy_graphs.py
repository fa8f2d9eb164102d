"""API workflows for a real ComfyUI, and what they save."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from comfy_server import ComfyServer
from sana_streaming.sana_core.video.reader import VideoReader

WORKFLOWS = Path(__file__).parents[1] / "api_workflows"


def workflow(name: str, **changes: Any) -> dict[str, Any]:
    """An API workflow with inputs replaced: ``n6__input=value`` for node 6."""
    graph: dict[str, Any] = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for place, value in changes.items():
        node, key = place.split("__")
        graph[node.removeprefix("n")]["inputs"][key] = value
    return graph


def read(path: Path) -> torch.Tensor:
    """Every frame, uint8 [F, H, W, 3]."""
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


def saved(comfy: ComfyServer, entry: dict[str, Any], prefix: str = "") -> Path:
    """The one file that a prompt saved in output/, among those whose names begin with ``prefix``."""
    files = comfy.output_files(entry)
    (path,) = (file for file in files if file.parent.name == "output" and file.name.startswith(prefix))
    return path


@contextmanager
def as_many_threads_as_the_server() -> Iterator[None]:
    """The server uses the thread count of a fresh process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
