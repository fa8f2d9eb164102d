"""Frames in, edited frames out.

Ties geometry, VAE, transformer and state together, chunk by chunk. Knows nothing of files, progress bars or ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE, VAEState
from ..models.dit import PromptContext, SanaStreamingDiT
from .chunks import ChunkPlan
from .clip_latents import ClipLatents, LatentsRecorder
from .decode_stream import DecodeStream
from .edited_chunk import EditedChunk
from .frame_stream import Commit, OnProgress, Progress, check_size
from .lanes import Lane, hand_over, to_device
from .noise import ChunkNoise
from .options import StreamOptions
from .passes import GraphedPasses, Passes, default_passes
from .pool import StatePool
from .prompt_encoders import FixedPrompts, PreparedPrompts, PromptEncoder
from .prompt_schedule import FramePrompts, check_frame_prompts, place_at
from .sampler import check_latent_channels, check_streaming, commit_chunk, embedded_context, sample_chunk
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
    "embedded_context",
]


@dataclass(frozen=True)
class _Encoded:
    """Source latents of the next chunk, made from the encoder's state ``before``, and that state after it."""

    chunk: int
    num_frames: int
    before: VAEState
    source: torch.Tensor
    after: VAEState


class EditStream(DecodeStream):
    """Edits a video as it comes. See :class:`FrameStream` for what holds between pushes.

    With ``overlap`` a chunk comes out one chunk later: while it is decoded, the next one is denoised and the one after that
    encoded, if its frames wait already (:meth:`drain` with ``ahead``). The frames are the same bit for bit. Its latents are in
    the state until it counts as given out, so a state saved meanwhile is whole, and goes on with overlap or without. What a
    new prompt changes is the next chunk to be denoised. :meth:`catch_up` brings out what was put off.

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
        device, vae_device: where to compute; by default where the weights are. They may be two GPUs.
        on_progress: called before every network pass and VAE call is queued; raising from it stops the stream.
        overlap: see above; worth its memory on a GPU, where the two directions of the VAE get lanes of their own.
        passes: runs the network; by default as CUDA graphs on a GPU and plainly elsewhere. May be shared by streams of one
            model that come one after another.
        pool: where the transformer's memory comes from; one that outlives the stream serves the next with the same pages.
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
        overlap: bool = False,
        passes: Passes | None = None,
        pool: StatePool | None = None,
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
        self._start(model, vae, text, state, device, vae_device, on_progress, overlap, passes, pool, given, recorder)
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
        overlap: bool = False,
        passes: Passes | None = None,
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
        stream._start(model, vae, text, state, device, vae_device, on_progress, overlap, passes)
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
        overlap: bool,
        passes: Passes | None,
        pool: StatePool | None = None,
        given: ClipLatents | None = None,
        recorder: LatentsRecorder | None = None,
    ) -> None:
        if state.schedule and isinstance(text, FixedPrompts):
            raise ValueError("FixedPrompts has one embedding for every text; a schedule needs PreparedPrompts")
        super().__init__(vae, state, vae_device, on_progress, overlap)
        self.model, self.text = model, text
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self._passes, self._pool = passes or default_passes(model, self.device), pool
        self._model_lane = Lane(self.device)
        self._encoded: _Encoded | None = None
        self._given, self._recorder = given, recorder
        self._noise = self._noise_of(self.options)
        self._context: PromptContext | None = None
        self._memory()
        self._embed_prompt()

    @property
    def uses_graphs(self) -> bool:
        """Whether passes of the network are recorded and replayed."""
        return isinstance(self._passes, GraphedPasses)

    @property
    def _grid(self) -> tuple[int, int]:
        """Latent rows and columns."""
        factor, settings = self.vae.config.spatial_factor, self.state.settings
        return settings.height // factor, settings.width // factor

    def _memory(self) -> DiTState:
        """The transformer's memory, on its device; made for a stream that has none yet."""
        state = self.state
        if state.dit is None:
            state.dit = DiTState.for_plan(self.plan, self.options, self._pool)
        state.dit.to(self.device)
        return state.dit

    def _noise_of(self, options: StreamOptions) -> ChunkNoise:
        return ChunkNoise(options, self.plan.total_latents, (self.model.config.in_channels, *self._grid))

    @property
    def noise_mode(self) -> str:
        """``clip`` or ``chunk``: the mode in force, which for long and live streams is always ``chunk``; ``file`` if given."""
        return self._noise.mode if self._given is None else "file"

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next chunk on; nothing is reset."""
        previous, self.state.prompt = self.state.prompt, prompt
        try:
            self._embed_prompt()
        except BaseException:
            self.state.prompt = previous
            raise
        self.state.prompt_changes += 1

    def set_options(self, options: StreamOptions) -> None:
        """Changes options from the next chunk on; nothing is reset, and a saved state has them.

        Where ``anchor_every`` makes an anchor of the next chunk, it begins with an empty memory; where it had made one of it,
        it does all the same. InputError for options that may not change: see :meth:`StreamOptions.check_change`.
        """
        before, state = self.options, self.state
        before.check_change(options, self.plan)
        noise = self._noise if options.seed == before.seed else self._noise_of(options)
        if options.anchor_every != before.anchor_every:
            self._memory().reserve(self.plan, options)
        state.settings, self._noise = replace(state.settings, options=options), noise

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
        self._encoded = None

    @torch.no_grad()
    def _take(self, num_frames: int, last: bool) -> Iterator[EditedChunk]:
        if not self.overlap:
            yield from self.catch_up()
            self.settle()
            yield from super()._take(num_frames, last)
            return
        decoded = self._decode_next()
        left = self._left(num_frames)
        latents, encoder, commit = self._denoise(self._next_chunk, num_frames, last)
        # A copy to another device belongs to the lane that decodes.
        latents = hand_over(latents, self._model_lane, self._decode_lane)
        if not self._model_lane.is_beside(self._decode_lane):
            self._join(self._decode_lane)
        state = self.state
        commit()
        state.encoder, state.waiting, state.closing = encoder, left, last
        state.undecoded = (*state.undecoded, latents)
        self._encode_ahead()
        if decoded is not None:
            yield from self._give(decoded)
        if last:
            yield from self._end()

    def _process(self, chunk: int, num_frames: int, last: bool) -> tuple[EditedChunk | None, Commit]:
        state = self.state
        latents, encoder, commit_denoised = self._denoise(chunk, num_frames, last)
        latents = hand_over(latents, self._model_lane, self._decode_lane)
        edited, decoder = self._decode(chunk, latents, state.decoder, last)
        # Only the end of a stream is padded, so only there is anything cut off.
        frames = edited[: state.frames_in - state.num_waiting + num_frames - state.frames_out]

        def commit() -> None:
            commit_denoised()
            state.encoder, state.decoder = encoder, decoder
            state.frames_out += len(frames)

        return EditedChunk(chunk, state.frames_out, frames) if len(frames) else None, commit

    def _denoise(self, chunk: int, num_frames: int, last: bool) -> tuple[torch.Tensor, VAEState, Commit]:
        """Edited latents of the chunk of the first ``num_frames`` waiting frames, the encoder after it, and the commit."""
        assert self._context is not None
        options, memory = self.options, self._memory()
        if options.is_anchor(chunk):
            # It was emptied after the chunk before, unless anchors have changed since then.
            memory.forget()
        self._follow_schedule()
        units = self._units(chunk, last)
        encoded = self._take_encoded(chunk, num_frames)
        if encoded is None:
            self._announce(chunk, "encode", 0, units)
            encoded = self._encode(chunk, num_frames)
        noise, source = self._drawn_noise(chunk, memory.num_frames, encoded.source.shape[2]), encoded.source
        if self._given is None:
            source = hand_over(source, self.lane, self._model_lane)
        with self._timed("denoise", self._model_lane):
            latents, written = sample_chunk(
                self.model,
                memory,
                self._context,
                to_device(noise, self.device),
                to_device(source, self.device),
                options,
                carry=options.carries(chunk, last),
                on_pass=lambda number, _: self._announce(chunk, "denoise", 1 + number, units),
                passes=self._passes,
            )
        if written is not None:
            memory.allocate(written)

        def commit() -> None:
            commit_chunk(memory, written, source.shape[2], last)
            if self._recorder is not None:
                self._recorder.add(noise, source, latents)

        return latents, encoded.after, commit

    def _drawn_noise(self, chunk: int, start: int, num_latents: int) -> torch.Tensor:
        if self._given is not None:
            return self._given.noise[:, :, start : start + num_latents]
        return self._noise.draw(chunk, start, num_latents)

    def _encode(self, chunk: int, num_frames: int) -> _Encoded:
        before = self.state.encoder
        if self._given is not None:
            start, factor = self._memory().num_frames, self.vae.config.temporal_factor
            count = -(-self.plan.padded_frames(chunk, num_frames) // factor)
            return _Encoded(chunk, num_frames, before, self._given.source[:, :, start : start + count], {})
        with self._timed("encode", self.lane):
            source, after = self.vae.encode(self._video(chunk, num_frames), before)
        self._join(self.lane)
        return _Encoded(chunk, num_frames, before, source, after)

    def _encode_ahead(self) -> None:
        """Encodes the next chunk if its frames wait. Outside the state: where the stream is stopped it is made again."""
        chunk, state = self._next_chunk, self.state
        needed = self.plan.pixel_frames(chunk)
        if state.closing or state.num_waiting < needed:
            return
        self._announce(chunk, "encode", 0, self._units(chunk, self.plan.is_last(chunk)))
        self._encoded = self._encode(chunk, needed)

    def _take_encoded(self, chunk: int, num_frames: int) -> _Encoded | None:
        """What was encoded ahead, if it is of this chunk and goes on from the encoder's state."""
        found, self._encoded = self._encoded, None
        if found is None or found.before is not self.state.encoder:
            return None
        return found if (found.chunk, found.num_frames) == (chunk, num_frames) else None

    def _embed_prompt(self) -> None:
        """Encodes the prompts in force and forms the keys and values that every chunk reads."""
        state, options = self.state, self.options
        with self._timed("text", self._model_lane), torch.no_grad():
            positive = self.text.encode(state.prompt)
            negative = self.text.encode_negative(state.negative_prompt) if options.guided else None
            self.text.unload()
            self._context = embedded_context(self.model, options, positive, negative, self.device)


def check_networks(model: SanaStreamingDiT, vae: CausalVAE) -> None:
    """InputError when the two cannot stream together."""
    check_streaming(model)
    check_latent_channels(model, vae.config.latent_channels, "the VAE makes")
