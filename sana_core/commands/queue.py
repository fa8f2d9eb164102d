"""``queue``: every clip of a folder with every prompt of a file, on ComfyUI servers."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..paths import check_folder, check_target
from ..queueing.batch import Batch
from ..queueing.client import Client, check_headers, check_library, check_url, open_session, without_password
from ..queueing.jobs import Job, find_clips, make_jobs, read_prompts
from ..queueing.journal import Journal
from ..queueing.results import write_csv
from ..queueing.workflow import Workflow, load_workflow

# Until a run without servers ends, where no time is given.
SERVER_WAIT = 600.0
# Between two writings of the table while jobs come to an end.
CSV_SECONDS = 2.0


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_FAILED, EXIT_OK

    check_library()
    check_servers(options)
    workflow = load_workflow(options.workflow, options.video_input, options.prompt_input, options.seed)
    clips, prompts = find_clips(options.video_dir), read_prompts(options.prompts)
    jobs = make_jobs(clips, prompts)
    folder, table = make_places(options)
    journal_file = table.with_name(f"{table.stem}.journal.jsonl")
    with Journal(journal_file, workflow=workflow.fingerprint(), client_id=uuid.uuid4().hex) as journal:
        journal.restore(jobs, folder)
        done = sum(job.status == "done" for job in jobs)
        say(f"{len(clips)} clips x {len(prompts)} prompts = {len(jobs)} jobs, {done} of them done before")
        with Progress(jobs, table) as progress:
            if done < len(jobs):
                asyncio.run(work(options, jobs, workflow, journal, folder, progress))
    print(summary(jobs, table))
    return EXIT_OK if all(job.status == "done" for job in jobs) else EXIT_FAILED


async def work(
    options: argparse.Namespace, jobs: list[Job], workflow: Workflow, journal: Journal, folder: Path, progress: Progress
) -> None:
    async with open_session(check_headers(options.header)) as session:
        clients = [Client(session, check_url(url)) for url in options.server]
        await Batch(
            jobs,
            workflow,
            clients,
            journal,
            folder,
            server_wait=options.server_wait or SERVER_WAIT,
            start_wait=options.server_wait or 0.0,
            say=progress.say,
            on_change=progress.update,
        ).run()


def say(text: str) -> None:
    """To standard error: standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def check_servers(options: argparse.Namespace) -> None:
    """InputError for addresses and headers that cannot be."""
    urls = [without_password(check_url(url)) for url in options.server]
    if len(set(urls)) < len(urls):
        raise InputError(f"--server {max(urls, key=urls.count)} is given twice; name each server once")
    check_headers(options.header)
    if options.server_wait is not None and not 0 < options.server_wait < float("inf"):
        raise InputError(f"--server-wait {options.server_wait:g} is not a time; use a number of seconds above 0")


def make_places(options: argparse.Namespace) -> tuple[Path, Path]:
    """The folder of results, made if it is not there, and the table. InputError where they cannot be written."""
    folder: Path = options.output_dir or Path("runs") / options.workflow.stem
    if folder.resolve() == options.video_dir.resolve():
        raise InputError(
            f"--output-dir {folder} is the folder of the clips; results would be edited in turn: use another"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {folder} cannot be made ({error.strerror}); use another") from error
    table = options.csv or folder / "results.csv"
    check_folder(folder / table.name)
    check_target(table)
    return folder, table


def summary(jobs: list[Job], table: Path) -> str:
    counts = {status: sum(job.status == status for job in jobs) for status in ("done", "failed")}
    left = len(jobs) - sum(counts.values())
    words = f"{counts['done']} done, {counts['failed']} failed"
    return f"{words}, {left} left: {table}" if left else f"{words}: {table}"


class Progress:
    """Lines and, at a terminal, a bar on standard error; keeps the table up to date."""

    def __init__(self, jobs: list[Job], table: Path) -> None:
        self._jobs, self._table = jobs, table
        self._written = (time.monotonic(), -1)
        self._bar: Any = None

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        style = "{n:.1f}/{total_fmt} jobs |{bar}| {elapsed}{postfix}"
        # None: no bar where there is no terminal.
        self._bar = tqdm(total=len(self._jobs), bar_format=style, disable=None, file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        write_csv(self._table, self._jobs)

    def say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def update(self) -> None:
        """After a job has ended or gone on."""
        ended = sum(job.ended for job in self._jobs)
        self._bar.n = ended + sum(job.progress for job in self._jobs if job.status == "running")
        self._bar.refresh()
        then, count = self._written
        if ended != count and time.monotonic() - then >= CSV_SECONDS:
            write_csv(self._table, self._jobs)
            self._written = (time.monotonic(), ended)
