"""Denoising latents: one chunk at a time, and a whole clip as a loop over chunks.

Knows the network, the time grid and guidance. Knows nothing of pixels, files or prompts as text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch

from ..errors import InputError
from ..models.dit import BlockState, PromptContext, SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from ..sampling.flow_match import euler_step, streaming_schedule
from .chunks import cache_capacity, chunk_boundaries, spans
from .options import StreamOptions
from .passes import Passes
from .state import DiTState

# Called before each network pass with (pass number, passes of this chunk); stops the stream by raising.
OnPass = Callable[[int, int], None]


def prompt_context(
    model: SanaStreamingDiT,
    options: StreamOptions,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    negative_embeds: torch.Tensor | None = None,
    negative_mask: torch.Tensor | None = None,
) -> PromptContext:
    """What the blocks read: the prompt alone, or [negative; positive] under guidance.

    embeds [B, L, C], mask [B, L]. With ``cfg_mask="positive"`` the negative features are masked like the positive ones.
    """
    if not options.guided:
        return model.prompt_context(embeds, mask)
    if negative_embeds is None or (negative_mask is None and options.cfg_mask == "own"):
        raise ValueError(f"cfg_scale {options.cfg_scale} needs the embeddings and the mask of a negative prompt")
    masks = mask if options.cfg_mask == "positive" else torch.cat([_rows(negative_mask, embeds), _rows(mask, embeds)])
    return model.prompt_context(torch.cat([negative_embeds.to(embeds), embeds]), masks)


def embedded_context(
    model: SanaStreamingDiT,
    options: StreamOptions,
    positive: PromptEmbedding,
    negative: PromptEmbedding | None,
    device: torch.device,
) -> PromptContext:
    """The prompts as the blocks read them. InputError for embeddings of another width than the model's."""
    width = model.config.caption_channels
    if positive.embeds.shape[-1] != width:
        raise InputError(
            f"the text encoder gives {positive.embeds.shape[-1]} channels, the model takes {width}; "
            "use the text encoder that belongs to the model"
        )
    embeds, mask = positive.embeds.to(device), positive.mask.to(device)
    if negative is None:
        return prompt_context(model, options, embeds, mask)
    return prompt_context(model, options, embeds, mask, negative.embeds.to(device), negative.mask.to(device))


