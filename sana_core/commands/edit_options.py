"""Which options of ``edit`` belong to which mode, and what its prompts are."""

from __future__ import annotations

import argparse
from fractions import Fraction

from ..errors import InputError
from ..models.prompt import prompt_text
from ..streaming.prompt_schedule import FramePrompts, PromptSchedule, format_time
from ..weights.hub import resolve_uri

LONG_STREAMING, BIDIRECTIONAL_SHORT = "long_streaming", "bidirectional_short"
# Options that one mode alone can honour.
OWN_OPTIONS = {
    LONG_STREAMING: (
        "num_cached_blocks",
        "sink_token",
        "noise",
        "prompt_at",
        "prompt_file",
        "anchor_every",
        "start_step",
        "max_sink_distance",
        "save_state",
        "resume",
        "vae_device",
        "overlap",
        "cuda_graph",
        "compile",
    ),
    BIDIRECTIONAL_SHORT: ("tiles",),
}


def flag(name: str) -> str:
    """The option as it is typed: ``--save-state`` for ``save_state``."""
    return f"--{name.replace('_', '-')}"


def check_mode(options: argparse.Namespace) -> None:
    """InputError for an option that the mode cannot honour."""
    for mode, names in OWN_OPTIONS.items():
        for name in names:
            value = getattr(options, name)
            if mode != options.mode and value is not None:
                typed = f"--no-{name.replace('_', '-')}" if value is False else flag(name)
                raise InputError(f"{typed} goes with --mode {mode}; leave it out with --mode {options.mode}")


def notices(options: argparse.Namespace, guided: bool, built_in: bool) -> list[str]:
    """One line for each option that was given and changes nothing: ``guided`` and ``built_in`` say how the run is."""
    found = []
    if options.negative_prompt and not guided:
        found.append("--negative-prompt changes nothing without guidance; add --cfg-scale above 1")
    if options.download and built_in:
        found.append("--download fetched no weights: nano is built in")
    return found


def with_local_input(options: argparse.Namespace) -> argparse.Namespace:
    """``options`` with the path of the clip as ``input``: an ``hf://`` address is fetched if it is not in the cache."""
    return argparse.Namespace(**{**vars(options), "input": resolve_uri(options.input)})


def given_schedule(options: argparse.Namespace) -> PromptSchedule | None:
    """The prompts of ``--prompt-at`` or ``--prompt-file``; None where neither is given.

    InputError for both, for what cannot be read, and beside ``--resume``: a saved stream has its own.
    """
    if options.prompt_at is None and options.prompt_file is None:
        return None
    name = "--prompt-at" if options.prompt_file is None else "--prompt-file"
    if options.prompt_at is not None and options.prompt_file is not None:
        raise InputError(
            f"--prompt-at and --prompt-file {options.prompt_file} both say what comes when; use one of them"
        )
    if options.resume:
        raise InputError(f"{name} goes with a new stream; with --resume the saved one goes on, and --prompt changes it")
    if options.prompt_file is not None:
        return PromptSchedule.load(options.prompt_file)
    return PromptSchedule.parse(options.prompt_at)


def given_prompts(options: argparse.Namespace, rate: Fraction) -> tuple[str | None, FramePrompts]:
    """The prompt of the first frame, None where none is given, and those that follow, as the text encoder takes them.

    ``rate`` is that of the edited video, whose times a schedule tells. InputError for prompts that do not make sense, or
    where the first frame has none though others have.
    """
    schedule = given_schedule(options)
    first, later = options.prompt, [] if schedule is None else list(schedule.changes)
    if later and later[0][0] == 0:
        if first is not None:
            raise InputError(
                "--prompt and a prompt that begins at 00:00 are both for the first frame; leave one of them out"
            )
        first = later.pop(0)[1]
    if later and first is None:
        raise InputError(
            f"the first prompt begins at {format_time(later[0][0])}; say by --prompt what to do from the first frame on"
        )
    score = options.motion_score or 0
    frames = PromptSchedule(tuple(later)).in_frames(rate)
    return (
        None if first is None else _scored(first, score),
        tuple((frame, _scored(prompt, score)) for frame, prompt in frames),
    )


def _scored(prompt: str, motion_score: int) -> str:
    return prompt_text(prompt, motion_score) if motion_score else prompt
