"""``live`` for three minutes beside the other tests: two senders over UDP, of which each dies, ``wait``, Ctrl-C."""

import json
import os
import re

import live_streams
import numpy as np
import pytest
from broadcast import AGAIN, RATE

pytestmark = [
    pytest.mark.nano,
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="Ctrl-C as here is not on Windows"),
]

FIRST, CHUNK = 33, 24
# When all that is taken once has been taken, in seconds.
WARM = 60


def test_it_begins(three_minutes):
    assert three_minutes.process.poll() is None


@pytest.mark.beside
def test_it_has_lost_nothing_and_taken_no_more_than_it_should(three_minutes):
    three_minutes.end()
    said = (three_minutes.folder / "said.txt").read_text()
    report = json.loads((three_minutes.folder / "report.json").read_text())
    assert "stopped" in said and report["stopped"] and report["streams"] == 1 and report["source"]["connections"] == 2
    check_frames(report["frames"])
    shown = live_streams.shown_numbers(three_minutes.folder / "out.mp4")
    assert len(shown) == report["frames"]["out"] > three_minutes.count
    sound = live_streams.heard(three_minutes.folder / "out.mp4")
    border = next(index for index, (_, number) in enumerate(shown) if number >= AGAIN)
    for first, part in ((0, shown[:border]), (AGAIN, shown[border:])):
        check_order([number - first for _, number in part], three_minutes.count, whole=not first)
        check_sound(sound, [(seconds, number - first) for seconds, number in part])
    check_latency(report["latency"], report["frames"], said)
    check_memory(report)


def check_frames(frames):
    assert frames["in"] == frames["out"] + sum(frames["dropped"].values()), frames
    # What did not fill a chunk when it was ended is all that did not come out.
    assert set(frames["dropped"]) <= {"stopped"} and frames["dropped"].get("stopped", 0) < CHUNK


def check_order(numbers, count, whole):
    """Every frame from the first that was seen on; of a sender that died, but for what it had not sent."""
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    # Whoever joins a broadcast begins with its next picture that needs no other.
    assert numbers[0] <= 3 * RATE
    assert count - (3 if whole else CHUNK) <= numbers[-1] < count


def check_sound(sound, shown):
    """Wherever the picture keeps its pace, the sound is what it was beside it."""
    seconds = np.array([at for at, _ in shown])
    lags = seconds - np.array([number / RATE for _, number in shown])
    checked = []
    for start in np.linspace(seconds[0] + 2, seconds[-1] - 3, 6):
        near = lags[(seconds > start - 0.5) & (seconds < start + 1.5)]
        # A frame that comes early shows that those before it were held up, and the count goes on from it.
        if len(near) and np.ptp(near) < 0.01:
            checked.append(live_streams.lag_of(sound, start, about=near.mean(), reach=2) - near.mean())
    assert checked and max(map(abs, checked)) < 0.04, checked


def check_latency(latency, frames, said):
    printed = [float(text) for text in re.findall(r"latency: at most ([0-9.]+) s", said)]
    assert latency["bound"] <= 1.1 * max(printed) + 0.01, (latency, printed)
    # Frames that wait for the source to come back are the ones that may be later: less than a chunk.
    share = "p95" if frames["out"] > 20 * CHUNK else "p50"
    assert latency[share] <= latency["bound"], latency


def check_memory(report):
    """Less than 100 KB per chunk, once it runs; of what is taken between chunks, which come and go with tens of megabytes."""
    curve = np.array([(point["at"], point["resident"]) for point in report["curves"] if point["at"] > WARM])
    assert report["memory"]["resident_last"] - report["memory"]["resident_first"] < 120 * 2**20, report["memory"]
    if len(curve) > WARM:
        # In the first third the other sender comes, and with it what a connection takes.
        _, before, after = (part[part[:, 1].argmin()] for part in np.array_split(curve, 3))
        seconds, size = after - before
        slope = size / seconds * CHUNK / RATE
        print(f"{slope:.0f} bytes per chunk")
        assert slope < 100_000, (slope, before, after)
