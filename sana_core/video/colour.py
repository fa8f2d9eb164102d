"""Colours of an edit brought to those of its source, as a stream.

Mean and deviation of each channel are carried over (Reinhard et al. 2001, "Color Transfer between Images"), in Oklab
(Ottosson 2020), whose channels are lightness and two opponent colours, nearly independent as the method wants them.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..errors import InputError
from .geometry import pixels_to_uint8, resize_and_crop

# Linear RGB of BT.709 to cone responses, and their cube roots to Oklab.
_TO_CONES = torch.tensor(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    dtype=torch.float64,
)
_TO_LAB = torch.tensor(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    dtype=torch.float64,
)
# Share of the newest chunk in the statistics that are in force: about three chunks are averaged.
_NEWEST = 0.4
# Contrast is changed by this factor at most, so that a nearly flat edit does not turn into noise.
_MOST_CONTRAST = 2.0
# Longer side of what statistics are taken of, in pixels.
_SAMPLED_SIDE = 192


def to_oklab(rgb: Tensor) -> Tensor:
    """Oklab [..., 3] of non-linear sRGB [..., 3] in 0 to 1."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    cones = linear @ _TO_CONES.T.to(linear)
    return (cones.sign() * cones.abs() ** (1 / 3)) @ _TO_LAB.T.to(linear)


def from_oklab(lab: Tensor) -> Tensor:
    """The inverse of :func:`to_oklab`, cut to 0 to 1."""
    cones = (lab @ torch.linalg.inv(_TO_LAB).T.to(lab)) ** 3
    linear = (cones @ torch.linalg.inv(_TO_CONES).T.to(lab)).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


class ColourMatch:
    """`offer` source frames as they come, `match` edited frames as they come out, both in order.

    Statistics are those of the frames of one `match`, a chunk, averaged with those of the chunks before; within a chunk the
    change goes over evenly from the last chunk's to its own, so that nothing jumps. Of the source only statistics are kept.

    Args:
        height, width: of the edited frames; source frames of any size are fitted as the stream fits them.
        strength: 0 leaves the edit as it is, 1 gives it the source's colours.
        antialias: as the stream's.

    Raises InputError for a strength outside 0 to 1.
    """

    def __init__(self, height: int, width: int, *, strength: float = 1.0, antialias: bool = False) -> None:
        if not 0 <= strength <= 1:
            raise InputError(f"colour match {strength} is out of range; use 0 for none to 1 for the source's colours")
        self.strength = strength
        self._size, self._antialias = (height, width), antialias
        self._source: deque[Tensor] = deque()
        self._moments: tuple[Tensor, Tensor] | None = None
        self._change: Tensor | None = None

    def offer(self, frames: Tensor) -> None:
        """The next source frames [F, H, W, 3], uint8 or floating point in 0 to 1."""
        for frame in frames:
            fitted = resize_and_crop(frame[None], *self._size, self._antialias)
            self._source.append(_moments(pixels_to_uint8(fitted)))

    def match(self, edited: Tensor) -> Tensor:
        """uint8 of the next edited frames, uint8 [F, height, width, 3], on the CPU.

        Raises ValueError for more edited frames than source frames were offered.
        """
        if len(edited) > len(self._source):
            raise ValueError(f"{len(edited)} edited frames came, {len(self._source)} source frames wait for theirs")
        edited = edited.cpu()
        source = torch.stack([self._source.popleft() for _ in range(len(edited))]).mean(0)
        before, change = self._change, self._next_change(source, _moments(edited))
        self._change = change
        start = change if before is None else before
        shares = [(number + 1) / len(edited) for number in range(len(edited))]
        changes = [torch.lerp(start, change, share) for share in shares]
        return torch.stack([_changed(frame, now) for frame, now in zip(edited, changes, strict=True)])

    def _next_change(self, source: Tensor, edited: Tensor) -> Tensor:
        """(factor, offset) [2, 3] of each channel, from moments averaged with those so far."""
        if self._moments is not None:
            source = torch.lerp(self._moments[0], source, _NEWEST)
            edited = torch.lerp(self._moments[1], edited, _NEWEST)
        self._moments = (source, edited)
        factor = (_deviation(source) / _deviation(edited)).clamp(1 / _MOST_CONTRAST, _MOST_CONTRAST)
        factor = torch.lerp(torch.ones(3), factor, self.strength)
        mean = torch.lerp(edited[0], source[0], self.strength)
        return torch.stack([factor, mean - factor * edited[0]])


def _moments(frames: Tensor) -> Tensor:
    """Means of Oklab and of its squares [2, 3] over frames uint8 [F, H, W, 3], of which not every pixel is looked at."""
    step = max(1, max(frames.shape[1:3]) // _SAMPLED_SIDE)
    lab = to_oklab(frames[:, ::step, ::step].float() / 255).flatten(0, 2)
    return torch.stack([lab.mean(0), (lab**2).mean(0)])


def _deviation(moments: Tensor) -> Tensor:
    return (moments[1] - moments[0] ** 2).clamp(min=1e-6).sqrt()


def _changed(frame: Tensor, change: Tensor) -> Tensor:
    lab = to_oklab(frame.float() / 255)
    return (255 * from_oklab(change[0] * lab + change[1])).round_().to(torch.uint8)
