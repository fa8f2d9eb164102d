"""Drift: one procedural scene played in a loop through a live stream. Memory does not grow with the length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..training.data.edits import EDITS
from ..training.data.scenes import Scene, Shot, make_scene
from ..training.data.sources import HELD_OUT_SEEDS
from .editor import Editor, chunk_starts, latent_starts
from .metrics import boundary_jump, frame_errors, psnr, squared_steps

LOOP_EDIT = "sepia"
_SEED = HELD_OUT_SEEDS[0]
_LONGEST_PERIOD, _FEWEST_FRAMES = 240, 64
_BLOCK = 8


@dataclass(frozen=True)
class LongRunScores:
    """A looped clip through a live stream.

    ``psnr_start`` and ``psnr_end`` are in dB to the true edit, over the first and the last ``period`` frames, whose
    sources are the same pictures; ``difference`` is end less start. ``boundary_jump`` is over all chunks,
    ``seam_jump`` the same against the boundaries of latent frames inside chunks alone.
    """

    clip: str
    edit: str
    instruction: str
    frames: int
    period: int
    psnr_start: float
    psnr_end: float
    difference: float
    boundary_jump: float | None
    seam_jump: float | None


def check_loop_frames(num_frames: int) -> None:
    """InputError for a length that cannot show drift; 0 means none."""
    if num_frames and num_frames < _FEWEST_FRAMES:
        raise InputError(
            f"--loop-frames {num_frames} is too few; use {_FEWEST_FRAMES} or more (default 1000), or 0 for no long run"
        )


def measure_long_run(
    editor: Editor, num_frames: int, height: int, width: int, *, on_frames: Callable[[int], None] = lambda _: None
) -> LongRunScores:
    """Edits ``num_frames`` of a scene with a period of 240 frames, or half of ``num_frames`` if that is less.

    ``on_frames`` is called with the number of frames of each chunk that came out.
    """
    period = min(_LONGEST_PERIOD, num_frames // 2)
    edit = EDITS[LOOP_EDIT]
    instruction = edit.instructions({})[0]
    source = _LoopedSource(make_scene(_SEED, height, width, period=period), num_frames)
    errors, steps, truth_steps = [], [], []
    last_output, last_truth = torch.empty(0), torch.empty(0)
    for output in editor.edit(source.blocks(), instruction, None):
        truth = edit.apply(source.take(len(output)), None, {})
        errors.append(frame_errors(output, truth))
        steps.append(squared_steps(torch.cat([last_output, output]) if len(last_output) else output))
        truth_steps.append(squared_steps(torch.cat([last_truth, truth]) if len(last_truth) else truth))
        last_output, last_truth = output[-1:], truth[-1:]
        on_frames(len(output))
    by_frame = torch.cat(errors)
    start, end = psnr(float(by_frame[:period].mean())), psnr(float(by_frame[-period:].mean()))
    plan, both = editor.plan(None), (torch.cat(steps), torch.cat(truth_steps))
    starts = chunk_starts(plan, len(by_frame))
    return LongRunScores(
        clip=f"scene {_SEED}",
        edit=LOOP_EDIT,
        instruction=instruction,
        frames=len(by_frame),
        period=period,
        psnr_start=start,
        psnr_end=end,
        difference=end - start,
        boundary_jump=boundary_jump(*both, starts),
        seam_jump=boundary_jump(*both, starts, latent_starts(plan, len(by_frame))),
    )


class _LoopedSource:
    """Frames of a scene in blocks; keeps those that went out until they are taken for comparison."""

    def __init__(self, scene: Scene, num_frames: int) -> None:
        self.scene, self.num_frames = scene, num_frames
        self._kept = torch.empty(0, scene.height, scene.width, 3, dtype=torch.uint8)

    def blocks(self) -> Iterator[Tensor]:
        for first in range(0, self.num_frames, _BLOCK):
            block = Shot(self.scene, range(first, min(first + _BLOCK, self.num_frames))).frames()
            self._kept = torch.cat([self._kept, block])
            yield block

    def take(self, count: int) -> Tensor:
        """The oldest ``count`` frames that were not taken yet."""
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken
