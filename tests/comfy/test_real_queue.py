"""``queue`` with two real ComfyUIs on the CPU. COMFY_DIR names a ComfyUI folder, COMFY_PYTHON its interpreter."""

import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import comfy_server
import pytest
import torch
from comfy_server import ComfyServer
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.video.reader import probe
from sana_streaming.sana_core.video.writer import VideoWriter

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
    pytest.mark.nano,
]

FRAMES, SIZE = 33, 64
PROMPTS = ("make it night", "make it a warm sunset", "make it sepia", "make it black and white", "make it a negative")
WORKFLOW = Path(__file__).parents[1] / "api_workflows" / "edit_video.json"


def make_clips(folder, count):
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    for number in range(count):
        frames = torch.randint(0, 256, (FRAMES, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
        with VideoWriter(folder / f"clip{number}.mp4", width=SIZE, height=SIZE, frame_rate=Fraction(24)) as writer:
            writer.write(frames)


def make_workflow(file, steps=2):
    graph = json.loads(WORKFLOW.read_text())
    for node in "123":
        graph[node]["inputs"]["file"] = "nano (built in)"
    graph["6"]["inputs"] |= {"width": SIZE, "height": SIZE, "steps": steps, "max_frames": FRAMES}
    file.write_text(json.dumps(graph))


def stop_soon(server):
    """Ctrl-C once the server has one prompt that runs and one that waits."""
    while not all(server.get("/queue").values()):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def kill_in_the_middle(server, journal, url, seen):
    """Ends a server without notice once ten jobs are done and it works on another."""
    while True:
        time.sleep(0.05)
        lines = journal.read_text().splitlines() if journal.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("}")]
        if sum(event["event"] == "done" for event in events) < 10:
            continue
        if server.get("/queue")["queue_running"]:
            server.process.kill()
            seen.append(sum(event["event"] == "done" and event["server"] == url for event in events))
            return


def test_thirty_jobs_and_a_server_that_is_killed(tmp_path, capsys):
    make_clips(tmp_path / "clips", 6)
    make_workflow(tmp_path / "workflow.json")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    out, seen = tmp_path / "out", []
    with ComfyServer(tmp_path / "one") as one, ComfyServer(tmp_path / "two") as two:
        urls = [f"http://127.0.0.1:{it.port}" for it in (one, two)]
        words = [
            "queue",
            tmp_path / "workflow.json",
            "--video-dir",
            tmp_path / "clips",
            "--prompts",
            tmp_path / "prompts.txt",
        ]
        words += ["--output-dir", out, "--server", urls[0], "--server", urls[1]]
        arguments = (one, out / "results.journal.jsonl", urls[0], seen)
        killer = threading.Thread(target=kill_in_the_middle, args=arguments, daemon=True)
        killer.start()
        assert main(list(map(str, words))) == 0
        killer.join(5)
    with (out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 30 and {row["status"] for row in rows} == {"done"}
    assert len({row["output"] for row in rows}) == 30
    for row in rows:
        info = probe(out / row["output"])
        assert (info.width, info.height, info.num_frames) == (SIZE, SIZE, FRAMES)
    assert seen and seen[0] > 0, "both servers have worked before one was killed"
    # What it finished while it was looked at counts for it too.
    assert seen[0] <= Counter(row["server"] for row in rows)[urls[0]] <= seen[0] + 2
    assert 1 <= sum(row["attempts"] == "2" for row in rows) <= 2
    assert f"{urls[0]} has gone away" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_in_the_queue(tmp_path):
    make_clips(tmp_path / "clips", 1)
    make_workflow(tmp_path / "workflow.json", steps=60)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with ComfyServer(tmp_path / "comfy") as comfy:
        words = [
            "queue",
            tmp_path / "workflow.json",
            "--video-dir",
            tmp_path / "clips",
            "--prompts",
            tmp_path / "prompts.txt",
        ]
        words += ["--output-dir", tmp_path / "out", "--server", f"http://127.0.0.1:{comfy.port}"]
        threading.Thread(target=stop_soon, args=(comfy,), daemon=True).start()
        assert main(list(map(str, words))) == 130
        end = time.monotonic() + 30
        while any(comfy.get("/queue").values()):
            assert time.monotonic() < end, comfy.get("/queue")
            time.sleep(0.1)
        assert "Interrupting prompt" in comfy.log()
        assert main(list(map(str, words))) == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == len(PROMPTS)


def test_the_only_server_restarts(tmp_path, monkeypatch, capsys):
    make_clips(tmp_path / "clips", 1)
    make_workflow(tmp_path / "workflow.json")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with ComfyServer(tmp_path / "comfy") as comfy:
        url = f"http://127.0.0.1:{comfy.port}"
        monkeypatch.setattr(comfy_server, "_free_port", lambda: int(url.rpartition(":")[2]))

        def restart():
            while not all(comfy.get("/queue").values()):
                time.sleep(0.01)
            comfy.process.kill()
            comfy.stop()
            comfy.start()

        threading.Thread(target=restart, daemon=True).start()
        words = [
            "queue",
            tmp_path / "workflow.json",
            "--video-dir",
            tmp_path / "clips",
            "--prompts",
            tmp_path / "prompts.txt",
        ]
        assert main([*map(str, words), "--output-dir", str(tmp_path / "out"), "--server", url]) == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == len(PROMPTS)
    err = capsys.readouterr().err
    assert f"{url} has gone away" in err and f"{url} is there" in err
