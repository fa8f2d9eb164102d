"""Finished prompt embeddings on disk. Knows files; of keys only that they are file names."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from .prompt import PromptEmbedding

logger = logging.getLogger(__name__)


class PromptCache:
    """Finished embeddings in a folder, one safetensors file each, without the rows that hold no token.

    A file that cannot be read is the same as no file. Where the folder cannot be written, one warning is logged and
    nothing is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writable = True

    def get(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> PromptEmbedding | None:
        """The embedding under ``key``, None where there is none with [L, C] = ``shape`` and ``dtype``."""
        from safetensors import SafetensorError, safe_open

        max_text_tokens, channels = shape
        try:
            with safe_open(self._path(key), framework="pt") as file:
                rows = file.get_tensor("rows")
                truncated_tokens = int(file.metadata()["truncated_tokens"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        if rows.ndim != 2 or not 1 <= len(rows) <= max_text_tokens or rows.shape[1] != channels or rows.dtype != dtype:
            return None
        return PromptEmbedding.from_rows(rows, max_text_tokens, truncated_tokens)

    def put(self, key: str, embedding: PromptEmbedding) -> None:
        """Keeps ``embedding`` under ``key``. The file appears complete or not at all."""
        from safetensors.torch import save

        if not self._writable:
            return
        data = save({"rows": embedding.rows.contiguous()}, {"truncated_tokens": str(embedding.truncated_tokens)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_atomically(self._path(key), data)
        except OSError as error:
            self._writable = False
            logger.warning("prompt embeddings are not kept: %s cannot be written (%s)", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def default_cache_dir() -> Path:
    """``prompts`` in $SANA_STREAMING_CACHE, else in ``sana_streaming`` in the cache folder of the user."""
    return _cache_root(os.environ, windows=os.name == "nt") / "prompts"


def _cache_root(environment: Mapping[str, str], *, windows: bool) -> Path:
    if chosen := environment.get("SANA_STREAMING_CACHE"):
        return Path(chosen).expanduser()
    platform = environment.get("LOCALAPPDATA" if windows else "XDG_CACHE_HOME")
    return (Path(platform) if platform else Path.home() / ".cache") / "sana_streaming"


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
