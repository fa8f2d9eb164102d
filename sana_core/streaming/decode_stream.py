"""Latents of chunks to frames that are given out: at once, or put off while the next chunk is denoised.

Knows the VAE's decoder, the state and the lanes of the VAE's device. How latents come about is up to the subclass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..models.causal_vae import CausalVAE, VAEState
from ..models.stream_decoder import DecoderName, StreamDecoder, stream_decoder
from .edited_chunk import EditedChunk
from .frame_stream import Commit, FrameStream, OnProgress
from .lanes import Lane, Mark
from .options import StreamOptions
from .state import StreamState


@dataclass
class _Decoded:
    """The oldest undecoded chunk of ``state`` on its way out: what it completes, None for nothing, and the decoder after it.

    It has been taken once the caller has asked for more.
    """

    state: StreamState
    chunk: EditedChunk | None
    decoder: VAEState
    done: Mark
    taken: bool = False

    @property
    def num_frames(self) -> int:
        return 0 if self.chunk is None else len(self.chunk.pixels)

    @property
    def is_out(self) -> bool:
        return self.taken or (self.chunk is not None and self.chunk.is_deferred)


class DecodeStream(FrameStream[EditedChunk]):
    """Gives out the frames of latents that the state holds as ``undecoded``, oldest first.

    A chunk stays there until it counts as given out, so what is decoded and not counted can always be decoded again. With
    ``overlap`` decoding has, on CUDA, a lane of its own, and so has the way to the host.
    """

    def __init__(
        self,
        vae: CausalVAE,
        state: StreamState,
        device: torch.device | str | None,
        on_progress: OnProgress | None,
        overlap: bool,
    ) -> None:
        super().__init__(vae, state, device, on_progress, beside=overlap)
        self.overlap = overlap
        self._decoder: StreamDecoder = stream_decoder(vae)
        self._decode_lane = Lane.side(self.vae_device, "decode") if overlap else Lane(self.vae_device)
        self._copy_lane = Lane.side(self.vae_device, "copy") if overlap else Lane(self.vae_device)
        self._decoded: _Decoded | None = None

    @property
    def decoder_name(self) -> DecoderName:
        """``causal`` or ``chunk_tile``: how this VAE's latents are decoded."""
        return self._decoder.name

    @property
    def options(self) -> StreamOptions:
        """In force."""
        options = self.state.settings.options
        assert options is not None
        return options

    @property
    def frames_held(self) -> int:
        """Frames of finished chunks that come out with the next ones: 16 or so with chunk_tile, and what overlap puts off."""
        state = self.state
        if state.undecoded:
            return state.frames_in - state.num_waiting - state.frames_out
        return self._decoder.held_frames(state.decoder)

    @torch.no_grad()
    def catch_up(self) -> Iterator[EditedChunk]:
        """Gives out the chunks that were denoised and put off by overlap; the stream can go on after that."""
        while (decoded := self._decode_next()) is not None:
            yield from self._give(decoded)

    def settle(self) -> None:
        """Waits for whoever still works on the last chunk given out (:meth:`EditedChunk.defer`), and counts it.

        Raises what went wrong there; the chunk then comes again.
        """
        decoded = self._in_hand()
        if decoded is None:
            return
        if decoded.chunk is not None:
            try:
                decoded.chunk.wait()
            except Exception:
                self._decoded = None
                raise
        state, self._decoded = self.state, None
        state.decoder, state.undecoded = decoded.decoder, state.undecoded[1:]
        state.frames_out += decoded.num_frames

    def _end(self) -> Iterator[EditedChunk]:
        yield from self.catch_up()
        self.settle()
        yield from super()._end()

    def _received(self, result: EditedChunk) -> None:
        result.wait()

    def _units(self, chunk: int, last: bool) -> int:
        """Network passes and VAE calls for a chunk."""
        return self.options.passes(self.options.carries(chunk, last)) + 2

    def _decode(self, chunk: int, latents: torch.Tensor, before: VAEState, last: bool) -> tuple[torch.Tensor, VAEState]:
        """The frames [F, 3, H, W] that a chunk's latents complete, and the decoder's state after them."""
        units = self._units(chunk, last)
        self._announce(chunk, "decode", units - 1, units)
        with self._timed("decode", self._decode_lane):
            pixels, after = self._decoder.decode(latents, before)
            if last and (rest := self._decoder.flush(after)) is not None:
                pixels, after = torch.cat([pixels, rest], 2), {}
        return pixels[0].movedim(1, 0), after

    def _in_hand(self) -> _Decoded | None:
        """What was decoded and is out, but not counted yet. What nobody took is forgotten: it comes again."""
        decoded = self._decoded
        if decoded is not None and (decoded.state is not self.state or not decoded.is_out):
            self._decoded = decoded = None
        return decoded

    def _decode_next(self) -> _Decoded | None:
        """Decodes the oldest chunk that is not out; None where there is none."""
        state, out = self.state, self._in_hand()
        waiting = state.undecoded[1:] if out else state.undecoded
        if not waiting:
            return None
        consumed = state.frames_in - state.num_waiting
        chunk = self.plan.chunk_at(consumed - 1) - len(waiting) + 1
        first_frame = state.frames_out + (out.num_frames if out else 0)
        before = out.decoder if out else state.decoder
        edited, after = self._decode(chunk, waiting[0], before, state.closing and len(waiting) == 1)
        frames = edited[: consumed - first_frame]
        edited_chunk = EditedChunk(chunk, first_frame, frames, self._copy_lane) if len(frames) else None
        return _Decoded(state, edited_chunk, after, self._decode_lane.mark())

    def _give(self, decoded: _Decoded) -> Iterator[EditedChunk]:
        """Gives out a chunk, after the one before it has been counted."""
        self.settle()
        decoded.done.wait()
        self._decoded = decoded
        if decoded.chunk is not None:
            # The caller works on the current lane.
            Lane(self.vae_device).uses(decoded.chunk.pixels)
            yield decoded.chunk
        decoded.taken = True
        if decoded.chunk is None or not decoded.chunk.is_deferred:
            self.settle()

    def _held_back(self) -> tuple[EditedChunk | None, Commit]:
        state, chunk = self.state, self._next_chunk - 1
        if not self.frames_held:
            return super()._held_back()
        units = self._units(chunk, last=False)
        self._announce(chunk, "decode", units - 1, units)
        with self._timed("decode", self._decode_lane):
            rest = self._decoder.flush(state.decoder)
        assert rest is not None
        frames = rest[0].movedim(1, 0)

        def commit() -> None:
            state.decoder = {}
            state.frames_out += len(frames)

        # Few frames at the very end: not worth a lane of their own.
        self._join(self._decode_lane)
        return EditedChunk(chunk, state.frames_out, frames), commit
