"""Self-forcing against the same thing written out by hand."""

import compare
import pytest
import torch
from sana_streaming.sana_core.training.passes import TIMESTEPS, check_aligned, draw_step, new_state
from sana_streaming.sana_core.training.rollout import rollout_window
from sana_streaming.sana_core.training.windows import plan_windows
from tiny_training import NaiveStream, calls, gradients, latents, network, prompt, seeded
from torch.utils.checkpoint import checkpoint

ATOL = 2e-5
PLAN = plan_windows(20)
SIGMAS = (1.0, 0.9610183, 0.8931615, 0.7425569)


def sources(window):
    return latents(PLAN.num_frames, 1)[:, :, window.start : window.stop]


def rollout(model, exit_steps, seed=0, state=None):
    """Both windows, one exit step each."""
    state = state or new_state(PLAN)
    context, generator = prompt(model, 2), seeded(seed)
    windows = zip(PLAN.windows, exit_steps, strict=True)
    return [rollout_window(model, state, context, sources(w), w, j, generator) for w, j in windows]


def by_hand(model, exit_steps, seed=0):
    stream, context, generator = NaiveStream(model), prompt(model, 2), seeded(seed)
    results = []
    for window, exit_step in zip(PLAN.windows, exit_steps, strict=True):
        chunks = []
        for source in sources(window).split(window.chunk_sizes, 2):
            x = torch.randn(source.shape, generator=generator)
            for i in range(exit_step):
                velocity, _ = stream.call(x, TIMESTEPS[i], source, context)
                eps = torch.randn(source.shape, generator=generator)
                x = (1 - SIGMAS[i + 1]) * (x - SIGMAS[i] * velocity.detach()) + SIGMAS[i + 1] * eps
            velocity, _ = stream.call(x, TIMESTEPS[exit_step], source, context)
            chunks.append(x - SIGMAS[exit_step] * velocity)
            stream.write(chunks[-1], torch.randn(source.shape, generator=generator), source, context)
        results.append(torch.cat(chunks, 2))
    return results


@pytest.mark.parametrize("exit_steps", [(2, 0), (1, 3)])
def test_equals_hand_written_rollout(exit_steps):
    """In value and in every gradient, over two windows, far enough that the sink matters."""
    model = network()
    got, expected = rollout(model, exit_steps), by_hand(model, exit_steps)
    weight = latents(PLAN.num_frames, 9)
    results = []
    for windows in (got, expected):
        edited = torch.cat(windows, 2)
        (edited * weight).mean().backward()
        results.append((edited.detach(), gradients(model)))
    compare.assert_near(results[0][0], results[1][0], ATOL, "edited")
    for name, gradient in results[1][1].items():
        assert gradient.abs().max() > 0, name
        compare.assert_near(results[0][1][name], gradient, ATOL, name)


@pytest.mark.parametrize("exit_step", range(4))
def test_only_the_exit_step_has_a_gradient(exit_step):
    model = network()
    seen = calls(model)
    (window, _) = PLAN.windows
    edited = rollout_window(model, new_state(PLAN), prompt(model, 2), sources(window), window, exit_step, seeded(0))
    steps = [(float(TIMESTEPS[i]), i == exit_step) for i in range(exit_step + 1)]
    assert seen == [*steps, (0.0, False)] * len(window.chunk_sizes)
    assert edited.requires_grad


def test_without_gradient_the_numbers_are_the_same():
    model = network()
    with_gradient = rollout(model, (3, 1))
    seen = calls(model)
    with torch.no_grad():
        without = rollout(model, (3, 1))
    assert not any(wanted for _, wanted in seen)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(with_gradient, without, strict=True))


def test_generator_decides_everything():
    model = network()
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (torch.cat(rollout(model, (1, 1), seed), 2) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1
    assert torch.equal(before, torch.get_rng_state())
    drawn = [draw_step(generator) for generator in [seeded(3)] for _ in range(100)]
    assert set(drawn) == {0, 1, 2, 3}
    assert drawn == [draw_step(generator) for generator in [seeded(3)] for _ in range(100)]


def test_state_may_move_on_before_the_backward_pass():
    """Also where blocks are computed once more on the way back: they must read what they read the first time."""
    plain, checkpointed = network(), network()
    for block in checkpointed.blocks:
        block.forward = lambda *inputs, forward=block.forward: checkpoint(forward, *inputs, use_reentrant=False)
    torch.cat(rollout(plain, (1, 1)), 2).square().mean().backward()
    torch.cat(rollout(checkpointed, (1, 1)), 2).square().mean().backward()
    expected = gradients(plain)
    for name, gradient in gradients(checkpointed).items():
        compare.assert_near(gradient, expected[name], ATOL, name)


def test_windows_come_in_order():
    model, state = network(), new_state(PLAN)
    first, second = PLAN.windows
    with pytest.raises(ValueError, match="starts at frame 11, the stream stands at frame 0"):
        rollout_window(model, state, prompt(model, 2), sources(second), second, 0, seeded(0))
    with torch.no_grad():
        rollout(model, (0, 0), state=state)
    with pytest.raises(ValueError, match="stands at frame 20"):
        check_aligned(state, first)


def test_state_has_the_size_of_inference():
    """It does not grow with the video, and holds the first chunk and the last."""
    model, state = network(), new_state(PLAN)
    with torch.no_grad():
        rollout(model, (0, 0), state=state)
    assert state.segments == [(0, 5), (5, 3)]
    assert state.capacity_frames == new_state(plan_windows(200)).capacity_frames == 8
