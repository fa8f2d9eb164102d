"""The control port: a page, an API over HTTP, and a WebSocket with states, pictures and commands.

Who may use it has the token. Nobody else may, whatever page a browser has open: requests from pages of other origins are
refused, and so are host names that others could point here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import re
import threading
from dataclasses import dataclass
from importlib.resources import files
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import InputError
from .control import MAX_BYTES
from .json_lines import answer
from .preview import Preview
from .session import LiveSession

if TYPE_CHECKING:
    from aiohttp import web

PROTOCOL = "sana-streaming"
# A token is sent as the name of a WebSocket protocol, which has these characters alone.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,200}")
MOST_CLIENTS = 8
# Between two states, and two pictures, for a page.
STATE_SECONDS, PICTURE_SECONDS = 0.25, 1 / 15
HEARTBEAT_SECONDS = 20
START_SECONDS = 10.0
_PAGES = {
    "/": ("index.html", "text/html"),
    "/live.js": ("live.js", "text/javascript"),
    "/live.css": ("live.css", "text/css"),
}
_SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Where to serve, and for whom. port: 0 for any that is free. InputError for what cannot be."""

    host: str
    port: int
    token: str

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise InputError(f"--control-port {self.port} is no port; use 1 to 65535, or 0 for any that is free")
        if not _TOKEN.fullmatch(self.token):
            raise InputError(
                f"a control token of {len(self.token)} characters will not do; use 8 to 200 of A-Z, a-z, 0-9, _ and -"
            )


def check_library() -> None:
    """InputError where the HTTP library is missing."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise InputError("--control-port needs the package aiohttp, which ComfyUI has; pip install aiohttp") from error


class ControlServer:
    """Serves a session in a thread of its own, from entering the with-block to leaving it.

    Raises InputError where the port cannot be had.
    """

    def __init__(self, session: LiveSession, preview: Preview, access: Access) -> None:
        self._session, self._preview, self._access = session, preview, access
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._problem: Exception | None = None
        self._port = access.port
        self._clients: set[web.WebSocketResponse] = set()
        self._thread = threading.Thread(target=self._run, name="live control", daemon=True)

    @property
    def url(self) -> str:
        """Of the page. The token stands where a browser does not send it on."""
        host = "127.0.0.1" if self._access.host in ("0.0.0.0", "::", "") else self._access.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/#{self._access.token}"

    def __enter__(self) -> ControlServer:
        self._thread.start()
        self._ready.wait(START_SECONDS)
        if isinstance(self._problem, OSError):
            raise InputError(
                f"--control-port {self._access.port} on {self._access.host} cannot be had ({self._problem.strerror}); use "
                "another, or 0 for any that is free"
            )
        if self._problem is not None:
            raise self._problem
        if not self._ready.is_set():
            raise InputError(
                f"--control-port {self._access.port} on {self._access.host} did not open within {START_SECONDS:g} seconds; "
                "use another host"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):
            # Where serving has failed meanwhile, its loop is closed.
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._problem = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        from aiohttp import web

        self._stop = asyncio.Event()

        @web.middleware
        async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(client_max_size=MAX_BYTES, middlewares=[guard])
        for path in _PAGES:
            app.router.add_get(path, self._page)
        app.router.add_get("/state", self._state)
        app.router.add_post("/command", self._command)
        app.router.add_get("/ws", self._socket)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._access.host, self._access.port)
            await site.start()
            self._port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            # The last word is that the stream has ended.
            for client in list(self._clients):
                with contextlib.suppress(Exception):
                    await client.send_json(self._session.state().to_dict())
                    await client.close()
        finally:
            await runner.cleanup()

    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Who asks, and for whom; raises HTTPException for everybody else."""
        from aiohttp import web

        try:
            host = urlsplit(f"//{request.host}").hostname or ""
        except ValueError:
            host = ""
        if not self._own_host(host):
            raise web.HTTPForbidden(text=f"this is not {request.host}; use an address, or localhost")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in (f"http://{request.host}", f"https://{request.host}"):
            raise web.HTTPForbidden(text="requests of other pages are refused")
        if request.path not in _PAGES and not self._has_token(request):
            raise web.HTTPUnauthorized(text="the token is wrong or missing")
        response: web.StreamResponse = await handler(request)
        if not response.prepared:
            response.headers.update(_SAFE)
        return response

    def _own_host(self, host: str) -> bool:
        """Whether a name cannot be one that somebody else points here."""
        if host in ("localhost", self._access.host):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _has_token(self, request: web.Request) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            protocols = [text.strip() for text in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
            given = protocols[1] if len(protocols) == 2 and protocols[0] == PROTOCOL else ""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._access.token.encode())

    async def _page(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, kind = _PAGES[request.path]
        text = files(__package__).joinpath("page", name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=kind)

    async def _state(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.json_response(self._session.state().to_dict())

    async def _command(self, request: web.Request) -> web.Response:
        from aiohttp import web

        # A body that is too large raises a refusal of its own.
        reply = await asyncio.to_thread(answer, self._session, await request.read())
        return web.json_response(reply, status=400 if reply["type"] == "error" else 200)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import WSMsgType, web

        if len(self._clients) >= MOST_CLIENTS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_CLIENTS} pages are open already; close one")
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,), max_msg_size=MAX_BYTES, heartbeat=HEARTBEAT_SECONDS, timeout=1
        )
        await socket.prepare(request)
        self._clients.add(socket)
        senders = [asyncio.create_task(self._send_states(socket)), asyncio.create_task(self._send_pictures(socket))]
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await socket.send_json(await asyncio.to_thread(answer, self._session, message.data))
                elif message.type is WSMsgType.BINARY:
                    await socket.close(code=1003, message=b"commands are text")
        finally:
            self._clients.discard(socket)
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        return socket

    async def _send_states(self, socket: web.WebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError):
            while not socket.closed:
                await socket.send_str(json.dumps(self._session.state().to_dict()))
                await asyncio.sleep(STATE_SECONDS)

    async def _send_pictures(self, socket: web.WebSocketResponse) -> None:
        """The newest picture whenever there is one, as fast as the page takes them: JPEG, source on the left."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not socket.closed:
                await asyncio.sleep(PICTURE_SECONDS)
                if self._preview.number == sent:
                    continue
                picture = await asyncio.to_thread(self._preview.picture)
                if picture is not None:
                    sent, data = picture
                    await socket.send_bytes(data)
