"""What a full queue does, and that nobody waits for ever."""

import itertools
import threading
from typing import NamedTuple

import pytest
from sana_streaming.sana_core.live.queues import BoundedQueue, most_crowded


class Item(NamedTuple):
    time: float


def items(*times):
    return [Item(time) for time in times]


def filled(full, capacity, count):
    dropped = []
    queue = BoundedQueue(capacity, full, dropped.append)
    for i in range(count):
        queue.put(Item(float(i)))
    return [item.time for item in queue.take(min(capacity, count), 0)], sum(dropped)


def test_the_oldest_goes():
    assert filled("oldest", 3, 7) == ([4.0, 5.0, 6.0], 4)


@pytest.mark.parametrize("count", [9, 16, 33, 100, 257])
def test_thinning_keeps_first_and_last_and_spreads_the_rest(count):
    kept, dropped = filled("thin", 8, count)
    assert len(kept) == 8 and dropped == count - 8
    assert kept[0] == 0.0 and kept[-1] == count - 1
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert min(gaps) > 0
    assert max(gaps) <= 4 * (count - 1) / 7


def test_the_most_crowded_is_between_the_nearest():
    assert most_crowded([0, 1, 2, 2.5, 4]) == 2
    assert most_crowded([0, 1, 2, 3]) == 2
    with pytest.raises(ValueError, match="2 times"):
        most_crowded([0, 1])


def test_waiting_ends_with_room_and_loses_nothing():
    queue = BoundedQueue(2, "wait")
    taken = []

    def put():
        for item in items(*range(20)):
            queue.put(item)
        queue.close()

    thread = threading.Thread(target=put)
    thread.start()
    while batch := queue.take(3 if queue.closed else 2, 5):
        assert len(queue) <= 2
        taken += batch
    thread.join(5)
    assert taken == items(*range(20)) and queue.most == 2


@pytest.mark.parametrize("end", ["close", "clear"])
def test_who_waits_for_room_is_let_go(end):
    queue = BoundedQueue(1, "wait")
    queue.put(Item(0))
    wanted = [True]
    answers = []
    thread = threading.Thread(target=lambda: answers.append(queue.put(Item(1), lambda: wanted[0])))
    thread.start()
    wanted[0] = False
    getattr(queue, end)()
    thread.join(5)
    # A frame that nobody wants any more does not come in through the gap.
    assert answers == [False] and not queue.take(1, 0)[1:]


def test_taking_is_all_or_nothing_until_the_end():
    queue = BoundedQueue(4, "wait")
    for item in items(1, 2):
        queue.put(item)
    assert queue.take(3, 0) == []
    assert not queue.remove(Item(2)) and len(queue) == 2
    queue.close()
    assert queue.take(3, 0) == items(1, 2) and queue.peek(0) is None
    assert queue.put(Item(3)) is False
