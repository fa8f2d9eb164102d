"""Which frames are denoised together and which earlier chunks they see. Pure arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..errors import InputError

# Latent frames per chunk; the first chunk of a clip takes the remainder, the first of a live stream two more.
CHUNK_LATENTS = 3
LIVE_FIRST_LATENTS = 5


def latent_frames(num_frames: int, temporal_factor: int = 8) -> int:
    """Latent frames of a clip padded to ``1 + temporal_factor * k`` pixel frames."""
    if num_frames < 1:
        raise InputError(f"a clip of {num_frames} frames cannot be edited; it needs at least 1")
    return 1 + -(-(num_frames - 1) // temporal_factor)


def chunk_boundaries(total_latents: int) -> list[int]:
    """Borders of the chunks of a clip: the first takes 3 + remainder, the rest 3; up to 5 latent frames are one chunk."""
    if total_latents < 1:
        raise InputError(f"{total_latents} latent frames cannot be planned; a clip has at least 1")
    first = min(total_latents, CHUNK_LATENTS + total_latents % CHUNK_LATENTS)
    return [0, *range(first, total_latents + 1, CHUNK_LATENTS)]


def kept_chunks(chunk: int, num_cached_blocks: int, sink_token: bool) -> list[int]:
    """Earlier chunks whose keys and values ``chunk`` reads in softmax blocks, in time order.

    The window is the last ``num_cached_blocks`` chunks; with ``sink_token`` the first chunk of the stream takes the place
    of the oldest one once it has left the window. ``num_cached_blocks`` of 0 or less keeps all.
    """
    if num_cached_blocks <= 0:
        return list(range(chunk))
    oldest = max(0, chunk - num_cached_blocks)
    if sink_token and chunk - num_cached_blocks + 1 > 0:
        return [0, *range(chunk - num_cached_blocks + 1, chunk)]
    return list(range(oldest, chunk))


def spans(boundaries: list[int]) -> list[tuple[int, int]]:
    """(start, stop) of each chunk."""
    return list(itertools.pairwise(boundaries))


def cache_capacity(boundaries: list[int], num_cached_blocks: int, sink_token: bool, anchor_every: int = 0) -> int:
    """Latent frames of the largest set of earlier chunks that any chunk reads.

    With ``anchor_every`` a chunk reads nothing from before the last multiple of it.
    """
    sizes = [stop - start for start, stop in spans(boundaries)]
    stretch = anchor_every or len(sizes)

    def held(chunk: int) -> int:
        anchor = chunk - chunk % stretch
        if num_cached_blocks <= 0:
            return boundaries[chunk] - boundaries[anchor]
        return sum(sizes[anchor + kept] for kept in kept_chunks(chunk - anchor, num_cached_blocks, sink_token))

    return max(held(chunk) for chunk in range(len(sizes)))


@dataclass(frozen=True)
class ChunkPlan:
    """The chunks of one stream. ``total_frames`` in pixels, None for a live stream of unknown length."""

    total_frames: int | None
    temporal_factor: int = 8

    @property
    def total_latents(self) -> int | None:
        return None if self.total_frames is None else latent_frames(self.total_frames, self.temporal_factor)

    @property
    def first_latents(self) -> int:
        """Latent frames of the first chunk."""
        if self.total_latents is None:
            return LIVE_FIRST_LATENTS
        return chunk_boundaries(self.total_latents)[1]

    @property
    def total_chunks(self) -> int | None:
        return None if self.total_latents is None else len(chunk_boundaries(self.total_latents)) - 1

    def chunk_at(self, num_frames: int) -> int:
        """The chunk that follows ``num_frames`` pixel frames, a number at a chunk border."""
        first = self.pixel_frames(0)
        return 0 if num_frames < first else 1 + (num_frames - first) // self.pixel_frames(1)

    def latent_sizes(self, chunk: int, num_latents: int) -> list[int]:
        """How ``num_latents`` latent frames divide into chunks, the first of which is ``chunk``."""
        sizes = [min(num_latents, self.first_latents)] if chunk == 0 else []
        while (left := num_latents - sum(sizes)) > 0:
            sizes.append(min(left, CHUNK_LATENTS))
        return sizes

    def pixel_frames(self, chunk: int) -> int:
        """Pixel frames that a full ``chunk`` takes in and gives out."""
        if chunk == 0:
            return 1 + self.temporal_factor * (self.first_latents - 1)
        return self.temporal_factor * CHUNK_LATENTS

    def padded_frames(self, chunk: int, num_frames: int) -> int:
        """Pixel frames of a ``chunk`` cut short by the end of the stream after ``num_frames``, padded to whole latents."""
        single = 1 if chunk == 0 else 0
        return single + self.temporal_factor * -(-(num_frames - single) // self.temporal_factor)

    def cache_capacity(self, num_cached_blocks: int, sink_token: bool, anchor_every: int = 0) -> int:
        """Latent frames whose keys and values are held at most. InputError for full history of unknown length.

        With ``anchor_every`` the history is never longer than that many chunks.
        """
        if num_cached_blocks <= 0 and self.total_latents is None and not anchor_every:
            raise InputError(
                f"num_cached_blocks {num_cached_blocks} keeps the full history, which a stream of unknown length cannot; "
                "use 1 or more (default 2)"
            )
        total = self.total_latents
        if total is None:
            steady = num_cached_blocks + 2 if num_cached_blocks > 0 else anchor_every
            total = self.first_latents + CHUNK_LATENTS * steady
        return cache_capacity(chunk_boundaries(total), num_cached_blocks, sink_token, anchor_every)

    def is_last(self, chunk: int) -> bool:
        """Known only for a stream of known length."""
        return self.total_chunks is not None and chunk >= self.total_chunks - 1
