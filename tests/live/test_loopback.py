"""The command, with the built-in model at its smallest, between a sender that keeps time and a file, a pipe or a program."""

import itertools
import json
import os
import re
import subprocess
import threading
import time
import urllib.request

import live_streams
import numpy as np
import pytest
from live_process import Live, free_port

pytestmark = [
    pytest.mark.nano,
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="named pipes and Ctrl-C as here are not on Windows"),
]

FIRST, CHUNK = 33, 24


def check_counts(report):
    frames = report["frames"]
    assert frames["in"] == frames["out"] + sum(frames["dropped"].values()), frames


def test_a_pipe_that_is_too_fast_is_thinned_and_the_control_port_ends_it(tmp_path):
    """More frames than can be edited, raw video on standard output; the latency stays within what was printed."""
    pipe, report = tmp_path / "pipe", tmp_path / "report.json"
    os.mkfifo(pipe)
    places = ("--input", pipe, "--output", "-", "--report", report, "--control-port", "0", "--control-token", "x" * 20)
    size = 160
    with (
        Live(
            *places, "--size", f"{size}x{size}", "--late", "drop", "--compare", "side-by-side", stdout=subprocess.PIPE
        ) as live,
        live_streams.sending(str(pipe), 0, 4000, 120, sound=False),
    ):
        raw = bytearray()
        reader = threading.Thread(target=lambda: raw.extend(live.process.stdout.read()), daemon=True)
        reader.start()
        url = live.until(r"control: (http://127\.0\.0\.1:\d+/)#").group(1)
        printed = float(live.until(r"latency: at most ([0-9.]+) s").group(1))
        while command(url, "state")["frames"]["edited"] < FIRST + 5 * CHUNK:
            time.sleep(0.1)
        assert command(url, "stop")["type"] == "accepted"
        said = live.end(0)
        reader.join(10)
    bounds = [float(text) for text in re.findall(r"latency: at most ([0-9.]+) s", said)]
    found = json.loads(report.read_text())
    assert found["latency"]["max"] <= found["latency"]["bound"] <= 1.1 * max(bounds) + 0.01 and printed == bounds[0]
    assert found["frames"]["dropped"]["queue"] > found["frames"]["out"] / 3
    assert set(found["frames"]["dropped"]) <= {"queue", "stopped", "output"}
    check_counts(found)
    frames = np.frombuffer(bytes(raw), np.uint8).reshape(-1, size, 2 * size, 3)
    assert len(frames) == found["frames"]["out"]
    numbers = [live_streams.number_of(frame[:, :size]) for frame in frames]
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    assert min(gaps) > 0
    # The edit is there too, and is that of its source: the model keeps the picture, more or less.
    assert np.abs(frames[-1][:, :size].astype(int) - frames[-1][:, size:]).mean() < 60


def command(url, verb):
    request = urllib.request.Request(
        url + ("state" if verb == "state" else "command"),
        data=None if verb == "state" else json.dumps({"command": verb}).encode(),
        headers={"Authorization": "Bearer " + "x" * 20},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_json_lines_steer_a_file(tmp_path):
    """Standard input and output as the control; the file plays at its own rate and ends the stream."""
    clip, out = tmp_path / "clip.ts", tmp_path / "out.mkv"
    live_streams.send(str(clip), 0, 1, 1)
    clip.unlink()
    with live_streams.sending(str(clip), 0, 120, 240) as sender:
        sender.join(20)
    with Live(
        "--input", clip, "--output", out, "--size", "64x64", "--late", "wait", "--stdin-control",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as live:  # fmt: skip
        live.process.stdin.write(b'{"command": "set", "prompt": "make it black and white", "id": 1}\nnonsense\n')
        live.process.stdin.flush()
        told = [json.loads(line) for line in live.process.stdout]
        live.end(0)
    kinds = [message["type"] for message in told]
    assert {"state", "accepted", "error"} == set(kinds)
    last = [message for message in told if message["type"] == "state"][-1]
    assert last["status"] == "stopped" and last["prompt"] == "make it black and white"
    assert last["frames"]["out"] == last["frames"]["in"] == 120
    with_picture = live_streams.shown_numbers(out)
    assert len(with_picture) == 120


@pytest.mark.parametrize(
    "options, said",
    [
        (["--input", "nothing.mp4", "--output", "x.mp4"], "nothing.mp4: no such file, pipe or device"),
        (["--input", "-", "--output", "x.mp4"], "--input-size"),
        (["--input", "udp://127.0.0.1:5000"], "nobody would see the edit"),
        (["--input", "udp://127.0.0.1:5000", "--output", "http://x/y"], "--output-format"),
        (["--input", "udp://127.0.0.1:5000", "--output", "x.mp4", "--input-option", "a"], "KEY=VALUE"),
        (["--input", "udp://127.0.0.1:5000", "--output", "x.mp4", "--reconnect", "-1"], "--reconnect -1"),
        (["--input", "udp://127.0.0.1:5000", "--output", "nowhere/x.mp4"], "no folder nowhere"),
        (["--input", "udp://127.0.0.1:5000", "--output", "x.foo"], "use .mp4, .mkv, .ts or --output-format"),
        (["--input", "udp://127.0.0.1:5000", "--output", "x.mp4", "--size", "65x64"], "multiple of 32"),
        (["--input", "udp://127.0.0.1:5000", "--output", "x.mp4", "--steps", "0"], "steps 0"),
        (
            ["--input", "-", "--input-size", "8x8", "--input-fps", "9", "--output", "x.mp4", "--stdin-control"],
            "both read",
        ),
        (["--input", "udp://127.0.0.1:5000", "--output", "virtual-camera"], "pyvirtualcam"),
        (["--input", "udp://127.0.0.1:5000", "--control-port", "99999"], "no port"),
    ],
)
def test_bad_options_are_one_line(options, said, tmp_path, monkeypatch, capsys):
    from sana_streaming.sana_core.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["live", "--prompt", "x", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")


def test_an_address_where_nobody_sends_is_given_up(tmp_path):
    out = tmp_path / "out.mp4"
    source = f"udp://127.0.0.1:{free_port()}?timeout=200000"
    with Live("--input", source, "--output", out, "--size", "64x64", "--reconnect", "1") as live:
        assert re.search(r"has sent nothing for 1\.\d seconds", live.end(2))
    assert not out.exists()
