"""The start of small VAEs from principal components: what they code exactly, and what their latents stand for."""

from dataclasses import replace

import compare
import pytest
import torch
import toys
import training_runs
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.models.vae_layers import ResidualBlock
from sana_streaming.sana_core.training.vae_init import calibrate, pca_init, to_video
from sana_streaming.sana_core.weights.random_init import randomize
from tiny_training import seeded

CHANNELS, PATCH = 8, 4
CONFIG = VAEConfig.from_dict(
    {
        **training_runs.VAE,
        "latent_channels": CHANNELS,
        "block_out_channels": [16, 32, 64],
        "decoder_block_out_channels": [12, 12, 12],
        "patch_size": PATCH,
        "decoder_causal": True,
    }
)


def component_clip(seed, frames=17, height=24, width=32):
    """uint8 [frames, height, width, 3]: patches are a mean and three fixed patterns, whose strengths move evenly in time."""
    patterns = torch.linalg.qr(torch.randn(PATCH * PATCH * 3, 4, generator=seeded(0))).Q.T
    mean, patterns = 0.3 * patterns[0] * PATCH, patterns[1:]
    rows, columns = height // PATCH, width // PATCH
    spans = (frames - 1) // 8
    level, slope = torch.randn(2, spans, 3, rows, columns, generator=seeded(100 + seed)) * torch.tensor(
        [1.0, 0.6, 0.4]
    ).view(3, 1, 1)
    time = torch.linspace(-1, 1, 8).view(-1, 1, 1, 1)
    first = torch.randn(1, 3, rows, columns, generator=seeded(200 + seed)) * 0.6
    strengths = torch.cat([first, *(one + time * other for one, other in zip(level, slope, strict=True))])
    patches = mean + 0.6 * torch.einsum("fkhw,kd->fhwd", strengths, patterns)
    pixels = patches.unflatten(-1, (PATCH, PATCH, 3)).permute(0, 1, 3, 2, 4, 5).reshape(frames, height, width, 3)
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def fresh(config=CONFIG, seed=0):
    vae = CausalVAE(config)
    randomize(vae, seed)
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def started():
    """A VAE that began from three clips, and a clip that it has not seen."""
    vae = fresh()
    pca_init(vae, (component_clip(seed) for seed in range(3)))
    return vae, to_video(component_clip(9))


def psnr(got, expected):
    return (4 / (got - expected).square().mean()).log10().item() * 10


def test_clips_of_few_components_come_back(started):
    vae, video = started
    latents, _ = vae.encode(video)
    decoded, _ = vae.decode(latents)
    assert latents.shape == (1, CHANNELS, 3, 6, 8) and decoded.shape == video.shape
    assert psnr(decoded, video) > 50
    assert min(psnr(got, frame) for got, frame in zip(decoded.unbind(2), video.unbind(2), strict=True)) > 45
    assert psnr(video.mean((2, 3, 4), keepdim=True).expand_as(video), video) < 20


def test_best_components_are_kept():
    """Clips of more components than latents: an error, but a far smaller one than without the weaker half of the latents."""
    vae = fresh()
    clips = [toys.frames(17, 24, 32, seed) for seed in range(3)]
    pca_init(vae, clips)
    video = to_video(clips[0])
    latents, _ = vae.encode(video)
    whole = psnr(vae.decode(latents)[0], video)
    latents[:, CHANNELS // 2 :] = 0
    assert whole > psnr(vae.decode(latents)[0], video) + 1
    deviations = vae.denormalize(vae.encode(video)[0]).std((0, 2, 3, 4))
    assert deviations[0] == deviations.max() > 3 * deviations[-1] == 3 * deviations.min()


def test_a_stream_is_the_whole(started):
    vae, video = started
    latents, _ = vae.encode(video)
    decoded, _ = vae.decode(latents)
    pieces, state = [], None
    for piece in video.split([1, 5, 11], 2):
        encoded, state = vae.encode(piece, state)
        pieces.append(encoded)
    assert [piece.shape[2] for piece in pieces] == [1, 0, 2]
    compare.assert_near(torch.cat(pieces, 2), latents, 1e-4, "latents")
    frames, state = [], None
    for one in latents.split(1, 2):
        pixels, state = vae.decode(one, state)
        frames.append(pixels)
    compare.assert_near(torch.cat(frames, 2), decoded, 1e-4, "pixels")


def test_a_latent_stands_for_its_own_frames(started):
    """The first for the first frame, as if it stood still; each other for eight frames."""
    vae, video = started
    still = video[:, :, 4:5].expand(-1, -1, 17, -1, -1)
    latents, _ = vae.encode(still)
    compare.assert_near(latents[:, :, 1:], latents[:, :, :1].expand(-1, -1, 2, -1, -1), 1e-4)
    alone, _ = vae.encode(still[:, :, :1])
    compare.assert_near(alone, latents[:, :, :1], 1e-4)
    decoded, _ = vae.decode(alone)
    assert decoded.shape[2] == 1 and psnr(decoded, still[:, :, :1]) > 35
    changed = video.clone()
    changed[:, :, 9:] = video[:, :, :8]
    before, after = vae.encode(video)[0], vae.encode(changed)[0]
    assert before[:, :, :2].equal(after[:, :, :2]) and not torch.allclose(before[:, :, 2], after[:, :, 2], atol=0.1)


def test_statistics(started):
    """Over the clips that it began from: no mean, mean square 1, the strong channels the stronger ones."""
    vae, _ = started
    latents = torch.cat([vae.encode(to_video(component_clip(seed)))[0] for seed in range(3)])
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-4
    number = latents[:, 0].numel()
    assert latents.square().mean().item() * number / (number - 1) == pytest.approx(1, abs=1e-4)
    deviations = latents.std((0, 2, 3, 4))
    assert deviations[0] > 1.2 > 0.7 > deviations[-1]


@pytest.mark.parametrize("scaling_factor", [1.0, 0.5])
def test_calibration_by_hand(started, scaling_factor):
    """From raw means; what the statistics were before has no part."""
    vae = CausalVAE(replace(CONFIG, scaling_factor=scaling_factor)).requires_grad_(False)
    vae.load_state_dict(started[0].state_dict())
    vae.latents_mean.fill_(5)
    vae.latents_std.fill_(3)
    clips = [component_clip(20, 9), component_clip(21, 17)]
    raw = torch.cat([vae.moments(to_video(clip))[0, :CHANNELS].flatten(1) for clip in clips], 1)
    calibrate(vae, iter(clips))
    deviation = raw.std(1)
    compare.assert_near(vae.latents_mean, raw.mean(1), 1e-5)
    compare.assert_near(vae.latents_std, scaling_factor * (deviation * deviation.mean()).sqrt(), 1e-5)
    latents = torch.cat([vae.encode(to_video(clip))[0][0].flatten(1) for clip in clips], 1)
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-2)


