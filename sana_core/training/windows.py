"""Which frames of a long video are generated together, and which of them the losses see. Pure arithmetic.

The released recipe: a first window of 11 latent frames in sub-chunks of 5 + 3 + 3, then windows of 9 in 3 + 3 + 3
(``docs/training.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..streaming.chunks import CHUNK_LATENTS, spans

WINDOW_LATENTS = 11
MIN_NEW_LATENTS = 9


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``start + new_frames - 1``, generated together. All counts are latent frames.

    Attributes:
        loss_frames: length of the clip that the score networks see.
        block: frames per sub-chunk; the first of a video takes the remainder too.
    """

    start: int
    new_frames: int
    loss_frames: int
    block: int

    @property
    def stop(self) -> int:
        return self.start + self.new_frames

    @property
    def history_frames(self) -> int:
        """Frames before the window from which the clip of the score networks is made."""
        return self.loss_frames if self.start else 0

    @property
    def grad_true_range(self) -> tuple[int, int]:
        """(start, stop) of the new frames within that clip."""
        return self.loss_frames - self.new_frames, self.loss_frames

    @property
    def sub_chunks(self) -> tuple[int, ...]:
        """Borders of the chunks, in frames of the video."""
        first = self.block if self.start else min(self.new_frames, self.block + self.new_frames % self.block)
        return (self.start, *range(self.start + first, self.stop + 1, self.block))

    @property
    def chunk_sizes(self) -> list[int]:
        return [stop - start for start, stop in spans(list(self.sub_chunks))]


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one video of ``num_frames`` latent frames, in order."""

    num_frames: int
    windows: tuple[Window, ...]

    @property
    def frames_generated(self) -> int:
        return self.windows[-1].stop

    @property
    def frames_left_unused(self) -> int:
        """Frames at the end that are too few for another window and never trained."""
        return self.num_frames - self.frames_generated

    @property
    def boundaries(self) -> list[int]:
        """Borders of all chunks."""
        return [0, *(border for window in self.windows for border in window.sub_chunks[1:])]


def plan_windows(
    num_frames: int,
    chunk_size: int = WINDOW_LATENTS,
    min_new: int = MIN_NEW_LATENTS,
    block: int = CHUNK_LATENTS,
    choose: Callable[[Sequence[int]], int] = min,
) -> WindowPlan:
    """Windows of a video of ``num_frames`` latent frames; InputError if it is shorter than the first window.

    Args:
        chunk_size: latent frames of the first window, and of the clip that the score networks see.
        min_new: least new frames of a later window, which has this many, or ``block`` more, ... below ``chunk_size``; a
            multiple of ``block`` (else InputError).
        block: latent frames per sub-chunk.
        choose: picks one of several lengths. With the released sizes there is only one.
    """
    if num_frames < chunk_size:
        raise InputError(
            f"{num_frames} latent frames are fewer than the first window of {chunk_size}; use a longer clip"
        )
    if min_new < 1 or min_new % block:
        raise InputError(f"min_new {min_new} is not made of sub-chunks of {block}; use a multiple of {block}")
    windows = [Window(0, chunk_size, chunk_size, block)]
    while choices := range(min_new, min(num_frames - windows[-1].stop + 1, chunk_size), block):
        windows.append(Window(windows[-1].stop, choose(choices), chunk_size, block))
    return WindowPlan(num_frames, tuple(windows))
