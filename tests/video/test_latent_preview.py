"""Rough pictures of latents."""

import pytest
import torch
from sana_streaming.sana_core.video.latent_preview import SCALE, fit_latent_rgb, shrunk

GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(1, 6, 4, 5, 7, generator=GENERATOR)
MAP, BIAS = torch.randn(6, 3, generator=GENERATOR) / 12, torch.tensor([0.4, 0.5, 0.6])


def shown(latents):
    return (latents[0].permute(1, 2, 3, 0) @ MAP + BIAS).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("begins", "counts"), [(True, [1, 8, 8, 8]), (False, [8, 8, 8, 8]), (False, [8, 8, 3])])
def test_a_linear_look_is_found(begins, counts):
    """Frames of one latent frame are alike here; a padded chunk lacks the last."""
    frames = shown(LATENTS).repeat_interleave(torch.tensor([*counts, *[0] * (4 - len(counts))]), 0)
    look = fit_latent_rgb(LATENTS, frames, 8, begins=begins)
    torch.testing.assert_close(look.weights, MAP, atol=2e-3, rtol=0)
    torch.testing.assert_close(look.bias, BIAS, atol=2e-3, rtol=0)
    picture = look.picture(LATENTS[0, :, 2])
    assert (picture.dtype, picture.shape) == (torch.uint8, (5 * SCALE, 7 * SCALE, 3))
    middle = picture[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE].float()
    assert (middle - 255 * shown(LATENTS)[2].permute(1, 2, 0)).abs().mean() < 8


def test_fewer_pixels_than_channels():
    look = fit_latent_rgb(torch.randn(1, 128, 1, 2, 2, generator=GENERATOR), torch.rand(1, 3, 2, 2), 8, begins=True)
    assert look.weights.isfinite().all()


def test_frames_are_averaged_over_a_latent_pixel():
    pixels = torch.zeros(2, 3, 64, 32)
    pixels[:, :, :32] = 1
    assert shrunk(pixels, 32).flatten(1).tolist() == [[1.0, 0.5] * 3] * 2


def test_what_does_not_belong_together():
    for frames in (torch.zeros(0, 3, 5, 7), torch.zeros(26, 3, 5, 7), torch.zeros(25, 3, 7, 5)):
        with pytest.raises(ValueError, match="are not the frames of latents"):
            fit_latent_rgb(LATENTS, frames, 8, begins=True)
    look = fit_latent_rgb(LATENTS, torch.zeros(25, 3, 5, 7), 8, begins=True)
    with pytest.raises(ValueError, match=r"a latent frame is \[6, h, w\]"):
        look.picture(LATENTS[0, :5, 0])
