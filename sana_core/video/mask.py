"""The source kept where a mask says so: source and edit mixed frame by frame, with a soft border.

Knows frames and masks, no files. Each frame is computed by itself, so a stream cut anywhere gives the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .geometry import fill_and_crop, resize_and_crop

# Standard deviations of the Gaussian that reach the edge of its kernel.
_REACH = 2.0


class MaskBlend:
    """Mixes frames in order: the edit where the mask is 1, the source where it is 0, exactly.

    Args:
        mask: [H, W] or [M, H, W], floating point in 0 to 1, of any size: scaled and cropped as the source is. One mask is for
            every frame, several are one for each; after the last that one goes on.
        height, width: of the edited frames.
        feather: pixels to either side of the mask's border in which the one goes over into the other.
        antialias: as that of the stream that made the edit; the source is fitted in the same way.

    Raises InputError for a mask of another shape, or values that are no numbers.
    """

    def __init__(self, mask: Tensor, height: int, width: int, *, feather: int = 0, antialias: bool = False) -> None:
        masks = mask[None] if mask.ndim == 2 else mask
        if masks.ndim != 3 or 0 in masks.shape or not masks.is_floating_point():
            raise InputError(
                f"a mask of {mask.dtype} {tuple(mask.shape)} is none: expected [frames, height, width], values from 0 to 1"
            )
        if feather < 0:
            raise InputError(f"feather is {feather} pixels: use 0 for a hard border, or more")
        self._masks, self._feather, self._antialias = masks, feather, antialias
        self._height, self._width = height, width
        self._next = 0
        self._fitted: tuple[int, Tensor] | None = None

    def blend(self, source: Tensor, edited: Tensor) -> Tensor:
        """uint8 [F, height, width, 3] of the next frames.

        ``source`` [F, h, w, 3] of any size and ``edited`` [F, height, width, 3] are uint8 or floating point in 0 to 1. Raises
        ValueError where they are not equally many, or the edit has another size.
        """
        expected = (len(source), self._height, self._width, 3)
        if tuple(edited.shape) != expected:
            raise ValueError(f"edited frames are {tuple(edited.shape)}, expected {expected}")
        return torch.stack([self._one(before, after) for before, after in zip(source, edited, strict=True)])

    def _one(self, source: Tensor, edited: Tensor) -> Tensor:
        weight = self._weight(min(self._next, len(self._masks) - 1))
        self._next += 1
        fitted = resize_and_crop(source[None], self._height, self._width, self._antialias)[0].permute(1, 2, 0)
        before = 127.5 * fitted + 127.5
        after = edited.float() if edited.dtype == torch.uint8 else 255 * edited.float()
        return torch.lerp(before, after, weight[..., None]).round_().clamp_(0, 255).to(torch.uint8)

    def _weight(self, index: int) -> Tensor:
        """Share of the edit [height, width]; that of the last mask is kept."""
        if self._fitted is None or self._fitted[0] != index:
            self._fitted = (index, _blurred(self._fit(self._masks[index]), self._feather))
        return self._fitted[1]

    def _fit(self, mask: Tensor) -> Tensor:
        if not bool(mask.isfinite().all()):
            raise InputError("the mask has values that are no numbers; use values from 0 (source) to 1 (edit)")
        fit = fill_and_crop(mask.shape[0], mask.shape[1], self._height, self._width)
        size = (fit.scaled_height, fit.scaled_width)
        scaled = mask.float()[None, None]
        if scaled.shape[2:] != size:
            scaled = F.interpolate(scaled, size=size, mode="bilinear", align_corners=False, antialias=True)
        cut = scaled[0, 0, fit.top : fit.top + self._height, fit.left : fit.left + self._width]
        return cut.clamp(0, 1).cpu()


def _blurred(weight: Tensor, radius: int) -> Tensor:
    """``weight`` [H, W] under a Gaussian that ends ``radius`` pixels away; borders go on outwards."""
    if radius == 0:
        return weight
    places = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places * _REACH / radius) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(weight[None, None], [radius] * 4, mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    # Rounding may leave the range, and what is all source or all edit is to be so exactly.
    mixed = F.conv2d(across, kernel.view(1, 1, -1, 1))[0, 0]
    return torch.where(mixed < 1e-5, 0.0, torch.where(mixed > 1 - 1e-5, 1.0, mixed))
