"""A live source in a real ComfyUI on the CPU: a sender, a recording, and nothing left. See test_real_comfyui."""

import itertools
import os
import re
import time
from pathlib import Path

import live_streams
import pytest
from comfy_graphs import saved, workflow
from comfy_server import ComfyError, ComfyServer, cached_nodes
from live_process import free_port
from sana_streaming.sana_core.video.reader import probe

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.nano,
    pytest.mark.slow,
]

NANO = "nano (built in)"
RATE = 30


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    with ComfyServer(tmp_path_factory.mktemp("comfy")) as server:
        yield server


@pytest.fixture
def port():
    return free_port()


def live(port, **changes):
    """The workflow with nano at its smallest size on a live source instead of a clip."""
    files = {f"n{number}__file": NANO for number in (1, 2, 3)}
    graph = workflow("edit_video", **files, n6__width=64, n6__height=64, n6__steps=2, n6__crf=10)
    del graph["5"], graph["6"]["inputs"]["video"]
    graph["6"]["inputs"] |= {"live_source": f"udp://127.0.0.1:{port}", "compare": "side-by-side", **changes}
    return graph


def sending(port, **options):
    return live_streams.sending(f"udp://127.0.0.1:{port}?pkt_size=1316", 0, 3600, RATE, **options)


def recordings(comfy):
    return sorted((comfy.base / "output" / "sana_streaming").glob("live_*.mp4"))


def held(comfy):
    """(threads, sockets) of the server."""
    process = Path(f"/proc/{comfy.process.pid}")
    links = []
    for descriptor in (process / "fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return len(list((process / "task").iterdir())), sum(link.startswith("socket:") for link in links)


def listens(port):
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return any(int(line.split()[1].split(":")[1], 16) == port for line in lines)


def settles(what, seconds=15):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def test_for_so_many_seconds_and_saved(comfy, port):
    graph = live(port, live_seconds=4.0)
    with sending(port), comfy.listen() as events:
        entry = comfy.run(graph)
        events.wait_for("execution_success")
    (recording,) = recordings(comfy)
    copy = saved(comfy, entry)
    shown = live_streams.shown_numbers(recording)
    assert live_streams.shown_numbers(copy) == shown
    numbers = [number for _, number in shown]
    assert len(numbers) > RATE and all(after > before for before, after in itertools.pairwise(numbers))
    assert shown[-1][0] < 4
    for path in (recording, copy):
        info = probe(path)
        assert (info.width, info.height, info.has_audio) == (128, 64, True)
    assert events.of("progress", "6")[-1]["value"] == events.of("progress", "6")[-1]["max"] == 40
    assert len([preview for preview in events.previews if preview.node == "6"]) >= 2
    texts = [text for node, text in events.texts if node == "6"]
    assert any(re.match(r"\d s of 4 s: [\d.]+ of [\d.]+ fps, .*, chunk \d+$", text) for text in texts)
    assert f"frames recorded in output/sana_streaming/{recording.name}" in texts[-1]
    print(texts[-1])


def test_stop_leaves_a_file_that_plays_and_the_next_run_goes_again(comfy, port):
    graph = live(port, live_seconds=3.0)
    with sending(port):
        comfy.run(graph)
    settles(lambda: not listens(port))
    before, known = held(comfy), recordings(comfy)
    with sending(port), comfy.listen() as events:
        prompt = comfy.queue(live(port))
        settles(lambda: [text for _, text in events.texts if text.endswith("chunk 3")], 60)
        units = len(events.of("progress", "6"))
        comfy.interrupt()
        with pytest.raises(ComfyError, match="interrupted in SanaStreamingEditVideo"):
            comfy.wait(prompt)
        assert len(events.of("progress", "6")) - units <= 2
        (path,) = set(recordings(comfy)) - set(known)
        count = len(live_streams.shown_numbers(path))
        assert count >= 33 and probe(path).has_audio
        said = f"stopped; {count} frames are recorded in output/sana_streaming/{path.name}"
        settles(lambda: ("6", said) in events.texts)
        # The same once more is not taken from the cache, and finds its address free.
        for _ in range(2):
            entry = comfy.run(graph)
            assert "6" not in cached_nodes(entry) and {"1", "2", "3", "4"} <= cached_nodes(entry)
    assert len(recordings(comfy)) == len(known) + 3
    settles(lambda: not listens(port))
    settles(lambda: held(comfy)[0] <= before[0] and held(comfy)[1] <= before[1])


def test_stop_while_nobody_sends(comfy, port):
    before = recordings(comfy)
    with comfy.listen() as events:
        prompt = comfy.queue(live(port))
        settles(lambda: [text for _, text in events.texts if text.startswith(("connecting", "reconnecting"))], 60)
        comfy.interrupt()
        with pytest.raises(ComfyError, match="interrupted in SanaStreamingEditVideo"):
            comfy.wait(prompt)
    settles(lambda: not listens(port))
    assert recordings(comfy) == before


def test_what_is_wrong_is_said(comfy, port):
    with pytest.raises(ComfyError, match=r"live_source /nowhere is no address, and no camera"):
        comfy.queue(live(port, live_source="/nowhere"))
    with pytest.raises(ComfyError, match="(?s)live_seconds.*smaller|smaller.*live_seconds"):
        comfy.queue(live(port, live_seconds=-1.0))
    with pytest.raises(ComfyError, match="there is no video; connect one"):
        comfy.run(live(port, live_source=""))
    with pytest.raises(
        ComfyError, match=r"has sent nothing for 3\d\.\d seconds .*: check address and sender, and queue again"
    ):
        comfy.run(live(port, live_source=f"tcp://127.0.0.1:{port}"))
