"""The least work of each row: bytes that must move and FLOPs that must be done, by stated formulas.

A byte is counted where a tensor has to come from or go to memory however the row is fused: inputs and weights are read once,
outputs are written once, what lives between two steps of one fused kernel is free. One multiply-add is two FLOPs. Letters
as in ``docs/model.md``: T latent frames, S tokens per frame, N = T S, C hidden size, I width of the MixFFN after its gate,
h heads, D head dim, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn

from ..config import DiTConfig, VAEConfig
from ..models.causal_vae import CausalVAE
from ..models.embeddings import TIMESTEP_CHANNELS

FLOAT32_BYTES = 4

# What an operation keeps busy: matrix products with weights, other matrix products, convolutions, memory alone, or the link
# between host and GPU.
Kind = Literal["matmul", "attention", "convolution", "elementwise", "transfer"]


@dataclass(frozen=True)
class Work:
    """Bytes moved and FLOPs done by one step, and how often the row does the step, one after another."""

    bytes: int
    flops: int
    calls: int = 1


@dataclass(frozen=True)
class Part:
    """One operation, or several like it, of a larger step."""

    name: str
    kind: Kind
    work: Work


def total(parts: Iterable[Part]) -> Work:
    """All of them as one step."""
    works = [part.work for part in parts]
    return Work(sum(work.calls * work.bytes for work in works), sum(work.calls * work.flops for work in works))


@dataclass(frozen=True)
class Tokens:
    """A chunk as the transformer sees it: T latent frames of rows x columns tokens, ``item`` bytes per value."""

    frames: int
    rows: int
    columns: int
    item: int

    @property
    def per_frame(self) -> int:
        return self.rows * self.columns

    @property
    def total(self) -> int:
        return self.frames * self.per_frame


def formula(count: Callable[..., object]) -> str:
    """What a function of this module counts, as its docstring says it."""
    return " ".join((count.__doc__ or "").split())


def gdn_work(config: DiTConfig, tokens: Tokens) -> Work:
    """Bytes: q, k, v, write strengths and decays in, output out, memory in and out in float32; rotated copies are free.

    FLOPs: 6 D^2 per token and head (two Grams, one read-out), 2 D^3 per head for each of the 2T - 1 absorbed frames, and
    for the denominator 4 D per token and absorbed frame and 2 D per token read.
    """
    heads, dim = config.num_heads, config.head_dim
    frames, absorbed = tokens.frames, 2 * tokens.frames - 1
    values = tokens.total * heads * (4 * dim + 1) + frames * heads
    memory = 2 * heads * (dim * dim + dim)
    flops = tokens.total * heads * (6 * dim * dim + 2 * dim)
    flops += absorbed * heads * (2 * dim**3 + 4 * dim * tokens.per_frame)
    return Work(values * tokens.item + memory * FLOAT32_BYTES, flops)


def gdn_fused_work(config: DiTConfig, tokens: Tokens) -> Work:
    """:func:`gdn_work` from the projections to the output projection.

    Bytes: the gate and the norm weights beside what the rule reads, D/2 cosines and sines per token in float32; what is
    normed and rotated is free. FLOPs: 16 per value of q and k together for norm, ReLU and turn, 5 per value for the gate.
    """
    rule, values = gdn_work(config, tokens), tokens.total * config.hidden_size
    table = tokens.total * config.head_dim * FLOAT32_BYTES
    return Work(rule.bytes + (values + 2 * config.hidden_size) * tokens.item + table, rule.flops + 21 * values)


def mix_ffn_middle_work(config: DiTConfig, tokens: Tokens) -> Work:
    """Bytes: N 2I in, N I out, 9 weights and a bias per channel. FLOPs: 18 per channel and token; activations are free."""
    inner = config.mlp_width
    values = tokens.total * 3 * inner + 10 * 2 * inner
    return Work(values * tokens.item, tokens.total * 2 * inner * 18)


def norm_modulate_work(config: DiTConfig, tokens: Tokens) -> Work:
    """Bytes: N C in and out, shift and scale. FLOPs: 8 per value (mean, variance, scale, shift)."""
    width = config.hidden_size
    return Work((2 * tokens.total + 2) * width * tokens.item, 8 * tokens.total * width)


def qk_rope_work(config: DiTConfig, tokens: Tokens) -> Work:
    """Bytes: q and k in, plain and rotated q and k out, two norm weights, D/2 cosines and sines per token in float32.

    FLOPs: 8 per value of q and k (norm 4, ReLU 1, turn 3).
    """
    width = config.hidden_size
    table = tokens.total * config.head_dim * FLOAT32_BYTES
    return Work((6 * tokens.total + 2) * width * tokens.item + table, 16 * tokens.total * width)


def output_gate_work(config: DiTConfig, tokens: Tokens) -> Work:
    """Bytes: attention output in float32 and gate in, product out. FLOPs: 5 per value."""
    values = tokens.total * config.hidden_size
    return Work(values * (FLOAT32_BYTES + 2 * tokens.item), 5 * values)


def gated_residual_work(config: DiTConfig, tokens: Tokens) -> Work:
    """Bytes: residual stream and branch in, sum out, one gate row. FLOPs: 2 per value."""
    width = config.hidden_size
    return Work((3 * tokens.total + 1) * width * tokens.item, 2 * tokens.total * width)


def vae_norm_work(
    channels: int, frames: int, rows: int, columns: int, history: int, item: int, border: int = 1
) -> Work:
    """Bytes: the frames and the history in, all of them out with a border of pixels around. FLOPs: 8 per value normed."""
    read = channels * (frames + history) * rows * columns
    written = channels * (frames + history) * (rows + 2 * border) * (columns + 2 * border)
    return Work((read + written) * item, 8 * channels * frames * rows * columns)


def block_parts(
    config: DiTConfig, tokens: Tokens, *, softmax: bool, cached_frames: int, text_tokens: int
) -> tuple[Part, ...]:
    """The operations of one block in their order; FLOPs of elementwise ones, which memory bounds, are not counted but for
    the depthwise convolution."""
    width, inner, count, item = config.hidden_size, config.mlp_width, tokens.total, tokens.item

    def linear(name: str, rows: int, columns: int, streams: int = 0) -> Part:
        """A product of N x rows with rows x columns; ``streams`` N C more are read or written at its end."""
        values = rows * columns + count * (rows + columns + streams * width)
        return Part(name, "matmul", Work(values * item, 2 * count * rows * columns))

    def elementwise(name: str, values: int, flops: int = 0) -> Part:
        return Part(name, "elementwise", Work(values * item, flops))

    attention = softmax_parts if softmax else gdn_parts
    cross = Work((2 * count + 2 * text_tokens) * width * item, 4 * count * text_tokens * width)
    temporal = 3 * width * width + (3 * count + 2 * tokens.per_frame) * width
    return (
        elementwise("norm, scale, shift", 2 * count * width),
        linear("q, k, v, gate", width, 4 * width),
        *attention(config, tokens, cached_frames),
        linear("attention output, residual", width, width, streams=1),
        linear("cross-attention q", width, width),
        Part("cross-attention", "attention", cross),
        linear("cross-attention output, residual", width, width, streams=1),
        elementwise("norm, scale, shift", 2 * count * width),
        linear("MixFFN in, SiLU", width, 2 * inner),
        elementwise("MixFFN depthwise, gate", 20 * inner + 3 * count * inner, 36 * count * inner),
        linear("MixFFN out", inner, width),
        Part("MixFFN temporal, residual", "matmul", Work(temporal * item, 6 * count * width * width)),
    )


def gdn_parts(config: DiTConfig, tokens: Tokens, cached_frames: int = 0) -> tuple[Part, ...]:
    """The gated delta rule from the projections to the output projection, as :func:`gdn_work` counts it, in three steps.

    Bytes: N C for each of k and v; the memory in and out; q, gate and output. Norms, ReLU and turns are free.
    """
    heads, dim, count = config.num_heads, config.head_dim, tokens.total
    stream = count * config.hidden_size * tokens.item
    absorbed = 2 * tokens.frames - 1
    gates = Work(2 * config.hidden_size * heads * tokens.item, 2 * count * config.hidden_size * heads)
    memory = 2 * heads * (dim * dim + dim) * FLOAT32_BYTES
    scan = absorbed * heads * (2 * dim**3 + 4 * dim * tokens.per_frame)
    return (
        Part("GDN strengths, decays", "matmul", gates),
        Part("GDN summaries", "attention", Work(2 * stream, 4 * dim * dim * heads * count)),
        Part("GDN scan", "attention", Work(memory, scan)),
        Part("GDN read, gate", "attention", Work(3 * stream, (2 * dim * dim + 2 * dim) * heads * count)),
    )


def softmax_parts(config: DiTConfig, tokens: Tokens, cached_frames: int) -> tuple[Part, ...]:
    """Softmax attention from the projections to the output projection, q, k, v and gate in, output out, cached keys in."""
    width, count, cached = config.hidden_size, tokens.total, cached_frames * tokens.per_frame
    work = Work((5 * count + 2 * cached) * width * tokens.item, 4 * count * (cached + count) * width)
    return (Part("softmax attention", "attention", work),)


def block_work(config: DiTConfig, tokens: Tokens, *, softmax: bool, cached_frames: int, text_tokens: int) -> Work:
    """One block, with the prompt's keys and values formed before.

    FLOPs: 2 N (10 C^2 + 3 C I) dense (qkvg 4, proj 1, cross-attention 2, temporal 3; MixFFN), 36 N I depthwise, 4 N L C
    cross-attention, and 4 N M C for softmax over M = cached + N tokens, or :func:`gdn_work` and 2 N C h for its gates.

    Bytes: weights once; N (29 C + 6 I), every producer writing and every consumer reading once with elementwise work
    fused into its neighbours; carried frame in and out; 2 L C; 2 cached C, or the GDN memory in and out.
    """
    return total(block_parts(config, tokens, softmax=softmax, cached_frames=cached_frames, text_tokens=text_tokens))


def pass_parts(config: DiTConfig, tokens: Tokens, *, cached_frames: int, text_tokens: int) -> tuple[Part, ...]:
    """The operations of a pass; those that are alike in all blocks are one part with as many calls."""
    width, count, item = config.hidden_size, tokens.total, tokens.item
    channels = config.in_channels + config.source_channels
    time = TIMESTEP_CHANNELS * width + 7 * width * width
    blocks = chain.from_iterable(
        block_parts(
            config, tokens, softmax=config.is_softmax(index), cached_frames=cached_frames, text_tokens=text_tokens
        )
        for index in range(config.depth)
    )

    def linear(name: str, rows: int, columns: int) -> Part:
        return Part(
            name, "matmul", Work((rows * columns + count * (rows + columns)) * item, 2 * count * rows * columns)
        )

    return merged(
        [
            linear("latents in", channels, width),
            Part("timestep", "matmul", Work(time * item, 2 * time)),
            *blocks,
            linear("velocity out", width, config.in_channels),
        ]
    )


def merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Equal parts as one with the sum of their calls, in the order of the first of each."""
    calls: dict[tuple[str, Kind, int, int], int] = {}
    for part in parts:
        key = (part.name, part.kind, part.work.bytes, part.work.flops)
        calls[key] = calls.get(key, 0) + part.work.calls
    return tuple(Part(name, kind, Work(size, flops, number)) for (name, kind, size, flops), number in calls.items())


