"""The page in a browser: pictures, numbers, and that what is typed shows in the output."""

import json
import re

import av
import browser
import clips
import numpy as np
import pytest
from live_process import Live
from live_server import serving

pytestmark = [pytest.mark.nano, pytest.mark.slow]

FIRST, CHUNK = 33, 24

FIRST, CHUNK = 33, 24


def saturation(path):
    """Mean distance of the strongest from the weakest channel, of every frame of a file."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(np.int16) for frame in container.decode(video=0)]
    return np.array([(frame.max(-1) - frame.min(-1)).mean() for frame in frames])


def test_a_prompt_typed_into_the_page_is_in_the_output_with_the_next_chunk(tmp_path):
    out, report = tmp_path / "out.mkv", tmp_path / "report.json"
    places = ("--input", clips.clip("bikes.mp4"), "--output", out, "--late", "wait", "--report", report)
    with Live(*places, "--size", "160x96", "--control-port", "0") as live:
        url = live.until(r"control: (\S+)").group(1)
        with browser.Page(url) as page:
            page.until("state && state.frames.out > 0 && document.getElementById('edit').width === 160")
            shot = tmp_path / "page.png"
            page.screenshot(shot)
            assert shot.read_bytes().startswith(b"\x89PNG")
            # Both pictures are drawn, and are not the same.
            pixels = """(name => {
                const canvas = document.getElementById(name);
                return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
            })"""
            source, edit = (np.array(page.evaluate(f"{pixels}('{name}')")) for name in ("source", "edit"))
            assert len(source) == len(edit) == 160 * 96 * 4
            assert source.std() > 10 and edit.std() > 10 and np.abs(source - edit).mean() > 1
            page.evaluate("document.getElementById('prompt').value = 'make it black and white'")
            before = page.evaluate("state.chunk")
            page.evaluate("document.querySelector('#prompt-form button').click()")
            page.until("document.getElementById('answer').textContent.startsWith('accepted')")
            page.until("state.prompt === 'make it black and white'")
            after = page.evaluate("state.chunk")
            page.until(f"state.frames.out > {FIRST + CHUNK * after}")
            shown = page.evaluate("document.getElementById('numbers').innerText")
            for name in ("frames per second, in", "latency p50", "latency p95", "dropped", "memory"):
                assert name in shown
            page.evaluate("document.getElementById('steps').value = 0, document.getElementById('steps')"
                          ".dispatchEvent(new Event('change'))")  # fmt: skip
            page.until("document.getElementById('answer').textContent.includes('steps 0 is out of range')")
            page.evaluate("document.getElementById('pause').click()")
            page.until("state.status === 'paused' && document.getElementById('pause').textContent === 'Resume'")
            page.evaluate("window.confirm = () => true, document.getElementById('stop').click()")
            page.until("state.status === 'stopped'")
            assert page.errors == []
        live.end(0)
    assert json.loads(report.read_text())["prompt"] == "make it black and white"
    colour = saturation(out)
    # The chunk that was next when it was typed was in the making; the one that was next once it was taken has it.
    borders = [FIRST + CHUNK * chunk for chunk in range(20)]
    last_before, first_after = ([0, *borders][chunk] for chunk in (before, after))
    assert len(colour) > first_after + 8
    coloured, grey = colour[: max(8, last_before)], colour[first_after + 8 :]
    assert grey.mean() < 0.6 * coloured.mean() and grey.max() < coloured.min()


def test_without_the_token_the_page_says_so(tmp_path):
    with serving() as (_, url), browser.Page(url + "#wrong-token") as page:
        page.until("document.getElementById('text').textContent.includes('token')")
        assert page.evaluate("state") is None
        assert [error for error in page.errors if not re.search("401|WebSocket", error)] == []
