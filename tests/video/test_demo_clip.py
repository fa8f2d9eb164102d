import pytest
import torch
from sana_streaming.sana_core.video.demo_clip import BALL, BOX, demo_frames

SIZES = [(64, 96), (96, 64), (90, 40), (48, 192), (33, 35)]


def scene(num_frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.stack(list(demo_frames(num_frames, height, width, seed)))


def place(frame: torch.Tensor, color: tuple[int, ...]) -> tuple[float, float, float]:
    """Centre (row, column) of what has about this colour's hue, and how much of the frame it is."""
    direction = torch.tensor(color, dtype=torch.float32)
    likeness = torch.nn.functional.cosine_similarity(frame.float() + 1e-3, direction.expand_as(frame), dim=-1)
    rows, columns = torch.nonzero(likeness > 0.995, as_tuple=True)
    assert len(rows), f"nothing of {color} is in the picture"
    return float(rows.float().mean()), float(columns.float().mean()), len(rows) / likeness.numel()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_frames_are_pictures_of_any_shape(size: tuple[int, int]) -> None:
    frames = scene(25, *size)
    assert frames.dtype == torch.uint8 and frames.shape == (25, *size, 3)
    for frame in frames[::6]:
        # Sky above, ground below, and enough between black and white to see.
        assert frame.float().std() > 15
        assert frame[0].float().mean(0)[2] > frame[-1].float().mean(0)[2] + 40


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first = scene(5, 48, 64, seed=3)
    # What others draw at random makes no difference, and the scene takes nothing from what they draw.
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(scene(5, 48, 64, seed=3), first)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(scene(5, 48, 64, seed=4), first)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_frame_does_not_depend_on_how_many_follow(size: tuple[int, int]) -> None:
    long = scene(30, *size)
    for count in (1, 7, 29):
        assert torch.equal(scene(count, *size), long[:count])
    assert list(demo_frames(0, *size)) == []


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ball_box_and_hills_move(size: tuple[int, int], seed: int) -> None:
    frames = scene(49, *size, seed=seed)
    changes = (frames[1:].int() - frames[:-1].int()).abs().float().mean((1, 2, 3))
    # It moves all the time, and no frame is a cut.
    assert changes.min() > 0.2 and changes.max() < 40
    balls = torch.tensor([place(frame, BALL)[:2] for frame in frames])
    boxes = torch.tensor([place(frame, BOX)[:2] for frame in frames])
    assert balls[:, 0].max() - balls[:, 0].min() > 0.2 * size[0]
    assert boxes[:, 1].max() - boxes[:, 1].min() > 0.01 * size[1]
    hills = frames[:, -1].float()
    assert (hills[1:] - hills[:-1]).abs().mean((1, 2)).min() > 0.1


def test_what_is_brighter_than_white_stays_bright() -> None:
    frame = scene(1, 64, 96)[0]
    row, column, _ = place(frame, BALL)
    assert frame[round(row), round(column), 0] == 255


def test_the_scene_is_the_same_at_every_size() -> None:
    small, large = scene(1, 48, 64)[0], scene(1, 96, 128)[0]
    shrunk = large.float().view(48, 2, 64, 2, 3).mean((1, 3))
    assert (shrunk - small.float()).abs().mean() < 6
