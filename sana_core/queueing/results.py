"""The table of results."""

from __future__ import annotations

import csv
from pathlib import Path

from .jobs import Job

COLUMNS = ("clip", "prompt", "server", "status", "attempts", "seconds", "output", "error")


def write_csv(file: Path, jobs: list[Job]) -> None:
    """One row a job in the order of the batch, replacing the file as a whole. Several outputs are divided by ``;``."""
    part = file.with_name(file.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for job in jobs:
            seconds = "" if job.seconds is None else f"{job.seconds:.1f}"
            status = job.status if job.ended else "waiting"
            outputs = ";".join(job.outputs)
            writer.writerow(
                (
                    job.key.clip,
                    job.prompt,
                    job.server,
                    status,
                    job.attempts,
                    seconds,
                    outputs,
                    " ".join(job.error.split()),
                )
            )
    part.replace(file)
