"""What a plan does to whole edits: a stream runs freely under it, and its frames are compared with the unquantized ones.

Small errors grow over a free run, in the unquantized network too: its own rounding is the floor to compare with.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.editor import StreamEditor
from ..evaluation.held_out import samples_by_clip
from ..evaluation.metrics import clip_psnr, frame_errors, warping_error
from ..models.dit import SanaStreamingDiT
from ..training.data.sources import Sample
from .apply import trial
from .plan import Plan

_LUMA = (0.299, 0.587, 0.114)
_WINDOW, _C1, _C2 = 7, (0.01 * 255) ** 2, (0.03 * 255) ** 2
EDITS = ("sepia", "night", "negative")


@dataclass(frozen=True)
class FreeRun:
    """Means over samples. Those of the unquantized network itself have perfect likeness.

    edit_psnr: dB to the true edit. psnr, ssim: of the output to the unquantized output. flicker: root mean square of how
    much the difference of both changes from frame to frame, grey levels. warping_error: along the known motion, of clips that
    have one. num_samples: how many.
    """

    edit_psnr: float
    psnr: float
    ssim: float
    flicker: float
    warping_error: float | None
    num_samples: int


def held_out(clips: list[int], num_frames: int, height: int, width: int, edits: Sequence[str] = EDITS) -> list[Sample]:
    """The held-out samples of these clips (by number) and edits."""
    found = samples_by_clip(clips, num_frames, height, width)
    return [sample for _, samples in found for sample in samples if sample.edit in edits]


def outputs(editor: StreamEditor, samples: Iterable[Sample], on_sample: Callable[[int], None]) -> list[Tensor]:
    """Edited frames uint8 [F, H, W, 3] of each sample; ``on_sample`` is called before each, and stops by raising."""
    edited = []
    for number, sample in enumerate(samples):
        on_sample(number)
        edited.append(torch.cat(list(editor.edit([sample.source], sample.instruction, len(sample.source)))))
    return edited


def under_plan(
    editor: StreamEditor,
    model: SanaStreamingDiT,
    plan: Plan,
    samples: Sequence[Sample],
    on_sample: Callable[[int], None],
) -> list[Tensor]:
    """As :func:`outputs`, by a split ``model`` under ``plan``."""
    with trial(model, plan), running(editor, model):
        return outputs(editor, samples, on_sample)


@contextlib.contextmanager
def running(editor: StreamEditor, model: SanaStreamingDiT) -> Iterator[None]:
    """``editor`` with another network."""
    before, editor.model = editor.model, model
    try:
        yield
    finally:
        editor.model = before


def compare(samples: Sequence[Sample], found: Sequence[Tensor], reference: Sequence[Tensor]) -> FreeRun:
    """``found`` against the truths, and against the ``reference`` of the unquantized network."""
    warped = [
        error
        for sample, frames in zip(samples, found, strict=True)
        if sample.clip.shot and (error := warping_error(frames, *sample.clip.shot.motion())) is not None
    ]
    pairs = list(zip(found, reference, strict=True))
    return FreeRun(
        edit_psnr=fmean(clip_psnr(frames, sample.truth) for sample, frames in zip(samples, found, strict=True)),
        psnr=fmean(clip_psnr(frames, wanted) for frames, wanted in pairs),
        ssim=fmean(ssim(frames, wanted) for frames, wanted in pairs),
        flicker=fmean(flicker(frames, wanted) for frames, wanted in pairs),
        warping_error=fmean(warped) if warped else None,
        num_samples=len(samples),
    )


def ssim(frames: Tensor, reference: Tensor) -> float:
    """Structural similarity of the luma of two clips uint8 [F, H, W, 3], 1 for equal ones: windows of 7 x 7, all alike.

    Wang et al. 2004, equation 13, with population variances; windows that leave the picture do not count.
    """
    values = []
    for pair in zip(frames, reference, strict=True):
        x, y = (_luma(frame) for frame in pair)
        mean_x, mean_y = _blur(x), _blur(y)
        var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
        covariance = _blur(x * y) - mean_x * mean_y
        likeness = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
        values.append((likeness / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean().item())
    return fmean(values)


def _luma(frame: Tensor) -> Tensor:
    """float64 [1, H, W]."""
    return (frame.double() @ torch.tensor(_LUMA, dtype=torch.float64, device=frame.device))[None]


def _blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, _WINDOW, 1)


def flicker(frames: Tensor, reference: Tensor) -> float:
    """Root mean square change of the difference of two clips from frame to frame, in grey levels; steady differences are 0."""
    difference = (frames.short() - reference.short()).float()
    return math.sqrt(float(frame_errors(difference[1:], difference[:-1]).mean()))
