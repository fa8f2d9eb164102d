"""SANA-Streaming Edit Video on a live source: recorded while it happens, ended by the clock, by Stop or by its sender."""

import itertools
import os
import re
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import live_streams
import node_calls as nodes
import numpy as np
import pytest
import torch
from live_process import free_port
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.video.reader import probe

RATE = 30
needs_pipes = pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in its file system")


@pytest.fixture
def networks(host):
    return nodes.model(), nodes.vae(), nodes.prompts()[0]


@pytest.fixture
def made(monkeypatch):
    """Every stream that a node makes."""
    import sana_streaming.nodes.editor as module

    streams = []
    monkeypatch.setattr(module, "EditStream", lambda *a, **k: streams.append(EditStream(*a, **k)) or streams[-1])
    return streams


@pytest.fixture
def hasty(monkeypatch):
    """A source that is away for a second has ended; so long it is waited for."""
    import sana_streaming.nodes.live_source as ours
    import sana_streaming.sana_core.live.source as core

    monkeypatch.setattr(ours, "AWAY_SECONDS", 1.0)
    monkeypatch.setattr(core, "OPEN_SECONDS", 1.0)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    end = time.monotonic() + 15
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("live")]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def record(networks, source, *, positive=None, **changes):
    """(path, report), in the mode in which ComfyUI runs nodes."""
    model, vae, prompt = networks
    settings = {**nodes.SIZE, **nodes.SAMPLING, "width": 64, "start_frame": 0, "max_frames": 0, "fps": 0.0, "crf": 10}
    with torch.inference_mode():
        video, report = nodes.call(
            "EditVideo", model, vae, positive or prompt, **{**settings, "live_source": source, **changes}
        )
    return Path(video.file), report


def recordings():
    import folder_paths

    return sorted(Path(folder_paths.get_output_directory()).rglob("*.mp4"))


@contextmanager
def udp(*args, **options):
    """The address at which a sender of numbered frames is heard."""
    port = free_port()
    with live_streams.sending(f"udp://127.0.0.1:{port}?pkt_size=1316", *args, **options):
        yield f"udp://127.0.0.1:{port}"


@contextmanager
def piped(folder, *args, **options):
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    with live_streams.sending(str(pipe), *args, **options):
        yield str(pipe)


@contextmanager
def stop_when(host, condition):
    """Presses Stop once something is true."""

    def press():
        while not condition() and not done.wait(0.01):
            pass
        host.stop_after = 0

    done = threading.Event()
    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def last_bar():
    import comfy.utils

    return comfy.utils.ProgressBar.made[-1]


def test_for_so_many_seconds_with_sound_beside_its_source(networks, made, host):
    with udp(0, 600, RATE) as source:
        path, report = record(networks, source, live_seconds=3.0, compare="side-by-side")
    assert [path] == recordings()
    assert path.parent.name == "sana_streaming"
    info = probe(path)
    assert (info.width, info.height, info.has_audio) == (128, 64, True)
    shown = live_streams.shown_numbers(path)
    times, numbers = np.array(shown).T
    pattern = r"(\d+) frames recorded in output/sana_streaming/(\S+)\n(\d+) frames in, dropped: (.*); \d+ chunks\n"
    out, name, taken, drops = re.match(pattern, report).groups()
    assert name == path.name
    lost = sum(int(count) for count in re.findall(r"(\d+) queue", drops))
    assert len(shown) == int(out) == int(taken) - lost <= 3 * RATE + 1
    assert len(shown) > RATE, report
    assert min(np.diff(numbers)) > 0
    assert times[-1] < 3.0
    # Each frame stands at its own time, and the sound beside it.
    settled = times > 1.0
    lags = (times - numbers / RATE)[settled]
    assert np.ptp(lags) < 0.1
    assert abs(live_streams.sound_lag(path, 1.5, 1.0) - lags.mean()) < 0.1
    assert re.search(r"\n[\d.]+ fps, latency [\d.]+ s \(p95 [\d.]+ s\)\nmemory: .* resident; state .*B\n", report)
    assert report.endswith("frames come with their latents")
    running = [text for text in nodes.texts() if re.search(r", chunk \d+$", text)]
    assert len(running) > 4
    assert all(
        re.match(r"\d s of 3 s: [\d.]+ of [\d.]+ fps, (latency .*, )?\d+ dropped, .*B, ", text) for text in running
    )
    assert nodes.texts()[-1] == report
    bar = last_bar()
    assert bar.total == bar.values[-1] == 30
    assert bar.values == sorted(bar.values)
    assert {picture.size for _, picture, _ in bar.previews} == {(128, 64)}
    assert all(not stream.state.tensors() for stream in made)
    # Room for a stream without end was asked for once, before the source was opened.
    assert [names for names, _ in host.loaded] == [["SanaStreamingDiT", "CausalVAE"]]