def _rows(mask: torch.Tensor | None, embeds: torch.Tensor) -> torch.Tensor:
    """The mask with one row per row of the batch."""
    assert mask is not None
    return mask.to(embeds.device).repeat(embeds.shape[0] // mask.shape[0], 1)


def sample_chunk(
    model: SanaStreamingDiT,
    state: DiTState,
    prompt: PromptContext,
    noise: torch.Tensor,
    source: torch.Tensor,
    options: StreamOptions,
    *,
    carry: bool,
    on_pass: OnPass | None = None,
    passes: Passes | None = None,
) -> tuple[torch.Tensor, list[BlockState] | None]:
    """Denoised latents of one chunk [B, C, T, H, W] float32, and what to carry to the next (None unless ``carry``).

    ``carry`` is :meth:`StreamOptions.carries`. ``state`` is only read: the caller commits what is returned with
    :func:`commit_chunk` once the whole chunk is done, so a chunk that is stopped half way leaves the stream at its last
    border. What is to be carried may lie in the state's scratch room or in a graph's results: commit it before the next chunk.
    ``passes`` runs the network and may keep things from chunk to chunk; by default it keeps nothing.
    """
    schedule = streaming_schedule(options.steps, options.flow_shift)
    num_frames, height, width = source.shape[2:]
    positions = model.positions(state.position, num_frames, height, width, source.device)
    blocks = state.read(sink_shift(state, num_frames, options.max_sink_distance))
    rows = 2 if options.guided else 1
    sources = source.repeat(rows, 1, 1, 1, 1)
    runs = passes or Passes(model)
    count = options.passes(carry)

    def run(x: torch.Tensor, timestep: float, number: int) -> tuple[torch.Tensor, list[BlockState]]:
        if on_pass is not None:
            on_pass(number, count)
        return runs(x.repeat(rows, 1, 1, 1, 1), timestep, sources, prompt, blocks, positions)

    x = noise.to(source.device, torch.float32, non_blocking=True)
    first = options.start_step
    if first:
        x = (1 - schedule.sigmas[first]) * source.float() + schedule.sigmas[first] * x
    written: list[BlockState] | None = None
    for number in range(first, options.steps):
        velocity, written = run(x, schedule.timesteps[number], number - first)
        if options.guided:
            negative, positive = velocity.chunk(2)
            velocity = negative + options.cfg_scale * (positive - negative)
        sigma, sigma_next = schedule.sigmas[number : number + 2]
        x = euler_step(x, velocity, sigma, sigma_next, options.round_latents)
    if not carry:
        return x, None
    if not options.reuse_last_step:
        _, written = run(x, 0.0, options.steps - first)
    return x, written


def sink_shift(state: DiTState, num_frames: int, max_sink_distance: int) -> int:
    """Latent frames by which the sink is brought nearer for a chunk of ``num_frames``; 0 where it is near enough.

    Since the last restart the sink begins at position 0, so the span from it to the end of the chunk is that end.
    """
    if not max_sink_distance or not state.sink_frames:
        return 0
    return max(0, state.position + num_frames - max_sink_distance)


def commit_chunk(state: DiTState, written: list[BlockState] | None, num_frames: int, last: bool) -> None:
    """Moves ``state`` past a chunk of ``num_frames`` latent frames of which :func:`sample_chunk` returned ``written``.

    A chunk that is not the last and carries nothing stands before an anchor: the memory is emptied.
    """
    if written is not None:
        state.write(written, num_frames)
    elif not last:
        state.restart(num_frames)


@torch.no_grad()
def sample_chunks(
    model: SanaStreamingDiT,
    state: DiTState,
    prompts: Sequence[PromptContext],
    noise: Callable[[int, int, int], torch.Tensor],
    source: torch.Tensor,
    options: StreamOptions,
    sizes: Sequence[int],
    *,
    last: bool,
    on_pass: Callable[[int, int, int], None] | None = None,
    passes: Passes | None = None,
) -> Iterator[torch.Tensor]:
    """Edited latents [B, C, T, H, W] float32, chunk by chunk; ``state`` moves on after each.

    Args:
        prompts: one per chunk.
        noise: gives the noise of (chunk, first latent frame, latent frames), as :meth:`ChunkNoise.draw`.
        source: source latents [B, C, T, H, W] of the chunks, T = sum of ``sizes``.
        last: nothing follows, so the last chunk need not be carried on.
        on_pass: called before each pass with (index in ``sizes``, pass, passes of the chunk); may raise to stop.
        passes: runs the network; by default it keeps what stays the same between these chunks.
    """
    passes = passes or Passes(model)
    start = 0
    for index, size in enumerate(sizes):
        final = last and index + 1 == len(sizes)
        latents, written = sample_chunk(
            model,
            state,
            prompts[index],
            noise(state.num_chunks, state.num_frames, size),
            source[:, :, start : start + size],
            options,
            carry=options.carries(state.num_chunks, final),
            on_pass=None if on_pass is None else functools.partial(on_pass, index),
            passes=passes,
        )
        commit_chunk(state, written, size, final)
        start += size
        yield latents


def sample_clip(
    model: SanaStreamingDiT,
    prompts: PromptContext | Sequence[PromptContext],
    noise: torch.Tensor,
    source: torch.Tensor,
    options: StreamOptions,
    *,
    boundaries: list[int] | None = None,
    on_pass: OnPass | None = None,
) -> torch.Tensor:
    """Edited latents [B, C, T, H, W] float32 of a clip whose noise and source latents [B, C, T, H, W] are known whole.

    ``prompts``: one for all chunks, or one per chunk. ``boundaries``: chunk borders, by default the release's plan.
    """
    boundaries = boundaries or chunk_boundaries(source.shape[2])
    sizes = [stop - start for start, stop in spans(boundaries)]
    per_chunk = [prompts] * len(sizes) if isinstance(prompts, PromptContext) else list(prompts)
    if len(per_chunk) != len(sizes):
        raise ValueError(f"{len(per_chunk)} prompts were given for {len(sizes)} chunks; give one, or one per chunk")
    capacity = cache_capacity(boundaries, options.num_cached_blocks, options.sink_token, options.anchor_every)
    state = DiTState(capacity, options.num_cached_blocks, options.sink_token)

    def draw(chunk: int, start: int, num_frames: int) -> torch.Tensor:
        return noise[:, :, start : start + num_frames]

    report = None if on_pass is None else lambda _, number, passes: on_pass(number, passes)
    chunks = sample_chunks(model, state, per_chunk, draw, source, options, sizes, last=True, on_pass=report)
    return torch.cat(list(chunks), 2)


def check_streaming(model: SanaStreamingDiT) -> None:
    """InputError for a network that was not trained to stream."""
    if model.config.variant != "streaming":
        raise InputError(
            f"the model is the {model.config.variant} one, which sees a clip whole and cannot stream; "
            "load a streaming checkpoint such as sana_streaming_ar.pth"
        )


def check_latent_channels(model: SanaStreamingDiT, channels: int, who: str) -> None:
    """InputError unless the network takes latents of ``channels`` channels; ``who`` begins the sentence."""
    noisy, source = model.config.in_channels, model.config.source_channels
    if {noisy, source} != {channels}:
        raise InputError(
            f"{who} latents of {channels} channels, the model takes {noisy} noisy and {source} source channels; "
            "use the VAE that belongs to the model"
        )
