"""What the transformer carries from chunk to chunk, in buffers of fixed size.

Knows tensors and counters; does not know how they are computed. Never kept on a module: many streams share one set of weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import InputError
from ..models.attention import Window
from ..models.dit import BlockState, SanaStreamingDiT
from ..models.rope import advance_frames
from .chunks import CHUNK_LATENTS, ChunkPlan, kept_chunks
from .options import StreamOptions
from .pool import Page, Slot, StatePool


class DiTState:
    """The transformer's memory: ``read``, ``write``, ``restart``, ``forget``, ``reserve``, ``to``, ``tensors``, ``restore``.

    Per GDN block (kv [B, h, D, D], z [B, h, D]) in float32, per softmax block keys and values [B, h, capacity * S, D] of the
    sink and the window in time order, with room for those of one more chunk behind them, per block the last frame before the
    temporal convolution [B, 1, S, C]. All lie in one page of ``pool``, taken at the first write, and keep their place, unless
    more is reserved.

    ``num_chunks`` and ``num_frames`` count from the start of the stream, ``position`` from the last restart.
    """

    def __init__(
        self, capacity_frames: int, num_cached_blocks: int, sink_token: bool, pool: StatePool | None = None
    ) -> None:
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
        self._pool = pool or StatePool()
        # None while there are no buffers, and for those of a file that were not read yet.
        self._page: Page | None = None
        # Of a memory that has moved: what is still to be written may lie there.
        self._old_page: Page | None = None

    @classmethod
    def for_plan(cls, plan: ChunkPlan, options: StreamOptions, pool: StatePool | None = None) -> DiTState:
        """The memory of a stream that has seen nothing."""
        window, sink = options.num_cached_blocks, options.sink_token
        return cls(plan.cache_capacity(window, sink, options.anchor_every), window, sink, pool)

    def clone(self) -> DiTState:
        """A copy that goes on by itself, in a page of its own."""
        twin = copy.copy(self)
        twin.segments, twin._buffers = list(self.segments), list(self._buffers)
        if self._page is not None:
            twin._lay_out(self._buffers)
        return twin

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
        """Counts one more chunk, of ``num_frames`` latent frames, and forgets everything."""
        self.num_chunks += 1
        self.num_frames += num_frames
        self.forget()

    def forget(self) -> None:
        """Empties the memory; positions begin at 0 again."""
        self.anchor_chunk, self.anchor_frame = self.num_chunks, self.num_frames
        self.segments = []

    def reserve(self, plan: ChunkPlan, options: StreamOptions) -> None:
        """Makes room for all that is held where anchors are those of ``options`` from here on, whatever they were before."""
        window, sink, every = self.num_cached_blocks, self.sink_token, options.anchor_every
        if window > 0 or plan.total_latents is not None:
            needed = plan.cache_capacity(window, sink)
        else:
            # Nothing is forgotten before the next anchor.
            ahead = CHUNK_LATENTS * (-self.num_chunks % every)
            needed = max(plan.cache_capacity(window, sink, every), self.position + ahead)
        if needed > self.capacity_frames:
            before, page = self.capacity_frames, self._page
            self.capacity_frames = needed
            try:
                if self._buffers:
                    self._lay_out(self._buffers)
                    self._old_page = page
            except BaseException:
                self.capacity_frames = before
                raise

    def read(self, sink_shift: int = 0) -> list[BlockState] | None:
        """What each block reads before the next chunk; None while empty. Views: only the room behind them is written to.

        With ``sink_shift`` softmax blocks see the sink that many latent frames later. Their keys are then copies, made
        from the keys as they were written, so nothing adds up over a long stream.
        """
        self._old_page = None
        if self.is_empty:
            return None
        if self._page is None:
            self._lay_out(self._buffers)
        used = self._used_frames
        blocks = [_readable(block, used * block.frame.shape[2]) for block in self._buffers]
        if not sink_shift:
            return blocks
        return [_with_sink_at(block, self.sink_frames, sink_shift) if _is_softmax(block) else block for block in blocks]

    @property
    def _used_frames(self) -> int:
        return sum(frames for _, frames in self.segments)

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
            for buffer, value in zip(block.tensors, new.tensors, strict=True):
                if not _is_softmax(new):
                    buffer.copy_(value)
                    continue
                tokens = block.frame.shape[2]
                for source, target, frames in moves:
                    span = buffer[:, :, source * tokens : (source + frames) * tokens].clone()
                    buffer[:, :, target * tokens : (target + frames) * tokens] = span
                if self.num_chunks in kept:
                    # What the network returned may lie in the room of the same buffer.
                    buffer[:, :, used * tokens : (used + num_frames) * tokens] = value.clone()
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
        """Takes the page, once, for what the network returned; ``write`` needs no other memory to speak of."""
        if not self._buffers:
            self._lay_out(written, fill=False)

    def _lay_out(self, blocks: Sequence[BlockState], fill: bool = True) -> None:
        """Takes a page for blocks like these, and with ``fill`` copies them into it."""
        slots = [slot for block in blocks for slot in self._slots(block)]
        page = self._pool.take(slots, blocks[0].frame.device)
        tensors = iter(page.tensors)
        laid = [BlockState((next(tensors), next(tensors)), next(tensors)) for _ in blocks]
        for block, old in zip(laid, blocks if fill else (), strict=fill):
            block.frame.copy_(old.frame)
            for buffer, value in zip(block.tensors, old.tensors, strict=True):
                if _is_softmax(block):
                    buffer = buffer[:, :, : value.shape[2]]
                buffer.copy_(value)
        self._page, self._buffers = page, laid

    def _slots(self, block: BlockState) -> list[Slot]:
        """Shapes and dtypes of a block's buffers: of its memory, then of its frame."""
        first, second = (tuple(value.shape) for value in block.tensors)
        if _is_softmax(block):
            tokens = (self.capacity_frames + CHUNK_LATENTS) * block.frame.shape[2]
            first = second = (*first[:2], tokens, first[3])
        shapes = (first, second, tuple(block.frame.shape))
        return [(shape, value.dtype) for shape, value in zip(shapes, (*block.tensors, block.frame), strict=True)]

    def to(self, device: torch.device | str) -> None:
        """Moves the buffers."""
        if self._buffers and self._buffers[0].frame.device != torch.empty(0, device=device).device:
            moved = [
                BlockState((b.tensors[0].to(device), b.tensors[1].to(device)), b.frame.to(device))
                for b in self._buffers
            ]
            self._lay_out(moved)

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
        """Buffers under stable names, what is not in use as zeros; none while empty."""
        for index, block in enumerate(() if self.is_empty else self._buffers):
            names, memory = ("kv", "z"), block.tensors
            if _is_softmax(block):
                names, (keys, values), tokens = ("key", "value"), memory, block.frame.shape[2]
                memory = self._kept(keys, tokens), self._kept(values, tokens)
            for name, value in zip((*names, "frame"), (*memory, block.frame), strict=True):
                yield f"blocks.{index}.{name}", value

    def _kept(self, buffer: torch.Tensor, tokens: int) -> torch.Tensor:
        """A buffer of keys or values without its room, which the chunk in hand may have written to."""
        buffer = buffer[:, :, : self.capacity_frames * tokens]
        used = self._used_frames * tokens
        if used < buffer.shape[2]:
            buffer = buffer.clone()
            buffer[:, :, used:] = 0
        return buffer

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
    return block.tensors[0].shape == block.tensors[1].shape


def _readable(block: BlockState, used: int) -> BlockState:
    """A block's buffers as the network takes them, ``used`` tokens of keys and values."""
    if not _is_softmax(block):
        return block
    return BlockState(Window(*block.tensors, used), block.frame)


def _with_sink_at(block: BlockState, sink_frames: int, shift: int) -> BlockState:
    """A softmax block whose first ``sink_frames`` of keys stand ``shift`` latent frames later."""
    assert isinstance(block.memory, Window)
    keys, values, used = block.memory
    tokens = sink_frames * block.frame.shape[2]
    turned = torch.cat([advance_frames(keys[:, :, :tokens], shift), keys[:, :, tokens:used]], 2)
    return BlockState((turned, values[:, :, :used]), block.frame)
