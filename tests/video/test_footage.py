"""Real footage: any shape, any rate, turned, stretched, of high dynamic range; tiny clips, and plain arithmetic beside them."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import video_files
from hypothesis import given
from hypothesis import strategies as st
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.geometry import (
    BUCKETS,
    bucket_size,
    resize_and_crop,
    similar_size,
)
from sana_streaming.sana_core.video.hdr import hlg_light, pq_light, tone_map
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1080, 1920), (704, 1280)), ((720, 1280), (704, 1280)), ((1920, 1080), (1280, 704)), ((480, 640), (832, 1088)),
     ((640, 480), (1088, 832)), ((1000, 1000), (960, 960)), ((816, 1920), (672, 1344)), ((1, 4096), (672, 1344)),
     ((4096, 1), (1344, 672)), ((576, 720), (832, 1088)), ((1350, 1080), (1088, 832))],
)  # fmt: skip
def test_the_bucket_is_the_nearest_by_shape(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_size(*size) == bucket


def test_buckets_are_of_one_area_and_named_by_their_shape() -> None:
    assert len(BUCKETS) == 11
    for label, (height, width) in BUCKETS.items():
        assert height % 32 == width % 32 == 0
        assert height * width == pytest.approx(704 * 1280, rel=0.04)
        assert label == pytest.approx(height / width, abs=0.08)
        assert BUCKETS[label] == bucket_size(height, width)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_similar_size_has_shape_and_area(height: int, width: int) -> None:
    high, wide = similar_size(height, width, 160 * 256, 16)
    assert high % 16 == wide % 16 == 0 and min(high, wide) >= 32
    if 1 / 4 < height / width < 4:
        assert high * wide == pytest.approx(160 * 256, rel=0.2)
        assert high / wide == pytest.approx(height / width, rel=0.2)


def test_no_shape_is_refused() -> None:
    for pick in (bucket_size, lambda h, w: similar_size(h, w, 1024, 32)):
        with pytest.raises(InputError, match="10x0 has no shape"):
            pick(0, 10)


def test_antialiasing_averages_what_a_pixel_covers() -> None:
    """Stripes finer than the target become grey with it, and stripes without; enlarging is the same either way."""
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 64, 64)[..., None].repeat(1, 1, 1, 3)
    smooth = resize_and_crop(stripes, 20, 20, antialias=True)
    assert smooth.abs().max() < 0.1
    assert resize_and_crop(stripes, 20, 20).abs().max() > 0.5
    enlarged = [resize_and_crop(stripes, 96, 96, antialias=on) for on in (True, False)]
    torch.testing.assert_close(*enlarged, rtol=0, atol=1e-5)


def levels(frames: "list[torch.Tensor]") -> list[int]:
    """Number of each frame of `level_frames`, by its grey."""
    return [round((int(frame[-1, -1, 0]) - 16) / 4) for frame in frames]


def nearest(times: list[Fraction], shown: Fraction, rate: Fraction) -> list[int]:
    """The frame for each time k / rate by looking at all of them: the last that is less than half a frame ahead."""
    end = times[-1] + shown
    count = max(1, sum(Fraction(2 * k + 1, 2) / rate <= end for k in range(1000)))
    due = [[i for i, time in enumerate(times) if time < (k + Fraction(1, 2)) / rate] for k in range(1000)]
    count = max(count, next(k for k in range(1000) if due[k][-1] == len(times) - 1) + 1)
    return [found[-1] for found in due[:count]]


@pytest.mark.parametrize("rate", [Fraction(16), Fraction(25), Fraction(60), Fraction(1), NTSC], ids=str)
@pytest.mark.parametrize(
    ("source_rate", "times"),
    [(Fraction(25), None), (NTSC, None), (Fraction(25), [0, 1, 2, 10, 11, 40, 41, 43, 44, 45]), (Fraction(10), [0])],
    ids=["25", "ntsc", "variable", "one frame"],
)
def test_frames_at_another_rate(tmp_path: Path, source_rate: Fraction, times: list[int] | None, rate: Fraction) -> None:
    frames = video_files.level_frames(len(times) if times else 12, 32, 48)
    path = video_files.write_clip(tmp_path / "clip.mp4", frames, rate=source_rate, times=times)
    with av.open(str(path)) as container:
        shown = [Fraction(p.duration * p.time_base) for p in container.demux(video=0) if p.size][-1]
    ticks = [time / source_rate for time in times or range(12)]
    reader = VideoReader(path, resample_fps=rate)
    expected = nearest(ticks, shown, rate)
    assert (reader.frame_rate, reader.num_frames) == (rate, len(expected))
    assert levels(list(reader)) == expected
    if len(expected) > 5:
        part = VideoReader(path, resample_fps=rate, start=2, max_frames=3)
        assert part.num_frames == 3
        assert levels(list(part)) == expected[2:5]
        assert levels([f for block in part.blocks(2) for f in block]) == expected[2:5]
        with pytest.raises(InputError, match=f"there are {len(expected)} frames"):
            VideoReader(path, resample_fps=rate, start=len(expected))


def test_times_rounded_by_a_container_do_no_harm(tmp_path: Path) -> None:
    """Matroska counts milliseconds: at the file's own rate every frame comes once."""
    frames = video_files.level_frames(40, 32, 48)
    path = video_files.write_clip(tmp_path / "clip.mkv", frames, rate=NTSC)
    assert levels(list(VideoReader(path, resample_fps=NTSC))) == list(range(40))


