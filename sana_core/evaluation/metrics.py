"""Numbers for how good an edit is, each a pure function.

Frames are uint8 [F, H, W, 3]. Work goes frame by frame, so nothing in floating point gets as large as a clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

MAX_PSNR = 100.0
"""dB of two equal clips: finite, so that averages over clips are too."""


def psnr(error: float) -> float:
    """``10 log10(255^2 / error)`` in dB of a mean squared error in grey levels (0 to 255), at most `MAX_PSNR`."""
    return MAX_PSNR if error <= 0 else min(MAX_PSNR, 10 * math.log10(255**2 / error))


def frame_errors(frames: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each frame over pixels and channels, float64 [F]. InputError for frames of other shapes."""
    errors = [_sum_of_squares(difference) / difference.numel() for difference in _differences(frames, truth)]
    return torch.tensor(errors, dtype=torch.float64)


def clip_psnr(frames: Tensor, truth: Tensor) -> float:
    """PSNR in dB of a clip's mean squared error over all its frames."""
    return psnr(float(frame_errors(frames, truth).mean()))


def masked_psnr(frames: Tensor, truth: Tensor, mask: Tensor) -> float | None:
    """PSNR in dB over the pixels of ``mask``, bool [F, H, W], of all frames together; None where it has no pixel."""
    total, count = 0.0, 3 * int(mask.sum())
    for difference, chosen in zip(_differences(frames, truth), mask, strict=True):
        total += _sum_of_squares(difference[chosen])
    return psnr(total / count) if count else None


def warping_error(frames: Tensor, displacement: Tensor, valid: Tensor) -> float | None:
    """How far a point's colour is from its colour in the next frame: root mean square in grey levels, 0 to 255.

    Args:
        frames: uint8 [F, H, W, 3].
        displacement: float [F-1, H, W, 2], the way of each pixel to the next frame in pixels, (right, down).
        valid: bool [F-1, H, W], the pixels to count: those that are seen in both frames.

    The next frame is read bilinearly. None where no pixel is valid.
    """
    height, width = frames.shape[1:3]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres, size = torch.stack([columns, rows], -1), torch.tensor([width, height])
    total, count = 0.0, 3 * int(valid.sum())
    for frame, following, way, counted in zip(frames[:-1], frames[1:], displacement, valid, strict=True):
        points = 2 * (centres + way) / size - 1
        planes = following.permute(2, 0, 1)[None].float()
        warped = F.grid_sample(planes, points[None], padding_mode="border", align_corners=False)[0].permute(1, 2, 0)
        total += _sum_of_squares(warped[counted] - frame[counted])
    return math.sqrt(total / count) if count else None


def squared_steps(frames: Tensor) -> Tensor:
    """Mean squared difference of each frame to the one before, float64 [F-1]."""
    return frame_errors(frames[1:], frames[:-1])


def boundary_jump(
    steps: Tensor, truth_steps: Tensor, starts: Sequence[int], others: Sequence[int] | None = None
) -> float | None:
    """How much more a clip changes across chunk boundaries than inside chunks, over the same ratio of the truth.

    ``steps`` and ``truth_steps`` are `squared_steps`, [F-1]; ``starts`` are the first frames of all chunks but the first
    one. ``others`` narrows what they are compared with to the steps onto these frames, such as the first ones of latent
    frames. 1 is as even as the truth. None where a ratio does not exist: one chunk only, or a clip that stands still.
    """
    ratio, truth_ratio = _step_ratio(steps, starts, others), _step_ratio(truth_steps, starts, others)
    return ratio / truth_ratio if ratio is not None and truth_ratio else None


def _step_ratio(steps: Tensor, starts: Sequence[int], others: Sequence[int] | None) -> float | None:
    across = _onto(starts, len(steps))
    inside = ~across if others is None else _onto(others, len(steps)) & ~across
    if not across.any() or not inside.any():
        return None
    change = float(steps[inside].mean())
    return float(steps[across].mean()) / change if change > 0 else None


def _onto(frames: Sequence[int], num_steps: int) -> Tensor:
    """bool [num_steps], the steps whose second frame is one of ``frames``."""
    chosen = torch.zeros(num_steps, dtype=torch.bool)
    chosen[torch.tensor([frame - 1 for frame in frames], dtype=torch.long)] = True
    return chosen


def _differences(frames: Tensor, truth: Tensor) -> Iterator[Tensor]:
    """Each frame of ``frames`` less that of ``truth``, float [H, W, 3]."""
    if frames.shape != truth.shape or frames.ndim != 4:
        raise InputError(
            f"frames of shape {tuple(frames.shape)} cannot be compared with {tuple(truth.shape)}: give two clips "
            "[frames, height, width, 3] of one length and size"
        )
    return (a.float() - b for a, b in zip(frames, truth, strict=True))


def _sum_of_squares(values: Tensor) -> float:
    flat = values.flatten()
    return float(flat.dot(flat))
