"""What is evaluated: an instruction and frames in, edited frames out. Knows the stream; knows no truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from ..models.causal_vae import CausalVAE, VAEState
from ..models.dit import SanaStreamingDiT
from ..models.stream_decoder import stream_decoder
from ..streaming.chunks import ChunkPlan
from ..streaming.edit_stream import EditStream, PromptEncoder
from ..streaming.frame_stream import EncodeStream
from ..streaming.options import StreamOptions
from ..streaming.state import StreamSettings, StreamState
from ..video.geometry import pixels_to_uint8


class Editor(Protocol):
    """What an evaluation asks of a model. All frames are uint8 [F, H, W, 3] on the CPU."""

    def edit(self, blocks: Iterable[Tensor], instruction: str, total_frames: int | None) -> Iterator[Tensor]:
        """The edited frames of ``blocks``, chunk by chunk; ``total_frames`` is None for a live stream."""

    def round_trip(self, frames: Tensor) -> Iterator[Tensor]:
        """``frames`` encoded and decoded, chunk by chunk."""

    def plan(self, total_frames: int | None) -> ChunkPlan:
        """The chunks of a stream."""


class StreamEditor:
    """The `Editor` that users have: `EditStream` on whole networks, a new stream for every clip."""

    def __init__(
        self,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        *,
        height: int,
        width: int,
        options: StreamOptions,
    ) -> None:
        self.model, self.vae, self.text = model, vae, text
        self.height, self.width, self.options = height, width, options

    def edit(self, blocks: Iterable[Tensor], instruction: str, total_frames: int | None) -> Iterator[Tensor]:
        stream = EditStream(
            self.model,
            self.vae,
            self.text,
            prompt=instruction,
            height=self.height,
            width=self.width,
            total_frames=total_frames,
            options=self.options,
        )
        for block in blocks:
            for chunk in stream.push(block):
                yield chunk.frames.cpu()
        for chunk in stream.flush():
            yield chunk.frames.cpu()

    def round_trip(self, frames: Tensor) -> Iterator[Tensor]:
        settings = StreamSettings(self.height, self.width, len(frames)).with_vae(self.vae)
        stream = EncodeStream(self.vae, StreamState(settings))
        left = len(frames)
        for pixels in self._decode(chain(stream.push(frames), stream.flush())):
            decoded = pixels_to_uint8(pixels[0].movedim(1, 0)[:left]).cpu()
            left -= len(decoded)
            yield decoded

    def _decode(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        decoder = stream_decoder(self.vae)
        state: VAEState = {}
        for latents in chunks:
            with torch.no_grad():
                pixels, state = decoder.decode(latents, state)
            yield pixels
        with torch.no_grad():
            rest = decoder.flush(state)
        if rest is not None:
            yield rest

    def plan(self, total_frames: int | None) -> ChunkPlan:
        return ChunkPlan(total_frames, self.vae.config.temporal_factor)


def chunk_starts(plan: ChunkPlan, num_frames: int) -> list[int]:
    """The first pixel frame of every chunk but the first one, for a stream of ``num_frames``."""
    starts, chunk, position = [], 0, plan.pixel_frames(0)
    while position < num_frames:
        starts.append(position)
        chunk += 1
        position += plan.pixel_frames(chunk)
    return starts


def latent_starts(plan: ChunkPlan, num_frames: int) -> list[int]:
    """The first pixel frame of every latent frame but the first one."""
    return list(range(1, num_frames, plan.temporal_factor))
