"""The held-out samples through an editor, clip by clip: the truths of one clip and one output are held at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..errors import InputError
from ..training.data.edits import EDITS
from ..training.data.sources import (
    HELD_OUT_PHOTOGRAPHS,
    HELD_OUT_SEEDS,
    HELD_OUT_WINDOWS,
    Clip,
    Sample,
    held_out_samples,
)
from .editor import Editor, chunk_starts, latent_starts
from .metrics import boundary_jump, clip_psnr, frame_errors, masked_psnr, psnr, squared_steps, warping_error

NUM_CLIPS = len(HELD_OUT_WINDOWS) + len(HELD_OUT_PHOTOGRAPHS) + len(HELD_OUT_SEEDS)
GLOBAL_EDITS = tuple(name for name, edit in EDITS.items() if not edit.masked)
"""Edits of the whole picture, in the order of the confusion matrix."""


@dataclass(frozen=True)
class SampleScores:
    """One edit of one clip. PSNRs are in dB to the true edit, of the clip's mean squared error over uint8 frames.

    Attributes:
        source_psnr: of the source left as it is, the mark that an edit has to beat.
        nearest: the whole-picture edit whose truth is nearest to the output by mean squared error; None for masked edits.
        psnr_inside, psnr_outside: over the pixels that the edit may change, and over the others; None for other edits.
        source_psnr_inside, source_psnr_outside: the same of the source.
        warping_error, truth_warping_error: along the known motion, root mean square in grey levels; None for real clips.
        boundary_jump: 1 is as even as the truth; None for a clip of one chunk, or one that stands still.
        seam_jump: the same against the boundaries of latent frames inside chunks alone.
    """

    clip: str
    edit: str
    parameters: Mapping[str, str]
    instruction: str
    psnr: float
    source_psnr: float
    nearest: str | None
    psnr_inside: float | None
    psnr_outside: float | None
    source_psnr_inside: float | None
    source_psnr_outside: float | None
    warping_error: float | None
    truth_warping_error: float | None
    boundary_jump: float | None
    seam_jump: float | None


class ClipScorer:
    """Scores of the edits of one clip.

    ``samples`` are all of its samples, ``starts`` the first frames of later chunks, ``latents`` those of later latent
    frames.
    """

    def __init__(self, samples: Sequence[Sample], starts: Sequence[int], latents: Sequence[int] = ()) -> None:
        shot = samples[0].clip.shot
        self.starts = starts
        self.latents = latents
        self.truths = {sample.edit: sample.truth for sample in samples if sample.mask is None}
        self.motion = shot.motion() if shot else None

    def score(self, sample: Sample, output: Tensor) -> SampleScores:
        """``output`` is uint8 [F, H, W, 3]. Raises InputError where it is not as long and as large as the truth."""
        truth, source, mask = sample.truth, sample.source, sample.mask
        outside = None if mask is None else ~mask
        steps, truth_steps = squared_steps(output), squared_steps(truth)
        return SampleScores(
            clip=sample.clip.name,
            edit=sample.edit,
            parameters=sample.parameters,
            instruction=sample.instruction,
            psnr=clip_psnr(output, truth),
            source_psnr=clip_psnr(source, truth),
            nearest=self.nearest(output) if mask is None else None,
            psnr_inside=_over(mask, output, truth),
            psnr_outside=_over(outside, output, truth),
            source_psnr_inside=_over(mask, source, truth),
            source_psnr_outside=_over(outside, source, truth),
            warping_error=self._warping(output),
            truth_warping_error=self._warping(truth),
            boundary_jump=boundary_jump(steps, truth_steps, self.starts),
            seam_jump=boundary_jump(steps, truth_steps, self.starts, self.latents),
        )

    def nearest(self, output: Tensor) -> str:
        """The whole-picture edit whose truth has the least mean squared error to ``output``; of equals, the first."""
        errors = {name: float(frame_errors(output, truth).mean()) for name, truth in self.truths.items()}
        return min(errors, key=lambda name: errors[name])

    def _warping(self, frames: Tensor) -> float | None:
        return None if self.motion is None else warping_error(frames, *self.motion)


def _over(mask: Tensor | None, frames: Tensor, truth: Tensor) -> float | None:
    return None if mask is None else masked_psnr(frames, truth, mask)


def chosen_clips(count: int | None) -> list[int]:
    """Numbers of ``count`` of the held-out clips, spread over their kinds; None is all. InputError for other counts."""
    count = NUM_CLIPS if count is None else count
    if not 1 <= count <= NUM_CLIPS:
        raise InputError(f"--clips {count} is out of range; use 1 to {NUM_CLIPS}, or leave it out for all")
    return [i * (NUM_CLIPS - 1) // max(1, count - 1) for i in range(count)]


def expected_samples(clips: list[int]) -> int:
    """How many samples the clips ``clips`` have: masked edits fit the procedural scenes, which come last."""
    scenes = sum(number >= NUM_CLIPS - len(HELD_OUT_SEEDS) for number in clips)
    return len(clips) * len(GLOBAL_EDITS) + scenes * (len(EDITS) - len(GLOBAL_EDITS))


def samples_by_clip(clips: list[int], num_frames: int, height: int, width: int) -> Iterator[tuple[int, list[Sample]]]:
    """(rank among ``clips``, all samples) of each chosen clip, made when it is asked for; no other clip is read."""
    chosen = held_out_samples(num_frames, height, width, numbers=clips)
    groups = groupby(chosen, key=lambda sample: sample.clip.name)
    yield from enumerate(list(samples) for _, samples in groups)


def measure_round_trip(editor: Editor, clip: Clip) -> float:
    """PSNR in dB of the clip encoded and decoded by the VAE alone."""
    errors, first = [], 0
    for decoded in editor.round_trip(clip.frames):
        errors.append(frame_errors(decoded, clip.frames[first : first + len(decoded)]))
        first += len(decoded)
    return psnr(float(torch.cat(errors).mean()))


def measure_clip(editor: Editor, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Tensor, SampleScores]]:
    """Runs the samples of one clip: gives each with its output frames and its scores."""
    num_frames = len(samples[0].source)
    plan = editor.plan(num_frames)
    scorer = ClipScorer(samples, chunk_starts(plan, num_frames), latent_starts(plan, num_frames))
    for sample in samples:
        output = torch.cat(list(editor.edit([sample.source], sample.instruction, num_frames)))
        yield sample, output, scorer.score(sample, output)
