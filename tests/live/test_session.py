"""A live stream from source to sink, with stand-ins for both and for the networks."""

import itertools
import json
import time

import live_streams
import pytest
import torch
from live_streams import SIZE, MemorySession, MemorySource
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.live.address import SourceAddress
from sana_streaming.sana_core.live.control import parse_command
from sana_streaming.sana_core.live.source import LiveSource, LostError

FIRST, CHUNK = 33, 24


def tell(session, **command):
    session.submit(parse_command(json.dumps(command)))


def numbers(session):
    """Numbers of the frames shown, which fit into a byte while there are fewer than 256."""
    return [number for _, _, number, _ in session.sink.frames]


def check_counts(session):
    """Every frame that came in went out or is accounted for."""
    frames = session.stats.to_dict()["frames"]
    assert frames["in"] == frames["out"] + sum(frames["dropped"].values()), frames


@pytest.mark.parametrize("late", ["wait", "drop"])
@pytest.mark.parametrize("count", [20, FIRST, 150])
def test_every_frame_comes_out_in_order_at_its_time(late, count):
    with MemorySession(MemorySource(count=count), late=late) as session:
        session.join()
    assert session.error is None and session.sink.closed
    assert numbers(session) == list(range(count))
    assert [seconds for seconds, *_ in session.sink.frames] == pytest.approx([i / 200 for i in range(count)])
    assert session.state().status == "stopped" and not session.stats.dropped
    check_counts(session)


def test_a_source_without_frames_gives_none():
    with MemorySession(MemorySource(count=0)) as session:
        session.join()
    assert session.error is None and not session.sink.frames and session.state().status == "stopped"


def test_a_source_that_has_ended_before_anyone_looked_is_edited_whole():
    source = MemorySource(rate=100_000, count=FIRST)
    with MemorySession(source, late="wait") as session:
        # As a node that shows what there is when it is asked.
        session._should_stop = lambda: time.sleep(0.2)
        session.join()
    assert numbers(session) == list(range(FIRST))
    check_counts(session)


def test_frames_of_changing_size_are_all_edited():
    with MemorySession(MemorySource(count=80, sizes=(64, 64, 32, 96)), late="wait") as session:
        session.join()
    assert session.error is None and numbers(session) == list(range(80))


def test_a_slow_machine_drops_before_editing_and_its_latency_stays_within_the_bound():
    with MemorySession(MemorySource(rate=400), seconds=0.15) as session:
        session.until(lambda: session.stats.chunks >= 14)
        tell(session, command="stop")
        session.join()
    dropped = session.stats.dropped
    assert dropped["queue"] > session.stats.frames_out / 2
    assert set(dropped) <= {"queue", "stopped"}
    check_counts(session)
    # The last frame of a chunk waits until it is edited, the first for the others as well.
    assert session.stats.latencies.percentile(0.0) > 0.15 and session.stats.latencies.most <= session.bound
    seconds = [at for at, *_ in session.sink.frames]
    assert all(after > before for before, after in itertools.pairwise(seconds))


def test_a_slow_machine_lets_the_source_wait():
    with MemorySession(MemorySource(rate=400, count=FIRST + 4 * CHUNK), late="wait", seconds=0.1) as session:
        session.join()
    assert numbers(session) == list(range(FIRST + 4 * CHUNK)) and not session.stats.dropped
    assert session.report()["queue"]["input_most"] <= FIRST + 8


def test_repeat_gives_an_even_rate():
    with MemorySession(MemorySource(rate=100), late="repeat", seconds=0.4) as session:
        session.until(lambda: session.stats.chunks >= 5)
        tell(session, command="pause")
        session.until(lambda: session.state().status == "paused")
        shown = len(session.sink.frames)
        session.until(lambda: len(session.sink.frames) > shown + 10)
    seconds = [at for at, *_ in session.sink.frames]
    # The picture stands still, and is sent all the same.
    assert len({number for _, _, number, _ in session.sink.frames[shown + 1 :]}) == 1
    assert seconds == pytest.approx([i / 100 for i in range(len(seconds))])
    assert session.stats.repeated > 0
    check_counts(session)


