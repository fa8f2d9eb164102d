"""Times and delays, with a clock of the test's own."""

import itertools
import math

import pytest
from sana_streaming.sana_core.live.clock import SLEW, SPARE_FRAMES, Backoff, DelayClock, SourceTimes, latency_bound
from sana_streaming.sana_core.live.queues import BoundedQueue

FIRST, CHUNK, ROOM = 33, 24, 8


def test_frames_keep_their_distance_and_sound_keeps_theirs():
    times = SourceTimes(0.04)
    assert times.sound(7.0) is None
    assert times.frame(7.0, now=100.0) == 100.0
    # One that is held up on its way keeps its time.
    assert times.frame(7.04, now=100.3) == pytest.approx(100.04)
    assert times.sound(7.1) == pytest.approx(100.1)
    assert times.sound(700.0) is None


def test_what_comes_too_soon_shows_that_others_were_held_up():
    times = SourceTimes(0.04)
    assert [times.frame(i * 0.04, now=50.0) for i in range(5)] == pytest.approx([50.0, 50.04, 50.08, 50.081, 50.082])
    # From here on the stamps count, and the sound goes along.
    assert times.frame(5 * 0.04, now=50.2) == pytest.approx(50.122)
    assert times.sound(5 * 0.04) == pytest.approx(50.122)


def test_a_reader_that_waits_for_the_time_may_be_early():
    times = SourceTimes(0.04, ahead=True)
    assert [times.frame(i * 0.04, now=50.0) for i in range(3)] == pytest.approx([50.0, 50.04, 50.08])


@pytest.mark.parametrize("stamp", [3.0, 9.5, 10.0])
def test_stamps_that_jump_begin_a_new_count(stamp):
    times = SourceTimes(0.04)
    times.frame(10.0, now=100.0)
    assert times.frame(stamp, now=105.0) == pytest.approx(105.0)
    assert times.frame(stamp + 0.04, now=105.04) == pytest.approx(105.04)


def test_times_always_grow():
    times = SourceTimes(0.04)
    seen = [times.frame(stamp, now=100.0) for stamp in (0.0, 0.5, 0.2, None, None, 8.0, 8.01)]
    times.restart()
    seen.append(times.frame(0.0, now=100.0))
    assert all(after > before for before, after in itertools.pairwise(seen))


def test_backoff_doubles_up_to_a_limit():
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.next() == 0.5


def simulate(interval, compute, num_chunks, *, slew=SLEW):
    """Latencies of the frames shown by a source, a thinning queue, a machine that takes ``compute(chunk)`` and the clock.

    Returns (latency of each frame in order, source times of the frames edited, bound).
    """

    class Frame:
        def __init__(self, time):
            self.time = time

    dropped = []
    queue = BoundedQueue(FIRST + ROOM, "thin", dropped.append)
    clock = DelayClock(interval, slew=slew)
    source, now, shown_until = itertools.count(), 0.0, -math.inf
    upcoming = next(source)
    latencies, times, slowest = [], [], 0.0
    for chunk in range(num_chunks):
        needed = CHUNK if chunk else FIRST
        queue.capacity = needed + ROOM
        while len(queue) < needed or upcoming * interval <= now:
            now = max(now, upcoming * interval) if len(queue) < needed else now
            queue.put(Frame(upcoming * interval))
            upcoming = next(source)
        batch = queue.take(needed, 0)
        seconds = compute(chunk) * needed / CHUNK
        slowest = max(slowest, seconds / needed)
        # What comes meanwhile is thinned.
        end = now + seconds
        while upcoming * interval <= end:
            if len(queue) == 0:
                queue.capacity = CHUNK + ROOM
            queue.put(Frame(upcoming * interval))
            upcoming = next(source)
        now = end
        clock.chunk_ready(batch[0].time, now, first=chunk == 0)
        for frame in batch:
            moment = max(clock.due(frame.time), now, shown_until)
            shown_until = moment
            latencies.append(moment - frame.time)
            times.append(frame.time)
            clock.shown(frame.time)
    return latencies, times, latency_bound(FIRST, FIRST + ROOM, interval, slowest)


def test_the_delay_comes_down_to_a_chunk_and_its_compute():
    interval, compute = 1 / 30, 0.3
    latencies, times, bound = simulate(interval, lambda chunk: compute, 60)
    # At first it is that of the long first chunk.
    assert latencies[0] == pytest.approx(32 * interval + compute * FIRST / CHUNK, abs=interval)
    settled = 23 * interval + compute + SPARE_FRAMES * interval
    assert latencies[-1] == pytest.approx(settled, abs=interval)
    assert max(latencies) <= bound
    assert len(times) == FIRST + 59 * CHUNK and times == pytest.approx([i * interval for i in range(len(times))])


def test_a_machine_that_is_too_slow_is_late_by_no_more_than_the_bound_however_long_it_runs():
    interval = 1 / 60
    latencies, times, bound = simulate(interval, lambda chunk: 1.5, 200)
    assert max(latencies) <= bound
    # It does not grow.
    assert max(latencies[len(latencies) // 2 :]) <= max(latencies[: len(latencies) // 2]) + 1e-6
    # 16 frames of 60 can be edited in a second; those that are, are spread over it.
    gaps = [after - before for before, after in itertools.pairwise(times[FIRST + CHUNK :])]
    assert min(gaps) > 0 and max(gaps) < 0.25
    assert sum(gaps) / len(gaps) == pytest.approx(1.5 / CHUNK, rel=0.1)


def test_one_late_chunk_raises_the_delay_and_it_comes_down_again():
    interval = 1 / 30
    latencies, _, bound = simulate(interval, lambda chunk: 1.4 if chunk == 10 else 0.3, 120)
    assert max(latencies) <= bound
    assert latencies[-1] == pytest.approx(23 * interval + 0.3 + SPARE_FRAMES * interval, abs=2 * interval)


def test_a_late_chunk_raises_the_delay_by_what_it_is_late_and_no_more():
    clock = DelayClock(0.1)
    clock.chunk_ready(0.0, 4.0, first=True)
    assert clock.chunk_ready(3.3, 7.0) == pytest.approx(0.3) and clock.delay == 4.0
    assert clock.chunk_ready(5.7, 10.2) == pytest.approx(-0.5) and clock.delay == pytest.approx(4.5)
    assert clock.raised == 1


def test_a_frame_is_never_shown_before_its_chunk_and_the_delay_jumps_where_it_may():
    clock = DelayClock(0.1, slew=math.inf)
    clock.chunk_ready(0.0, 5.0, first=True)
    assert clock.due(0.0) == 5.0
    for chunk in range(1, 5):
        clock.chunk_ready(chunk * 2.4, chunk * 2.4 + 3.0)
    assert clock.delay == pytest.approx(3.0 + SPARE_FRAMES * 0.1)
    clock.restart()
    with pytest.raises(ValueError, match="no chunk"):
        clock.due(0.0)