def test_a_file_that_breaks_off_is_not_filled_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = torch.randint(0, 256, (60, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    whole = video_files.write_clip(tmp_path / "whole.mp4", noise, movflags="+faststart")
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    plain = len(list(VideoReader(path)))
    frames = list(VideoReader(path, resample_fps=Fraction(50)))
    assert 0 < plain < 60
    assert abs(len(frames) - 2 * plain) <= 1
    assert "cut short" in caplog.text


def test_sound_stays_in_time_with_resampled_frames(tmp_path: Path) -> None:
    """The sound of a part begins where its first frame lies in the source."""
    frames = video_files.level_frames(50, 32, 48)
    path = video_files.write_clip(tmp_path / "clip.mkv", frames, sound=("pcm_f32le", "mono", 2.0))
    reader = VideoReader(path, resample_fps=Fraction(16), start=8)
    out = tmp_path / "out.mkv"
    start = float(8 / reader.frame_rate)
    writer = VideoWriter(out, width=48, height=32, frame_rate=reader.frame_rate, audio_from=path, audio_start=start)
    with writer:
        for block in reader.blocks(8):
            writer.write(block)
    with av.open(str(out)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    source = video_files.wave(2.0)
    probe_at = 10_000
    matches = np.correlate(source, samples[probe_at : probe_at + 2048], mode="valid")
    moved = int(matches.argmax()) - probe_at
    assert moved / video_files.SAMPLE_RATE == pytest.approx(0.5, abs=0.025)
    assert writer.frames_written == 24


def test_callbacks_see_every_frame_that_is_decoded(tmp_path: Path) -> None:
    path = video_files.write_clip(tmp_path / "clip.mp4", video_files.level_frames(12, 32, 48))
    for rate in (None, Fraction(5), Fraction(100)):
        seen: list[int] = []
        list(VideoReader(path, resample_fps=rate, on_frame=lambda seen=seen: seen.append(1)))
        assert len(seen) == 12


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(-1), Fraction(1001)])
def test_a_rate_out_of_range_is_refused(tmp_path: Path, rate: Fraction) -> None:
    path = video_files.write_clip(tmp_path / "clip.mp4", video_files.level_frames(2, 32, 48))
    with pytest.raises(InputError, match="cannot resample to .* use 1/1000 to 1000"):
        VideoReader(path, resample_fps=rate)


@pytest.mark.parametrize(
    ("pixel", "clockwise", "size"),
    [
        (Fraction(16, 11), 0, (48, 93)),
        (Fraction(16, 11), 90, (64, 33)),
        (Fraction(8, 9), 0, (48, 57)),
        (1, 0, (48, 64)),
    ],
    ids=str,
)
def test_square_pixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pixel: Fraction, clockwise: int, size: tuple[int, int]
) -> None:
    path = video_files.write_clip(tmp_path / "clip.mp4", video_files.level_frames(3, 48, 64), pixel=Fraction(pixel))
    video_files.turn(path, clockwise)
    reader = VideoReader(path, square_pixels=True)
    assert reader.size == size
    frames = list(reader)
    assert {frame.shape for frame in frames} == {(*size, 3)}
    assert {frame.dtype for frame in frames} == {torch.uint8}
    corner = (0, -1) if clockwise else (0, 0)
    assert [int(frame[corner][0]) for frame in frames] == pytest.approx([40, 44, 48], abs=3)
    assert caplog.records == []


