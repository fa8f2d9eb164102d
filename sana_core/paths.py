"""Checks of places to write to, made before any work starts."""

from __future__ import annotations

import tempfile
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