@needs_pipes
def test_stop_keeps_what_was_recorded(networks, made, host, tmp_path):
    running = lambda: [text for text in nodes.texts() if re.search(r", chunk [3-9]$", text)]
    stopped = pytest.raises(host.InterruptProcessingException)
    with piped(tmp_path, 0, 6000, 60, sound=False) as source, stop_when(host, running), stopped:
        record(networks, source, compare="side-by-side")
    (path,) = recordings()
    numbers = [number for _, number in live_streams.shown_numbers(path)]
    assert len(numbers) >= 33
    assert all(after > before for before, after in itertools.pairwise(numbers))
    assert nodes.texts()[-1] == f"stopped; {len(numbers)} frames are recorded in output/sana_streaming/{path.name}"
    assert all(" s, until Stop: " in text for text in running())
    assert len(made) == 2
    assert all(not stream.state.tensors() for stream in made)
    # The bar shows the chunk in the making: encode, 2 steps, the pass at t = 0, decode.
    assert last_bar().total == 5
    assert max(last_bar().values) == 4


@pytest.mark.parametrize("units", [0, 3, 14])
def test_stop_before_the_first_frame_is_out_leaves_no_file(networks, made, host, hasty, units):
    """In the trial of two chunks of five units, and while nobody sends."""
    host.stop_after = units
    with pytest.raises(host.InterruptProcessingException):
        record(networks, f"udp://127.0.0.1:{free_port()}")
    assert recordings() == []
    assert all(not stream.state.tensors() for stream in made)


@needs_pipes
def test_a_sender_that_ends(networks, hasty, tmp_path):
    with piped(tmp_path, 0, 70, RATE, sound=False) as source:
        path, report = record(networks, source, preview="side-by-side")
    assert probe(path).num_frames > RATE
    assert re.search(rf"\n{source} was lost \(.*\) and did not come back in [0-9.]+ seconds\n", report)
    # What is written is the edit alone, what is shown is not.
    assert probe(path).width == 64
    assert {picture.size for _, picture, _ in last_bar().previews} == {(128, 64)}


def test_a_sender_that_goes_silent_before_the_time_is_over(networks):
    """The end is that of the clock: nobody waits for the source to come back."""
    with udp(0, 75, RATE, sound=False) as source:
        path, report = record(networks, f"{source}?timeout=500000", live_seconds=4.0)
    # FFmpeg looks at a stream for a while before it gives frames.
    assert probe(path).num_frames > 5
    assert "lost" not in report


def test_a_source_that_cannot_be_reached(networks, hasty, made):
    source = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(
        InputError, match=r"has sent nothing for 1\.\d seconds \(.*\): check address and sender, and queue"
    ):
        record(networks, source)
    assert recordings() == []
    assert any(text.startswith(("connecting: ", "reconnecting: ")) for text in nodes.texts())
    assert all(not stream.state.tensors() for stream in made)


def test_a_schedule_goes_by_the_clock(networks, made):
    model, vae, first = networks
    positive = nodes.call("PromptSchedule", first, nodes.prompts("make it night")[0], "0.5")[0]
    with udp(0, 600, RATE, sound=False) as source:
        record((model, vae, first), source, positive=positive, live_seconds=3.0)
    stream = made[-1]
    assert (stream.state.prompt, stream.state.prompt_changes) == ("make it night", 1)


