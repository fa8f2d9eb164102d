"""A queue between two threads that holds so many items and no more, and what happens to one that does not fit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Literal, Protocol, TypeVar

Full = Literal["wait", "thin", "oldest"]


class Timed(Protocol):
    @property
    def time(self) -> float: ...


Item = TypeVar("Item", bound=Timed)


def most_crowded(times: Sequence[float]) -> int:
    """Index of the time, neither first nor last, whose neighbours are nearest to each other; the latest of several.

    Dropping it again and again leaves times that are spread evenly. ValueError for fewer than three times.
    """
    if len(times) < 3:
        raise ValueError(f"of {len(times)} times none stands between two others")
    gaps = [(times[i + 1] - times[i - 1], -i) for i in range(1, len(times) - 1)]
    return -min(gaps)[1]


class BoundedQueue(Generic[Item]):
    """Items in the order in which they came, at most ``capacity``.

    full: what an item does to a full queue. ``wait``: it waits for room. ``thin``: of all items, itself included, the one goes
    whose going leaves the most even times. ``oldest``: the first one goes. on_drop: told how many have gone that way.
    """

    def __init__(self, capacity: int, full: Full, on_drop: Callable[[int], None] = lambda count: None) -> None:
        self.capacity = capacity
        self._full = full
        self._on_drop = on_drop
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.most = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """No item comes any more; those that are there can be taken."""
        return self._closed

    def wait_for_room(self, timeout: float) -> bool:
        """Whether :meth:`put` would not wait, after ``timeout`` seconds at most."""
        if self._full != "wait":
            return True
        with self._changed:
            return self._changed.wait_for(lambda: len(self._items) < self.capacity or self._closed, timeout)

    def put(self, item: Item, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Adds an item, unless the queue is closed or it is not ``wanted`` once there is room; whether it did."""
        with self._changed:
            while len(self._items) >= self.capacity and not self._closed and wanted():
                if self._full == "wait":
                    self._changed.wait()
                else:
                    self._drop(item)
                    if self._full == "thin":
                        return True
            if self._closed or not wanted():
                return False
            self._append(item)
            return True

    def _append(self, item: Item) -> None:
        self._items.append(item)
        self.most = max(self.most, len(self._items))
        self._changed.notify_all()

    def _drop(self, item: Item) -> None:
        if self._full == "oldest" or self.capacity < 2:
            self._items.popleft()
            if self._full == "thin":
                self._append(item)
        else:
            self._append(item)
            del self._items[most_crowded([each.time for each in self._items])]
            self.most = self.capacity
        self._on_drop(1)

    def take(self, count: int, timeout: float) -> list[Item]:
        """The ``count`` oldest items, or none if there are not as many after ``timeout`` seconds.

        Of a closed queue as many as are left.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) >= count or self._closed, timeout)
            if len(self._items) < count and not self._closed:
                return []
            taken = [self._items.popleft() for _ in range(min(count, len(self._items)))]
            self._changed.notify_all()
            return taken

    def peek(self, timeout: float) -> Item | None:
        """The oldest item, which stays; None if there is none after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closed, timeout)
            return self._items[0] if self._items else None

    def remove(self, item: Item) -> bool:
        """Takes this item, if it is still the oldest."""
        with self._changed:
            if not self._items or self._items[0] is not item:
                return False
            self._items.popleft()
            self._changed.notify_all()
            return True

    def clear(self) -> int:
        """Lets go of all items; returns how many there were."""
        with self._changed:
            count = len(self._items)
            self._items.clear()
            self._changed.notify_all()
            return count

    def close(self) -> None:
        """Ends all waiting; see :attr:`closed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
