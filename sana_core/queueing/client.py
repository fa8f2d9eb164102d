"""The API of one ComfyUI server: requests, and the messages of its websocket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from ..errors import InputError
from .workflow import Graph

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 10
# Of silence in the middle of an answer.
READ_SECONDS = 60
# Proxies close what is silent for a minute.
HEARTBEAT_SECONDS = 30
BLOCK = 1 << 20
# What a proxy says for a server that is not there.
GATEWAY = (502, 503, 504)


class UnreachableError(Exception):
    """The server could not be reached, or the connection broke."""


class RefusedError(Exception):
    """The server answered with an error; the text holds its words.

    nodes: ids of the nodes of a workflow that it finds fault with, empty for the workflow as a whole; None where it does
    not say what it is about.
    """

    def __init__(self, words: str, nodes: frozenset[str] | None = None) -> None:
        super().__init__(words)
        self.nodes = nodes


class QueueState(NamedTuple):
    """Prompt ids of everybody's work."""

    running: set[str]
    pending: set[str]


class ServerFile(NamedTuple):
    """A file that a node has saved."""

    filename: str
    subfolder: str
    folder: str


def check_url(url: str) -> str:
    """The URL without a slash at its end. InputError for what is not the address of a server."""
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        valid = valid and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"--server {url} is not the address of a server; use http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check_headers(lines: list[str]) -> dict[str, str]:
    """``NAME: VALUE`` lines as a mapping. InputError for another form; the value is not shown."""
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip().replace("-", "").replace("_", "").isalnum() or not value.strip().isprintable():
            raise InputError(f"--header {name.strip()!r} is not of the form 'NAME: VALUE'; write it so, in quotes")
        headers[name.strip()] = value.strip()
    return headers


def check_library() -> None:
    """InputError where the HTTP library is missing."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise InputError("queue needs the package aiohttp, which ComfyUI has; pip install aiohttp") from error


class Client:
    """Requests to one server. Every method raises UnreachableError, and RefusedError for an answer that is an error.

    url: for people, without a password.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url = without_password(url)
        self._session = session
        self._base = url

    async def check(self, classes: list[str]) -> None:
        """RefusedError unless this is a ComfyUI with these node classes."""
        await self.queue_state()
        for name in classes:
            known = await self._json("GET", f"/object_info/{quote(name, safe='')}")
            if name not in known:
                raise RefusedError(f"it has no node {name}; install the node pack there")

    async def queue_state(self) -> QueueState:
        answer = await self._json("GET", "/queue")
        try:
            running, pending = ({item[1] for item in answer[key]} for key in ("queue_running", "queue_pending"))
        except (KeyError, TypeError, IndexError) as error:
            raise RefusedError("it does not answer as ComfyUI does") from error
        return QueueState(running, pending)

    async def submit(self, graph: Graph, client_id: str, prompt_id: str) -> str:
        """Queues a graph; the id it has there: older servers choose another one than ``prompt_id``."""
        body = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id}
        return str((await self._json("POST", "/prompt", json=body))["prompt_id"])

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a prompt that has ended, None of any other."""
        entry: dict[str, Any] | None = (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)
        return entry

    async def cancel(self, prompt_ids: set[str]) -> set[str]:
        """Takes prompts out of the queue, and stops the one that runs; those that were still there."""
        state = await self.queue_state()
        if waiting := prompt_ids & state.pending:
            await self._json("POST", "/queue", json={"delete": sorted(waiting)})
        # Asked again: one of them may have begun meanwhile. Servers that know no prompt_id here stop whatever runs.
        for prompt_id in prompt_ids & (await self.queue_state()).running:
            await self._json("POST", "/interrupt", json={"prompt_id": prompt_id})
        return prompt_ids & (state.running | state.pending)

    async def upload(self, file: Path, name: str) -> str:
        """Puts a file into the input folder unless one of this name and size is there; the name that a node takes."""
        import aiohttp

        if await self._size(name) == file.stat().st_size:
            return name
        with file.open("rb") as stream:
            form = aiohttp.FormData()
            form.add_field("overwrite", "false")
            form.add_field("type", "input")
            form.add_field("image", stream, filename=name)
            return str((await self._json("POST", "/upload/image", data=form))["name"])

    async def _size(self, name: str) -> int | None:
        try:
            async with self._request("HEAD", "/view", params={"filename": name, "type": "input"}) as response:
                return response.content_length
        except RefusedError:
            return None

    async def download(self, file: ServerFile, target: Path) -> None:
        """Fetches a file; ``target`` is there whole or not at all."""
        part = target.with_name(target.name + ".part")
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.folder}
        try:
            async with self._request("GET", "/view", params=query) as response:
                with part.open("wb") as stream:
                    async for block in response.content.iter_chunked(BLOCK):
                        stream.write(block)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @asynccontextmanager
    async def listen(self, client_id: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The messages for this client, from now on. They end with UnreachableError."""
        import aiohttp

        try:
            websocket = await self._session.ws_connect(
                f"{self._base}/ws",
                params={"clientId": client_id},
                heartbeat=HEARTBEAT_SECONDS,
                timeout=aiohttp.ClientWSTimeout(ws_close=1),
                max_msg_size=0,
            )
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise UnreachableError(_words(error)) from error
        async with websocket:
            yield _messages(websocket)

    async def _json(self, method: str, path: str, **content: Any) -> Any:
        async with self._request(method, path, **content) as response:
            body = await response.read()
        try:
            return json.loads(body) if body else {}
        except ValueError as error:
            raise RefusedError("it does not answer as ComfyUI does") from error

    @asynccontextmanager
    async def _request(self, method: str, path: str, **content: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        try:
            async with self._session.request(method, self._base + path, **content) as response:
                if response.status in GATEWAY:
                    raise UnreachableError(f"HTTP {response.status} {response.reason}")
                if response.status >= 400:
                    raise _refusal(response.status, response.reason, await response.text(errors="replace"))
                yield response
        except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError) as error:
            raise UnreachableError(_words(error)) from error


