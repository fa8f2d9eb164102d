"""The command ``live`` in a process of its own."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time


class Live:
    """``live`` in a process of its own; its standard error is collected line by line."""

    def __init__(self, *options, **places):
        command = [sys.executable, "-m", "sana_streaming", "live", "--prompt", "keep the video as it is", *options]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            **places,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())

    def until(self, pattern, seconds=60):
        end = time.monotonic() + seconds
        while not (found := next((m for line in self.lines if (m := re.search(pattern, line))), None)):
            assert time.monotonic() < end and self.process.poll() is None, "\n".join(self.lines)
            time.sleep(0.02)
        return found

    def end(self, code):
        assert self.process.wait(60) == code, "\n".join(self.lines)
        self._reader.join(10)
        return "\n".join(self.lines)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
