"""Passes of the unquantized network over calibration clips, kept so that a plan can be run from the same inputs.

That is teacher forcing: each pass begins from the reference's latents, so errors of earlier passes are not in it. What a chunk
reads of the one before was written under the plan, in a pass from the reference's latents and state.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models.attention import Window
from ..models.dit import BlockState, PromptContext, SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from ..models.rope import Rotary
from ..streaming.chunks import cache_capacity, chunk_boundaries, spans
from ..streaming.noise import ChunkNoise
from ..streaming.options import StreamOptions
from ..streaming.passes import Passes
from ..streaming.sampler import commit_chunk, sample_chunk
from ..streaming.state import DiTState
from .apply import calibrate

# Chunks that are looked at: without a past, with the shortest one, and the last.
PLACES = ("first", "early", "late")
MIN_CHUNKS = len(PLACES)


@dataclass(frozen=True)
class CalibrationClip:
    """A clip to measure on: source latents [1, C, T, h, w] as the VAE gives them, and the embedded instruction."""

    name: str
    source: Tensor
    prompt: PromptEmbedding


@dataclass(frozen=True)
class Border:
    """The pass that wrote the state at the end of a chunk: its timestep, latents and source, and the state before the chunk."""

    timestep: float
    x: Tensor
    source: Tensor
    state: DiTState


@dataclass(frozen=True)
class RecordedChunk:
    """A chunk of the reference: what each denoising pass began from and what it gave.

    passes: (timestep, latents [1, C, T, h, w], velocity of the same shape). state: before the chunk. border: how that state was
    written; None before the first chunk, which has no past.
    """

    clip: int
    place: str
    state: DiTState
    border: Border | None
    source: Tensor
    passes: Sequence[tuple[float, Tensor, Tensor]]


@dataclass(frozen=True)
class Reference:
    """Recorded chunks of the calibration clips, and the embedded instruction of each clip.

    tf32: what the matrix products of float32 were and are (see :func:`float32_products`).
    """

    chunks: Sequence[RecordedChunk]
    prompts: Sequence[PromptEmbedding]
    tf32: bool = False

    def context(self, model: SanaStreamingDiT, clip: int) -> PromptContext:
        """The instruction of a clip as the blocks of ``model`` read it."""
        return _context(model, self.prompts[clip])

    @torch.no_grad()
    def run(self, model: SanaStreamingDiT) -> Iterator[tuple[RecordedChunk, float, Tensor, Tensor]]:
        """(chunk, timestep, velocity of ``model``, velocity of the reference) of every pass, from the reference's latents."""
        contexts = [self.context(model, clip) for clip in range(len(self.prompts))]
        for chunk in self.chunks:
            context = contexts[chunk.clip]
            state = _rewritten(model, chunk, context)
            for timestep, x, wanted in chunk.passes:
                velocity, _ = _run_pass(model, timestep, x, chunk.source, context, state)
                yield chunk, timestep, velocity, wanted

    @torch.no_grad()
    def input_amax(self, model: SanaStreamingDiT) -> dict[str, float]:
        """What the input of each unit of ``model`` (not quantized) reaches in these passes; see :func:`calibrate`."""

        def run() -> None:
            for _ in self.run(model):
                pass

        with float32_products(self.tf32):
            return calibrate(model, run)


def _rewritten(model: SanaStreamingDiT, chunk: RecordedChunk, context: PromptContext) -> DiTState:
    """The state before the chunk as ``model`` writes it."""
    border = chunk.border
    if border is None:
        return chunk.state
    _, written = _run_pass(model, border.timestep, border.x, border.source, context, border.state)
    state = border.state.clone()
    state.write(written, border.x.shape[2])
    return state


def _run_pass(
    model: SanaStreamingDiT, timestep: float, x: Tensor, source: Tensor, context: PromptContext, state: DiTState
) -> tuple[Tensor, list[BlockState]]:
    device, (frames, rows, columns) = source.device, source.shape[2:]
    positions = model.positions(state.position, frames, rows, columns, device)
    at = torch.full((1,), timestep, device=device)
    return model(x, at, source, context, in_dtype(state.read(), model.dtype), positions)


class _Recorder(Passes):
    """Runs passes plainly and keeps those of the chunk in hand."""

    def __init__(self, model: SanaStreamingDiT) -> None:
        super().__init__(model)
        self.seen: list[tuple[float, Tensor, Tensor]] = []

    def __call__(
        self,
        x: Tensor,
        timestep: float,
        source: Tensor,
        prompt: PromptContext,
        state: Sequence[BlockState] | None,
        positions: Rotary,
    ) -> tuple[Tensor, list[BlockState]]:
        velocity, written = super().__call__(x, timestep, source, prompt, state, positions)
        self.seen.append((timestep, x.clone(), velocity.clone()))
        return velocity, written


