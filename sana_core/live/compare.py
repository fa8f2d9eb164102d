"""Source and edit in one picture, in a way that may change while an output, whose size may not, goes on."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, get_args

import torch

from ..video.compare import Comparison
from ..video.geometry import resize_frame

Compare = Literal["off", "side-by-side", "wipe"]
COMPARES = get_args(Compare)


def output_size(height: int, width: int, layout: Compare) -> tuple[int, int]:
    """(height, width) of an output that begins with this layout."""
    return (height, 2 * width) if layout == "side-by-side" else (height, width)


class Composer:
    """Pictures of one size, whatever the ``layout`` is: what is larger is made smaller, what is smaller gets black bars.

    height, width: of the edited frames. size: of the output. rate: of the frames, for the pace of the wipe's line.
    """

    def __init__(self, height: int, width: int, size: tuple[int, int], rate: Fraction, layout: Compare) -> None:
        self.layout = layout
        self._height, self._width, self._size, self._rate = height, width, size, rate
        self._frames = 0

    def compose(self, source: Callable[[], torch.Tensor], edited: torch.Tensor) -> torch.Tensor:
        """uint8 [*size, 3] of an edited frame; ``source`` gives its source frame, of the same size, where it is wanted."""
        layout, number = self.layout, self._frames
        self._frames += 1
        if layout == "off":
            return fit_in(edited, *self._size)
        pair = Comparison(layout, self._height, self._width, frame_rate=self._rate, first_frame=number)
        pair.offer(source()[None])
        return fit_in(pair.combine(edited[None])[0], *self._size)


def fit_in(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [height, width, 3]: the whole of uint8 [h, w, 3], no larger than it is, in the middle of black."""
    if tuple(picture.shape[:2]) == (height, width):
        return picture
    scale = min(1.0, height / picture.shape[0], width / picture.shape[1])
    inner = resize_frame(picture, round(picture.shape[0] * scale), round(picture.shape[1] * scale))
    canvas = torch.zeros(height, width, 3, dtype=torch.uint8)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas
