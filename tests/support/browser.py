"""A page in headless Chromium, over the protocol of its own developer tools: no package is needed but aiohttp."""

import asyncio
import base64
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = ("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0")  # fmt: skip


class Page:
    """Opens ``url`` in a browser of its own. Skips the test where there is no Chromium (CHROMIUM names another one)."""

    def __init__(self, url: str, width: int = 1280, height: int = 800) -> None:
        program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("there is no chromium on the PATH; CHROMIUM may name one")
        self._folder = tempfile.mkdtemp()
        # As root, as in a container, Chromium runs without a sandbox alone.
        sandbox = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
        self._process = subprocess.Popen(
            [
                program,
                *FLAGS,
                *sandbox,
                f"--user-data-dir={self._folder}",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._loop = asyncio.new_event_loop()
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self._loop.run_until_complete(self._open(url, width, height))

    async def _open(self, url: str, width: int, height: int) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
                break
        self._client = aiohttp.ClientSession()
        async with self._client.put(f"http://{found[1]}/json/new?about:blank") as answer:
            address = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
        self._socket = await self._client.ws_connect(address, max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self._call("Emulation.setDeviceMetricsOverride", **size)
        await self._call("Page.navigate", url=url)
        ready = "location.href !== 'about:blank' && document.readyState === 'complete'"
        while not (await self._call("Runtime.evaluate", expression=ready))["result"]["value"]:
            await asyncio.sleep(0.02)

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=30)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(str(message["params"]["entry"]))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._loop.run_until_complete(
            self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Waits until an expression is true; returns its value."""
        waiting = f"""new Promise((done, fail) => {{
            const end = performance.now() + {1000 * seconds};
            const look = () => {{
                const value = ({script});
                if (value) done(value);
                else if (performance.now() > end) fail(new Error("it never came to that"));
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        return self.evaluate(waiting)

    def screenshot(self, path: Path) -> None:
        """A PNG of what is to be seen."""
        data = self._loop.run_until_complete(self._call("Page.captureScreenshot", format="png"))["data"]
        path.write_bytes(base64.b64decode(data))

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            await self._socket.close()
            await self._client.close()

        self._loop.run_until_complete(close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(20)
        assert self._process.stderr is not None
        self._process.stderr.close()
        shutil.rmtree(self._folder, ignore_errors=True)
