"""Graphs of the VAE with a stand-in for the capture that runs the function again on the same fixed tensors.

The capture itself needs a GPU: test_vae_cuda.py.
"""

import contextlib
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.weights.random_init import random_vae
from vae_norm_cases import SMALL_VAE as SMALL

# Two latent frames in mid-stream, here; the release's chunk has three.
LATENTS = 2
FRAMES = LATENTS * SMALL.temporal_factor
DIRECTIONS = ("encode", "decode")


class Rerun:
    """A recording that overwrites one output, as a CUDA graph does, and counts what is done to it."""

    made: ClassVar[list["Rerun"]] = []

    def __init__(self, function, device):
        self.function, self.replays, self.turns, self.inside = function, 0, 0, False
        # A capture may run the function before, and leaves nothing of use behind.
        self.output = function().fill_(torch.nan)
        Rerun.made.append(self)

    def replay(self):
        assert self.inside
        self.output.copy_(self.function())
        self.replays += 1

    @contextlib.contextmanager
    def turn(self):
        assert not self.inside
        self.inside = True
        yield
        self.inside = False
        self.turns += 1


@pytest.fixture(autouse=True)
def forget_recordings():
    yield
    Rerun.made.clear()


@pytest.fixture(scope="module")
def plain():
    return random_vae(SMALL)


@pytest.fixture
def graphed(plain):
    return with_graphs(plain)


def with_graphs(plain):
    """A VAE of its own on the same weights."""
    vae = CausalVAE(SMALL, device="meta")
    vae.load_state_dict(plain.state_dict(), assign=True)
    vae.requires_grad_(False).use_graphs(num_latents=LATENTS, capture=Rerun)
    return vae


