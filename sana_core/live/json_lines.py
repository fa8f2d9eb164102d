"""Control by JSON lines: commands on standard input, answers and states on an output."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import InputError
from .control import MAX_BYTES, accepted, parse_command, refused

if TYPE_CHECKING:
    from .session import LiveSession


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

    def listen(self, session: LiveSession, source: TextIO | None = None) -> None:
        """Takes commands from standard input, or ``source``, in a thread. Its end changes nothing."""
        lines = sys.stdin if source is None else source
        threading.Thread(target=self._read, args=(session, lines), name="live commands", daemon=True).start()

    def _read(self, session: LiveSession, source: TextIO) -> None:
        while line := source.readline(MAX_BYTES + 2):
            if not line.endswith("\n") and len(line) > MAX_BYTES:
                # The rest of a line that is too long is no command.
                while (rest := source.readline(MAX_BYTES)) and not rest.endswith("\n"):
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
    return accepted(command)
