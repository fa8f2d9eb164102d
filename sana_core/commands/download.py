"""``download``: published weights from the hub, after sizes were shown and a question was answered."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..weights.hub import (
    Component,
    DownloadPlan,
    HubFile,
    check_access,
    destination,
    download,
    free_bytes,
    in_units,
    plan_download,
    remaining,
    storage,
)

# A plan, as it was named, with the files that are still to come.
Planned = tuple[str, DownloadPlan, tuple[HubFile, ...]]

_OPTIONS: dict[Component, str] = {"model": "--model", "vae": "--vae", "text-encoder": "--text-encoder"}
_SHORT_MODEL = "bidirectional-2b"


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_FAILED, EXIT_OK, EXIT_STOPPED

    planned = make_plans(options.names, options.to)
    needed = sum(file.size for _, _, missing in planned for file in missing)
    free = free_bytes(storage(options.to))
    say(listing(planned, options.to, needed, free))
    if needed > free:
        raise InputError(
            f"{in_units(needed)} are to be downloaded, {in_units(free)} are free in {storage(options.to)}; free some, or "
            "choose another disk with --to or HF_HOME"
        )
    if needed and not (options.yes or confirmed(needed, options.to)):
        say("nothing was downloaded")
        return EXIT_FAILED
    try:
        paths = fetch(planned, options.to)
    except KeyboardInterrupt:
        say("stopped; the same command goes on, and files that are whole are not fetched again")
        return EXIT_STOPPED
    if not needed:
        say("nothing to download: every file is there")
    use = edit_options(planned, paths)
    print(json.dumps(report(planned, paths, use), indent=2) if options.json else in_words(paths, use))
    return EXIT_OK


def say(text: str) -> None:
    """To standard error: standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def make_plans(names: Sequence[str], to: Path | None) -> list[Planned]:
    """What to fetch for each name, given once or several times. InputError for what the hub would not give."""
    if to is not None and to.exists() and not to.is_dir():
        raise InputError(f"--to {to} is not a folder; name one, it is made if it is not there")
    plans = [(name, plan_download(name)) for name in dict.fromkeys(names)]
    planned = [(name, plan, remaining(plan, to)) for name, plan in plans]
    for _, plan, missing in planned:
        if missing:
            check_access(plan)
    return planned


def listing(planned: Sequence[Planned], to: Path | None, needed: int, free: int) -> str:
    lines = []
    for name, plan, missing in planned:
        lines.append(
            f"{name if name == str(plan.address) else f'{name}: {plan.address}'}\n  to {destination(plan, to)}"
        )
        width = max(len(file.path) for file in plan.files)
        for file in plan.files:
            lines.append(f"  {file.path:{width}} {in_units(file.size):>12}{'' if file in missing else '  is there'}")
    total = sum(plan.total_bytes for _, plan, _ in planned)
    lines.append(f"{in_units(needed)} of {in_units(total)} to download, {in_units(free)} free")
    return "\n".join(lines)


def confirmed(needed: int, to: Path | None) -> bool:
    """What the user answers. InputError where nobody can."""
    if not sys.stdin.isatty():
        raise InputError(f"{in_units(needed)} are to be downloaded and there is no terminal to ask at; add --yes")
    print(f"Download {in_units(needed)} to {storage(to)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def fetch(planned: Sequence[Planned], to: Path | None) -> list[Path]:
    """Downloads what is missing, with a progress bar at a terminal; the file or folder of each plan."""
    from tqdm import tqdm

    paths = []
    for name, plan, _ in planned:
        # None: no bar where there is no terminal.
        with tqdm(desc=name, total=plan.total_bytes, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:

            def show(file: str, done: int, _: int, bar: Any = bar) -> None:
                bar.set_postfix_str(file.rpartition("/")[2], refresh=False)
                bar.update(done - bar.n)

            paths.append(download(plan, to, show))
    return paths


def edit_options(planned: Sequence[Planned], paths: Sequence[Path]) -> list[str]:
    """The options of ``edit`` that use what was downloaded, as words."""
    words = []
    for (name, plan, _), path in zip(planned, paths, strict=True):
        words += ["--mode", "bidirectional_short"] if name == _SHORT_MODEL else []
        words += [_OPTIONS[plan.component], str(path)] if plan.component else []
    return words


def in_words(paths: Sequence[Path], use: Sequence[str]) -> str:
    if not use:
        return "\n".join(map(str, paths))
    return f"python -m sana_streaming edit IN OUT --prompt ... {shlex.join(use)}"


def report(planned: Sequence[Planned], paths: Sequence[Path], use: Sequence[str]) -> dict[str, Any]:
    downloads = [
        {
            "name": name,
            "address": str(plan.address),
            "commit": plan.commit,
            "path": str(path),
            "bytes": plan.total_bytes,
            "files": [file.path for file in plan.files],
            "fetched": [file.path for file in missing],
        }
        for (name, plan, missing), path in zip(planned, paths, strict=True)
    ]
    return {"downloads": downloads, "edit_options": list(use)}
