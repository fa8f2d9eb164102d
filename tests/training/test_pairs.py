"""Pairs by number: out of ZIP shards, or drawn."""

import json
import logging
import zipfile

import numpy as np
import pytest
import torch
import training_runs
import video_files
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training import clips as clips_module
from sana_streaming.sana_core.training.clips import VideoClips, crop_clips, fit_frames, others_after, shuffled
from sana_streaming.sana_core.training.config import ClipSize
from sana_streaming.sana_core.training.data.sources import training_sample
from sana_streaming.sana_core.training.pairs import BuiltinPairs, ShardPairs, nearest_bucket, read_member
from sana_streaming.sana_core.video.geometry import resize_and_crop

SIZE = ClipSize(height=16, width=24, frames=9)


def shard(folder, **members):
    path = folder / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return path


def test_every_pair_once_per_round_and_the_same_again(tmp_path):
    pairs = ShardPairs(training_runs.write_pairs(tmp_path, count=4), SIZE, crr_weight=0.5)
    prompts = [pairs.sample(3, number).prompt for number in range(12)]
    assert prompts == [pairs.sample(3, number).prompt for number in range(12)]
    rounds = [prompts[i : i + 4] for i in (0, 4, 8)]
    assert all(sorted(one) == [f"make it {i}" for i in range(4)] for one in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert prompts != [pairs.sample(4, number).prompt for number in range(12)]


def test_what_a_pair_holds(tmp_path):
    folder = training_runs.write_pairs(tmp_path, count=1, frames=11)
    pair = ShardPairs(folder, SIZE, crr_weight=0.5).sample(0, 0)
    source = torch.from_numpy(training_runs.clip(11))[:9]
    assert pair.source.equal(source) and pair.target.equal(255 - source)
    assert (pair.prompt, pair.reverse_prompt) == ("make it 0", "undo 0")


def test_another_size_is_filled_and_cropped_as_for_an_edit(tmp_path):
    folder = training_runs.write_pairs(tmp_path, count=1)
    pair = ShardPairs(folder, ClipSize(height=32, width=32, frames=9), crr_weight=0).sample(0, 0)
    wanted = resize_and_crop(torch.from_numpy(training_runs.clip(9)), 32, 32)
    got = pair.source.permute(0, 3, 1, 2) / 127.5 - 1
    assert (got - wanted).abs().max() <= 0.5 / 127.5 + 1e-6


def test_texts_known_beforehand(tmp_path):
    pairs = ShardPairs(training_runs.write_pairs(tmp_path, count=2, reverse_prompt="undo"), SIZE, crr_weight=0)
    assert pairs.texts == ["make it 0", "undo", "make it 1"]


def test_crr_needs_the_way_back_of_every_pair(tmp_path):
    folder = training_runs.write_pairs(tmp_path, reverse_prompt=None)
    with pytest.raises(InputError, match=r"manifest\.jsonl: pair 'pair 0' has no reverse_prompt; .* crr_weight to 0"):
        ShardPairs(folder, SIZE, crr_weight=0.5)
    assert ShardPairs(folder, SIZE, crr_weight=0).sample(0, 0).reverse_prompt is None


def test_a_bad_manifest(tmp_path):
    folder = training_runs.write_pairs(tmp_path)
    with (folder / "manifest.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"id": "x"}))
    with pytest.raises(InputError, match="line 4: shard is missing"):
        ShardPairs(folder, SIZE, crr_weight=0)


BAD = {
    "nonsense": b"not an array",
    "short": training_runs.npy(training_runs.clip(8)),
    "pickled": b"\x93NUMPY\x01\x00",
    "floats": training_runs.npy(np.zeros((9, 4, 4, 3), np.float32)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_pair_is_named_once_and_another_one_taken(tmp_path, caplog, data):
    folder = training_runs.write_pairs(tmp_path, count=3, members={"1/target.npy": data})
    pairs = ShardPairs(folder, SIZE, crr_weight=0)
    with caplog.at_level(logging.WARNING):
        prompts = [pairs.sample(0, number).prompt for number in range(9)]
    assert set(prompts) == {"make it 0", "make it 2"}
    (record,) = caplog.records
    assert "pair 1 is left out" in record.message and "1/target.npy" in record.message
    fresh = ShardPairs(folder, SIZE, crr_weight=0)
    assert [fresh.sample(0, number).prompt for number in reversed(range(9))] == prompts[::-1]


def test_too_many_bad_pairs(tmp_path):
    bad = {f"{index}/source.npy": b"" for index in range(25)}
    pairs = ShardPairs(training_runs.write_pairs(tmp_path, count=25, members=bad), SIZE, crr_weight=0)
    with pytest.raises(InputError, match=r"^20 pairs in a row cannot be used, the last because .*source\.npy"):
        pairs.sample(0, 0)


def test_another_pair_has_the_same_bucket(tmp_path, monkeypatch):
    folder = training_runs.write_pairs(tmp_path, count=6, members={"0/source.npy": b""})
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row |= {"width": 24, "height": 16} if index % 3 else {"width": 16, "height": 24}
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = ShardPairs(folder, ClipSize(bucket=True, frames=9), crr_weight=0)
    monkeypatch.setattr("sana_streaming.sana_core.training.pairs.fit_frames", lambda frames, *size: size)
    numbers = [number for number in range(6) if pairs.records[shuffled(0, number, 6)].id == "pair 0"]
    (pair,) = [pairs.sample(0, number) for number in numbers]
    assert pair.prompt == "make it 3" and pair.source == nearest_bucket(24, 16) == (1152, 800)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((720, 1280), (704, 1280)), ((1, 2), (672, 1344)), ((9, 100), (672, 1344)), ((5, 5), (960, 960)),
     ((1920, 1080), (1280, 704)), ((1000, 680), (1152, 800))],
)  # fmt: skip
def test_buckets(size, bucket):
    assert nearest_bucket(*size) == bucket


@pytest.mark.parametrize("channels", [None, 1, 4])
def test_grey_is_replicated_and_alpha_dropped(tmp_path, channels):
    colour = training_runs.clip(3)
    stored = {None: colour[..., 0], 1: colour[..., :1], 4: np.concatenate([colour, colour[..., :1]], -1)}[channels]
    frames = read_member(shard(tmp_path, a_npy=training_runs.npy(stored)), "a.npy", 2)
    wanted = colour if channels == 4 else np.repeat(colour[..., :1], 3, -1)
    assert frames.equal(torch.from_numpy(wanted[:2]))


def test_a_video_member(tmp_path):
    video = video_files.write_clip(tmp_path / "v.mp4", video_files.level_frames(5, 16, 16))
    frames = read_member(shard(tmp_path, v_mp4=video.read_bytes()), "v.mp4", 4)
    assert frames.equal(video_files.read_frames(video)[:4])


@pytest.mark.parametrize(
    ("member", "words"),
    [("none.npy", "no such member"), ("cut.mp4", "cannot be read"), ("short.mp4", "has 5 frames; training takes 6")],
)
def test_members_that_cannot_be_used(tmp_path, member, words):
    video = video_files.write_clip(tmp_path / "v.mp4", video_files.level_frames(5, 16, 16)).read_bytes()
    path = shard(tmp_path, cut_mp4=video[:100], short_mp4=video)
    with pytest.raises(InputError, match=words) as caught:
        read_member(path, member, 6)
    assert f"{member} in {path}" in str(caught.value)


def test_a_shard_that_is_no_zip_file(tmp_path):
    (tmp_path / "s.zip").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="a.npy in .* cannot be read"):
        read_member(tmp_path / "s.zip", "a.npy", 1)


def test_builtin_pairs_are_the_samples_of_the_built_in_data():
    number = next(n for n in range(99) if training_sample(1, n, 1, 32, 32).clip.name.startswith("scene"))
    drawn = training_sample(1, number, 2, 32, 32)
    pair = BuiltinPairs(2, 32, 32).sample(1, number)
    assert pair.source.equal(drawn.source) and pair.target.equal(drawn.truth)
    assert (pair.prompt, pair.reverse_prompt) == (drawn.instruction, drawn.reverse_instruction)


def test_stretches_of_videos(tmp_path, caplog):
    frames = video_files.level_frames(12, 16, 16)
    video_files.write_clip(tmp_path / "good.mp4", frames)
    video_files.write_clip(tmp_path / "short.mp4", frames[:3])
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "bad.mp4").write_bytes(b"nonsense")
    films = VideoClips([tmp_path], 9, 16, 16)
    stored = video_files.read_frames(tmp_path / "good.mp4")
    stretches = [films.clip(0, number) for number in range(12)]
    starts = {next(s for s in range(4) if stored[s : s + 9].equal(stretch)) for stretch in stretches}
    assert len(starts) > 1 and all(a.equal(films.clip(0, n)) for n, a in enumerate(stretches))
    assert sorted(record.message.split(" is left out")[0] for record in caplog.records) == [
        str(tmp_path / "bad.mp4"), str(tmp_path / "short.mp4"),
    ]  # fmt: skip


