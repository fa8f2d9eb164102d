"""A throw-away ComfyUI on the CPU around the pack in this checkout. Standard library only.

``COMFY_DIR`` names a ComfyUI folder, ``COMFY_PYTHON`` the interpreter that has its requirements.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
POLL_SECONDS = 0.1
# Binary messages that name their node. Text: kind, length of the node's id, id, text.
NODE_TEXT = 3
# Preview: kind, length of the JSON, JSON, image.
PREVIEW_WITH_METADATA = 4


class ComfyError(RuntimeError):
    """ComfyUI refused or ended a prompt; the text holds its words."""


class ComfyServer:
    """``with ComfyServer(folder) as comfy:`` gives a server that answers.

    Args:
        base: an empty folder; models/, input/, output/, temp/ and custom_nodes/ are made in it.
        pack: folder that is linked into custom_nodes/ under ``pack_name``; None for a bare ComfyUI.
        arguments: more arguments for ComfyUI's main.py.
        environment: more variables of its process.
    """

    def __init__(
        self,
        base: Path,
        *,
        pack: Path | None = ROOT,
        pack_name: str = "sana-streaming",
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.base = Path(base)
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        if pack is not None:
            (self.base / "custom_nodes" / pack_name).symlink_to(pack, target_is_directory=True)
        self.arguments = arguments
        self.environment = environment or {}
        self.client_id = uuid.uuid4().hex
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Life

    def start(self, timeout: float = 240.0) -> None:
        """Starts ComfyUI and waits for its first answer; ComfyError with the end of its log if there is none."""
        self.port = _free_port()
        command = [os.environ.get("COMFY_PYTHON", sys.executable), "-u", "main.py", "--cpu", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *self.arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **self.environment}
        # Freed tensors go back to the system at once, so that resident memory shows what is held.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
        with (self.base / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=os.environ["COMFY_DIR"], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(POLL_SECONDS)
        self.stop()
        raise ComfyError(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self) -> None:
        """Ends the server; its files stay."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    # Talk

    def get(self, path: str) -> Any:
        return self._request(path, None)

    def post(self, path: str, data: dict[str, Any]) -> Any:
        return self._request(path, data)

    def _request(self, path: str, data: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if data is not None:
            request.data = json.dumps(data).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            body = response.read()
        return json.loads(body) if body else None

    def object_info(self) -> dict[str, Any]:
        """Every node's schema by id, as the page gets it."""
        return self.get("/object_info")

    def queue(self, workflow: dict[str, Any], **extra: str) -> str:
        """Queues an API-format workflow; its prompt id. ComfyError with every node's complaint if it is refused.

        ``extra`` is what the page tells beside the graph, such as ``preview_method="auto"``.
        """
        prompt = {"prompt": workflow, "client_id": self.client_id, "extra_data": extra}
        try:
            return self.post("/prompt", prompt)["prompt_id"]
        except urllib.error.HTTPError as error:
            with error:
                raise ComfyError(_refusal(json.loads(error.read()))) from None

    def wait(self, prompt_id: str, timeout: float = 300.0) -> dict[str, Any]:
        """The history entry of a prompt that succeeded; ComfyError with the node's words if it failed or was stopped."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                _raise_failure(entry)
                return entry
            if self.process is None or self.process.poll() is not None:
                raise ComfyError(f"ComfyUI ended:\n{self.log()[-4000:]}")
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"prompt {prompt_id} is not done after {timeout:.0f} s")

    def run(self, workflow: dict[str, Any], timeout: float = 300.0, **extra: str) -> dict[str, Any]:
        """Queues and waits; the history entry."""
        return self.wait(self.queue(workflow, **extra), timeout)

    def interrupt(self) -> None:
        """What the page's Stop button does."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unloads the models and empties the cache of node outputs; takes effect within a second when idle."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    # Files and facts

    def put_input(self, file: Path, name: str | None = None) -> str:
        """Copies a file into input/; the name that a node takes."""
        return Path(shutil.copy(file, self.base / "input" / (name or Path(file).name))).name

    def put_model(self, source: Path, subfolder: str, name: str | None = None) -> str:
        """Copies a file or a folder into models/``subfolder``; its name there."""
        target = self.base / "models" / subfolder / (name or Path(source).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target.name

    def output_files(self, entry: dict[str, Any]) -> list[Path]:
        """Files that a history entry shows, in output/, temp/ or input/."""
        shown = (value for node in entry["outputs"].values() for values in node.values() for value in values)
        return [
            self.base / value["type"] / value["subfolder"] / value["filename"]
            for value in shown
            if isinstance(value, dict) and "filename" in value
        ]

    def log(self) -> str:
        """Everything ComfyUI wrote, without colours."""
        text = (self.base / "server.log").read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def memory(self) -> int:
        """Resident bytes of the server."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """Most resident bytes since the start, or since :meth:`reset_peak_memory`."""
        return self._status("VmHWM")

    def reset_peak_memory(self) -> None:
        assert self.process is not None
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _status(self, field: str) -> int:
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    def listen(self) -> Events:
        """Collects what the page would be told, from now on. Use as a context manager."""
        return Events(self.port, self.client_id)


class Preview(NamedTuple):
    """A picture shown on a node while it runs."""

    node: str
    image: bytes


class Events:
    """The messages of ComfyUI's websocket, read by a thread: ``messages``, ``previews`` and ``texts`` (node, text)."""

    def __init__(self, port: int, client_id: str) -> None:
        self.messages: list[dict[str, Any]] = []
        self.previews: list[Preview] = []
        self.texts: list[tuple[str, str]] = []
        self._socket = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass
        self._send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}).encode())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        # The answer to the flags: from here on nothing is missed.
        self.wait_for("feature_flags")

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._stream.close()
        self._socket.close()

    def of(self, kind: str, node: str | None = None) -> list[dict[str, Any]]:
        """The data of the messages of one kind, of one node if given."""
        data = [message["data"] for message in list(self.messages) if message["type"] == kind]
        return data if node is None else [item for item in data if item.get("node") == node]

    def wait_for(self, kind: str, node: str | None = None, count: int = 1, timeout: float = 60.0) -> dict[str, Any]:
        """Blocks until ``count`` such messages came; the last of them."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if len(found := self.of(kind, node)) >= count:
                return found[count - 1]
            time.sleep(POLL_SECONDS / 5)
        raise TimeoutError(f"no {kind!r} message came within {timeout:.0f} s")

    def _send(self, payload: bytes) -> None:
        """One masked text frame of at most 125 bytes; the mask is zero, so the payload stays as it is."""
        self._socket.sendall(bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload)

    def _read(self) -> None:
        while len(header := self._stream.read(2)) == 2:
            size = header[1] & 0x7F
            if size >= 126:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
            payload = self._stream.read(size)
            if header[0] & 0x0F == 1:
                self.messages.append(json.loads(payload))
            elif header[0] & 0x0F == 2:
                self._keep(payload)

    def _keep(self, payload: bytes) -> None:
        kind, length = struct.unpack(">II", payload[:8])
        if kind == NODE_TEXT:
            self.texts.append((payload[8 : 8 + length].decode(), payload[8 + length :].decode()))
        if kind == PREVIEW_WITH_METADATA:
            metadata = json.loads(payload[8 : 8 + length])
            self.previews.append(Preview(metadata["node_id"], payload[8 + length :]))


def cached_nodes(entry: dict[str, Any]) -> set[str]:
    """Ids of the nodes whose outputs were taken from an earlier prompt."""
    return {node for kind, data in entry["status"]["messages"] if kind == "execution_cached" for node in data["nodes"]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _refusal(answer: dict[str, Any]) -> str:
    lines = [answer["error"]["message"]]
    for node in answer["node_errors"].values():
        lines += [f"{node['class_type']}: {error['message']}: {error['details']}" for error in node["errors"]]
    return "\n".join(lines)


def _raise_failure(entry: dict[str, Any]) -> None:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            raise ComfyError(f"{data['node_type']} ({data['exception_type']}): {data['exception_message'].strip()}")
        if kind == "execution_interrupted":
            raise ComfyError(f"interrupted in {data['node_type']}")
