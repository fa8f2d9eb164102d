import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import broadcast
import pytest

# That each of two senders sends.
SECONDS = float(os.environ.get("SANA_LIVE_SECONDS", "90"))


class Broadcast:
    """A run of tests/support/broadcast.py. count: frames of each sender."""

    count = round(SECONDS * broadcast.RATE)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, broadcast.__file__, str(folder), str(SECONDS)])

    def end(self) -> None:
        """Waits until it is over."""
        assert self.process.wait(2 * SECONDS + 120) == 0

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="session")
def three_minutes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broadcast]:
    """A broadcast that goes on beside the tests that follow."""
    run = Broadcast(tmp_path_factory.mktemp("broadcast"))
    yield run
    run.stop()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits for a run that goes on beside other tests waits after all of them."""
    items.sort(key=lambda item: item.get_closest_marker("beside") is not None)
