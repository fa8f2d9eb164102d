"""Items read ahead in a thread: the same, in order, no more than asked for, and what goes wrong in its place."""

import threading

import pytest
from sana_streaming.sana_core.video.ahead import read_ahead


def counting(made, stop=100):
    for number in range(stop):
        made.append((number, threading.current_thread()))
        yield number


@pytest.mark.parametrize("depth", [0, 1, 3, 1000])
def test_the_same_items_from_another_thread(depth):
    made = []
    assert list(read_ahead(counting(made), depth)) == list(range(100))
    assert {thread for _, thread in made} != {threading.current_thread()} and len({thread for _, thread in made}) == 1
    assert not made[0][1].is_alive()


def test_no_items():
    assert list(read_ahead(iter(()), 2)) == []


def test_no_more_than_the_depth_waits():
    """One more is in the making, which is all there is to see from here."""
    made, reached, ahead = [], threading.Semaphore(0), []

    def items():
        for number in counting(made):
            reached.release()
            yield number

    with_room = read_ahead(items(), 3)
    assert next(with_room) == 0
    for _ in range(5):
        assert reached.acquire(timeout=10)
    # What is in the making is held up until there is room.
    assert not reached.acquire(timeout=0.05)
    ahead = len(made) - 1
    assert ahead == 4
    with_room.close()
    assert len(made) == 5


def test_an_error_comes_after_what_came_before_it():
    def items():
        yield from (1, 2)
        raise OSError("gone")

    got = []
    with pytest.raises(OSError, match="gone"):
        for item in read_ahead(items(), 5):
            got.append(item)
    assert got == [1, 2]


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_closing_ends_the_thread_and_closes_what_it_read(taken):
    ended = []

    def items():
        try:
            yield from range(1000)
        finally:
            ended.append(threading.current_thread())

    before = threading.active_count()
    ahead = read_ahead(items(), 2)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    ahead.close()
    assert threading.active_count() == before
    assert (len(ended) == 1 and ended[0] is not threading.current_thread()) if taken else not ended


def test_whoever_fails_on_an_item_ends_the_thread():
    before = threading.active_count()
    ahead = read_ahead(iter(range(1000)), 2)
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
        ahead.throw(KeyboardInterrupt)
    assert threading.active_count() == before
