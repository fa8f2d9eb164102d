"""Noise levels and the velocity loss against the official numbers."""

import math

import compare
import pytest
import torch
from sana_streaming.sana_core.training.losses import (
    add_noise,
    flow_loss,
    pair_timesteps,
    sigma_lookup,
    sigma_table,
    x0_from_v,
)
from tiny_training import TrainingMath, latents


@pytest.mark.golden
def test_official_sigma_lookup():
    official = TrainingMath()
    cases = official.values["sigma_lookup_shift8"]
    timesteps = torch.tensor([float(case["timestep"]) for case in cases])
    expected = torch.tensor([case["sigma"] for case in cases])
    entries = torch.tensor([case["table_index"] for case in cases])
    compare.assert_near(sigma_lookup(timesteps), expected, 1e-7, "lookup")
    assert torch.equal(sigma_lookup(timesteps), sigma_table()[entries])


def test_sigma_table():
    table = sigma_table()
    assert table.shape == (1000,)
    assert table[0] == 1
    assert (table.diff() < 0).all()
    assert abs(table[-1].item() - 0.0079444) < 1e-7


@pytest.mark.golden
def test_official_flow_loss():
    official = TrainingMath()
    case = official.values["flow_loss"]
    clean, noise, velocity = (official.latents("flow_loss", name) for name in ("clean", "noise", "predicted_velocity"))
    sigma = sigma_lookup(torch.tensor([float(case["timestep"])]))
    compare.assert_near(sigma, torch.tensor([case["sigma"]]), 1e-7, "sigma")
    noisy = add_noise(clean, noise, sigma)
    compare.assert_near(noisy, official.latents("flow_loss", "noisy"), official.atol, "noisy")
    x0 = x0_from_v(noisy, velocity, sigma)
    compare.assert_near(x0, official.latents("flow_loss", "x0_from_velocity"), official.atol, "x0")
    loss = flow_loss(velocity, noise, clean, official.mask)
    assert loss.item() == pytest.approx(case["loss_masked"], abs=official.atol)
    assert 0.5 * loss.item() == pytest.approx(case["weighted_half"], abs=official.atol)
    assert flow_loss(velocity, noise, clean).item() != pytest.approx(case["loss_masked"], abs=100 * official.atol)


def test_each_sample_has_its_own_noise_level():
    x0, eps = latents(3, 0), latents(3, 1)
    sigma = torch.tensor([0.25, 0.875])
    x = add_noise(x0, eps, sigma)
    for i, level in enumerate(sigma):
        compare.assert_near(x[i], (1 - level) * x0[i] + level * eps[i], 1e-6)
    compare.assert_near(x0_from_v(x, eps - x0, sigma), x0, 1e-5)


def test_masked_frames_have_no_part():
    """Not even where they are not numbers, in the loss or in its gradient."""
    x0, eps = latents(4, 0), latents(4, 1)
    velocity = latents(4, 2).requires_grad_()
    mask = torch.tensor([False, True, False, True]).view(1, 1, -1, 1, 1)
    expected = flow_loss(velocity[:, :, 1::2], eps[:, :, 1::2], x0[:, :, 1::2])
    poisoned = torch.where(mask, velocity, float("nan")).detach().requires_grad_()
    loss = flow_loss(poisoned, eps, x0, mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    assert (poisoned.grad[:, :, ::2] == 0).all()
    compare.assert_near(poisoned.grad, velocity.grad, 1e-8)


def test_mask_may_differ_per_sample():
    x0, eps, velocity = latents(2, 0), latents(2, 1), latents(2, 2)
    mask = torch.tensor([[True, False], [True, True]]).view(2, 1, 2, 1, 1)
    kept = torch.cat([(velocity - eps + x0)[0, :, :1].flatten(), (velocity - eps + x0)[1].flatten()])
    assert flow_loss(velocity, eps, x0, mask).item() == pytest.approx(kept.square().mean().item(), rel=1e-6)


def test_pair_timesteps():
    """sigma = 3a / (1 + 2a) for a = floor(1000 sigmoid(z)) / 1000."""
    u = torch.tensor([0.0105, 0.1005, 0.5005, 0.9995], dtype=torch.float64)
    timestep, sigma = pair_timesteps(torch.logit(u).float())
    a = torch.tensor([0.010, 0.100, 0.500, 0.999], dtype=torch.float64)
    compare.assert_near(sigma, 3 * a / (1 + 2 * a), 1e-7)
    assert timestep.tolist() == [29, 250, 750, 999]
    assert timestep.dtype == sigma.dtype == torch.float32


def test_pair_timesteps_are_whole_and_rise():
    timestep, sigma = pair_timesteps(torch.linspace(-40, 40, 4001))
    assert (timestep.diff() >= 0).all()
    assert torch.equal(timestep, timestep.floor())
    assert timestep[0] == sigma[0] == 0
    assert (timestep[-1], sigma[-1]) == (1000, 1)
    assert ((1000 * sigma - timestep).abs() <= 1).all()
    assert not math.isclose(timestep[2000].item(), 500)
