"""A stand-in for ComfyUI's API: one prompt at a time, whose "edit" is a text of the clip's content and the prompt."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import WSCloseCode, web

CLASSES = ("LoadVideo", "SanaStreamingPrompt", "SanaStreamingEditVideo", "SaveVideo")


class FakeComfy:
    """``with FakeComfy() as server:`` answers at ``server.url``.

    Attributes to set: ``fail`` (prompt -> message of the node that fails, or None), ``on_take`` (called with the prompt before
    it begins), ``on_start`` (called in a thread of its own when it has begun), ``hold`` (a prompt that runs does not end
    before this is set), ``refuse`` (what is wrong with the clip of each graph, or the whole answer), ``refusal_of``
    (graph -> the same for it alone), ``header`` (NAME: VALUE that requests must have), ``own_ids`` (ignores the client's
    prompt ids), ``save`` (whether the workflow saves a file), ``deaf`` (no messages on /ws), ``foreign`` (ids of others'
    prompts that wait for ever), ``classes`` (of nodes that it has).
    Attributes to read: ``ran`` (prompts begun), ``uploads`` (names received), ``deleted``, ``interrupted`` (prompt ids),
    ``graphs`` (as queued).
    """

    def __init__(self) -> None:
        self.fail: Callable[[str], str | None] = lambda prompt: None
        self.on_take: Callable[[str], None] = lambda prompt: None
        self.on_start: Callable[[str], None] = lambda prompt: None
        self.hold = threading.Event()
        self.hold.set()
        self.refuse: str | dict[str, Any] = ""
        self.refusal_of: Callable[[dict[str, Any]], str | dict[str, Any]] = lambda graph: self.refuse
        self.header = ""
        self.own_ids = self.deaf = False
        self.save = True
        self.classes = CLASSES
        self.foreign: list[str] = []
        self.ran: list[str] = []
        self.uploads: list[str] = []
        self.deleted: list[str] = []
        self.interrupted: list[str] = []
        self.graphs: list[dict[str, Any]] = []
        self.input: dict[str, bytes] = {}
        self.output: dict[str, bytes] = {}
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._forget()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeComfy:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def start(self) -> None:
        """On the port that it had before, if it had one."""
        self._call(self._start())

    def kill(self) -> None:
        """Connections break; queue and history are lost, files stay."""
        self._call(self._kill())

    def drop_sockets(self) -> None:
        """The websockets break, the server lives on."""
        self._call(self._drop_sockets())

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "nothing happened for 20 s"
            time.sleep(0.005)

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def _forget(self) -> None:
        self.queue: list[tuple[str, dict[str, Any]]] = []
        self.running: tuple[str, dict[str, Any]] | None = None
        self.history: dict[str, Any] = {}
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._stop = False

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/ws", self._ws)
        app.router.add_get("/queue", self._get_queue)
        app.router.add_post("/queue", self._post_queue)
        app.router.add_post("/prompt", self._prompt)
        app.router.add_post("/interrupt", self._interrupt)
        app.router.add_get("/history/{id}", self._history)
        app.router.add_get("/object_info/{name}", self._object_info)
        app.router.add_post("/upload/image", self._receive)
        app.router.add_get("/view", self._view)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._worker = asyncio.create_task(self._work())

    async def _kill(self) -> None:
        if self._runner is None:
            return
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        await self._drop_sockets()
        await self._runner.cleanup()
        self._runner = None
        self._forget()

    async def _drop_sockets(self) -> None:
        for socket in list(self._sockets.values()):
            await socket.close(code=WSCloseCode.GOING_AWAY)

    # Work

    async def _work(self) -> None:
        while True:
            if not self.queue:
                await asyncio.sleep(0.005)
                continue
            self.running = self.queue.pop(0)
            prompt_id, graph = self.running
            self.history[prompt_id] = await self._execute(prompt_id, graph)
            self.running = None
            await self._send("executing", {"node": None, "prompt_id": prompt_id})

    async def _execute(self, prompt_id: str, graph: dict[str, Any]) -> dict[str, Any]:
        inputs = {key: value for node in graph.values() for key, value in node["inputs"].items()}
        prompt, self._stop = inputs["prompt"], False
        self.on_take(prompt)
        self.ran.append(prompt)
        await self._send("execution_start", {"prompt_id": prompt_id})
        threading.Thread(target=self.on_start, args=(prompt,), daemon=True).start()
        await self._send("progress", {"value": 1, "max": 4, "prompt_id": prompt_id, "node": "6"})
        while not self.hold.is_set() and not self._stop:
            await asyncio.sleep(0.005)
        if self._stop:
            return _ended("error", ["execution_interrupted", {"node_type": "SanaStreamingEditVideo"}])
        message = self.fail(prompt)
        if message is not None:
            data = {"node_type": "SanaStreamingEditVideo", "exception_message": message + "\n"}
            return _ended("error", ["execution_error", data])
        name = f"edited_{len(self.output):05}_.mp4"
        self.output[name] = self.input[inputs["file"]] + b"|" + prompt.encode()
        shown = [{"filename": name, "subfolder": "video", "type": "output"}] if self.save else []
        shown.append({"filename": "preview.mp4", "subfolder": "", "type": "temp"})
        entry = _ended("success", ["execution_success", {"timestamp": 3500}])
        return entry | {"outputs": {"7": {"images": shown, "animated": [True]}}}

    async def _send(self, kind: str, data: dict[str, Any]) -> None:
        if not self.deaf:
            for socket in list(self._sockets.values()):
                await socket.send_json({"type": kind, "data": data})

    # Requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        name, _, value = self.header.partition(": ")
        if name and request.headers.get(name) != value:
            return web.Response(status=401)
        return await handler(request)

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[request.query["clientId"]] = socket
        await socket.send_json({"type": "status", "data": {"sid": request.query["clientId"]}})
        async for _ in socket:
            pass
        self._sockets.pop(request.query["clientId"], None)
        return socket

    async def _get_queue(self, request: web.Request) -> web.Response:
        items = [[0, key, graph] for key, graph in self.queue] + [[0, key, {}] for key in self.foreign]
        running = [[0, *self.running]] if self.running else []
        return web.json_response({"queue_running": running, "queue_pending": items})

    async def _post_queue(self, request: web.Request) -> web.Response:
        ids = (await request.json())["delete"]
        self.deleted += ids
        self.queue = [item for item in self.queue if item[0] not in ids]
        return web.Response()

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        refusal = self.refusal_of(body["prompt"])
        if isinstance(refusal, dict):
            return web.json_response(refusal, status=400)
        if refusal:
            error = {"message": "Value not in list", "details": refusal}
            nodes = {"5": {"class_type": "LoadVideo", "errors": [error]}}
            return web.json_response({"error": {"message": "refused"}, "node_errors": nodes}, status=400)
        prompt_id = str(uuid.uuid4()) if self.own_ids else body["prompt_id"]
        self.graphs.append(body["prompt"])
        self.queue.append((prompt_id, body["prompt"]))
        return web.json_response({"prompt_id": prompt_id, "number": 1, "node_errors": {}})

    async def _interrupt(self, request: web.Request) -> web.Response:
        self.interrupted.append((await request.json())["prompt_id"])
        self._stop = True
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        key = request.match_info["id"]
        return web.json_response({key: self.history[key]} if key in self.history else {})

    async def _object_info(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({name: {}} if name in self.classes else {})

    async def _receive(self, request: web.Request) -> web.Response:
        form = await request.post()
        file: Any = form["image"]
        self.uploads.append(file.filename)
        self.input[file.filename] = file.file.read()
        return web.json_response({"name": file.filename, "subfolder": "", "type": "input"})

    async def _view(self, request: web.Request) -> web.Response:
        files = self.input if request.query["type"] == "input" else self.output
        content = files.get(request.query["filename"])
        return web.Response(status=404) if content is None else web.Response(body=content)


def _ended(status: str, message: list[Any]) -> dict[str, Any]:
    messages = [["execution_start", {"timestamp": 1000}], message]
    return {"outputs": {}, "status": {"status_str": status, "completed": status == "success", "messages": messages}}
