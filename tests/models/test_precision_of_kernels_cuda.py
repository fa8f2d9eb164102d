"""The network of the release's size with fused kernels on an NVIDIA GPU: as near to float32 as without them."""

import importlib.util

import kernel_precision
import pytest
import torch
from sana_streaming.sana_core.config import DIT_PRESETS

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is missing", allow_module_level=True)
# Weights in float32 and bfloat16, two sets of results of all blocks, and what a float32 pass needs.
if torch.cuda.get_device_properties(0).total_memory < 30e9:
    pytest.skip("needs 30 GB of GPU memory", allow_module_level=True)


@pytest.mark.parametrize("grid", [(12, 20), (22, 40)], ids=["384x640", "704x1280"])
def test_kernels_lose_at_most_one_decibel(monkeypatch, grid):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    config = DIT_PRESETS["streaming-2b"]
    with torch.no_grad():
        decibels = kernel_precision.losses(config, torch.bfloat16, grid, "cuda")
    assert len(decibels) == config.depth + 1
    for name, lost in decibels.items():
        assert lost <= 1, f"{name}: {lost:.2f} dB"
