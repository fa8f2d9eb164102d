"""The fused norms and the fused middle of the MixFFN on an NVIDIA GPU: the full product of sizes, bfloat16 too, and their use
in a CUDA graph.
"""

import importlib.util
import math

import fusion_cases
import pytest
import torch
from fusion_cases import EPS, Middle, Rows
from sana_streaming.kernels.mix_ffn import glu_depthwise
from sana_streaming.kernels.norms import add_norm_modulate, gated_residual, rms_norm, rms_norm_rotary
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.embeddings import RMSNorm
from sana_streaming.sana_core.models.mix_ffn import MixFFN

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is missing", allow_module_level=True)


def assert_small(errors, dtype):
    for name, error in errors.items():
        assert math.isfinite(error) and error <= fusion_cases.TOLERANCES[dtype], f"{name}: {error:.3g}"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("tokens", [1, 20, 63, 880])
@pytest.mark.parametrize("heads", [1, 3, 20])
@pytest.mark.parametrize("dtype", fusion_cases.DTYPES)
def test_norms_are_the_formulas(dtype, heads, tokens, frames, batch):
    assert_small(fusion_cases.row_errors(Rows(heads, tokens, frames, batch, dtype), "cuda"), dtype)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("inner", [16, 112, 200, 336])
@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (5, 23), (22, 40)])
@pytest.mark.parametrize("dtype", fusion_cases.DTYPES)
def test_the_middle_is_the_formula(dtype, grid, inner, frames, batch):
    assert_small(fusion_cases.middle_errors(Middle(*grid, inner, frames, batch, dtype), "cuda"), dtype)


@pytest.mark.parametrize("dtype", fusion_cases.DTYPES)
def test_release_size(dtype):
    assert_small(fusion_cases.middle_errors(Middle(22, 40, 6720, 3, 1, dtype), "cuda"), dtype)


def test_activations_of_any_size_are_finite():
    """SiLU is x for large x and 0 for very negative ones, though the exponential in it overflows."""
    hidden, weight, bias, grid = fusion_cases.middle_inputs(Middle(3, 7, 16, 1, 1, "float32"), "cuda")
    hidden = (hidden * 100).contiguous()
    got = glu_depthwise(hidden, weight, bias, grid, implementation="triton")
    expected = fusion_cases.middle_truth(hidden, weight, bias, grid)
    assert fusion_cases.compare.relative_rms(got, expected) < fusion_cases.TOLERANCES["float32"]


def test_modules_take_the_kernels_unless_gradients_are_asked_for():
    config = DiTConfig(hidden_size=112, num_heads=1, depth=1, softmax_layers=())
    mlp, norm = MixFFN(config, torch.nn, device="cuda"), RMSNorm(112, EPS, device="cuda")
    hidden, x = torch.randn(1, 2, 6, 2 * config.mlp_width, device="cuda"), torch.randn(2, 5, 112, device="cuda")
    conv = mlp.depth_conv.conv
    with torch.no_grad():
        kernel = glu_depthwise(hidden, conv.weight, conv.bias, (2, 3), implementation="triton")
        assert mlp.middle(hidden, (2, 3)).equal(kernel)
        assert norm(x).equal(rms_norm(x, norm.weight, EPS, "triton"))
    assert mlp.middle(hidden, (2, 3)).requires_grad and norm(x).requires_grad


def test_a_weight_on_another_device_is_brought_over():
    x, weight = torch.randn(2, 5, 112, device="cuda"), 1 + torch.rand(112)
    assert rms_norm(x, weight, EPS, "triton").equal(rms_norm(x, weight.cuda(), EPS, "triton"))


def test_no_host_synchronisation():
    """A captured call gives the bits of the call itself; capture refuses whatever waits for the GPU."""
    given = fusion_cases.row_inputs(Rows(20, 880, 3, 1, "bfloat16"), "cuda")
    x, y, shift, scale, gate, weight, cos, sin = given.values()
    middle = fusion_cases.middle_inputs(Middle(22, 40, 336, 3, 1, "bfloat16"), "cuda")

    def step():
        total, after = add_norm_modulate(x, y, shift, scale, eps=EPS, implementation="triton")
        turned = rms_norm_rotary(x.flatten(1, 2), weight, cos, sin, 20, EPS, "triton")
        merged = gated_residual(total, gate, after, implementation="triton")
        return total, after, turned, merged, glu_depthwise(*middle, implementation="triton")

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, got, expected))
