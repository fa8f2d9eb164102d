"""Which prompt is in force when: times as people write them, checked, and turned into frames of a stream.

A prompt applies from the first chunk whose first frame lies at or after its time: chunks are edited whole, and none is changed
before it was asked for. Knows nothing of networks or embeddings.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError
from .chunks import ChunkPlan

# (first frame of the stream that it asks for, prompt), in order of time.
FramePrompts = tuple[tuple[int, str], ...]

_TIME = re.compile(r"(?:(?:([0-9]+):)?([0-9]+):)?([0-9]+(?:\.[0-9]+)?)", re.ASCII)
_FORMS = "use seconds (75.5), mm:ss (01:15.5) or hh:mm:ss (00:01:15.5)"
_FILE_FORM = '[{"at": "00:05", "prompt": "turn it to night"}, ...]'


def parse_time(text: str) -> Fraction:
    """Seconds, exactly, of ``75.5``, ``01:15.5`` or ``00:01:15.5``. InputError for anything else.

    Minutes and seconds that follow a colon are below 60.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a time; {_FORMS}")
    hours, minutes, seconds = match[1], match[2], Fraction(match[3])
    if (minutes is not None and seconds >= 60) or (hours is not None and int(minutes) >= 60):
        raise InputError(f"{text!r} is not a time: minutes and seconds after a colon stay below 60; {_FORMS}")
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + seconds


def format_time(seconds: Fraction | float) -> str:
    """``mm:ss.mmm``, with hours in front where there are any."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    clock = f"{minutes:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"
    return f"{hours:02}:{clock}" if hours else clock


@dataclass(frozen=True)
class PromptSchedule:
    """Prompts and when they begin, in seconds from the first frame of the stream.

    ``changes`` are (seconds, prompt). Any order is accepted and put in order of time; InputError for an empty prompt, a
    negative time, and two prompts for one time.
    """

    changes: tuple[tuple[Fraction, str], ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.changes, key=lambda change: change[0]))
        for seconds, prompt in ordered:
            if seconds < 0:
                raise InputError(f"a prompt begins at {float(seconds):g} seconds; times count from 0, the first frame")
            if not prompt.strip():
                raise InputError(f"the prompt at {format_time(seconds)} is empty; say what to do from there on")
        for (first, _), (second, _) in itertools.pairwise(ordered):
            if first == second:
                raise InputError(f"two prompts begin at {format_time(first)}; keep one of them, or move one")
        object.__setattr__(self, "changes", ordered)

    @classmethod
    def parse(cls, pairs: Iterable[Sequence[str]]) -> PromptSchedule:
        """From (time, prompt) pairs as a command line gives them; times as in :func:`parse_time`."""
        return cls(tuple((parse_time(time), prompt) for time, prompt in pairs))

    @classmethod
    def load(cls, path: str | Path) -> PromptSchedule:
        """From a JSON file, a list of objects with ``at`` (a time as text, or seconds) and ``prompt``.

        InputError for a file that cannot be read or holds anything else.
        """
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as a prompt schedule ({error}); give a file {_FILE_FORM}"
            ) from error
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path} is not a list of prompts; write {_FILE_FORM}")
        return cls(tuple(_entry(path, number, entry) for number, entry in enumerate(entries, 1)))

    def in_frames(self, frame_rate: Fraction) -> FramePrompts:
        """The first frame at or after each time, for a stream of ``frame_rate`` frames per second, and its prompt."""
        return tuple((math.ceil(seconds * frame_rate), prompt) for seconds, prompt in self.changes)


def _entry(path: str | Path, number: int, entry: Any) -> tuple[Fraction, str]:
    if not isinstance(entry, dict) or set(entry) != {"at", "prompt"} or not isinstance(entry["prompt"], str):
        raise InputError(f"{path}: entry {number} is {json.dumps(entry)[:80]}; each is like {_FILE_FORM[1:-6]}")
    time = entry["at"]
    if isinstance(time, bool) or not isinstance(time, (str, int, float)):
        raise InputError(f"{path}: entry {number} begins at {json.dumps(time)[:80]}, which is not a time; {_FORMS}")
    # Through its decimal digits, 0.1 is a tenth.
    return parse_time(str(time)), entry["prompt"]


def check_frame_prompts(changes: FramePrompts, plan: ChunkPlan) -> None:
    """InputError unless each prompt gets a chunk of the stream.

    Frames must rise; no two prompts may wait for one chunk, and none for a chunk that a stream of known length lacks.
    """
    taken: dict[int, int] = {}
    for frame, prompt in changes:
        if frame < 0 or (taken and frame <= max(taken.values())):
            raise InputError(f"the prompt {prompt!r} begins at frame {frame}; frames of prompts are 0 or more and rise")
        chunk = first_chunk_from(frame, plan)
        if chunk in taken:
            raise InputError(
                f"the prompts that begin at frames {taken[chunk]} and {frame} wait for the same chunk, which begins at frame "
                f"{chunk_start(chunk, plan)}; leave one out, or put {plan.pixel_frames(1)} frames between them"
            )
        if plan.total_chunks is not None and chunk >= plan.total_chunks:
            raise InputError(
                f"the prompt {prompt!r} begins at frame {frame}, after the last chunk of the clip has begun (frame "
                f"{chunk_start(plan.total_chunks - 1, plan)} of {plan.total_frames}); let it begin there or earlier"
            )
        taken[chunk] = frame


def chunk_start(chunk: int, plan: ChunkPlan) -> int:
    """First pixel frame of ``chunk``."""
    return 0 if chunk == 0 else plan.pixel_frames(0) + (chunk - 1) * plan.pixel_frames(1)


def first_chunk_from(frame: int, plan: ChunkPlan) -> int:
    """The first chunk whose first frame is ``frame`` or later."""
    if frame <= 0:
        return 0
    return 1 + max(0, -(-(frame - plan.pixel_frames(0)) // plan.pixel_frames(1)))


def place_at(changes: FramePrompts, first_frame: int) -> int:
    """How many of ``changes`` have begun for a chunk that starts with ``first_frame``; the last of them is in force."""
    return bisect_right([frame for frame, _ in changes], first_frame)