def test_a_prompt_lands_on_the_next_chunk_and_nothing_is_lost():
    with MemorySession(MemorySource(), late="wait", prompt="a") as session:
        session.until(lambda: session.stats.chunks >= 2)
        before = session.stats.chunks
        tell(session, command="set", prompt="abcde", id=7)
        assert session.prompts.prepared == ["abcde"]
        session.until(lambda: session.stats.frames_out > FIRST + (before + 2) * CHUNK)
    lengths = [length for _, length, _, _ in session.sink.frames]
    change = lengths.index(5)
    assert set(lengths[:change]) == {1} and set(lengths[change:]) == {5}
    # At a border, that of the chunk in the making or of the one after it.
    assert (change - FIRST) % CHUNK == 0 and (change - FIRST) // CHUNK in (before - 1, before)
    assert session.state().prompt == "abcde"
    assert len(session.streams) == 1


def test_pause_shows_nothing_more_and_resume_nothing_old():
    with MemorySession(MemorySource(), seconds=0.1) as session:
        # While a chunk is in the making.
        session.until(lambda: session.stats.frames_out > FIRST and session.editing.is_set())
        tell(session, command="pause")
        shown = len(session.sink.frames)
        # One may be on its way out.
        session.until(lambda: session.state().status == "paused")
        time.sleep(0.3)
        assert len(session.sink.frames) <= shown + 1
        assert session.state().queue == {"input": 0, "output": 0}
        resumed = time.monotonic()
        tell(session, command="resume")
        session.until(lambda: len(session.sink.frames) > shown + CHUNK)
    assert session.state().frames["dropped"]["paused"] >= 40
    fresh = session.sink.frames[shown + 1 :]
    # Times go on, so what is shown after the pause was taken after it.
    first_moment = session.sink.frames[0][3] - session.sink.frames[0][0]
    assert first_moment + fresh[0][0] > resumed - 0.5
    assert fresh[0][0] - session.sink.frames[shown - 1][0] > 0.25
    assert len(session.streams) == 1
    check_counts(session)


def test_reset_flushes_keeps_the_prompt_and_begins_with_a_long_chunk():
    with MemorySession(MemorySource(), prompt="a", seconds=0.1) as session:
        tell(session, command="set", prompt="abc")
        session.until(lambda: session.stats.chunks >= 2)
        shown = len(session.sink.frames)
        tell(session, command="reset")
        session.until(lambda: len(session.streams) == 2)
        session.until(lambda: len(session.sink.frames) > shown + FIRST)
        state = session.state()
    assert state.prompt == "abc" and state.streams == 2
    assert {length for _, length, _, _ in session.sink.frames[shown:]} == {3}
    assert session.stats.dropped["reset"] > 0
    assert any(state.text == "the stream began anew" for state in session.states) and not state.text
    check_counts(session)


def test_other_steps_and_anchors_land_on_the_next_chunk_of_the_same_stream():
    with MemorySession(MemorySource(), late="wait") as session:
        session.until(lambda: session.stats.chunks >= 2)
        before = session.stats.chunks
        tell(session, command="set", steps=2, anchor_every=5)
        session.until(lambda: session.stats.chunks > before + 2)
        state = session.state()
        assert (state.steps, state.anchor_every, state.streams, state.text) == (2, 5, 1, "")
    (stream,) = session.streams
    change = stream.used.index((2, 5))
    assert set(stream.used[:change]) == {(4, 0)} and set(stream.used[change:]) == {(2, 5)}
    # The chunk in the making may have been the next one.
    assert change in (before, before + 1)
    assert set(session.stats.dropped) <= {"stopped"} and numbers(session)[: FIRST + CHUNK] == list(range(FIRST + CHUNK))


