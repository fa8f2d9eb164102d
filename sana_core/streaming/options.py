"""Everything that decides the numbers of a stream besides weights, prompt and frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError

NoiseMode = Literal["clip", "chunk"]
# Beyond this length the noise of a whole clip is no longer drawn at once.
MAX_CLIP_NOISE_LATENTS = 1024
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is sampled. The defaults are the release's; the last four exist for parity with it.

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

    def __post_init__(self) -> None:
        for name in ("steps", "seed", "num_cached_blocks"):
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

    @property
    def guided(self) -> bool:
        return self.cfg_scale > 1

    def passes(self, carry: bool) -> int:
        """Network calls for a chunk, which may be followed by another (``carry``)."""
        return self.steps + (1 if carry and not self.reuse_last_step else 0)

    def noise_mode(self, total_latents: int | None) -> NoiseMode:
        """The noise mode in force for a stream of this length."""
        if total_latents is None or total_latents > MAX_CLIP_NOISE_LATENTS:
            return "chunk"
        return self.noise

    def first_difference(self, other: StreamOptions) -> tuple[str, Any, Any]:
        """(name, own value, other value) of the first option in which the two differ."""
        pairs = zip(self.to_dict().items(), other.to_dict().items(), strict=True)
        return next((name, mine, theirs) for (name, mine), (_, theirs) in pairs if mine != theirs)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamOptions:
        return cls(**values)
