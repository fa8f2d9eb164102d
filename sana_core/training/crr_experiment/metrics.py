"""What is measured on edited clips. Lower is better for errors; 1 is best for ratios."""

from __future__ import annotations

import torch
from torch import Tensor

from .latent_world import EDITS, Clips


def warping_errors(video: Tensor, clips: Clips) -> Tensor:
    """Mean square between each frame, moved by the known motion, and the next: of visible pixels [B, T - 1].

    video: [B, C, T, H, W]. Exactly 0 for the source and for the true edit, whose motion is the source's.
    """
    pixels = video.flatten(-2)
    landing = clips.landing[:, None].expand(-1, video.shape[1], -1, -1)
    difference = (pixels[:, :, 1:].gather(-1, landing) - pixels[:, :, :-1]).square().mean(1)
    return (difference * clips.visible).sum(-1) / clips.visible.sum(-1)


def boundary_jump(errors: Tensor, boundaries: list[int]) -> float:
    """Mean warping error across chunk borders over that inside chunks; ``errors`` [B, T - 1], ``boundaries`` with 0 and T.

    Differences are taken along the motion: without, the motion itself would drown the jump.
    """
    crossing = torch.zeros(errors.shape[1], dtype=torch.bool)
    crossing[[border - 1 for border in boundaries[1:-1]]] = True
    return _ratio(errors[:, crossing].mean(), errors[:, ~crossing].mean())


def drift(per_frame: Tensor) -> float:
    """Mean over the last third of the frames over the mean over the first third, of any error [B, frames]."""
    third = per_frame.shape[1] // 3
    return _ratio(per_frame[:, -third:].mean(), per_frame[:, :third].mean())


def colour_errors(video: Tensor, truth: Tensor) -> Tensor:
    """Squared error of each frame's mean and deviation per channel, averaged over channels [B, T]; 0 for the truth."""
    found, wanted = (torch.stack([v.mean((-2, -1)), v.std((-2, -1))]) for v in (video, truth))
    return (found - wanted).square().mean((0, 2))


def masked_error(video: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean square over the pixels of ``mask`` [B, 1, T, H, W]."""
    return ((video - truth).square().mean(1, keepdim=True)[mask]).mean().item()


def edit_error(video: Tensor, clips: Clips) -> float:
    """Error to the truth where the edit acts, over the error of leaving the source as it is; mean over kinds of edit.

    0 is a perfect edit, 1 is no edit.
    """
    return sum(edit_error_of(video, clips, kind) for kind in range(len(EDITS))) / len(EDITS)


def edit_error_of(video: Tensor, clips: Clips, kind: int) -> float:
    """:func:`edit_error` of one kind, an index in ``EDITS``."""
    chosen = clips.edits == kind
    target, mask = clips.target[chosen], clips.touched[chosen]
    return masked_error(video[chosen], target, mask) / masked_error(clips.source[chosen], target, mask)


def edit_metrics(video: Tensor, clips: Clips, boundaries: list[int]) -> dict[str, float]:
    """All metrics of edited clips [B, C, T, H, W], by name."""
    errors = warping_errors(video, clips)
    by_kind = {f"edit_error_{name}": edit_error_of(video, clips, kind) for kind, name in enumerate(EDITS)}
    return {
        "warping_error": errors.mean().item(),
        "drift": drift(errors),
        "colour_drift": drift(colour_errors(video, clips.target)),
        "boundary_jump": boundary_jump(errors, boundaries),
        "preservation_error": masked_error(video, clips.source, ~clips.touched),
        "edit_error": edit_error(video, clips),
        **by_kind,
    }


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    """The quotient; 1 where both are 0, as in a perfect video."""
    if numerator == denominator:
        return 1.0
    return (numerator / denominator).item()