def test_settings_that_do_not_go_together_are_refused_at_once():
    source = MemorySource()
    with MemorySession(source) as session:
        session._desk._options = live_streams.StreamOptions(steps=4, start_step=3)
        with pytest.raises(InputError, match="start_step 3"):
            tell(session, command="set", steps=2)
        assert session.state().pending == {}
        session._desk._options = live_streams.StreamOptions(num_cached_blocks=0, anchor_every=4)
        with pytest.raises(InputError, match="num_cached_blocks 0 .* unknown length"):
            tell(session, command="set", anchor_every=0)
        assert session.state().pending == {}


def test_an_interval_that_takes_too_much_memory_is_not_taken_over(monkeypatch):
    with MemorySession(MemorySource(), late="wait") as session:
        session.until(lambda: session.stats.chunks >= 1)

        def refuse(options):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(session.streams[0], "set_options", refuse)
        tell(session, command="set", anchor_every=1000)
        session.until(lambda: "anchor_every 1000 takes more memory than there is" in session.state().text)
        shown = session.stats.frames_out
        session.until(lambda: session.stats.frames_out > shown + CHUNK)
        assert session.state().anchor_every == 0 and session.state().pending == {}


def test_a_source_that_went_away_in_a_pause_is_still_away_after_it():
    with MemorySession(MemorySource()) as session:
        session.until(lambda: session.stats.chunks >= 1)
        tell(session, command="pause")
        session.until(lambda: session.state().status == "paused")
        session._source_status("reconnecting", "it ended")
        tell(session, command="resume")
        session.until(lambda: not session._paused)
        session.until(lambda: (session.state().status, session.state().text) == ("reconnecting", "it ended"))


def test_a_pause_before_the_first_frame_can_be_ended():
    source = MemorySource(delay=0.3)
    with MemorySession(source) as session:
        tell(session, command="pause")
        session.until(lambda: session.stats.dropped["paused"] > 5)
        session.until(lambda: session.state().status == "paused")
        tell(session, command="resume")
        session.until(lambda: session.stats.frames_out > FIRST)
    check_counts(session)


def test_commands_are_not_done_before_they_are_taken(monkeypatch):
    """A reset that is carried out before the flag that interrupts chunks is raised would leave the flag raised for ever."""
    with MemorySession(MemorySource(), late="wait", seconds=0.05) as session:
        session.until(lambda: session.stats.chunks >= 1)
        accept = session._desk.accept

        def slowly(command):
            accept(command)
            time.sleep(0.5)

        monkeypatch.setattr(session._desk, "accept", slowly)
        tell(session, command="reset")
        tell(session, command="pause")
        tell(session, command="resume")
        session.until(lambda: session.state().status == "running")
        shown = session.stats.frames_out
        session.until(lambda: session.stats.frames_out > shown + FIRST + CHUNK)
    check_counts(session)


def test_stop_does_not_wait_for_a_slow_source():
    """The edit waits for room behind it, which comes at the source's pace unless it is told to hurry."""
    with MemorySession(MemorySource(rate=200), late="wait") as session:
        session.until(lambda: session.stats.chunks >= 1)
        # From here on nothing is due for a long time.
        session._player.clock.delay = 1000.0
        session._edited.capacity = 5
        session.until(lambda: len(session._frames) == session._frames.capacity)
        tell(session, command="stop")
        session.join()
    assert session.error is None and len(numbers(session)) >= FIRST
    check_counts(session)


@pytest.mark.parametrize("begin", ["off", "side-by-side"])
def test_the_output_keeps_its_size_whatever_is_compared(begin):
    with MemorySession(MemorySource(), compare=begin) as session:
        for layout in ("wipe", "side-by-side", "off"):
            shown = session.stats.frames_out
            tell(session, command="set", compare=layout)
            session.until(lambda shown=shown: session.stats.frames_out > shown + 3 * CHUNK)
            assert session.state().compare == layout
    assert session.error is None
    assert session.sink.sizes == {(SIZE, SIZE * (2 if begin == "side-by-side" else 1), 3)}


def test_a_full_disk_ends_the_stream_with_its_error():
    with MemorySession(MemorySource()) as session:

        def fail(*_):
            raise OSError("no room on the disk")

        session.sink.write = fail
        session.join()
    assert "no room" in str(session.error) and session.state().text == "no room on the disk"
    check_counts(session)
    with pytest.raises(InputError, match="has ended"):
        tell(session, command="pause")


