"""Counts of bytes and FLOPs against counts by hand and by other means."""

import pytest
import torch
from sana_streaming.sana_core.benchmark import counts
from sana_streaming.sana_core.benchmark.counts import Tokens, Work
from sana_streaming.sana_core.benchmark.timing import Ceilings
from sana_streaming.sana_core.config import DiTConfig, VAEConfig
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.weights.random_init import toy_configs

# T = 2 frames of 3 x 5 tokens, C = 8 in h = 2 heads of D = 4, I = 16, values of 2 bytes.
TINY = DiTConfig(
    depth=2,
    hidden_size=8,
    num_heads=2,
    in_channels=3,
    source_channels=5,
    mlp_ratio=2.0,
    softmax_layers=(1,),
)
TOKENS = Tokens(2, 3, 5, 2)


def test_gdn():
    inputs = 2 * (4 * 2 * 15 * 2 * 4 + 2 * 15 * 2 + 2 * 2)  # q, k, v, out; write strengths; decay
    memory = 4 * 2 * (2 * 4 * 4 + 2 * 4)  # in and out
    grams_and_read_out = 2 * 2 * 15 * (3 * 2 * 4 * 4)
    denominator = 2 * 2 * 15 * 2 * 4 + 3 * 2 * 15 * (2 * 4 + 2 * 4)
    scan = 3 * 2 * 2 * 4 * 4 * 4
    assert counts.gdn_work(TINY, TOKENS) == Work(inputs + memory, grams_and_read_out + denominator + scan)


def test_gdn_with_what_surrounds_it():
    rule = counts.gdn_work(TINY, TOKENS)
    gate_and_norms, table = 2 * (30 * 8 + 2 * 8), 4 * 30 * (2 + 2)
    expected = Work(rule.bytes + gate_and_norms + table, rule.flops + 2 * 30 * 8 * 8 + 30 * 8 * 5)
    assert counts.gdn_fused_work(TINY, TOKENS) == expected


@pytest.mark.parametrize(
    ("count", "values", "float32_values", "flops"),
    [
        (counts.mix_ffn_middle_work, 30 * 32 + 30 * 16 + 32 * 9 + 32, 0, 30 * 32 * 9 * 2),
        (counts.norm_modulate_work, 30 * 8 + 30 * 8 + 8 + 8, 0, 30 * 8 * 8),
        (counts.qk_rope_work, 2 * 30 * 8 + 4 * 30 * 8 + 2 * 8, 30 * 2 * 2, 2 * 30 * 8 * 8),
        (counts.output_gate_work, 30 * 8 + 30 * 8, 30 * 8, 30 * 8 * 5),
        (counts.gated_residual_work, 3 * 30 * 8 + 8, 0, 30 * 8 * 2),
    ],
)
def test_elementwise_operators(count, values, float32_values, flops):
    assert count(TINY, TOKENS) == Work(2 * values + 4 * float32_values, flops)


def test_vae_norm():
    read, written = 4 * (6 + 2) * 3 * 5, 4 * (6 + 2) * 5 * 7
    assert counts.vae_norm_work(4, 6, 3, 5, 2, 2) == Work(2 * (read + written), 8 * 4 * 6 * 3 * 5)


def by_hand_block(softmax):
    """With 7 text tokens and 3 cached frames."""
    tokens, width, inner, text, cached = 30, 8, 16, 7, 45
    linears = {"qkvg": (8, 32), "proj": (8, 8), "cross q": (8, 8), "cross proj": (8, 8)}
    linears |= {"inverted": (8, 32), "point": (16, 8), "temporal": (24, 8)}
    linears |= {} if softmax else {"beta": (8, 2)}
    flops = sum(2 * tokens * a * b for a, b in linears.values()) + 2 * tokens * 2 * inner * 9
    flops += 4 * tokens * text * width
    flops += 4 * tokens * (tokens + cached) * width if softmax else counts.gdn_work(TINY, TOKENS).flops
    weights = sum(a * b for a, b in linears.values()) + 2 * inner * 10
    weights += 0 if softmax else 8 * 2  # the decay's projection, which works on a mean
    # In units of N C: self-attention 15, cross-attention 7, MixFFN 7; and its inner tensors, of 2 I, 2 I, I and I.
    activations = tokens * (29 * width + 2 * 2 * inner + 2 * inner)
    carried = 2 * 15 * width + 2 * text * width + (2 * cached * width if softmax else 0)
    memory = 0 if softmax else 4 * 2 * (2 * 4 * 4 + 2 * 4)
    return Work(2 * (weights + activations + carried) + memory, flops)


