"""Cycle-Reverse Regularization: its numbers, where its gradient goes and where it does not."""

import compare
import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.losses import sigma_lookup
from sana_streaming.sana_core.training.passes import TIMESTEPS, new_state
from sana_streaming.sana_core.training.reverse import ReverseStream, crr_loss, weighted_crr
from sana_streaming.sana_core.training.rollout import rollout_window
from sana_streaming.sana_core.training.windows import plan_windows
from tiny_training import NaiveStream, calls, gradients, latents, network, prompt, seeded

ATOL = 2e-5
PLAN = plan_windows(20)
FIRST, SECOND = PLAN.windows
SIGMAS = (1.0, 0.9610183, 0.8931615, 0.7425569)
SOURCE, EDITED = latents(PLAN.num_frames, 1), latents(PLAN.num_frames, 2)


def cut(video, window):
    return video[:, :, window.start : window.stop]


def run(reverse, window, step_index=1, seed=0, source=SOURCE, edited=EDITED):
    context = prompt(reverse.model, 3)
    return reverse.run_window(cut(source, window), cut(edited, window), context, window, step_index, seeded(seed))


def test_equals_hand_written_stream():
    """Source noised in one step, edited as the condition, own predictions in the state; values and gradients."""
    model = network()
    reverse, stream = ReverseStream(model, PLAN), NaiveStream(model)
    for window, step_index in zip(PLAN.windows, (1, 3), strict=True):
        got = run(reverse, window, step_index)
        loss = crr_loss(got, cut(SOURCE, window))
        loss.backward()
        got_gradients = gradients(model)

        generator, context, sigma = seeded(0), prompt(model, 3), SIGMAS[step_index]
        errors = []
        for source, edited in zip(
            *(cut(video, window).split(window.chunk_sizes, 2) for video in (SOURCE, EDITED)), strict=True
        ):
            eps = torch.randn(source.shape, generator=generator)
            x = (1 - sigma) * source + sigma * eps
            velocity, _ = stream.call(x, TIMESTEPS[step_index], edited, context)
            stream.write(x - sigma * velocity, torch.randn(source.shape, generator=generator), edited, context)
            errors.append(velocity - (eps - source))
        expected = torch.cat(errors, 2).square().mean()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for name, gradient in gradients(model).items():
            compare.assert_near(got_gradients[name], gradient, ATOL, name)


def test_loss_is_what_the_prediction_says():
    """A direct recomputation from velocity, noise and source; x0 and timestep agree with them."""
    got = run(ReverseStream(network(), PLAN), FIRST, 2)
    source = cut(SOURCE, FIRST)
    error = got.velocity.double() - (got.eps.double() - source.double())
    assert crr_loss(got, source).item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert got.timestep.tolist() == [TIMESTEPS[2]] * len(source)
    sigma = sigma_lookup(got.timestep)[0]
    noised = (1 - sigma) * source + sigma * got.eps
    compare.assert_near(got.x0, noised - sigma * got.velocity, 1e-5)
    assert got.velocity.requires_grad
    assert not got.x0.requires_grad


def test_no_gradient_into_the_edit_unless_asked():
    model = network()
    edited = EDITED.clone().requires_grad_()
    loss = crr_loss(run(ReverseStream(model, PLAN), FIRST, edited=edited), cut(SOURCE, FIRST))
    assert torch.autograd.grad(loss, edited, allow_unused=True) == (None,)
    loss = crr_loss(run(ReverseStream(model, PLAN, detach=False), FIRST, edited=edited), cut(SOURCE, FIRST))
    (gradient,) = torch.autograd.grad(loss, edited)
    assert (gradient[:, :, : FIRST.stop].abs().amax((0, 1, 3, 4)) > 0).all()
    assert (gradient[:, :, FIRST.stop :] == 0).all()


def test_weights_learn_from_it():
    model = network()
    crr_loss(run(ReverseStream(model, PLAN), FIRST), cut(SOURCE, FIRST)).backward()
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


