"""Reading from a pipe without being caught in it: a read ends when it is asked to, whether anything comes or not."""

from __future__ import annotations

import math
import os
import select
import time
from threading import Event

# Between two looks at whether to stop.
TICK = 0.1


class PipeReader:
    """A file object for PyAV over a pipe or standard input. ``read`` returns nothing at its end, or once ``stop`` is set.

    It raises TimeoutError when nothing has come for :attr:`patience` seconds. ``owned``: :meth:`close` closes the descriptor.
    """

    def __init__(self, descriptor: int, stop: Event, *, owned: bool, patience: float = math.inf) -> None:
        self._descriptor, self._stop, self._owned = descriptor, stop, owned
        self.patience = patience

    @classmethod
    def open(cls, path: str, stop: Event, patience: float = math.inf) -> PipeReader:
        """A named pipe; does not wait for its writer. Not on Windows, where no path is a pipe."""
        return cls(os.open(path, os.O_RDONLY | os.O_NONBLOCK), stop, owned=True, patience=patience)

    def read(self, size: int) -> bytes:
        end = time.monotonic() + self.patience
        while not self._stop.is_set():
            if time.monotonic() > end:
                raise TimeoutError(f"nothing came for {self.patience:.1f} seconds")
            # Windows can look at sockets alone, so there a read lasts until something comes.
            if os.name != "nt" and not select.select([self._descriptor], [], [], TICK)[0]:
                continue
            try:
                return os.read(self._descriptor, size)
            except BlockingIOError:
                continue
        return b""

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor)
