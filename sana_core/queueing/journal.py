"""What has happened, as JSON lines that are only ever added to; a run that was cut off goes on from there."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import InputError
from .jobs import Job, JobKey

VERSION = 1


class Journal:
    """The file of one batch, opened for this run alone.

    Events: ``begin`` (workflow, client_id) first, then of jobs ``queued`` (server, prompt_id, attempts), ``done`` (outputs,
    seconds), ``failed`` (error) and ``returned`` (it waits again). After a ``queued`` that is the last of a job, its server
    knows more.

    client_id: by which the servers know this batch, the same in every run.
    """

    def __init__(self, file: Path, *, workflow: str, client_id: str) -> None:
        """Opens or makes the file. InputError if it is damaged, in use, or of another ``workflow`` (a fingerprint)."""
        self.file = file
        self.client_id = client_id
        self._events: list[dict[str, Any]] = []
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            _lock(self._descriptor, file)
            self._read(workflow)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def restore(self, jobs: list[Job], folder: Path) -> None:
        """Gives jobs what earlier runs made of them; those whose results are not in ``folder`` any more wait anew."""
        by_key = {job.key: job for job in jobs}
        for event in self._events:
            job = by_key.get(JobKey(event.get("clip", ""), event.get("bytes", 0), event.get("prompt", "")))
            if job is not None:
                _apply(job, event)
        for job in jobs:
            if job.status == "done" and not all((folder / name).is_file() for name in job.outputs):
                job.status, job.outputs, job.seconds = "waiting", [], None
            if job.status == "failed":
                job.status = "waiting"

    def queued(self, job: Job) -> None:
        self._write("queued", job, server=job.server, prompt_id=job.prompt_id, attempts=job.attempts)

    def done(self, job: Job) -> None:
        self._write("done", job, server=job.server, outputs=job.outputs, seconds=job.seconds)

    def failed(self, job: Job) -> None:
        self._write("failed", job, server=job.server, error=job.error)

    def returned(self, job: Job, reason: str) -> None:
        self._write("returned", job, server=job.server, reason=reason)

    def _write(self, event: str, job: Job | None, **facts: Any) -> None:
        """One line by one write, on the disk before the call returns."""
        record: dict[str, Any] = {"event": event, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        if job is not None:
            record |= {"clip": job.key.clip, "bytes": job.key.size, "prompt": job.key.prompt}
        os.write(self._descriptor, (json.dumps(record | facts, ensure_ascii=False) + "\n").encode())
        os.fsync(self._descriptor)

    def _read(self, workflow: str) -> None:
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        # The end of a line that a crash cut off.
        os.ftruncate(self._descriptor, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                event = json.loads(line)
                event["event"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.file}: line {number} is not of a journal; move the file away, or use another --csv"
                ) from error
            self._events.append(event)
        if len(self._events) < 2:
            # Nothing was queued yet, so it binds nobody.
            self._events.clear()
            os.ftruncate(self._descriptor, 0)
            self._write("begin", None, version=VERSION, workflow=workflow, client_id=self.client_id)
            return
        begin = self._events[0]
        if begin.get("version") != VERSION or begin.get("workflow") != workflow:
            raise InputError(
                f"{self.file} is of another workflow or --seed; give this batch an --output-dir of its own, or remove the file"
            )
        self.client_id = begin["client_id"]


def _apply(job: Job, event: dict[str, Any]) -> None:
    kind = event["event"]
    job.server = event.get("server", job.server)
    if kind == "queued":
        job.status, job.prompt_id, job.attempts = "running", event["prompt_id"], event["attempts"]
    elif kind == "done":
        job.status, job.outputs, job.seconds, job.error = "done", event["outputs"], event["seconds"], ""
    elif kind == "failed":
        job.status, job.error = "failed", event["error"]
    elif kind == "returned":
        job.status, job.prompt_id = "waiting", ""


def _lock(descriptor: int, file: Path) -> None:
    """Keeps another run out for as long as this process holds the file. Where the system cannot, nothing is done."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{file} is in use by another run; wait for it, or use another --csv") from error
    except OSError:
        # Some network file systems have no locks.
        return
