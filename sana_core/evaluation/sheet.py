"""Source, truth and output of every edit at a glance: one row per edit, in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..training.data.edits import EDITS
from ..training.data.sources import Sample
from .held_out import SampleScores

if TYPE_CHECKING:
    from PIL.Image import Image

_BACKGROUND, _BRIGHT, _DIM = (22, 24, 29), (236, 238, 242), (150, 156, 168)
_MARGIN, _GAP, _LINE, _LONG_SIDE = 24, 8, 24, 288
_JPEG_QUALITY = 82
_COLUMNS = ("source", "truth", "output")


@dataclass(frozen=True, eq=False)
class _Row:
    caption: str
    note: str
    pictures: tuple[Tensor, ...]


class EvaluationSheet:
    """Keeps the middle frame of one clip per edit, of another clip for each as far as there are enough."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def offer(self, rank: int, sample: Sample, output: Tensor, scores: SampleScores) -> None:
        """A measured sample of the clip that comes ``rank``-th; ``output`` is uint8 [F, H, W, 3]."""
        if sample.edit in self._rows and rank > list(EDITS).index(sample.edit):
            return
        middle = len(output) // 2
        pictures = tuple(clip[middle].clone() for clip in (sample.source, sample.truth, output))
        note = f"{sample.clip.name}, frame {middle}, {scores.psnr:.1f} dB over the clip"
        self._rows[sample.edit] = _Row(sample.instruction, note, pictures)

    def draw(self, path: Path) -> bool:
        """Writes a PNG or JPEG, as the name says; False where nothing was measured."""
        rows = [self._rows[name] for name in EDITS if name in self._rows]
        if rows:
            _drawn(rows).save(path, quality=_JPEG_QUALITY)
        return bool(rows)


def _drawn(rows: list[_Row]) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    pictures = [[_thumbnail(picture) for picture in row.pictures] for row in rows]
    width, height = pictures[0][0].size
    row_height = 2 * _LINE + height + 2 * _GAP
    size = (2 * _MARGIN + len(_COLUMNS) * (width + _GAP) - _GAP, 2 * _MARGIN + _LINE + len(rows) * row_height)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(_COLUMNS):
        draw.text((_MARGIN + column * (width + _GAP), _MARGIN), title, font=font, fill=_BRIGHT)
    for number, (row, row_pictures) in enumerate(zip(rows, pictures, strict=True)):
        top = _MARGIN + _LINE + number * row_height
        draw.text((_MARGIN, top + _GAP), row.caption, font=font, fill=_BRIGHT)
        draw.text((_MARGIN, top + _GAP + _LINE), row.note, font=small, fill=_DIM)
        for column, picture in enumerate(row_pictures):
            sheet.paste(picture, (_MARGIN + column * (width + _GAP), top + 2 * _LINE + _GAP))
    return sheet


def _thumbnail(frame: Tensor) -> Image:
    from PIL import Image

    height, width = frame.shape[:2]
    scale = _LONG_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(frame.numpy()).resize(size, Image.Resampling.LANCZOS)
