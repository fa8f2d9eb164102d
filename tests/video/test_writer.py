import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest
import torch
import video_files
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video import writer as writer_module
from sana_streaming.sana_core.video.demo_clip import demo_frames
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.salvage import salvage
from sana_streaming.sana_core.video.writer import VideoWriter, WriteError, check_output

NTSC = Fraction(30000, 1001)
SUFFIXES = [".mp4", ".m4v", ".mov", ".mkv"]
ENDS_AS_MP4 = pytest.mark.skipif(
    av.library_versions["libavformat"] < (62, 12, 0), reason="FFmpeg before 8.1 leaves an MP4 in fragments"
)


def write(path: Path, frames: torch.Tensor, rate: Fraction = Fraction(25), **options) -> Path:
    with VideoWriter(
        path, width=frames.shape[2], height=frames.shape[1], frame_rate=rate, **options
    ) as writer:  # fmt: skip
        for block in frames.split(7):
            writer.write(block)
        assert writer.frames_written == len(frames)
    return path


def sound(path: Path) -> tuple[str, np.ndarray, float]:
    """Codec, samples [channels, n] and the time of the first, in seconds."""
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
        codec = container.streams.audio[0].codec_context.codec.canonical_name
        return codec, np.concatenate([block.to_ndarray() for block in blocks], axis=1), blocks[0].time


def heard_at(samples: np.ndarray, time: float) -> float:
    """The time in the source of what is heard at ``time``, to the nearest place where 0.1 seconds of it fit well."""
    at, length = round(time * video_files.SAMPLE_RATE), video_files.SAMPLE_RATE // 10
    heard, source = samples[at : at + length].astype(np.float32), video_files.wave(5)
    likeness = np.fft.irfft(np.fft.rfft(source) * np.conj(np.fft.rfft(heard, len(source))))
    best = int(likeness.argmax())
    assert np.corrcoef(heard, source[best : best + length])[0, 1] > 0.9
    return best / video_files.SAMPLE_RATE


