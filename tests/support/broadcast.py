"""``live`` between two senders, one after the other, and a file; a program of its own, which goes on beside other tests.

    python broadcast.py FOLDER SECONDS

Leaves FOLDER/out.mp4, report.json and said.txt, and ends with 0 where ``live`` ended as it should after Ctrl-C.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import live_streams
from live_process import Live, free_port

RATE = 10
# Number of the second sender's first frame.
AGAIN = 30_000


class Death:
    """Ends the process after so many looks, with nothing closed or said."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        if self.looks < 0:
            os._exit(9)
        return False


def send_and_die(target: str, first: int, count: int) -> None:
    live_streams.send(target, first, count + 1, RATE, stop=Death(count))


def main(folder: Path, seconds: float) -> None:
    port, count = free_port(), round(seconds * RATE)
    # What FFmpeg holds comes to lie in memory little by little; this much of it within the first minute.
    source = f"udp://127.0.0.1:{port}?fifo_size=8192"
    # Freed tensors go back to the system at once, so that resident memory shows what is held.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    places = ("--input", source, "--output", folder / "out.mp4", "--report", folder / "report.json")
    with Live(*places, "--size", "64x64", "--late", "wait", "--compare", "side-by-side", "--crf", "10") as live:
        live.until("connecting")
        target = f"udp://127.0.0.1:{port}?pkt_size=1316"
        for first in (0, AGAIN):
            seen = len(live.lines)
            command = [sys.executable, __file__, "send", target, str(first), str(count)]
            assert subprocess.run(command, check=False).returncode == 9
            while not any(line.startswith("reconnecting") for line in live.lines[seen:]):
                assert live.process.poll() is None, live.lines
                time.sleep(0.05)
        live.process.send_signal(signal.SIGINT)
        (folder / "said.txt").write_text(live.end(130))


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send_and_die(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        # Nothing that was begun here is left where this is ended.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        main(Path(sys.argv[1]), float(sys.argv[2]))
