from itertools import pairwise

import golden_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.chunks import chunk_boundaries
from sana_streaming.sana_core.training.windows import plan_windows


@pytest.mark.golden
def test_official_rollouts():
    for rollout in golden_files.load_json("text/training_math.json")["rollouts"]:
        later, offered = iter(rollout["windows"][1:]), []

        def choose(choices, later=later, offered=offered):
            offered.append(list(choices))
            return next(later)["new_frames"]

        sizes = (rollout["max_length"], rollout["chunk_size"], rollout["min_new"], rollout["block"])
        plan = plan_windows(*sizes, choose=choose)
        assert offered == [expected["choices"] for expected in rollout["windows"][1:]]
        assert len(plan.windows) == len(rollout["windows"])
        assert plan.frames_generated == rollout["frames_generated"]
        assert plan.frames_left_unused == rollout["frames_left_unused"]
        for window, expected in zip(plan.windows, rollout["windows"], strict=True):
            got = {name: getattr(window, name) for name in expected if hasattr(window, name)}
            got |= {
                # What the release names apart and is said otherwise here.
                "choices": expected["choices"],
                "concatenated_frames": window.history_frames + window.new_frames,
                "first_frame_reencoded": window.history_frames > 0,
                "first_global_chunk": plan.boundaries.index(window.start),
            }
            got |= {name: list(value) for name, value in got.items() if isinstance(value, tuple)}
            assert got == expected


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 8), st.integers(0, 60))


@given(sizes, st.randoms(use_true_random=False))
def test_every_frame_once(size, random):
    """Whatever the sizes and choices: windows and their chunks follow each other without gap or overlap."""
    block, blocks, extra, more = size
    min_new = block * blocks
    chunk_size = min_new + extra
    plan = plan_windows(chunk_size + more, chunk_size, min_new, block, random.choice)
    frames = []
    for window in plan.windows:
        assert window.sub_chunks[0] == window.start
        assert window.sub_chunks[-1] == window.stop
        assert sum(window.chunk_sizes) == window.new_frames
        assert all(0 < length < 2 * block for length in window.chunk_sizes)
        start, stop = window.grad_true_range
        assert stop - start == window.new_frames
        assert start >= (1 if window.start else 0)
        frames += range(window.start, window.stop)
    assert frames == list(range(plan.frames_generated))
    assert plan.frames_generated + plan.frames_left_unused == chunk_size + more
    assert plan.frames_left_unused >= 0
    if extra:
        assert plan.frames_left_unused < min_new


@given(st.integers(11, 400))
def test_released_plan_has_the_chunks_of_inference(num_frames):
    plan = plan_windows(num_frames)
    assert plan.boundaries == chunk_boundaries(plan.frames_generated)
    assert plan.frames_left_unused == (num_frames - 11) % 9
    sizes = [size for window in plan.windows for size in window.chunk_sizes]
    assert sizes == [stop - start for start, stop in pairwise(plan.boundaries)]


@given(st.integers(1, 60))
def test_a_whole_clip_as_one_window(num_frames):
    plan = plan_windows(num_frames, chunk_size=num_frames)
    assert plan.boundaries == chunk_boundaries(num_frames)


def test_bad_sizes():
    with pytest.raises(InputError, match=r"10 latent frames .* first window of 11"):
        plan_windows(10)
    for min_new in (0, 10):
        with pytest.raises(InputError, match=rf"min_new {min_new} .* multiple of 3"):
            plan_windows(56, min_new=min_new)
