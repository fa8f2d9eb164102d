"""One server as the batch sees it: whether it is up, what it has of ours, and how a job ends there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .client import Client, QueueState, RefusedError, ServerFile
from .workflow import Graph

# The websocket says when to look; this is for messages that went missing.
POLL_SECONDS = 5.0
HASH_DIGITS = 12


class JobError(Exception):
    """The server ended a job without a result; the text says why. nodes: as in RefusedError."""

    def __init__(self, words: str, nodes: frozenset[str] | None = None) -> None:
        super().__init__(words)
        self.nodes = nodes


class LostError(Exception):
    """The server went away and has the job no more, or may never be back."""


class Server:
    """Follows one server.

    tried: it has been up once, or could not be reached. up: it answers and its messages are heard. load: prompts in its
    queue of whoever, those of ours that are on their way included. current: the prompt of ours
    that began last there. jobs: how many of ours it has.
    """

    def __init__(self, client: Client, client_id: str, on_progress: Callable[[str, float], None]) -> None:
        self.client = client
        self.url = client.url
        self.tried = False
        self.up = False
        self.jobs = 0
        self.current = ""
        self._client_id = client_id
        self._on_progress = on_progress
        self._begun: set[str] = set()
        self._others = 0
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._names: dict[Path, str] = {}
        self._upload = asyncio.Lock()
        self._look = asyncio.Event()

    @property
    def load(self) -> int:
        return self._others + self.jobs

    async def follow(self, on_up: Callable[[QueueState], Awaitable[None]], on_look: Callable[[], None]) -> None:
        """Hears and looks until UnreachableError or RefusedError. Prompts go on being followed by the next call.

        on_up: awaited once, with what is in the queue. on_look: called after each look.
        """
        async with self.client.listen(self._client_id) as messages:
            reader = asyncio.create_task(self._hear(messages))
            try:
                await on_up(await self.client.queue_state())
                await self._look_at_queue(LostError("the server was started anew"))
                self.up = self.tried = True
                while True:
                    on_look()
                    await self._next_look(reader)
                    self._look.clear()
                    await self._look_at_queue(JobError("it was taken out of the server's queue"))
            finally:
                self.up = False
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    def give_up(self) -> None:
        """Tells whoever waits for a prompt that the server is not there."""
        self._names.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LostError("the server does not answer"))
                # Nobody may be waiting for it any more.
                future.exception()

    def follow_prompt(self, prompt_id: str) -> None:
        """From here on an end of the prompt is noticed."""
        self._waiting[prompt_id] = asyncio.get_running_loop().create_future()
        self._look.set()

    async def finished(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt that is followed, once it has ended. LostError if the server goes away first."""
        try:
            return await self._waiting[prompt_id]
        finally:
            self._waiting.pop(prompt_id, None)

    async def submit(self, graph: Graph, prompt_id: str) -> str:
        """Queues and follows; the id that the server gave. JobError for a graph that is refused."""
        try:
            prompt_id = await self.client.submit(graph, self._client_id, prompt_id)
        except RefusedError as error:
            raise JobError(str(error), error.nodes) from error
        self.follow_prompt(prompt_id)
        return prompt_id

    async def send_clip(self, clip: Path) -> str:
        """The clip's name on the server, sent once; its content is part of the name. JobError if that cannot be."""
        async with self._upload:
            try:
                if clip not in self._names:
                    name = await asyncio.to_thread(_upload_name, clip)
                    self._names[clip] = await self.client.upload(clip, name)
            except RefusedError as error:
                raise JobError(f"{clip.name} cannot be sent: {error}") from error
            except OSError as error:
                raise JobError(f"{clip.name} cannot be read: {error.strerror}") from error
            return self._names[clip]

    async def fetch(self, entry: dict[str, Any], folder: Path, name: str) -> list[str]:
        """Downloads what a prompt saved as ``name`` with its suffix, a second file as ``name_2``; the files' names."""
        saved = saved_files(entry)
        if not saved:
            raise JobError("the workflow saved no file; it needs a node such as Save Video")
        names = []
        for number, file in enumerate(saved, 1):
            names.append(f"{name}{f'_{number}' if number > 1 else ''}{Path(file.filename).suffix}")
            try:
                await self.client.download(file, folder / names[-1])
            except RefusedError as error:
                raise JobError(f"{file.filename} cannot be fetched: {error}") from error
        return names

    async def _hear(self, messages: Any) -> None:
        async for message in messages:
            data = message["data"]
            if message["type"] == "progress" and data.get("max"):
                self._on_progress(data.get("prompt_id", ""), data["value"] / data["max"])
            elif message["type"] == "execution_start":
                self._begin({data.get("prompt_id", "")})
            elif message["type"] in (
                "status",
                "executing",
                "execution_success",
                "execution_error",
                "execution_interrupted",
            ):
                self._look.set()

    def _begin(self, prompt_ids: set[str]) -> None:
        """Takes note of what runs; what is told late, of one that had begun before, changes nothing."""
        for prompt_id in prompt_ids - self._begun:
            self._begun.add(prompt_id)
            self.current = prompt_id

    async def _look_at_queue(self, absent: Exception) -> None:
        """Wakes who waits for a prompt that has ended, with ``absent`` where the server knows nothing of it.

        Prompts of ours that are queued meanwhile are left for the next look.
        """
        followed = set(self._waiting)
        state = await self.client.queue_state()
        self._begin(state.running & followed)
        present = state.running | state.pending
        self._others = len(present - followed - set(self._waiting))
        for prompt_id in followed - present:
            entry = await self.client.history(prompt_id)
            future = self._waiting.get(prompt_id)
            if future is None or future.done():
                continue
            if entry is None:
                future.set_exception(absent)
            else:
                future.set_result(entry)

    async def _next_look(self, reader: asyncio.Task[None]) -> None:
        look = asyncio.create_task(self._look.wait())
        await asyncio.wait({look, reader}, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        look.cancel()
        if reader.done():
            reader.result()


def saved_files(entry: dict[str, Any]) -> list[ServerFile]:
    """What the nodes of an ended prompt put into the output folder, each once. JobError with the words of one that failed."""
    status = entry.get("status") or {}
    if status.get("status_str") == "error":
        raise JobError(_failure(status.get("messages") or []))
    shown = [
        value for node in entry.get("outputs", {}).values() for values in node.values() for value in _listed(values)
    ]
    files = [
        ServerFile(str(value["filename"]), str(value.get("subfolder", "")), "output")
        for value in shown
        if isinstance(value, dict) and "filename" in value and value.get("type") == "output"
    ]
    return list(dict.fromkeys(files))


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []


def _failure(messages: list[Any]) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            return f"{data.get('node_type')}: {' '.join(str(data.get('exception_message', '')).split())}"
        if kind == "execution_interrupted":
            return f"interrupted on the server in {data.get('node_type')}"
    return "the server says only that it failed"


def run_seconds(entry: dict[str, Any]) -> float | None:
    """How long the server worked, by its own clock."""
    times = {kind: data.get("timestamp") for kind, data in (entry.get("status") or {}).get("messages") or []}
    begin, end = times.get("execution_start"), times.get("execution_success")
    return None if begin is None or end is None else (end - begin) / 1000


def _upload_name(clip: Path) -> str:
    with clip.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    stem = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in clip.stem)[:80]
    return f"{stem}_{digest.hexdigest()[:HASH_DIGITS]}{clip.suffix.lower()}"
