"""Everything that passes from chunk to chunk, and nothing else.

``DiTState`` holds the transformer's part, ``StreamState`` the whole of a stream: tensors and counters, and nothing of how they
are computed. A state is never kept on a module: many streams share one set of weights.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..models.causal_vae import CausalVAE, VAEState
from ..models.dit import SanaStreamingDiT
from ..models.stream_decoder import stream_decoder
from .dit_state import DiTState
from .options import StreamOptions

__all__ = ["DiTState", "StreamSettings", "StreamState"]

FORMAT = "sana_streaming_state"
FORMAT_VERSION = 1
# Of a stream whose last chunks are not decoded yet, which programs that know version 1 alone would lose.
UNDECODED_VERSION = 2
UNDECODED = "undecoded."


@dataclass(frozen=True)
class StreamSettings:
    """What may not change while a stream runs, but for some of the options. Empty fields are not decided yet.

    antialias: how frames of another size are made smaller (:func:`..video.geometry.resize_and_crop`).
    height, width: size of the edited video in pixels. total_frames: length of the clip in pixel frames, None if unknown.
    vae, model: fingerprints of the weights. vae_dtype, model_dtype: what they run in. decoder: ``causal`` or ``chunk_tile``.
    """

    height: int
    width: int
    total_frames: int | None
    vae: str = ""
    vae_dtype: str = ""
    model: str = ""
    model_dtype: str = ""
    options: StreamOptions | None = None
    decoder: str = ""
    antialias: bool = False

    def with_vae(self, vae: CausalVAE) -> StreamSettings:
        decoder = stream_decoder(vae).name
        return replace(self, vae=vae.fingerprint, vae_dtype=_dtype_name(vae.dtype), decoder=decoder)

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
        settings: what does not change, and the options in force.
        dit: memory of the transformer; None before its first chunk.
        encoder, decoder: caches of the VAE's two directions; empty at the start.
        undecoded: latents [1, C, T, h, w] of chunks that were denoised and not given out, in order: see `EditStream`'s overlap.
        closing: the last chunk was denoised; nothing more can be pushed, and what is undecoded or held back comes out.
        waiting: frames taken in that do not fill a chunk yet [n, 3, H, W] in [-1, 1], in the VAE's dtype.
        frames_in, frames_out: pixel frames taken in and given out so far.
        prompt, negative_prompt: texts in force.
        prompt_changes: how often the prompt has changed since the start.
        schedule, schedule_place: prompts to come by themselves, (first frame, prompt) in order of time, and how many of them
            have come.
        finished: the end was reached; nothing more can be pushed.
        source: what the frames come from, for whoever feeds the stream; the stream itself does not read it.
    """

    settings: StreamSettings
    dit: DiTState | None = None
    encoder: VAEState = field(default_factory=dict)
    decoder: VAEState = field(default_factory=dict)
    undecoded: tuple[torch.Tensor, ...] = ()
    closing: bool = False
    waiting: torch.Tensor | None = None
    frames_in: int = 0
    frames_out: int = 0
    prompt: str = ""
    negative_prompt: str = ""
    prompt_changes: int = 0
    schedule: tuple[tuple[int, str], ...] = ()
    schedule_place: int = 0
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
        named |= {f"{UNDECODED}{index}": value for index, value in enumerate(self.undecoded)}
        if self.waiting is not None and self.num_waiting:
            named["waiting"] = self.waiting
        return named

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors. After the first chunk only waiting frames, and an anchor's emptiness, make a difference."""
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
        self.undecoded = tuple(latents.to(device) for latents in self.undecoded)
        self.waiting = None if self.waiting is None else self.waiting.to(device)

    def clone(self, memory: bool = True) -> StreamState:
        """A copy that goes on by itself. It shares what is replaced but never written to: the VAE's caches, the frames.

        ``memory=False`` shares the transformer's memory too, for a copy that only encodes or decodes.
        """
        return replace(self, dit=self.dit and (self.dit.clone() if memory else copy.copy(self.dit)))

    def release(self) -> None:
        """Lets go of every tensor; the state cannot go on after this."""
        self.dit, self.waiting = None, None
        self.encoder, self.decoder, self.undecoded = {}, {}, ()
        self.finished = True

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; an existing file is replaced only when the new one is whole."""
        from ..weights.safetensors_file import write_safetensors

        path = Path(path)
        counters = {
            "version": UNDECODED_VERSION if self.undecoded else FORMAT_VERSION,
            "settings": self.settings.to_dict(),
            "dit": self.dit and self.dit.counters(),
            "schedule": self.schedule,
            "schedule_place": self.schedule_place,
            "closing": self.closing,
            **{name: getattr(self, name) for name in _COUNTERS},
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as stream:
                write_safetensors(stream, self.tensors(), {FORMAT: json.dumps(counters)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> StreamState:
        """Reads what :meth:`save` wrote. InputError when the file is missing, damaged, or something else."""
        from ..weights.checkpoint import read_safetensors

        if not Path(path).is_file():
            raise InputError(f"{path} is not there or not a file; give a stream state that was saved")
        tensors, metadata = read_safetensors(path)
        if FORMAT not in metadata:
            raise InputError(f"{path} is not a saved stream state; give a stream state that was saved")
        try:
            return cls._from_parts(json.loads(metadata[FORMAT]), tensors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is a damaged stream state ({error!r}); start the stream anew") from error

    @classmethod
    def _from_parts(cls, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> StreamState:
        version = counters.get("version")
        if version not in (FORMAT_VERSION, UNDECODED_VERSION):
            raise InputError(
                f"the stream state is of format {version}, this version reads up to {UNDECODED_VERSION}; "
                "update the package, or start the stream anew"
            )
        return cls(
            settings=StreamSettings.from_dict(counters["settings"]),
            dit=counters["dit"] and DiTState.restore(counters["dit"], _under("dit.", tensors)),
            encoder=_under("encoder.", tensors),
            decoder=_under("decoder.", tensors),
            undecoded=tuple(tensors[name] for name in sorted(tensors) if name.startswith(UNDECODED)),
            closing=bool(counters.get("closing", False)),
            waiting=tensors.get("waiting"),
            # A file without them is of a stream without a schedule.
            schedule=tuple((int(frame), str(prompt)) for frame, prompt in counters.get("schedule", ())),
            schedule_place=int(counters.get("schedule_place", 0)),
            **{name: counters[name] for name in _COUNTERS},
        )

    def adopt(self, settings: StreamSettings) -> None:
        """Takes over settings that decide what was still open; InputError that names the first contradiction."""
        for name, what, remedy in _DIFFERENCES:
            mine, wanted = getattr(self.settings, name), getattr(settings, name)
            undecided = (mine in ("", 0) and mine is not False) or (mine is None and name == "options")
            if mine != wanted and not undecided:
                if isinstance(mine, StreamOptions):
                    what, mine, wanted = mine.first_difference(wanted)
                raise InputError(f"the stream state was made with {what} {mine}, not {wanted}; {remedy}")
        self.settings = settings


_COUNTERS = ("frames_in", "frames_out", "prompt", "negative_prompt", "prompt_changes", "finished", "source")
_DIFFERENCES = (
    ("model", "the transformer of fingerprint", "load the model that the stream was started with"),
    ("vae", "the VAE of fingerprint", "load the VAE that the stream was started with"),
    ("decoder", "the decoder", "load the VAE with the decoder that the stream was started with"),
    ("height", "height", "use the size that the stream was started with"),
    ("width", "width", "use the size that the stream was started with"),
    ("model_dtype", "a transformer in", "use the dtype that the stream was started with"),
    ("vae_dtype", "a VAE in", "use the dtype that the stream was started with"),
    ("total_frames", "a clip length of", "give the length that the stream was started with"),
    ("antialias", "antialias", "keep it as it was"),
    ("options", "options", "keep it as it was"),
)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
