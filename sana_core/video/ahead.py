"""Items of an iterator made in a thread, a few ahead of whoever reads them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """The same items in the same order, of which at most ``depth`` wait and one is in the making.

    What the iterator raises comes out where its next item would have. Ending or closing waits for the item in the making, and
    closes the iterator, in the thread that ran it.
    """
    # Each entry is an item, or what ended the iterator.
    made: SimpleQueue[tuple[Item] | BaseException] = SimpleQueue()
    room = threading.Semaphore(depth + 1)
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    return
                made.put((next(items),))
        except BaseException as end:
            made.put(end)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(entry := made.get(), BaseException):
            room.release()
            yield entry[0]
        if not isinstance(entry, StopIteration):
            raise entry
    finally:
        stopped.set()
        room.release()
        thread.join()
