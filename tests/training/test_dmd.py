"""Distribution matching: the official numbers, and a whole training step on tiny networks."""

import compare
import pytest
import torch
import toys
from sana_streaming.sana_core.training.dmd import (
    ScorePrompts,
    Scores,
    critic_loss,
    dmd_gradient,
    dmd_loss,
    image_latent,
    loss_window,
    score_estimates,
    score_timesteps,
    window_mask,
)
from sana_streaming.sana_core.training.losses import add_noise, sigma_lookup
from sana_streaming.sana_core.training.passes import new_state
from sana_streaming.sana_core.training.reverse import ReverseStream, weighted_crr
from sana_streaming.sana_core.training.rollout import rollout_window
from sana_streaming.sana_core.training.windows import plan_windows
from tiny_training import BATCH, TrainingMath, gradients, latents, network, prompt, seeded

PLAN = plan_windows(20)


@pytest.mark.golden
def test_official_score_timesteps():
    official = TrainingMath()
    cases = official.values["score_timestep_shift_clamp"]
    got = score_timesteps(torch.tensor([case["raw"] for case in cases]))
    compare.assert_near(got, torch.tensor([case["shifted"] for case in cases]), official.atol)


@pytest.mark.golden
def test_official_dmd():
    official = TrainingMath()
    case = official.values["dmd"]
    edited = official.latents("dmd", "x").requires_grad_()
    scores = Scores(*(official.latents("dmd", name) for name in ("fake", "real_cond", "real_uncond")))
    gradient = dmd_gradient(edited, scores, case["guidance"])
    assert not gradient.requires_grad
    compare.assert_near(gradient, official.latents("dmd", "grad"), official.atol, "gradient")
    assert dmd_loss(edited, gradient).item() == pytest.approx(case["loss_unmasked"], abs=official.atol)
    loss = dmd_loss(edited, gradient, official.mask)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(case["loss_masked"], abs=official.atol)
    loss.backward()
    compare.assert_near(edited.grad, official.latents("dmd", "dloss_dx"), official.atol, "dloss_dx")


def test_gradient_is_scaled_per_sample():
    edited = latents(4, 0)
    scores = Scores(*(latents(4, seed) for seed in (1, 2, 3)))
    together = dmd_gradient(edited, scores)
    for i in range(BATCH):
        alone = dmd_gradient(edited[i : i + 1], Scores(*(score[i : i + 1] for score in scores)))
        compare.assert_near(together[i : i + 1], alone, 1e-6)
    # CFG scale 4, and all frames count in the scale.
    real = 4 * scores.real_cond - 3 * scores.real_uncond
    scale = (edited - real).abs().flatten(1).mean(1).view(-1, 1, 1, 1, 1)
    compare.assert_near(together, (scores.fake - real) / scale, 1e-5)


def test_what_is_not_a_number_moves_nothing():
    edited = latents(2, 0)
    agreed = Scores(edited, edited, edited)
    assert (dmd_gradient(edited, agreed) == 0).all()


def test_masked_frames_have_no_part():
    edited, gradient = latents(4, 0).requires_grad_(), latents(4, 1)
    mask = torch.tensor([False, True, True, False]).view(1, 1, -1, 1, 1)
    loss = dmd_loss(edited, torch.where(mask, gradient, float("nan")), mask)
    loss.backward()
    count = edited[:, :, 1:3].numel()
    compare.assert_near(edited.grad, torch.where(mask, gradient / count, 0.0), 1e-8)
    velocity, eps = latents(4, 2), latents(4, 3)
    inner = critic_loss(velocity[:, :, 1:3], eps[:, :, 1:3], edited[:, :, 1:3])
    assert critic_loss(velocity, eps, edited, mask).item() == pytest.approx(inner.item(), rel=1e-6)
    assert not critic_loss(velocity, eps, edited, mask).requires_grad


def test_window_mask():
    first, second = (window_mask(window) for window in PLAN.windows)
    assert first.shape == second.shape == (1, 1, 11, 1, 1)
    assert first.all()
    assert second.flatten().tolist() == [False] * 2 + [True] * 9


