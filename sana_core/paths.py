"""Checks of places to write to, made before any work starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import InputError


def check_folder(path: Path) -> None:
    """InputError unless a file can be made at ``path``; leaves nothing behind."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}: create it, or write somewhere else")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot write to {path.parent} ({error.strerror}): choose another folder") from error


def check_target(path: Path) -> None:
    """InputError unless a file can be made or replaced at ``path``."""
    check_folder(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} is write-protected: choose another name")


def check_distinct(named: Mapping[str, Path | None]) -> None:
    """InputError when two of the named paths are one file."""
    seen: dict[Path, str] = {}
    for name, path in named.items():
        if path is not None and (other := seen.setdefault(path.resolve(), name)) != name:
            raise InputError(f"{name} and {other} are the same file, {path}: give each its own")
