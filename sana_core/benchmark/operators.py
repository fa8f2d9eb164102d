"""Rows of single operators, on the tensors that one chunk of three latent frames gives them.

``IMPLEMENTATIONS`` names what can do each: a loader that imports what it needs when it is called, and raises with the reason
where it cannot run. The names for the gated delta rule are those of its own dispatch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, get_args

import torch

from ...kernels.gdn import IMPLEMENTATIONS as GDN_IMPLEMENTATIONS
from ...kernels.gdn import GDNMemory, Implementation, gated, gdn_eager, gdn_fused
from ...kernels.mix_ffn import glu_depthwise
from ...kernels.norms import gated_residual, norm_modulate, rms_norm_rotary
from ...kernels.vae_norm import norm_silu_pad
from ..config import DiTConfig
from ..models.attention import SELF_NORM_EPS
from ..models.dit import LAYER_NORM_EPS
from ..models.embeddings import RMSNorm
from ..models.rope import Rotary, apply_rotary, rotary
from ..models.vae_layers import CONTEXT_FRAMES
from ..streaming.chunks import CHUNK_LATENTS
from . import counts
from .registry import COMPILED, FLA, NAIVE, ON_GPU_ONLY, RELEASED, Case, Row, Variant, compiled
from .released import gdn_fused_released, gdn_released
from .sizes import CACHED_FRAMES, Bench, Size

Operator = Callable[..., object]
Prepare = Callable[[Bench, Size], Case]
SMALL = ("256x448",)
# The widest rows of the VAE: its last level, four pixels to a position.
VAE_CHANNELS, VAE_STRIDE, VAE_FRAMES = 128, 4, 24


def qk_norm_relu_rope(
    q: torch.Tensor, k: torch.Tensor, norms: tuple[RMSNorm, RMSNorm], heads: int, positions: Rotary
) -> tuple[torch.Tensor, ...]:
    """[B, T, S, C] each -> q, k and both rotated, [B, T, S, h, D]."""
    q, k = (norm(x).relu().unflatten(-1, (heads, -1)) for norm, x in zip(norms, (q, k), strict=True))
    k = k * (q.shape[-1] * q.shape[2]) ** -0.5
    return q, k, *(apply_rotary(x.flatten(1, 2), positions).view_as(x) for x in (q, k))


def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    heads: int,
    positions: Rotary,
    keys: torch.Tensor,
    *,
    implementation: Implementation,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, N, C] each -> both normed and rotated [B, N, h, D]; k is written to ``keys``, its span of a buffer."""
    (q_weight, k_weight), fixed = weights, (*positions, heads, SELF_NORM_EPS, implementation)
    return rms_norm_rotary(q, q_weight, *fixed), rms_norm_rotary(k, k_weight, *fixed, out=keys)


def plain_and_fused(operator: Operator, **options: object) -> dict[str, Callable[[], Operator]]:
    """Loaders of the implementations that the dispatch of ``operator`` knows."""

    def load(name: Implementation) -> Operator:
        def call(*arguments: object) -> object:
            return operator(*arguments, **options, implementation=name)

        return call

    return {name: partial(load, name) for name in fast_implementations()}


def fast_implementations() -> list[Implementation]:
    """Names that a dispatch takes, without the one that leaves the choice to it and the one that is only a truth."""
    return [name for name in get_args(Implementation) if name not in ("auto", NAIVE)]


IMPLEMENTATIONS: dict[str, dict[str, Callable[[], Operator]]] = {
    "mix_ffn_middle": plain_and_fused(glu_depthwise),
    "norm_modulate": plain_and_fused(norm_modulate, eps=LAYER_NORM_EPS),
    "qk_norm_relu_rope": {"eager": lambda: qk_norm_relu_rope},
    "qk_norm_rope": plain_and_fused(qk_norm_rope),
    "output_gate": {"eager": lambda: gated},
    "gated_residual": plain_and_fused(gated_residual),
    "vae_norm_silu_pad": plain_and_fused(norm_silu_pad, reflect=True),
}


