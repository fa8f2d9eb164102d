"""What is left of a video file whose writing broke off."""

import os
from contextlib import suppress
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from ..errors import InputError
from .media import open_media


def salvage(path: Path, frame_rate: Fraction) -> int:
    """Makes the file playable and returns how many frames it holds: from the first on, without a gap.

    An MP4 is cut back to its last whole fragment, since players refuse a file in which the list of a fragment's pictures
    breaks off. Matroska is cut where a picture is missing between those that are there. A file without a frame is
    removed.
    """
    if not path.exists():
        return 0
    is_mp4 = _is_mp4(path)
    if is_mp4:
        os.truncate(path, _end_of_whole_fragments(path))
    pictures = _pictures(path, frame_rate)
    highest = accumulate((number for number, _ in pictures), max)
    num_frames = max((count for count, top in enumerate(highest, 1) if top == count - 1), default=0)
    if not num_frames:
        path.unlink()
    elif num_frames < len(pictures) and not is_mp4:
        os.truncate(path, pictures[num_frames][1])
    return num_frames


def is_cut_short(path: Path) -> bool:
    """Whether the end of an MP4 is missing: FFmpeg before 8.1 reports no error in writing its last bytes."""
    return _is_mp4(path) and _end_of_whole_fragments(path) < path.stat().st_size


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _end_of_whole_fragments(path: Path) -> int:
    size = path.stat().st_size
    at = end = 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            at += length
            if length < 8 or at > size:
                break
            # A fragment is two boxes: moof, the list of its pictures, and mdat, the pictures.
            if head[4:8] != b"moof":
                end = at
    return end


def _pictures(path: Path, frame_rate: Fraction) -> list[tuple[int, int]]:
    """Number and place in the file of the pictures that are whole, in the order in which they are stored."""
    import av

    pictures = []
    with suppress(InputError, av.FFmpegError), open_media(path) as container:
        for packet in container.demux(container.streams.video):
            if packet.size and packet.pts is not None and packet.pos is not None:
                pictures.append((round(packet.pts * packet.time_base * frame_rate), packet.pos))
    return pictures
