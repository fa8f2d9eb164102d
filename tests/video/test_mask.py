"""Source and edit mixed by a mask."""

import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.geometry import pixels_to_uint8, resize_and_crop
from sana_streaming.sana_core.video.mask import MaskBlend

SOURCE, EDITED = toys.frames(5, 32, 48), toys.frames(5, 32, 48, seed=1)


def left_half(height=32, width=48):
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


def test_hard_border_takes_either_exactly():
    mixed = MaskBlend(left_half(), 32, 48).blend(SOURCE, EDITED)
    assert mixed.dtype == torch.uint8
    assert torch.equal(mixed[:, :, :24], EDITED[:, :, :24])
    assert torch.equal(mixed[:, :, 24:], SOURCE[:, :, 24:])


def test_soft_border_goes_over_within_its_width():
    white, black = torch.full((1, 32, 48, 3), 255).byte(), torch.zeros(1, 32, 48, 3).byte()
    row = MaskBlend(left_half(), 32, 48, feather=6).blend(black, white)[0, 16, :, 0].int()
    assert (row[:18] == 255).all() and (row[30:] == 0).all()
    assert (row[17:31].diff() < 0).all()
    # The border lies between the two middle columns.
    assert row[23] + row[24] == pytest.approx(255, abs=1)
    across = MaskBlend(left_half(48, 32).T, 32, 48, feather=6).blend(black, white)[0, :, 20, 0]
    assert (across.int().diff() <= 0).all() and across[0] == 255


def test_masks_of_another_size_are_fitted_as_the_source_is():
    """Scaled to fill and cut to the middle, so that it lies where it lay on the source."""
    wide = toys.frames(1, 64, 192)
    mask = torch.zeros(64, 192)
    mask[:, 96:] = 1
    mixed = MaskBlend(mask, 32, 48).blend(wide, EDITED[:1])
    fitted = pixels_to_uint8(resize_and_crop(wide, 32, 48))
    assert torch.equal(mixed[:, :, 25:], EDITED[:1, :, 25:])
    assert (mixed[:, :, :23].int() - fitted[:, :, :23].int()).abs().max() <= 1


@pytest.mark.parametrize("pushes", [[5], [1, 4], [2, 1, 2]])
def test_one_mask_for_each_frame_and_the_last_goes_on(pushes):
    masks = torch.stack([torch.ones(32, 48), torch.zeros(32, 48), left_half()])
    blend = MaskBlend(masks, 32, 48)
    mixed = torch.cat([blend.blend(*pair) for pair in zip(SOURCE.split(pushes), EDITED.split(pushes), strict=True)])
    assert torch.equal(mixed[0], EDITED[0])
    assert torch.equal(mixed[1], SOURCE[1])
    for i in (2, 3, 4):
        assert torch.equal(mixed[i, :, :24], EDITED[i, :, :24])
        assert torch.equal(mixed[i, :, 24:], SOURCE[i, :, 24:])


def test_floating_point_frames():
    mixed = MaskBlend(left_half(), 32, 48).blend(SOURCE.float() / 255, EDITED.float() / 255)
    assert torch.equal(mixed, MaskBlend(left_half(), 32, 48).blend(SOURCE, EDITED))


def test_what_is_no_mask():
    for mask in (torch.zeros(1, 1, 4, 4), torch.zeros(0, 4, 4), torch.zeros(4, 4).byte()):
        with pytest.raises(InputError, match="expected \\[frames, height, width\\]"):
            MaskBlend(mask, 32, 48)
    with pytest.raises(InputError, match="feather is -1"):
        MaskBlend(left_half(), 32, 48, feather=-1)
    with pytest.raises(InputError, match="no numbers"):
        MaskBlend(left_half() / 0, 32, 48).blend(SOURCE, EDITED)
    with pytest.raises(ValueError, match="expected"):
        MaskBlend(left_half(), 32, 48).blend(SOURCE, EDITED[:4])
