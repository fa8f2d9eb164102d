"""The state of a stream under training: room for every chunk, the one after the last included."""

import compare
import pytest
import torch
from sana_streaming.sana_core.streaming.chunks import chunk_boundaries
from sana_streaming.sana_core.training.passes import carry_on, new_state, predict
from sana_streaming.sana_core.training.windows import plan_windows
from tiny_training import BATCH, NaiveStream, latents, network, prompt, seeded

TIMESTEP = torch.full((BATCH,), 893.0)


@pytest.mark.parametrize("frames", range(1, 9))
@torch.no_grad()
def test_every_chunk_of_a_short_clip_can_be_carried_on(frames):
    """Also the last; the chunk after it reads the same as from a stream written out by hand."""
    model, plan = network(), plan_windows(frames, chunk_size=frames)
    state, stream, context, generator = new_state(plan), NaiveStream(model), prompt(model, 3), seeded(5)
    assert plan.boundaries == chunk_boundaries(frames)
    sizes = plan.windows[0].chunk_sizes
    for x0, source in zip(latents(frames, 1).split(sizes, 2), latents(frames, 2).split(sizes, 2), strict=True):
        eps = torch.randn(x0.shape, generator=seeded(5 + state.num_frames))
        carry_on(model, state, context, x0, source, generator.manual_seed(5 + state.num_frames))
        stream.write(x0, eps, source, context)
    assert state.num_frames == frames and state.num_chunks == len(sizes)
    after, source = latents(3, 7), latents(3, 8)
    got, _ = predict(model, state, context, after, TIMESTEP, source)
    expected, _ = stream.call(after, TIMESTEP[0], source, context)
    compare.assert_near(got, expected, 1e-5)
    assert got.sub(predict(model, new_state(plan), context, after, TIMESTEP, source)[0]).abs().max() > 0.01


@pytest.mark.parametrize(("frames", "room"), [(1, 1), (3, 3), (5, 5), (6, 6), (7, 7), (8, 8)])
def test_room_is_that_of_the_clip(frames, room):
    """Two chunks are kept, and no clip of these has more: no byte is kept for a frame that nothing reads."""
    assert new_state(plan_windows(frames, chunk_size=frames)).capacity_frames == room
