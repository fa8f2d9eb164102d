"""Colours of an edit brought to those of its source."""

import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.colour import ColourMatch, from_oklab, to_oklab

SOURCE = toys.frames(12, 48, 64)
# The same scene with another exposure, contrast and tint.
EDITED = (0.6 * SOURCE.float() + torch.tensor([60.0, 20.0, 0.0])).round().byte()


def match(source, edited, chunks=(12,), **options):
    colours = ColourMatch(48, 64, **options)
    parts = []
    for before, after in zip(source.split(list(chunks)), edited.split(list(chunks)), strict=True):
        colours.offer(before)
        parts.append(colours.match(after))
    return torch.cat(parts)


def distance(a, b):
    return float((a.float() - b.float()).abs().mean())


def test_oklab_of_known_colours():
    """From the table of its author: white, red, green, blue, black."""
    rgb = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    expected = torch.tensor(
        [[1, 0, 0], [0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312], [0, 0, 0]]
    )
    torch.testing.assert_close(to_oklab(rgb), expected, atol=1e-3, rtol=0)
    levels = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(from_oklab(to_oklab(levels)), levels, atol=2e-5, rtol=0)


def test_a_changed_exposure_comes_back():
    assert distance(EDITED, SOURCE) > 20
    assert distance(match(SOURCE, EDITED), SOURCE) < 5
    half = match(SOURCE, EDITED, strength=0.5)
    assert distance(half, SOURCE) == pytest.approx(distance(EDITED, SOURCE) / 2, rel=0.25)


def test_what_has_the_colours_already_stays():
    assert (match(SOURCE, SOURCE, (5, 7)).int() - SOURCE.int()).abs().max() <= 1
    assert (match(SOURCE, EDITED, strength=0.0).int() - EDITED.int()).abs().max() <= 1


def test_nothing_flickers_where_chunks_differ():
    """An edit whose brightness jumps by 40 from chunk to chunk: what is added to it goes over slowly, frame by frame."""
    still = SOURCE[:1].expand(24, -1, -1, -1)
    offsets = torch.tensor([0.0, 40.0, 0.0, 40.0]).repeat_interleave(6)
    edited = (0.7 * still.float() + offsets[:, None, None, None]).round().byte()
    added = (match(still, edited, (6, 6, 6, 6)).float() - edited.float()).mean((1, 2, 3))
    assert added.max() - added.min() > 10
    # Without averages and transitions it would jump by about 40, as the edit does.
    assert added.diff().abs().max() < 12


def test_within_a_chunk_the_change_goes_over_evenly():
    grey = torch.full((12, 48, 64, 3), 128).byte()
    # Two opposite colours, so that there is something to deviate.
    grey[:, :, ::2] += 20
    darker = grey - 40
    source = torch.cat([darker[:6], grey[6:]])
    means = match(source, darker, (6, 6)).float().mean((1, 2, 3))
    assert means[:6].std() < 0.1
    steps = means[5:].diff()
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.min()


def test_a_flat_edit_gets_no_noise():
    flat = torch.full_like(SOURCE, 90)
    flat[..., :2, :2, :] = 94
    assert match(SOURCE, flat).float().std((1, 2)).max() < 6


def test_split_pushes_give_the_same_bits():
    once, often = ColourMatch(48, 64), ColourMatch(48, 64)
    once.offer(SOURCE)
    for frame in SOURCE.split(1):
        often.offer(frame)
    assert torch.equal(once.match(EDITED), often.match(EDITED))


def test_errors():
    with pytest.raises(InputError, match="colour match 1.5 is out of range"):
        ColourMatch(48, 64, strength=1.5)
    with pytest.raises(ValueError, match="12 edited frames came, 0 source"):
        ColourMatch(48, 64).match(EDITED)