@pytest.mark.parametrize("softmax", [False, True])
def test_block(softmax):
    got = counts.block_work(TINY, TOKENS, softmax=softmax, cached_frames=3, text_tokens=7)
    assert got == by_hand_block(softmax)


def test_pass():
    got = counts.pass_work(TINY, TOKENS, cached_frames=3, text_tokens=7)
    blocks = [by_hand_block(softmax) for softmax in (False, True)]
    around, time = 8 * 8 + 8 * 3, 256 * 8 + 8 * 8 + 8 * 48
    assert got.flops == sum(block.flops for block in blocks) + 2 * 30 * around + 2 * time
    values = around + time + 30 * (8 + 3) + 2 * 30 * 8
    assert got.bytes == sum(block.bytes for block in blocks) + 2 * values


def test_pass_of_the_released_size():
    """The sums of the released network at 704x1280, as counted in docs/model.md's terms: 11.46 TFLOP, 15.7 GB."""
    got = counts.pass_work(DiTConfig(), Tokens(3, 22, 40, 2), cached_frames=8, text_tokens=300)
    assert got.flops == pytest.approx(11.46e12, rel=0.002)
    assert got.bytes == pytest.approx(15.7e9, rel=0.01)


def test_weights_of_a_block_are_all_counted():
    """All matrices but those of the caption and the prompt's keys and values, which a pass does not read."""
    config = toy_configs(32)["dit"]
    model = SanaStreamingDiT(config, device="meta")
    names = ("y_embedder", "attention_y_norm", "kv_linear")
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and not any(part in name for part in names)]
    tables = [p for name, p in model.named_parameters() if name.endswith("scale_shift_table")]
    depthwise_biases = config.depth * 2 * config.mlp_width
    expected = sum(p.numel() for p in matrices) - sum(p.numel() for p in tables) + depthwise_biases
    # Without tokens, text and cache only weights and the memory are left.
    empty = counts.pass_work(config, Tokens(0, 0, 0, 4), cached_frames=0, text_tokens=0)
    memory = 3 * 2 * config.num_heads * (config.head_dim**2 + config.head_dim)
    assert empty.bytes == 4 * (expected + memory)


def test_vae_of_the_public_size():
    """Counts per 24 frames at 704x1280, made with other code: 63.0 and 27.1 TFLOP, and 16.8 and 10.8 GB without borders."""
    encode, decode = counts.vae_work(VAEConfig(decoder_causal=True), 704, 1280, 3, torch.bfloat16)
    assert encode.flops == pytest.approx(63.0e12, rel=0.002)
    assert decode.flops == pytest.approx(27.1e12, rel=0.002)
    assert encode.bytes == pytest.approx(16.8e9, rel=0.12)
    assert decode.bytes == pytest.approx(10.8e9, rel=0.12)


def test_vae_by_hand():
    """One 3x3x3 convolution of 48 to 16 channels, over 3 frames behind their 2 of context."""
    config = toy_configs(32)["vae"]
    calls = []
    vae = counts.CausalVAE(config, device="meta", dtype=torch.float32)
    conv = vae.encoder.conv_in.conv

    def call():
        calls.append(conv(torch.empty(1, 48, 5, 4, 6, device="meta")))

    got = counts._count_convolutions(vae, call)
    weights, outputs = 16 * 48 * 27 + 16, 16 * 3 * 4 * 6
    assert got == Work(4 * (48 * 5 * 4 * 6 + weights + outputs), 2 * 27 * 48 * outputs)
    assert not conv._forward_hooks and len(calls) == 1


def test_floor_is_the_slower_of_moving_and_computing_step_by_step():
    ceilings = Ceilings(copy_bytes_per_second=100.0, matmul_flops_per_second=1000.0)
    moving, computing = Work(200, 1000), Work(10, 5000, calls=3)
    assert ceilings.floor([moving]) == 2.0 and ceilings.bound([moving]) == "memory"
    assert ceilings.floor([computing]) == 15.0 and ceilings.bound([computing]) == "compute"
    assert ceilings.floor([moving, computing]) == 17.0 and ceilings.bound([moving, computing]) == "compute"
