"""What a live stream can be told while it runs, and what it says about itself. Knows nothing of how either travels."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from ..errors import InputError
from .compare import COMPARES, Compare

# A message is a prompt and a few numbers.
MAX_BYTES = 16_384
MAX_PROMPT = 4000
MAX_STEPS = 100
MAX_ANCHOR = 1_000_000

Verb = Literal["set", "pause", "resume", "reset", "stop", "state"]
VERBS = get_args(Verb)
Status = Literal["connecting", "running", "paused", "reconnecting", "stopped"]


@dataclass(frozen=True)
class Command:
    """``verb``: ``set`` changes what is not None, from the next chunk on; the others speak for themselves.

    id: given back with the answer, so that who asks knows to what.
    """

    verb: Verb
    prompt: str | None = None
    steps: int | None = None
    anchor_every: int | None = None
    compare: Compare | None = None
    id: str | int | None = None


SETTINGS = ("prompt", "steps", "anchor_every", "compare")


@dataclass
class LiveState:
    """All there is to know of a live stream at a moment: what one message says.

    status: ``connecting`` until the first frame comes, ``running``, ``paused``, ``reconnecting``, ``stopped``. text: why.
    prompt, steps, anchor_every, compare: in force. pending: settings that come with the next chunk. chunk: of the next chunk
    in the stream, from 0. streams: how many streams there were: a reset begins another.
    first_frames, chunk_frames: that the first chunk and every other takes in. frames: counts. fps: lately. latency: in seconds,
    from capture to output, lately (p50, p95) and ever (max), a ``bound`` on it, and the ``delay`` of picture and sound.
    queue: frames that wait. memory: bytes.
    """

    status: Status = "connecting"
    text: str = ""
    prompt: str = ""
    steps: int = 0
    anchor_every: int = 0
    compare: Compare = "off"
    late: str = ""
    pending: dict[str, Any] = field(default_factory=dict)
    chunk: int = 0
    streams: int = 0
    first_frames: int = 0
    chunk_frames: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Any] = field(default_factory=dict)
    fps: dict[str, float] = field(default_factory=dict)
    latency: dict[str, float | None] = field(default_factory=dict)
    queue: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "state", **dataclasses.asdict(self)}


def parse_command(message: str | bytes) -> Command:
    """The command of a JSON message. InputError, one line, for anything that is none."""
    size = len(message.encode() if isinstance(message, str) else message)
    if size > MAX_BYTES:
        raise InputError(f"a message of {size} bytes is too long; use {MAX_BYTES} at most")
    try:
        values = json.loads(message)
    except (ValueError, RecursionError):
        raise InputError('the message is no JSON; send an object such as {"command": "pause"}') from None
    if not isinstance(values, dict):
        raise InputError('the message is no object; send one such as {"command": "pause"}')
    verb = values.pop("command", None)
    if verb not in VERBS:
        raise InputError(f"command {_short(verb)} is unknown; use {', '.join(VERBS)}")
    identity = values.pop("id", None)
    if isinstance(identity, bool) or not isinstance(identity, str | int | None) or len(str(identity)) > 100:
        raise InputError(f"id {_short(identity)} is no text or whole number of at most 100 characters; use one")
    unknown = [name for name in values if verb != "set" or name not in SETTINGS]
    if unknown:
        allowed = f"it takes {', '.join(SETTINGS)}" if verb == "set" else "it takes nothing but id"
        raise InputError(f"command {verb} knows no {_short(unknown[0])}; {allowed}")
    if verb == "set" and not values:
        raise InputError(f"command set sets nothing; give {', '.join(SETTINGS)}, or some of them")
    return Command(verb=cast(Verb, verb), **{name: _CHECKS[name](value) for name, value in values.items()}, id=identity)


def _prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_PROMPT:
        raise InputError(
            f"prompt {_short(value)} is no text of 1 to {MAX_PROMPT} characters; say what to do to the video"
        )
    if not value.isprintable() and any(not (char.isprintable() or char in "\n\t") for char in value):
        raise InputError(f"prompt {_short(value)} has control characters in it; leave them out")
    return value.strip()


def _number(name: str, low: int, high: int, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} {_short(value)} is out of range; use a whole number from {low} to {high}")
    return value


def _compare(value: Any) -> Compare:
    if value not in COMPARES:
        raise InputError(f"compare {_short(value)} is unknown; use {', '.join(COMPARES)}")
    return cast(Compare, value)


_CHECKS: dict[str, Any] = {
    "prompt": _prompt,
    "steps": lambda value: _number("steps", 1, MAX_STEPS, value),
    "anchor_every": lambda value: _number("anchor_every", 0, MAX_ANCHOR, value),
    "compare": _compare,
}


def accepted(command: Command) -> dict[str, Any]:
    """The answer to a command that will be done; the state says when it is."""
    return {"type": "accepted", "command": command.verb, "id": command.id}


def refused(error: Exception, identity: str | int | None = None) -> dict[str, Any]:
    """The answer to what could not be done."""
    return {"type": "error", "message": " ".join(str(error).split()), "id": identity}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
