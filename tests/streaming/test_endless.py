"""Streams without an end: positions far beyond what was trained, and a memory that does not grow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from sana_streaming.sana_core.models.rope import THETA, apply_rotary, axis_pairs, rotary
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import commit_chunk, prompt_context, sample_chunk, sink_shift
from sana_streaming.sana_core.streaming.state import DiTState
from sana_streaming.sana_core.weights.random_init import random_dit

CHUNKS, OFFSET, GRID = 400, 5000, (1, 2)


@pytest.mark.parametrize("start", [0, 1022, 5_000, 1_000_000, 2**31])
def test_positions_are_those_of_float64(start):
    """Against complex numbers in double precision; the error does not grow with the position."""
    head_dim, frames, height, width = 112, 3, 2, 3
    x = torch.randn(1, frames * height * width, 1, head_dim, generator=torch.Generator().manual_seed(0))
    positions = np.stack(np.meshgrid(start + np.arange(frames), np.arange(height), np.arange(width), indexing="ij"), -1)
    angles = np.concatenate(
        [positions.reshape(-1, 3)[:, axis, None] * THETA ** (-np.arange(pairs) / pairs)
         for axis, pairs in enumerate(axis_pairs(head_dim))], -1,
    )  # fmt: skip
    pairs = torch.view_as_complex(x[0, :, 0].double().unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * torch.from_numpy(np.exp(1j * angles))).flatten(-2)
    got = apply_rotary(x, rotary(start, frames, height, width, head_dim))[0, :, 0]
    assert (got - expected).abs().max() < 1e-6


def run(model, prompt, options, offset, cleans, monkeypatch):
    """(latents, bytes of the state) of each chunk, with ``offset`` added to every position.

    The pass that writes the state is made on ``cleans``, which are filled where they are empty.
    """
    monkeypatch.setattr(model, "positions", lambda start, *rest: type(model).positions(model, start + offset, *rest))
    state = DiTState.for_plan(ChunkPlan(None), options)
    generator = torch.Generator().manual_seed(0)
    for chunk in range(CHUNKS):
        frames = 5 if chunk == 0 else 3
        noise, source = torch.randn(2, 1, model.config.in_channels, frames, *GRID, generator=generator).unbind(0)
        latents, _ = sample_chunk(model, state, prompt, noise, source, options, carry=False)
        if len(cleans) <= chunk:
            cleans.append(latents)
        blocks = state.read(sink_shift(state, frames, options.max_sink_distance))
        positions = model.positions(state.position, frames, *GRID, latents.device)
        _, written = model(cleans[chunk], torch.zeros(1), source, prompt, blocks, positions)
        commit_chunk(state, written, frames, last=False)
        yield latents, sum(value.numel() * value.element_size() for _, value in state.tensors())


@pytest.mark.parametrize("distance", [0, 14])
@torch.no_grad()
def test_only_distances_between_positions_count(distance, monkeypatch):
    """400 chunks from position 0 and from 5,000, the same clean latents in the state: equal at every chunk."""
    text = toys.networks()[2]
    # One block of each kind is enough for the property and takes half the time.
    model = random_dit(replace(toys.CONFIGS["dit"], depth=2, softmax_layers=(1,)))
    options = StreamOptions(steps=1, max_sink_distance=distance)
    embedding = text.encode("make it snow")
    prompt = prompt_context(model, options, embedding.embeds, embedding.mask)
    cleans: list[torch.Tensor] = []
    near = list(run(model, prompt, options, 0, cleans, monkeypatch))
    far = list(run(model, prompt, options, OFFSET, cleans, monkeypatch))
    assert len(near) == len(far) == CHUNKS
    for chunk, ((here, _), (there, _)) in enumerate(zip(near, far, strict=True)):
        assert here.isfinite().all()
        assert (here - there).abs().max() < 1e-4, chunk
    # The buffers are made for the largest window at the first write, and never again.
    assert len({size for _, size in near + far}) == 1
    assert near[5][0].abs().max() > 0.1
