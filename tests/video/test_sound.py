from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import video_files
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.reader import probe
from sana_streaming.sana_core.video.sound import BLOCK, write_sound
from sana_streaming.sana_core.video.writer import VideoWriter


def heard(path: Path) -> tuple[str, int, np.ndarray]:
    """Codec, samples per second, int16 [channels, samples]."""
    with av.open(str(path)) as container:
        codec = container.streams.audio[0].codec_context
        blocks = [block.to_ndarray().reshape(-1, codec.layout.nb_channels) for block in container.decode(audio=0)]
        return codec.name, codec.sample_rate, np.concatenate(blocks).T


def noise(channels: int, samples: int) -> torch.Tensor:
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("samples", [1, 999, BLOCK, 3 * BLOCK + 17])
def test_samples_come_back(tmp_path: Path, channels: int, samples: int) -> None:
    waveform = noise(channels, samples)
    write_sound(tmp_path / "sound.wav", waveform, 44100)
    codec, rate, back = heard(tmp_path / "sound.wav")
    assert (codec, rate) == ("pcm_s16le", 44100)
    assert np.array_equal(back, (waveform[:2] * 32767).round().numpy())


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000, 192000])
def test_sample_rates(tmp_path: Path, rate: int) -> None:
    write_sound(tmp_path / "sound.wav", noise(2, 500), rate)
    _, written, back = heard(tmp_path / "sound.wav")
    assert written == rate and back.shape == (2, 500)


def test_loud_samples_are_clipped_and_do_not_wrap(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.wav", torch.tensor([[-9.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.001, 9.0]]), 48000)
    assert heard(tmp_path / "sound.wav")[2].tolist() == [[-32767, -32767, -16384, 0, 16384, 32767, 32767, 32767]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_and_stride(tmp_path: Path, dtype: torch.dtype) -> None:
    waveform = noise(2, 300).to(dtype)
    write_sound(tmp_path / "sound.wav", waveform.T.contiguous().T, 48000)
    assert np.array_equal(heard(tmp_path / "sound.wav")[2], (waveform.float() * 32767).round().numpy())


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_video_takes_the_sound(tmp_path: Path, channels: int) -> None:
    samples = torch.from_numpy(video_files.wave(2.0)).expand(channels, -1)
    write_sound(tmp_path / "sound.wav", samples, video_files.SAMPLE_RATE)
    path = tmp_path / "out.mkv"
    with VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=tmp_path / "sound.wav") as writer:
        writer.write(video_files.level_frames(50, 32, 32))
    codec, _, back = heard(path)
    assert codec == "pcm_s16le" and len(back) == min(channels, 2)
    assert np.array_equal(back[-1], (samples[0] * 32767).round().numpy()[: back.shape[1]])
    assert 0 <= 2 * video_files.SAMPLE_RATE - back.shape[1] < BLOCK // 8


def test_sound_without_samples_is_a_file_and_leaves_the_video_alone(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.wav", torch.zeros(2, 0), 44100)
    path = tmp_path / "out.mp4"
    with VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=tmp_path / "sound.wav") as writer:
        writer.write(video_files.level_frames(5, 32, 32))
    assert probe(path).num_frames == 5


@pytest.mark.parametrize(
    ("waveform", "rate", "says"),
    [
        (torch.zeros(0, 10), 44100, r"\(0, 10\)"),
        (torch.zeros(1, 2, 10), 44100, r"\(1, 2, 10\)"),
        (torch.zeros(10), 44100, r"\(10,\)"),
        (torch.zeros(1, 10), 0, "at 0 samples per second"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path: Path, waveform: torch.Tensor, rate: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        write_sound(tmp_path / "sound.wav", waveform, rate)
    assert list(tmp_path.iterdir()) == []
