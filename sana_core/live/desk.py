"""What a live stream was told and has not done yet, and what is in force: the counter between its threads and the outside."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..streaming.chunks import ChunkPlan
from ..streaming.options import StreamOptions
from .compare import Compare
from .control import SETTINGS, Command, LiveState


class CommandDesk:
    """Takes commands in, gives them out in order, and keeps the part of the state that is not counted.

    on_change: called after every :meth:`update`, in the thread that called it.
    """

    def __init__(self, prompt: str, options: StreamOptions, compare: Compare, late: str) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._options = options
        self._lock = threading.Lock()
        self._commands: deque[Command] = deque()
        self._state = LiveState(
            prompt=prompt, steps=options.steps, anchor_every=options.anchor_every, compare=compare, late=late
        )

    @property
    def options(self) -> StreamOptions:
        """In force."""
        return self._options

    def accept(self, command: Command) -> None:
        """Puts a command in line. InputError for settings that do not go with those in force or in line."""
        with self._lock:
            wanted = self._options
            for each in (*self._commands, command):
                wanted = changed(wanted, each)
            self._commands.append(command)
            self._state.pending |= _settings(command)

    def take(self) -> list[Command]:
        """All commands in line, which are done now."""
        with self._lock:
            commands = list(self._commands)
            self._commands.clear()
            self._state.pending = {}
        return commands

    def update(self, **values: Any) -> None:
        """Sets fields of the state."""
        with self._lock:
            for name, value in values.items():
                setattr(self._state, name, value)
        self.on_change()

    def adopt(self, options: StreamOptions) -> None:
        """Puts options in force."""
        self._options = options
        self.update(steps=options.steps, anchor_every=options.anchor_every)

    def state(self) -> LiveState:
        """A copy, without counts."""
        with self._lock:
            return dataclasses.replace(self._state, pending=dict(self._state.pending))


def changed(options: StreamOptions, command: Command) -> StreamOptions:
    """The options after a command. InputError for settings that do not go together, or not with a stream that runs."""
    steps = options.steps if command.steps is None else command.steps
    anchor_every = options.anchor_every if command.anchor_every is None else command.anchor_every
    wanted = dataclasses.replace(options, steps=steps, anchor_every=anchor_every)
    options.check_change(wanted, ChunkPlan(None))
    return wanted


def _settings(command: Command) -> dict[str, Any]:
    values = {name: getattr(command, name) for name in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}