def test_an_output_that_fails_in_the_middle_counts_what_was_to_go_there():
    with MemorySession(MemorySource(count=150), late="wait") as session:
        write = session.sink.write

        def fail(picture, seconds):
            if len(session.sink.frames) == 40:
                raise OSError("gone")
            return write(picture, seconds)

        session.sink.write = fail
        session.join()
    assert session.stats.frames_out == 40 and session.stats.dropped["output"] > 0
    check_counts(session)


class DyingSource(MemorySource):
    """Breaks after its last frame but ``held``, which its decoder gives when that is noticed, and is lost for good."""

    def __init__(self, count, held, silence):
        super().__init__(count=count)
        self.held, self.silence = held, silence

    def frames(self):
        for frame in super().frames():
            if frame.number == self.count - self.held:
                self._stop.wait(self.silence)
            held = frame.number >= self.count - self.held
            yield frame._replace(held=held, arrival=time.monotonic())
        raise LostError("it was lost")


def test_frames_that_a_decoder_held_when_the_source_broke_say_nothing_of_the_bound():
    with MemorySession(DyingSource(FIRST + CHUNK, 3, 2.0), late="wait") as session:
        session.join()
    assert numbers(session) == list(range(FIRST + CHUNK)) and isinstance(session.error, LostError)
    assert session.bound < 1.0 and session._player.clock.delay < 1.0
    check_counts(session)


@pytest.mark.parametrize("keep_lost", [True, False])
def test_what_waits_when_the_source_is_lost_is_let_go_of_unless_it_is_to_be_kept(keep_lost):
    with MemorySession(DyingSource(FIRST + CHUNK, 3, 0.5), keep_lost=keep_lost) as session:
        session.join()
    shown = FIRST + CHUNK if keep_lost else FIRST
    assert numbers(session) == list(range(shown)) and isinstance(session.error, LostError)
    assert session.stats.dropped == ({} if keep_lost else {"reconnect": CHUNK})
    check_counts(session)


def test_a_file_that_breaks_off_is_edited_to_its_last_frame(tmp_path):
    source = DyingSource(FIRST + CHUNK, 0, 0.0)
    (tmp_path / "clip.mp4").touch()
    source.address = SourceAddress(str(tmp_path / "clip.mp4"))
    with MemorySession(source, keep_lost=False) as session:
        session.join()
    assert numbers(session) == list(range(FIRST + CHUNK)) and isinstance(session.error, LostError)


def test_a_backlog_of_the_source_keeps_its_spacing(tmp_path):
    """All of a second comes at once, as from FFmpeg when it has looked at a stream."""
    clip = tmp_path / "clip.ts"
    live_streams.send(str(clip), 0, FIRST + CHUNK, 30, sound=False)
    address = SourceAddress(str(clip), container="mpegts", paced=False)
    with MemorySession(LiveSource(address, hold=True), late="wait") as session:
        session.join()
    seconds = [at for at, *_ in session.sink.frames]
    assert seconds == pytest.approx([i / 30 for i in range(FIRST + CHUNK)], abs=2e-3)
    # And a file that is not to be played at its own rate is not held back on its way out either.
    assert session._player._hurry.is_set()


def test_the_report_is_plain_and_has_curves(tmp_path):
    from sana_streaming.sana_core.live.report import draw_plot

    with MemorySession(MemorySource(count=300), late="wait") as session:
        session.join()
    report = json.loads(json.dumps(session.report()))
    assert report["frames"] == {"in": 300, "edited": 300, "out": 300, "repeated": 0, "dropped": {}}
    assert (
        report["latency"]["p50"] <= report["latency"]["p95"] <= report["latency"]["max"] <= report["latency"]["bound"]
    )
    assert report["first_frames"] == FIRST and report["chunk_frames"] == CHUNK
    assert len(report["curves"]) >= 2
    draw_plot(tmp_path / "run.png", report)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
