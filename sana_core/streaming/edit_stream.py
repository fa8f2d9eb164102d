"""Frames in, edited frames out.

Ties geometry, VAE, transformer and state together, chunk by chunk. Knows nothing of files, progress bars or ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..models.dit import PromptContext, SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from ..video.geometry import pixels_to_image, pixels_to_uint8
from .frame_stream import Commit, FrameStream, OnProgress, Progress, check_size
from .noise import ChunkNoise
from .options import StreamOptions
from .sampler import check_latent_channels, check_streaming, prompt_context, sample_chunk
from .state import DiTState, StreamSettings, StreamState

__all__ = ["EditStream", "EditedChunk", "FixedPrompts", "Progress", "PromptEncoder", "check_networks", "check_size"]


class PromptEncoder(Protocol):
    """What turns text into embeddings: the Gemma encoder, or anything with these methods."""

    def encode(self, prompt: str) -> PromptEmbedding: ...

    def encode_negative(self, prompt: str) -> PromptEmbedding: ...

    def unload(self) -> None:
        """Frees the weights; called whenever a stream has what it needs."""


@dataclass(frozen=True)
class FixedPrompts:
    """A PromptEncoder of embeddings that were made elsewhere, whatever the text."""

    positive: PromptEmbedding
    negative: PromptEmbedding | None = None

    def encode(self, prompt: str) -> PromptEmbedding:
        return self.positive

    def encode_negative(self, prompt: str) -> PromptEmbedding:
        if self.negative is None:
            raise InputError("guidance needs a negative prompt; connect one, or set cfg_scale to 1")
        return self.negative

    def unload(self) -> None:
        """Nothing is loaded."""


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


class EditStream(FrameStream[EditedChunk]):
    """Edits a video as it comes. See :class:`FrameStream` for what holds between pushes.

    Args:
        model: streaming transformer.
        vae: VAE whose decoder is causal.
        text: encodes the prompts.
        prompt: edit instruction. negative_prompt: used only with ``cfg_scale`` above 1.
        height, width: size of the edited video in pixels, multiples of the VAE's spatial factor (32), at least 2 of them.
        total_frames: length of the clip, None for a live stream. A known length gives the release's chunk plan and noise.
        options: see :class:`StreamOptions`.
        device, vae_device: where to compute; by default where the weights are.
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
        device: torch.device | str | None = None,
        vae_device: torch.device | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        check_networks(model, vae)
        check_size(height, width, vae.config.spatial_factor)
        settings = (
            StreamSettings(height, width, total_frames).with_vae(vae).with_model(model, options or StreamOptions())
        )
        state = StreamState(settings, prompt=prompt, negative_prompt=negative_prompt)
        self._start(model, vae, text, state, device, vae_device, on_progress)

    @classmethod
    def resume(
        cls,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        state: StreamState,
        *,
        device: torch.device | str | None = None,
        vae_device: torch.device | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> EditStream:
        """Goes on with a saved stream, which keeps its prompt, size and options. ``state`` is taken over, not copied.

        Raises InputError when the state belongs to other weights or another dtype.
        """
        check_networks(model, vae)
        if state.finished:
            raise InputError("the stream has reached its end; start a new one")
        options = state.settings.options or StreamOptions()
        state.adopt(state.settings.with_vae(vae).with_model(model, options))
        if state.dit is not None:
            factor = vae.config.spatial_factor
            grid = (state.settings.height // factor, state.settings.width // factor)
            state.dit.check(model, grid, rows=2 if options.guided else 1)
        stream = cls.__new__(cls)
        stream._start(model, vae, text, state, device, vae_device, on_progress)
        return stream

    def _start(
        self,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        state: StreamState,
        device: torch.device | str | None,
        vae_device: torch.device | str | None,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(vae, state, vae_device, on_progress)
        self.model, self.text = model, text
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        factor, settings, options = vae.config.spatial_factor, state.settings, state.settings.options
        assert options is not None
        grid = (settings.height // factor, settings.width // factor)
        self._noise = ChunkNoise(options, self.plan.total_latents, (model.config.in_channels, *grid))
        self._context: PromptContext | None = None
        self._memory()
        self._embed_prompt()

    def _memory(self) -> DiTState:
        """The transformer's memory, on its device; made for a stream that has none yet."""
        state = self.state
        if state.dit is None:
            assert state.settings.options is not None
            state.dit = DiTState.for_plan(self.plan, state.settings.options)
        state.dit.to(self.device)
        return state.dit

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
        self.state = StreamState(old.settings, prompt=old.prompt, negative_prompt=old.negative_prompt)

    def _process(self, video: torch.Tensor, chunk: int, num_frames: int, last: bool) -> tuple[EditedChunk, Commit]:
        state, options = self.state, self.state.settings.options
        assert options is not None
        assert self._context is not None
        memory = self._memory()
        units = options.passes(carry=not last) + 2
        self._announce(chunk, "encode", 0, units)
        with self._timed("encode"):
            source, encoder = self.vae.encode(video, state.encoder)
        with self._timed("denoise"):
            latents, written = sample_chunk(
                self.model,
                memory,
                self._context,
                self._noise.draw(chunk, memory.num_frames, source.shape[2]),
                source.to(self.device),
                options,
                carry=not last,
                on_pass=lambda number, _: self._announce(chunk, "denoise", 1 + number, units),
            )
        self._announce(chunk, "decode", units - 1, units)
        with self._timed("decode"):
            edited, decoder = self.vae.decode(latents.to(self.vae_device), state.decoder)

        if written is not None:
            memory.allocate(written)

        def commit() -> None:
            if written is not None:
                memory.write(written, source.shape[2])
            state.encoder, state.decoder = encoder, decoder
            state.frames_out += num_frames

        return EditedChunk(chunk, state.frames_out, edited[0].movedim(1, 0)[:num_frames]), commit

    def _embed_prompt(self) -> None:
        """Encodes the prompts in force and forms the keys and values that every chunk reads."""
        state, options = self.state, self.state.settings.options
        assert options is not None
        with self._timed("text"), torch.no_grad():
            positive = self.text.encode(state.prompt)
            negative = self.text.encode_negative(state.negative_prompt) if options.guided else None
            self.text.unload()
            self._context = embedded_context(self.model, options, positive, negative, self.device)


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


def check_networks(model: SanaStreamingDiT, vae: CausalVAE) -> None:
    """InputError when the two cannot stream together."""
    check_streaming(model)
    check_latent_channels(model, vae.config.latent_channels, "the VAE makes")
    if not vae.decodes_causally:
        raise InputError(
            "the VAE's decoder is not causal and cannot decode as a stream; "
            "use the causal LTX-2 VAE (ltx2_causal_vae_0516)"
        )
