"""The source kept outside a mask, as a node."""

from fractions import Fraction
from pathlib import Path

import node_calls as nodes
import pytest
import torch
import toys
import video_files
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.reader import VideoReader, probe

SOURCE, EDITED = toys.frames(40, 64, 96), toys.frames(30, 64, 96, seed=1)


def keep(edited, source, mask, **changes):
    settings = {"feather": 0, "start_frame": 0, "crf": 0, **changes}
    return nodes.call("KeepMask", edited, source, mask, **settings)[0]


def read(video):
    with VideoReader(video.file) as reader:
        return torch.stack(list(reader)).float()


def left_half(height=64, width=96):
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1
    return mask


def close(a, b):
    """H.264 in 4:2:0 keeps brightness and blurs colours."""
    return (a - b.float()).abs().mean() < 4


@pytest.fixture
def videos(host, tmp_path):
    from comfy_api import latest

    edited = video_files.write_clip(tmp_path / "edited.mp4", EDITED)
    source = video_files.write_clip(tmp_path / "source.mp4", SOURCE)
    return latest.VideoFromFile(str(edited)), latest.VideoFromFile(str(source))


def test_files_are_mixed_by_number(videos):
    edited, source = videos
    video = keep(edited, source, left_half(), start_frame=10)
    info = probe(video.file)
    assert (info.num_frames, info.width, info.height) == (30, 96, 64)
    assert info.frame_rate == probe(edited.file).frame_rate
    frames = read(video)
    assert close(frames[:, :, :46], EDITED[:, :, :46])
    assert close(frames[:, :, 50:], SOURCE[10:, :, 50:])
    assert nodes.texts() == ["30 frames, 1 mask"]


def test_pictures_and_a_mask_of_another_size(videos):
    edited = torch.cat([EDITED.float() / 255, torch.zeros(30, 64, 96, 1)], -1)
    frames = read(keep(edited, toys.frames(30, 128, 192).float() / 255, left_half(640, 960), feather=4))
    assert close(frames[:, :, :40], EDITED[:, :, :40])
    assert not close(frames[:, :, 56:], EDITED[:, :, 56:])


def test_a_mask_for_each_frame_the_last_goes_on(videos):
    edited, source = videos
    masks = torch.cat([torch.ones(20, 64, 96), torch.zeros(1, 64, 96)])
    frames = read(keep(edited, source, masks))
    assert close(frames[:20], EDITED[:20])
    assert close(frames[20:], SOURCE[20:30])


def test_sound_is_that_of_the_edit(videos):
    from comfy_api import latest

    sound = {"waveform": torch.rand(1, 1, 100_000) - 0.5, "sample_rate": 44_100}
    edited = latest.VideoFromComponents(latest.VideoComponents(EDITED.float() / 255, Fraction(24), sound))
    info = probe(keep(edited, videos[1], left_half()).file)
    assert (info.has_audio, info.frame_rate) == (True, Fraction(24))
    # Sound that is longer than the picture ends with it.
    assert info.duration == pytest.approx(30 / 24, abs=0.05)


def test_progress_and_stop(videos, host):
    import comfy.utils
    import folder_paths

    keep(*videos, left_half())
    (bar,) = comfy.utils.ProgressBar.made
    assert bar.total == 4
    assert len(bar.previews) == 4
    for path in Path(folder_paths.get_temp_directory()).glob("*.mp4"):
        path.unlink()
    host.stop_after = 40
    with pytest.raises(host.InterruptProcessingException):
        keep(*videos, left_half())
    (path,) = Path(folder_paths.get_temp_directory()).glob("*.mp4")
    assert 0 < probe(path).num_frames < 30


def test_a_source_that_is_too_short(videos):
    edited, source = videos
    with pytest.raises(InputError, match="the source has 25 frames from start_frame 15 on, the edit has 30"):
        keep(edited, source, left_half(), start_frame=15)
    with pytest.raises(InputError, match="start_frame 40 is not in the 40 frames"):
        keep(edited, source, left_half(), start_frame=40)
