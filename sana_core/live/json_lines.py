"""Control by JSON lines: commands on standard input, answers and states on an output."""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import IO, TYPE_CHECKING, Any, TextIO

from ..errors import InputError
from .control import MAX_BYTES, accepted, parse_command, refused

if TYPE_CHECKING:
    from .session import LiveSession

logger = logging.getLogger(__name__)


class JsonLines:
    """Writes messages as lines to ``output``, each as a whole whatever thread it comes from."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._lock = threading.Lock()

    def write(self, message: dict[str, Any]) -> None:
        """One line. Where nobody reads any more, nothing."""
        with self._lock:
            try:
                self._output.write(json.dumps(message) + "\n")
                self._output.flush()
            except (OSError, ValueError):
                return

    def listen(self, session: LiveSession, source: IO[bytes] | None = None) -> None:
        """Takes commands from standard input, or ``source``, in a thread. Its end changes nothing."""
        # As bytes, so that a line that is no UTF-8 is refused like any other; without a buffer, whose lock a read would hold
        # when the program ends.
        lines = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) if source is None else source  # noqa: SIM115
        threading.Thread(target=self._read, args=(session, lines), name="live commands", daemon=True).start()

    def _read(self, session: LiveSession, source: IO[bytes]) -> None:
        while line := source.readline(MAX_BYTES + 2):
            if not line.endswith(b"\n") and len(line) > MAX_BYTES:
                # The rest of a line that is too long is no command.
                while (rest := source.readline(MAX_BYTES)) and not rest.endswith(b"\n"):
                    pass
            if line.strip():
                self.write(answer(session, line))


def answer(session: LiveSession, message: str | bytes) -> dict[str, Any]:
    """Carries out a message, and what is said to whoever sent it: that it will be done, the state, or what is wrong."""
    identity = None
    try:
        command = parse_command(message)
        identity = command.id
        if command.verb == "state":
            return session.state().to_dict()
        session.submit(command)
    except InputError as error:
        return refused(error, identity)
    except Exception as error:
        # A prompt that no memory is left for, say: the stream goes on, and so does its control.
        logger.exception("the command %s failed", identity or "")
        return refused(error, identity)
    return accepted(command)
