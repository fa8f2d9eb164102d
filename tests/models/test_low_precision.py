"""The transformer in bfloat16 and float16: how far from float32 it may be, and what is formed in float32 all the same."""

import compare
import pytest
import torch
import torch.nn.functional as F
import toys
from sana_streaming.sana_core.models.attention import SoftmaxAttention
from sana_streaming.sana_core.models.embeddings import RMSNorm
from sana_streaming.sana_core.weights.dit import build_dit, official_state

LOW = [torch.bfloat16, torch.float16]
# About twice what is measured.
BOUNDS = {torch.bfloat16: 0.02, torch.float16: 0.0025}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def two_calls():
    """Velocities of a chunk and of the next one, which reads the state of the first, in a given dtype and layout."""
    reference = toys.networks()[0]
    weights, config = dict(official_state(reference)), reference.config
    x, source, embeds = normal(2, 16, 6, 3, 5), normal(2, 16, 6, 3, 5, seed=1), normal(2, 9, 24, seed=2)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    times = torch.tensor([743.0, 100.0])

    def run(dtype, layout="fused"):
        model = build_dit(weights, config, layout=layout, dtype=dtype)
        prompt = model.prompt_context(embeds, mask)
        first, state = model(x[:, :, :3], times, source[:, :, :3], prompt)
        positions = model.positions(3, 3, 3, 5, x.device)
        second, _ = model(x[:, :, 3:], times, source[:, :, 3:], prompt, state, positions)
        assert first.dtype == second.dtype == dtype
        return torch.stack([first, second])

    return run


@pytest.mark.parametrize("layout", ["fused", "split"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_velocity_is_near_that_of_the_same_weights_in_float32(two_calls, dtype, layout):
    for got, expected in zip(two_calls(dtype, layout), two_calls(torch.float32), strict=True):
        assert compare.relative_rms(got, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_rms_norm_is_formed_in_float32_and_rounded_once(dtype, scale):
    norm = RMSNorm(224, 1e-5, dtype=dtype)
    norm.weight.data = normal(224, seed=3).to(dtype)
    x = (normal(64, 224) * scale).to(dtype)
    wide = x.float()
    expected = wide / (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.float()
    # Where two roundings to float32 fall on either side of a tie the results are neighbours.
    steps = norm(x).view(torch.int16).int() - expected.to(dtype).view(torch.int16).int()
    assert steps.abs().max() <= 1
    assert (steps != 0).float().mean() < 0.001


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_output_gate_is_formed_in_float32_and_rounded_once(dtype):
    attention = SoftmaxAttention(toys.CONFIGS["dit"], "fused", torch.nn, dtype=dtype)
    attention.proj = torch.nn.Identity()
    gate = (normal(64, 224, seed=4) * 5).to(dtype)
    expected = F.silu(gate.float()).to(dtype)
    assert torch.equal(attention.gated_output(torch.ones(64, 224, dtype=dtype), gate), expected)
    # What attention gives is brought to the same dtype before the product, which is rounded once more.
    out = normal(64, 224, seed=5)
    product = (out.to(dtype).float() * expected.float()).to(dtype)
    assert torch.equal(attention.gated_output(out, gate), product)