def test_folders_without_videos(tmp_path):
    for path, words in ((tmp_path, "holds no video file"), (tmp_path / "none", "does not exist")):
        with pytest.raises(InputError, match=words):
            VideoClips([path], 9, 16, 16)


def test_one_square_out_of_both_sides():
    source, target = torch.arange(2 * 16 * 24 * 3).view(2, 16, 24, 3), torch.arange(2 * 16 * 24 * 3).view(2, 16, 24, 3)
    cuts = [crop_clips((source, target + 1), 8, 0, number) for number in range(20)]
    assert all(a.shape == (2, 8, 8, 3) and b.equal(a + 1) for a, b in cuts)
    assert len({int(a[0, 0, 0, 0]) for a, _ in cuts}) > 10
    corners = {int(crop_clips([source], 16, 0, number)[0][0, 0, 0, 0]) // 3 for number in range(200)}
    assert corners == set(range(9))
    assert crop_clips([source], None, 0, 0)[0] is source


def test_frames_of_the_right_size_stay_as_they_are():
    frames = torch.from_numpy(training_runs.clip())
    assert fit_frames(frames, 16, 24) is frames


def test_order():
    import random

    assert sorted(shuffled(0, number, 7) for number in range(7, 14)) == list(range(7))
    chosen = others_after(list(range(50)), 7, random.Random(0))
    assert chosen[0] == 7 and len(chosen) == len(set(chosen)) == clips_module.MOST_SKIPPED
    assert others_after([1], 0, random.Random(0)) == [1]
