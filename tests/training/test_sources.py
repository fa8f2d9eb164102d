import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.data import sources
from sana_streaming.sana_core.training.data.edits import EDITS

SIZE = (5, 24, 38)


def test_held_out_and_training_are_apart():
    held_out_clips = {file for file, _ in sources.HELD_OUT_WINDOWS}
    assert [file for file, _ in sources.HELD_OUT_WINDOWS].count("bikes.mp4") == 2
    assert {"bikes.mp4", "carphone_pristine.mp4"} == held_out_clips
    assert len(sources.HELD_OUT_PHOTOGRAPHS) == 3 and len(set(sources.HELD_OUT_SEEDS)) == 4
    assert not held_out_clips & set(sources.TRAINING_CLIPS)
    assert not set(sources.HELD_OUT_PHOTOGRAPHS) & set(sources.TRAINING_PHOTOGRAPHS)
    assert max(sources.HELD_OUT_SEEDS) < sources.FIRST_TRAINING_SEED
    # Other files that show what is held out.
    assert "carphone_distorted.mp4" not in sources.TRAINING_CLIPS
    assert "motorcycle_right.png" not in sources.TRAINING_PHOTOGRAPHS


def test_nothing_held_out_is_ever_drawn(monkeypatch):
    """Many thousand steps, with every road to a picture recorded."""
    drawn: set[str | int] = set()

    def photograph(file: str) -> torch.Tensor:
        drawn.add(file)
        return torch.zeros(8, 8, 3, dtype=torch.uint8)

    def clip_frames(file: str) -> torch.Tensor:
        drawn.add(file)
        return torch.zeros(3, 8, 8, 3, dtype=torch.uint8)

    def scene(number: int, height: int, width: int):
        drawn.add(number)
        return real_scene(0, height, width)

    real_scene = sources.make_scene
    monkeypatch.setattr(sources, "_photograph", photograph)
    monkeypatch.setattr(sources, "_clip_frames", clip_frames)
    monkeypatch.setattr(sources, "make_scene", scene)
    monkeypatch.setattr(sources, "_installed", None)
    monkeypatch.setattr(sources.Shot, "frames", lambda shot: torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    for seed in range(10):
        for step in range(1_000):
            sources.training_clip(seed, step, 1, 8, 8)
    files = {item for item in drawn if isinstance(item, str)}
    seeds = drawn - files
    assert files == set(sources.TRAINING_PHOTOGRAPHS) | set(sources.TRAINING_CLIPS)
    assert len(seeds) > 4_500 and min(seeds) >= sources.FIRST_TRAINING_SEED
    assert not seeds & set(sources.HELD_OUT_SEEDS)


def test_training_opens_no_held_out_file(monkeypatch):
    opened = set()
    real = sources._installed
    monkeypatch.setattr(sources, "_installed", lambda package, name: opened.add(name) or real(package, name))
    sources._photograph.cache_clear()
    sources._clip_frames.cache_clear()
    # Other tests may compare with these packages.
    for package in ("skimage", "skvideo"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    edits = {sources.training_sample(0, step, 2, 16, 16).edit for step in range(120)}
    assert opened == set(sources.TRAINING_PHOTOGRAPHS) | set(sources.TRAINING_CLIPS)
    assert edits == set(EDITS)
    assert not {"skimage", "skvideo"} & set(sys.modules)


def test_samples_are_what_they_say():
    num_frames, height, width = SIZE
    for step in range(40):
        sample = sources.training_sample(3, step, *SIZE)
        edit = EDITS[sample.edit]
        assert sample.source.shape == sample.truth.shape == (num_frames, height, width, 3)
        assert sample.source.dtype == sample.truth.dtype == torch.uint8
        assert sample.instruction in edit.instructions(sample.parameters)
        assert sample.reverse_instruction in edit.reverse_instructions(sample.parameters)
        assert torch.equal(sample.truth, edit.apply(sample.source, sample.clip.shot, sample.parameters))
        assert (sample.mask is not None) == edit.masked
        if sample.mask is not None:
            assert sample.mask.shape == SIZE and sample.mask.any()
            assert torch.equal(sample.truth[~sample.mask], sample.source[~sample.mask])


def test_a_step_is_the_same_whenever_it_is_drawn():
    for step in range(6, 14):
        sample, again = (sources.training_sample(9, step, *SIZE) for _ in range(2))
        assert (again.clip.name, again.edit, again.instruction) == (sample.clip.name, sample.edit, sample.instruction)
        assert again.reverse_instruction == sample.reverse_instruction and again.parameters == sample.parameters
        assert torch.equal(again.source, sample.source) and torch.equal(again.truth, sample.truth)
        assert torch.equal(again.source, sources.training_clip(9, step, *SIZE).frames)


def test_steps_and_seeds_differ():
    clips = [sources.training_clip(seed, step, *SIZE).frames for seed in range(3) for step in range(20)]
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips)


def test_sources_move():
    """No clip is a still: it would teach nothing about time."""
    for step in range(60):
        clip = sources.training_clip(1, step, 9, 48, 64)
        assert (clip.frames[0].float() - clip.frames[-1]).abs().mean() > 0.1, clip.name


def test_held_out_set():
    clips = list(sources.held_out_clips(97, 40, 64))
    assert [clip.name for clip in clips] == [
        "bikes.mp4 from 30",
        "bikes.mp4 from 138",
        "carphone_pristine.mp4 from 0",
        *sources.HELD_OUT_PHOTOGRAPHS,
        *(f"scene {seed}" for seed in sources.HELD_OUT_SEEDS),
    ]
    assert all(clip.frames.shape == (97, 40, 64, 3) and clip.frames.dtype == torch.uint8 for clip in clips)
    # The windows are of real frames, each once, and do not overlap.
    assert all(len(clip.frames.flatten(1).unique(dim=0)) > 90 for clip in clips)
    starts = [first for file, first in sources.HELD_OUT_WINDOWS if file == "bikes.mp4"]
    assert starts[0] + 97 <= starts[1] and starts[1] + 97 <= len(sources._clip_frames("bikes.mp4"))
    again = list(sources.held_out_clips(97, 40, 64))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(clips, again, strict=True))


