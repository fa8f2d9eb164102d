"""Rows of whole networks: one block of each kind, one pass, one chunk, and the VAE on 24 frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ...kernels.gdn import Implementation
from ..config import DiTConfig
from ..models.causal_vae import CausalVAE
from ..models.dit import BlockState, PromptContext, SanaStreamingDiT
from ..streaming.chunks import CHUNK_LATENTS, LIVE_FIRST_LATENTS, ChunkPlan
from ..streaming.dit_state import DiTState
from ..streaming.options import StreamOptions
from ..streaming.passes import PLAIN_CALLS, GraphedPasses, Passes
from ..streaming.sampler import commit_chunk, sample_chunk
from . import counts
from .operators import fast_implementations, gdn_memory
from .registry import COMPILED, ON_GPU_ONLY, RELEASED, Case, Row, Variant, compiled
from .released import released_model, shared_copy
from .sizes import CACHED_FRAMES, Bench, Size

GRAPH = "graph"
BLOCKS, NANO = ("256x448",), ("160x256",)
Call = Callable[[SanaStreamingDiT], object]


def block_state(bench: Bench, size: Size, softmax: bool, frames: int) -> BlockState:
    """What a block carries; a softmax block has keys and values of ``frames`` latent frames."""
    config, tokens = size.dit, size.tokens(bench.dtype).per_frame
    frame = bench.random(1, 1, tokens, config.hidden_size)
    if not softmax:
        return BlockState(gdn_memory(bench, config), frame)
    keys = bench.random(1, config.num_heads, frames * tokens, config.head_dim)
    return BlockState((keys, keys.roll(1, -1)), frame)


def states(bench: Bench, size: Size, frames: int) -> list[BlockState]:
    """What all blocks carry."""
    config = size.dit
    return [block_state(bench, size, config.is_softmax(index), frames) for index in range(config.depth)]


def prompt(bench: Bench, config: DiTConfig) -> PromptContext:
    """Keys and values of a prompt of full length, the same for every block."""
    keys = bench.random(1, config.num_heads, config.max_text_tokens, config.head_dim)
    return PromptContext(((keys, keys.roll(1, -1)),) * config.depth, None)


def latents(bench: Bench, size: Size, channels: int, frames: int = CHUNK_LATENTS) -> torch.Tensor:
    return bench.random(1, channels, frames, *size.grid)


def model_variants(bench: Bench, size: Size, call: Call) -> tuple[dict[str, Variant], dict[str, str]]:
    """``call`` of the size's network with every fast implementation of its operators, of the released form, and of the network
    with compiled blocks; and why some are left out."""
    model = bench.model(size)
    variants = {RELEASED: Variant(partial(call, released_model(model)))}
    for name in fast_implementations():
        variants[name] = Variant(partial(call, _with_kernels(model, name)))
    if not bench.compiles:
        return variants, {COMPILED: ON_GPU_ONLY}
    return {**variants, COMPILED: Variant(partial(call, compiled_blocks(model)))}, {}


def _with_kernels(model: SanaStreamingDiT, implementation: Implementation) -> SanaStreamingDiT:
    """Another network on the same weights with that implementation of every operator."""
    copy = shared_copy(model)
    copy.use_kernels(implementation)
    return copy


def compiled_blocks(model: SanaStreamingDiT) -> SanaStreamingDiT:
    """The network with each block under torch.compile, eager operators inside, on the same weights."""
    copy = _with_kernels(model, "eager")
    copy.compile_blocks()
    return copy


def block_case(bench: Bench, size: Size, *, softmax: bool) -> Case:
    """The first block of its kind, in mid-stream."""
    config, tokens = size.dit, size.tokens(bench.dtype)
    index = next(index for index in range(config.depth) if config.is_softmax(index) == softmax)
    positions = bench.model(size).positions(CACHED_FRAMES, CHUNK_LATENTS, *size.grid, bench.device)
    keys_values = prompt(bench, config).keys_values[0]
    state = block_state(bench, size, softmax, CACHED_FRAMES)
    x = bench.random(1, tokens.frames, tokens.per_frame, config.hidden_size)
    modulation = bench.random(1, 6, config.hidden_size, scale=0.35)

    def call(model: SanaStreamingDiT) -> object:
        return model.blocks[index](x, modulation, keys_values, None, positions, size.grid, state)

    variants, skipped = model_variants(bench, size, call)
    if softmax:
        # No gated delta rule in it: the released form is the eager one.
        del variants[RELEASED]
    text = config.max_text_tokens
    work = counts.block_work(config, tokens, softmax=softmax, cached_frames=CACHED_FRAMES, text_tokens=text)
    return Case(variants, (work,), skipped)


def pass_case(bench: Bench, size: Size) -> Case:
    """One network pass over a chunk in mid-stream."""
    config = size.dit
    noisy, source = (latents(bench, size, channels) for channels in (config.in_channels, config.source_channels))
    positions = bench.model(size).positions(CACHED_FRAMES, CHUNK_LATENTS, *size.grid, bench.device)
    context, state = prompt(bench, config), stream_state(bench, size).read()

    def call(model: SanaStreamingDiT, passes: Passes | None = None) -> object:
        return (passes or Passes(model))(noisy, 893.0, source, context, state, positions)

    variants, skipped = _with_graph(bench, size, call)
    return Case(variants, (_pass_work(bench, size),), skipped)


def stream_state(bench: Bench, size: Size) -> DiTState:
    """The transformer's memory of a live stream whose window has just become full."""
    state = DiTState.for_plan(ChunkPlan(None), StreamOptions())
    for frames in (LIVE_FIRST_LATENTS, CHUNK_LATENTS):
        state.write(states(bench, size, frames), frames)
    return state


