"""The network with fused kernels on a machine without a GPU: as near to float32 as without them, and the golden vectors.

In float16, since the interpreter's bfloat16 is wrong.
"""

import importlib.util

import pytest
import scripts

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is missing")

ATOL = 2e-5


@pytest.fixture(scope="module")
def interpreted():
    return scripts.interpreted_rows("kernel_precision.py")


def test_kernels_lose_at_most_one_decibel(interpreted):
    decibels = interpreted["losses"]["decibels"]
    assert "velocity" in decibels and len(decibels) > 4
    for name, lost in decibels.items():
        assert lost <= 1, f"{name}: {lost:.2f} dB"


@pytest.mark.golden
@pytest.mark.parametrize("case", ["forward", "stream"])
def test_kernels_give_the_official_velocity(interpreted, case):
    assert interpreted[case]["difference"] <= ATOL