def open_session(headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """Connections for all servers; only inside a running event loop."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return aiohttp.ClientSession(headers=headers, timeout=timeout)


async def _messages(websocket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[dict[str, Any]]:
    import aiohttp

    async for message in websocket:
        # The others are pictures.
        if message.type == aiohttp.WSMsgType.TEXT:
            content = json.loads(message.data)
            if isinstance(content, dict) and isinstance(content.get("data"), dict):
                yield content
    raise UnreachableError("the connection was closed")


def _words(error: BaseException) -> str:
    reason = getattr(error, "os_error", None)
    if isinstance(reason, OSError):
        # asyncio puts the address where the system's words belong; the numbers of TLS and of names are others.
        if reason.errno and not isinstance(reason, (ssl.SSLError, socket.gaierror)):
            return os.strerror(reason.errno)
        return reason.strerror or str(reason)
    return " ".join(str(error).split()) or (
        "no answer in time" if isinstance(error, asyncio.TimeoutError) else repr(error)
    )


def _refusal(status: int, reason: str | None, text: str) -> RefusedError:
    """The reasons of a refused prompt, or the status with its remedy."""
    if status in (401, 403):
        return RefusedError(f"HTTP {status} {reason}: it asks for a login; give one with --header or in the URL")
    if status == 413:
        return RefusedError(
            f"HTTP 413 {reason}: the clip is too large for it; start ComfyUI with a larger --max-upload-size (MB)"
        )
    try:
        answer = json.loads(text)
        node_errors = answer.get("node_errors") or {}
        if node_errors:
            complaints = dict.fromkeys(_complaint(node) for node in node_errors.values())
            return RefusedError("; ".join(complaints), frozenset(node_errors))
        error = answer["error"]
        if error.get("type") == "prompt_no_outputs":
            return RefusedError("the workflow saves nothing; add Save Video", frozenset())
        return RefusedError(f"{error['message']} {error.get('details', '')}".strip())
    except (ValueError, KeyError, TypeError, AttributeError):
        return RefusedError(f"HTTP {status} {reason}")


def _complaint(node: dict[str, Any]) -> str:
    """What is wrong with a node, each thing once: what its validator says is repeated for each of its inputs."""
    texts: dict[str, None] = {}
    for error in node["errors"]:
        _, dash, words = error["details"].partition(" - ")
        custom = error.get("type") == "custom_validation_failed" and dash
        text = words if custom else f"{error['message']} {error['details']}"
        texts[" ".join(text.split())] = None
    return f"{node['class_type']}: {'; '.join(texts)}"