class GDNInputs(NamedTuple):
    """Arguments of :func:`.kernels.gdn.gdn`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_rot: torch.Tensor
    k_rot: torch.Tensor
    beta: torch.Tensor
    decay: torch.Tensor
    memory: GDNMemory


def operator_case(bench: Bench, name: str, arguments: tuple[object, ...], work: counts.Work) -> Case:
    """Every implementation of the operator on the same arguments, and its eager form compiled."""
    loaders = IMPLEMENTATIONS[name]
    variants = {key: Variant(partial(_load_and_call, load, arguments)) for key, load in loaders.items()}
    if not bench.compiles:
        return Case(variants, (work,), {COMPILED: ON_GPU_ONLY})
    return Case({**variants, COMPILED: compiled(loaders["eager"](), *arguments)}, (work,))


def _load_and_call(load: Callable[[], Operator], arguments: tuple[object, ...]) -> object:
    return load()(*arguments)


def gdn_inputs(bench: Bench, size: Size) -> GDNInputs:
    """As of a chunk in mid-stream."""
    config, (rows, columns) = size.dit, size.grid
    shape = (1, CHUNK_LATENTS, rows * columns, config.num_heads, config.head_dim)
    values = bench.random(*shape)
    q, k = values.relu(), values.roll(1, -1).relu() * (config.head_dim * rows * columns) ** -0.5
    positions = rotary(CACHED_FRAMES, CHUNK_LATENTS, rows, columns, config.head_dim, bench.device)
    q_rot, k_rot = (apply_rotary(x.flatten(1, 2), positions).view_as(x) for x in (q, k))
    beta = bench.random(*shape[:-1], dtype=torch.float32).sigmoid()
    decay = bench.random(1, CHUNK_LATENTS, config.num_heads, dtype=torch.float32).sigmoid()
    return GDNInputs(q, k, values.roll(2, -1), q_rot, k_rot, beta, decay, gdn_memory(bench, config))


def gdn_memory(bench: Bench, config: DiTConfig) -> GDNMemory:
    """A memory of plausible size, in float32; z is positive, as sums of keys after ReLU are."""
    kv = bench.random(1, config.num_heads, config.head_dim, config.head_dim, scale=0.1, dtype=torch.float32)
    return kv, bench.random(1, config.num_heads, config.head_dim, dtype=torch.float32).abs()


def gdn_case(bench: Bench, size: Size) -> Case:
    """The plain implementations of the rule, the released form, the eager form compiled, the closest operator of fla."""
    inputs = gdn_inputs(bench, size)
    plain = {name: call for name, call in GDN_IMPLEMENTATIONS.items() if name != "auto"}
    variants = {name: Variant(partial(call, *inputs)) for name, call in plain.items()}
    variants[RELEASED] = Variant(partial(gdn_released, *inputs))
    work = (counts.gdn_work(size.dit, size.tokens(bench.dtype)),)
    if not bench.compiles:
        return Case(variants, work, {COMPILED: ON_GPU_ONLY, FLA: "its kernels run on a GPU only"})
    return Case({**variants, COMPILED: compiled(gdn_eager, *inputs), FLA: fla_variant(inputs)}, work)


def gdn_fused_case(bench: Bench, size: Size) -> Case:
    """Between the projections and the output projection of a GDN block: all implementations of the dispatch but naive."""
    config, tokens = size.dit, size.tokens(bench.dtype)
    # As the fused projection gives them: slices of one wide tensor.
    projected = bench.random(1, tokens.frames, tokens.per_frame, 4 * config.hidden_size).chunk(4, -1)
    norm_weight = 1 + bench.random(config.hidden_size, scale=0.25)
    positions = rotary(CACHED_FRAMES, CHUNK_LATENTS, *size.grid, config.head_dim, bench.device)
    heads = config.num_heads
    logits = bench.random(1, tokens.frames, tokens.per_frame, heads), bench.random(1, tokens.frames, heads)
    rates = bench.random(heads, scale=0.4), bench.random(heads, scale=0.4)
    memory = gdn_memory(bench, config)
    arguments: tuple[Any, ...] = (*projected, norm_weight, norm_weight, *positions, *logits, *rates, memory)

    def eager(*inputs: Any) -> object:
        return gdn_fused(*inputs, norm_eps=SELF_NORM_EPS, implementation="eager")

    variants = {RELEASED: Variant(partial(gdn_fused_released, *arguments, norm_eps=SELF_NORM_EPS))}
    for name in fast_implementations():
        variants[name] = Variant(partial(gdn_fused, *arguments, norm_eps=SELF_NORM_EPS, implementation=name))
    work = (counts.gdn_fused_work(config, tokens),)
    if not bench.compiles:
        return Case(variants, work, {COMPILED: ON_GPU_ONLY})
    return Case({**variants, COMPILED: compiled(eager, *arguments)}, work)


def fla_variant(inputs: GDNInputs) -> Variant:
    """flash-linear-attention's gated delta rule over the same tokens in frame order, decay at the first of each frame."""
    log_decay = torch.zeros_like(inputs.beta)
    log_decay[:, :, 0] = inputs.decay.log()
    per_token = (inputs.q_rot, inputs.k_rot, inputs.v, log_decay, inputs.beta)
    q, k, v, g, beta = (x.flatten(1, 2).contiguous() for x in per_token)
    state = inputs.memory[0].mT.contiguous()

    def run() -> object:
        rule = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        return rule(q=q, k=k, v=v, g=g, beta=beta, scale=1.0, initial_state=state, output_final_state=True)

    return Variant(run)