@torch.no_grad()
def record(
    model: SanaStreamingDiT,
    clips: Iterable[CalibrationClip],
    options: StreamOptions | None = None,
    on_chunk: Callable[[int, int], None] = lambda clip, chunk: None,
    places: Collection[str] = PLACES,
    tf32: bool = False,
) -> Reference:
    """Streams each clip through ``model`` and keeps its first, second and last chunk, or those of ``places``.

    ``on_chunk`` is called before each with the numbers of clip and chunk; raising from it stops. ``tf32``: see
    :func:`float32_products`. InputError for no clip, and for one of fewer than three chunks.
    """
    options = options or StreamOptions()
    chunks, prompts = [], []
    for number, clip in enumerate(clips):
        prompts.append(clip.prompt)
        with float32_products(tf32):
            recorded = _record_clip(model, clip, number, options, on_chunk)
            chunks += [chunk for chunk in recorded if chunk.place in places]
    if not prompts:
        raise InputError("there is no calibration clip; give one or more")
    return Reference(chunks, prompts, tf32)


def _record_clip(
    model: SanaStreamingDiT,
    clip: CalibrationClip,
    number: int,
    options: StreamOptions,
    on_chunk: Callable[[int, int], None],
) -> Iterator[RecordedChunk]:
    device = next(model.parameters()).device
    source = clip.source.to(device, model.dtype)
    borders = chunk_boundaries(source.shape[2])
    chosen = dict(zip((0, 1, len(borders) - 2), PLACES, strict=True))
    if len(chosen) < MIN_CHUNKS:
        raise InputError(
            f"the calibration clip {clip.name} has {source.shape[2]} latent frames, {len(borders) - 1} chunks of them; "
            f"give one of {MIN_CHUNKS} chunks or more (9 latent frames, 65 frames)"
        )
    window, sink = options.num_cached_blocks, options.sink_token
    state = DiTState(cache_capacity(borders, window, sink), window, sink)
    noise = ChunkNoise(options, source.shape[2], (source.shape[1], *source.shape[3:]))
    context = _context(model, clip.prompt)
    border: Border | None = None
    for chunk, (start, stop) in enumerate(spans(borders)):
        on_chunk(number, chunk)
        before, passes = state.clone(), _Recorder(model)
        part, drawn = source[:, :, start:stop], noise.draw(chunk, start, stop - start)
        _, written = sample_chunk(model, state, context, drawn, part, options, carry=True, passes=passes)
        commit_chunk(state, written, stop - start, last=False)
        timestep, x, _ = passes.seen[-1]
        if not options.reuse_last_step:
            del passes.seen[-1]
        if chunk in chosen:
            yield RecordedChunk(number, chosen[chunk], before, border, part, passes.seen)
        border = Border(timestep, x, part, before)


def _context(model: SanaStreamingDiT, prompt: PromptEmbedding) -> PromptContext:
    device = next(model.parameters()).device
    return model.prompt_context(prompt.embeds.to(device), prompt.mask.to(device))


def in_dtype(state: Sequence[BlockState] | None, dtype: torch.dtype) -> list[BlockState] | None:
    """A state for a network of ``dtype``: windows and carried frames are cast, the delta rule's memory stays in float32."""
    if state is None:
        return None
    cast = []
    for block in state:
        memory = block.memory
        if isinstance(memory, Window):
            memory = Window(memory.keys.to(dtype), memory.values.to(dtype), memory.used)
        cast.append(BlockState(memory, block.frame.to(dtype)))
    return cast


def clips_digest(clips: Iterable[CalibrationClip]) -> str:
    """A short hash of all that the clips hold."""
    found = hashlib.sha256()
    for clip in clips:
        for value in (clip.source, clip.prompt.embeds):
            found.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        found.update(bytes([clip.prompt.num_tokens % 256]))
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class NoisePower:
    """Energy of an output's error over that of the reference's output, averaged over passes; 0 is no error.

    ``by_place`` and ``by_timestep`` are the same averages over parts of the passes.
    """

    mean: float
    by_place: dict[str, float]
    by_timestep: dict[str, float]


@torch.no_grad()
def noise_power(model: SanaStreamingDiT, reference: Reference) -> NoisePower:
    """Of the velocities of ``model`` in denoising passes, from the reference's latents.

    The velocity of the pass at t = 0 goes nowhere and does not count; the state that this pass writes does.
    """
    found: list[tuple[str, str, Tensor]] = []
    with float32_products(reference.tf32):
        for chunk, timestep, velocity, wanted in reference.run(model):
            error = (velocity.float() - wanted.float()).square().sum() / wanted.float().square().sum()
            found.append((chunk.place, f"{timestep:g}", error))
    values = [(place, timestep, error.item()) for place, timestep, error in found]
    return NoisePower(
        _mean([value for _, _, value in values]),
        {
            name: _mean([v for place, _, v in values if place == name])
            for name in dict.fromkeys(p for p, _, _ in values)
        },
        {name: _mean([v for _, at, v in values if at == name]) for name in dict.fromkeys(t for _, t, _ in values)},
    )


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 in float32 also on a GPU, or in TF32.

    TF32 is several times as fast there, and its rounding comes near to that of int8, which then looks worse than it is.
    """
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in settings]
    try:
        for each in settings:
            each.allow_tf32 = tf32
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.allow_tf32 = value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