def chunk_case(bench: Bench, size: Size) -> Case:
    """Four denoising passes, the pass at t = 0, and writing its state."""
    config, options = size.dit, StreamOptions()
    noise, source = (latents(bench, size, channels) for channels in (config.in_channels, config.source_channels))
    context, state = prompt(bench, config), stream_state(bench, size)

    def call(model: SanaStreamingDiT, passes: Passes | None = None) -> object:
        edited, written = sample_chunk(model, state, context, noise, source, options, carry=True, passes=passes)
        commit_chunk(state, written, CHUNK_LATENTS, last=False)
        return edited

    variants, skipped = _with_graph(bench, size, call)
    return Case(variants, (chunk_work(bench, size),), skipped, frames=pixel_frames(size))


def _with_graph(
    bench: Bench, size: Size, call: Callable[[SanaStreamingDiT, Passes | None], object]
) -> tuple[dict[str, Variant], dict[str, str]]:
    """As :func:`model_variants`, and ``call`` with the fused kernels and the passes as CUDA graphs."""
    variants, skipped = model_variants(bench, size, lambda model: call(model, None))
    if not bench.compiles:
        return variants, {**skipped, GRAPH: "runs on a GPU only"}
    model = _with_kernels(bench.model(size), "triton")
    return {**variants, GRAPH: Variant(_recorded_first(partial(call, model, GraphedPasses(model))))}, skipped


def _recorded_first(run: Callable[[], object]) -> Callable[[], object]:
    """The first call makes as many as are run plainly and the one that is recorded."""
    calls = iter([PLAIN_CALLS])

    def recorded() -> object:
        for _ in range(next(calls, 0)):
            run()
        return run()

    return recorded


def _pass_work(bench: Bench, size: Size) -> counts.Work:
    config, tokens = size.dit, size.tokens(bench.dtype)
    return counts.pass_work(config, tokens, cached_frames=CACHED_FRAMES, text_tokens=config.max_text_tokens)


def chunk_work(bench: Bench, size: Size) -> counts.Work:
    """The passes of a chunk."""
    one = _pass_work(bench, size)
    return counts.Work(one.bytes, one.flops, StreamOptions().passes(carry=True))


def pixel_frames(size: Size) -> int:
    """Frames that a chunk takes in and gives out."""
    return CHUNK_LATENTS * size.vae.temporal_factor


def vae_encode_case(bench: Bench, size: Size) -> Case:
    """The VAE's encoder on the frames of a chunk in mid-stream."""
    vae, frames = bench.vae(size), pixel_frames(size)
    video = bench.random(1, 3, frames, size.height, size.width, scale=0.3)
    _, state = vae.encode(video[:, :, :1])
    return _vae_case(bench, size, CausalVAE.encode, (video, state), vae_work(bench, size)[0])


def vae_decode_case(bench: Bench, size: Size) -> Case:
    """The VAE's causal decoder on the latents of a chunk in mid-stream."""
    vae: CausalVAE = bench.vae(size)
    z = latents(bench, size, size.vae.latent_channels)
    _, state = vae.decode(z[:, :, :1])
    return _vae_case(bench, size, CausalVAE.decode, (z, state), vae_work(bench, size)[1])


def vae_work(bench: Bench, size: Size) -> tuple[counts.Work, counts.Work]:
    """Of encoding and of decoding a chunk."""
    return counts.vae_work(size.vae, size.height, size.width, CHUNK_LATENTS, bench.dtype)


def _vae_case(
    bench: Bench, size: Size, call: Callable[..., object], arguments: tuple[object, ...], work: counts.Work
) -> Case:
    """``call`` in plain PyTorch; on a GPU with the fused kernel, with that as a CUDA graph, and compiled."""
    eager = _vae_with(bench, size, "eager")
    variants = {"eager": Variant(partial(call, eager, *arguments))}
    skipped = {}
    if bench.device.type == "cuda":
        fused, graphed = (_vae_with(bench, size, "triton") for _ in range(2))
        graphed.use_graphs(num_latents=CHUNK_LATENTS)
        variants["triton"] = Variant(partial(call, fused, *arguments))
        variants[GRAPH] = Variant(partial(call, graphed, *arguments))
    else:
        skipped = dict.fromkeys(("triton", GRAPH), "runs on a GPU only")
    if bench.compiles:
        variants[COMPILED] = compiled(call, eager, *arguments)
    else:
        skipped[COMPILED] = ON_GPU_ONLY
    return Case(variants, (work,), skipped, frames=pixel_frames(size))


def _vae_with(bench: Bench, size: Size, implementation: Implementation) -> CausalVAE:
    """The size's VAE on the same weights, with one implementation of what stands in front of its convolutions."""
    vae = bench.vae(size)
    copy = CausalVAE(vae.config, device="meta", dtype=vae.dtype)
    copy.load_state_dict(vae.state_dict(), assign=True)
    copy.requires_grad_(False).use_kernels(implementation)
    return copy


_BLOCK, _PASS, _VAE = (counts.formula(count) for count in (counts.block_work, counts.pass_work, counts.vae_work))
NETWORK_ROWS = (
    Row("block_gdn", "network", "one GDN block", _BLOCK, partial(block_case, softmax=False), BLOCKS),
    Row("block_softmax", "network", "one softmax block, 11 frames", _BLOCK, partial(block_case, softmax=True), BLOCKS),
    Row("pass", "network", "one pass of the transformer", _PASS, pass_case, NANO),
    Row("chunk", "network", "one chunk: 5 passes, state written", f"5 times: {_PASS}", chunk_case, NANO),
    Row("vae_encode", "network", "VAE encode, 24 frames", _VAE, vae_encode_case, NANO),
    Row("vae_decode", "network", "VAE decode, 24 frames, causal", _VAE, vae_decode_case, NANO),
)