def test_clips_without_contrast_leave_no_nan():
    vae = fresh()
    pca_init(vae, [torch.full((9, 8, 8, 3), 90, dtype=torch.uint8)])
    video = to_video(torch.full((9, 8, 8, 3), 90, dtype=torch.uint8))
    decoded, _ = vae.decode(vae.encode(video)[0])
    compare.assert_near(decoded, video, 0.05)


def residual_blocks(vae):
    return [module for module in vae.modules() if isinstance(module, ResidualBlock)]


def test_residual_blocks_are_silent_and_can_learn(started):
    vae, seen = fresh(), []
    vae.load_state_dict(started[0].state_dict())
    vae.requires_grad_(True)
    for block in residual_blocks(vae):
        block.register_forward_hook(lambda _, given, out: seen.append(out.total().equal(given[0].total())))
    vae.decode(vae.encode(started[1])[0])[0].square().mean().backward()
    assert seen == [True] * 8
    for block, untouched in zip(residual_blocks(vae), residual_blocks(fresh()), strict=True):
        assert block.conv1.conv.weight.equal(untouched.conv1.conv.weight)
        assert block.conv2.conv.weight.grad.abs().max() > 0


def test_the_start_is_the_same_each_time(started):
    again = fresh()
    pca_init(again, [component_clip(seed) for seed in range(3)])
    assert all(value.equal(again.state_dict()[key]) for key, value in started[0].state_dict().items())
    assert to_video(component_clip(0)).shape == (1, 3, 17, 24, 32)
    assert to_video(torch.tensor([0, 255]).byte().view(2, 1, 1, 1).expand(2, 1, 1, 3)).unique().tolist() == [-1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "downsample_type": ("spatial", "temporal", "temporal"),
            "decoder_upsample_type": ("spatial",) + ("temporal",) * 2,
        },
        {"block_out_channels": (16, 32, 32)},
        {"block_out_channels": (8, 16, 32)},
        {"decoder_block_out_channels": (8, 8, 8)},
        {"upsample_residual": (True, False, False)},
        {"upsample_factor": (2, 1, 1), "decoder_block_out_channels": (12, 12, 12)},
        {"upsample_factor": (1, 1, 2), "decoder_block_out_channels": (12, 12, 24)},
        {"decoder_block_out_channels": (50, 50, 50)},
        {"latent_channels": 1, "block_out_channels": (2, 4, 8)},
        {"decoder_causal": False},
    ],
)
def test_other_forms_are_refused(changes):
    vae = fresh(replace(CONFIG, **changes))
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    with pytest.raises(InputError, match="cannot start from principal components") as caught:
        pca_init(vae, [component_clip(0, 9)])
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[key]) for key, value in vae.state_dict().items())


def test_widest_decoder_that_is_accepted():
    """One channel for each value of a patch, and the constant: nothing but the latents is lost."""
    vae = fresh(replace(CONFIG, decoder_block_out_channels=(49, 49, 49)))
    pca_init(vae, [component_clip(seed) for seed in range(3)])
    video = to_video(component_clip(9))
    assert psnr(vae.decode(vae.encode(video)[0])[0], video) > 35


def test_no_clips_are_refused():
    with pytest.raises(InputError, match="no clips"):
        pca_init(fresh(), [])
