"""The norm of the VAE in every dtype."""

import torch
from sana_streaming.sana_core.models.vae_layers import rms_norm


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
