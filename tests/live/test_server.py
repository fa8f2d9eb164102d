"""The control port: who is let in, what is refused, and that the page's channel works."""

import asyncio
import json

import aiohttp
import pytest
from live_server import BEARER, TOKEN, serving
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.live.control import MAX_BYTES
from sana_streaming.sana_core.live.preview import Preview
from sana_streaming.sana_core.live.server import MOST_CLIENTS, Access, ControlServer


def ask(url, method="GET", path="state", **options):
    async def work():
        async with aiohttp.ClientSession() as client, client.request(method, url + path, **options) as answer:
            return answer.status, await answer.text(), answer.headers

    return asyncio.run(work())


def test_commands_and_state_over_http():
    with serving() as (session, url):
        status, text, headers = ask(url, headers=BEARER)
        assert status == 200 and json.loads(text)["type"] == "state" and headers["Cache-Control"] == "no-store"
        status, text, _ = ask(url, "POST", "command", headers=BEARER, json={"command": "set", "prompt": "abc", "id": 5})
        assert status == 200 and json.loads(text) == {"type": "accepted", "command": "set", "id": 5}
        session.until(lambda: session.state().prompt == "abc")
        status, text, _ = ask(url, "POST", "command", headers=BEARER, json={"command": "set", "steps": 0})
        assert status == 400 and "steps 0" in json.loads(text)["message"]
        assert ask(url, "POST", "command", headers=BEARER, json={"command": "stop"})[0] == 200
        session.join()
    assert session.error is None and session.state().status == "stopped"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer t\u00f6ken"},
        {"Sec-WebSocket-Protocol": TOKEN},
        {"Sec-WebSocket-Protocol": f"other, {TOKEN}"},
    ],
)
@pytest.mark.parametrize("method, path", [("GET", "state"), ("POST", "command"), ("GET", "ws")])
def test_nobody_gets_in_without_the_token(served, headers, method, path):
    assert ask(served, method, path, headers=headers)[0] == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
@pytest.mark.parametrize("method, path", [("GET", "state"), ("POST", "command"), ("GET", "ws"), ("GET", "")])
def test_pages_of_other_origins_are_refused_token_or_not(served, origin, method, path):
    assert ask(served, method, path, headers={**BEARER, "Origin": origin})[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil:80"])
def test_names_that_others_may_point_here_are_refused(served, host):
    assert ask(served, headers={**BEARER, "Host": host, "Origin": f"http://{host}"})[0] == 403
    assert ask(served, path="", headers={"Host": host})[0] == 403


@pytest.mark.parametrize("path", ["nothing", "page/index.html", "../pyproject.toml", "%2e%2e/x"])
def test_nothing_else_is_served(served, path):
    assert ask(served, path=path, headers=BEARER)[0] in (401, 404)


def test_large_and_broken_bodies_are_refused(served):
    big = json.dumps({"command": "set", "prompt": "x" * MAX_BYTES})
    assert ask(served, "POST", "command", headers=BEARER, data=big)[0] == 413
    assert ask(served, "POST", "command", headers=BEARER, data=b"\x00\xff{")[0] == 400


def test_the_page_needs_no_token_and_loads_nothing_from_elsewhere(served):
    for path in ("", "live.js", "live.css"):
        status, text, headers = ask(served, path=path)
        assert status == 200 and TOKEN not in text and "://" not in text.replace("${scheme}://${location.host}", "")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_socket_brings_states_pictures_and_answers(served):
    async def work():
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(served + "ws", protocols=("sana-streaming", TOKEN), origin=served[:-1]) as socket,
        ):
            assert socket.protocol == "sana-streaming"
            kinds, answered = set(), None
            await socket.send_str('{"command": "set", "prompt": "abcd", "id": "p"}')
            while not (answered and {"state", "picture"} <= kinds):
                message = await socket.receive(10)
                if message.type is aiohttp.WSMsgType.BINARY:
                    assert message.data.startswith(b"\xff\xd8")
                    kinds.add("picture")
                    continue
                told = json.loads(message.data)
                kinds.add(told["type"])
                answered = answered or (told["type"] == "accepted" and told["id"] == "p")
            await socket.send_str("nonsense")
            while (told := await socket.receive(10)).type is not aiohttp.WSMsgType.TEXT or "no JSON" not in told.data:
                assert told.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)

    asyncio.run(work())


@pytest.mark.parametrize("binary, code", [(False, 1009), (True, 1003)])
def test_the_socket_is_closed_on_what_is_too_large_or_no_text(served, binary, code):
    async def work():
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(served + "ws", headers=BEARER) as socket,
        ):
            await (socket.send_bytes(b"{}") if binary else socket.send_str("x" * (MAX_BYTES + 1)))
            while (message := await socket.receive(10)).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                pass
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)
            assert socket.close_code == code

    asyncio.run(work())


def test_no_more_pages_than_can_be_served(served):
    async def work():
        async with aiohttp.ClientSession() as client:
            sockets = [await client.ws_connect(served + "ws", headers=BEARER) for _ in range(MOST_CLIENTS)]
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                await client.ws_connect(served + "ws", headers=BEARER)
            for socket in sockets:
                await socket.close()

    asyncio.run(work())


@pytest.fixture(scope="module")
def served():
    with serving() as (_, url):
        yield url


def test_a_port_in_use_and_a_weak_token_are_refused():
    with serving() as (session, url):
        port = int(url.rstrip("/").rpartition(":")[2])
        with (
            pytest.raises(InputError, match=f"{port} on 127.0.0.1 cannot be had"),
            ControlServer(session, Preview(), Access("127.0.0.1", port, TOKEN)),
        ):
            pass
    for port, token in ((70_000, TOKEN), (1, "short"), (1, "with space in it"), (1, "x" * 300)):
        with pytest.raises(InputError, match="port|token"):
            Access("127.0.0.1", port, token)
