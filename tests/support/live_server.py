"""A live stream of stand-ins behind a control port."""

from contextlib import contextmanager

from live_streams import MemorySession, MemorySource
from sana_streaming.sana_core.live.preview import Preview
from sana_streaming.sana_core.live.server import Access, ControlServer

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def serving(**options):
    """(session, base URL) of a live stream that can be controlled."""
    preview = Preview()
    stream = MemorySession(MemorySource(), on_shown=preview.offer, **options)
    with stream as session, ControlServer(session, preview, Access("127.0.0.1", 0, TOKEN)) as server:
        url, _, fragment = server.url.partition("#")
        assert fragment == TOKEN
        yield session, url
