"""Sources: addresses, files at their own rate, named pipes whose writers come and go, standard input."""

import itertools
import os
import threading
import time
from fractions import Fraction

import live_streams
import numpy as np
import pytest
from live_process import free_port
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.live import source as sources
from sana_streaming.sana_core.live.address import SourceAddress, TargetAddress, is_url
from sana_streaming.sana_core.live.pipe import PipeReader
from sana_streaming.sana_core.live.source import LiveSource, LostError

pipes = pytest.mark.skipif(os.name == "nt", reason="named pipes are not files on Windows")


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


@pytest.mark.parametrize(
    "text, kind, url, paced, listening",
    [
        ("-", "standard", False, True, False),
        ("udp://127.0.0.1:5000", "remote", True, False, True),
        ("srt://host:1?mode=listener", "remote", True, False, True),
        ("srt://host:1", "remote", True, False, False),
        ("tcp://host:1?timeout=1&listen=1", "remote", True, False, True),
        ("https://host/live.m3u8?key=1", "remote", True, True, False),
        ("https://host/live.ts", "remote", True, False, False),
    ],
)
def test_kinds(text, kind, url, paced, listening):
    address = SourceAddress(text, container="mpegts" if text == "-" else None)
    assert address.kind == kind and is_url(text) is url
    assert address.is_paced is paced and address.can_come_back is (kind == "remote")
    assert address.is_listening is listening


def test_a_path_is_no_address_whatever_is_in_it(tmp_path):
    assert not is_url("C:/clip.mp4") and not is_url("/dev/video0") and not is_url("./a:b.mp4")
    with pytest.raises(InputError, match="no such file"):
        SourceAddress(str(tmp_path / "clip.mp4"))
    (tmp_path / "clip.mp4").touch()
    assert SourceAddress(str(tmp_path / "clip.mp4")).kind == "file"


def test_raw_video_needs_a_size_and_the_users_options_count_most():
    with pytest.raises(InputError, match="--input-size"):
        SourceAddress("-")
    raw = SourceAddress("-", size=(36, 64), rate=Fraction(25))
    assert raw.format == "rawvideo"
    assert raw.open_options() == {"video_size": "64x36", "pixel_format": "rgb24", "framerate": "25"}
    remote = SourceAddress("udp://127.0.0.1:1", options={"fflags": "x"})
    assert remote.open_options()["fflags"] == "x" and remote.format is None
    assert remote.open_options()["overrun_nonfatal"] == "1" and "fifo_size" not in remote.open_options()
    assert int(remote.open_options(hold=True)["fifo_size"]) * 188 >= 30e6
    small = SourceAddress("udp://127.0.0.1:1", options={"fifo_size": "99"})
    assert small.open_options(hold=True)["fifo_size"] == "99"
    assert "fifo_size" not in SourceAddress("tcp://127.0.0.1:1").open_options(hold=True)
    assert SourceAddress("rtmp://h/x", options={"listen": "1"}).is_listening
    camera = SourceAddress("0", container="avfoundation", size=(720, 1280), rate=Fraction(30))
    assert camera.open_options() | {"video_size": "1280x720", "framerate": "30"} == camera.open_options()


@pytest.mark.parametrize(
    "text, wanted",
    [("udp://h:1", "mpegts"), ("rtmp://h/x", "flv"), ("-", "rawvideo"), ("clip.mp4", None), ("virtual-camera", None)],
)
def test_formats_of_outputs(text, wanted):
    assert TargetAddress(text).format == wanted
    assert TargetAddress(text, container="nut").format == "nut"


def test_a_file_comes_at_its_own_rate_and_ends(tmp_path):
    clip = tmp_path / "clip.ts"
    live_streams.send(str(clip), 5, 30, 100, sound=False)
    source = LiveSource(SourceAddress(str(clip)))
    frames = list(source.frames())
    assert [live_streams.number_of(frame.picture.numpy()) for frame in frames] == list(range(5, 35))
    assert [frame.number for frame in frames] == list(range(30))
    assert [frame.time - frames[0].time for frame in frames] == pytest.approx([i / 100 for i in range(30)], abs=2e-4)
    # None is there before its time.
    assert all(frame.arrival >= frame.time for frame in frames)
    assert frames[0].first and not any(frame.first for frame in frames[1:])
    assert (source.info.height, source.info.width, source.info.rate) == (64, 64, 100) and not source.info.has_sound


@pipes
def test_a_pipe_goes_on_with_its_next_writer(pipe):
    source = LiveSource(SourceAddress(pipe))
    told, seen = [], []
    source.on_event(lambda status, text: told.append(status), lambda block: None)

    def read():
        for frame in source.frames():
            seen.append((live_streams.number_of(frame.picture.numpy()), frame))

    reader = threading.Thread(target=read)
    reader.start()
    for first, known in ((0, 40), (1000, 80)):
        with live_streams.sending(pipe, first, 40, 200, sound=False) as sender:
            sender.join(20)
        end = time.monotonic() + 20
        while not (len(seen) == known and told[-1] == "reconnecting") and time.monotonic() < end:
            time.sleep(0.01)
    source.stop()
    reader.join(5)
    assert not reader.is_alive()
    assert [number for number, _ in seen] == [*range(40), *range(1000, 1040)]
    assert [index for index, (_, frame) in enumerate(seen) if frame.first] == [0, 40]
    times = [frame.time for _, frame in seen]
    assert all(after > before for before, after in itertools.pairwise(times))
    assert told[:4] == ["connecting", "running", "reconnecting", "running"] and source.connections == 2