def stream(direction, seed=1, sides=(2, 3), batch=2):
    """Calls of 1 + 1, 2, 2, 1, 2, 2 and 3 latent frames."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [1, 1, 2, 2, 1, 2, 2, 3]
    if direction == "decode":
        return torch.randn(batch, SMALL.latent_channels, sum(sizes), *sides, generator=generator).split(sizes, 2)
    sizes = [1, *(SMALL.temporal_factor * size for size in sizes[1:])]
    pixels = [side * SMALL.spatial_factor for side in sides]
    return (torch.rand(batch, 3, sum(sizes), *pixels, generator=generator) * 2 - 1).split(sizes, 2)


def run(vae, direction, parts):
    """(result, state) of every call."""
    state, results = None, []
    for part in parts:
        result, state = getattr(vae, direction)(part, state)
        results.append((result, state))
    return results


def assert_same(got, expected):
    for (result, state), (want, after) in zip(got, expected, strict=True):
        assert result.equal(want) and state.keys() == after.keys()
        assert all(state[path].equal(after[path]) for path in after)
        assert all(state[path].untyped_storage().nbytes() == state[path].nbytes for path in after)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_replay_has_the_bits_of_a_call(plain, graphed, direction):
    parts = stream(direction)
    assert_same(run(graphed, direction, parts), run(plain, direction, parts))
    (recording,) = Rerun.made
    # Four calls are of the graph's length; the first of them makes it.
    assert recording.replays == recording.turns == 3
    assert graphed.captured_graphs == [direction]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_results_and_states_are_the_callers(graphed, direction):
    """Later replays change nothing that was given out, and no call changes the state it was given."""
    parts = stream(direction)
    state, kept = None, []
    for part in parts:
        before = {path: frames.clone() for path, frames in (state or {}).items()}
        result, after = getattr(graphed, direction)(part, state)
        assert all(state[path].equal(before[path]) for path in before)
        kept.append((result, after, result.clone(), {path: frames.clone() for path, frames in after.items()}))
        state = after
    for result, state, result_then, state_then in kept:
        assert result.equal(result_then) and all(state[path].equal(state_then[path]) for path in state)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_streams_take_turns(plain, graphed, direction):
    streams = [stream(direction, seed) for seed in (1, 2)]
    expected = [run(plain, direction, parts) for parts in streams]
    states, got = [None, None], [[], []]
    for parts in zip(*streams, strict=True):
        for number, part in enumerate(parts):
            result, states[number] = getattr(graphed, direction)(part, states[number])
            got[number].append((result, states[number]))
    for number in (0, 1):
        assert_same(got[number], expected[number])
    assert Rerun.made[0].replays == 7


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_saved_state_goes_on(plain, graphed, direction):
    from safetensors.torch import load, save

    parts = stream(direction)
    state = None
    for part, (want, _) in zip(parts, run(plain, direction, parts), strict=True):
        result, state = getattr(graphed, direction)(part, state)
        assert result.equal(want)
        state = load(save({path: frames.contiguous() for path, frames in state.items()}))
    assert Rerun.made[0].replays == 3


def test_waiting_frames_are_part_of_the_shape(plain, graphed):
    """Frames that wait in a sampler stay as many, in another graph than where none wait."""
    video = torch.cat(stream("encode"), 2)
    sizes = [2, FRAMES, FRAMES, 3, FRAMES, FRAMES]
    parts = video[:, :, : sum(sizes)].split(sizes, 2)
    assert_same(run(graphed, "encode", parts), run(plain, "encode", parts))
    assert [recording.replays for recording in Rerun.made] == [1]


def test_other_sizes_are_called_as_before_until_release(plain, graphed):
    first, other = stream("decode"), stream("decode", sides=(3, 2), batch=1)
    run(graphed, "decode", first)
    assert_same(run(graphed, "decode", other), run(plain, "decode", other))
    assert [recording.replays for recording in Rerun.made] == [3]
    graphed.use_graphs(num_latents=LATENTS, capture=Rerun)
    assert graphed.captured_graphs == []
    assert_same(run(graphed, "decode", other), run(plain, "decode", other))
    assert [recording.replays for recording in Rerun.made] == [3, 3]


def test_release_gives_the_memory_back(graphed):
    run(graphed, "encode", stream("encode"))
    recording = weakref.ref(Rerun.made.pop())
    buffers = [weakref.ref(frames) for frames in graphed._graphs["encode"]._fixed.state.values()]
    graphed.use_graphs(False)
    gc.collect()
    assert recording() is None and all(buffer() is None for buffer in buffers)
    assert not graphed.captured_graphs


def test_weights_that_moved_are_captured_anew(plain, graphed):
    parts = stream("decode")
    run(graphed, "decode", parts)
    moved = {key: 0.5 * value for key, value in plain.state_dict().items()}
    graphed.load_state_dict(moved, assign=True)
    graphed.requires_grad_(False)
    other = CausalVAE(SMALL)
    other.load_state_dict(moved)
    assert_same(run(graphed, "decode", parts), run(other.requires_grad_(False), "decode", parts))
    assert [recording.replays for recording in Rerun.made] == [3, 3]
    # Changes in place are seen without.
    for network in (graphed, other):
        for parameter in network.parameters():
            parameter.mul_(2)
    assert_same(run(graphed, "decode", parts), run(other, "decode", parts))
    assert [recording.replays for recording in Rerun.made] == [3, 7]


def test_inference_mode_and_gradients(plain, graphed):
    parts = stream("decode")
    with torch.inference_mode():
        first = run(graphed, "decode", parts)
        expected = run(plain, "decode", parts)
    assert_same(first, expected)
    with torch.no_grad():
        assert_same(run(graphed, "decode", parts), expected)
    replays = Rerun.made[0].replays
    asked = [part.clone().requires_grad_() for part in parts]
    run(graphed, "decode", asked)[-1][0].sum().backward()
    assert asked[-1].grad.any() and Rerun.made[0].replays == replays


def test_on_the_cpu_nothing_is_captured(plain):
    vae = with_graphs(plain)
    vae.use_graphs(num_latents=LATENTS)
    parts = stream("decode")
    assert_same(run(vae, "decode", parts), run(plain, "decode", parts))
    assert not vae.captured_graphs


def test_wrong_states_are_refused_as_before(graphed):
    run(graphed, "decode", stream("decode"))
    (_, state), *_ = run(graphed, "encode", stream("encode")[:1])
    with pytest.raises(InputError, match="of the decoder"):
        graphed.decode(stream("decode")[2], state)


def test_convolutions_of_other_namespaces_are_refused():
    class Operations:
        class Conv3d(torch.nn.Conv3d):
            pass

    vae = CausalVAE(VAEConfig(), operations=Operations, device="meta")
    with pytest.raises(InputError, match=r"Operations\.Conv3d, which may move weights"):
        vae.use_graphs()
