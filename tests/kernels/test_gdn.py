"""The gated delta rule: against the official recurrence, and the matrix form against the literal one."""

import compare
import golden_files
import pytest
import torch
from sana_streaming.kernels.gdn import gdn, scan_backward, scan_forward, strength_and_decay, zero_memory
from sana_streaming.sana_core.models.rope import Rotary, apply_rotary

ATOL_SUMS = 2e-5
ATOL_MERGED = 2e-6


def random_inputs(batch, frames, tokens, heads, dim, seed=0):
    """Inputs with the statistics of the network: keys scaled, write strengths and decays inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    shape = (batch, frames, tokens, heads, dim)
    q, k, v = normal(*shape).relu(), normal(*shape).relu() * (dim * tokens) ** -0.5, normal(*shape)
    q_rot, k_rot = normal(*shape), normal(*shape) * (dim * tokens) ** -0.5
    beta = normal(batch, frames, tokens, heads).sigmoid()
    decay = normal(batch, frames, heads).sigmoid()
    memory = (normal(batch, heads, dim, dim), normal(batch, heads, dim).abs())
    return (q, k, v, q_rot, k_rot, beta, decay), memory


@pytest.fixture(scope="module")
def official():
    """The official vectors in token-major layout."""
    config, tensors = golden_files.load("dit/gdn_operator.safetensors")
    frames = config["T"]

    def tokens(name):
        return tensors[name].unflatten(-1, (frames, -1)).permute(0, 3, 4, 1, 2)

    inputs = (
        *(tokens(f"input.{name}") for name in "qkv"),
        *(tokens(f"expected.{name}_rot") for name in "qk"),
        tensors["input.beta"],
        tensors["input.decay"].transpose(1, 2),
    )
    memory = (tensors["input.state_kv"], tensors["input.state_z"].squeeze(-1))
    return config, tensors, tokens, inputs, memory


@pytest.mark.golden
def test_rotation_is_the_official_one(official):
    _, tensors, tokens, _, _ = official
    factors = Rotary(tensors["rope.cos"][0, 0], tensors["rope.sin"][0, 0])
    for name in "qk":
        x = tokens(f"input.{name}")
        got = apply_rotary(x.flatten(1, 2), factors).view_as(x)
        compare.assert_near(got, tokens(f"expected.{name}_rot"), 1e-5, name)


@pytest.mark.golden
def test_scans_are_the_official_ones(official):
    _, tensors, tokens, inputs, memory = official
    forward = scan_forward(*inputs, memory=memory)
    backward = scan_backward(*inputs, memory=zero_memory(inputs[0]))
    for name, scan in (("fwd", forward), ("bwd", backward)):
        compare.assert_near(scan.num, tokens(f"expected.num_{name}"), ATOL_SUMS, f"num_{name}")
        compare.assert_near(scan.den[..., None], tokens(f"expected.den_{name}"), ATOL_SUMS, f"den_{name}")
    compare.assert_near(forward.memory[0], tensors["expected.state_kv"], ATOL_MERGED, "kv")
    compare.assert_near(forward.memory[1], tensors["expected.state_z"].squeeze(-1), ATOL_MERGED, "z")


@pytest.mark.golden
@pytest.mark.parametrize("implementation", ["naive", "eager"])
def test_merged_output_is_the_official_one(official, implementation):
    config, tensors, tokens, inputs, memory = official
    out, after = gdn(*inputs, memory, eps=config["eps"], implementation=implementation)
    compare.assert_near(out, tokens("expected.merged"), ATOL_MERGED, "merged")
    compare.assert_near(after[0], tensors["expected.state_kv"], ATOL_MERGED, "kv")
    compare.assert_near(after[1], tensors["expected.state_z"].squeeze(-1), ATOL_MERGED, "z")
    out, _ = gdn(*inputs, eps=config["eps"], implementation=implementation)
    compare.assert_near(out, tokens("expected_zero_init.merged"), ATOL_MERGED, "merged from zero")


@pytest.mark.parametrize(("frames", "tokens", "dim"), [(1, 1, 2), (1, 7, 24), (2, 63, 16), (5, 20, 112), (8, 3, 6)])
@pytest.mark.parametrize("carried", [False, True])
def test_matrix_form_equals_recurrence(frames, tokens, dim, carried):
    inputs, memory = random_inputs(2, frames, tokens, 3, dim)
    inputs = tuple(t.double() for t in inputs)
    memory = tuple(t.double() for t in memory) if carried else None
    expected, expected_memory = gdn(*inputs, memory, implementation="naive")
    got, got_memory = gdn(*inputs, memory, implementation="eager")
    assert compare.relative_rms(got, expected) < 1e-9
    for part, expected_part in zip(got_memory, expected_memory, strict=True):
        assert compare.relative_rms(part, expected_part) < 1e-10


def test_forward_scan_splits_anywhere():
    """The memory after a chunk is all that the next one needs."""
    inputs, memory = random_inputs(1, 7, 11, 2, 16)
    whole = gdn(*inputs, memory)[1]
    for t in (1, 3, 6):
        first = gdn(*(x[:, :t] for x in inputs), memory)[1]
        second = gdn(*(x[:, t:] for x in inputs), first)[1]
        for part, expected in zip(second, whole, strict=True):
            compare.assert_near(part, expected, 1e-5, f"split at {t}")


def test_low_precision_inputs_give_float32_memory():
    inputs, memory = random_inputs(1, 3, 9, 2, 8)
    out, after = gdn(*(x.bfloat16() for x in inputs), memory)
    assert {out.dtype, *(part.dtype for part in after)} == {torch.float32}


@pytest.mark.parametrize("implementation", ["naive", "eager"])
def test_autocast_changes_nothing(implementation):
    """Neither results nor gradients; the products around the call are still cast."""
    inputs, memory = random_inputs(2, 3, 10, 2, 8)

    def run(enabled):
        leaves = [x.clone().requires_grad_() for x in (*inputs, *memory)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, after = gdn(*leaves[:7], tuple(leaves[7:]), implementation=implementation)
            assert (leaves[0] @ leaves[0].mT).dtype == (torch.bfloat16 if enabled else torch.float32)
        gradients = torch.autograd.grad(out.square().mean() + sum(part.square().mean() for part in after), leaves)
        return out, *after, *gradients

    for got, expected in zip(run(True), run(False), strict=True):
        assert got.dtype == torch.float32 and got.equal(expected)


def test_gradients_reach_every_input():
    inputs, memory = random_inputs(1, 2, 3, 1, 4)
    q, k, *others = inputs
    # Queries and keys away from zero keep the division well conditioned.
    leaves = [x.double().requires_grad_() for x in (q + 0.5, k + 0.5, *others, *memory)]

    def function(*tensors):
        out, after = gdn(*tensors[:7], tensors[7:])
        return out, *after

    assert torch.autograd.gradcheck(function, leaves)


def test_strength_and_decay():
    """The formulas in float64, far out too; gradients reach everything that is learnt."""
    logits = torch.tensor([-90.0, -3.0, 0.0, 1.5, 90.0], requires_grad=True)
    A_log, dt_bias = torch.tensor([-1.0, 0.0, 2.0, 0.5, 0.3]), torch.tensor([0.1, -0.2, 0.3, -1.0, 0.5])
    inputs = (logits.view(1, 1, 1, 5), logits.view(1, 1, 5), A_log.requires_grad_(), dt_bias.requires_grad_())
    strength, decay = strength_and_decay(*inputs)
    wide = logits.detach().double()
    compare.assert_near(strength.flatten(), 1 / (1 + (-wide).exp()), 1e-7)
    rate = (1 + (wide + dt_bias.double()).exp()).log()
    compare.assert_near(decay.flatten(), (-A_log.double().exp() * rate).exp(), 1e-7)
    (strength.sum() + decay.sum()).backward()
    for leaf in (logits, A_log, dt_bias):
        assert leaf.grad.isfinite().all() and (leaf.grad[1:4] != 0).all()