def sound_end(path: Path) -> Fraction:
    """When the last sound packet begins."""
    with av.open(str(path)) as container:
        return max(p.pts * p.time_base for p in container.demux(audio=0) if p.pts is not None)


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips of 5 seconds, 125 frames, by their sound."""
    folder = tmp_path_factory.mktemp("sounding")
    frames = video_files.level_frames(125, 32, 32)
    kinds = {
        "aac": ("aac.mp4", ("aac", "stereo", 5)),
        "pcm": ("pcm.mkv", ("pcm_s16le", "stereo", 5)),
        "ac3": ("ac3.mkv", ("ac3", "5.1", 5)),
        "opus": ("opus.mkv", ("libopus", "stereo", 5)),
        "broadcast": ("aac.ts", ("aac", "stereo", 5)),
        "short": ("short.mp4", ("aac", "stereo", 1)),
        "none": ("none.mp4", None),
    }
    return {kind: video_files.write_clip(folder / name, frames, sound=with_) for kind, (name, with_) in kinds.items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rate", [Fraction(16), NTSC, Fraction(1, 2), Fraction(2997, 125)], ids=str)
def test_frames_count_rate_and_times(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    frames = video_files.level_frames(61, 32, 64)
    path = write(tmp_path / f"out{suffix}", frames, rate)
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (64, 32, 61, False)
    assert info.frame_rate == rate or (suffix == ".mkv" and abs(info.frame_rate / rate - 1) < 1e-3)
    assert info.duration == pytest.approx(float(61 / rate), abs=2e-3)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    for number, frame in enumerate(decoded):
        time = frame.pts * frame.time_base
        assert abs(time - number / rate) <= (Fraction(1, 1000) if suffix == ".mkv" else 0)
    levels = [int(frame.to_ndarray(format="rgb24")[-4, -4, 0]) for frame in decoded]
    assert levels == pytest.approx(frames[:, -1, -1, 0].tolist(), abs=4)


@ENDS_AS_MP4
@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov"])
def test_a_finished_file_is_an_ordinary_one(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"out{suffix}", video_files.level_frames(150, 32, 32))
    names = video_files.boxes(path)
    assert names.count("moov") == names.count("mdat") == 1 and "moof" not in names
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 150


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(4)], ids=str)
def test_a_key_frame_every_two_seconds(tmp_path: Path, rate: Fraction) -> None:
    path = write(tmp_path / "out.mp4", torch.full((130, 32, 32, 3), 90, dtype=torch.uint8), rate)
    with av.open(str(path)) as container:
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == list(range(0, 130, int(2 * rate)))


@pytest.mark.parametrize(("height", "width", "matrix"), [(64, 64, 6), (704, 1280, 1), (1280, 704, 1), (384, 640, 6)])
def test_colours_survive_and_are_tagged_as_players_assume(tmp_path: Path, height: int, width: int, matrix: int) -> None:
    colours = [(200, 30, 40), (20, 180, 60), (30, 60, 220), (128, 128, 128), (250, 250, 250), (5, 5, 5)]
    frames = torch.tensor(colours, dtype=torch.uint8).view(-1, 1, 1, 3).expand(-1, height, width, -1)
    path = write(tmp_path / "out.mp4", frames)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
    assert tags == (matrix, 1, 1, 1)
    # Red's luma, by the formula of each matrix, in limited range.
    red_weight, blue_weight = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
    luma = red_weight * 200 + (1 - red_weight - blue_weight) * 30 + blue_weight * 40
    assert int(decoded[0].to_ndarray()[height // 2, width // 2]) == pytest.approx(16 + 219 * luma / 255, abs=1.5)
    for frame, colour in zip(VideoReader(path), colours, strict=True):
        assert (frame.int() - torch.tensor(colour)).abs().max() <= 3


def test_crf_sets_the_quality(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (10, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sizes = [write(tmp_path / f"{crf}.mp4", frames, crf=crf).stat().st_size for crf in (10, 25, 45)]
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * 1.3 * sizes[2]


@pytest.mark.parametrize(
    ("kind", "suffix", "codec"),
    [
        ("aac", ".mp4", "aac"),
        ("aac", ".mkv", "aac"),
        ("opus", ".mp4", "opus"),
        ("pcm", ".mov", "pcm_s16le"),
        ("pcm", ".mkv", "pcm_s16le"),
        ("ac3", ".mkv", "ac3"),
    ],
)
def test_sound_that_fits_is_copied(
    sounding: dict[str, Path], tmp_path: Path, kind: str, suffix: str, codec: str
) -> None:
    path = write(tmp_path / f"out{suffix}", video_files.level_frames(50, 32, 32), audio_from=sounding[kind])

    def packets(file: Path) -> list[bytes]:
        with av.open(str(file)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.pts is not None and p.size and p.pts >= 0]

    copied, whole = packets(path), packets(sounding[kind])
    assert sound(path)[0] == codec
    assert len(copied) > 20
    first = whole.index(copied[0])
    assert first <= 1 and copied == whole[first : first + len(copied)]


@pytest.mark.parametrize(
    ("kind", "suffix"), [("pcm", ".mp4"), ("pcm", ".m4v"), ("ac3", ".mp4"), ("opus", ".mov"), ("broadcast", ".mp4")]
)
def test_other_sound_becomes_aac(sounding: dict[str, Path], tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(tmp_path / f"out{suffix}", video_files.level_frames(50, 32, 32), audio_from=sounding[kind])
    codec, samples, _ = sound(path)
    assert codec == "aac" and len(samples) == (6 if kind == "ac3" else 2)


@pytest.mark.parametrize("start", [0.0, 1.0, 2.345])
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("aac", ".mp4"), ("aac", ".mkv"), ("pcm", ".mp4"), ("broadcast", ".mp4"), ("broadcast", ".mkv")],
)
def test_sound_is_cut_to_the_video_and_in_time(
    sounding: dict[str, Path], tmp_path: Path, kind: str, suffix: str, start: float
) -> None:
    path = write(
        tmp_path / f"out{suffix}", video_files.level_frames(50, 32, 32), audio_from=sounding[kind], audio_start=start
    )
    packet = Fraction(1024, video_files.SAMPLE_RATE)
    assert Fraction(2) - 2 * packet < sound_end(path) < 2
    assert probe(path).duration == pytest.approx(2.0, abs=2e-3)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).pts == 0
    _, samples, first = sound(path)
    assert 0 <= first < 1.6 * packet
    for time in (0.5, 1.5):
        assert heard_at(samples[0], time - first) == pytest.approx(start + time, abs=0.002)


def test_sound_that_begins_late_stays_late(tmp_path: Path) -> None:
    source = tmp_path / "late.mkv"
    with av.open(str(source), "w") as output:
        video, audio = output.add_stream("libx264", rate=25), output.add_stream("aac", rate=video_files.SAMPLE_RATE)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for frame in video_files.level_frames(75, 32, 32):
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        output.mux(video.encode(None))
        for block in video_files.sound_blocks("stereo", 2):
            block.pts += video_files.SAMPLE_RATE
            output.mux(audio.encode(block))
        output.mux(audio.encode(None))
    path = write(tmp_path / "out.mp4", video_files.level_frames(75, 32, 32), audio_from=source)
    assert sound(path)[2] == pytest.approx(1.0, abs=0.03)


def test_surround_sound_of_a_real_clip(tmp_path: Path) -> None:
    path = write(
        tmp_path / "out.mp4",
        video_files.level_frames(40, 32, 32),
        NTSC,
        audio_from=clips.clip("bigbuckbunny.mp4"),
        audio_start=1.5,
    )
    codec, samples, _ = sound(path)
    assert codec == "aac" and len(samples) == 6 and np.abs(samples).max() > 0.01
    assert sound_end(path) < 40 / NTSC


@pytest.mark.parametrize(("kind", "start"), [("none", 0.0), ("short", 0.0), ("short", 3.0), ("aac", 60.0)])
def test_less_sound_than_video(sounding: dict[str, Path], tmp_path: Path, kind: str, start: float) -> None:
    frames = video_files.level_frames(100, 32, 32)
    path = write(tmp_path / "out.mp4", frames, audio_from=sounding[kind], audio_start=start)
    info = probe(path)
    assert info.num_frames == 100 and info.duration == pytest.approx(4.0, abs=2e-3)
    if (kind, start) == ("short", 0.0):
        assert 0.9 < sound_end(path) < 1.1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_exception_leaves_a_finished_file(
    sounding: dict[str, Path], tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = tmp_path / f"out{suffix}"
    with (
        pytest.raises(error),
        VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=sounding["aac"]) as writer,
    ):
        writer.write(video_files.level_frames(33, 32, 32))
        raise error
    info = probe(path)
    assert info.num_frames == 33 and info.has_audio and info.duration == pytest.approx(1.32, abs=2e-3)
    assert len(video_files.read_frames(path)) == 33


def levels(path: Path) -> list[int]:
    return video_files.read_frames(path)[:, -4, -4, 0].tolist()


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs signals as POSIX has them")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_ctrl_c_while_a_block_is_written_lets_the_block_be_finished(
    sounding: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    frames = video_files.level_frames(40, 32, 32)
    make_frame = VideoWriter._frame

    def frame_and_signal(self: VideoWriter, picture: np.ndarray) -> av.VideoFrame:
        if self.frames_written in (13, 14):
            os.kill(os.getpid(), signal.SIGINT)
        return make_frame(self, picture)

    monkeypatch.setattr(VideoWriter, "_frame", frame_and_signal)
    writer = VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=sounding["aac"])
    written = 0
    with pytest.raises(KeyboardInterrupt), writer:
        for block in frames.split(10):
            written += len(block)
            writer.write(block)
    assert writer.frames_written == written == 20
    assert levels(path) == pytest.approx(frames[:20, -1, -1, 0].tolist(), abs=5)
    assert sound_end(path) == pytest.approx(0.8, abs=0.03)


def test_ctrl_c_at_any_step_leaves_whole_blocks_and_a_file_that_holds_them(tmp_path: Path) -> None:
    """KeyboardInterrupt as Python raises it, in the main thread between two instructions, at one after another."""
    frames = video_files.level_frames(9, 32, 32)
    path = tmp_path / "out.mkv"

    def interrupted_at(step: int) -> tuple[int, bool]:
        """Frames written, and whether the interrupt came at all."""
        steps = 0

        def trace(frame, event: str, _argument: object):
            nonlocal steps
            if frame.f_code.co_filename != writer_module.__file__:
                return None
            frame.f_trace_opcodes = True
            if event in ("line", "opcode"):
                steps += 1
                if steps == step:
                    raise KeyboardInterrupt
            return trace

        writer = VideoWriter(path, width=32, height=32, frame_rate=Fraction(25))
        before = sys.gettrace()
        try:
            sys.settrace(trace)
            for block in frames.split(3):
                writer.write(block)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        written = writer.frames_written
        writer.close()
        assert writer.frames_written == written
        return written, steps >= step

    step, seen = 1, set()
    while (outcome := interrupted_at(step))[1]:
        written = outcome[0]
        seen.add(written)
        assert written % 3 == 0, step
        if written:
            assert levels(path) == pytest.approx(frames[:written, -1, -1, 0].tolist(), abs=5), step
        assert path.exists() == bool(written)
        path.unlink(missing_ok=True)
        step += 1
    assert seen == {0, 3, 6, 9}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("method", "call"), [("_frame", 42), ("_mux_audio", 5)])
def test_a_file_closed_after_an_error_within_write_holds_what_was_written(
    sounding: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, method: str, call: int
) -> None:
    frames, path = video_files.level_frames(120, 32, 32), tmp_path / f"out{suffix}"
    real, calls = getattr(VideoWriter, method), []

    def failing(self: VideoWriter, argument: object) -> object:
        calls.append(argument)
        if len(calls) == call:
            raise RuntimeError("on purpose")
        return real(self, argument)

    monkeypatch.setattr(VideoWriter, method, failing)
    writer = VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=sounding["aac"])
    with pytest.raises(RuntimeError, match="on purpose"), writer:
        writer.write(frames)
    assert 0 < writer.frames_written < 120
    assert levels(path) == pytest.approx(frames[: writer.frames_written, -1, -1, 0].tolist(), abs=5)


FULL = """
import resource, sys
from fractions import Fraction
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch, video_files
from sana_streaming.sana_core.video.writer import VideoWriter, WriteError

