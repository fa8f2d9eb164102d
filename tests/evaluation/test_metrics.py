"""Metrics on cases whose value is known."""

import math

import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.evaluation import metrics
from sana_streaming.sana_core.evaluation.editor import chunk_starts
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.training.data.scenes import Shot, make_scene


def clip(num_frames=6, height=10, width=14, seed=0):
    """uint8, with room for 100 levels upwards."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 156, (num_frames, height, width, 3), generator=generator).to(torch.uint8)


def test_psnr():
    assert metrics.psnr(1) == pytest.approx(20 * math.log10(255))
    assert metrics.psnr(255**2) == 0
    assert metrics.psnr(0) == metrics.psnr(1e-30) == metrics.MAX_PSNR


def test_frame_errors_and_clip_psnr():
    truth = clip()
    output = truth.clone()
    output[1] += 3
    output[4, :, :, 2] += 6
    assert metrics.frame_errors(output, truth).tolist() == pytest.approx([0, 9, 0, 0, 12, 0])
    # Of the clip's mean error, not the mean of the frames' dB; and the same when light turns to dark.
    assert metrics.clip_psnr(output, truth) == pytest.approx(10 * math.log10(255**2 / 3.5))
    assert metrics.clip_psnr(truth, output) == metrics.clip_psnr(output, truth)
    assert metrics.clip_psnr(truth, truth) == metrics.MAX_PSNR


def test_masked_psnr_counts_pixels_not_frames():
    truth = clip(2)
    mask = torch.zeros(2, 10, 14, dtype=torch.bool)
    mask[0, 0, :3], mask[1, 5, 5] = True, True
    output = truth.clone()
    output[0, 0, :3] += 2
    output[1, 5, 5, 0] += 6
    output[0, 9, 9] += 100
    assert metrics.masked_psnr(output, truth, mask) == pytest.approx(10 * math.log10(255**2 * 4 / (3 * 4 + 12)))
    assert metrics.masked_psnr(output, truth, ~mask) == pytest.approx(10 * math.log10(255**2 * 276 / 100**2))
    assert metrics.masked_psnr(output, truth, mask & False) is None


@pytest.mark.parametrize("wrong", [clip(5), clip(6, 10, 1), clip(6)[..., :1]])
def test_clips_of_other_shapes_are_refused(wrong):
    with pytest.raises(InputError, match=r"^frames of shape [^\n]*one length and size$"):
        metrics.frame_errors(wrong, clip())


@pytest.mark.parametrize(("right", "down"), [(2, 1), (-3, 0), (0, -2)])
def test_a_known_shift_has_no_warping_error(right, down):
    """A picture that moves by whole pixels a frame."""
    frames = torch.stack([clip(1)[0].roll((down * i, right * i), (0, 1)) for i in range(4)])
    displacement = torch.tensor([right, down]).float().expand(3, 10, 14, 2)
    rows, columns = torch.meshgrid(torch.arange(10), torch.arange(14), indexing="ij")
    valid = (rows + down >= 0) & (rows + down < 10) & (columns + right >= 0) & (columns + right < 14)
    valid = valid.expand(3, -1, -1)
    assert metrics.warping_error(frames, displacement, valid) == pytest.approx(0, abs=1e-3)
    # Half a pixel off, between two columns that differ by 8.
    ramp = (torch.arange(14, dtype=torch.uint8) * 8).view(1, 1, 14, 1).expand(4, 10, 14, 3)
    inside = torch.zeros_like(valid)
    inside[:, :, 2:12] = True
    half = torch.tensor([0.5, 0.0]).expand(3, 10, 14, 2)
    assert metrics.warping_error(ramp, half, inside) == pytest.approx(4, rel=1e-4)


def test_warping_error_of_flicker():
    """Every second frame 10 levels brighter; what is not valid has no part."""
    frames = clip(1).repeat(5, 1, 1, 1)
    frames[1::2] += 10
    frames[:, 0, 0] = clip(5)[:, 3, 3]
    still, valid = torch.zeros(4, 10, 14, 2), torch.ones(4, 10, 14, dtype=torch.bool)
    valid[:, 0, 0] = False
    assert metrics.warping_error(frames, still, valid) == pytest.approx(10, rel=1e-5)
    assert metrics.warping_error(frames, still, valid & False) is None


def test_a_scene_hardly_departs_from_its_motion():
    shot = Shot(make_scene(10, 48, 64), range(6))
    displacement, valid = shot.motion()
    frames = shot.frames()
    following = metrics.warping_error(frames, displacement, valid)
    assert 0 < following < 4
    assert metrics.warping_error(frames, torch.zeros_like(displacement), valid) > 2 * following
    assert metrics.warping_error(frames, -displacement, valid) > 3 * following


def test_boundary_jump():
    still = torch.full((9, 4, 4, 3), 50, dtype=torch.uint8)
    truth = still + torch.arange(9, dtype=torch.uint8)[:, None, None, None] * 2
    truth_steps = metrics.squared_steps(truth)
    assert truth_steps.tolist() == [4.0] * 8
    assert metrics.boundary_jump(truth_steps, truth_steps, [3, 6]) == 1
    jumping = truth.clone()
    jumping[3:] += 4
    # Steps of 2 inside, one of 6 and one of 2 across.
    assert metrics.boundary_jump(metrics.squared_steps(jumping), truth_steps, [3, 6]) == pytest.approx((36 + 4) / 2 / 4)
    # A truth that jumps itself is no fault of the output.
    assert metrics.boundary_jump(metrics.squared_steps(jumping), metrics.squared_steps(jumping), [3]) == 1
    assert metrics.boundary_jump(truth_steps, metrics.squared_steps(jumping), [3]) == pytest.approx(1 / 9)
    assert metrics.boundary_jump(truth_steps, truth_steps, []) is None
    assert metrics.boundary_jump(metrics.squared_steps(still), truth_steps, [3]) is None
    assert metrics.boundary_jump(truth_steps, metrics.squared_steps(still), [3]) is None


@pytest.mark.parametrize(
    ("total", "frames", "starts"),
    [(97, 97, [25, 49, 73]), (100, 100, [33, 57, 81]), (33, 33, []), (None, 33, []), (None, 82, [33, 57, 81])],
)
def test_chunk_starts(total, frames, starts):
    assert chunk_starts(ChunkPlan(total), frames) == starts


def test_a_seam_is_what_chunks_add_to_the_steps_between_latent_frames():
    """Every second step is large, as where latent frames begin; the one where a chunk begins is larger still."""
    steps = torch.tensor([1.0, 4.0, 1.0, 6.0, 1.0, 4.0], dtype=torch.float64)
    even = torch.ones_like(steps)
    assert metrics.boundary_jump(steps, even, [4], [2, 4, 6]) == pytest.approx(6 / 4)
    assert metrics.boundary_jump(steps, even, [4]) == pytest.approx(6 / (11 / 5))
    assert metrics.boundary_jump(steps, even, [4], [4]) is None