def pass_work(config: DiTConfig, tokens: Tokens, *, cached_frames: int, text_tokens: int) -> Work:
    """All blocks, and the layers around them: FLOPs 2 N C (channels in and out) and 2 (256 C + 7 C^2) for the timestep.

    Bytes: their weights, latents in and out, N C out of the first layer and into the last.
    """
    return total(pass_parts(config, tokens, cached_frames=cached_frames, text_tokens=text_tokens))


def vae_work(config: VAEConfig, height: int, width: int, num_latents: int, dtype: torch.dtype) -> tuple[Work, Work]:
    """(encode, decode) of ``num_latents`` latent frames in the middle of a stream, counted on tensors without storage.

    FLOPs: 2 x 27 Cin Cout per output position of every convolution. Bytes: every convolution reads its weights and its
    input, two carried frames and a reflected border with it, once and writes its output once.
    """
    vae = CausalVAE(config, device="meta", dtype=dtype)
    factor = config.spatial_factor

    def video(num_frames: int) -> torch.Tensor:
        return torch.empty(1, config.in_channels, num_frames, height, width, device="meta", dtype=dtype)

    def latents(num_frames: int) -> torch.Tensor:
        shape = (1, config.latent_channels, num_frames, height // factor, width // factor)
        return torch.empty(shape, device="meta", dtype=dtype)

    with torch.no_grad():
        _, encoder = vae.encode(video(1))
        _, decoder = vae.decode(latents(1))
        encoding = _count_convolutions(vae, lambda: vae.encode(video(num_latents * config.temporal_factor), encoder))
        decoding = _count_convolutions(vae, lambda: vae.decode(latents(num_latents), decoder))
    return encoding, decoding


def _count_convolutions(network: nn.Module, call: Any) -> Work:
    """Work of the Conv3d layers that ``call`` runs."""
    totals = [0, 0]

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        (x,) = inputs
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        totals[0] += (x.numel() + output.numel() + parameters) * x.element_size()
        totals[1] += 2 * output.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return Work(*totals)
