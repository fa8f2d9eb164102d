"""Frames in, edited frames out.

Ties geometry, VAE, transformer and state together, chunk by chunk. Knows nothing of files, progress bars or ComfyUI.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..models.dit import PromptContext, SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from ..video.geometry import pixels_to_image, pixels_to_uint8, resize_and_crop
from .chunks import ChunkPlan
from .noise import ChunkNoise
from .options import StreamOptions
from .sampler import prompt_context, sample_chunk
from .state import DiTState, StreamSettings, StreamState


class PromptEncoder(Protocol):
    """What turns text into embeddings: the Gemma encoder, or anything with these methods."""

    def encode(self, prompt: str) -> PromptEmbedding: ...

    def encode_negative(self, prompt: str) -> PromptEmbedding: ...

    def unload(self) -> None:
        """Frees the weights; called whenever a stream has what it needs."""


class Progress(NamedTuple):
    """A unit of work that is about to begin: ``number`` of ``total`` units of the chunk, in the given stage.

    ``total_chunks`` is None for a stream of unknown length.
    """

    chunk: int
    total_chunks: int | None
    stage: Literal["encode", "denoise", "decode"]
    number: int
    total: int


@dataclass(frozen=True)
class EditedChunk:
    """Frames of one chunk: ``pixels`` [F, 3, H, W], about -1 to 1, not clamped; ``first_frame`` counts from the start."""

    index: int
    first_frame: int
    pixels: torch.Tensor

    @property
    def frames(self) -> torch.Tensor:
        """uint8 RGB [F, H, W, 3], truncated as in the release."""
        return pixels_to_uint8(self.pixels)

    @property
    def images(self) -> torch.Tensor:
        """float32 RGB [F, H, W, 3] in 0 to 1."""
        return pixels_to_image(self.pixels)


class EditStream:
    """Edits a video as it comes.

    Frames wait until they fill a chunk, so how they are cut into pushes does not change a single bit of the result. The
    state is always at a chunk border: whatever stops a chunk half way (an error, Ctrl-C, ``on_progress`` raising) leaves
    the stream as it was before that chunk, with its frames still waiting.

    Args:
        model: streaming transformer, on the device to compute on.
        vae: VAE whose decoder is causal, on the same device or another.
        text: encodes the prompts.
        prompt: edit instruction. negative_prompt: used only with ``cfg_scale`` above 1.
        height, width: size of the edited video in pixels, multiples of the VAE's spatial factor (32), at least 2 of them.
        total_frames: length of the clip, None for a live stream. A known length gives the release's chunk plan and noise.
        options: see :class:`StreamOptions`.
        on_progress: called before every network pass and VAE call; raising from it stops the stream.

    Raises InputError for networks that do not fit together or cannot stream, and for sizes that cannot be edited.
    """

    def __init__(
        self,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        *,
        prompt: str,
        negative_prompt: str = "",
        height: int = 704,
        width: int = 1280,
        total_frames: int | None = None,
        options: StreamOptions | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        check_networks(model, vae)
        check_size(height, width, vae.config.spatial_factor)
        settings = stream_settings(model, vae, height, width, total_frames, options or StreamOptions())
        state = StreamState(settings, _empty_memory(settings, vae), prompt=prompt, negative_prompt=negative_prompt)
        self._start(model, vae, text, state, on_progress)

    @classmethod
    def resume(
        cls,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        state: StreamState,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> EditStream:
        """Goes on with a saved stream, which keeps its prompt, size and options. ``state`` is taken over, not copied.

        Raises InputError when the state belongs to other weights or another dtype.
        """
        check_networks(model, vae)
        saved = state.settings
        state.check(stream_settings(model, vae, saved.height, saved.width, saved.total_frames, saved.options))
        stream = cls.__new__(cls)
        stream._start(model, vae, text, state, on_progress)
        return stream

    def _start(
        self,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        state: StreamState,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.model, self.vae, self.text = model, vae, text
        self.on_progress = on_progress
        self.device = next(model.parameters()).device
        self.vae_device = next(vae.parameters()).device
        self.state = state.to(self.device)
        self._move_vae_state()
        self.plan = ChunkPlan(state.settings.total_frames, vae.config.temporal_factor)
        self.seconds: dict[str, float] = defaultdict(float)
        self._noise = self._make_noise()
        self._context: PromptContext | None = None
        self._embed_prompt()

    def _move_vae_state(self) -> None:
        """The VAE's part of the state lives where the VAE does."""
        state = self.state
        state.encoder = {name: value.to(self.vae_device) for name, value in state.encoder.items()}
        state.decoder = {name: value.to(self.vae_device) for name, value in state.decoder.items()}
        if state.waiting is not None:
            state.waiting = state.waiting.to(self.vae_device)

    def _make_noise(self) -> ChunkNoise:
        settings, factor = self.state.settings, self.vae.config.spatial_factor
        shape = (self.model.config.in_channels, settings.height // factor, settings.width // factor)
        return ChunkNoise(settings.options, self.plan.total_latents, shape)

    @property
    def noise_mode(self) -> str:
        """``clip`` or ``chunk``: the mode in force, which for long and live streams is always ``chunk``."""
        return self._noise.mode

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next chunk on; nothing is reset."""
        previous, self.state.prompt = self.state.prompt, prompt
        try:
            self._embed_prompt()
        except BaseException:
            self.state.prompt = previous
            raise
        self.state.prompt_changes += 1

    def reset(self) -> None:
        """Back to the first frame, with the prompt in force; frames that were waiting are dropped."""
        old = self.state
        self.state = StreamState(
            old.settings,
            _empty_memory(old.settings, self.vae),
            prompt=old.prompt,
            negative_prompt=old.negative_prompt,
        )

    def push(self, frames: torch.Tensor) -> Iterator[EditedChunk]:
        """Takes in frames [F, H, W, 3], uint8 or float in 0 to 1, of any size; gives out the chunks they complete.

        The frames are taken in at once; chunks are computed as the iterator is read, or with the next call.
        """
        state, settings = self.state, self.state.settings
        if state.finished:
            raise InputError("the stream is finished; call reset() to start over, or make a new stream")
        total = settings.total_frames
        if total is not None and state.frames_in + len(frames) > total:
            raise InputError(
                f"{state.frames_in + len(frames)} frames were pushed into a stream of {total}; "
                "give the true length as total_frames, or None if it is not known"
            )
        with self._timed("geometry"), torch.no_grad():
            pixels = resize_and_crop(frames.to(self.vae_device), settings.height, settings.width).to(self.vae.dtype)
            state.waiting = pixels if state.waiting is None else torch.cat([state.waiting, pixels])
        state.frames_in += len(frames)
        return self._full_chunks()

    def flush(self) -> Iterator[EditedChunk]:
        """Ends the stream: the frames still waiting become one last chunk, padded with the last frame and trimmed."""
        yield from self._full_chunks()
        waiting = self.state.waiting
        if waiting is not None and len(waiting) and not self.state.finished:
            yield self._edit(len(waiting), last=True)
        self.state.finished = True

    def _full_chunks(self) -> Iterator[EditedChunk]:
        while not self.state.finished and self.state.waiting is not None:
            chunk = self.state.dit.num_chunks
            needed = self.plan.pixel_frames(chunk)
            if len(self.state.waiting) < needed:
                return
            yield self._edit(needed, last=self.plan.is_last(chunk))

    @torch.no_grad()
    def _edit(self, num_frames: int, last: bool) -> EditedChunk:
        """Edits the first ``num_frames`` waiting frames as one chunk and commits the new state when all of it is done."""
        state, options = self.state, self.state.settings.options
        assert state.waiting is not None
        assert self._context is not None
        chunk = state.dit.num_chunks
        units = options.steps + (1 if not last and not options.reuse_last_step else 0) + 2
        padding = self.plan.padded_frames(chunk, num_frames) - num_frames
        pixels = state.waiting[:num_frames]
        video = torch.cat([pixels, pixels[-1:].expand(padding, -1, -1, -1)]).movedim(0, 1)[None]

        self._announce(chunk, "encode", 0, units)
        with self._timed("encode"):
            source, encoder = self.vae.encode(video, state.encoder)
        with self._timed("denoise"):
            latents, written = sample_chunk(
                self.model,
                state.dit,
                self._context,
                self._noise.draw(chunk, state.dit.num_frames, source.shape[2]),
                source.to(self.device),
                options,
                carry=not last,
                on_pass=lambda number, _: self._announce(chunk, "denoise", 1 + number, units),
            )
        self._announce(chunk, "decode", units - 1, units)
        with self._timed("decode"):
            edited, decoder = self.vae.decode(latents.to(self.vae_device), state.decoder)

        result = EditedChunk(chunk, state.frames_out, edited[0].movedim(1, 0)[:num_frames])
        state.encoder, state.decoder = encoder, decoder
        state.waiting = state.waiting[num_frames:].clone()
        state.frames_out += num_frames
        state.finished = last
        if written is not None:
            state.dit.write(written, source.shape[2])
        return result

    def _embed_prompt(self) -> None:
        """Encodes the prompts in force and forms the keys and values that every chunk reads."""
        state, options = self.state, self.state.settings.options
        with self._timed("text"), torch.no_grad():
            positive = self.text.encode(state.prompt)
            negative = self.text.encode_negative(state.negative_prompt) if options.guided else None
            self.text.unload()
            width = self.model.config.caption_channels
            if positive.embeds.shape[-1] != width:
                raise InputError(
                    f"the text encoder gives {positive.embeds.shape[-1]} channels, the model takes {width}; "
                    "use the text encoder that belongs to the model"
                )
            self._context = prompt_context(
                self.model,
                options,
                positive.embeds.to(self.device),
                positive.mask,
                None if negative is None else negative.embeds.to(self.device),
                None if negative is None else negative.mask,
            )

    def _announce(self, chunk: int, stage: Literal["encode", "denoise", "decode"], number: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(chunk, self.plan.total_chunks, stage, number, total))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds inside to ``self.seconds[stage]``; waits for the GPU so that they belong to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[stage] += time.perf_counter() - start


def check_networks(model: SanaStreamingDiT, vae: CausalVAE) -> None:
    """InputError when the two cannot stream together."""
    if model.config.variant != "streaming":
        raise InputError(
            f"the model is the {model.config.variant} one, which sees a clip whole and cannot stream; "
            "load a streaming checkpoint such as sana_streaming_ar.pth"
        )
    channels = (model.config.in_channels, model.config.source_channels)
    if set(channels) != {vae.config.latent_channels}:
        raise InputError(
            f"the VAE makes latents of {vae.config.latent_channels} channels, the model takes {channels[0]} noisy and "
            f"{channels[1]} source channels; use the VAE that belongs to the model"
        )
    if not vae.decodes_causally:
        raise InputError(
            "the VAE's decoder is not causal and cannot decode as a stream; use the causal LTX-2 VAE (ltx2_causal_vae_0516)"
        )


def check_size(height: int, width: int, multiple: int = 32) -> None:
    """InputError for a size that cannot be edited; says which size to use instead."""
    smallest = 2 * multiple
    for name, size in (("height", height), ("width", width)):
        if size < smallest:
            raise InputError(
                f"{name} {size} is too small; the smallest is {smallest}, so use {name} {smallest} instead"
            )
        if size % multiple:
            usable = size // multiple * multiple
            raise InputError(f"{name} {size} is not a multiple of {multiple}; use {name} {usable} instead")


def stream_settings(
    model: SanaStreamingDiT, vae: CausalVAE, height: int, width: int, total_frames: int | None, options: StreamOptions
) -> StreamSettings:
    """What a stream of these networks must not change."""
    return StreamSettings(
        height=height,
        width=width,
        total_frames=total_frames,
        options=options,
        model=model.fingerprint,
        vae=vae.fingerprint,
        model_dtype=str(model.dtype).removeprefix("torch."),
        vae_dtype=str(vae.dtype).removeprefix("torch."),
    )


def _empty_memory(settings: StreamSettings, vae: CausalVAE) -> DiTState:
    options = settings.options
    plan = ChunkPlan(settings.total_frames, vae.config.temporal_factor)
    capacity = plan.cache_capacity(options.num_cached_blocks, options.sink_token)
    return DiTState(capacity, options.num_cached_blocks, options.sink_token)
