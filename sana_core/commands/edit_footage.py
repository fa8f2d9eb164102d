"""What ``edit`` reads and writes: the clip and how it is read, sizes and rates, and the places of results."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from typing import Any

from ..errors import InputError
from ..paths import check_distinct, check_target
from ..streaming.edit_stream import check_size
from ..video.geometry import bucket_size, similar_size
from ..video.reader import VideoReader, closest_rate, probe
from ..video.writer import check_output
from ..weights import nano
from .edit_networks import uses_nano
from .edit_options import flag
from .exchange import exchange_files

DEFAULT_HEIGHT, DEFAULT_WIDTH = 704, 1280
SIZE_MULTIPLE = 32
# How a clip is read: command-line names, and what is in force where they are not given.
READING: dict[str, Any] = {"resample_fps": None, "square_pixels": False, "hdr": "refuse"}


def check_targets(options: argparse.Namespace) -> None:
    """InputError for a place that cannot be written to, or that is used twice."""
    check_output(options.output, source=options.input)
    named = {"--report": options.report, "--save-state": options.save_state, "--sheet": options.sheet}
    for path in filter(None, named.values()):
        check_target(path)
    check_distinct(
        {
            "IN": options.input,
            "OUT": options.output,
            "--prompt-file": options.prompt_file,
            **named,
            **exchange_files(options),
        }
    )
    if options.resume:
        # A stream may be saved to the file that it came from.
        check_distinct({"--resume": options.resume, "OUT": options.output, "--report": options.report})
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet {options.sheet} is not a .png file; name one that is")


def check_numbers(options: argparse.Namespace) -> None:
    """InputError for numbers out of range that no other part of the program looks at."""
    if options.max_frames is not None and options.max_frames < 1:
        raise InputError(f"--max-frames {options.max_frames} edits nothing; use 1 or more, or leave it out for all")
    if not 0 <= options.crf <= 51:
        raise InputError(f"--crf {options.crf} is out of range; use 0 (lossless) to 51, 25 is the default")
    if options.motion_score is not None and options.motion_score < 0:
        raise InputError(f"--motion-score {options.motion_score} is below 0; use 0 for none, or more for more motion")


def open_footage(
    options: argparse.Namespace, saved: dict[str, Any] | None = None
) -> tuple[VideoReader, dict[str, Any]]:
    """The whole clip, and how it is read (`READING`, as JSON takes it): as the options say.

    ``saved`` is what a stream that goes on remembers; InputError where the options contradict it.
    """
    given = {name: value for name in READING if (value := getattr(options, name)) is not None}
    if rate := parse_rate(options.resample_fps, "--resample-fps"):
        given["resample_fps"] = str(closest_rate(rate, probe(options.input).frame_rate))
    reading = {**READING, **given}
    if saved is not None:
        # A stream of an earlier version read its clip in the way that is the default.
        reading = {name: saved.get(name, value) for name, value in READING.items()}
    for name, value in given.items():
        if value != reading[name]:
            raise InputError(
                f"{options.resume} is a stream over a clip that was read with {name} {reading[name]}, not {value}; "
                f"leave {flag(name)} out with --resume"
            )
    rate = reading["resample_fps"] and Fraction(reading["resample_fps"])
    reader = VideoReader(options.input, resample_fps=rate, square_pixels=reading["square_pixels"], hdr=reading["hdr"])
    return reader, reading


def parse_rate(text: str | None, option: str = "--fps") -> Fraction | None:
    """Frames per second. InputError, which names ``option``, for anything else."""
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not Fraction(1, 1000) <= rate <= 1000:
        raise InputError(f"{option} {text} is not a frame rate; use a number such as 16, 23.976 or 30000/1001")
    return rate


def output_rate(options: argparse.Namespace, reader: VideoReader) -> Fraction:
    """Frames per second of the edited video: of ``--fps``, else of the frames that are read."""
    rate = parse_rate(options.fps)
    return reader.frame_rate if rate is None else closest_rate(rate, reader.frame_rate)


def wanted_size(
    options: argparse.Namespace, reader: VideoReader, saved: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) of the edited video: what the options say, else ``saved``, else the model's own."""
    nano_model = uses_nano(options)
    height, width = saved or ((nano.HEIGHT, nano.WIDTH) if nano_model else (DEFAULT_HEIGHT, DEFAULT_WIDTH))
    if options.size is None:
        height = height if options.height is None else options.height
        width = width if options.width is None else options.width
    elif options.height is not None or options.width is not None:
        other = "--height" if options.height is not None else "--width"
        raise InputError(f"--size {options.size} and {other} both say how large; leave one of them out")
    elif options.size != "auto":
        height, width = parse_size(options.size)
    elif nano_model:
        height, width = similar_size(*reader.size, nano.HEIGHT * nano.WIDTH, SIZE_MULTIPLE)
    else:
        height, width = bucket_size(*reader.size)
    check_size(height, width)
    return height, width


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of ``WIDTHxHEIGHT``, in pixels. InputError for anything else."""
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", text, re.ASCII)
    if match is None:
        raise InputError(f"--size {text} is not a size; write width x height in pixels, such as 1280x704, or auto")
    return int(match[2]), int(match[1])
