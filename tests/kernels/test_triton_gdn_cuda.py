"""The fused kernels on an NVIDIA GPU: the full product of sizes, bfloat16 too, and their use in a CUDA graph."""

import importlib.util
import math

import gdn_cases
import pytest
import torch
from sana_streaming.kernels.gdn import gdn_fused
from sana_streaming.kernels.gdn.triton_gdn import gdn_triton

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is missing", allow_module_level=True)


def assert_small(errors, dtype):
    for name, error in errors.items():
        assert math.isfinite(error) and error <= gdn_cases.TOLERANCES[dtype], f"{name}: {error:.3g}"


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@pytest.mark.parametrize("batch", gdn_cases.BATCHES)
@pytest.mark.parametrize("frames", gdn_cases.FRAMES)
@pytest.mark.parametrize("tokens", gdn_cases.TOKENS)
@pytest.mark.parametrize("dim", gdn_cases.DIMS)
@pytest.mark.parametrize("dtype", gdn_cases.DTYPES)
def test_kernels_are_the_literal_recurrence(dtype, dim, tokens, frames, batch, carried):
    case = gdn_cases.Case(dim, tokens, frames, batch, dtype, carried, shares=1 + (dim + tokens) % 3)
    assert_small(gdn_cases.errors(case, "cuda"), dtype)


@pytest.mark.parametrize("dtype", gdn_cases.DTYPES)
@pytest.mark.parametrize("frames", [3, 5, 8])
def test_release_size(dtype, frames):
    assert_small(gdn_cases.errors(gdn_cases.Case(112, 880, frames, 1, dtype, True), "cuda", heads=20), dtype)


@pytest.mark.parametrize("dtype", gdn_cases.DTYPES)
def test_split_equals_whole(dtype):
    assert_small(gdn_cases.split_errors(dtype, "cuda"), dtype)


@pytest.mark.parametrize("dtype", gdn_cases.DTYPES)
def test_layout_repetition_and_zero_memory_change_no_bit(dtype):
    assert gdn_cases.unequal_calls(dtype, "cuda") == []


def test_auto_takes_the_kernels_unless_gradients_are_asked_for():
    arguments = gdn_cases.inputs(gdn_cases.Case(112, 63, 3, 1, "bfloat16", False), device="cuda")
    auto, kernels = gdn_fused(**arguments, **gdn_cases.OPTIONS)[0], gdn_triton(**arguments, **gdn_cases.OPTIONS)[0]
    assert auto.equal(kernels)
    arguments["q_weight"].requires_grad_()
    assert gdn_fused(**arguments, **gdn_cases.OPTIONS)[0].requires_grad


def test_weights_on_the_cpu_change_no_bit():
    """As where they are offloaded."""
    arguments = gdn_cases.inputs(gdn_cases.Case(112, 63, 3, 1, "bfloat16", False), device="cuda")
    away = {name: arguments[name].cpu() for name in ("q_weight", "k_weight", "A_log", "dt_bias")}
    for implementation in ("triton", "eager"):
        options = gdn_cases.OPTIONS | {"implementation": implementation}
        assert gdn_fused(**arguments | away, **options)[0].equal(gdn_fused(**arguments, **options)[0])


def test_a_compiled_graph_gives_the_same_bits():
    case = gdn_cases.Case(112, 63, 3, 2, "bfloat16", True)
    arguments, memory = gdn_cases.inputs(case, device="cuda"), gdn_cases.earlier_memory(case, "cuda")
    compiled = torch.compile(gdn_fused, fullgraph=True, dynamic=False)
    out, after = compiled(**arguments, memory=memory, **gdn_cases.OPTIONS)
    expected, expected_after = gdn_triton(**arguments, memory=memory, **gdn_cases.OPTIONS)
    assert out.equal(expected) and all(map(torch.equal, after, expected_after))


def test_no_host_synchronisation():
    """A captured call gives the bits of the call itself; capture refuses whatever waits for the GPU."""
    case = gdn_cases.Case(112, 880, 3, 1, "bfloat16", True)
    arguments, memory = gdn_cases.inputs(case, device="cuda"), gdn_cases.earlier_memory(case, "cuda")
    expected, expected_after = gdn_triton(**arguments, memory=memory, **gdn_cases.OPTIONS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, after = gdn_triton(**arguments, memory=memory, **gdn_cases.OPTIONS)
    graph.replay()
    torch.cuda.synchronize()
    assert out.equal(expected) and all(map(torch.equal, after, expected_after))
