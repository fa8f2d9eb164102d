import pytest
import torch
import torch.nn.functional as F
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.data.scenes import COLORS, SHAPES, Scene, Shot, make_photograph_scene, make_scene
from sana_streaming.sana_core.training.data.textures import PATTERNS

# One scene of every kind of background, with all shapes among them.
SEEDS = (1, 4, 5, 6, 10)
HEIGHT, WIDTH = 96, 150


def picture(height: int = 200, width: int = 260) -> torch.Tensor:
    """Soft spots of colour: something to take for a photograph."""
    spots = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(255 * spots, (height, width), mode="bilinear")[0].permute(1, 2, 0).to(torch.uint8)


def scenes() -> list[Scene]:
    return [make_scene(seed, HEIGHT, WIDTH) for seed in SEEDS] + [
        make_photograph_scene(picture(), 3, HEIGHT, WIDTH, num_objects=2),
        make_photograph_scene(picture(), 4, HEIGHT, WIDTH),
    ]


def warped_back(frames: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Frames [F, H, W, 3] read where the pixels of the frames before went to, with displacement in pixels."""
    _, height, width, _ = frames.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (columns + displacement[..., 0]) * 2 / (width - 1) - 1
    y = (rows + displacement[..., 1]) * 2 / (height - 1) - 1
    planes = frames.permute(0, 3, 1, 2).float()
    return F.grid_sample(planes, torch.stack([x, y], -1), align_corners=True).permute(0, 2, 3, 1)


def test_the_scenes_tested_have_everything():
    assert {scene.background.kind for scene in scenes()} == {*PATTERNS, "photograph"}
    assert {item.shape for scene in scenes() for item in scene.objects} == set(SHAPES)


@pytest.mark.parametrize("stride", [1, 3])
def test_pixels_go_where_the_motion_says(stride):
    for scene in scenes():
        shot = Shot(scene, range(20, 20 + 6 * stride, stride))
        frames = shot.frames()
        displacement, valid = shot.motion()
        assert displacement.shape == (5, HEIGHT, WIDTH, 2) and valid.shape == (5, HEIGHT, WIDTH)
        assert valid.dtype == torch.bool and valid.float().mean() > 0.75
        error = (warped_back(frames[1:], displacement) - frames[:-1]).abs().mean(-1)[valid]
        still = (frames[1:].float() - frames[:-1]).abs().mean(-1)[valid]
        # What is left is rounding, and what a bilinear reading does to textures two pixels fine.
        assert error.mean() < 1.0, scene.background.kind
        assert error.quantile(0.99) < 7, scene.background.kind
        assert error.mean() < 0.45 * still.mean(), scene.background.kind


def test_motion_is_valid_only_where_one_layer_is_seen_twice():
    shot = Shot(make_scene(10, HEIGHT, WIDTH), range(0, 12, 3))
    displacement, valid = shot.motion()
    visibility = shot.visibility()
    layers = visibility.argmax(1)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    hidden = 0
    for k in range(3):
        x, y = (columns + displacement[k, ..., 0]).round().long(), (rows + displacement[k, ..., 1]).round().long()
        inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
        assert not (valid[k] & ~inside).any()
        there = layers[k + 1][y.clamp(0, HEIGHT - 1), x.clamp(0, WIDTH - 1)]
        assert (there == layers[k])[valid[k]].all()
        assert (visibility[k].amax(0)[valid[k]] > 0.99).all()
        hidden += int((inside & (there != layers[k]) & ~valid[k]).sum())
    assert hidden > 50


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_the_drawn_pixels(seed):
    """Another colour for one layer changes exactly the pixels in which that layer is seen."""
    shot = Shot(make_scene(seed, HEIGHT, WIDTH), range(0, 90, 30))
    frames, visibility = shot.frames(), shot.visibility()
    torch.testing.assert_close(visibility.sum(1), torch.ones(3, HEIGHT, WIDTH))
    assert visibility.min() >= 0
    scene = shot.scene
    others = {
        item.shape: scene.recolored(item.shape, "cyan" if item.color != "cyan" else "red") for item in scene.objects
    }
    for name, changed in {"background": scene.with_plain_background((255, 0, 255)), **others}.items():
        different = (Shot(changed, shot.numbers).frames() != frames).any(-1)
        mask = shot.mask(name)
        assert not (different & ~mask).any()
        assert different[visibility[:, scene.layer(name)] > 0.1].float().mean() > 0.999


def test_shapes_have_their_colour():
    shot = Shot(make_scene(10, HEIGHT, WIDTH), range(0, 90, 30))
    frames, visibility = shot.frames(), shot.visibility()
    for k, item in enumerate(shot.scene.objects, start=1):
        mean = frames[visibility[:, k] > 0.9].float().mean(0)
        assert F.cosine_similarity(mean, torch.tensor(COLORS[item.color]).float(), dim=0) > 0.99, item


def test_depth_order():
    """The last object hides the others and nothing hides it; the first is hidden by all."""
    scene = make_scene(10, HEIGHT, WIDTH)
    overlap = 0.0
    for number in range(0, 240, 20):
        alone = [
            Scene(HEIGHT, WIDTH, scene.period, scene.background, scene.camera, (item,)).visibility(number)[1]
            for item in scene.objects
        ]
        seen = scene.visibility(number)[1:]
        torch.testing.assert_close(seen[-1], alone[-1])
        left = torch.ones(HEIGHT, WIDTH)
        for k in reversed(range(len(alone))):
            torch.testing.assert_close(seen[k], alone[k] * left)
            left = left * (1 - alone[k])
        overlap += float((sum(alone) > 1.5).sum())
    assert overlap > 100


def test_a_seed_is_a_scene():
    first, again = make_scene(7, HEIGHT, WIDTH), make_scene(7, HEIGHT, WIDTH)
    assert torch.equal(first.frame(31), again.frame(31))
    assert torch.equal(Shot(first, range(30, 33)).frames()[1], again.frame(31))
    assert not torch.equal(first.frame(31), make_scene(8, HEIGHT, WIDTH).frame(31))
    assert not torch.equal(first.frame(31), first.frame(32))


def test_a_scene_repeats():
    scene = make_scene(7, HEIGHT, WIDTH, period=48)
    assert torch.equal(scene.frame(5), scene.frame(5 + 48))
    assert torch.equal(scene.frame(5), scene.frame(5 + 48 * 1_000))
    assert not torch.equal(scene.frame(5), scene.frame(5 + 24))


def test_the_evaluation_scenes_stay_what_they_are():
    described = {
        seed: (scene.background.kind, [f"{item.color} {item.shape}" for item in scene.objects])
        for seed in (1, 4, 5, 10)
        for scene in [make_scene(seed, 160, 256)]
    }
    assert described == {
        1: ("landscape", ["red triangle", "orange box", "pink ring", "purple ball"]),
        4: ("checker", ["pink box", "orange triangle", "blue star"]),
        5: ("noise", ["green star"]),
        10: ("stripes", ["green box", "orange triangle", "blue ring", "yellow ball"]),
    }


@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 31), (40, 16)])
def test_any_size(height, width):
    shot = Shot(make_scene(10, height, width), range(3))
    assert shot.frames().shape == (3, height, width, 3) and shot.frames().dtype == torch.uint8
    assert shot.visibility().shape == (3, 5, height, width)
    assert shot.mask("ball").shape == (3, height, width)
    assert shot.motion()[0].shape == (2, height, width, 2)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (96, 40)])
def test_the_view_stays_inside_the_photograph(height, width):
    for seed in range(20):
        scene = make_photograph_scene(picture(), seed, height, width)
        half_height = scene.background.height / 2
        half_width = half_height * scene.background.picture.shape[1] / scene.background.picture.shape[0]
        corner_x, corner_y = torch.tensor([-1.0, 1.0]) * width / height / 2, torch.tensor([-0.5, 0.5])
        for number in range(0, scene.period, 5):
            x, y = scene.camera.at(number, scene.period).to_layer(corner_x, corner_y)
            # A picture that was scaled down has a width of whole pixels.
            assert x.abs().max() < half_width + 0.01 and y.abs().max() < half_height + 1e-5


def test_errors_are_one_line():
    scene = make_scene(5, 32, 32)
    for call in (
        lambda: make_scene(1, 7, 32),
        lambda: make_scene(1, 32, 32, period=0),
        lambda: make_photograph_scene(picture(), 1, 32, 32, num_objects=6),
        lambda: scene.recolored("ball", "red"),
        lambda: scene.recolored("star", "beige"),
        lambda: Shot(scene, range(2)).mask("hat"),
    ):
        with pytest.raises(InputError, match=r"^[^\n]*(choose|give)[^\n]*$"):
            call()
