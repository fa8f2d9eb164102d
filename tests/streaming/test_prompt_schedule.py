"""Prompts at times: how times are written, what is refused, and which chunk each prompt begins with."""

import json
from fractions import Fraction

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.edit_stream import EditStream, FixedPrompts, PreparedPrompts
from sana_streaming.sana_core.streaming.prompt_schedule import (
    PromptSchedule,
    check_frame_prompts,
    chunk_start,
    first_chunk_from,
    format_time,
    parse_time,
    place_at,
)
from sana_streaming.sana_core.streaming.state import StreamState


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("0", 0), ("75.5", Fraction(151, 2)), ("00:05", 5), ("1:15.5", Fraction(151, 2)), ("90:00", 5400),
     ("01:02:03.004", 3723 + Fraction(4, 1000)), (" 00:05 ", 5), ("0.1", Fraction(1, 10)), ("120", 120)],
)  # fmt: skip
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1:60",
        "1:61:00",
        "5s",
        ":5",
        "5:",
        "1:2:3:4",
        "1,5",
        "nan",
        "inf",
        "1e3",
        "\u0665",
        "5.",
        "0:5.5.5",
    ],
)
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="is not a time.*use seconds .*mm:ss"):
        parse_time(text)


@given(st.integers(0, 10**9))
def test_a_time_reads_back(milliseconds):
    seconds = Fraction(milliseconds, 1000)
    assert parse_time(format_time(seconds)) == seconds


def test_the_frame_is_the_first_at_or_after_the_time():
    schedule = PromptSchedule.parse([("2", "b"), ("0", "a"), ("2.01", "c"), ("00:05", "d")])
    assert schedule.in_frames(Fraction(25)) == ((0, "a"), (50, "b"), (51, "c"), (125, "d"))
    assert schedule.in_frames(Fraction(30000, 1001)) == ((0, "a"), (60, "b"), (61, "c"), (150, "d"))


@pytest.mark.parametrize(
    ("pairs", "says"),
    [([("1", "a"), ("0:01", "b")], "two prompts begin at 00:01.000"), ([("1", " ")], "prompt at 00:01.000 is empty"),
     ([("x", "a")], "'x' is not a time")],
)  # fmt: skip
def test_what_is_no_schedule(pairs, says):
    with pytest.raises(InputError, match=says):
        PromptSchedule.parse(pairs)
    with pytest.raises(InputError, match="count from 0"):
        PromptSchedule(((Fraction(-1), "a"),))


def test_a_file_is_a_schedule(tmp_path):
    path = tmp_path / "prompts.json"
    entries = [{"at": "00:05", "prompt": "b"}, {"at": 0.1, "prompt": "a"}, {"at": 7, "prompt": "c"}]
    path.write_text(json.dumps(entries), encoding="utf-8")
    assert PromptSchedule.load(path) == PromptSchedule.parse([("0.1", "a"), ("5", "b"), ("7", "c")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as a prompt schedule"),
        ("{}", "is not a list of prompts"),
        ("[]", "is not a list of prompts"),
        ('["a"]', "entry 1"),
        ('[{"at": 0, "prompt": "a"}, {"at": 1}]', "entry 2"),
        ('[{"at": 0, "prompt": "a", "seed": 1}]', "entry 1"),
        ('[{"at": true, "prompt": "a"}]', "begins at true, which is not a time"),
        ('[{"at": NaN, "prompt": "a"}]', "'nan' is not a time"),
        ('[{"at": 0, "prompt": 5}]', "entry 1"),
    ],
)
def test_what_is_no_schedule_file(tmp_path, text, says):
    path = tmp_path / "prompts.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says) as caught:
        PromptSchedule.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        PromptSchedule.load(tmp_path / "none.json")


@given(st.integers(0, 500), st.one_of(st.none(), st.integers(1, 600)))
def test_a_prompt_begins_with_the_first_chunk_that_starts_in_its_time(frame, total):
    plan = ChunkPlan(total)
    chunk = first_chunk_from(frame, plan)
    assert chunk_start(chunk, plan) >= frame
    assert chunk == 0 or chunk_start(chunk - 1, plan) < frame
    assert plan.chunk_at(chunk_start(chunk, plan)) == chunk
    assert place_at(((frame, "a"),), chunk_start(chunk, plan)) == 1
    assert chunk == 0 or place_at(((frame, "a"),), chunk_start(chunk - 1, plan)) == 0


