"""Jobs and servers brought together: who gets what, and what happens when something breaks."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from .client import Client, QueueState, RefusedError, UnreachableError
from .jobs import Job
from .journal import Journal
from .server import JobError, LostError, Server, run_seconds
from .workflow import Workflow

# One that runs and one that waits, so that a server is never idle and loses little when it goes away.
JOBS_PER_SERVER = 2
MAX_FAILURES = 2
# A job that takes its server down with it must not go on doing so.
MAX_LOSSES = 3
FIRST_DELAY, LAST_DELAY = 1.0, 30.0
RECONNECT_SECONDS = 0.2
TICK_SECONDS = 1.0
CANCEL_SECONDS = 10.0


class Batch:
    """Runs jobs on servers until each has ended, or no server has answered for long.

    A job goes to the server with the shortest queue. One that fails is tried once more, on another server where there is
    one that is up. When a server goes away its jobs wait again, for any server; what it still has of them when it is back
    is taken over, or cancelled if another server has begun it.
    """

    def __init__(
        self,
        jobs: list[Job],
        workflow: Workflow,
        clients: list[Client],
        journal: Journal,
        folder: Path,
        *,
        server_wait: float,
        start_wait: float,
        say: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        """``jobs`` as the journal restored them. ``folder``: for results. ``server_wait``: seconds without any server,
        ``start_wait``: the same before one has answered at all.

        say: takes a line for the user. on_change: called when a job has ended or gone on.
        """
        self.jobs = jobs
        self.servers = [Server(client, journal.client_id, self._on_progress) for client in clients]
        self._workflow, self._journal, self._folder = workflow, journal, folder
        self._start_wait = start_wait
        self._server_wait, self._say, self._on_change = server_wait, say, on_change
        self._pool = [job for job in jobs if not job.ended]
        # Prompts that a server may still have, by its address.
        self._strays: defaultdict[str, dict[str, Job]] = defaultdict(dict)
        for job in self._pool:
            if job.status == "running":
                self._strays[job.server][job.prompt_id] = job
                job.status = "waiting"
        self._by_prompt: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone: set[Server] = set()
        # Whether any server has taken the workflow; those that found fault with it, whatever the job.
        self._accepted = False
        self._refusing: set[Server] = set()
        self._wake = asyncio.Event()
        self._last_up = time.monotonic()

    async def run(self) -> None:
        """Works until the end. InputError if no server can be used; when stopped, takes back what servers have of ours."""
        await self._check_servers()
        self._last_up = time.monotonic()
        keepers = {asyncio.create_task(self._keep(server)) for server in self.servers}
        try:
            while not all(job.ended for job in self.jobs) and self._patient():
                self._hand_out()
                await self._next_event(keepers)
        finally:
            await _end(self._tasks)
            await _end(keepers)
            await self._cancel_all()

    async def _check_servers(self) -> None:
        """Returns when a server answers. InputError if none does in time, or one cannot be used."""
        end, delay = time.monotonic() + self._start_wait, FIRST_DELAY
        told = False
        while len(silent := await self._find_silent()) == len(self.servers):
            texts = ", ".join(f"{server.url} ({error})" for server, error in silent.items())
            left = end - time.monotonic()
            if left <= 0:
                raise InputError(f"no server answers: {texts}; start ComfyUI there, or correct --server")
            if not told:
                self._say(f"no server answers yet: {texts}; it is waited for")
            told = True
            await asyncio.sleep(min(delay, left))
            delay = min(2 * delay, LAST_DELAY)
        self._gone.update(silent)
        for server, error in silent.items():
            self._say(f"{server.url} ({error}) does not answer; it is tried again and again")

    async def _find_silent(self) -> dict[Server, UnreachableError]:
        """Servers that do not answer. InputError for one that cannot be used."""
        checks = [server.client.check(self._workflow.classes()) for server in self.servers]
        errors = await asyncio.gather(*checks, return_exceptions=True)
        silent = {}
        for server, error in zip(self.servers, errors, strict=True):
            if isinstance(error, RefusedError):
                raise InputError(f"--server {server.url}: {error}") from error
            if isinstance(error, UnreachableError):
                silent[server] = error
            elif isinstance(error, BaseException):
                raise error
        return silent

    def _patient(self) -> bool:
        """Whether a server is up, or was not long ago."""
        if any(server.up for server in self.servers):
            self._last_up = time.monotonic()
        return time.monotonic() - self._last_up < self._server_wait

    async def _next_event(self, keepers: set[asyncio.Task[None]]) -> None:
        """Waits until something has happened; raises what a task raised."""
        wake = asyncio.create_task(self._wake.wait())
        try:
            done, _ = await asyncio.wait(
                {wake, *keepers, *self._tasks}, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            wake.cancel()
        self._wake.clear()
        for task in done:
            self._tasks.discard(task)
            task.result()

    # Servers

    async def _keep(self, server: Server) -> None:
        """Follows a server, and comes back to it when it has gone away."""
        delay = FIRST_DELAY
        while True:
            connected = False

            async def on_up(state: QueueState) -> None:
                nonlocal connected
                await self._reconcile(server, state)
                connected = True
                if server in self._gone:
                    self._gone.remove(server)
                    self._say(f"{server.url} is there")

            try:
                await server.client.check(self._workflow.classes())
                await server.follow(on_up, self._wake.set)
            except (UnreachableError, RefusedError) as error:
                if connected:
                    # It may be the connection alone that broke.
                    delay = FIRST_DELAY
                    await asyncio.sleep(RECONNECT_SECONDS)
                    continue
                server.give_up()
                server.tried = True
                self._wake.set()
                if server not in self._gone:
                    self._gone.add(server)
                    self._say(f"{server.url} has gone away ({error}); its jobs wait for a server")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)

    async def _reconcile(self, server: Server, state: QueueState) -> None:
        """Takes over what the server has of jobs that wait, and cancels what it has of others."""
        unwanted = set()
        for prompt_id, job in self._strays.pop(server.url, {}).items():
            known = prompt_id in state.running | state.pending
            known = known or await server.client.history(prompt_id) is not None
            if known and job.status == "waiting":
                self._pool.remove(job)
                job.prompt_id, job.losses = prompt_id, 0
                server.follow_prompt(prompt_id)
                self._start(job, server, adopted=True)
            elif known:
                unwanted.add(prompt_id)
        if unwanted:
            await server.client.cancel(unwanted)

    async def _cancel_all(self) -> None:
        """Takes what has not ended back from the servers; what one does not answer for is asked for by the next run."""
        await asyncio.gather(*(self._cancel(server) for server in self.servers))

    async def _cancel(self, server: Server) -> None:
        jobs = {job.prompt_id: job for job in self.jobs if job.status == "running" and job.server == server.url}
        jobs.pop("", None)
        try:
            cancelled = await asyncio.wait_for(server.client.cancel(set(jobs)), CANCEL_SECONDS) if jobs else set()
        except (UnreachableError, RefusedError, asyncio.TimeoutError):
            return
        for prompt_id in cancelled:
            self._journal.returned(jobs[prompt_id], "stopped")

    # Jobs

    def _hand_out(self) -> None:
        # What servers have of an earlier run is known only after they were asked.
        if not all(server.tried for server in self.servers):
            return
        for job in list(self._pool):
            if not any(server.up and server.jobs < JOBS_PER_SERVER for server in self.servers):
                return
            server = self._choose(job)
            if server is not None:
                self._pool.remove(job)
                self._start(job, server)

    def _choose(self, job: Job) -> Server | None:
        """The least loaded server that may have the job; None to wait for a better one than those that are free."""
        up = [server for server in self.servers if server.up]
        fit = [server for server in up if server.url != job.avoid] or up
        least = min(server.load for server in fit)
        free = [server for server in fit if server.jobs < JOBS_PER_SERVER and server.load <= least + 1]
        return min(free, key=lambda server: server.load, default=None)

    def _start(self, job: Job, server: Server, *, adopted: bool = False) -> None:
        job.status, job.server, job.progress = "running", server.url, 0.0
        server.jobs += 1
        self._tasks.add(asyncio.create_task(self._attempt(job, server, adopted)))

    async def _attempt(self, job: Job, server: Server, adopted: bool) -> None:
        """Takes a job as far as it goes on a server."""
        began = time.monotonic()
        try:
            if not adopted:
                await self._queue(job, server)
            self._accepted = True
            self._by_prompt[job.prompt_id] = job
            entry = await server.finished(job.prompt_id)
            job.outputs = await server.fetch(entry, self._folder, job.name)
        except LostError:
            self._lose(job, server)
        except UnreachableError as error:
            await self._check_lost(job, server, error)
        except JobError as error:
            self._check_refusal(job, server, error)
            self._fail(job, server, str(error))
        else:
            job.status, job.error = "done", ""
            job.seconds = run_seconds(entry) or time.monotonic() - began
            self._journal.done(job)
            self._say(f"{self._count()} {job}: done in {job.seconds:.1f} s on {server.url}: {', '.join(job.outputs)}")
        finally:
            self._by_prompt.pop(job.prompt_id, None)
            server.jobs -= 1
            self._on_change()
            self._wake.set()

    async def _queue(self, job: Job, server: Server) -> None:
        job.prompt_id = ""
        name = await server.send_clip(job.clip)
        job.prompt_id = str(uuid.uuid4())
        job.attempts += 1
        # Before the server has it: a prompt that is in the journal and nowhere else does no harm.
        self._journal.queued(job)
        prompt_id = await server.submit(self._workflow.filled(name, job.prompt), job.prompt_id)
        if prompt_id != job.prompt_id:
            job.prompt_id = prompt_id
            self._journal.queued(job)

    async def _check_lost(self, job: Job, server: Server, error: UnreachableError) -> None:
        """A request broke off: was it the server, or the request alone?"""
        try:
            await server.client.cancel({job.prompt_id})
        except (UnreachableError, RefusedError):
            self._lose(job, server)
        else:
            self._fail(job, server, f"the connection to the server broke: {error}")

    def _check_refusal(self, job: Job, server: Server, error: JobError) -> None:
        """InputError where every server that answers refuses the workflow, and for nothing that is the job's own.

        ComfyUI checks a node by its own values alone, so only the nodes of the clip and of the prompt may differ between jobs.
        """
        if error.nodes is None or error.nodes & {self._workflow.video.node, self._workflow.prompt.node}:
            return
        self._refusing.add(server)
        if not self._accepted and self._refusing.issuperset(set(self.servers) - self._gone):
            job.error = str(error)
            self._wait_again(job, job.error)
            raise InputError(f"--server {server.url} refuses the workflow: {error}") from error

    def _lose(self, job: Job, server: Server) -> None:
        """Back to the pool, unless the job seems to be what ends servers."""
        if job.prompt_id:
            self._strays[server.url][job.prompt_id] = job
        job.losses += bool(job.prompt_id) and job.prompt_id == server.current
        if job.losses >= MAX_LOSSES:
            self._give_up(job, f"its server went away {job.losses} times while it ran")
        else:
            self._wait_again(job, "server gone")

    def _fail(self, job: Job, server: Server, reason: str) -> None:
        job.failures += 1
        job.error, job.avoid = reason, server.url
        if job.failures >= MAX_FAILURES:
            self._give_up(job, reason)
            return
        self._say(f"{job}: failed on {server.url}, tried once more: {reason}")
        self._wait_again(job, reason)

    def _give_up(self, job: Job, reason: str) -> None:
        job.status, job.error = "failed", reason
        self._journal.failed(job)
        self._say(f"{self._count()} {job}: failed on {job.server}: {reason}")

    def _wait_again(self, job: Job, reason: str) -> None:
        job.status, job.progress = "waiting", 0.0
        self._journal.returned(job, reason)
        self._pool.insert(0, job)

    def _count(self) -> str:
        return f"[{sum(job.ended for job in self.jobs)}/{len(self.jobs)}]"

    def _on_progress(self, prompt_id: str, fraction: float) -> None:
        job = self._by_prompt.get(prompt_id)
        if job is not None and fraction > job.progress:
            job.progress = fraction
            self._on_change()


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
