"""A clip and its edit in one picture, frame by frame: next to each other, or divided by a line that moves.

Holds the source frames that have no edited frame yet, and nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .geometry import pixels_to_uint8, resize_and_crop

Layout = Literal["side-by-side", "wipe"]

# The line goes from the middle to one side, to the other and back in this time, and never quite to the edge.
WIPE_SECONDS = 6
_WIPE_REACH = 0.4
_LINE, _WHITE = 2, 255


class Comparison:
    """Puts source frames beside edited ones: `offer` the former as they are read, `combine` the latter as they come.

    ``side-by-side`` is twice as wide, source left; ``wipe`` has the size of the edit, source left of a white line. The
    line starts in the middle, so that a short clip shows both, and sways to either side every six seconds.

    Args:
        height, width: of the edited frames. Source frames of any size are fitted as the stream fits them.
        frame_rate: of the frames, in frames per second; sets the pace of the line.
        first_frame: number of the first frame in the stream, for one that goes on: the line goes on too.
        antialias: as the stream's.
    """

    def __init__(
        self,
        layout: Layout,
        height: int,
        width: int,
        *,
        frame_rate: Fraction,
        first_frame: int = 0,
        antialias: bool = False,
    ) -> None:
        if layout not in get_args(Layout):
            raise InputError(f"a comparison {layout!r} is unknown: use {' or '.join(get_args(Layout))}")
        self.layout = layout
        self._height, self._width = height, width
        self._frame_rate, self._next = frame_rate, first_frame
        self._antialias = antialias
        self._source: deque[Tensor] = deque()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the combined frames."""
        return self._height, self._width * (2 if self.layout == "side-by-side" else 1)

    def offer(self, frames: Tensor) -> None:
        """The next source frames [F, H, W, 3], uint8 or floating point in 0 to 1."""
        for frame in frames:
            fitted = resize_and_crop(frame[None], self._height, self._width, self._antialias)
            self._source.append(pixels_to_uint8(fitted)[0].cpu())

    def combine(self, edited: Tensor) -> Tensor:
        """uint8 [F, *size, 3] of the next edited frames, uint8 [F, height, width, 3], on the CPU.

        Raises ValueError for more edited frames than source frames were offered, and for another size.
        """
        if edited.shape[1:] != (self._height, self._width, 3):
            raise ValueError(f"edited frames are {tuple(edited.shape)}, expected [F, {self._height}, {self._width}, 3]")
        if len(edited) > len(self._source):
            raise ValueError(f"{len(edited)} edited frames came, {len(self._source)} source frames wait for theirs")
        return torch.stack([self._one(self._source.popleft(), frame) for frame in edited.cpu()])

    def _one(self, source: Tensor, edited: Tensor) -> Tensor:
        number, self._next = self._next, self._next + 1
        if self.layout == "side-by-side":
            return torch.cat([source, edited], 1)
        line = self._line(number)
        combined = torch.cat([source[:, :line], edited[:, line:]], 1)
        combined[:, max(0, line - _LINE // 2) : line + _LINE // 2] = _WHITE
        return combined

    def _line(self, number: int) -> int:
        """Column at which the edit of frame ``number`` begins."""
        turn = float(number / (self._frame_rate * WIPE_SECONDS))
        return round(self._width * (0.5 + _WIPE_REACH * math.sin(2 * math.pi * turn)))
