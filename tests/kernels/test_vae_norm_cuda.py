"""Norm, SiLU, history and border of the VAE on an NVIDIA GPU, bfloat16 too, at the sizes of the release."""

import importlib.util
import math

import pytest
import torch
import vae_norm_cases
from sana_streaming.kernels.vae_norm import norm_silu_pad, norm_silu_pad_triton

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is missing", allow_module_level=True)

DTYPES = ("float32", "float16", "bfloat16")
# (channels, frames, rows and columns): the encoder's first, third and last level, and the decoder's first.
RELEASE = [(128, 24, (176, 320)), (512, 12, (88, 160)), (2048, 3, (22, 40)), (1024, 3, (22, 40))]


def assert_small(errors, tolerance):
    for name, error in errors.items():
        assert math.isfinite(error) and error <= tolerance, f"{name}: {error:.3g}"


@pytest.mark.parametrize("case", vae_norm_cases.covering_cases(DTYPES), ids=lambda case: case.name)
def test_kernel_is_the_definition(case):
    assert_small(vae_norm_cases.errors(case, "cuda"), vae_norm_cases.TOLERANCES[case.dtype])


@pytest.mark.parametrize("reflect", [False, True], ids=["zeros", "reflect"])
@pytest.mark.parametrize(("channels", "frames", "sides"), RELEASE)
def test_release_sizes(channels, frames, sides, reflect):
    case = vae_norm_cases.Case(
        channels, frames, sides, "last", "carried", "branch+bias", reflect, True, "bfloat16", batch=1
    )
    assert_small(vae_norm_cases.errors(case, "cuda"), vae_norm_cases.TOLERANCES["bfloat16"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.01), ("bfloat16", 0.05)])
def test_a_whole_vae_with_the_kernel(dtype, tolerance):
    """Convolutions of float32 may be TF32."""
    with torch.no_grad():
        assert_small(vae_norm_cases.vae_errors("cuda", dtype), tolerance)


def test_auto_takes_the_kernel_unless_gradients_are_asked_for():
    x = torch.randn(1, 64, 3, 8, 8, device="cuda", dtype=torch.bfloat16)
    assert norm_silu_pad(x, reflect=True)[0].equal(norm_silu_pad_triton(x, reflect=True)[0])
    assert norm_silu_pad(x.requires_grad_(), reflect=True)[0].requires_grad
