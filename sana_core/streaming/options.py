"""Everything that decides the numbers of a stream besides weights, prompt and frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from .chunks import CHUNK_LATENTS, LIVE_FIRST_LATENTS, ChunkPlan

NoiseMode = Literal["clip", "chunk"]
# Beyond this length the noise of a whole clip is no longer drawn at once.
MAX_CLIP_NOISE_LATENTS = 1024
MAX_SEED = 2**64 - 1
# What a stream's memory, prompt and noise are made with once it has begun.
_FIXED = ("num_cached_blocks", "sink_token", "cfg_mask", "noise", "noise_device")


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is sampled. The defaults are the release's.

    ``flow_shift`` to ``reuse_last_step`` exist for parity with it; what follows them steers long streams and is off at 0.

    Attributes:
        steps: denoising passes per chunk; 4 and 2 are what the network was distilled for.
        cfg_scale: guidance; 1 or less is none, more runs the negative prompt beside the positive one.
        seed: 0 to 2**64 - 1.
        noise: ``clip`` draws noise for the whole clip at once as the release does; ``chunk`` draws it per chunk. Streams of
            unknown length, and of more than 1024 latent frames, always use ``chunk``.
        noise_device: generator of the noise; ``cpu`` is the same everywhere, ``cuda`` is the release's.
        num_cached_blocks: chunks that softmax blocks read back, sink included; 0 or less keeps the full history.
        sink_token: keep the first chunk in the window for ever.
        flow_shift: for step counts other than 4 and 2.
        round_latents: round latents to bfloat16 after each step.
        cfg_mask: ``own`` masks each prompt by itself, ``positive`` masks both by the positive prompt.
        reuse_last_step: carry the state of the last denoising pass and save the pass at t = 0.
        anchor_every: against drift, forget all that the transformer carries before every chunk whose number is a multiple
            of this, and count positions from 0 again; the VAE goes on, so time has no seam.
        start_step: begin at this step of the time grid with the source, noised to that step, instead of noise alone: the
            edit stays closer to the source and takes that many passes less. Below ``steps``.
        max_sink_distance: latent frames from the first of the sink to the last of a chunk, both included, beyond which the
            sink is brought nearer by turning its cached keys; the network was trained up to 122.
    """

    steps: int = 4
    cfg_scale: float = 1.0
    seed: int = 0
    noise: NoiseMode = "clip"
    noise_device: str = "cpu"
    num_cached_blocks: int = 2
    sink_token: bool = True
    flow_shift: float = 8.0
    round_latents: bool = False
    cfg_mask: Literal["own", "positive"] = "own"
    reuse_last_step: bool = False
    anchor_every: int = 0
    start_step: int = 0
    max_sink_distance: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "seed", "num_cached_blocks", "anchor_every", "start_step", "max_sink_distance"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name} {getattr(self, name)!r} is not a whole number; use one")
        if not 0 <= self.cfg_scale < math.inf:
            raise InputError(f"cfg_scale {self.cfg_scale} is out of range; use 1 for no guidance, or more")
        if self.steps < 1:
            raise InputError(f"steps {self.steps} is too few; use 4 (default), 2, or another count from 1 on")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed {self.seed} is out of range; use 0 to {MAX_SEED}")
        if self.noise not in ("clip", "chunk"):
            raise InputError(f"noise {self.noise!r} is unknown; use clip or chunk")
        if self.cfg_mask not in ("own", "positive"):
            raise InputError(f"cfg_mask {self.cfg_mask!r} is unknown; use own or positive")
        if not self.flow_shift > 0:
            raise InputError(f"flow_shift {self.flow_shift} must be above 0; the release uses 8")
        self._check_steering()

    def _check_steering(self) -> None:
        if self.anchor_every < 0:
            raise InputError(f"anchor_every {self.anchor_every} is below 0; use a number of chunks, or 0 for never")
        if not 0 <= self.start_step < self.steps:
            raise InputError(
                f"start_step {self.start_step} is not on a grid of {self.steps} steps; "
                f"use 0 (begin from noise, the default) to {self.steps - 1}, or more steps"
            )
        if not self.max_sink_distance:
            return
        if not self.sink_token or self.num_cached_blocks < 1:
            raise InputError(
                f"max_sink_distance {self.max_sink_distance} moves the sink of a window, and there is none; "
                "use it with sink_token on and num_cached_blocks 1 or more, or leave it at 0"
            )
        # Nearer than this the sink would stand where the chunks of the window are.
        nearest = LIVE_FIRST_LATENTS + CHUNK_LATENTS * self.num_cached_blocks
        if self.max_sink_distance < nearest:
            raise InputError(
                f"max_sink_distance {self.max_sink_distance} is too near for num_cached_blocks {self.num_cached_blocks}; "
                f"use {nearest} or more (the network was trained up to 122), or 0 for no limit"
            )

    @property
    def guided(self) -> bool:
        return self.cfg_scale > 1

    def passes(self, carry: bool) -> int:
        """Network calls for a chunk, whose memory may be read by another (``carry``)."""
        return self.steps - self.start_step + (1 if carry and not self.reuse_last_step else 0)

    def carries(self, chunk: int, last: bool) -> bool:
        """Whether what the transformer keeps of ``chunk`` is read again: not after the last, nor before an anchor."""
        return not last and not self.is_anchor(chunk + 1)

    def is_anchor(self, chunk: int) -> bool:
        """Whether ``chunk`` begins with an empty memory and positions from 0, though it is not the first."""
        return self.anchor_every > 0 and chunk > 0 and chunk % self.anchor_every == 0

    def noise_mode(self, total_latents: int | None) -> NoiseMode:
        """The noise mode in force for a stream of this length."""
        if total_latents is None or total_latents > MAX_CLIP_NOISE_LATENTS:
            return "chunk"
        return self.noise

    def check_change(self, changed: StreamOptions, plan: ChunkPlan) -> None:
        """InputError unless a stream of ``plan`` that runs with these options can go on with ``changed``.

        It cannot with others of the window, of masks and of noise, nor with guidance where there was none or the other way
        round; nor, where the noise of the whole clip is drawn at once, with another seed.
        """
        fixed = list(_FIXED)
        if self.noise_mode(plan.total_latents) == "clip":
            fixed.append("seed")
        if self.guided != changed.guided:
            fixed.append("cfg_scale")
        for name in fixed:
            if (mine := getattr(self, name)) != (wanted := getattr(changed, name)):
                raise InputError(
                    f"{name} cannot change from {mine} to {wanted} while a stream runs, which is made with it; keep it, or "
                    "start a new stream"
                )
        plan.cache_capacity(changed.num_cached_blocks, changed.sink_token, changed.anchor_every)

    def first_difference(self, other: StreamOptions) -> tuple[str, Any, Any]:
        """(name, own value, other value) of the first option in which the two differ."""
        pairs = zip(self.to_dict().items(), other.to_dict().items(), strict=True)
        return next((name, mine, theirs) for (name, mine), (_, theirs) in pairs if mine != theirs)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamOptions:
        return cls(**values)
