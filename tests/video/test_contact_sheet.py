from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.contact_sheet import FrameSampler, contact_sheet

BACKGROUND = (22, 24, 29)
LONG_PROMPT = "turn the street into a snowy evening with warm lights in every window and " * 6


def plain(num_frames: int, height: int, width: int, colour: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(num_frames, height, width, 3)


def boxes_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of all that has about this colour."""
    rows, columns = np.nonzero(np.abs(sheet.astype(int) - np.array(colour)).max(axis=2) <= 2)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_sampler_keeps_evenly_spaced_frames_and_nothing_else() -> None:
    sampler = FrameSampler(total=101, count=5)
    for index in range(101):
        sampler.offer(index, torch.full((2, 3, 3), index, dtype=torch.uint8))
    assert sampler.indices == [0, 25, 50, 75, 100]
    assert sampler.frames.shape == (5, 2, 3, 3)
    assert sampler.frames[:, 0, 0, 0].tolist() == sampler.indices


@pytest.mark.parametrize(("total", "count", "expected"), [(3, 8, [0, 1, 2]), (1, 4, [0]), (10, 1, [0])])
def test_sampler_of_few_frames(total: int, count: int, expected: list[int]) -> None:
    sampler = FrameSampler(total, count)
    for index in range(total):
        sampler.offer(index, torch.zeros(1, 1, 3, dtype=torch.uint8))
    assert sampler.indices == expected


def test_sampler_copies_and_bears_a_stream_that_ends_early() -> None:
    sampler = FrameSampler(total=100, count=3)
    with pytest.raises(InputError, match="no frame"):
        _ = sampler.frames
    block = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    sampler.offer(0, block[0])
    block += 9
    assert sampler.indices == [0] and int(sampler.frames.max()) == 0
    with pytest.raises(InputError, match="0 of 5"):
        FrameSampler(5, 0)


@pytest.mark.parametrize("size", [(720, 1280), (1280, 720), (64, 64), (48, 480)], ids=str)
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("prompt", ["make it snow", LONG_PROMPT, "x" * 400, ""], ids=["short", "long", "word", "none"])
def test_nothing_overlaps_and_nothing_leaves_the_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int, prompt: str
) -> None:
    texts: list[tuple[str, tuple[float, float, float, float]]] = []
    draw_text = ImageDraw.ImageDraw.text

    def recorded(self, xy, text, **options) -> None:
        texts.append((text, self.textbbox(xy, text, font=options["font"], anchor=options.get("anchor"))))
        draw_text(self, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)
    path = tmp_path / "sheet.png"
    source, edited = plain(count, *size, (200, 40, 40)), plain(count, *size, (40, 40, 200))
    contact_sheet(source, edited, path, prompt=prompt, times=[0.5 * i for i in range(count)])
    sheet = np.asarray(Image.open(path))
    height, width, _ = sheet.shape

    top_row, bottom_row = boxes_of(sheet, (200, 40, 40)), boxes_of(sheet, (40, 40, 200))
    assert top_row[1] < bottom_row[0] and top_row[2:] == bottom_row[2:]
    margin = 20
    assert top_row[0] >= margin and top_row[2] >= margin and width - top_row[3] > margin
    for text, (left, top, right, bottom) in texts:
        assert left >= margin - 2 and right <= width - margin + 2 and top >= 0 and bottom <= height - 4, text
        for row_top, row_bottom, *_ in (top_row, bottom_row):
            assert bottom < row_top or top > row_bottom, text
    boxes = [box for _, box in texts]
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            assert right < other[0] or left > other[2] or bottom < other[1] or top > other[3], texts
    assert tuple(sheet[0, 0]) == tuple(sheet[-1, -1]) == BACKGROUND


def test_captions_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **options: drawn.append(text))
    frames = plain(4, 60, 80, (9, 9, 9))
    contact_sheet(frames, frames, tmp_path / "a.png", prompt="make it snow", times=[0.0, 1.0, 2.5, 10.04])
    assert drawn == ["source", "edited: make it snow", "0.00 s", "1.00 s", "2.50 s", "10.04 s"]
    drawn.clear()
    contact_sheet(frames, frames, tmp_path / "b.png", prompt=LONG_PROMPT)
    source, first, second = drawn
    assert source == "source" and second.endswith("…")
    # What is shown is the beginning of the prompt, word for word.
    assert f"edited: {LONG_PROMPT}".startswith(f"{first} {second[:-1]}")


def test_pictures_are_shown_in_order(tmp_path: Path) -> None:
    source = torch.stack([plain(1, 40, 80, (40 * i, 200, 0))[0] for i in range(4)])
    edited = plain(4, 80, 80, (0, 0, 255))
    contact_sheet(source, edited, tmp_path / "sheet.png", prompt="p")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    lefts = [boxes_of(sheet, (40 * i, 200, 0))[2] for i in range(4)]
    assert lefts == sorted(lefts)


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    three, two = plain(3, 8, 8, (1, 1, 1)), plain(2, 8, 8, (1, 1, 1))
    with pytest.raises(InputError, match="3 source and 2 edited"):
        contact_sheet(three, two, tmp_path / "sheet.png", prompt="p")
    with pytest.raises(InputError, match="with 1 times"):
        contact_sheet(two, two, tmp_path / "sheet.png", prompt="p", times=[0.0])
    for name in ("sheet.gif", "absent/sheet.png"):
        with pytest.raises(InputError, match=r"\.png"):
            contact_sheet(two, two, tmp_path / name, prompt="p")
    assert list(tmp_path.iterdir()) == []