def mix_ffn_middle_case(bench: Bench, size: Size) -> Case:
    tokens, width = size.tokens(bench.dtype), 2 * size.dit.mlp_width
    hidden = bench.random(1, tokens.frames, tokens.per_frame, width)
    weight, bias = bench.random(width, 1, 3, 3, scale=0.35), bench.random(width, scale=0.1)
    work = counts.mix_ffn_middle_work(size.dit, tokens)
    return operator_case(bench, "mix_ffn_middle", (hidden, weight, bias, size.grid), work)


def norm_modulate_case(bench: Bench, size: Size) -> Case:
    x, shift, scale = stream(bench, size), modulation_row(bench, size), modulation_row(bench, size)
    work = counts.norm_modulate_work(size.dit, size.tokens(bench.dtype))
    return operator_case(bench, "norm_modulate", (x, shift, scale), work)


def qk_rope_case(bench: Bench, size: Size) -> Case:
    config = size.dit
    x = stream(bench, size)
    norms = tuple(RMSNorm(config.hidden_size, SELF_NORM_EPS, bench.device, bench.dtype) for _ in range(2))
    positions = rotary(CACHED_FRAMES, CHUNK_LATENTS, *size.grid, config.head_dim, bench.device)
    arguments = (x, x.roll(1, -1), norms, config.num_heads, positions)
    return operator_case(bench, "qk_norm_relu_rope", arguments, counts.qk_rope_work(config, size.tokens(bench.dtype)))


def qk_norm_rope_case(bench: Bench, size: Size) -> Case:
    """q and k as slices of the fused projection, and the place of k behind the frames kept."""
    config, tokens = size.dit, size.tokens(bench.dtype)
    q, k = bench.random(1, tokens.total, 4 * config.hidden_size).chunk(4, -1)[:2]
    weights = tuple(1 + bench.random(config.hidden_size, scale=0.25) for _ in range(2))
    positions = rotary(CACHED_FRAMES, CHUNK_LATENTS, *size.grid, config.head_dim, bench.device)
    kept = CACHED_FRAMES * tokens.per_frame
    keys = bench.random(1, config.num_heads, kept + tokens.total, config.head_dim)[:, :, kept:].transpose(1, 2)
    arguments = (q, k, weights, config.num_heads, positions, keys)
    return operator_case(bench, "qk_norm_rope", arguments, qk_norm_rope_work(config, tokens))