def test_a_disk_that_is_full(networks, host, monkeypatch):
    """The file's error comes out, and what was written before it stays."""
    from sana_streaming.sana_core.live.sink import EncodedSink

    write, count = EncodedSink.write, itertools.count()

    def fail(self, *args):
        if next(count) == 40:
            raise OSError("No space left on device")
        return write(self, *args)

    monkeypatch.setattr(EncodedSink, "write", fail)
    with udp(0, 600, RATE, sound=False) as source, pytest.raises(OSError, match="No space left"):
        record(networks, source)
    (path,) = recordings()
    assert probe(path).num_frames == 40
    assert nodes.texts()[-1].startswith("stopped; 40 frames are recorded in output/")


class TestSentences:
    """Before anything is loaded."""

    @pytest.fixture(autouse=True)
    def _nothing_is_loaded(self, host):
        yield
        assert host.loaded == []

    def test_exactly_one_source(self, networks):
        with pytest.raises(InputError, match="video is connected and live_source is set; disconnect the one"):
            record(networks, "udp://127.0.0.1:5000", video=torch.zeros(9, 64, 64, 3))
        for empty in ("", "  "):
            with pytest.raises(InputError, match="there is no video; connect one, or name a camera or stream"):
                record(networks, empty)

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"start_frame": 5}, "start_frame 5 is for a video; set it to 0, or leave live_source empty"),
            ({"max_frames": 9}, "max_frames 9 is for a video"),
            ({"fps": 12.5}, r"fps 12\.5 is for a video"),
            ({"colour_match": 0.5}, r"colour_match 0\.5 takes longer than a live source waits"),
            ({"hdr": "tone-map"}, "hdr tone-map is for files"),
            ({"num_cached_blocks": 0}, "num_cached_blocks 0 keeps the full history"),
            ({"width": 100}, "width 100 is not a multiple of 32"),
        ],
    )
    def test_settings_that_do_not_go_with_it(self, networks, setting, words):
        with pytest.raises(InputError, match=words):
            record(networks, "udp://127.0.0.1:5000", **setting)

    def test_what_is_no_source(self, tmp_path):
        clip = tmp_path / "clip.mp4"
        clip.touch()
        validate = nodes.node("EditVideo").validate_inputs
        for address in ("udp://0.0.0.0:5000", " RTMP://server/app/key ", "", None):
            assert validate(address) is True
        for address, words in (
            (str(clip), "is a file; connect it to video with Load Video"),
            (str(tmp_path), "is no address, and no camera or named pipe of this machine; use such as udp://"),
            ("/dev/video_99", "is no address, and no camera"),
            ("-", "is no address, and no camera"),
            ("udp//typo:5000", "is no address, and no camera"),
            ("file:/etc/passwd", "is of another protocol than udp, rtp, tcp"),
            ("concat:a|b", "is of another protocol"),
            ("dshow:", "is of another protocol"),
            ("-" * 300, "is no address, and no camera"),
            *((f"v4l2:{name}", "is no camera of this machine") for name in ("-", clip, tmp_path, "x" * 300)),
        ):
            assert words in validate(address), address


def test_a_camera_of_windows(monkeypatch):
    from sana_streaming.nodes.live_source import live_address

    with pytest.raises(InputError, match=r"is for another system; here cameras are called \S+:NAME"):
        live_address("dshow:video=My Camera" if sys.platform != "win32" else "v4l2:/dev/video0")
    monkeypatch.setattr(sys, "platform", "win32")
    address = live_address("dshow:video=My Camera")
    assert (address.text, address.container, address.kind) == ("video=My Camera", "dshow", "remote")
    with pytest.raises(InputError, match="is no camera of this machine"):
        live_address("dshow:-")


def test_a_live_source_is_never_taken_from_the_cache():
    """A video is, and an address that comes over a link may be a live one."""
    fingerprint = nodes.node("EditVideo").fingerprint_inputs
    for live in ("udp://0.0.0.0:5000", None):
        assert fingerprint(live_source=live, seed=1) != fingerprint(live_source=live, seed=1)
    assert fingerprint(seed=1) == fingerprint(live_source="", seed=2) == fingerprint(live_source=" ")
