"""`nano`: the small trained model that is part of the package, in ``sana_core/nano``.

The folder holds dit/, vae/ and text_encoder/ as a bundle does, a model card and a manifest of its files. Here is where it
lies and how its files are vouched for; what it can do and how it was made is in its README.md.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..config import read_json
from ..errors import CheckpointError

NAME = "nano"
# The size that it was trained at.
HEIGHT, WIDTH = 160, 256
# What it learned of the edits that it was trained on; the others are in its model card.
EDITS = "keep, black and white, sepia, night, warm sunset, negative, plain background and, weakly, pixel art"
MAX_BYTES = 16_000_000
MANIFEST_NAME = "manifest.json"
FOLDER = Path(__file__).parent.parent / NAME


def nano_folder() -> Path:
    """The folder of the built-in model. Raises CheckpointError where a file that its manifest names is missing."""
    missing = [name for name in (MANIFEST_NAME, *_listed(FOLDER)) if not (FOLDER / name).is_file()]
    if missing:
        raise CheckpointError(
            f"the built-in model nano is incomplete: {FOLDER} lacks {', '.join(missing)}; install the package again, "
            "or name another model"
        )
    return FOLDER


def write_manifest(folder: str | Path, version: str) -> Path:
    """Writes manifest.json: ``version``, and bytes and SHA-256 of every other file in ``folder``; returns its path."""
    path = Path(folder) / MANIFEST_NAME
    content = {"version": version, "files": _measured(Path(folder))}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
    return path


def check_manifest(folder: str | Path | None = None) -> None:
    """Raises CheckpointError unless the files of ``folder`` (default: the built-in model) are those of its manifest."""
    folder = FOLDER if folder is None else Path(folder)
    listed, found = _listed(folder), _measured(folder)
    different = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    if different:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME} does not describe {', '.join(different)}; install the package again, or write the "
            "manifest anew after a change of your own"
        )


def check_size(folder: Path) -> None:
    """Raises CheckpointError where the files of ``folder`` are together, manifest included, more than `MAX_BYTES`."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise CheckpointError(f"{folder} has {total:,} bytes; at most {MAX_BYTES:,} may be part of the package")


def _listed(folder: Path) -> dict[str, Any]:
    """The entries of the manifest, none where there is no manifest."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return {}
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path} lists no files; install the package again")
    return files


def _measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file but the manifest, by its path relative to ``folder``."""
    entries = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST_NAME:
            data = path.read_bytes()
            entries[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return entries
