"""How long a chunk takes, found out before a source is opened."""

from __future__ import annotations

import time

import torch

from ..streaming.edit_stream import EditStream


def try_out(stream: EditStream) -> float:
    """Edits two chunks of nothing, so that what is slow for the first time is done; seconds per frame of the second."""
    settings, seconds, count = stream.state.settings, 0.0, 1
    for chunk in (0, 1):
        count, start = stream.plan.pixel_frames(chunk), time.monotonic()
        for edited in stream.push(torch.zeros(count, settings.height, settings.width, 3, dtype=torch.uint8)):
            edited.frames.cpu()
        seconds = time.monotonic() - start
    return seconds / count