torch.set_num_threads(1)
frames = video_files.level_frames(170, 32, 32)
frames += torch.randint(0, 4, frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
path, sound, none = Path(sys.argv[1]), sys.argv[3], resource.RLIM_INFINITY

def limited(limit, path):
    writer = VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=sound)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, none))
    try:
        with writer:
            for block in frames.split(24):
                writer.write(block)
    except WriteError as error:
        print(path, error.frames_safe, writer.frames_written, error, sep="|")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))

limited(none, path)
whole = path.stat().st_size
for limit in sorted([1, 100, 1000, *range(whole // 12, whole, whole // 12), whole - 700, whole - 1]):
    limited(limit, path.with_stem(str(limit)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_leaves_the_frames_that_it_took(sounding: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    folder = video_files.__file__.rsplit("/", 1)[0]
    command = [sys.executable, "-c", FULL, tmp_path / f"whole{suffix}", folder, sounding["aac"]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = video_files.level_frames(170, 32, 32)[:, -1, -1, 0].tolist()
    assert probe(tmp_path / f"whole{suffix}").num_frames == 170
    counts = []
    for line in done.stdout.splitlines():
        name, safe, written, message = line.split("|")
        counts.append(int(safe))
        assert message.startswith(f"{name}: writing broke off after {written} frames, ")
        assert re.search("File too large|its end is missing", message)
        assert (f"first {safe} frames are safe" if counts[-1] else "none could be kept") in message
        assert Path(name).exists() == bool(counts[-1])
        if counts[-1]:
            shown = [int(frame[-4, -4, 0]) for frame in VideoReader(name)]
            assert len(shown) == probe(name).num_frames == counts[-1], message
            assert shown == pytest.approx(expected[: len(shown)], abs=9), message
            if suffix == ".mp4":
                names = video_files.boxes(Path(name))
                assert names[-1] == "mdat" and names.count("moof") == names.count("mdat")
    assert len(counts) >= 16 and counts == sorted(counts) and counts[:3] == [0, 0, 0]
    assert len(set(counts)) > 3 and counts[-1] == 170


def test_nothing_is_cut_off_a_finished_file(tmp_path: Path) -> None:
    frames = video_files.level_frames(4, 32, 32)
    path = video_files.write_clip(tmp_path / "gap.mp4", frames, times=[0, 1, 3, 4])
    whole = path.read_bytes()
    assert salvage(path, Fraction(25)) == 2
    assert path.read_bytes() == whole


class Failing:
    """An encoder whose ``number``-th picture is too much for it."""

    def __init__(self, stream: object, number: int) -> None:
        self.stream, self.left = stream, number

    def encode(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        self.left -= 1
        if self.left == 0:
            raise av.MemoryError(12, "Cannot allocate memory")
        return self.stream.encode(frame)


def test_an_encoder_that_fails_leaves_what_it_had(
    sounding: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_video = VideoWriter._add_video
    monkeypatch.setattr(VideoWriter, "_add_video", lambda self, output: Failing(add_video(self, output), 31))
    path, frames = tmp_path / "out.mp4", video_files.level_frames(60, 32, 32)
    writer = VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=sounding["aac"])
    with (
        pytest.raises(
            WriteError, match="after 30 frames, its first 30 frames are safe .Cannot allocate memory"
        ) as error,
        writer,
    ):
        writer.write(frames)
    assert error.value.frames_safe == writer.frames_written == 30
    assert levels(path) == pytest.approx(frames[:30, -1, -1, 0].tolist(), abs=5)
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(frames)


def test_what_is_left_is_in_order_and_without_a_gap(tmp_path: Path) -> None:
    """Pictures that move are stored out of order: where the file ends between them, those shown later do not count."""
    frames = torch.stack(list(demo_frames(40, 64, 96)))
    whole, path, gaps = write(tmp_path / "whole.mkv", frames), tmp_path / "cut.mkv", 0
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    numbers = [round(packet.pts * packet.time_base * 25) for packet in packets]
    for count in range(1, 40):
        path.write_bytes(whole.read_bytes()[: packets[count].pos])
        there = next(number for number in range(41) if number not in numbers[:count])
        safe = salvage(path, Fraction(25))
        assert 1 <= safe <= there and safe == probe(path).num_frames
        assert torch.equal(video_files.read_frames(path), video_files.read_frames(whole)[:safe])
        gaps += there < count
    assert gaps > 10


KILLED = """
import os, signal, sys
from fractions import Fraction
sys.path.insert(0, sys.argv[2])
import video_files
from sana_streaming.sana_core.video.writer import VideoWriter

frames = video_files.level_frames(300, 32, 32)
writers = [
    VideoWriter(f"{sys.argv[1]}/out{suffix}", width=32, height=32, frame_rate=Fraction(25), audio_from=sys.argv[3])
    for suffix in sys.argv[4:]
]
for block in frames.split(24):
    for writer in writers:
        writer.write(block)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_a_file_that_plays(sounding: dict[str, Path], tmp_path: Path) -> None:
    # Sound that ends after one second must not hold the picture back either.
    command = [sys.executable, "-c", KILLED, tmp_path, video_files.__file__.rsplit("/", 1)[0], sounding["short"]]
    done = subprocess.run([*command, *SUFFIXES], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # 50 frames to a fragment; x264 holds 20, 3 for B-frames and one per thread.
    flushed = (300 - 20 - 3 - 2 * (os.cpu_count() or 1)) // 50 * 50 - 50
    expected = video_files.level_frames(300, 32, 32)[:, -1, -1, 0].tolist()
    for suffix in SUFFIXES:
        path = tmp_path / f"out{suffix}"
        levels = video_files.read_frames(path)[:, -4, -4, 0].tolist()
        assert max(flushed, 50) <= len(levels) <= 300, suffix
        assert levels == pytest.approx(expected[: len(levels)], abs=5), suffix
        info = probe(path)
        assert info.frame_rate == 25 and info.num_frames == len(levels), suffix
        assert 0.9 < sound_end(path) < 1.1


def test_sound_is_read_along_with_the_picture(sounding: dict[str, Path], tmp_path: Path) -> None:
    writer = VideoWriter(
        tmp_path / "out.mkv", width=32, height=32, frame_rate=Fraction(25), audio_from=sounding["aac"]
    )  # fmt: skip
    writer.write(video_files.level_frames(100, 32, 32))
    # The next sound packet to be written belongs to a picture inside the encoder, not to the end of the sound.
    next_packet = next(writer._audio.packets_before(Fraction(1000)))
    assert next_packet.pts * next_packet.time_base < 4
    writer.close()


def test_no_frame_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = VideoWriter(path, width=32, height=32, frame_rate=Fraction(25), audio_from=clips.clip("bikes.mp4"))
    writer.write(torch.zeros(0, 32, 32, 3, dtype=torch.uint8))
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        writer.write(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("out.avi", r"cannot write \.avi: use \.mp4, \.m4v, \.mov, \.mkv"),
        ("out", "without ending"),
        ("absent/out.mp4", "there is no folder"),
        ("file.txt/out.mp4", "there is no folder"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for refuse in (check_output, lambda path: VideoWriter(path, width=32, height=32, frame_rate=Fraction(25))):
        with pytest.raises(InputError, match=says) as error:
            refuse(tmp_path / name)
        assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can create files")
def test_a_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot write to /proc"):
        check_output("/proc/out.mp4")


def test_a_good_output_is_left_untouched(tmp_path: Path) -> None:
    check_output(tmp_path / "new.MP4")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.mp4").write_bytes(b"old")
    check_output(str(tmp_path / "old.mp4"))
    assert (tmp_path / "old.mp4").read_bytes() == b"old"


def test_the_source_is_not_overwritten(sounding: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="also the source"):
        VideoWriter(sounding["aac"], width=32, height=32, frame_rate=Fraction(25), audio_from=sounding["aac"])
    assert probe(sounding["aac"]).num_frames == 125


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 33}, "33x32.*even"),
        ({"height": 0}, "32x0"),
        ({"width": 16416}, "16416x32.*even, at most 16384 each"),
        ({"width": 16256, "height": 16256}, "16256x16256.*16254x16254 in all"),
        ({"frame_rate": Fraction(0)}, "at 0 frames per second.*from 1/65535 to 1000"),
        ({"frame_rate": Fraction(-25)}, "at -25"),
        ({"frame_rate": Fraction(1, 10**6)}, "at 1/1000000 frames per second.*from 1/65535 to 1000"),
        ({"frame_rate": Fraction(10**6 + 1, 1000)}, "at 1000001/1000"),
        ({"crf": 52}, "crf is 52"),
        ({"audio_start": -1.0}, "audio_start is -1.0"),
        ({"audio_from": "absent.mp4"}, "no such file"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        VideoWriter(tmp_path / "out.mp4", **{"width": 32, "height": 32, "frame_rate": Fraction(25), **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("width", "height"),
    [(2, 2), (16384, 2), (16386, 2), (2, 16384), (2, 16386), (16384, 16126), (16384, 16128), (16254, 16254),
     (16256, 16256), (16128, 16384)],
)  # fmt: skip
def test_sizes_are_refused_where_the_encoder_would_refuse_them(tmp_path: Path, width: int, height: int) -> None:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", Fraction(1, 25)
    try:
        encoder.open()
    except av.FFmpegError:
        with pytest.raises(InputError, match=f"{width}x{height}"):
            VideoWriter(tmp_path / "out.mp4", width=width, height=height, frame_rate=Fraction(25))
    else:
        VideoWriter(tmp_path / "out.mp4", width=width, height=height, frame_rate=Fraction(25)).close()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    "rate", [Fraction(1, 65535), Fraction(2, 65537), Fraction(65535 * 1000 - 1, 65535), Fraction(1000)]
)
def test_rates_at_both_ends_of_the_range(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    path = write(tmp_path / f"out{suffix}", video_files.level_frames(5, 32, 32), rate)
    with av.open(str(path)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert [round(time * rate) for time in times] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 32, 30, 3, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 32, 32, 3),
    ],
    ids=["size", "one frame", "float"],
)
def test_frames_that_do_not_fit_are_named(tmp_path: Path, frames: torch.Tensor) -> None:
    with (
        pytest.raises(InputError, match=r"expected torch\.uint8 \[frames, 32, 32, 3\]"),
        VideoWriter(tmp_path / "out.mp4", width=32, height=32, frame_rate=Fraction(25)) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []
