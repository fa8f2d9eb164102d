"""What the transformer carries from chunk to chunk, in buffers of fixed size.

Knows tensors and counters; does not know how they are computed. Never kept on a module: many streams share one set of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import InputError
from ..models.dit import BlockState, SanaStreamingDiT
from ..models.rope import advance_frames
from .chunks import ChunkPlan, kept_chunks
from .options import StreamOptions


class DiTState:
    """The transformer's memory: six verbs, ``read``, ``write``, ``restart``, ``to``, ``tensors``, ``restore``.

    Per GDN block (kv [B, h, D, D], z [B, h, D]) in float32, per softmax block keys and values [B, h, capacity * S, D] of the
    sink and the window in time order, per block the last frame before the temporal convolution [B, 1, S, C]. Buffers are
    made at the first write, and the first after a restart, and keep their size.

    ``num_chunks`` and ``num_frames`` count from the start of the stream, ``position`` from the last restart.
    """

    def __init__(self, capacity_frames: int, num_cached_blocks: int, sink_token: bool) -> None:
        self.capacity_frames = capacity_frames
        self.num_cached_blocks = num_cached_blocks
        self.sink_token = sink_token
        self.num_chunks = 0
        self.num_frames = 0
        # Chunk and latent frame at which the memory was last empty.
        self.anchor_chunk = 0
        self.anchor_frame = 0
        # (chunk, latent frames) of what the key and value buffers hold, in order.
        self.segments: list[tuple[int, int]] = []
        self._buffers: list[BlockState] = []

    @classmethod
    def for_plan(cls, plan: ChunkPlan, options: StreamOptions) -> DiTState:
        """The memory of a stream that has seen nothing."""
        window, sink = options.num_cached_blocks, options.sink_token
        return cls(plan.cache_capacity(window, sink, options.anchor_every), window, sink)

    @property
    def is_empty(self) -> bool:
        """Nothing was written since the start or the last restart."""
        return self.num_chunks == self.anchor_chunk

    @property
    def position(self) -> int:
        """Absolute position, in latent frames, of the next chunk's first frame."""
        return self.num_frames - self.anchor_frame

    @property
    def sink_frames(self) -> int:
        """Latent frames of the sink at the head of the softmax blocks' memory, 0 while there is none."""
        first = next(iter(self.segments), None)
        return first[1] if self.sink_token and first is not None and first[0] == self.anchor_chunk else 0

    def restart(self, num_frames: int) -> None:
        """Counts one more chunk, of ``num_frames`` latent frames, and forgets everything; positions begin at 0 again."""
        self.num_chunks += 1
        self.num_frames += num_frames
        self.anchor_chunk, self.anchor_frame = self.num_chunks, self.num_frames
        self.segments, self._buffers = [], []

    def read(self, sink_shift: int = 0) -> list[BlockState] | None:
        """What each block reads before the next chunk; None while empty. Views: do not write to them.

        With ``sink_shift`` softmax blocks see the sink that many latent frames later. Their keys are then copies, made
        from the keys as they were written, so nothing adds up over a long stream.
        """
        if self.is_empty:
            return None
        used = sum(frames for _, frames in self.segments)
        blocks = [BlockState(_view(block.memory, used * block.frame.shape[2]), block.frame) for block in self._buffers]
        if not sink_shift:
            return blocks
        return [_with_sink_at(block, self.sink_frames, sink_shift) if _is_softmax(block) else block for block in blocks]

    @torch.no_grad()
    def write(self, written: Sequence[BlockState], num_frames: int) -> None:
        """Takes in what the network returned for the next chunk of ``num_frames`` latent frames."""
        self.allocate(written)
        anchor = self.anchor_chunk
        reached = self.num_chunks + 1 - anchor
        kept = [anchor + chunk for chunk in kept_chunks(reached, self.num_cached_blocks, self.sink_token)]
        moves, used = self._plan_moves(kept)
        for block, new in zip(self._buffers, written, strict=True):
            block.frame.copy_(new.frame)
            for buffer, value in zip(block.memory, new.memory, strict=True):
                if not _is_softmax(new):
                    buffer.copy_(value)
                    continue
                tokens = block.frame.shape[2]
                for source, target, frames in moves:
                    span = buffer[:, :, source * tokens : (source + frames) * tokens].clone()
                    buffer[:, :, target * tokens : (target + frames) * tokens] = span
                if self.num_chunks in kept:
                    buffer[:, :, used * tokens : (used + num_frames) * tokens] = value
        self.segments = [segment for segment in self.segments if segment[0] in kept]
        if self.num_chunks in kept:
            self.segments.append((self.num_chunks, num_frames))
        self.num_chunks += 1
        self.num_frames += num_frames

    def _plan_moves(self, kept: list[int]) -> tuple[list[tuple[int, int, int]], int]:
        """(source, target, frames) of the segments that move forward in the buffers, and the frames used after."""
        moves, source, target = [], 0, 0
        for chunk, frames in self.segments:
            if chunk in kept:
                if source != target:
                    moves.append((source, target, frames))
                target += frames
            source += frames
        return moves, target

    def allocate(self, written: Sequence[BlockState]) -> None:
        """Makes the buffers, once, for what the network returned; ``write`` needs no other memory to speak of."""
        if not self._buffers:
            self._buffers = [self._allocate(block) for block in written]

    def _allocate(self, block: BlockState) -> BlockState:
        if _is_softmax(block):
            tokens = self.capacity_frames * block.frame.shape[2]
            keys, values = block.memory
            shape = (*keys.shape[:2], tokens, keys.shape[3])
            return BlockState((keys.new_zeros(shape), values.new_zeros(shape)), torch.empty_like(block.frame))
        kv, z = block.memory
        return BlockState((torch.empty_like(kv), torch.empty_like(z)), torch.empty_like(block.frame))

    def to(self, device: torch.device | str) -> None:
        """Moves the buffers."""
        self._buffers = [
            BlockState((b.memory[0].to(device), b.memory[1].to(device)), b.frame.to(device)) for b in self._buffers
        ]

    def check(self, model: SanaStreamingDiT, grid: tuple[int, int], rows: int) -> None:
        """InputError unless the buffers are those of this network for latents of ``grid`` and a batch of ``rows``."""
        config, tokens = model.config, grid[0] * grid[1]
        cached = (rows, config.num_heads, self.capacity_frames * tokens, config.head_dim)
        kv = (rows, config.num_heads, config.head_dim, config.head_dim)
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        memory: dict[str, tuple[tuple[int, ...], torch.dtype]]
        for index in range(0 if self.is_empty else config.depth):
            if config.is_softmax(index):
                memory = {"key": (cached, model.dtype), "value": (cached, model.dtype)}
            else:
                memory = {"kv": (kv, torch.float32), "z": (kv[:-1], torch.float32)}
            memory["frame"] = ((rows, 1, tokens, config.hidden_size), model.dtype)
            expected |= {f"blocks.{index}.{name}": value for name, value in memory.items()}
        got = {name: (tuple(value.shape), value.dtype) for name, value in self.tensors()}
        for name in sorted(expected.keys() | got.keys()):
            if expected.get(name) != got.get(name):
                raise InputError(
                    f"the stream state is damaged or of another network: {name} is {got.get(name, 'missing')}, "
                    f"expected {expected.get(name, 'nothing')}; start the stream anew"
                )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Buffers under stable names; none while empty."""
        for index, block in enumerate(() if self.is_empty else self._buffers):
            names = ("key", "value") if _is_softmax(block) else ("kv", "z")
            for name, value in zip((*names, "frame"), (*block.memory, block.frame), strict=True):
                yield f"blocks.{index}.{name}", value

    def counters(self) -> dict[str, Any]:
        return {
            "capacity_frames": self.capacity_frames,
            "num_cached_blocks": self.num_cached_blocks,
            "sink_token": self.sink_token,
            "num_chunks": self.num_chunks,
            "num_frames": self.num_frames,
            "anchor_chunk": self.anchor_chunk,
            "anchor_frame": self.anchor_frame,
            "segments": self.segments,
        }

    @classmethod
    def restore(cls, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> DiTState:
        """The inverse of ``counters`` and ``tensors``."""
        state = cls(counters["capacity_frames"], counters["num_cached_blocks"], counters["sink_token"])
        state.num_chunks, state.num_frames = counters["num_chunks"], counters["num_frames"]
        # A file without them is of a stream without anchors.
        state.anchor_chunk, state.anchor_frame = counters.get("anchor_chunk", 0), counters.get("anchor_frame", 0)
        state.segments = [(chunk, frames) for chunk, frames in counters["segments"]]
        depth = 1 + max(
            (int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1
        )
        for index in range(depth):
            names = ("key", "value") if f"blocks.{index}.key" in tensors else ("kv", "z")
            first, second, frame = (tensors[f"blocks.{index}.{name}"] for name in (*names, "frame"))
            state._buffers.append(BlockState((first, second), frame))
        return state


def _is_softmax(block: BlockState) -> bool:
    """Keys and values have equal shapes, kv and z have not."""
    return block.memory[0].shape == block.memory[1].shape


def _with_sink_at(block: BlockState, sink_frames: int, shift: int) -> BlockState:
    """A softmax block whose first ``sink_frames`` of keys stand ``shift`` latent frames later."""
    keys, values = block.memory
    tokens = sink_frames * block.frame.shape[2]
    turned = torch.cat([advance_frames(keys[:, :, :tokens], shift), keys[:, :, tokens:]], 2)
    return BlockState((turned, values), block.frame)


def _view(memory: tuple[torch.Tensor, torch.Tensor], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = memory
    if first.shape != second.shape:
        return memory
    return first[:, :, :tokens], second[:, :, :tokens]
