"""DPM-Solver++ against the official run step by step, and against diffusers' scheduler."""

import warnings

import compare
import golden_dit
import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.sampling.dpm_solver import dpm_step, dpm_times, predict_data

# The official form of the prediction, every operation rounded by itself; any other rounding needs 2e-3 where 1 - t is 1e-4.
LITERAL_ATOL = 1e-4


@pytest.mark.golden
def test_official_steps():
    """The official data prediction through our steps: every x on the way."""
    case, tensors, model = golden_dit.load("dpm_sampler")
    y, negative_y = (tensors[f"input.{name}"].squeeze(1) for name in ("y", "neg_y"))
    mask, negative_mask = (tensors[f"input.{name}"] for name in ("mask", "neg_mask"))
    for run in case["runs"]:
        name, guided = run["name"], run["cfg_scale"] > 1
        texts, masks = ([negative_y, y], [negative_mask, mask]) if guided else ([y], [mask])
        prompt = model.prompt_context(torch.cat(texts), torch.cat(masks))
        source = tensors["input.source"].repeat(len(texts), 1, 1, 1, 1)
        times = dpm_times(run["steps"], case["flow_shift"])
        compare.assert_near(torch.tensor(times), tensors[f"{name}.timesteps"], 1e-6, f"{name} times")
        x, previous = tensors["input.noise"], None
        compare.assert_near(x, tensors[f"{name}.x_after_step0"], 0, f"{name} begins with noise")
        for step, time in enumerate(times[:-1]):
            inputs = x.repeat(len(texts), 1, 1, 1, 1)
            with torch.no_grad():
                velocity, _ = model(inputs, torch.full((len(inputs),), 1000 * time), source, prompt)
            noise = (1 - torch.tensor(time)) * velocity + inputs
            if guided:
                negative, positive = noise.chunk(2)
                noise = negative + run["cfg_scale"] * (positive - negative)
            data = (x - time * noise) / (1 - torch.tensor(time))
            x, previous = dpm_step(x, data, previous, times, step), data
            compare.assert_near(x, tensors[f"{name}.x_after_step{step + 1}"], LITERAL_ATOL, f"{name} step {step}")
        compare.assert_near(x, tensors[f"{name}.result"], LITERAL_ATOL, name)


@pytest.mark.parametrize("shift", [8.0, 3.0])
@pytest.mark.parametrize("steps", [2, 3, 7, 50])
def test_diffusers_takes_the_same_steps(steps, shift):
    """The two definitions agree from two steps on: grid, what the network sees, and every update."""
    with warnings.catch_warnings():
        # Deprecations inside diffusers are not ours.
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", reason="needs diffusers as the second implementation")
        scheduler = diffusers.DPMSolverMultistepScheduler(
            solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        scheduler.set_timesteps(steps)
    times = dpm_times(steps, shift)
    compare.assert_near(torch.tensor(times), scheduler.sigmas, 1e-6, "times")
    assert [int(1000 * time) for time in times[:-1]] == scheduler.timesteps.tolist()
    x = expected = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    previous = None
    for step, time in enumerate(times[:-1]):
        data = predict_data(x, _velocity(x, time), time)
        x, previous = dpm_step(x, data, previous, times, step), data
        timestep = scheduler.timesteps[step]
        expected = scheduler.step(_velocity(expected, time), timestep, expected).prev_sample
        compare.assert_near(x, expected, 2e-5, f"step {step}")


def _velocity(x, time):
    return torch.sin(2 * x) - time * x + 0.3


def test_the_last_step_gives_the_data():
    times = dpm_times(2)
    x, data, previous = torch.randn(3, 2, 2).unbind()
    assert torch.equal(dpm_step(x, data, previous, times, 1), data)


def test_known_data_is_reached_along_the_straight_line():
    """With the right data predicted at once, every x is (1 - t) data + t noise."""
    noise, data = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).unbind()
    times = dpm_times(9)
    x = (1 - times[0]) * data + times[0] * noise
    for step, next_time in enumerate(times[1:]):
        x = dpm_step(x, data, data if step else None, times, step)
        compare.assert_near(x, (1 - next_time) * data + next_time * noise, 1e-6, f"step {step}")


def test_the_grid():
    times = dpm_times(50)
    assert len(times) == 51
    assert times[:3] == pytest.approx((0.9998749, 0.9973285, 0.9946897), abs=1e-7)
    assert times[-3:] == pytest.approx((0.2498048, 0.1402278, 0.0), abs=1e-7)


@pytest.mark.parametrize("steps", [1, 0, -3])
def test_too_few_steps(steps):
    with pytest.raises(InputError, match=f"steps {steps} is too few.*2 or more"):
        dpm_times(steps)
