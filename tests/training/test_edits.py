import itertools
from dataclasses import replace

import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.data.edits import BACKGROUND_COLORS, EDITS
from sana_streaming.sana_core.training.data.scenes import COLORS, SHAPES, Shot, make_scene

GLOBAL = [name for name, edit in EDITS.items() if not edit.masked]
SHOT = Shot(make_scene(10, 96, 150), range(40, 80, 13))


def frames() -> torch.Tensor:
    """Every kind of colour, at an odd size."""
    return torch.randint(0, 256, (3, 37, 61, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def grey() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3).contiguous()


def applied(name: str, source: torch.Tensor) -> torch.Tensor:
    return EDITS[name].apply(source, None, {})


def luma(source: torch.Tensor) -> torch.Tensor:
    return source.float() @ torch.tensor([0.299, 0.587, 0.114])


def test_the_edits_are_those_promised():
    assert set(GLOBAL) == {"keep", "black_and_white", "sepia", "night", "sunset", "negative", "pixel_art"}
    assert set(EDITS) - set(GLOBAL) == {"object_color", "plain_background"}


@pytest.mark.parametrize("name", GLOBAL)
def test_global_edits_are_functions_of_each_frame_alone(name):
    source = frames()
    result = applied(name, source)
    assert result.dtype == torch.uint8 and result.shape == source.shape
    assert torch.equal(source, frames())
    assert result.data_ptr() != source.data_ptr()
    for i in range(len(source)):
        assert torch.equal(applied(name, source[i : i + 1])[0], result[i])
    assert EDITS[name].choices(None) == ({},) and EDITS[name].mask(SHOT, {}) is None


def test_keep_and_negative_are_exact():
    source = frames()
    assert torch.equal(applied("keep", source), source)
    assert torch.equal(applied("negative", source).int() + source.int(), torch.full_like(source, 255).int())
    assert torch.equal(applied("negative", applied("negative", source)), source)


def test_black_and_white_is_luma():
    result = applied("black_and_white", frames())
    assert torch.equal(result[..., 0], result[..., 1]) and torch.equal(result[..., 0], result[..., 2])
    assert (result[..., 0] - luma(frames())).abs().max() < 0.51
    assert torch.equal(applied("black_and_white", grey()), grey())


def test_sepia_is_brown_and_has_one_hue():
    result = applied("sepia", frames())
    red, green, blue = result.float().unbind(-1)
    assert (red > green).all() and (green >= blue).all()
    assert (red - (20 + 1.02 * luma(frames())).clamp(max=255)).abs().max() < 0.51
    assert (luma(result) - luma(frames())).abs().mean() < 20


def test_night_is_dark_and_blue():
    result = applied("night", frames())
    assert (result[..., 2] > result[..., 0]).all() and (result[..., 2] >= result[..., 1]).all()
    assert luma(result).mean() < 0.45 * luma(frames()).mean()
    assert (luma(applied("night", grey())).view(-1).diff() >= 0).all()


def test_sunset_is_warm_and_keeps_hues_apart():
    red, green, blue = applied("sunset", grey())[0].float().unbind(-1)
    assert ((red > green + 30) & (green >= blue - 3)).view(-1)[16:].all()
    colors = torch.tensor([[[[200, 40, 40], [40, 200, 40], [40, 40, 200]]]], dtype=torch.uint8)
    result = applied("sunset", colors)[0, 0].int()
    assert result[1, 1] > result[0, 1] + 60 and result[0, 0] > result[2, 0] + 60


@pytest.mark.parametrize(("height", "width"), [(160, 256), (96, 150), (37, 61)])
def test_pixel_art_is_squares(height, width):
    source = torch.randint(0, 256, (2, height, width, 3), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    result = applied("pixel_art", source)
    side = {160: 8, 96: 5, 37: 2}[height]
    seen = []
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        square = result[:, top : top + side, left : left + side]
        assert (square == square[:, :1, :1]).all()
        mean = source[:, top : top + side, left : left + side].float().mean((1, 2))
        # Rounded to the nearest of the levels, 255 / 31 apart.
        assert (luma(square[:, 0, 0]) - luma(mean)).abs().max() < 255 / 62 + 6
        seen.append(square[:, 0, 0])
    assert len(torch.stack(seen).view(-1, 3).unique(dim=0)) > 50


def test_pixel_art_leaves_grey_grey_and_rounds_brightness():
    result = applied("pixel_art", grey().repeat_interleave(20, 1).repeat_interleave(20, 2))
    assert torch.equal(result[..., 0], result[..., 2])
    assert 24 < len(result.unique()) <= 32


@pytest.mark.parametrize("name", ["object_color", "plain_background"])
def test_masked_edits_change_their_layer_alone(name):
    edit, source = EDITS[name], SHOT.frames()
    choices = edit.choices(SHOT)
    assert len(choices) >= 6
    for parameters in choices[:: len(choices) // 5]:
        truth, mask = edit.apply(source, SHOT, parameters), edit.mask(SHOT, parameters)
        assert mask.dtype == torch.bool and mask.shape == source.shape[:3]
        assert mask.flatten(1).any(1).all() and not mask.all()
        assert torch.equal(truth[~mask], source[~mask])
        assert (truth != source).any(-1)[mask].float().mean() > 0.95


def test_an_object_takes_the_colour_and_gives_it_back():
    source, visibility = SHOT.frames(), SHOT.visibility()
    for parameters in EDITS["object_color"].choices(SHOT):
        assert parameters["color"] != parameters["original"]
        truth = EDITS["object_color"].apply(source, SHOT, parameters)
        inside = visibility[:, SHOT.scene.layer(parameters["object"])] > 0.9
        mean = truth[inside].float().mean(0)
        nearest = max(COLORS, key=lambda color: torch.cosine_similarity(mean, torch.tensor(COLORS[color]), dim=0))
        assert nearest == parameters["color"]
        changed = Shot(SHOT.scene.recolored(parameters["object"], parameters["color"]), SHOT.numbers)
        back = EDITS["object_color"].apply(truth, changed, {**parameters, "color": parameters["original"]})
        assert torch.equal(back, source)


def test_a_plain_background_is_one_colour_that_no_object_has():
    source, visibility = SHOT.frames(), SHOT.visibility()
    choices = EDITS["plain_background"].choices(SHOT)
    assert {p["color"] for p in choices} == set(BACKGROUND_COLORS) - {item.color for item in SHOT.scene.objects}
    for parameters in choices:
        truth = EDITS["plain_background"].apply(source, SHOT, parameters)
        color = torch.tensor(BACKGROUND_COLORS[parameters["color"]], dtype=torch.uint8)
        assert (truth[visibility[:, 0] == 1] == color).all()


def test_masked_edits_fit_only_what_can_be_seen():
    bare = replace(SHOT, scene=replace(SHOT.scene, objects=()))
    for name in ("object_color", "plain_background"):
        assert EDITS[name].choices(None) == () == EDITS[name].choices(bare)
    hidden = Shot(make_scene(10, 96, 150), range(0, 240, 60))
    offered = {parameters["object"] for parameters in EDITS["object_color"].choices(hidden)}
    shares = hidden.visibility()[[0, 2, 3]].mean((2, 3))
    seen = {item.shape for k, item in enumerate(hidden.scene.objects, 1) if shares[:, k].min() > 0.01}
    assert offered == seen == {"box", "ring", "ball"}


def every_wording():
    """(edit, forward or reverse, parameters' wordings) over all that the wordings can be filled with."""
    for name, edit in EDITS.items():
        choices = [{}]
        if edit.masked:
            shots = [Shot(make_scene(seed, 64, 96), range(1)) for seed in range(60)]
            choices = [parameters for shot in shots for parameters in edit.choices(shot)]
        for parameters in choices:
            yield name, edit.instructions(parameters), edit.reverse_instructions(parameters)


def test_wordings():
    owners: dict[str, str] = {}
    shapes_named = set()
    for name, forward, reverse in every_wording():
        assert len(set(forward)) == len(forward) >= 4 and len(set(reverse)) == len(reverse) >= 4
        assert name == "keep" or not set(forward) & set(reverse)
        for wording in (*forward, *reverse):
            assert "{" not in wording and wording == wording.strip().lower()
            assert owners.setdefault(wording, name) == name, f"{wording!r} asks for {owners[wording]} and for {name}"
            shapes_named |= set(SHAPES) & set(wording.split())
        if name != "keep":
            assert any("colour" in wording for wording in (*forward, *reverse)), name
            assert any("color" in wording for wording in (*forward, *reverse)), name
    assert shapes_named == set(SHAPES)


def test_different_parameters_are_different_words():
    for name in ("object_color", "plain_background"):
        texts = [EDITS[name].instructions(parameters) for parameters in EDITS[name].choices(SHOT)]
        assert len(set(itertools.chain(*texts))) == sum(map(len, texts))


def test_errors_are_one_line():
    source = SHOT.frames()
    parameters = EDITS["object_color"].choices(SHOT)[0]
    for call in (
        lambda: applied("sepia", source.float()),
        lambda: applied("sepia", source[0]),
        lambda: EDITS["object_color"].apply(source, None, parameters),
        lambda: EDITS["object_color"].apply(source[:2], SHOT, parameters),
        lambda: EDITS["object_color"].apply(source, SHOT, {**parameters, "color": "beige"}),
        lambda: EDITS["plain_background"].apply(source, SHOT, {"color": "beige"}),
    ):
        with pytest.raises(InputError, match=r"^[^\n]*(choose|give)[^\n]*$"):
            call()
