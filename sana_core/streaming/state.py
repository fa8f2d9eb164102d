"""Everything that passes from chunk to chunk, and nothing else.

``DiTState`` holds the transformer's part in buffers of fixed size, ``StreamState`` the whole of a stream. Both know tensors and
counters; neither knows how they are computed. A state is never kept on a module: many streams share one set of weights.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE, VAEState
from ..models.dit import BlockState, SanaStreamingDiT
from .chunks import ChunkPlan, kept_chunks
from .options import StreamOptions

FORMAT = "sana_streaming_state"
FORMAT_VERSION = 1


class DiTState:
    """The transformer's memory: five verbs, ``read``, ``write``, ``to``, ``tensors``, ``restore``.

    Per GDN block (kv [B, h, D, D], z [B, h, D]) in float32, per softmax block keys and values [B, h, capacity * S, D] of the
    sink and the window in time order, per block the last frame before the temporal convolution [B, 1, S, C]. Buffers are
    made at the first write and keep their size.
    """

    def __init__(self, capacity_frames: int, num_cached_blocks: int, sink_token: bool) -> None:
        self.capacity_frames = capacity_frames
        self.num_cached_blocks = num_cached_blocks
        self.sink_token = sink_token
        self.num_chunks = 0
        self.num_frames = 0
        # (chunk, latent frames) of what the key and value buffers hold, in order.
        self.segments: list[tuple[int, int]] = []
        self._buffers: list[BlockState] = []

    @classmethod
    def for_plan(cls, plan: ChunkPlan, options: StreamOptions) -> DiTState:
        """The memory of a stream that has seen nothing."""
        window, sink = options.num_cached_blocks, options.sink_token
        return cls(plan.cache_capacity(window, sink), window, sink)

    def read(self) -> list[BlockState] | None:
        """What each block reads before the next chunk; None at the start of a stream. Views: do not write to them."""
        if not self.num_chunks:
            return None
        used = sum(frames for _, frames in self.segments)
        return [BlockState(_view(block.memory, used * block.frame.shape[2]), block.frame) for block in self._buffers]

    @torch.no_grad()
    def write(self, written: Sequence[BlockState], num_frames: int) -> None:
        """Takes in what the network returned for the next chunk of ``num_frames`` latent frames."""
        self.allocate(written)
        kept = kept_chunks(self.num_chunks + 1, self.num_cached_blocks, self.sink_token)
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
        for index in range(config.depth if self.num_chunks else 0):
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
        """Buffers under stable names; none before the first chunk is written."""
        for index, block in enumerate(self._buffers if self.num_chunks else ()):
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
            "segments": self.segments,
        }

    @classmethod
    def restore(cls, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> DiTState:
        """The inverse of ``counters`` and ``tensors``."""
        state = cls(counters["capacity_frames"], counters["num_cached_blocks"], counters["sink_token"])
        state.num_chunks, state.num_frames = counters["num_chunks"], counters["num_frames"]
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


def _view(memory: tuple[torch.Tensor, torch.Tensor], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = memory
    if first.shape != second.shape:
        return memory
    return first[:, :, :tokens], second[:, :, :tokens]


@dataclass(frozen=True)
class StreamSettings:
    """What may not change while a stream runs. Empty fields are not decided yet.

    height, width: size of the edited video in pixels. total_frames: length of the clip in pixel frames, None if unknown.
    vae, model: fingerprints of the weights. vae_dtype, model_dtype: what they run in.
    """

    height: int
    width: int
    total_frames: int | None
    vae: str = ""
    vae_dtype: str = ""
    model: str = ""
    model_dtype: str = ""
    options: StreamOptions | None = None

    def with_vae(self, vae: CausalVAE) -> StreamSettings:
        return replace(self, vae=vae.fingerprint, vae_dtype=_dtype_name(vae.dtype))

    def with_model(self, model: SanaStreamingDiT, options: StreamOptions) -> StreamSettings:
        return replace(self, model=model.fingerprint, model_dtype=_dtype_name(model.dtype), options=options)

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "options": self.options and self.options.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamSettings:
        options = values["options"]
        return cls(**{**values, "options": options and StreamOptions.from_dict(options)})


@dataclass
class StreamState:
    """One video being edited, at a chunk border.

    Attributes:
        settings: what may not change.
        dit: memory of the transformer; None before its first chunk.
        encoder, decoder: caches of the VAE's two directions; empty at the start.
        waiting: frames taken in that do not fill a chunk yet [n, 3, H, W] in [-1, 1], in the VAE's dtype.
        frames_in, frames_out: pixel frames taken in and given out so far.
        prompt, negative_prompt: texts in force.
        prompt_changes: how often the prompt has changed since the start.
        finished: the end was reached; nothing more can be pushed.
        source: what the frames come from, for whoever feeds the stream; the stream itself does not read it.
    """

    settings: StreamSettings
    dit: DiTState | None = None
    encoder: VAEState = field(default_factory=dict)
    decoder: VAEState = field(default_factory=dict)
    waiting: torch.Tensor | None = None
    frames_in: int = 0
    frames_out: int = 0
    prompt: str = ""
    negative_prompt: str = ""
    prompt_changes: int = 0
    finished: bool = False
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def num_waiting(self) -> int:
        return 0 if self.waiting is None else len(self.waiting)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors under stable names."""
        named = {f"dit.{name}": value for name, value in (self.dit.tensors() if self.dit else ())}
        named |= {f"encoder.{name}": value for name, value in self.encoder.items()}
        named |= {f"decoder.{name}": value for name, value in self.decoder.items()}
        if self.waiting is not None and self.num_waiting:
            named["waiting"] = self.waiting
        return named

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors. After the first chunk only the frames that wait make a difference."""
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    def to(self, device: torch.device | str) -> StreamState:
        """Moves every tensor; returns the state itself."""
        if self.dit is not None:
            self.dit.to(device)
        self.move_vae(device)
        return self

    def move_vae(self, device: torch.device | str) -> None:
        """Moves the VAE's part, which lives where the VAE does."""
        self.encoder = {name: value.to(device) for name, value in self.encoder.items()}
        self.decoder = {name: value.to(device) for name, value in self.decoder.items()}
        self.waiting = None if self.waiting is None else self.waiting.to(device)

    def clone(self, memory: bool = True) -> StreamState:
        """A copy that goes on by itself. It shares what is replaced but never written to: the VAE's caches, the frames.

        ``memory=False`` shares the transformer's memory too, for a copy that only encodes or decodes.
        """
        return replace(self, dit=copy.deepcopy(self.dit) if memory else copy.copy(self.dit))

    def release(self) -> None:
        """Lets go of every tensor; the state cannot go on after this."""
        self.dit, self.waiting = None, None
        self.encoder, self.decoder = {}, {}
        self.finished = True

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; an existing file is replaced only when the new one is whole."""
        from safetensors.torch import save_file

        path = Path(path)
        counters = {
            "version": FORMAT_VERSION,
            "settings": self.settings.to_dict(),
            "dit": self.dit and self.dit.counters(),
            **{name: getattr(self, name) for name in _COUNTERS},
        }
        tensors = {name: value.contiguous().cpu() for name, value in self.tensors().items()}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, partial, metadata={FORMAT: json.dumps(counters)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> StreamState:
        """Reads what :meth:`save` wrote. InputError when the file is missing, damaged, or something else."""
        from ..weights.checkpoint import read_safetensors

        if not Path(path).is_file():
            raise InputError(f"{path} is not there or not a file; give a stream state written by --save-state")
        tensors, metadata = read_safetensors(path)
        if FORMAT not in metadata:
            raise InputError(f"{path} is not a saved stream state; give a file written by --save-state")
        try:
            return cls._from_parts(json.loads(metadata[FORMAT]), tensors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is a damaged stream state ({error!r}); start the stream anew") from error

    @classmethod
    def _from_parts(cls, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> StreamState:
        version = counters.get("version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"the stream state is of format {version}, this version reads {FORMAT_VERSION}; "
                "update the package, or start the stream anew"
            )
        return cls(
            settings=StreamSettings.from_dict(counters["settings"]),
            dit=counters["dit"] and DiTState.restore(counters["dit"], _under("dit.", tensors)),
            encoder=_under("encoder.", tensors),
            decoder=_under("decoder.", tensors),
            waiting=tensors.get("waiting"),
            **{name: counters[name] for name in _COUNTERS},
        )

    def adopt(self, settings: StreamSettings) -> None:
        """Takes over settings that decide what was still open; InputError that names the first contradiction."""
        for name, what, remedy in _DIFFERENCES:
            mine, wanted = getattr(self.settings, name), getattr(settings, name)
            undecided = mine in ("", 0) or (mine is None and name == "options")
            if mine != wanted and not undecided:
                if isinstance(mine, StreamOptions):
                    what, mine, wanted = mine.first_difference(wanted)
                raise InputError(f"the stream state was made with {what} {mine}, not {wanted}; {remedy}")
        self.settings = settings


_COUNTERS = ("frames_in", "frames_out", "prompt", "negative_prompt", "prompt_changes", "finished", "source")
_DIFFERENCES = (
    ("model", "the transformer of fingerprint", "load the model that the stream was started with"),
    ("vae", "the VAE of fingerprint", "load the VAE that the stream was started with"),
    ("height", "height", "use the size that the stream was started with"),
    ("width", "width", "use the size that the stream was started with"),
    ("model_dtype", "a transformer in", "use the dtype that the stream was started with"),
    ("vae_dtype", "a VAE in", "use the dtype that the stream was started with"),
    ("total_frames", "a clip length of", "give the length that the stream was started with"),
    ("options", "options", "keep it as it was"),
)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