def test_loss_window():
    """[image latent of frames 0 to 9, 1 old frame, 9 new frames]; only the new ones have a gradient."""
    first, second = PLAN.windows
    history, new = latents(11, 0).requires_grad_(), latents(9, 1).requires_grad_()
    seen = []

    def image(clip):
        seen.append(clip)
        return clip[:, :, -1:] + 1

    assert loss_window(first, None, history, image) is history
    clip = loss_window(second, history, new, image)
    assert torch.equal(seen[0], history[:, :, :10])
    assert torch.equal(clip, torch.cat([history[:, :, 9:10] + 1, history[:, :, 10:], new], 2))
    clip.sum().backward()
    assert history.grad is None
    assert (new.grad == 1).all()


def test_image_latent_is_that_of_the_last_pixel_frame():
    _, vae, _ = toys.networks()
    height = toys.SIZE // vae.config.spatial_factor
    clip = torch.randn(1, vae.config.latent_channels, 2, height, height, generator=seeded(0))
    pixels, _ = vae.decode(clip)
    assert pixels.shape[2] == 1 + vae.config.temporal_factor
    expected, _ = vae.encode(pixels[:, :, -1:])
    got = image_latent(vae, clip)
    assert got.shape == (1, vae.config.latent_channels, 1, height, height)
    compare.assert_near(got, expected, 1e-6)


class Networks:
    """A generator, both score networks, and their prompts."""

    def __init__(self):
        self.generator, self.fake, self.real = network(0), network(1, "bidirectional"), network(2, "bidirectional")
        self.scores = ScorePrompts(prompt(self.fake, 5), prompt(self.real, 5), prompt(self.real, 6))

    def noised(self, clip, seed):
        raw = torch.randint(1000, (BATCH,), generator=seeded(seed))
        timestep, eps = score_timesteps(raw), torch.randn(clip.shape, generator=seeded(seed + 1))
        return add_noise(clip, eps, sigma_lookup(timestep)), timestep, eps


def test_score_estimates():
    networks = Networks()
    clip, source = latents(11, 0), latents(11, 1)
    noised, timestep, _ = networks.noised(clip, 7)
    assert len(set(timestep.tolist())) == BATCH
    scores = score_estimates(networks.fake, networks.real, networks.scores, noised, timestep, source)
    judges = (networks.fake, networks.real, networks.real)
    for got, judge, context in zip(scores, judges, networks.scores, strict=True):
        velocity, _ = judge(noised, timestep, source, context)
        sigma = sigma_lookup(timestep).view(-1, 1, 1, 1, 1)
        compare.assert_near(got, noised - sigma * velocity, 1e-5)
        assert not got.requires_grad


def test_a_whole_step():
    """Generator on one window, critic on the next, the reverse stream along both; each loss moves its own network."""
    networks = Networks()
    generator, fake, real = networks.generator, networks.fake, networks.real
    source, noise = latents(PLAN.num_frames, 1), seeded(3)
    context, back = prompt(generator, 5), prompt(generator, 6)
    state, reverse = new_state(PLAN), ReverseStream(generator, PLAN)
    first, second = PLAN.windows

    shown = source[:, :, : first.stop]
    edited = rollout_window(generator, state, context, shown, first, 1, noise)
    noised, timestep, _ = networks.noised(edited.detach(), 7)
    scores = score_estimates(fake, real, networks.scores, noised, timestep, shown)
    loss = dmd_loss(edited, dmd_gradient(edited, scores), window_mask(first))
    loss = loss + weighted_crr(reverse, 0.5, shown, edited, back, first, 1, noise)
    loss.backward()
    assert all(gradient.abs().max() > 0 for gradient in gradients(generator).values())
    assert all(value is None for judge in (fake, real) for value in gradients(judge).values())

    with torch.no_grad():
        following = source[:, :, first.stop : second.stop]
        new = rollout_window(generator, state, context, following, second, 2, noise)
        weighted_crr(reverse, 0.5, following, new, back, second, 1, noise)
    clips = [
        loss_window(second, old, fresh, lambda clip: clip[:, :, -1:])
        for old, fresh in ((edited, new), (shown, following))
    ]
    noised, timestep, eps = networks.noised(clips[0], 9)
    velocity, _ = fake(noised, timestep, clips[1], prompt(fake, 5))
    critic_loss(velocity, eps, clips[0], window_mask(second)).backward()
    assert all(gradient.abs().max() > 0 for gradient in gradients(fake).values())
    assert all(value is None for judge in (generator, real) for value in gradients(judge).values())
    assert state.num_frames == reverse.state.num_frames == PLAN.num_frames