def hdr_clip(path: Path, trc: int, codes: list[float]) -> Path:
    """Lossless, one frame of grey stripes of these code values, ten bits, as cameras tag them."""
    luma = np.array([64 + 876 * code for code in codes]).round().astype(np.uint16)
    planes = np.stack([np.tile(np.repeat(luma, 8), (16, 1)), *[np.full((16, 8 * len(codes)), 512, np.uint16)] * 2])
    with av.open(str(path), "w") as output:
        video = output.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 8 * len(codes), 16, "yuv444p10le"
        context = video.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, trc, 1
        frame = av.VideoFrame(video.width, 16, "yuv444p10le")
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.zeros((16, plane.line_size // 2), np.uint16)
            rows[:, : values.shape[1]] = values
            plane.update(rows.tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        frame.colorspace, frame.color_range = 9, 1
        output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


def test_light_of_known_code_values() -> None:
    """Pairs that ITU-R BT.2100 and BT.2408 name."""
    codes = torch.tensor([0.0, 0.5081, 0.5807, 0.7518, 1.0])
    torch.testing.assert_close(pq_light(codes), torch.tensor([0, 100, 203, 1000, 10_000.0]), rtol=2e-3, atol=1e-3)
    codes = torch.tensor([0.0, 0.75, 1.0])[:, None].expand(-1, 3)
    torch.testing.assert_close(hlg_light(codes)[:, 0], torch.tensor([0, 203, 1000.0]), rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize(("trc", "name", "white"), [(16, "PQ", 0.5807), (18, "HLG", 0.75)])
def test_high_dynamic_range_is_refused_mapped_or_ignored(tmp_path: Path, trc: int, name: str, white: float) -> None:
    codes = [0.0, 0.3, 0.45, white, 0.9, 1.0]
    path = hdr_clip(tmp_path / "hdr.mkv", trc, codes)
    assert probe(path).hdr == name
    says = rf"{re.escape(str(path))} has high dynamic range \({name}\).* tone-map .* ignore"
    with pytest.raises(InputError, match=says):
        VideoReader(path)
    with pytest.raises(InputError, match="hdr 'no' is unknown: use refuse, tone-map, ignore"):
        VideoReader(path, hdr="no")  # type: ignore[arg-type]
    (ignored,) = VideoReader(path, hdr="ignore")
    (mapped,) = VideoReader(path, hdr="tone-map")
    assert ignored.dtype == mapped.dtype == torch.uint8 and ignored.shape == mapped.shape
    assert ignored[0, 4::8, 0].tolist() == pytest.approx([255 * code for code in codes], abs=2)
    greys = mapped[0, 4::8]
    assert (greys.amax(-1) - greys.amin(-1)).max() <= 2
    stripes = greys[:, 0].tolist()
    # The brightest of PQ, 4000 and 10,000 cd/m2, are both as good as white.
    assert stripes == sorted(stripes) and len(set(stripes)) >= 5
    assert stripes[0] == 0
    # White paper: half way from the knee to the top.
    assert stripes[3] == pytest.approx(255 * 0.875 ** (1 / 2.4), abs=2)


def test_tone_mapping_keeps_hue_and_leaves_dark_things_alone() -> None:
    linear = torch.tensor([0.4, 0.2, 0.1]) * 203
    # The code of that light, found by halving.
    low, high = torch.zeros(3), torch.ones(3)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            torch.where(pq_light(middle) < linear, middle, low),
            torch.where(pq_light(middle) < linear, high, middle),
        )
    out = (tone_map(low.view(1, 1, 3), "PQ").float() / 255) ** 2.4
    matrix = torch.tensor([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    torch.testing.assert_close(out[0, 0], matrix @ (linear / 203), atol=6e-3, rtol=0)


def test_an_ordinary_clip_is_not_of_high_dynamic_range(tmp_path: Path) -> None:
    path = video_files.write_clip(tmp_path / "clip.mp4", video_files.level_frames(3, 48, 64))
    assert probe(path).hdr is None
    plain, mapped = (torch.stack(list(VideoReader(path, hdr=h))) for h in ("refuse", "tone-map"))
    assert torch.equal(plain, mapped)
