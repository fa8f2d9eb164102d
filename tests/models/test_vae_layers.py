"""The norm of the VAE in every dtype, and its samplers in both memory formats."""

import pytest
import torch
from compare import assert_near
from sana_streaming.sana_core.models.vae_layers import Carry, Downsampler, Upsampler, merge, rms_norm, split
from sana_streaming.sana_core.weights.random_init import random_vae
from vae_norm_cases import SMALL_VAE as SMALL

LAST = torch.channels_last_3d


def test_rms_norm_of_float16_has_no_range_of_its_own() -> None:
    """Large, small and zero positions: the squares of most of them are beyond float16."""
    scales = torch.tensor([6e4, 3e4, 300, 256, 1, 1e-3, 1e-4, 1e-5, 1e-6, 0])
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(2, 48, 1, 1, len(scales), generator=generator) * 2 - 1) * scales
    x = x.half()
    normed, exact = rms_norm(x), rms_norm(x.float())
    assert normed.dtype == torch.float16
    assert not normed[..., -1].any()
    # Two roundings to float16: of the root mean square and of the quotient; the smallest quotients are subnormal.
    assert ((normed - exact).abs() <= 2**-10 * exact.abs() + 2**-25).all()


def test_rms_norm_of_other_dtypes_is_formed_in_them() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 24, 3, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(rms_norm(x), x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + 1e-8))


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 3, 1)])
def test_merge_and_split_keep_channels_adjacent(stride: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 6, 2, generator=torch.Generator().manual_seed(0))
    merged, merged_last = merge(x, stride), merge(x.contiguous(memory_format=LAST), stride)
    assert merged.is_contiguous() and merged_last.is_contiguous(memory_format=LAST)
    assert merged.equal(merged_last)
    assert split(merged, stride).equal(x) and split(merged, stride).is_contiguous()
    assert split(merged_last, stride).equal(x) and split(merged_last, stride).is_contiguous(memory_format=LAST)


def test_samplers_in_both_memory_formats() -> None:
    vae, seen = random_vae(SMALL), 0
    for module in vae.modules():
        if isinstance(module, Downsampler | Upsampler):
            channels = module.conv.conv.in_channels
            x = torch.randn(2, channels, 3, 4, 6, generator=torch.Generator().manual_seed(1))
            given, given_last = module(x, Carry()), module(x.contiguous(memory_format=LAST), Carry())
            assert_near(given_last, given, 1e-5)
            seen += 1
    assert seen == 6
