"""Lists of training data: pairs in ZIP shards, and long videos with an instruction there and back.

Both are JSONL, one object a line, blank lines skipped, surplus keys ignored (``docs/training.md``). Everything wrong is
an InputError that names file, line and value; a file that is not there is a MissingFileError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import InputError

PAIRS_MANIFEST = "manifest.jsonl"


class MissingFileError(InputError, FileNotFoundError):
    """A file that a manifest names, or the manifest itself, is not there."""


@dataclass(frozen=True)
class PairRecord:
    """A source clip and its edit: two members of a ZIP file, the instruction, and their size in pixels.

    ``reverse_prompt`` asks for the source again; a manifest may leave it out.
    """

    id: str
    shard: Path
    source_member: str
    target_member: str
    prompt: str
    width: int
    height: int
    reverse_prompt: str | None = None


@dataclass(frozen=True)
class LongVideoRecord:
    """A video (``source_video`` as written, ``path`` where it is), its edit instruction and the way back."""

    prompt: str
    reverse_prompt: str
    source_video: str
    path: Path


def read_pairs(folder: str | Path) -> list[PairRecord]:
    """The records of ``folder/manifest.jsonl``; shard paths are resolved. Members are not opened."""
    root = Path(folder)
    records: dict[str, PairRecord] = {}
    for row in _rows(root / PAIRS_MANIFEST):
        name = row.text("id")
        if name in records:
            raise InputError(f"{row.place}: id {name!r} occurs twice; give each pair an id of its own")
        records[name] = PairRecord(
            id=name,
            shard=row.file("shard", root),
            source_member=row.relative("source_member"),
            target_member=row.relative("target_member"),
            prompt=row.text("prompt"),
            width=row.size("width"),
            height=row.size("height"),
            reverse_prompt=row.text("reverse_prompt") if "reverse_prompt" in row.values else None,
        )
    return list(records.values())


def read_long_videos(manifest: str | Path, data_root: str | Path | None = None) -> list[LongVideoRecord]:
    """The records of a manifest; videos are relative to ``data_root``, by default the manifest's folder."""
    root = Path(data_root) if data_root is not None else Path(manifest).parent
    return [
        LongVideoRecord(
            prompt=row.text("prompt"),
            reverse_prompt=row.text("reverse_prompt"),
            source_video=row.text("source_video"),
            path=row.file("source_video", root),
        )
        for row in _rows(Path(manifest))
    ]


@dataclass(frozen=True)
class _Row:
    """One object of a manifest, and where it stands."""

    place: str
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """A string that is more than white space, stripped."""
        value = self._value(key)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.place}: {key} is {value!r}; it must be a string that is not empty")
        return value.strip()

    def size(self, key: str) -> int:
        """Pixels."""
        value = self._value(key)
        if type(value) is not int or value < 1:
            raise InputError(f"{self.place}: {key} is {value!r}; it must be a whole number of pixels, 1 or more")
        return value

    def relative(self, key: str) -> str:
        """A path that stays below where it starts, by the rules of POSIX and of Windows."""
        value = self.text(key)
        windows = PureWindowsPath(value)
        # PureWindowsPath divides at either slash.
        absolute = PurePosixPath(value).is_absolute() or windows.drive or windows.root
        if absolute or ".." in windows.parts or "\0" in value:
            raise InputError(f"{self.place}: {key} {value!r} is not a relative path without '..'; write it so")
        return value

    def file(self, key: str, root: Path) -> Path:
        """An existing file below ``root``, resolved."""
        value = self.relative(key)
        path = (root / value).resolve()
        if not path.is_relative_to(root.resolve()):
            raise InputError(f"{self.place}: {key} {value!r} leads outside {root}; put the file itself there")
        if not path.is_file():
            raise MissingFileError(f"{self.place}: {key} {value!r} is not a file below {root}; add it or drop the line")
        return path

    def _value(self, key: str) -> Any:
        if key not in self.values:
            raise InputError(f"{self.place}: {key} is missing; add it")
        return self.values[key]


def _rows(manifest: Path) -> Iterator[_Row]:
    """The objects of a manifest, in order; InputError if there is none."""
    if not manifest.is_file():
        raise MissingFileError(f"{manifest} is not there or not a file; give a manifest in JSONL")
    try:
        text = manifest.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{manifest} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    # Not splitlines: JSON strings may hold other line separators than these.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{manifest} has no records; write one JSON object per line")
    for number, line in lines:
        place = f"{manifest}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: not JSON ({error}); write one JSON object per line") from error
        if not isinstance(values, dict):
            raise InputError(f"{place}: {type(values).__name__} instead of an object; write {{...}}")
        yield _Row(place, values)
