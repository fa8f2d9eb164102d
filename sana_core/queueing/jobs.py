"""The work: every clip with every prompt, and what became of each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import InputError

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
# Bytes of a clip's and a prompt's part in a file name; file systems allow 255 in all.
NAME_BYTES = 100

# waiting: for a server; running: a server has it; done, failed: ended.
Status = Literal["waiting", "running", "done", "failed"]


class JobKey(NamedTuple):
    """What a job is known by in the journal: file name and size of the clip, and the prompt."""

    clip: str
    size: int
    prompt: str


@dataclass
class Job:
    """One clip with one prompt.

    name: of the result, without folder and suffix. attempts: how often it was queued, in all runs. failures, losses: in this
    run, how often it failed, and how often its server went away while it ran. avoid: the server that it failed on.
    seconds: that the server worked. outputs: files in the folder of results. progress: 0 to 1 of the node that runs.
    """

    clip: Path
    key: JobKey
    name: str
    status: Status = "waiting"
    server: str = ""
    prompt_id: str = ""
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    avoid: str = ""
    seconds: float | None = None
    outputs: list[str] = field(default_factory=list)
    error: str = ""
    progress: float = 0.0

    @property
    def prompt(self) -> str:
        return self.key.prompt

    @property
    def ended(self) -> bool:
        return self.status in ("done", "failed")

    def __str__(self) -> str:
        return f"{self.key.clip}, {self.prompt!r}"


def find_clips(folder: Path) -> list[Path]:
    """The video files of a folder by name, without subfolders. InputError if there are none."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"--video-dir {folder}: cannot be read ({error.strerror}); name a folder of clips") from error
    clips = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES and not f.name.startswith(".") and f.is_file()]
    if not clips:
        raise InputError(f"--video-dir {folder} has no video file; put some there: {', '.join(VIDEO_SUFFIXES)}")
    return clips


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file, each once: a JSON list (.json), or one a line, where empty lines and # lines are left out."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--prompts {file}: cannot be read ({error.strerror}); name a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    prompts = _from_json(text, file) if file.suffix.lower() == ".json" else text.splitlines()
    kept = [prompt.strip() for prompt in prompts]
    kept = [prompt for prompt in kept if prompt and (file.suffix.lower() == ".json" or not prompt.startswith("#"))]
    if not kept:
        raise InputError(f"--prompts {file} holds no prompt; write one a line")
    return list(dict.fromkeys(kept))


def _from_json(text: str, file: Path) -> list[str]:
    try:
        prompts = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--prompts {file} is not JSON ({error}); write a list of texts, or one a line in a .txt"
        ) from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f'--prompts {file} is not a list of texts; write ["...", "..."]')
    return prompts


def make_jobs(clips: list[Path], prompts: list[str]) -> list[Job]:
    """Every clip with every prompt, clip by clip, with names that differ on every file system."""
    jobs = [
        Job(clip, JobKey(clip.name, clip.stat().st_size, prompt), f"{_cut(clip.stem)}__{_cut(_words(prompt))}")
        for clip in clips
        for prompt in prompts
    ]
    counts = Counter(job.name.casefold() for job in jobs)
    for job in jobs:
        if counts[job.name.casefold()] > 1:
            job.name += f"_{hashlib.sha256(repr((job.key.clip, job.prompt)).encode()).hexdigest()[:8]}"
    return jobs


def _words(prompt: str) -> str:
    """Letters and digits of any script, all else as one hyphen."""
    return "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split()) or "prompt"


def _cut(text: str) -> str:
    return text.encode()[:NAME_BYTES].decode(errors="ignore")
