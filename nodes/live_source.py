"""A camera or a network stream as the source of a node: its widgets, its address, and frames for so many seconds."""

from __future__ import annotations

import contextlib
import stat
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.live.address import CAMERAS, STANDARD, SourceAddress, is_url
from ..sana_core.live.source import LiveSource, SourceFrame
from . import comfy_host

# A workflow is somebody else's text: of what FFmpeg opens, only what sends pictures live.
PROTOCOLS = ("udp", "rtp", "tcp", "srt", "rtmp", "rtmps", "rtsp", "http", "https")
# A source that is away for so many seconds has ended.
AWAY_SECONDS = 30.0
# What a frame that shows that the time is over may take on its way.
SPARE_SECONDS = 2.0


def live_inputs() -> list[Any]:
    """Not to be added to: see the module steering."""
    return [
        comfy_host.widget(
            io.String,
            "live_source",
            default="",
            optional=True,
            advanced=True,
            tooltip="Instead of a video: a camera or stream that is edited while it happens, such as 'udp://0.0.0.0:5000', "
            "'rtmp://server/app/key', '/dev/video0' or 'dshow:video=My Camera'. Not a file, not even one that grows. It is "
            "recorded in the output folder, because it cannot be had again.",
        ),
        comfy_host.widget(
            io.Float,
            "live_seconds",
            default=0.0,
            min=0.0,
            max=1_000_000.0,
            step=1.0,
            optional=True,
            advanced=True,
            tooltip="How long to record live_source, from its first frame on. 0 goes on until Stop, or until the source has "
            "been away for 30 seconds; after Stop nothing that follows this node runs.",
        ),
    ]


def live_address(text: str) -> SourceAddress:
    """The source of a text. InputError for a file, and for what is none."""
    text = text.strip()
    kind, _, rest = text.partition(":")
    if kind in CAMERAS.values() and rest:
        return _camera(text, kind, rest)
    if is_url(text):
        if kind.lower() not in PROTOCOLS:
            raise InputError(f"live_source {text} is of another protocol than {', '.join(PROTOCOLS)}; use one of these")
        return SourceAddress(text)
    mode = _mode(text)
    if stat.S_ISREG(mode):
        raise InputError(
            f"live_source {text} is a file; connect it to video with Load Video, and leave live_source empty"
        )
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        raise InputError(
            f"live_source {text} is no address, and no camera or named pipe of this machine; use such as "
            "udp://0.0.0.0:5000, rtmp://server/app/key or /dev/video0"
        )
    return SourceAddress(text)


def _camera(text: str, kind: str, name: str) -> SourceAddress:
    own = CAMERAS.get(sys.platform)
    if kind != own:
        raise InputError(f"live_source {text} is for another system; here cameras are called {own}:NAME")
    if name == STANDARD or (kind == "v4l2" and not stat.S_ISCHR(_mode(name))):
        raise InputError(f"live_source {text} is no camera of this machine; use such as v4l2:/dev/video0")
    return SourceAddress(name, container=kind)


def _mode(path: str) -> int:
    """0 where there is nothing of that name, or nothing can be found out."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0


def check_one_source(video: Any, live_source: str) -> SourceAddress | None:
    """The live source, None for a video. InputError where not exactly one of them is there."""
    if live_source.strip():
        if video is not None:
            raise InputError("video is connected and live_source is set; disconnect the one, or empty the other")
        return live_address(live_source)
    if video is None:
        raise InputError("there is no video; connect one, or name a camera or stream as live_source")
    return None


def check_unused(hdr: str, **settings: float) -> None:
    """InputError for settings that a live source does not go with: tone mapping, and those that are not 0."""
    if hdr == "tone-map":
        raise InputError("hdr tone-map is for files; set it to refuse or ignore, or leave live_source empty")
    for name, value in settings.items():
        if value:
            why = "takes longer than a live source waits" if name == "colour_match" else "is for a video"
            raise InputError(f"{name} {value:g} {why}; set it to 0, or leave live_source empty")


class TimedSource(LiveSource):
    """A live source that ends so many seconds after its first frame; 0: never by itself."""

    ADVICE = "check address and sender, and queue again"

    def __init__(self, address: SourceAddress, seconds: float) -> None:
        super().__init__(address, reconnect=AWAY_SECONDS)
        self.seconds = seconds
        # When the first frame came.
        self.began: float | None = None

    def frames(self) -> Generator[SourceFrame, None, None]:
        with contextlib.closing(super().frames()) as frames:
            for frame in frames:
                if self.began is None:
                    self.began = frame.time
                if self.seconds and frame.time >= self.began + self.seconds:
                    return
                yield frame

    @property
    def elapsed(self) -> float:
        """Seconds since the first frame; 0 before it."""
        return 0.0 if self.began is None else max(0.0, time.monotonic() - self.began)

    @property
    def is_overdue(self) -> bool:
        """Whether the time is over, though no frame has come to show it."""
        return bool(self.seconds) and self.elapsed > self.seconds + SPARE_SECONDS
