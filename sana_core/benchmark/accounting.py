"""Every operation of one chunk, and how long a card would take for it: by data-sheet peaks, and by a share of them.

Nothing here was measured on a card. Bytes are those of a well-fused implementation, every producer writing once and every
consumer reading once; an operation takes the longer of moving its bytes and doing its FLOPs, and operations come one after
another. What is left out takes less than a thousandth of the total: the sampler's step, noise, the sums of a pass that go
into the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ..streaming.chunks import CHUNK_LATENTS
from ..streaming.options import StreamOptions
from .counts import Kind, Part, Tokens, Work, pass_parts
from .sizes import CACHED_FRAMES, Size
from .vae_parts import decode_parts, encode_parts

BF16_BYTES = 2


@dataclass(frozen=True)
class Card:
    """Data-sheet peaks, dense: FLOP/s in bfloat16 with float32 sums, operations/s in the fastest 8-bit format, bytes/s of
    memory, bytes/s of the link to the host in one direction."""

    name: str
    bf16: float
    eight_bit: float
    memory: float
    link: float


CARDS = (
    Card("RTX 4090", 165e12, 661e12, 1.01e12, 31.5e9),
    Card("RTX 5090", 209.5e12, 838e12, 1.79e12, 63e9),
    Card("H100 SXM", 989e12, 1979e12, 3.35e12, 63e9),
)


@dataclass(frozen=True)
class Shares:
    """What of the peaks is reached: of FLOP/s by kind of operation, of bytes/s by all of them."""

    bytes: float
    flops: Mapping[Kind, float] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, kind: Kind) -> float:
        return self.flops.get(kind, 1.0)


PEAK = Shares(1.0)
# Assumed: what good kernels reach at these shapes on such cards, not what ours were seen to reach.
REALISTIC = Shares(0.8, MappingProxyType({"matmul": 0.65, "attention": 0.5, "convolution": 0.6}))


@dataclass(frozen=True)
class Stage:
    """A part of a chunk's way; ``parts`` are of all of its passes."""

    name: str
    parts: tuple[Part, ...]

    def seconds(self, card: Card, shares: Shares, *, eight_bit: bool = False) -> float:
        return sum(part_seconds(part, card, shares, eight_bit=eight_bit) for part in self.parts)


def part_seconds(part: Part, card: Card, shares: Shares, *, eight_bit: bool = False) -> float:
    """``eight_bit``: products with weights at the card's 8-bit rate, their bytes as in bfloat16."""
    work = part.work
    if part.kind == "transfer":
        return work.calls * work.bytes / (card.link * shares.bytes)
    rate = card.eight_bit if eight_bit and part.kind == "matmul" else card.bf16
    return work.calls * max(work.bytes / (card.memory * shares.bytes), work.flops / (rate * shares.of(part.kind)))


def chunk_stages(size: Size) -> tuple[Stage, ...]:
    """A chunk in mid-stream in bfloat16, from frames in the host's memory to frames in the host's memory."""
    config, vae = size.dit, size.vae
    tokens = Tokens(CHUNK_LATENTS, *size.grid, BF16_BYTES)
    one = pass_parts(config, tokens, cached_frames=CACHED_FRAMES, text_tokens=config.max_text_tokens)
    passes = StreamOptions().passes(carry=True)
    sizes = (vae, size.height, size.width, CHUNK_LATENTS, BF16_BYTES)
    pixels = 3 * CHUNK_LATENTS * vae.temporal_factor * size.height * size.width
    convert = Work(pixels * (1 + BF16_BYTES), 0)
    return (
        Stage(
            "frames in", (Part("host to GPU", "transfer", Work(pixels, 0)), Part("pixels in", "elementwise", convert))
        ),
        Stage("encode", encode_parts(*sizes)),
        Stage("DiT", tuple(replace(part, work=replace(part.work, calls=passes * part.work.calls)) for part in one)),
        Stage("decode", decode_parts(*sizes)),
        Stage(
            "frames out", (Part("pixels out", "elementwise", convert), Part("GPU to host", "transfer", Work(pixels, 0)))
        ),
    )


@dataclass(frozen=True)
class Projection:
    """Frames per second of a card: the transformer alone, and all stages one after another."""

    card: Card
    stage_seconds: Mapping[str, float]
    frames: int

    @property
    def seconds(self) -> float:
        return sum(self.stage_seconds.values())

    @property
    def dit_rate(self) -> float:
        return self.frames / self.stage_seconds["DiT"]

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


def project(card: Card, shares: Shares, size: Size, *, eight_bit: bool = False) -> Projection:
    """What ``card`` would take for a chunk of ``size`` with these shares of its peaks."""
    seconds = {stage.name: stage.seconds(card, shares, eight_bit=eight_bit) for stage in chunk_stages(size)}
    return Projection(card, seconds, CHUNK_LATENTS * size.vae.temporal_factor)
