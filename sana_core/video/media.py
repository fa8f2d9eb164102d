"""Opening media files, with errors that say what to do."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def open_media(path: Path) -> "InputContainer":
    """The file opened for reading. Raises InputError, one line, if there is none or it is no media file."""
    import av

    if not path.exists():
        raise InputError(f"{path}: no such file: check the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a video file")
    try:
        # An absolute path is never taken for the address of another protocol, whatever colons are in it.
        return av.open(str(path.absolute()), metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(f"{path} cannot be read as a video ({error.strerror}): give a video file, whole") from error


def video_stream(container: "InputContainer", path: Path) -> "VideoStream":
    """The first video stream that is not a cover picture. Raises InputError where there is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise InputError(f"{path} has no video in it that can be decoded: give a video file")
