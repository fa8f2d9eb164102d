"""The last frame that was shown, for whoever looks on."""

from __future__ import annotations

import io
from threading import Lock

import torch

from ..video.geometry import resize_frame
from .player import EditedFrame

QUALITY = 82
# Larger pictures are made smaller: a page shows two of them side by side.
WIDEST = 960


class Preview:
    """Keeps one frame; costs nothing until somebody asks for it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._frame: EditedFrame | None = None
        self._number = 0

    def offer(self, frame: EditedFrame) -> None:
        with self._lock:
            self._frame, self._number = frame, self._number + 1

    @property
    def number(self) -> int:
        """Frames offered so far."""
        return self._number

    def picture(self) -> tuple[int, bytes] | None:
        """Number and JPEG of the last frame, its source on the left of the edit; None before the first."""
        from PIL import Image

        with self._lock:
            frame, number = self._frame, self._number
        if frame is None:
            return None
        pair = torch.cat([_smaller(frame.source_picture()), _smaller(frame.picture)], 1)
        buffer = io.BytesIO()
        Image.fromarray(pair.numpy()).save(buffer, "JPEG", quality=QUALITY)
        return number, buffer.getvalue()


def _smaller(picture: torch.Tensor) -> torch.Tensor:
    height, width, _ = picture.shape
    return picture if width <= WIDEST else resize_frame(picture, round(height * WIDEST / width), WIDEST)
