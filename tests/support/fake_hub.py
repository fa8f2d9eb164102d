"""A hub on 127.0.0.1 that answers what `huggingface_hub` asks for a model: listing, HEAD and GET of files, ranges.

Files that end in a weight suffix are "large": their hash is a sha256; of the others it is git's. `FakeHub.faults` makes
answers go wrong, and `FakeHub.requests` keeps what was asked. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = (".pth", ".safetensors", ".mp4")


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


class FakeHub:
    """``with FakeHub({repo: {path: content}}) as hub:``, then :meth:`run` code that talks to it."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        # By repository: "gated", "unauthorized", "html". By file: "missing", "other", "cut once", "cut", "down", "stall".
        self.faults: dict[str, str] = {}
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def contents(self) -> list[str]:
        """The files whose content was asked for, one entry a request."""
        return [request.path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1] for request in self.gets]

    @property
    def gets(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and "/resolve/" in request.path]

    def run(self, home: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A fresh Python runs ``code``, whose hub this is and whose cache is in ``home``."""
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", _PRELUDE + code],
            env=self.environment(home) | environment,
            cwd=home.parent,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a process whose hub this is and whose cache is in ``home``."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        return kept | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def result(self, home: Path, code: str, **environment: str) -> Any:
        """What ``code`` puts into the name ``result``."""
        done = self.run(home, code + "\nprint(json.dumps(result))", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def error(self, home: Path, code: str, **environment: str) -> str:
        """The message of the InputError that ``code`` must raise."""
        indented = "\n".join(f"    {line}" for line in code.splitlines())
        caught = f"try:\n{indented}\nexcept InputError as error:\n    result = str(error)"
        return str(self.result(home, f"result = None\n{caught}", **environment))


_PRELUDE = """
import json
from pathlib import Path
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.weights.hub import download, plan_download, remaining, resolve_uri
"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        is_listing = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        fault = self.hub.faults.get(repo)
        if fault == "html":
            self.reply(200, b"<html>log in to the network</html>", {"Content-Type": "text/html"})
        elif repo not in self.hub.repos or fault == "unauthorized":
            self.refuse(401, "RepoNotFound")
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif is_listing:
            self.reply(200, json.dumps(self.listing(repo)).encode(), {"Content-Type": "application/json"})
        elif fault == "gated":
            self.refuse(403, "GatedRepo")
        else:
            self.send_file(repo, "/".join(rest[2:]))

    def listing(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.hub.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _git_hash(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"size": len(content), "sha256": _sha256(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}

    def send_file(self, repo: str, name: str) -> None:
        content, fault = self.hub.repos[repo].get(name), self.hub.faults.get(f"{repo}/{name}")
        if content is None or fault == "missing":
            return self.refuse(404, "EntryNotFound")
        large = name.endswith(LARGE)
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{_sha256(content) if large else _git_hash(content)}"',
            "Accept-Ranges": "bytes",
        }
        if large:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if self.command == "GET" and fault == "other":
            content = content[::-1]
        start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and fault == "down":
            return self.refuse(503, "")
        if self.command == "GET" and fault == "stall":
            self.stall(len(content), headers, content[: len(content) // 2])
            return None
        cut = self.command == "GET" and fault in ("cut", "cut once")
        if cut:
            self.hub.faults[f"{repo}/{name}"] = {"cut": "down", "cut once": ""}[str(fault)]
        self.reply(206 if start else 200, content[start:], headers, half=cut)
        return None

    def stall(self, length: int, headers: dict[str, str], part: bytes) -> None:
        """Sends ``part`` of a file and then nothing until the other side goes away."""
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part)
        self.hub.stalled.set()
        self.connection.recv(1)
        self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b'{"error": "no"}', {"X-Error-Code": code} if code else {})

    def reply(self, status: int, body: bytes, headers: dict[str, str], half: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