@pytest.mark.parametrize(
    ("frames", "total", "says"),
    [
        ([1, 33], None, "frames 1 and 33 wait for the same chunk, which begins at frame 33"),
        ([34, 58], 81, "frame 58, after the last chunk of the clip has begun .frame 57 of 81"),
        ([10], 33, "after the last chunk"),
        ([40, 40], None, "rise"),
        ([-1], None, "0 or more"),
    ],
)
def test_prompts_that_would_get_no_chunk_are_refused(frames, total, says):
    with pytest.raises(InputError, match=says):
        check_frame_prompts(tuple((frame, "a") for frame in frames), ChunkPlan(total))


def stream(schedule, total=None, text=None):
    model, vae, prompts = toys.networks()
    options = toys.StreamOptions(steps=2, cfg_scale=2.0)
    return EditStream(
        model, vae, text or prompts, prompt="make it snow", schedule=schedule, height=64, width=64, total_frames=total,
        options=options,
    )  # fmt: skip


SCHEDULE = ((20, "turn it to night"), (57, "draw it"))


def by_hand(clip, total):
    """The same changes made between the chunks."""
    editor, out = toys.stream(total, cfg_scale=2.0), []
    for start, stop, prompt in ((0, 33, None), (33, 57, "turn it to night"), (57, 105, "draw it")):
        if prompt:
            editor.set_prompt(prompt)
        out += [c.pixels for c in editor.push(clip[start:stop])]
    return torch.cat(out + [c.pixels for c in editor.flush()])


@pytest.mark.parametrize("total", [105, None], ids=["known", "live"])
def test_a_stream_follows_its_schedule(total):
    clip = toys.frames(105)
    expected = by_hand(clip, total)
    editor = stream(SCHEDULE, total)
    assert torch.equal(toys.run(editor, clip), expected)
    assert (editor.state.prompt, editor.state.prompt_changes, editor.state.schedule_place) == ("draw it", 2, 3)
    # Over again, and in pieces that end within chunks.
    editor.reset()
    assert torch.equal(toys.run(editor, clip, [50, 1, 54]), expected)


@pytest.mark.parametrize("pushed", [33, 60])
def test_a_saved_stream_goes_on_with_its_schedule(tmp_path, pushed):
    """Here one whose prompt was also changed by hand after the last scheduled one that has come."""
    clip = toys.frames(105)
    outs = []
    for interrupted in (False, True):
        editor = stream(SCHEDULE)
        out = [c.pixels for c in editor.push(clip[:pushed])]
        editor.set_prompt("make it red")
        if interrupted:
            editor.state.save(tmp_path / "s.safetensors")
            editor = EditStream.resume(*toys.networks(), StreamState.load(tmp_path / "s.safetensors"))
        out += [c.pixels for c in editor.push(clip[pushed:])]
        outs.append(torch.cat(out + [c.pixels for c in editor.flush()]))
    assert torch.equal(*outs)
    assert (editor.state.prompt, editor.state.schedule_place) == ("draw it", 3)


class Stop(Exception):
    pass


def test_a_chunk_that_is_stopped_keeps_its_prompt():
    clip = toys.frames(105)
    editor = stream(SCHEDULE)

    def stop(progress):
        if progress.chunk == 1 and progress.stage == "decode":
            raise Stop

    editor.on_progress = stop
    out = [next(iter(editor.push(clip[:57]))).pixels]
    with pytest.raises(Stop):
        list(editor.drain())
    editor.on_progress = None
    out += [c.pixels for c in editor.push(clip[57:])]
    assert torch.equal(torch.cat(out + [c.pixels for c in editor.flush()])[33:], by_hand(clip, None)[33:])


def test_a_prompt_for_frame_0_is_the_first():
    clip = toys.frames(33)
    editor = stream(((0, "draw it"),))
    assert editor.state.prompt == "draw it"
    assert torch.equal(toys.run(editor, clip), toys.run(toys.stream(prompt="draw it", cfg_scale=2.0), clip))
    assert editor.state.prompt_changes == 0


def test_prepared_prompts_are_found_by_their_text():
    _, _, text = toys.networks()
    texts = ("make it snow", "turn it to night", "draw it")
    prepared = PreparedPrompts({t: text.encode(t) for t in texts}, text.encode_negative(""))
    clip = toys.frames(105)
    assert torch.equal(toys.run(stream(SCHEDULE, text=prepared), clip), toys.run(stream(SCHEDULE), clip))
    with pytest.raises(InputError, match="'make it red' was not prepared; the stream knows make it snow"):
        prepared.encode("make it red")
    with pytest.raises(InputError, match="negative prompt"):
        PreparedPrompts({}).encode_negative("")
    with pytest.raises(ValueError, match="a schedule needs PreparedPrompts"):
        stream(SCHEDULE, text=FixedPrompts(text.encode("make it snow"), text.encode_negative("")))
    with pytest.raises(InputError, match="same chunk"):
        stream(((1, "a"), (2, "b")))
