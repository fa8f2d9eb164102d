"""What a stream gives out."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from ..video.geometry import pixels_to_image, pixels_to_uint8
from .lanes import HostCopy, Lane


@dataclass(frozen=True)
class EditedChunk:
    """Frames that one chunk completed: ``pixels`` [F, 3, H, W], F >= 1, about -1 to 1, not clamped.

    ``first_frame`` counts from the start. With a causal decoder they are the chunk's own frames; with chunk_tile they begin and
    end earlier, a first chunk of three latent frames completes none, and the last one brings the rest.

    The frames are whole when they come out. ``lane`` is where :meth:`to_host` need not wait for work on other chunks; None for
    the current one, where everything else that is done with them is queued.
    """

    index: int
    first_frame: int
    pixels: torch.Tensor
    lane: Lane | None = field(default=None, repr=False, compare=False)
    _work: list[Future[Any]] = field(default_factory=list, init=False, repr=False, compare=False)

    def to_host(self) -> HostCopy:
        """``frames`` on their way to host memory."""
        lane = self.lane or Lane(self.pixels.device)
        with lane.work():
            frames = self.frames
        lane.uses(self.pixels)
        return HostCopy.of(frames, lane)

    def defer(self, work: Future[Any]) -> None:
        """Counts the chunk as given out only once ``work``, which goes on with it elsewhere, is done.

        An error of it comes out of the stream's iterator, and the chunk comes again.
        """
        self._work.append(work)

    @property
    def is_deferred(self) -> bool:
        return bool(self._work)

    def wait(self) -> None:
        """Waits for what was deferred to, and raises what went wrong there."""
        for work in self._work:
            work.result()

    @property
    def frames(self) -> torch.Tensor:
        """uint8 RGB [F, H, W, 3], truncated as in the release."""
        return pixels_to_uint8(self.pixels)

    @property
    def images(self) -> torch.Tensor:
        """float32 RGB [F, H, W, 3] in 0 to 1."""
        return pixels_to_image(self.pixels)
