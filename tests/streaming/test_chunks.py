import golden_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.chunks import (
    ChunkPlan,
    cache_capacity,
    chunk_boundaries,
    kept_chunks,
    latent_frames,
    spans,
)


@pytest.mark.golden
def test_official_frame_rules():
    for rule in golden_files.load_json("text/chunk_plans.json")["frame_rules"]:
        if not rule["is_8k_plus_1"]:
            continue
        assert latent_frames(rule["num_frames"]) == rule["latent_frames"]
        if rule["streaming_allowed"]:
            assert chunk_boundaries(rule["latent_frames"]) == rule["chunk_boundaries"]


@pytest.mark.golden
def test_official_plans():
    for name, plan in golden_files.load_json("text/chunk_plans.json")["plans"].items():
        borders = chunk_boundaries(plan["latent_frames"])
        assert borders == plan["boundaries"], name
        for chunk in plan["chunks"]:
            kept = kept_chunks(chunk["chunk"], plan["num_cached_blocks"], plan["sink_token"])
            frames = [frame for earlier in kept for frame in range(borders[earlier], borders[earlier + 1])]
            assert frames == chunk["cached_latent_frames"], (name, chunk["chunk"])
            assert borders[chunk["chunk"] : chunk["chunk"] + 2] == [chunk["start"], chunk["end"]]


@pytest.mark.parametrize(
    ("frames", "first", "chunks"),
    [(1, 1, 1), (2, 2, 1), (24, 4, 1), (25, 4, 1), (33, 5, 1), (34, 3, 2), (81, 5, 3), (969, 5, 40), (970, 3, 41)],
)
def test_known_length(frames, first, chunks):
    plan = ChunkPlan(frames)
    assert (plan.first_latents, plan.total_chunks) == (first, chunks)
    taken = sum(plan.pixel_frames(chunk) for chunk in range(chunks))
    assert 0 <= taken - frames < 8
    assert plan.is_last(chunks - 1)
    assert not plan.is_last(chunks - 2)


def test_unknown_length():
    plan = ChunkPlan(None)
    assert [plan.pixel_frames(chunk) for chunk in range(3)] == [33, 24, 24]
    assert plan.total_chunks is None
    assert not plan.is_last(10**6)
    with pytest.raises(InputError, match="num_cached_blocks 0 .* unknown length"):
        plan.cache_capacity(0, True)


@pytest.mark.parametrize(("chunk", "frames", "padded"), [(0, 1, 1), (0, 2, 9), (0, 33, 33), (1, 1, 8), (3, 17, 24)])
def test_padding_at_the_end(chunk, frames, padded):
    assert ChunkPlan(None).padded_frames(chunk, frames) == padded


@given(st.integers(1, 400), st.integers(-1, 5), st.booleans())
def test_plans_are_sound(total, window, sink):
    borders = chunk_boundaries(total)
    sizes = [stop - start for start, stop in spans(borders)]
    assert borders[-1] == total
    assert set(sizes[1:]) <= {3}
    assert sizes[0] == min(total, 3 + total % 3)
    for chunk in range(len(sizes)):
        kept = kept_chunks(chunk, window, sink)
        assert kept == sorted(set(kept))
        assert len(kept) == (min(chunk, window) if window > 0 else chunk)
        assert sum(sizes[k] for k in kept) <= cache_capacity(borders, window, sink)


def test_no_frames():
    with pytest.raises(InputError, match="0 frames"):
        latent_frames(0)
