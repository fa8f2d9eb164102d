import logging
import re
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest
import torch
import video_files
from PIL import Image
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.reader import (
    FrameSource,
    PictureFrames,
    VideoInfo,
    VideoReader,
    closest_rate,
    probe,
)
from sana_streaming.sana_core.video.writer import VideoWriter

NTSC = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of 64x48."""
    frames = video_files.level_frames(30, 48, 64)
    return video_files.write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


def noise_clip(path: Path, *, movflags: str = "+faststart") -> Path:
    """60 frames that hardly compress, so that a cut or a scratch meets pictures and not the header."""
    frames = torch.randint(0, 256, (60, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return video_files.write_clip(path, frames, movflags=movflags)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bigbuckbunny.mp4", VideoInfo(1280, 720, Fraction(25), 132, True, 0, 5.28)),
        ("bikes.mp4", VideoInfo(640, 272, Fraction(25), 250, False, 0, 10.0)),
        ("carphone_pristine.mp4", VideoInfo(176, 144, NTSC, 120, False, 0, 4.004, Fraction(128, 117))),
    ],
)
def test_probe_of_real_clips(name: str, expected: VideoInfo) -> None:
    assert probe(clips.clip(name)) == expected


def test_frames_are_those_of_pyav() -> None:
    path = clips.clip("carphone_pristine.mp4")
    with VideoReader(str(path)) as reader:
        frames = list(reader)
    assert all(frame.dtype == torch.uint8 and frame.is_contiguous() for frame in frames)
    assert torch.equal(torch.stack(frames), video_files.read_frames(path))


@pytest.mark.parametrize(("start", "max_frames"), [(0, None), (7, None), (0, 5), (11, 13), (29, 1), (25, 100)])
def test_start_and_max_frames(clip: Path, start: int, max_frames: int | None) -> None:
    end = None if max_frames is None else start + max_frames
    frames = list(VideoReader(clip, start=start, max_frames=max_frames))
    assert torch.equal(torch.stack(frames), video_files.read_frames(clip)[start:end])


def test_blocks_are_the_frames(clip: Path) -> None:
    with VideoReader(clip, start=3) as reader:
        blocks = list(reader.blocks(8))
        assert [len(block) for block in blocks] == [8, 8, 8, 3]
        assert torch.equal(torch.cat(blocks), torch.stack(list(reader)))


def file_source(path: Path) -> FrameSource:
    return VideoReader(path)


def uint8_source(path: Path) -> FrameSource:
    return PictureFrames(video_files.read_frames(path), Fraction(25))


def float_source(path: Path) -> FrameSource:
    return PictureFrames(video_files.read_frames(path) / 255, Fraction(25))


@pytest.mark.parametrize("make", [file_source, uint8_source, float_source])
def test_every_frame_source_keeps_the_same_promises(clip: Path, make) -> None:
    source = make(clip)
    assert (source.frame_rate, source.num_frames) == (25, 30)
    expected = video_files.read_frames(clip)
    for size, lengths in ((8, [8, 8, 8, 6]), (30, [30]), (100, [30])):
        blocks = list(source.blocks(size))
        assert [len(block) for block in blocks] == lengths
        frames = torch.cat(blocks)
        assert frames.dtype == (torch.float32 if make is float_source else torch.uint8)
        assert torch.equal(frames / 255 if frames.dtype == torch.uint8 else frames, expected / 255)
    with pytest.raises(InputError, match="blocks of 0"):
        next(source.blocks(0))


def test_pictures_are_not_copied() -> None:
    pictures = torch.zeros(5, 4, 6, 3)
    block = next(PictureFrames(pictures, Fraction(16)).blocks(2))
    assert block.data_ptr() == pictures.data_ptr()


def test_close_ends_the_iteration_and_a_later_one_begins_anew(clip: Path) -> None:
    reader = VideoReader(clip)
    frames = iter(reader)
    first = next(frames)
    reader.close()
    assert list(frames) == []
    assert torch.equal(next(iter(reader)), first)
    reader.close()


@pytest.mark.parametrize(("clockwise", "bright_corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotation_is_applied(tmp_path: Path, clockwise: int, bright_corner: tuple[int, int]) -> None:
    path = video_files.write_clip(tmp_path / "turned.mp4", video_files.level_frames(3, 48, 64))
    video_files.turn(path, clockwise)
    reader = VideoReader(path)
    assert reader.info.rotation == -clockwise % 360
    size = (reader.info.height, reader.info.width)
    assert size == ((64, 48) if clockwise % 180 else (48, 64))
    for number, frame in enumerate(reader):
        assert frame.shape == (*size, 3) and frame.is_contiguous()
        corners = {corner: int(frame[corner][0]) for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
        assert max(corners, key=lambda corner: corners[corner]) == bright_corner
        assert min(corners.values()) == pytest.approx(16 + 4 * number, abs=3)


def test_names_with_colons_and_titles_in_unknown_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.mp4"
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "titletitle"
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        output.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(video.encode(None))
    Path("12:30:00.mp4").write_bytes(path.read_bytes().replace(b"titletitle", b"\xff\xfe\xe9\xfctitle\xf0"))
    assert len(list(VideoReader("12:30:00.mp4"))) == 1


def test_odd_sizes(tmp_path: Path) -> None:
    frames = video_files.level_frames(4, 35, 51)
    path = video_files.write_clip(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    assert torch.equal(torch.stack(list(VideoReader(path))), frames)


def one_of(make: str, folder: Path) -> Path:
    """One picture of 64x48 in a file of each kind whose header counts none."""
    frame = torch.randint(0, 256, (1, 48, 64, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    path = folder / make
    if make.startswith("own"):
        with VideoWriter(path, width=64, height=48, frame_rate=Fraction(25)) as writer:
            writer.write(frame)
    elif path.suffix in {".jpg", ".png"}:
        Image.fromarray(frame[0].numpy()).save(path)
    else:
        video_files.write_clip(path, frame)
    return path


@pytest.mark.parametrize("make", ["own.mkv", "own.mp4", "x264.mkv", "x264.ts", "x264.h264", "noise.jpg", "noise.png"])
def test_a_single_frame_is_a_video(tmp_path: Path, make: str) -> None:
    path = one_of(make, tmp_path)
    info = probe(path)
    assert (info.num_frames, info.width, info.height) == (1, 64, 48) and info.duration > 0
    assert len(list(VideoReader(path))) == 1
    with pytest.raises(InputError, match=r"start is frame 1 but there are 1 frames, 0 to 0"):
        VideoReader(path, start=1)


@pytest.mark.parametrize(
    ("pixel", "clockwise", "says"),
    [
        (Fraction(16, 11), 0, r"16:11.* narrower .*--square-pixels"),
        (Fraction(16, 11), 90, r"11:16.* wider "),
        (Fraction(8, 9), 0, r"8:9.* wider "),
        (Fraction(1), 0, None),
        (Fraction(200, 199), 0, None),
    ],
    ids=str,
)
def test_pixels_that_are_not_square_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pixel: Fraction, clockwise: int, says: str | None
) -> None:
    path = video_files.write_clip(tmp_path / "clip.mp4", video_files.level_frames(3, 48, 64), pixel=pixel)
    video_files.turn(path, clockwise)
    with caplog.at_level(logging.WARNING):
        reader = VideoReader(path)
        frames = list(reader) + list(reader)
    assert reader.info.sample_aspect_ratio == (1 / pixel if clockwise else pixel)
    # The pixels are those that are stored.
    assert {frame.shape for frame in frames} == {(reader.info.height, reader.info.width, 3)}
    assert sorted((reader.info.height, reader.info.width)) == [48, 64]
    if says is None:
        assert caplog.records == []
    else:
        (record,) = caplog.records
        assert re.search(f"{re.escape(str(path))} has pixels of {says}", record.getMessage())


@pytest.mark.parametrize(
    ("rate", "source", "expected"),
    [
        ("29.97", NTSC, NTSC),
        ("23.98", Fraction(24000, 1001), Fraction(24000, 1001)),
        ("23.976", Fraction(24000, 1001), Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001), Fraction(60000, 1001)),
        ("30", NTSC, Fraction(30)),
        ("30000/1001", Fraction(30), NTSC),
        ("29.97", Fraction(30), Fraction("29.97")),
        ("16", Fraction(25), Fraction(16)),
        ("25", Fraction(25), Fraction(25)),
    ],
)
def test_a_rounded_rate_is_that_of_the_source(rate: str, source: Fraction, expected: Fraction) -> None:
    assert closest_rate(Fraction(rate), source) == expected


def test_variable_frame_rate_is_read_frame_by_frame(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 40, 41, 43, 60, 61]
    path = video_files.write_clip(tmp_path / "vfr.mp4", video_files.level_frames(10, 48, 64), times=times)
    reader = VideoReader(path)
    assert reader.info.num_frames == 10 and float(reader.info.frame_rate) < 25
    levels = [int(frame[-1, -1, 0]) for frame in reader]
    assert levels == pytest.approx([16 + 4 * number for number in range(10)], abs=3)


@pytest.mark.parametrize(
    ("tag", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (9, 0.2627, 0.0593), (2, 0.299, 0.114)],
    ids=["709", "601", "2020", "untagged"],
)  # fmt: skip
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_matrix_and_range_tags_are_honoured(tmp_path: Path, tag: int, red: float, blue: float, full: bool) -> None:
    colour = torch.tensor([200.0, 30.0, 40.0])
    luma = float(red * colour[0] + (1 - red - blue) * colour[1] + blue * colour[2])
    chroma = [float(colour[2] - luma) / (2 - 2 * blue), float(colour[0] - luma) / (2 - 2 * red)]
    luma_scale, chroma_scale, offset = (1, 1, 0) if full else (219 / 255, 224 / 255, 16)
    planes = np.array([offset + luma_scale * luma, *(128 + chroma_scale * value for value in chroma)])
    path = tmp_path / "tagged.mkv"
    with av.open(str(path), "w") as output:
        video = output.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv444p"
        video.codec_context.colorspace, video.codec_context.color_range = tag, 2 if full else 1
        picture = np.broadcast_to(planes.round().astype(np.uint8)[:, None, None], (3, 32, 32)).copy()
        frame = av.VideoFrame.from_ndarray(picture, format="yuv444p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        output.mux(video.encode(frame))
        output.mux(video.encode(None))
    (frame,) = VideoReader(path)
    assert (frame - colour).abs().max() <= 3


def test_counts_are_those_of_the_frames_shown(tmp_path: Path, clip: Path) -> None:
    # An edit list hides the 5 frames before time 0; the header still counts them.
    hidden = video_files.write_clip(
        tmp_path / "hidden.mp4", video_files.level_frames(20, 48, 64), times=list(range(-5, 15)), codec="mpeg4",
        pix_fmt="yuv420p",
    )  # fmt: skip
    fragments = video_files.write_clip(
        tmp_path / "fragments.mp4", video_files.level_frames(40, 48, 64), movflags="+frag_keyframe"
    )
    matroska = video_files.write_clip(tmp_path / "clip.mkv", video_files.level_frames(25, 48, 64))
    for path, expected in ((hidden, 15), (fragments, 40), (matroska, 25), (clip, 30)):
        assert probe(path).num_frames == expected == len(list(VideoReader(path))), path


def test_a_file_cut_in_the_middle_gives_what_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = noise_clip(tmp_path / "whole.mp4")
    data = whole.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    reader = VideoReader(path)
    with caplog.at_level(logging.WARNING):
        frames = list(reader)
    assert 15 <= len(frames) <= 40
    assert torch.equal(torch.stack(frames[:15]), video_files.read_frames(whole)[:15])
    (record,) = caplog.records
    assert f"only {len(frames)} of 60 frames" in record.getMessage()
    with pytest.raises(InputError, match=rf"start is frame 50 but there are {len(frames)} frames"):
        list(VideoReader(path, start=50))


def test_a_scratch_in_the_middle_ends_the_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = noise_clip(tmp_path / "scratched.mp4")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    with av.open(str(path)) as container:
        whole = sum(packet.pos + packet.size <= middle for packet in container.demux(video=0) if packet.size)
    data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        frames = list(VideoReader(path))
    # The picture in which the scratch begins may still be decodable.
    assert len(frames) in (whole, whole + 1)
    assert whole > 15
    assert [f"only {len(frames)} of 60" in record.getMessage() for record in caplog.records] == [True]


def test_reading_part_of_a_video_warns_of_nothing(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), VideoReader(clip, max_frames=5) as reader:
        assert len(list(reader)) == 5
        next(iter(reader))
    assert caplog.records == []


def test_a_change_of_size_names_the_frame(tmp_path: Path) -> None:
    parts = [
        video_files.write_clip(tmp_path / f"{width}.h264", video_files.level_frames(4, 48, width)) for width in (64, 96)
    ]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = iter(VideoReader(path))
    with pytest.raises(InputError, match=r"frame 4 is 96x48 but the video began at 64x48"):
        list(frames)


def no_file(folder: Path) -> Path:
    return folder / "absent.mp4"


def a_folder(folder: Path) -> Path:
    return folder


def text(folder: Path) -> Path:
    path = folder / "text.mp4"
    path.write_text("this is not a video\n" * 50)
    return path


def nothing(folder: Path) -> Path:
    path = folder / "nothing.mp4"
    path.touch()
    return path


def sound_only(folder: Path) -> Path:
    return video_files.write_sound(folder / "sound.mp4", "aac", 0.5)


def mp3(folder: Path) -> Path:
    return video_files.write_sound(folder / "sound.mp3", "libmp3lame", 0.5)


def no_frames(folder: Path) -> Path:
    path = folder / "no_frames.mkv"
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = output.add_stream("aac", rate=video_files.SAMPLE_RATE, layout="stereo")
        for block in video_files.sound_blocks("stereo", 0.5):
            output.mux(audio.encode(block))
        output.mux(audio.encode(None))
    return path


def headless(folder: Path) -> Path:
    path = noise_clip(folder / "headless.mp4", movflags="")
    path.write_bytes(path.read_bytes()[:5000])
    return path


def blank(folder: Path) -> Path:
    """A good header, and zeros for pictures."""
    path = noise_clip(folder / "blank.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    return path


def cover_picture(folder: Path) -> Path:
    path = folder / "cover.mp4"
    with av.open(str(path), "w") as output:
        audio = output.add_stream("aac", rate=video_files.SAMPLE_RATE, layout="stereo")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        for block in video_files.sound_blocks("stereo", 0.5):
            output.mux(audio.encode(block))
        output.mux(audio.encode(None))
        output.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_file, "no such file"),
        (a_folder, "is a folder"),
        (text, "give a video file"),
        (nothing, "give a video file"),
        (sound_only, "no video"),
        (mp3, "no video"),
        (cover_picture, "no video"),
        (no_frames, "no frames"),
        (headless, "give a video file"),
        (blank, "cannot be decoded"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, make, says: str) -> None:
    path = make(tmp_path)
    for refuse in (probe, VideoReader):
        with pytest.raises(InputError, match=says) as error:
            refuse(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_start_or_count_out_of_range_is_refused(clip: Path) -> None:
    with pytest.raises(InputError, match=r"start is frame 30 but there are 30 frames, 0 to 29"):
        VideoReader(clip, start=30)
    with pytest.raises(InputError, match="-1"):
        VideoReader(clip, start=-1)
    with pytest.raises(InputError, match="max_frames is 0"):
        VideoReader(clip, max_frames=0)
    with pytest.raises(InputError, match="blocks of 0"):
        next(VideoReader(clip).blocks(0))


def test_a_part_is_read_as_the_whole(clip: Path) -> None:
    """Other frames of one reader, by numbers of the file; each iterates by itself."""
    whole = VideoReader(clip, resample_fps=Fraction(10), square_pixels=True)
    part = whole.part(3, 2)
    assert (part.num_frames, part.frame_rate, part.size) == (2, whole.frame_rate, whole.size)
    frames = torch.stack(list(whole))
    running = iter(whole)
    first = next(running)
    assert torch.equal(torch.stack(list(part)), frames[3:5])
    assert torch.equal(torch.stack([first, *running]), frames)
    assert whole.part(5).num_frames == len(frames) - 5
    with pytest.raises(InputError, match=f"start is frame {len(frames)} but there are"):
        whole.part(len(frames))
    with pytest.raises(InputError, match="max_frames is 0"):
        whole.part(0, 0)