def qk_norm_rope_work(config: DiTConfig, tokens: counts.Tokens) -> counts.Work:
    """Bytes: q and k in and out, two norm weights, D/2 cosines and sines per token in float32.

    FLOPs: 7 per value of q and k (norm 4, turn 3).
    """
    width = config.hidden_size
    table = tokens.total * config.head_dim * counts.FLOAT32_BYTES
    return counts.Work((4 * tokens.total + 2) * width * tokens.item + table, 14 * tokens.total * width)


def output_gate_case(bench: Bench, size: Size) -> Case:
    gate = stream(bench, size)
    work = counts.output_gate_work(size.dit, size.tokens(bench.dtype))
    return operator_case(bench, "output_gate", (gate.roll(1, -1).float(), gate), work)


def gated_residual_case(bench: Bench, size: Size) -> Case:
    x = stream(bench, size)
    work = counts.gated_residual_work(size.dit, size.tokens(bench.dtype))
    return operator_case(bench, "gated_residual", (x, modulation_row(bench, size), x.roll(1, -1)), work)


def vae_norm_case(bench: Bench, size: Size) -> Case:
    rows, columns = size.height // VAE_STRIDE, size.width // VAE_STRIDE
    x = bench.random(1, VAE_CHANNELS, VAE_FRAMES, rows, columns)
    history = bench.random(1, VAE_CHANNELS, CONTEXT_FRAMES, rows, columns)
    item = bench.dtype.itemsize
    work = counts.vae_norm_work(VAE_CHANNELS, VAE_FRAMES, rows, columns, CONTEXT_FRAMES, item)
    if bench.device.type == "cuda":
        x, history = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, history))
    return operator_case(bench, "vae_norm_silu_pad", (x, history), work)


def stream(bench: Bench, size: Size) -> torch.Tensor:
    """A residual stream [1, T, S, C]."""
    tokens = size.tokens(bench.dtype)
    return bench.random(1, tokens.frames, tokens.per_frame, size.dit.hidden_size)


def modulation_row(bench: Bench, size: Size) -> torch.Tensor:
    """A row of the time modulation [1, 1, 1, C]."""
    return bench.random(1, 1, 1, size.dit.hidden_size, scale=0.35)


def _row(name: str, what: str, formula: Callable[..., counts.Work], prepare: Prepare, sizes: tuple[str, ...]) -> Row:
    return Row(name, "operator", what, counts.formula(formula), prepare, sizes)


OPERATOR_ROWS = (
    _row("gdn", "gated delta rule, both directions, state in and out", counts.gdn_work, gdn_case, ("704x1280",)),
    _row(
        "gdn_fused",
        "gated delta rule with what surrounds it: norms, ReLU, RoPE, output gate",
        counts.gdn_fused_work,
        gdn_fused_case,
        ("704x1280",),
    ),
    _row(
        "mix_ffn_middle",
        "SiLU, depthwise 3x3 with bias, SiLU gate",
        counts.mix_ffn_middle_work,
        mix_ffn_middle_case,
        SMALL,
    ),
    _row("norm_modulate", "LayerNorm, scale and shift", counts.norm_modulate_work, norm_modulate_case, SMALL),
    _row("qk_norm_relu_rope", "RMSNorm, ReLU, key scale and RoPE of q and k", counts.qk_rope_work, qk_rope_case, SMALL),
    _row(
        "qk_norm_rope",
        "RMSNorm and RoPE of q and k, k into its buffer (softmax blocks)",
        qk_norm_rope_work,
        qk_norm_rope_case,
        SMALL,
    ),
    _row("output_gate", "attention output times SiLU of its gate", counts.output_gate_work, output_gate_case, SMALL),
    _row("gated_residual", "branch times gate, added", counts.gated_residual_work, gated_residual_case, SMALL),
    _row(
        "vae_norm_silu_pad",
        "VAE norm, SiLU, history and border, 128 channels, 24 frames",
        counts.vae_norm_work,
        vae_norm_case,
        SMALL,
    ),
)
