"""Stand-ins for ComfyUI on this machine, and short waits."""

import os
import signal
import threading
from contextlib import ExitStack

import pytest
from fake_comfy import FakeComfy
from queue_work import Work
from sana_streaming.sana_core.queueing import batch, server


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in {"RECONNECT_SECONDS": 0.01, "FIRST_DELAY": 0.05, "LAST_DELAY": 0.1, "TICK_SECONDS": 0.1}.items():
        monkeypatch.setattr(batch, name, value)
    monkeypatch.setattr(server, "POLL_SECONDS", 0.1)


@pytest.fixture(autouse=True)
def _no_hang():
    """What waits for ever is stopped as by Ctrl-C, and so fails."""
    timer = threading.Timer(30, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.cancel()


@pytest.fixture
def comfy():
    with FakeComfy() as it:
        yield it


@pytest.fixture
def pair():
    with ExitStack() as stack:
        yield [stack.enter_context(FakeComfy()) for _ in range(2)]


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path)
