"""A clip and its edit at a glance: a few frames of each, one row above the other, in one PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_BACKGROUND, _BRIGHT, _DIM = (22, 24, 29), (236, 238, 242), (150, 156, 168)
_MARGIN, _GAP, _CAPTION_LINES = 24, 8, 2
_LONG_SIDE, _NARROWEST_SHEET = 288, 480
_ELLIPSIS = "…"


class FrameSampler:
    """Keeps ``count`` evenly spaced frames of a stream of ``total`` frames, first and last among them.

    `offer` every frame as it passes; what is kept is copied, so memory is that of ``count`` frames. ``indices`` are the
    numbers of the frames kept so far: fewer than ``count`` for a short or unfinished stream.
    """

    def __init__(self, total: int, count: int) -> None:
        if total < 1 or count < 1:
            raise InputError(f"cannot pick {count} of {total} frames: both must be at least 1")
        count = min(count, total)
        self._wanted = {round(i * (total - 1) / max(1, count - 1)) for i in range(count)}
        self._kept: dict[int, Tensor] = {}

    def offer(self, index: int, frame: Tensor) -> None:
        """Frame number ``index``, uint8 [H, W, 3]."""
        if index in self._wanted:
            self._kept[index] = frame.to("cpu", copy=True)

    @property
    def indices(self) -> list[int]:
        return sorted(self._kept)

    @property
    def frames(self) -> Tensor:
        """uint8 [n, H, W, 3], in the order of ``indices``. Raises InputError while there are none."""
        if not self._kept:
            raise InputError("no frame was kept: the stream ended before its first frame")
        return torch.stack([self._kept[index] for index in self.indices])


def contact_sheet(
    source: Tensor, edited: Tensor, path: str | Path, *, prompt: str, times: Sequence[float] | None = None
) -> None:
    """Write a PNG to ``path``: a row of ``source`` frames above the same frames ``edited``, captioned.

    Args:
        source, edited: uint8 [n, H, W, 3]; as many of each, of any two sizes.
        prompt: the edit instruction, shown on at most two lines.
        times: of the frames, in seconds, shown below each column.

    Raises InputError where the numbers of frames and times differ, or ``path`` is no PNG in a folder that exists.
    """
    path = Path(path)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise InputError(f"{path}: the contact sheet is a .png file in a folder that exists")
    if not len(source) == len(edited) >= 1 or (times is not None and len(times) != len(source)):
        raise InputError(
            f"a contact sheet of {len(source)} source and {len(edited)} edited frames with "
            f"{'no' if times is None else len(times)} times: give as many of each, at least 1"
        )
    _draw(_thumbnails(source), _thumbnails(edited), prompt, times).save(path)


def _thumbnails(frames: Tensor) -> "list[Image]":
    from PIL import Image

    height, width = frames.shape[1:3]
    scale = _LONG_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return [Image.fromarray(frame.cpu().numpy()).resize(size, Image.Resampling.LANCZOS) for frame in frames]


def _draw(source: "list[Image]", edited: "list[Image]", prompt: str, times: Sequence[float] | None) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    columns, cell = len(source), max(source[0].width, edited[0].width)
    inner = max(columns * cell + (columns - 1) * _GAP, _NARROWEST_SHEET - 2 * _MARGIN)
    edited_caption = _wrapped(f"edited: {prompt}", font, inner)
    line = 24
    rows = [(["source"], source), (edited_caption, edited)]
    height = 2 * _MARGIN + sum(len(caption) * line + _GAP + row[0].height for caption, row in rows) + _MARGIN
    height += line if times is not None else 0
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for caption, row in rows:
        for text in caption:
            draw.text((_MARGIN, top), text, font=font, fill=_BRIGHT)
            top += line
        top += _GAP
        for column, picture in enumerate(row):
            sheet.paste(picture, (_cell_left(column, cell) + (cell - picture.width) // 2, top))
        top += row[0].height + _MARGIN
    _draw_times(draw, times or (), cell, top - _MARGIN + _GAP, small)
    return sheet


def _draw_times(draw: "ImageDraw", times: Sequence[float], cell: int, top: int, font: "Font") -> None:
    for column, seconds in enumerate(times):
        centre = _cell_left(column, cell) + cell // 2
        draw.text((centre, top), f"{seconds:.2f} s", font=font, fill=_DIM, anchor="ma")


def _cell_left(column: int, cell: int) -> int:
    return _MARGIN + column * (cell + _GAP)


def _wrapped(text: str, font: "Font", width: int) -> list[str]:
    """``text`` in at most `_CAPTION_LINES` lines of ``width`` pixels; what does not fit becomes an ellipsis."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < _CAPTION_LINES:
        last = len(lines) == _CAPTION_LINES - 1
        count = len(words)
        while count > 1 and font.getlength(" ".join(words[:count])) > width:
            count -= 1
        line, words = " ".join(words[:count]), words[count:]
        lines.append(_shortened(line + _ELLIPSIS * (last and bool(words)), font, width))
    return lines


def _shortened(line: str, font: "Font", width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.rstrip(_ELLIPSIS)
    while line and font.getlength(line + _ELLIPSIS) > width:
        line = line[:-1]
    return line.rstrip() + _ELLIPSIS
