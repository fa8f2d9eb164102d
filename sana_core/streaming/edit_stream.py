"""Frames in, edited frames out.

Ties geometry, VAE, transformer and state together, chunk by chunk. Knows nothing of files, progress bars or ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE, VAEState
from ..models.dit import PromptContext, SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from ..models.stream_decoder import DecoderName, StreamDecoder, stream_decoder
from ..video.geometry import pixels_to_image, pixels_to_uint8
from .chunks import ChunkPlan
from .clip_latents import ClipLatents, LatentsRecorder
from .frame_stream import Commit, FrameStream, OnProgress, Progress, check_size
from .noise import ChunkNoise
from .options import StreamOptions
from .prompt_encoders import FixedPrompts, PreparedPrompts, PromptEncoder
from .prompt_schedule import FramePrompts, check_frame_prompts, place_at
from .sampler import check_latent_channels, check_streaming, commit_chunk, prompt_context, sample_chunk
from .state import DiTState, StreamSettings, StreamState

__all__ = [
    "EditStream",
    "EditedChunk",
    "FixedPrompts",
    "PreparedPrompts",
    "Progress",
    "PromptEncoder",
    "check_networks",
    "check_size",
]


@dataclass(frozen=True)
class EditedChunk:
    """Frames that one chunk completed: ``pixels`` [F, 3, H, W], F >= 1, about -1 to 1, not clamped.

    ``first_frame`` counts from the start. With a causal decoder they are the chunk's own frames; with chunk_tile they begin and
    end earlier, a first chunk of three latent frames completes none, and the last one brings the rest.
    """

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
        vae: VAE of either kind: with a causal decoder frames come with their chunk, with chunk_tile three latent frames late
            (see :func:`.stream_decoder`). Every frame taken in comes out all the same.
        text: encodes the prompts.
        prompt: edit instruction. negative_prompt: used only with ``cfg_scale`` above 1.
        schedule: further prompts as (first frame, prompt), each in force from the first chunk that begins at that frame or
            later; one for frame 0 takes the place of ``prompt``. See :class:`.prompt_schedule.PromptSchedule`.
        height, width: size of the edited video in pixels, multiples of the VAE's spatial factor (32), at least 2 of them.
        antialias: whether larger frames are averaged when they are made to fit; the release does not.
        total_frames: length of the clip, None for a live stream. A known length gives the release's chunk plan and noise.
        options: see :class:`StreamOptions`.
        device, vae_device: where to compute; by default where the weights are.
        on_progress: called before every network pass and VAE call; raising from it stops the stream.
        given: noise and source latents of the whole clip, taken instead of drawn noise and of encoded frames, which then
            only count; needs ``total_frames``. recorder: is told noise, source and result of each chunk given out.

    Raises InputError for networks that do not fit together or cannot stream, for sizes that cannot be edited, and for latents
    of another clip.
    """

    def __init__(
        self,
        model: SanaStreamingDiT,
        vae: CausalVAE,
        text: PromptEncoder,
        *,
        prompt: str,
        negative_prompt: str = "",
        schedule: FramePrompts = (),
        height: int = 704,
        width: int = 1280,
        antialias: bool = False,
        total_frames: int | None = None,
        options: StreamOptions | None = None,
        device: torch.device | str | None = None,
        vae_device: torch.device | str | None = None,
        on_progress: OnProgress | None = None,
        given: ClipLatents | None = None,
        recorder: LatentsRecorder | None = None,
    ) -> None:
        check_networks(model, vae)
        check_size(height, width, vae.config.spatial_factor)
        settings = StreamSettings(height, width, total_frames, antialias=antialias)
        settings = settings.with_vae(vae).with_model(model, options or StreamOptions())
        state = StreamState(settings, prompt=prompt, negative_prompt=negative_prompt)
        if schedule:
            check_frame_prompts(schedule, ChunkPlan(total_frames, vae.config.temporal_factor))
            # The first prompt is part of it, so that a reset begins with that one.
            state.schedule = schedule if schedule[0][0] == 0 else ((0, prompt), *schedule)
            state.prompt, state.schedule_place = state.schedule[0][1], 1
        self._start(model, vae, text, state, device, vae_device, on_progress, given, recorder)
        if given is not None:
            if self.plan.total_latents is None:
                raise InputError("given latents are those of a whole clip; give its length as total_frames")
            given.check(model.config.in_channels, self.plan.total_latents, self._grid)

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
        given: ClipLatents | None = None,
        recorder: LatentsRecorder | None = None,
    ) -> None:
        if state.schedule and isinstance(text, FixedPrompts):
            raise ValueError("FixedPrompts has one embedding for every text; a schedule needs PreparedPrompts")
        super().__init__(vae, state, vae_device, on_progress)
        self._decoder: StreamDecoder = stream_decoder(vae)
        self.model, self.text = model, text
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self._given, self._recorder = given, recorder
        assert state.settings.options is not None
        frame_shape = (model.config.in_channels, *self._grid)
        self._noise = ChunkNoise(state.settings.options, self.plan.total_latents, frame_shape)
        self._context: PromptContext | None = None
        self._memory()
        self._embed_prompt()

    @property
    def _grid(self) -> tuple[int, int]:
        """Latent rows and columns."""
        factor, settings = self.vae.config.spatial_factor, self.state.settings
        return settings.height // factor, settings.width // factor

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
        """``clip`` or ``chunk``: the mode in force, which for long and live streams is always ``chunk``; ``file`` if given."""
        return self._noise.mode if self._given is None else "file"

    @property
    def decoder_name(self) -> DecoderName:
        """``causal`` or ``chunk_tile``: how this VAE's latents are decoded."""
        return self._decoder.name

    @property
    def frames_held(self) -> int:
        """Frames of finished chunks that come out with the next ones: none with a causal decoder, 16 or so with chunk_tile."""
        return self._decoder.held_frames(self.state.decoder)

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next chunk on; nothing is reset."""
        previous, self.state.prompt = self.state.prompt, prompt
        try:
            self._embed_prompt()
        except BaseException:
            self.state.prompt = previous
            raise
        self.state.prompt_changes += 1

    def _follow_schedule(self) -> None:
        """Puts the prompt in force that the next chunk asks for."""
        state = self.state
        place = place_at(state.schedule, state.frames_in - state.num_waiting)
        if place > state.schedule_place:
            prompt = state.schedule[place - 1][1]
            if prompt != state.prompt:
                self.set_prompt(prompt)
            state.schedule_place = place

    def reset(self) -> None:
        """Back to the first frame, with the prompt in force or, where there is a schedule, the first of that.

        Frames that were waiting are dropped.
        """
        old = self.state
        self.state = StreamState(
            old.settings, prompt=old.prompt, negative_prompt=old.negative_prompt, schedule=old.schedule
        )

    def _process(
        self, video: torch.Tensor, chunk: int, num_frames: int, last: bool
    ) -> tuple[EditedChunk | None, Commit]:
        state, options = self.state, self.state.settings.options
        assert options is not None
        assert self._context is not None
        memory = self._memory()
        self._follow_schedule()
        carry = options.carries(chunk, last)
        units = options.passes(carry) + 2
        self._announce(chunk, "encode", 0, units)
        with self._timed("encode"):
            noise, source, encoder = self._inputs(video, chunk, memory.num_frames)
        with self._timed("denoise"):
            latents, written = sample_chunk(
                self.model,
                memory,
                self._context,
                noise,
                source.to(self.device),
                options,
                carry=carry,
                on_pass=lambda number, _: self._announce(chunk, "denoise", 1 + number, units),
            )
        self._announce(chunk, "decode", units - 1, units)
        with self._timed("decode"):
            edited, decoder = self._decode(latents.to(self.vae_device), last)
        # Only the end of a stream is padded, so only there is anything cut off.
        frames = edited[: state.frames_in - state.num_waiting + num_frames - state.frames_out]
        if written is not None:
            memory.allocate(written)

        def commit() -> None:
            commit_chunk(memory, written, source.shape[2], last)
            state.encoder, state.decoder = encoder, decoder
            state.frames_out += len(frames)
            if self._recorder is not None:
                self._recorder.add(noise, source, latents)

        return EditedChunk(chunk, state.frames_out, frames) if len(frames) else None, commit

    def _inputs(self, video: torch.Tensor, chunk: int, start: int) -> tuple[torch.Tensor, torch.Tensor, VAEState]:
        """Noise and source latents of a chunk whose first latent frame is ``start``, and the encoder's new state."""
        if self._given is not None:
            part = slice(start, start + -(-video.shape[2] // self.vae.config.temporal_factor))
            return self._given.noise[:, :, part], self._given.source[:, :, part], {}
        source, encoder = self.vae.encode(video, self.state.encoder)
        return self._noise.draw(chunk, start, source.shape[2]), source, encoder

    def _decode(self, latents: torch.Tensor, last: bool) -> tuple[torch.Tensor, VAEState]:
        """The frames [F, 3, H, W] that a chunk's latents complete, and the decoder's new state."""
        pixels, after = self._decoder.decode(latents, self.state.decoder)
        if last and (rest := self._decoder.flush(after)) is not None:
            pixels, after = torch.cat([pixels, rest], 2), {}
        return pixels[0].movedim(1, 0), after

    def _held_back(self) -> tuple[EditedChunk | None, Commit]:
        state, options, chunk = self.state, self.state.settings.options, self._next_chunk - 1
        assert options is not None
        if not self.frames_held:
            return super()._held_back()
        units = options.passes(carry=True) + 2
        self._announce(chunk, "decode", units - 1, units)
        with self._timed("decode"):
            rest = self._decoder.flush(state.decoder)
        assert rest is not None
        frames = rest[0].movedim(1, 0)

        def commit() -> None:
            state.decoder = {}
            state.frames_out += len(frames)

        return EditedChunk(chunk, state.frames_out, frames), commit

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
