"""Outputs: what is written where, and what happens where it cannot be."""

import itertools
import os
import socket
import types
from fractions import Fraction

import av
import numpy as np
import pytest
from live_streams import numbered, shown_numbers
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.live import sink as sinks
from sana_streaming.sana_core.live.address import TargetAddress
from sana_streaming.sana_core.live.sink import EncodedSink, RemoteSink, check_target_address, open_sink


def opened(path, *, has_sound=False, container=None):
    target = TargetAddress(str(path), container=container)
    check_target_address(target, "udp://127.0.0.1:1")
    return open_sink(target, height=64, width=64, rate=Fraction(25), has_sound=has_sound, crf=10)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.ts", "out.flv"])
def test_frames_keep_uneven_times_and_sound_runs_beside_them(tmp_path, name):
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 1.0]
    sink = opened(tmp_path / name, has_sound=True)
    for number, seconds in enumerate(times):
        assert sink.write(numbered(number), seconds)
        sink.write_sound(np.full((2, 9600), 0.1, np.float32), number * 0.2)
    sink.close()
    shown = shown_numbers(tmp_path / name)
    assert [number for _, number in shown] == list(range(6))
    assert [seconds - shown[0][0] for seconds, _ in shown] == pytest.approx(times, abs=2e-3)
    with av.open(str(tmp_path / name)) as container:
        sound = list(container.decode(audio=0))
    assert sum(piece.samples for piece in sound) / 48_000 == pytest.approx(1.2, abs=0.05)
    assert sound[0].pts * sound[0].time_base == pytest.approx(shown[0][0], abs=0.03)


def test_raw_frames_are_bytes(tmp_path):
    sink = opened(tmp_path / "out.rgb", container="rawvideo")
    for number in range(3):
        sink.write(numbered(number), 0.0)
    sink.close()
    assert (tmp_path / "out.rgb").read_bytes() == b"".join(numbered(number).tobytes() for number in range(3))


def test_an_address_that_fails_is_tried_again_with_longer_waits(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(sinks, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    opened, fails = [], []

    class Sink:
        def __init__(self, start):
            # Its times begin anew: nobody fills an hour with silence.
            assert start == now[0]
            opened.append(now[0])
            if now[0] in fails:
                raise OSError("refused")

        def write(self, picture, seconds):
            if now[0] == 1.0:
                raise OSError("gone")
            return True

        def write_sound(self, samples, seconds):
            assert now[0] != 1.0, "sound goes nowhere while there is no sink"

        def close(self):
            raise OSError("still gone")

    fails += [1.5]
    sink = RemoteSink("tcp://x", Sink)
    written = {}
    for step in itertools.takewhile(lambda step: step < 20, itertools.count()):
        now[0] = step / 4
        written[now[0]] = sink.write(numbered(0), now[0])
        sink.write_sound(np.zeros((2, 8), np.float32), now[0])
    # Lost at 1.0, tried half a second later and a second after that.
    assert opened == [0.0, 1.5, 2.5]
    assert [moment for moment, done in written.items() if not done] == [1.0, 1.25, 1.5, 1.75, 2.0, 2.25]
    assert "trying again in 1.0 seconds" in caplog.text
    sink.close()
    assert "the end could not be sent (still gone)" in caplog.text


def test_a_virtual_camera_gets_every_frame(monkeypatch):
    sent = []

    class Camera:
        def __init__(self, **about):
            sent.append(about)

        def send(self, picture):
            sent.append(picture.copy())

        def close(self):
            sent.append("closed")

    package = types.SimpleNamespace(Camera=Camera, PixelFormat=types.SimpleNamespace(RGB="rgb"))
    monkeypatch.setattr(sinks, "_pyvirtualcam", lambda: package)
    sink = opened("virtual-camera:/dev/video7")
    sink.write(numbered(3), 0.0)
    sink.close()
    assert sent[0] == {"width": 64, "height": 64, "fps": 25.0, "device": "/dev/video7", "fmt": "rgb"}
    assert (sent[1] == numbered(3)).all() and sent[2] == "closed"


def test_places_that_cannot_be_written_to_are_refused_at_once(tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.touch()
    with pytest.raises(InputError, match="also the source"):
        check_target_address(TargetAddress(str(clip)), str(clip))
    with pytest.raises(InputError, match="is a folder"):
        check_target_address(TargetAddress(str(tmp_path)), "-")
    with pytest.raises(InputError, match="no folder"):
        check_target_address(TargetAddress(str(tmp_path / "no" / "x.mp4")), "-")
    with pytest.raises(InputError, match="--output-format"):
        check_target_address(TargetAddress("icecast://x"), "-")


def test_a_receiver_that_takes_nothing_is_left(monkeypatch):
    monkeypatch.setattr(sinks, "STALL_SECONDS", 0.3)
    noise = np.random.default_rng(0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = TargetAddress(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        sink = open_sink(target, height=480, width=640, rate=Fraction(25), has_sound=False, crf=0)
        picture = noise.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        assert not all(sink.write(np.roll(picture, number, 0), number / 25) for number in range(400))
    assert sinks._with_timeout("tcp://h:1?timeout=5") == "tcp://h:1?timeout=5"
    assert sinks._with_timeout("udp://h:1") == "udp://h:1"


def test_an_unknown_protocol_is_refused_and_not_tried_again():
    with pytest.raises(InputError, match="nonsense://x is of a protocol"):
        opened("nonsense://x", container="mpegts")


@pytest.mark.parametrize("name, container", [("out.nonsense", None), ("out", None), ("out.mp4", "nonsense")])
def test_what_is_no_format_is_refused_before_anything_is_opened(tmp_path, name, container):
    with pytest.raises(InputError, match="use .mp4, .mkv, .ts or (another )?--output-format") as error:
        opened(tmp_path / name, container=container)
    assert "\n" not in str(error.value) and not (tmp_path / name).exists()


@pytest.mark.parametrize("container, error", [(None, BrokenPipeError), ("mpegts", OSError)])
def test_a_reader_of_standard_output_that_has_gone_is_named(tmp_path, monkeypatch, container, error):
    class Gone:
        def write(self, data):
            raise BrokenPipeError(32, "Broken pipe")

    if container:
        with (
            pytest.raises(OSError, match="^standard output cannot be written"),
            sinks._reported(TargetAddress("-", container=container).name),
        ):
            raise BrokenPipeError(32, "Broken pipe")
        return
    monkeypatch.setattr("sys.stdout", types.SimpleNamespace(buffer=Gone()))
    with pytest.raises(error, match="^standard output was closed by its reader$"):
        opened("-").write(numbered(0), 0.0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in its file system")
def test_an_output_that_fails_at_its_beginning_leaves_nothing_open(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:

        def refuse(*_):
            raise OSError("no encoder")

        monkeypatch.setattr(EncodedSink, "_add_video", refuse)
        with pytest.raises(OSError, match="no encoder"):
            opened(pipe, container="mpegts")
        # Where somebody had it open still, there would be nothing yet, and not the end.
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
