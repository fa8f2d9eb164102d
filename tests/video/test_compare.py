from fractions import Fraction

import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.compare import WIPE_SECONDS, Comparison
from sana_streaming.sana_core.video.geometry import pixels_to_uint8, resize_and_crop

RATE = Fraction(10)


def fitted(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return pixels_to_uint8(resize_and_crop(frames, height, width))


def test_side_by_side_is_the_fitted_source_and_the_edit() -> None:
    source, edited = toys.frames(20, 50, 90), toys.frames(20, 32, 64, seed=1)
    comparison = Comparison("side-by-side", 32, 64, frame_rate=RATE)
    # The edit comes late and in other pieces than the source.
    comparison.offer(source[:7])
    comparison.offer(source[7:16])
    first = comparison.combine(edited[:5])
    comparison.offer(source[16:])
    whole = torch.cat([first, comparison.combine(edited[5:])])
    assert comparison.size == (32, 128)
    assert whole.shape == (20, 32, 128, 3) and whole.dtype == torch.uint8
    assert torch.equal(whole[:, :, 64:], edited)
    assert torch.equal(whole[:, :, :64], fitted(source, 32, 64))


def test_the_wipe_is_one_or_the_other_and_sways() -> None:
    source, edited = torch.zeros(60, 32, 64, 3, dtype=torch.uint8), torch.full((60, 32, 64, 3), 100, dtype=torch.uint8)
    comparison = Comparison("wipe", 32, 64, frame_rate=RATE)
    comparison.offer(source)
    frames = comparison.combine(edited)
    assert comparison.size == (32, 64)
    lines = []
    for frame in frames:
        row = frame[0, :, 0].tolist()
        line = row.index(255)
        assert row == [0] * line + [255] * 2 + [100] * (64 - line - 2)
        assert (frame == frame[:1]).all()
        lines.append(line + 1)
    assert lines[0] == 32
    assert (min(lines), max(lines)) == (6, 58)
    assert all(abs(a - b) <= 4 for a, b in zip(lines, lines[1:] + lines[:1], strict=True))
    assert WIPE_SECONDS * RATE == 60
    # A stream that goes on with frame 20 goes on with its line.
    later = Comparison("wipe", 32, 64, frame_rate=RATE, first_frame=20)
    later.offer(source[20:])
    assert torch.equal(later.combine(edited[20:]), frames[20:])


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(InputError, match=r"'stacked' is unknown: use side-by-side or wipe"):
        Comparison("stacked", 32, 64, frame_rate=RATE)  # type: ignore[arg-type]
    comparison = Comparison("wipe", 32, 64, frame_rate=RATE)
    comparison.offer(toys.frames(2, 32, 64))
    with pytest.raises(ValueError, match="3 edited frames came, 2 source frames wait"):
        comparison.combine(toys.frames(3, 32, 64))
    with pytest.raises(ValueError, match="expected .F, 32, 64, 3."):
        comparison.combine(toys.frames(2, 64, 32))
