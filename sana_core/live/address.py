"""Where live pictures come from and go to, as it is written on the command line."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ..errors import InputError

STANDARD = "-"
CAMERA = "virtual-camera"
RAW = "rawvideo"
# FFmpeg's names of what gives it cameras, by system.
CAMERAS = {"linux": "v4l2", "win32": "dshow", "darwin": "avfoundation"}
Kind = Literal["standard", "pipe", "file", "remote"]

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.]+:")
# What comes in pieces of several seconds each.
_PLAYLIST = re.compile(r"\.(m3u8|mpd)([?#].*)?$", re.IGNORECASE)
_DATAGRAMS = ("udp", "rtp")
# What the system holds of datagrams until FFmpeg takes them; it may allow less.
SOCKET_BYTES = 4 * 2**20
# What FFmpeg holds of them where nothing may be lost, in packets of MPEG-TS: 32 MiB.
HELD_PACKETS = 32 * 2**20 // 188
_FORMATS = {"udp": "mpegts", "srt": "mpegts", "tcp": "mpegts", "rtmp": "flv", "rtmps": "flv", "rtsp": "rtsp"}


@dataclass(frozen=True)
class SourceAddress:
    """Where frames come from.

    text: ``-``, a file, a named pipe, a device or whatever FFmpeg opens. container: FFmpeg's name of its format, None to find
    out. options: FFmpeg's for it. size: (height, width) and rate: of raw video, which does not tell. paced: read no faster than
    its own clock; None: files, pipes and playlists (HLS, DASH), which would otherwise come at any speed.
    """

    text: str
    container: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    paced: bool | None = None

    def __post_init__(self) -> None:
        if self.kind == "file" and not self.container and not Path(self.text).is_file():
            raise InputError(
                f"{self.text}: no such file, pipe or device: check the path, or give an address such as udp://127.0.0.1:5000"
            )
        if self.is_raw and (self.size is None or self.rate is None):
            raise InputError(
                f"{self.name} is raw RGB video, which does not say how large and how fast it is; give --input-size WxH "
                "and --input-fps, or name another format by --input-format"
            )

    @property
    def kind(self) -> Kind:
        if self.text == STANDARD:
            return "standard"
        if self._mode and stat.S_ISFIFO(self._mode):
            return "pipe"
        if self._mode and stat.S_ISREG(self._mode):
            return "file"
        return "remote" if self._mode or self.container or is_url(self.text) else "file"

    @property
    def name(self) -> str:
        """As people are told of it."""
        return "standard input" if self.kind == "standard" else self.text

    @property
    def _mode(self) -> int:
        try:
            return Path(self.text).stat().st_mode
        except (OSError, ValueError):
            return 0

    @property
    def is_raw(self) -> bool:
        return self.container == RAW or (self.kind == "standard" and self.container is None)

    @property
    def is_paced(self) -> bool:
        if self.paced is not None:
            return self.paced
        return self.kind != "remote" or self.container in ("hls", "dash") or bool(_PLAYLIST.search(self.text))

    @property
    def is_read_at_once(self) -> bool:
        """Whether it is a file that is not to be played at its own rate."""
        return self.kind == "file" and not self.is_paced

    @property
    def can_come_back(self) -> bool:
        """Whether its end may be followed by more: a file and standard input end once and for all."""
        return self.kind in ("pipe", "remote")

    @property
    def may_be_whole(self) -> bool:
        """Whether what is there may be a recording, or the playlist of a broadcast that is over."""
        return self.text.lower().startswith(("http:", "https:"))

    @property
    def is_listening(self) -> bool:
        """Whether senders come to this address: while it is closed, what they send is lost."""
        asked = re.search(r"[?&](listen=[1-9]|mode=listener)", self.text)
        return self._has_datagrams or bool(asked) or self.options.get("listen", "0") != "0"

    @property
    def _has_datagrams(self) -> bool:
        return is_url(self.text) and self.text.partition(":")[0].lower() in _DATAGRAMS

    def open_options(self, *, hold: bool = False) -> dict[str, str]:
        """What FFmpeg is told; the user's own options, here or in the address, count more.

        hold: keep what comes while FFmpeg looks at the stream, and as much as can be of datagrams that nobody takes.
        """
        found: dict[str, str] = {}
        if self.kind == "remote":
            found = {"analyzeduration": "1000000"} | ({} if hold else {"fflags": "nobuffer"})
        if self._has_datagrams:
            # A connection would end where more comes than is held.
            found |= {"buffer_size": str(SOCKET_BYTES), "overrun_nonfatal": "1"}
            if hold:
                found["fifo_size"] = str(HELD_PACKETS)
        if self.is_raw and self.size and self.rate:
            height, width = self.size
            found |= {"video_size": f"{width}x{height}", "pixel_format": "rgb24", "framerate": str(self.rate)}
        elif self._is_camera:
            if self.size:
                found["video_size"] = f"{self.size[1]}x{self.size[0]}"
            if self.rate:
                found["framerate"] = str(self.rate)
        return found | dict(self.options)

    @property
    def format(self) -> str | None:
        if self.container:
            return self.container
        return RAW if self.is_raw else "v4l2" if self._is_camera else None

    @property
    def _is_camera(self) -> bool:
        if self.container:
            return self.container in CAMERAS.values()
        return bool(self._mode and stat.S_ISCHR(self._mode))


@dataclass(frozen=True)
class TargetAddress:
    """Where edited frames go: ``-`` (raw RGB), a file, ``virtual-camera[:DEVICE]``, or whatever FFmpeg writes to."""

    text: str
    container: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As people are told of it."""
        return "standard output" if self.is_standard else self.text

    @property
    def is_standard(self) -> bool:
        return self.text == STANDARD

    @property
    def is_raw(self) -> bool:
        return self.container == RAW or (self.is_standard and self.container is None)

    @property
    def is_camera(self) -> bool:
        return self.text == CAMERA or self.text.startswith(f"{CAMERA}:")

    @property
    def camera(self) -> str | None:
        """The virtual camera's device; None for the first one."""
        return self.text.partition(":")[2] or None

    @property
    def is_remote(self) -> bool:
        return is_url(self.text) and not self.is_camera

    @property
    def format(self) -> str | None:
        """FFmpeg's name of the format; None where the file's ending says it. InputError for an address that does not."""
        if self.container:
            return self.container
        if self.is_raw:
            return RAW
        if not self.is_remote:
            return None
        scheme = self.text.partition(":")[0].lower()
        if scheme not in _FORMATS:
            raise InputError(f"{self.text} does not say its format; name it by --output-format, such as mpegts or flv")
        return _FORMATS[scheme]


def unknown_protocol(text: str) -> InputError:
    """What to say of an address that FFmpeg, as it is here, has no protocol for."""
    return InputError(
        f"{text} is of a protocol that this PyAV was built without; use udp, tcp, rtmp or another, or build PyAV with it"
    )


def is_url(text: str) -> bool:
    """Whether a text is an address of FFmpeg's and not a path: a scheme of two letters or more."""
    return bool(_URL.match(text))


def parse_options(texts: list[str], option: str) -> dict[str, str]:
    """``KEY=VALUE`` texts as a dict. InputError, which names ``option``, for another text."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"{option} {text} is no setting; write KEY=VALUE, such as framerate=30")
        found[key] = value
    return found