def test_held_out_samples():
    samples = list(sources.held_out_samples(9, 40, 64))
    names = [sample.clip.name for sample in samples]
    for name, edit in EDITS.items():
        edited = [sample for sample in samples if sample.edit == name]
        assert len(edited) == (4 if edit.masked else 10)
        assert all(sample.instruction == edit.instructions(sample.parameters)[0] for sample in edited)
    assert names == sorted(names, key=list(dict.fromkeys(names)).index)
    masks = [sample.mask for sample in samples if sample.mask is not None]
    assert all(mask.flatten(1).any(1).all() for mask in masks)


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (4, 4), (5, 3), (7, 1), (8, 0), (9, 1), (-1, 1), (-5, 3)])
def test_clips_go_forth_and_back(number, expected):
    assert sources._reflected(number, 5) == expected
    assert sources._reflected(number, 1) == 0


def test_a_missing_package_is_named(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(sources, "files", missing)
    sources._photograph.cache_clear()
    with pytest.raises(InputError, match=r"^scikit-image with its coffee.png is not installed: [^\n]*$"):
        sources._photograph("coffee.png")


def test_bad_sizes_are_named():
    for step, sizes in ((step, sizes) for step in range(8) for sizes in ((0, 24, 38), (5, 4, 38))):
        with pytest.raises(InputError, match=r"^[^\n]*give at least[^\n]*$"):
            sources.training_sample(0, step, *sizes)
    with pytest.raises(InputError, match="give at least"):
        next(sources.held_out_clips(0, 24, 38))