def both_streams(disturb_forward=False, disturb_reverse=False):
    """Second windows of both streams, one of whose states was spoilt after the first."""
    model = network()
    forward, reverse = new_state(PLAN), ReverseStream(model, PLAN)
    context, noise = prompt(model, 4), seeded(5)
    results = []
    with torch.no_grad():
        for window in PLAN.windows:
            source = cut(SOURCE, window)
            edited = rollout_window(model, forward, context, source, window, 1, noise)
            results = [edited, run(reverse, window).velocity]
            for state, disturb in ((forward, disturb_forward), (reverse.state, disturb_reverse)):
                for _, buffer in state.tensors():
                    buffer.add_(disturb)
    return results


def test_the_streams_share_nothing():
    edited, velocity = both_streams()
    with_forward, with_reverse = both_streams(disturb_forward=True), both_streams(disturb_reverse=True)
    assert torch.equal(velocity, with_forward[1])
    assert torch.equal(edited, with_reverse[0])
    # Each state does matter to its own stream.
    assert (edited - with_forward[0]).abs().max() > 1e-3
    assert (velocity - with_reverse[1]).abs().max() > 1e-3


def weighted(reverse, weight, context, window=FIRST, generator=None):
    source, edited = cut(SOURCE, window), cut(EDITED, window)
    return weighted_crr(reverse, weight, source, edited, context, window, 1, generator or seeded(0))


def test_weight_scales_the_loss():
    model = network()
    expected = crr_loss(run(ReverseStream(model, PLAN), FIRST), cut(SOURCE, FIRST))
    for weight in (0.5, 2.0):
        got = weighted(ReverseStream(model, PLAN), weight, prompt(model, 3))
        assert got.item() == pytest.approx(weight * expected.item(), rel=1e-6)


def test_weight_zero_runs_nothing():
    model = network()
    reverse, generator, context = ReverseStream(model, PLAN), seeded(0), prompt(model, 3)
    seen, before = calls(model), generator.get_state()
    for given in (context, None):
        assert weighted(reverse, 0, given, generator=generator).item() == 0
    assert not seen
    assert reverse.state.num_frames == 0
    assert torch.equal(before, generator.get_state())


def test_bad_weights_and_missing_prompts():
    reverse = ReverseStream(network(), PLAN)
    with pytest.raises(InputError, match=r"weight 0\.5 needs a reverse prompt"):
        weighted(reverse, 0.5, None)
    for weight in (-0.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match=rf"weight {weight} is out of range"):
            weighted(reverse, weight, prompt(reverse.model, 3))
    assert reverse.state.num_frames == 0


def test_every_window_once_and_only_new_frames():
    reverse = ReverseStream(network(), PLAN)
    with torch.no_grad():
        run(reverse, FIRST)
    with pytest.raises(ValueError, match="starts at frame 0, the stream stands at frame 11"):
        run(reverse, FIRST)
    with torch.no_grad(), pytest.raises(RuntimeError):
        # The overlap of the loss window is not accepted in place of the new frames.
        wider = [video[:, :, SECOND.start - 2 : SECOND.stop] for video in (SOURCE, EDITED)]
        reverse.run_window(*wider, prompt(reverse.model, 3), SECOND, 1, seeded(0))
    assert reverse.state.num_frames == 11


def test_critic_steps_move_the_stream_alike():
    """Without gradient the state ends up the same, bit for bit."""
    model = network()
    states = []
    for wanted in (True, False):
        reverse = ReverseStream(model, PLAN)
        with torch.set_grad_enabled(wanted):
            run(reverse, FIRST)
            run(reverse, SECOND)
        states.append(dict(reverse.state.tensors()))
        assert not any(buffer.requires_grad for buffer in states[-1].values())
    assert all(torch.equal(states[0][name], buffer) for name, buffer in states[1].items())