@pipes
def test_a_pipe_without_a_writer_can_be_stopped(pipe):
    source = LiveSource(SourceAddress(pipe))
    reader = threading.Thread(target=lambda: list(source.frames()))
    reader.start()
    time.sleep(0.2)
    assert reader.is_alive()
    source.stop()
    reader.join(5)
    assert not reader.is_alive()


@pipes
def test_who_does_not_come_back_is_lost(pipe):
    source = LiveSource(SourceAddress(pipe), reconnect=0.4)
    seen = []

    def read():
        with pytest.raises(LostError, match=r"was lost \(.*\) and did not come back in 0\.[4-9] seconds"):
            for frame in source.frames():
                seen.append(frame)
        seen.append("lost")

    reader = threading.Thread(target=read)
    reader.start()
    with live_streams.sending(pipe, 0, 20, 200, sound=False) as sender:
        sender.join(20)
    reader.join(20)
    assert seen[-1] == "lost" and len(seen) == 21


@pipes
def test_raw_bytes_on_standard_input(monkeypatch):
    reading, writing = os.pipe()
    pictures = np.stack([live_streams.numbered(number) for number in range(12)])

    def feed():
        with os.fdopen(writing, "wb") as target:
            target.write(pictures.tobytes())

    threading.Thread(target=feed).start()
    with os.fdopen(reading, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        source = LiveSource(SourceAddress("-", size=(64, 64), rate=Fraction(200)))
        frames = list(source.frames())
    assert len(frames) == 12
    assert all((frame.picture.numpy() == picture).all() for frame, picture in zip(frames, pictures, strict=True))


@pipes
@pytest.mark.parametrize("size, error", [(63, LostError), (200, InputError)])
def test_raw_bytes_that_end_within_a_frame_say_so(monkeypatch, size, error):
    reading, writing = os.pipe()
    os.write(writing, bytes(64 * 64 * 3))
    os.close(writing)
    with os.fdopen(reading, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        source = LiveSource(SourceAddress("-", size=(size, 64), rate=Fraction(200)))
        with pytest.raises(error, match=f"^standard input .*it ended within a frame of 64x{size}; check --input-size"):
            list(source.frames())


@pytest.mark.parametrize("since, most", [(0.0, 3.0), (2.5, 0.5), (9.0, 0.1)])
def test_opening_again_lasts_no_longer_than_the_source_is_waited_for(monkeypatch, since, most):
    import av

    asked = []

    def refuse(*_, timeout, **__):
        asked.append(timeout[0])
        raise av.error.ExitError(1, "Immediate exit requested")

    monkeypatch.setattr(av, "open", refuse)
    source = LiveSource(SourceAddress("udp://127.0.0.1:1"), reconnect=3.0)
    source._last = time.monotonic() - since
    with pytest.raises(sources._BrokenError, match="nothing came for [0-9.]+ seconds"):
        next(source._connection())
    assert asked == [pytest.approx(most, abs=0.05)]
    never = LiveSource(SourceAddress("udp://127.0.0.1:1"), reconnect=0.0)
    with pytest.raises(sources._BrokenError):
        next(never._connection())
    assert asked[1] == sources.OPEN_SECONDS


@pipes
def test_a_read_ends_when_it_is_asked_to():
    reading, writing = os.pipe()
    stop = threading.Event()
    reader = PipeReader(reading, stop, owned=True)
    os.write(writing, b"abc")
    assert reader.read(10) == b"abc"
    threading.Timer(0.1, stop.set).start()
    assert reader.read(10) == b""
    os.close(writing)
    reader.close()


def test_pictures_that_a_decoder_holds_back_come_out_when_a_sender_dies():
    port, count, seen = free_port(), 60, []
    source = LiveSource(SourceAddress(f"udp://127.0.0.1:{port}?timeout=1500000"), hold=True)

    def tell(status, text):
        if status == "reconnecting":
            source.stop()

    source.on_event(tell, lambda block: None)
    encoder = {"preset": "veryfast", "tune": "film", "bf": "3"}
    with live_streams.sending(f"udp://127.0.0.1:{port}?pkt_size=1316", 0, count, 30, sound=False, encoder=encoder):
        frames = list(source.frames())
    seen += [live_streams.number_of(frame.picture.numpy()) for frame in frames]
    # They are marked, and were not there before.
    held = [frame.held for frame in frames]
    assert held.count(True) >= 1 and held == sorted(held)
    assert seen == list(range(seen[0], count))


def test_a_frame_that_ffmpeg_held_until_a_sender_was_found_dead_came_with_the_last_before():
    """The end of a picture of MPEG-TS shows with the next one."""
    port = free_port()
    source = LiveSource(SourceAddress(f"udp://127.0.0.1:{port}?timeout=2000000"), hold=True)
    source.on_event(lambda status, text: source.stop() if status == "reconnecting" else None, lambda block: None)
    with live_streams.sending(f"udp://127.0.0.1:{port}?pkt_size=1316", 0, 60, 30, sound=False):
        frames = list(source.frames())
    assert live_streams.number_of(frames[-1].picture.numpy()) == 59 and frames[-1].held
    assert frames[-1].arrival - frames[-5].arrival < 1.0 and not frames[-5].held


def test_an_unknown_protocol_is_refused_at_once():
    with pytest.raises(InputError, match="nonsense://x is of a protocol"):
        list(LiveSource(SourceAddress("nonsense://x")).frames())


def test_an_unknown_format_is_refused_at_once():
    address = SourceAddress("video=My Camera", container="nonsense")
    with pytest.raises(InputError, match="video=My Camera cannot be opened: this PyAV has no format nonsense"):
        list(LiveSource(address).frames())


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_refused(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as video"):
        list(LiveSource(SourceAddress(str(tmp_path / "clip.mp4"))).frames())
