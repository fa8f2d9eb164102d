"""The command between addresses of other protocols than UDP: RTMP on both sides, and HLS from a web server."""

import functools
import http.server
import itertools
import threading
import time

import av
import live_streams
import pytest
from live_process import Live, free_port

pytestmark = [pytest.mark.nano, pytest.mark.slow]

SIZE = ("--size", "64x64", "--late", "wait", "--compare", "side-by-side", "--crf", "10")
RATE = 30


def send_when_it_listens(url, first, count):
    for wait in itertools.repeat(0.1, 300):
        try:
            return live_streams.send(url, first, count, RATE, container="flv")
        except OSError:
            time.sleep(wait)
    raise AssertionError("nobody listens")


class Receiver(threading.Thread):
    """Takes one RTMP stream and keeps the numbers of its frames."""

    def __init__(self):
        super().__init__(daemon=True)
        self.url = f"rtmp://127.0.0.1:{free_port()}/live/edit"
        self.numbers, self.sound = [], 0
        self.start()

    def run(self):
        try:
            with av.open(self.url, options={"listen": "1"}, timeout=(120, 60)) as container:
                for frame in container.decode(video=0, audio=0):
                    if isinstance(frame, av.AudioFrame):
                        self.sound += frame.samples
                    else:
                        picture = frame.to_ndarray(format="rgb24")
                        self.numbers.append(live_streams.number_of(picture[:, : frame.height]))
        except OSError:
            # So a sender's end looks.
            return


def test_rtmp_goes_in_and_out():
    """Two senders, one after the other, none of whose frames is lost; the second is the last that is waited for."""
    source, receiver, count = f"rtmp://127.0.0.1:{free_port()}/live/camera", Receiver(), 75
    places = ("--input", source, "--input-option", "listen=1", "--output", receiver.url, "--reconnect", "6")
    with Live(*places, *SIZE) as live:
        live.until("connecting")
        for first in (0, 1000):
            send_when_it_listens(source, first, count)
        said = live.end(1)
    receiver.join(20)
    assert f"{2 * count} frames in, {2 * count} out" in said and "was lost" in said, said
    assert receiver.numbers == [*range(count), *range(1000, 1000 + count)]
    assert receiver.sound > count / RATE * live_streams.SAMPLE_RATE


@pytest.fixture
def served(tmp_path):
    """(folder, address) of a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_hls_is_played_at_its_own_rate_to_its_end(served, tmp_path):
    """Segments come in heaps, and are shown evenly; the end of the broadcast is the end, and not its beginning."""
    folder, address = served
    out, count = tmp_path / "out.mkv", 240
    options = {"hls_time": "1", "hls_list_size": "4"}
    with Live("--input", f"{address}/live.m3u8", "--output", out, *SIZE) as live:
        live.until("connecting")
        with live_streams.sending(
            str(folder / "live.m3u8"), 0, count, RATE, container="hls", options=options
        ) as sender:
            live.until("running")
            sender.join(60)
        said = live.end(0)
    assert said.count("running") == 1 and "was lost" not in said
    shown = live_streams.shown_numbers(out)
    numbers = [number for _, number in shown]
    # Whoever joins begins three segments before the newest.
    assert numbers == list(range(numbers[0], count)) and numbers[0] % RATE == 0 and len(numbers) >= 3 * RATE
    assert [seconds for seconds, _ in shown] == pytest.approx([i / RATE for i in range(len(shown))], abs=0.002)
    lag = live_streams.sound_lag(out, 1.0)
    assert abs(lag + numbers[0] / RATE) < 0.04


def test_a_recording_at_an_address_ends(served, tmp_path):
    folder, address = served
    live_streams.send(str(folder / "clip.mp4"), 0, 40, 100, container="mp4")
    out = tmp_path / "out.mkv"
    with Live("--input", f"{address}/clip.mp4", "--output", out, *SIZE) as live:
        live.end(0)
    assert [number for _, number in live_streams.shown_numbers(out)] == list(range(40))
